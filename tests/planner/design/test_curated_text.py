"""A plan on text that was curated: it holds the funnel, in the same bytes, and its report shows it."""

from pathlib import Path

import pytest

from planner.plan import make_plan
from specs.budget import Budget
from specs.curate import CurationStage, DroppedDocument
from specs.data import Reading
from specs.document.files import load
from specs.plan import Plan
from specs.plan_file import load_plan, save_plan
from specs.report import render
from tests.support.corpora import write_corpus
from tests.support.planning import inputs_of

BUDGET = """\
kind: budget
name: curated
compute: 1e12 FLOP
evidence: {kind: published, law: tiny}
family: tiny
cluster: laptop
data:
  text:
    source: files
    paths: [text.jsonl]
    curate: [{step: GopherQualityFilter}, {step: ExactDedup}]
  tokenizer: {kind: bytes}
precision: fp32
"""
STRANGE = (
    "Buy \0 now </td><script>alert(1)</script>\u2028\x85\ufeff\ttab: - # 'quoted' \"twice\"\n\n\U0001f600 "
)
"""What a page of the web may begin with."""
FUNNEL = (
    CurationStage(
        step="GopherQualityFilter",
        read=2000,
        dropped=500,
        reasons={"gopher_short_doc": 300, "gopher_below_alpha_threshold": 200},
        examples=(
            DroppedDocument(reason="gopher_short_doc", text=STRANGE),
            DroppedDocument(reason="gopher_below_alpha_threshold", text="long " * 60),
        ),
    ),
    CurationStage(
        step="ExactDedup",
        read=1500,
        dropped=100,
        reasons={},
        examples=(DroppedDocument(reason="", text="Once more."),),
    ),
)


def planned(folder: Path, curation: tuple[CurationStage, ...]) -> Plan:
    path = folder / "curated.yaml"
    path.write_text(BUDGET)
    reading = Reading(records=1400, empty=0, duplicates=0, malformed=0, examples=(), curation=curation)
    write_corpus(load(path, Budget).data, folder, reading=reading)
    return make_plan(inputs_of(path, folder / "plans", folder / "data"))


def test_a_plan_holds_the_funnel_in_the_same_bytes(tmp_path: Path) -> None:
    plan = planned(tmp_path, FUNNEL)
    assert [(text.source, text.steps) for text in plan.curation] == [("", FUNNEL)]
    files = [tmp_path / f"{name}.yaml" for name in ("one", "two")]
    save_plan(files[0], plan)
    save_plan(files[1], planned(tmp_path, FUNNEL))
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load_plan(files[0]) == plan
    assert "curation" not in planned(tmp_path, ()).plain()


def test_its_report_shows_the_funnel_and_what_was_dropped(tmp_path: Path) -> None:
    page = render(planned(tmp_path, FUNNEL), None)
    rows = [
        ("GopherQualityFilter", "2,000", "500", "25.0\u202f%", "75.0\u202f%"),
        ("ExactDedup", "1,500", "100", "6.7\u202f%", "70.0\u202f%"),
    ]
    for step, *numbers in rows:
        cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
        assert f'<tr><td class="text">{step}</td>{cells}</tr>' in page
    assert page.index("gopher_short_doc") < page.index("gopher_below_alpha_threshold")
    assert "<small>Once more.</small>" in page
    assert f"<small>{'long ' * 60}…</small>" in page
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "Curation" not in render(planned(tmp_path, ()), None)


@pytest.mark.parametrize("source", ["", "web"])
def test_a_source_is_named_where_there_is_one(tmp_path: Path, source: str) -> None:
    plan = planned(tmp_path, FUNNEL)
    text = plan.curation[0].model_copy(update={"source": source})
    page = render(plan.model_copy(update={"curation": (text,)}), None)
    assert ('<td class="text">web</td><td class="text">ExactDedup</td>' in page) == (source == "web")
