"""What curation left of a text, and what it dropped: two tables of the plan's report and of a corpus's own page."""

from collections.abc import Iterator, Sequence

from specs.curate import CuratedText, CurationStage
from specs.formatting import FUNNEL_HEAD, funnel_rows
from specs.report.html import Html, dense, join, tag

_TEXT_COLUMNS = ("source", "step", "reason", "the first of them")


def funnel(texts: Sequence[CuratedText]) -> Html:
    """A row for each step of each text."""
    rows = [(text.source, *row) for text in texts for row in funnel_rows(text.steps)]
    return dense(("source", *FUNNEL_HEAD), rows, _TEXT_COLUMNS)


def dropped(texts: Sequence[CuratedText]) -> Html:
    """A row for each reason of each step, the commonest first, with examples; nothing where nothing was dropped."""
    rows = [(text.source, step.step, *row) for text in texts for step in text.steps for row in _reasons(step)]
    return dense(("source", "step", "reason", "documents", "the first of them"), rows, _TEXT_COLUMNS)


def _reasons(stage: CurationStage) -> Iterator[tuple[str, str, Html]]:
    reasons = stage.reasons or ({"": stage.dropped} if stage.dropped else {})
    for reason, documents in sorted(reasons.items(), key=lambda one: -one[1]):
        examples = (f"{one.text} …" for one in stage.examples if one.reason == reason)
        yield reason, f"{documents:,}", join(tag("small", text) for text in examples)
