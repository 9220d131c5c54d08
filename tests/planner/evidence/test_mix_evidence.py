"""Pilots on a mix: their shares are the target's, each source's repeats are discounted, other mixes are no evidence."""

from pathlib import Path

import pytest

from planner.evidence.ledger_evidence import read_evidence
from planner.scaling.data_constrained import effective_tokens
from specs.budget import Budget
from specs.document.files import load, read_lines
from specs.document.write import append_line
from specs.ledger import text_of
from specs.plan import Forecast
from specs.record import LedgerRecord
from specs.report import render
from tests.planner.evidence.test_ledger_evidence import own_runs, planned, train
from tests.support.corpora import write_mix
from tests.support.paths import SPECS

UNIQUE = {"web": 10**8, "code": 10**7, "math": 5 * 10**5}
TEXT = """\
  text:
    source: mix
    parts:
      web: {text: {source: files, paths: [web.txt]}, share: 0.7}
      code: {text: {source: files, paths: [code.txt]}, share: 0.2}
      math: {text: {source: files, paths: [math.txt]}, share: 0.1}
    phases:
      - {start: milestone 2, share: {web: 0.2, math: 0.8}}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """The demo's budget on a mix, of which math is little."""
    lines = (SPECS / "demo.yaml").read_text().splitlines(keepends=True)
    text = next(line for line in lines if line.startswith("  text:"))
    budget = "".join(lines).replace(text, TEXT)
    (tmp_path / "demo.yaml").write_text(budget + "epochs: 60\n")
    write_mix(load(tmp_path / "demo.yaml", Budget).data, tmp_path, UNIQUE)
    return tmp_path


@pytest.mark.slow
def test_pilots_on_a_mix_give_the_forecast_of_a_target_on_it(workspace: Path) -> None:
    pilots = planned(workspace)
    for one in pilots.runs:
        mix, steps = one.run.mix, one.run.optim.steps
        assert mix is not None
        assert [phase.samples for phase in mix.phases] == [
            {"code": 2, "math": 1, "web": 7},
            {"math": 4, "web": 1},
        ]
        assert mix.phases[1].from_step == one.run.optim.milestones[1].step == round(0.9 * steps)
    train(workspace, pilots, seed=0)
    plan = planned(workspace)
    assert isinstance(plan.forecast, Forecast)
    run = plan.runs[0].run
    assert plan.epochs(run)["math"] > 1 > plan.epochs(run)["web"]
    assert plan.fit is not None
    share = {"web": 0.9 * 0.7 + 0.1 * 0.2, "code": 0.9 * 0.2, "math": 0.9 * 0.1 + 0.1 * 0.8}
    for point in plan.fit.points:
        worth = sum(effective_tokens(share[name] * point.tokens, UNIQUE[name]) for name in UNIQUE)
        assert point.unique_tokens is None
        assert point.fresh_tokens == pytest.approx(worth, rel=1e-6)
    assert any("epochs of math; the repeated tokens are worth" in note for note in plan.notes)
    assert "epochs of math" in render(plan, None)


def test_runs_of_another_mix_of_the_same_sources_are_no_evidence(workspace: Path) -> None:
    train(workspace, planned(workspace), seed=0)
    (first, *_) = records = read_lines(workspace / "ledger.jsonl", LedgerRecord)
    mix = first.run.mix
    assert mix is not None
    phases = (mix.phases[0].model_copy(update={"samples": {"web": 8, "code": 1, "math": 1}}), mix.phases[1])
    other = first.run.model_copy(update={"mix": mix.model_copy(update={"phases": phases})})
    append_line(workspace / "ledger.jsonl", first.model_copy(update={"run": other}))
    digest = first.run.data.digest
    assert digest is not None
    found = read_evidence(workspace / "ledger.jsonl", digest, own_runs(workspace), 1e13)
    assert len(found.pilots) + len(found.rates) == len(records)
    assert found.flags == (
        f"1 of the ledger's {len(records) + 1} runs on this text is not used: another mix of sources",
    )
    assert text_of(first) == text_of(records[-1]) != text_of(first.model_copy(update={"run": other}))
