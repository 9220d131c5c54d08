"""A run on a mix of three sources: the same batches whatever happens to it, and a held-out loss of each source."""

import time
from functools import partial
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runtime.run_folder.folder import RunFolder
from runtime.train.loop import RunError
from specs.exit_codes import OK
from specs.optim import Milestone
from specs.record import Rollback, Start
from specs.run import RunSpec
from specs.sources import Sources
from specs.spike_guard import SpikeGuardSpec
from tests.support import mixes, samples
from tests.support.training import Ranks, opened, order, poison, tiny_run, train_here

STEPS = 48


@pytest.fixture(scope="module")
def sources(home: Path) -> Sources:
    return mixes.built(home)


@pytest.fixture(scope="module")
def run(sources: Sources) -> RunSpec:
    """Its annealing phase begins at step 28, and a rollback from step 33 goes back to 24."""
    return tiny_run(
        sources.ref,
        mix=mixes.mix(28),
        model=samples.model(width=16, heads=2, kv_heads=2, ffn=32, context=32),
        optim=samples.optim(
            steps=STEPS,
            batch_sequences=4,
            peak_lr=0.001,
            warmup_steps=2,
            milestones=(Milestone(step=40, factor=0.316),),
        ),
        guard=SpikeGuardSpec(window_steps=16, patience_steps=4),
    )


@pytest.fixture(scope="module")
def whole(home: Path, run: RunSpec) -> RunFolder:
    """The run in one process; four of its batches after the thirtieth are bad."""
    folder = opened(home / "whole", run, order(run, micro_batch=1, every_steps=8))
    assert Ranks(folder, home / "data", 1, partial(poison, 30, 35)).join() == [OK]
    return folder


def test_a_mix_trains_and_each_source_has_a_loss_of_its_own(
    home: Path, tmp_path: Path, sources: Sources
) -> None:
    run = tiny_run(sources.ref, mix=mixes.mix(14))
    folder = opened(tmp_path, run)
    assert train_here(folder, home / "data") == OK
    evals = folder.evals()
    for line in evals:
        assert sorted(line.sources) == ["code", "math", "web"]
        mean = (
            sum(weight * line.sources[name] for name, weight in (("web", 6), ("code", 2), ("math", 3))) / 11
        )
        assert line.loss == pytest.approx(mean, rel=1e-12)
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    drawn = [event.value for event in events.Scalars("held_out/source/math")]
    assert drawn == pytest.approx([line.sources["math"] for line in evals], rel=1e-6)
    gains = {name: evals[-2].sources[name] - evals[-1].sources[name] for name in evals[-1].sources}
    assert max(gains, key=gains.__getitem__) == "math"  # four fifths of the last phase


@pytest.mark.slow
def test_a_run_that_is_killed_rolled_back_and_resumed_under_other_layouts_has_the_same_batches(
    home: Path, tmp_path: Path, run: RunSpec, whole: RunFolder
) -> None:
    """Every loss in fp32 within 1e-6 of the undisturbed run's: another batch's differs in the second digit."""
    for axis, last in (("dp", 16), ("tp", 40), ("pp", None)):
        folder = opened(tmp_path, run, order(run, micro_batch=1, every_steps=8, **{axis: 2}))
        ranks = Ranks(folder, home / "data", 2, partial(poison, 30, 35))
        while last is not None and not (folder.checkpoints / f"step-{last:08d}").exists():
            assert ranks.processes[0].is_alive(), (folder.log / "rank-0.txt").read_text()
            time.sleep(0.001)
        if last is None:
            assert set(ranks.join()) == {OK}
        else:
            ranks.kill()
    records = folder.records()
    assert len({line.execution.layout for line in records if isinstance(line, Start)}) == 3
    rollbacks = [line.skipped for line in records if isinstance(line, Rollback)]
    assert rollbacks == [line.skipped for line in whole.records() if isinstance(line, Rollback)]
    assert [(one.step, one.to_step) for one in rollbacks] == [(33, 24)]
    ours, theirs = ([line.loss for line in one.metrics()] for one in (folder, whole))
    assert [loss is None for loss in ours] == [loss is None for loss in theirs]
    assert [loss for loss in ours if loss] == pytest.approx([loss for loss in theirs if loss], rel=1e-6)
    for mine, other in zip(folder.evals(), whole.evals(), strict=True):
        assert mine.sources == pytest.approx(other.sources, rel=1e-6)


def test_a_mix_without_its_sources_is_refused(home: Path, tmp_path: Path, sources: Sources) -> None:
    plain = tiny_run(sources.ref, mix=mixes.mix(14)).canonical_json()
    other = RunSpec.model_validate_json(plain.replace('"math"', '"books"'))
    for run in (tiny_run(sources.ref), other):
        folder = opened(tmp_path, run)
        with pytest.raises(RunError, match=r"the sources of the corpus .* are not those of the run's mix"):
            train_here(folder, home / "data")
        assert not folder.record_jsonl.exists()
