"""Checkpoints that are written while training goes on: one at a time, from one copy of the state in host memory.

A save begins with a copy of the state, after which training may change it. A thread writes the copy. With every step
the ranks tell each other whether their threads are through; when all are, the first rank makes the checkpoint of what
was written (runtime/checkpoint/format.py). Threads never communicate, so nothing can get into the way of the steps' own
collectives, and a rank that cannot write spoils the checkpoint and not the run.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.zero import Box
from runtime.checkpoint.format import CheckpointManifest, commit, discard, stage, weights_sha256
from runtime.run_folder.folder import folder_name
from runtime.train.worker import RankWorker
from specs.checkpoint_retention import Retention
from specs.humanize import first_line


class BackgroundWrite:
    """Something that a thread of its own does; what goes wrong is kept."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.error: Exception | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)  # a killed run does not wait for it
        self._thread.start()

    @property
    def going_on(self) -> bool:
        """Whether it is not through."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Return when it is through."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._function()
        except Exception as error:  # a full disk, say: the run tells, and goes on
            self.error = error


class AsyncCheckpointer:
    """One rank's part of saving a run."""

    def __init__(self, folder: Path, worker: RankWorker, keep: Retention) -> None:
        self._folder, self._replica, self._keep = folder, worker, keep
        self._copy: tuple[Tensor, Tensor, Tensor] | None = None
        self._staging: tuple[CheckpointManifest, BackgroundWrite] | None = None
        self._committing: BackgroundWrite | None = None
        self.damaged: set[int] = set()
        """Steps of checkpoints that are not to be kept."""

    @property
    def idle(self) -> bool:
        """Whether a save may begin; when the first rank is idle, all are."""
        return self._staging is None and not (self._committing and self._committing.going_on)

    def begin(self, manifest: CheckpointManifest) -> None:
        """Copy the state and begin to write it; all ranks, when all are idle."""
        boxes, rank = self._snapshot(), self._replica.world.rank
        self._staging = (manifest, BackgroundWrite(lambda: stage(self._folder, manifest.step, rank, boxes)))

    def report(self) -> tuple[float, float]:
        """What the other ranks must know at a step's end: whether this one still writes, whether it could not."""
        if self._staging is None:
            return 0.0, 0.0
        work = self._staging[1]
        going_on = work.going_on
        return float(going_on), float(not going_on and work.error is not None)

    def hear(self, writing: float, failed: float) -> str:
        """Go on with a save by what the ranks have reported together; why one came to nothing, else nothing.

        What goes wrong once all have written only the first rank hears.
        """
        said = self._outcome()
        if self._staging is None or writing:
            return said
        manifest, work = self._staging
        self._staging = None
        if failed:
            why = "another rank could not write its part" if work.error is None else first_line(work.error)
            said = f"step {manifest.step} was not saved: {why}"
            if self._replica.leads:
                discard(self._folder, manifest.step)
            elif work.error is not None:
                print(said, flush=True)
            return said
        if self._replica.leads:
            self._committing = BackgroundWrite(lambda: self._commit(manifest))
        return said

    def finish(self) -> str:
        """Return when nothing is being saved any more; why the last save came to nothing, the same on all ranks."""
        self.wait()
        said = self.hear(*self._replica.summed(self.report()))
        self.wait()
        said = said or self._outcome()
        failed = self._replica.summed([bool(said)])[0]
        return said or ("the first rank could not make the checkpoint" if failed else "")

    def wait(self) -> None:
        """Return when this rank's own threads are through."""
        if self._staging is not None:
            self._staging[1].wait()
        if self._committing is not None:
            self._committing.wait()

    def weights_sha256(self, step: int) -> str:
        """Digest of the weights that were saved after `step` steps; the first rank has it, the others nothing."""
        return weights_sha256(self._folder / folder_name(step)) if self._replica.leads else ""

    def _commit(self, manifest: CheckpointManifest) -> None:
        try:
            commit(self._folder, manifest, self._replica.world.size, self._keep, self.damaged)
        except Exception:
            discard(self._folder, manifest.step)
            raise

    def _outcome(self) -> str:
        """Why the newest checkpoint could not be made of what was written, once that is known."""
        work = self._committing
        if work is None or work.going_on:
            return ""
        self._committing = None
        return f"a checkpoint could not be made: {first_line(work.error)}" if work.error else ""

    def _snapshot(self) -> Sequence[Box]:
        """The state as it is now, in this rank's one copy of it in host memory."""
        optimizer = self._replica.optimizer
        state = optimizer.state
        on_gpu = state[0].device.type == "cuda"
        if self._copy is None:
            one, two, three = (torch.empty_like(x, device="cpu", pin_memory=on_gpu) for x in state)
            self._copy = (one, two, three)
        for to, of in zip(self._copy, state, strict=True):
            to.copy_(of, non_blocking=on_gpu)
        if on_gpu:
            torch.cuda.synchronize()
        vectors = self._replica.writes_vectors
        return [box for box in optimizer.boxes(self._copy) if vectors or len(box.piece.shape) == 2]
