"""Steps that would spoil a run are thrown away, and a run that cannot get past them goes back."""

import json
import math
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime.checkpoint.format import find_latest_intact, read_manifest
from runtime.data.batches import first_sample_of_step
from runtime.run_folder.folder import RunFolder
from runtime.train.spike_guard import SpikeGuard, deviations
from specs.data import CorpusRef
from specs.exit_codes import NO_RETRY, OK
from specs.record import Incident, Rollback, SkippedRange, Start
from specs.run import RunSpec
from specs.spike_guard import SpikeGuardSpec, SpikeGuardState
from tests.support.training import Ranks, corpus, opened, order, poison, tiny_run

SPEC = SpikeGuardSpec(window_steps=16, spike_deviations=10.0, patience_steps=3)


def fed(guard: SpikeGuard, losses: list[float]) -> list[str]:
    return [guard.reject_reason(loss, 1.0) for loss in losses]


def noisy(count: int, level: float = 3.0, seed: int = 0) -> list[float]:
    chance = random.Random(seed)
    return [level * math.exp(chance.gauss(0, 0.01)) for _ in range(count)]


def test_deviations_are_standard_deviations_of_normal_noise() -> None:
    before = noisy(20001)
    assert deviations(3.0 * math.exp(0.05), before) == pytest.approx(5.0, rel=0.05)
    assert deviations(3.0, before) == pytest.approx(0.0, abs=0.05)


def test_a_few_wild_losses_do_not_hide_a_spike() -> None:
    before = [*noisy(100), *[30.0] * 30]
    assert deviations(9.0, before) > 50


def test_only_what_rises_is_a_spike() -> None:
    guard = SpikeGuard(SPEC, SpikeGuardState())
    assert fed(guard, noisy(16)) == [""] * 16
    assert guard.reject_reason(0.5, 1.0) == ""
    assert "robust standard deviations above the median of the last 16 steps" in guard.reject_reason(4.0, 1.0)
    assert guard.rejected_in_a_row == 1
    assert guard.reject_reason(3.0, 1.0) == ""
    assert guard.rejected_in_a_row == 0


def test_nothing_is_a_spike_before_there_is_something_to_compare() -> None:
    assert fed(SpikeGuard(SPEC, SpikeGuardState()), [3.0] * 15 + [300.0]) == [""] * 16


def test_what_was_thrown_away_is_not_compared_with() -> None:
    guard = SpikeGuard(SPEC, SpikeGuardState())
    fed(guard, noisy(16))
    assert all(fed(guard, [6.0] * 40))
    assert guard.state.rejected_in_a_row == 40
    assert max(guard.state.losses) < 3.2


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.nan), (3.0, math.inf)]
)
def test_what_is_not_finite_is_never_applied(loss: float, norm: float) -> None:
    guard = SpikeGuard(SPEC, SpikeGuardState())
    assert guard.reject_reason(loss, norm).endswith(" is not finite")
    for _ in range(2):
        assert not guard.should_roll_back
        guard.reject_reason(loss, norm)
    assert guard.should_roll_back


def test_without_a_guard_everything_is_applied() -> None:
    guard = SpikeGuard(None, SpikeGuardState())
    assert fed(guard, [3.0] * 200 + [math.nan, 1e9]) == [""] * 202
    assert not guard.should_roll_back


def test_a_guard_that_was_put_down_goes_on_as_if_it_never_was() -> None:
    losses = noisy(60)
    losses[30:33] = [9.0, math.nan, 9.0]
    whole, resumed = SpikeGuard(SPEC, SpikeGuardState()), SpikeGuard(SPEC, SpikeGuardState())
    said = []
    for loss in losses:
        said.append(resumed.reject_reason(loss, 1.0))
        resumed = SpikeGuard(SPEC, SpikeGuardState.model_validate_json(resumed.state.canonical_json()))
    assert said == fed(whole, losses)
    assert resumed.state == whole.state


def test_batches_go_on_past_what_was_left_out() -> None:
    def batches(steps: int, *skipped: SkippedRange) -> list[int]:
        return [first_sample_of_step(step, 10, skipped) // 10 + 1 for step in range(1, steps + 1)]

    assert batches(4) == [1, 2, 3, 4]
    first = SkippedRange(step=6, to_step=2, batches=6)
    assert batches(5, first) == [1, 2, 7, 8, 9]
    later = SkippedRange(step=5, to_step=4, batches=9)
    assert batches(6, first, later) == [1, 2, 7, 8, 10, 11]
    before_both = SkippedRange(step=6, to_step=1, batches=11)
    assert batches(4, first, later, before_both) == [1, 12, 13, 14]


STEPS = 60


def run_of(home: Path, **changes: Any) -> RunSpec:
    data: CorpusRef = corpus(home)
    return tiny_run(data, steps=STEPS, guard=SpikeGuardSpec(window_steps=16, patience_steps=4), **changes)


def trained(home: Path, where: Path, run: RunSpec, first: int, last: int, dp: int = 1) -> RunFolder:
    folder = opened(where, run, order(run, dp=dp, every_steps=8))
    assert Ranks(folder, home / "data", dp, partial(poison, first, last)).join() == [OK] * dp
    return folder


@pytest.mark.slow
def test_a_few_bad_steps_are_left_out_and_the_run_goes_on(home: Path, tmp_path: Path) -> None:
    folder = trained(home, tmp_path, run_of(home), 30, 32)
    metrics = folder.metrics()
    assert [line.step for line in metrics] == list(range(1, STEPS + 1))
    assert [line.step for line in metrics if not line.applied] == [30, 31, 32]
    assert [line.loss for line in metrics if not line.applied] == [None] * 3
    incidents = [line for line in folder.records() if isinstance(line, Incident)]
    assert [(line.what, line.step) for line in incidents] == [
        ("rejected_step", step) for step in (30, 31, 32)
    ]
    path, problems = find_latest_intact(folder.checkpoints, folder.run(), ())
    assert path is not None
    assert problems == []
    assert read_manifest(path).updates == STEPS - 3
    assert metrics[-1].loss is not None
    assert metrics[0].loss is not None
    assert metrics[-1].loss < metrics[0].loss


@pytest.mark.slow
@pytest.mark.parametrize("dp", [1, 2])
def test_a_run_that_cannot_get_past_goes_back_and_leaves_the_data_out(
    home: Path, tmp_path: Path, dp: int
) -> None:
    """At step 33 four in a row were bad, among them the one after which a checkpoint is due; it goes back to 24."""
    folder = trained(home, tmp_path, run_of(home), 30, 35, dp)
    (rollback,) = (line for line in folder.records() if isinstance(line, Rollback))
    assert rollback.skipped == SkippedRange(step=33, to_step=24, batches=33)
    assert "rolled back to step 24: steps 25 to 33 are discarded and their data skipped" in rollback.message
    assert [line.from_step for line in folder.records() if isinstance(line, Start)] == [0, 24]
    assert [line.lost_steps for line in folder.records() if isinstance(line, Start)] == [0, 9]
    metrics = folder.metrics()
    assert [line.step for line in metrics] == list(range(1, STEPS + 1))
    assert [line.step for line in metrics if not line.applied] == [25, 26]  # batches 34 and 35
    path, _ = find_latest_intact(folder.checkpoints, folder.run(), folder.skipped())
    assert path is not None
    assert read_manifest(path).skipped == (rollback.skipped,)


@pytest.mark.slow
@pytest.mark.parametrize("dp", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_run_that_goes_back_can_be_killed_all_the_while(home: Path, tmp_path: Path, dp: int) -> None:
    run = run_of(home)
    whole = trained(home, tmp_path / "whole", run, 30, 35, dp)
    folder = opened(tmp_path / "killed", run, order(run, dp=dp, every_steps=8))
    chance = random.Random(dp)
    for _ in range(6):
        seen = len(folder.records())
        ranks = Ranks(folder, home / "data", dp, partial(poison, 30, 35))
        while len(folder.records()) <= seen and ranks.processes[0].is_alive():
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.25))
        ranks.kill()
    assert set(Ranks(folder, home / "data", dp, partial(poison, 30, 35)).join()) == {OK}
    assert folder.metrics_jsonl.read_bytes() == whole.metrics_jsonl.read_bytes()
    assert folder.evals_jsonl.read_bytes() == whole.evals_jsonl.read_bytes()
    ends = [one.end() for one in (folder, whole)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].weights_sha256 == ends[1].weights_sha256


@pytest.mark.slow
def test_a_run_that_comes_back_to_the_same_place_stops(home: Path, tmp_path: Path) -> None:
    run = run_of(home)
    folder = opened(tmp_path, run, order(run, every_steps=8))
    assert Ranks(folder, home / "data", 1, partial(poison, 30, 10**9)).join() == [NO_RETRY]
    assert len(folder.skipped()) == 3
    last = folder.records()[-1]
    assert isinstance(last, Incident)
    assert "3 rollbacks to step 24 did not get the run past step 28" in last.message
    (line,) = (folder.log / "rank-0.txt").read_text().splitlines()[-1:]
    assert line.startswith("RunError: 3 rollbacks to step 24 did not get the run past step 28")
    assert line.endswith("training diverged; plan with a lower learning rate")
    assert json.loads((folder.metrics_jsonl).read_text().splitlines()[-1])["step"] == 28
