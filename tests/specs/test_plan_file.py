"""A plan and the runs that its fit saw: two files that belong together, and are refused where they do not."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from specs.document.files import DocumentError, load
from specs.evidence import FILE_NAME, evidence_text
from specs.plan import Plan
from specs.plan_file import load_document, load_plan, save_plan
from tests.support import examples, samples
from tests.support.paths import ROOT

PLAN = examples.make_plan("target")


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(DocumentError) as caught:
        read()
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A saved plan."""
    save_plan(tmp_path / "plan.target.yaml", PLAN)
    return tmp_path / "plan.target.yaml"


def test_a_plan_comes_back_with_its_runs_which_its_own_file_does_not_hold(path: Path) -> None:
    assert PLAN.fit is not None
    lines = (path.parent / FILE_NAME).read_text()
    assert lines == evidence_text(PLAN.fit.points)
    assert lines.count("\n") == PLAN.fit.evidence.runs == len(PLAN.fit.points)
    assert load_plan(path) == load_document(path) == PLAN
    assert PLAN.fit.points[0].run not in path.read_text()


def test_a_plan_without_a_fit_is_one_file(tmp_path: Path) -> None:
    save_plan(tmp_path / "plan.yaml", samples.plan())
    assert load_plan(tmp_path / "plan.yaml") == samples.plan()
    assert [one.name for one in tmp_path.iterdir()] == ["plan.yaml"]


@pytest.mark.parametrize("change", ["a loss", "a line less", "a line more", "another order", "nothing"])
def test_runs_that_were_changed_after_the_seal_are_refused(path: Path, change: str) -> None:
    file = path.parent / FILE_NAME
    lines = file.read_text().splitlines(keepends=True)
    changed = {
        "a loss": [lines[0].replace('"loss":', '"loss":1'), *lines[1:]],
        "a line less": lines[:-1],
        "a line more": [*lines, lines[0]],
        "another order": lines[::-1],
        "nothing": [],
    }
    file.write_text("".join(changed[change]))
    said = refusal(lambda: load_plan(path))
    assert said.startswith(f"{file}:1:1: the file was changed after {path} was sealed (its SHA-256 is ")
    assert said.endswith("; restore it beside plan.target.yaml, or plan the budget again under another name")


def test_runs_that_are_missing_are_refused(path: Path) -> None:
    (path.parent / FILE_NAME).unlink()
    said = refusal(lambda: load_plan(path))
    assert said.startswith(
        f"{path.parent / FILE_NAME}:1:1: the runs that {path} rests on are missing; restore it"
    )


def test_the_seal_covers_the_runs(path: Path) -> None:
    """A digest that is edited to suit other runs breaks the plan's own seal."""
    assert PLAN.fit is not None
    path.write_text(path.read_text().replace(PLAN.fit.evidence.sha256, "0" * 64))
    assert "was changed after it was sealed" in refusal(lambda: load_plan(path))


def test_runs_inside_of_a_plans_own_file_are_refused(path: Path) -> None:
    """No second place, which the seal would not cover."""
    path.write_text(path.read_text().replace("  size_kind:", "  points: []\n  size_kind:"))
    assert "unknown key 'points'" in refusal(lambda: load_plan(path))


def test_the_plan_is_written_last(tmp_path: Path) -> None:
    """So a plan that is there has its runs; where it cannot be written, none is there."""
    (tmp_path / "plan.yaml").mkdir()
    refusal(lambda: save_plan(tmp_path / "plan.yaml", PLAN))
    assert (tmp_path / FILE_NAME).exists()
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_every_command_loads_a_plan_with_its_runs() -> None:
    """`load` alone would give a fit without points."""
    sources = [
        path for top in ("specs", "planner", "runtime", "isoplan") for path in (ROOT / top).rglob("*.py")
    ]
    found = {
        path.relative_to(ROOT).as_posix()
        for path in sources
        if re.search(r"\bload\([^()]*(\([^()]*\))?[^()]*, Plan\)|\bload_any\(", path.read_text())
    }
    assert found == {"specs/plan_file.py", "specs/document/files.py"}
    assert load(ROOT / "specs" / "demo.yaml", type(samples.budget())) is not None


def test_ten_thousand_runs_are_no_part_of_a_plans_size(tmp_path: Path) -> None:
    assert PLAN.fit is not None
    many = tuple(PLAN.fit.points[0].model_copy(update={"loss": 2 + i / 1e5}) for i in range(10_000))
    plan = samples.sealed(PLAN, fit=PLAN.fit.model_copy(update={"points": many}))
    save_plan(tmp_path / "plan.yaml", plan)
    assert (tmp_path / "plan.yaml").stat().st_size < 60_000
    assert load_plan(tmp_path / "plan.yaml").fit == plan.fit
    assert isinstance(plan, Plan)
