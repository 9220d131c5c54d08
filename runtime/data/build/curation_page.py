"""The page of a curated corpus: what each step left, why, and the first documents that it dropped, to look at."""

from importlib.resources import files

from specs.curate import CurationStage
from specs.data import Corpus
from specs.report.html import Html, dense, join, table, tag


def render_curation(corpus: Corpus) -> str:
    """The page as HTML; the same corpus gives the same bytes."""
    stages = () if corpus.reading is None else corpus.reading.curation
    style = (files("specs.report") / "page.css").read_text(encoding="utf-8")
    parts = [tag("h1", f"Curation of corpus {corpus.name}"), _funnel(stages)]
    for number, stage in enumerate(stages, 1):
        if stage.dropped:
            parts += [tag("h2", f"{number}. {stage.step}: {stage.dropped:,} dropped"), _reasons(stage)]
            parts.append(
                dense(("reason", "the first of them"), _examples(stage), ("reason", "the first of them"))
            )
    head = tag("head", Html('<meta charset="utf-8">'), tag("title", "Curation"), tag("style", Html(style)))
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', join(parts))), lang='en')}\n"


def _funnel(stages: tuple[CurationStage, ...]) -> Html:
    first = stages[0].read if stages else 0
    rows = [
        [
            stage.step,
            f"{stage.read:,}",
            f"{stage.dropped:,}",
            f"{stage.dropped / stage.read:.1%}" if stage.read else "–",
            f"{(stage.read - stage.dropped) / first:.1%}" if first else "–",
        ]
        for stage in stages
    ]
    return table(("step", "read", "dropped", "of these", "left of all"), rows)


def _examples(stage: CurationStage) -> list[list[str]]:
    return [[one.reason, f"{one.text} …"] for one in stage.examples]


def _reasons(stage: CurationStage) -> Html:
    rows = [
        [reason, f"{number:,}"] for reason, number in sorted(stage.reasons.items(), key=lambda one: -one[1])
    ]
    return table(("reason", "documents"), rows) if rows else Html("")
