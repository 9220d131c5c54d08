"""The page of a curated corpus: what each step left, why, and the first documents that it dropped, to look at."""

from importlib.resources import files

from specs.curate import CuratedText
from specs.data import Corpus
from specs.report.html import Html, tag
from specs.report.page_parts import section
from specs.report.tables import dropped, funnel


def render_curation(corpus: Corpus) -> str:
    """The page of a corpus that was curated, as HTML; the same corpus gives the same bytes."""
    assert corpus.reading is not None
    text = CuratedText(source="", steps=corpus.reading.curation)
    style = (files("specs.report") / "page.css").read_text(encoding="utf-8")
    parts = (
        tag("h1", f"Curation of corpus {corpus.name}"),
        funnel([text]),
        section("What was dropped", dropped([text])),
    )
    head = tag("head", Html('<meta charset="utf-8">'), tag("title", "Curation"), tag("style", Html(style)))
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *parts)), lang='en')}\n"
