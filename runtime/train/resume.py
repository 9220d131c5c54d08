"""Where a run stands, taken up from its folder: the newest checkpoint that can be used, and what was left out.

Rank 0 looks and tells the others, so that all agree. Every rank reads a share of the files to see whether they are
whole, and of all files what lies in its own boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.checkpoint.format import (
    CheckpointError,
    CheckpointManifest,
    clear,
    damage,
    load_checkpoint,
    read_manifest,
    usable,
)
from runtime.checkpoint.imported_weights import start_from
from runtime.data.batches import first_sample
from runtime.run_folder.folder import RunFolder, folder_name, found, step_of
from runtime.run_folder.provenance import versions
from runtime.train.worker import RankWorker
from specs.record import SkippedRange
from specs.run import RunSpec
from specs.spike_guard import SpikeGuardState


@dataclass(frozen=True)
class ResumeState:
    """Where a segment of a run begins."""

    step: int
    """Finished steps."""
    loss: float | None
    """Newest held-out loss."""
    memory: SpikeGuardState
    """What the guard remembers."""
    skipped: tuple[SkippedRange, ...]
    """What was given up so far."""
    damaged: dict[int, str]
    """Steps of newer checkpoints that cannot be used, and why; only rank 0 knows."""


def resume_from_latest(worker: RankWorker, run: RunSpec, folder: RunFolder, data: Path) -> ResumeState:
    """Fill the replica with the newest checkpoint that can be used, or with the first weights."""
    known = [number for one in folder.skipped() for number in (one.step, one.to_step, one.batches)]
    told = [int(number) for number in worker.told(known)]
    skipped = tuple(
        SkippedRange(step=step, to_step=to_step, batches=batches)
        for step, to_step, batches in zip(told[::3], told[1::3], told[2::3], strict=True)
    )
    path, damaged = _newest_whole(worker, run, folder.checkpoints, skipped)
    optimizer = worker.optimizer
    if path is not None:
        manifest = read_manifest(path)
        load_checkpoint(path, optimizer.boxes())
        optimizer.steps = manifest.updates
        optimizer.publish()
        return ResumeState(manifest.step, manifest.loss, manifest.guard, skipped, damaged)
    if run.parent is None:
        optimizer.start(run.seed)
    else:
        optimizer.forget()
        start_from(run, data, optimizer.boxes())
        optimizer.publish()
    return ResumeState(0, None, SpikeGuardState(), skipped, damaged)


def given_up(
    worker: RankWorker, run: RunSpec, folder: RunFolder, begun: ResumeState, step: int, in_a_row: int
) -> SkippedRange:
    """What is left out where a run goes back, at this step, to the checkpoint before its last `in_a_row` steps.

    One from among these, saved when the run was told to leave, has the same weights and serves where there is no other.
    """
    to_step = 0
    if worker.leads:
        steps = [step_of(path) for path in found(folder.checkpoints) if _good(path, run, begun.skipped)]
        to_step = next((one for one in steps if one <= step - in_a_row), max(steps, default=0))
    batch = run.optim.batch_sequences
    batches = first_sample(step + 1, batch, begun.skipped) // batch
    return SkippedRange(step=step, to_step=int(worker.told([to_step])[0]), batches=batches)


def manifest_of(
    worker: RankWorker,
    run: RunSpec,
    begun: ResumeState,
    step: int,
    loss: float | None,
    memory: SpikeGuardState,
) -> CheckpointManifest:
    """What a checkpoint after this step says of itself."""
    return CheckpointManifest(
        run_fingerprint=run.fingerprint(),
        run=run,
        step=step,
        updates=worker.optimizer.steps,
        tokens=step * run.batch_tokens,
        loss=loss,
        guard=memory,
        skipped=begun.skipped,
        layout=worker.layout,
        versions=versions(),
    )


def _newest_whole(
    worker: RankWorker, run: RunSpec, folder: Path, skipped: Sequence[SkippedRange]
) -> tuple[Path | None, dict[int, str]]:
    """The newest whole checkpoint, and why no newer one can be used; what killed processes left is removed."""
    damaged: dict[int, str] = {}
    steps: list[int] = []
    if worker.leads:
        clear(folder)
        for path in found(folder):
            try:
                if usable(path, run, skipped):
                    steps.append(step_of(path))
            except CheckpointError as error:
                damaged[step_of(path)] = str(error)
    for step in map(int, worker.told(steps)):
        path = folder / folder_name(step)
        problem = _problem(worker, path)
        if problem is None:
            return path, {one: said for one, said in damaged.items() if one > step}
        damaged[step] = problem
    return None, damaged


def _problem(worker: RankWorker, path: Path) -> str | None:
    """What is wrong with a checkpoint's files, of which each rank reads some; None where nothing is."""
    manifest, world = read_manifest(path), worker.world
    names = sorted(manifest.files)
    wrong = [
        place % world.size == world.rank and damage(path, manifest, name) is not None
        for place, name in enumerate(names)
    ]
    bad = next((name for name, ranks in zip(names, worker.summed(wrong), strict=True) if ranks), None)
    return (
        None if bad is None else damage(path, manifest, bad) or f"{path / bad} cannot be read on every host"
    )


def _good(path: Path, run: RunSpec, skipped: Sequence[SkippedRange]) -> bool:
    try:
        return usable(path, run, skipped) is not None
    except CheckpointError:
        return False
