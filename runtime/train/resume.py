"""Resuming a run from its folder: the latest intact checkpoint, and the data that earlier rollbacks skipped.

Rank 0 reads the folder and broadcasts what it finds, so all ranks agree. To verify a checkpoint every rank reads a part
of the files; to load it, the parts of all files that hold its own boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.checkpoint.format import (
    CheckpointError,
    CheckpointManifest,
    file_damage,
    load_checkpoint,
    read_manifest,
    remove_leftovers,
    usable_manifest,
)
from runtime.checkpoint.imported_weights import load_imported_weights
from runtime.data.batches import first_sample_of_step
from runtime.run_folder.folder import RunFolder, checkpoint_name, list_checkpoints, step_of
from runtime.run_folder.provenance import versions
from runtime.train.worker import RankWorker
from specs.record import SkippedRange
from specs.run import RunSpec
from specs.spike_guard import SpikeGuardState


@dataclass(frozen=True)
class ResumeState:
    """Where a segment of a run starts."""

    step: int
    """Finished steps."""
    loss: float | None
    """Newest held-out loss."""
    guard: SpikeGuardState
    """State of the loss-spike guard."""
    skipped: tuple[SkippedRange, ...]
    """Data skipped by the rollbacks so far."""
    damaged: dict[int, str]
    """Steps of newer checkpoints that are damaged, and how; on rank 0 only."""


def resume_from_latest(worker: RankWorker, run: RunSpec, folder: RunFolder, data: Path) -> ResumeState:
    """Load the latest intact checkpoint into the worker, or the initial weights where there is none."""
    known = [number for one in folder.skipped() for number in (one.step, one.to_step, one.batches)]
    numbers = [int(number) for number in worker.broadcast(known)]
    skipped = tuple(
        SkippedRange(step=step, to_step=to_step, batches=batches)
        for step, to_step, batches in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    )
    path, damaged = _latest_intact(worker, run, folder.checkpoints, skipped)
    optimizer = worker.optimizer
    if path is not None:
        manifest = read_manifest(path)
        load_checkpoint(path, optimizer.boxes())
        optimizer.steps = manifest.updates
        optimizer.sync_parameters()
        return ResumeState(manifest.step, manifest.loss, manifest.guard, skipped, damaged)
    if run.parent is None:
        optimizer.initialize(run.seed)
    else:
        optimizer.reset_moments()
        load_imported_weights(run, data, optimizer.boxes())
        optimizer.sync_parameters()
    return ResumeState(0, None, SpikeGuardState(), skipped, damaged)


def skip_after_rollback(
    worker: RankWorker,
    run: RunSpec,
    folder: RunFolder,
    resumed: ResumeState,
    step: int,
    rejected_in_a_row: int,
) -> SkippedRange:
    """The data to skip when the run rolls back at this step to the latest checkpoint before the rejected steps.

    Where there is none, a checkpoint among those steps (saved at a stop request) serves: it has the same weights.
    """
    to_step = 0
    if worker.is_rank_zero:
        paths = list_checkpoints(folder.checkpoints)
        steps = [step_of(path) for path in paths if _is_usable(path, run, resumed.skipped)]
        to_step = next((one for one in steps if one <= step - rejected_in_a_row), max(steps, default=0))
    batch = run.optim.batch_sequences
    batches = first_sample_of_step(step + 1, batch, resumed.skipped) // batch
    return SkippedRange(step=step, to_step=int(worker.broadcast([to_step])[0]), batches=batches)


def manifest_of(
    worker: RankWorker,
    run: RunSpec,
    resumed: ResumeState,
    step: int,
    loss: float | None,
    guard: SpikeGuardState,
) -> CheckpointManifest:
    """The manifest of a checkpoint after this step."""
    return CheckpointManifest(
        run_fingerprint=run.fingerprint(),
        run=run,
        step=step,
        updates=worker.optimizer.steps,
        tokens=step * run.batch_tokens,
        loss=loss,
        guard=guard,
        skipped=resumed.skipped,
        layout=worker.layout,
        versions=versions(),
    )


def _latest_intact(
    worker: RankWorker, run: RunSpec, folder: Path, skipped: Sequence[SkippedRange]
) -> tuple[Path | None, dict[int, str]]:
    """The latest intact checkpoint, and how newer ones are damaged; leftovers of killed processes are removed."""
    damaged: dict[int, str] = {}
    steps: list[int] = []
    if worker.is_rank_zero:
        remove_leftovers(folder)
        for path in list_checkpoints(folder):
            try:
                if usable_manifest(path, run, skipped):
                    steps.append(step_of(path))
            except CheckpointError as error:
                damaged[step_of(path)] = str(error)
    for step in map(int, worker.broadcast(steps)):
        path = folder / checkpoint_name(step)
        problem = _find_damage(worker, path)
        if problem is None:
            return path, {one: reason for one, reason in damaged.items() if one > step}
        damaged[step] = problem
    return None, damaged


def _find_damage(worker: RankWorker, path: Path) -> str | None:
    """What is wrong with a checkpoint's files, each of which one rank reads; None where they are intact."""
    manifest, world = read_manifest(path), worker.world
    names = sorted(manifest.files)
    wrong = [
        place % world.size == world.rank and file_damage(path, manifest, name) is not None
        for place, name in enumerate(names)
    ]
    reports = zip(names, worker.all_reduce_sum(wrong), strict=True)
    bad = next((name for name, ranks in reports if ranks), None)
    if bad is None:
        return None
    return (
        file_damage(path, manifest, bad)
        or f"{path / bad} is intact on this host, but missing or damaged on another"
    )


def _is_usable(path: Path, run: RunSpec, skipped: Sequence[SkippedRange]) -> bool:
    try:
        return usable_manifest(path, run, skipped) is not None
    except CheckpointError:
        return False
