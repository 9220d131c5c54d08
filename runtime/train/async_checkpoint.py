"""Asynchronous checkpoints: written in the background while training continues, one at a time.

Saving starts with a copy of the state in host memory, after which training may change it; a thread writes the copy.
With every step the ranks share whether their threads are done (one all-reduce, with the loss). When all are, rank 0
commits the checkpoint (runtime/checkpoint/format.py). The threads never communicate, so they cannot interfere with the
steps' collectives, and a rank that cannot write costs the checkpoint but not the run.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.zero import Box
from runtime.checkpoint.format import CheckpointManifest, commit, discard, stage, weights_sha256
from runtime.run_folder.folder import checkpoint_name
from runtime.train.worker import RankWorker
from specs.checkpoint_retention import Retention
from specs.humanize import first_line

_LONGEST_PAUSE_S = 0.5
"""Longest time between two looks at all ranks' writers."""


class BackgroundWrite:
    """A function that runs in a thread of its own; its exception is kept in `error`."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.error: Exception | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)  # a killed run does not wait for it
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the function has not returned yet."""
        return self._thread.is_alive()

    def wait(self, at_most_s: float | None = None) -> None:
        """Return when the function has, or after so long."""
        self._thread.join(at_most_s)

    def _run(self) -> None:
        try:
            self._function()
        except Exception as error:  # a full disk, say: the run reports it and continues
            self.error = error


class AsyncCheckpointer:
    """One rank's part of saving a run."""

    def __init__(self, folder: Path, worker: RankWorker, retention: Retention) -> None:
        self._folder, self._worker, self._retention = folder, worker, retention
        self._copy: tuple[Tensor, Tensor, Tensor] | None = None
        self._staging: tuple[CheckpointManifest, BackgroundWrite] | None = None
        self._committing: BackgroundWrite | None = None
        self.damaged: set[int] = set()
        """Steps of damaged checkpoints, which are removed whatever the retention."""

    @property
    def idle(self) -> bool:
        """Whether a checkpoint may be started; when rank 0 is idle, all ranks are."""
        return self._staging is None and not (self._committing and self._committing.running)

    def start(self, manifest: CheckpointManifest) -> None:
        """Copy the state and start writing it; on all ranks, when all are idle."""
        boxes, rank = self._snapshot(), self._worker.world.rank
        self._staging = (manifest, BackgroundWrite(lambda: stage(self._folder, manifest.step, rank, boxes)))

    def progress(self) -> tuple[float, float]:
        """Whether this rank is still writing, and whether its write failed: 0 or 1, to be summed over all ranks."""
        if self._staging is None:
            return 0.0, 0.0
        write = self._staging[1]
        running = write.running
        return float(running), float(not running and write.error is not None)

    def advance(self, writing: float, failed: float) -> str:
        """Commit or discard once no rank is writing; why a checkpoint failed, else empty.

        The arguments are the sums of `progress` over all ranks. Only rank 0 learns of a failed commit.
        """
        problem = self._commit_problem()
        if self._staging is None or writing:
            return problem
        manifest, write = self._staging
        self._staging = None
        if failed:
            reason = (
                "another rank could not write its part" if write.error is None else first_line(write.error)
            )
            problem = f"the checkpoint of step {manifest.step} was not saved: {reason}"
            if self._worker.is_rank_zero:
                discard(self._folder, manifest.step)
            elif write.error is not None:
                print(problem, flush=True)
            return problem
        if self._worker.is_rank_zero:
            self._committing = BackgroundWrite(lambda: self._commit(manifest))
        return problem

    def finish(self) -> str:
        """Return when no rank is saving any more; why the last checkpoint failed, the same on all ranks, else empty.

        The ranks meet at least twice a second meanwhile, so that a slow disk is not taken for a rank that hangs.
        """
        problem, done, pause_s = "", False, 0.002
        while not done:
            self.wait(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
            committing = self._committing is not None and self._committing.running
            writing, failed, committing_ranks = self._worker.all_reduce_sum([*self.progress(), committing])
            done = self._staging is None and not committing_ranks
            problem = self.advance(writing, failed) or problem
        failed = self._worker.all_reduce_sum([bool(problem)])[0]
        return problem or ("rank 0 could not save the checkpoint" if failed else "")

    def wait(self, at_most_s: float | None = None) -> None:
        """Return when this rank's own threads are done, or after so long for each."""
        if self._staging is not None:
            self._staging[1].wait(at_most_s)
        if self._committing is not None:
            self._committing.wait(at_most_s)

    def weights_sha256(self, step: int) -> str:
        """Digest of the weights that were saved after `step` steps; on rank 0, empty on the others."""
        return weights_sha256(self._folder / checkpoint_name(step)) if self._worker.is_rank_zero else ""

    def _commit(self, manifest: CheckpointManifest) -> None:
        try:
            commit(self._folder, manifest, self._worker.world.size, self._retention, self.damaged)
        except Exception:
            discard(self._folder, manifest.step)
            raise

    def _commit_problem(self) -> str:
        """Why the newest checkpoint could not be committed, once that is known."""
        write = self._committing
        if write is None or write.running:
            return ""
        self._committing = None
        return f"a checkpoint could not be saved: {first_line(write.error)}" if write.error else ""

    def _snapshot(self) -> Sequence[Box]:
        """The state as it is now, in this rank's one copy of it in host memory."""
        optimizer = self._worker.optimizer
        state = optimizer.state
        on_gpu = state[0].device.type == "cuda"
        if self._copy is None:
            one, two, three = (torch.empty_like(x, device="cpu", pin_memory=on_gpu) for x in state)
            self._copy = (one, two, three)
        for to, of in zip(self._copy, state, strict=True):
            to.copy_(of, non_blocking=on_gpu)
        if on_gpu:
            torch.cuda.synchronize()
        vectors = self._worker.writes_vectors
        return [box for box in optimizer.boxes(self._copy) if vectors or len(box.piece.shape) == 2]
