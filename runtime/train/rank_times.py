"""What every rank's steps take, how much of that it waits for other ranks, and its peak memory: lines of ranks.jsonl.

On a GPU, waits are timed in one step of ten, whose waits stand for the others'.
"""

import resource
import time

import torch

from model.waiting import WAITING
from runtime.train.worker import RankWorker
from specs.record import RankLine

_FIRST_S, _LONGEST_S = 15.0, 300.0
"""Time to the first line of a segment, and the longest between two: our choice; 512 ranks write 30 MB a week."""
_GPU_SAMPLE = 10
"""On a GPU, waits of every so many steps are timed: two events a wait, microseconds of the host each."""
_AXES = ("dp", "pp", "tp", "world")


class RankTimes:
    """This rank's times since its last line."""

    def __init__(self, worker: RankWorker) -> None:
        self._worker = worker
        self._begun_s = self._line_s = time.monotonic()
        self._clear()
        WAITING.on_gpu = worker.on_gpu

    def begin(self, step: int) -> None:
        """A step begins; what was waited for since the last one, in evaluations and for checkpoints, does not count."""
        WAITING.timed = not WAITING.on_gpu or step % _GPU_SAMPLE == 0
        if WAITING.timed:
            WAITING.take()
        self._step_begun_s = time.perf_counter()

    def end(self) -> None:
        """A step ends."""
        self._steps += 1
        self._step_s += time.perf_counter() - self._step_begun_s
        if WAITING.timed:
            self._timed_steps += 1
            for axis, seconds in WAITING.take().items():
                self._waiting_s[axis] = self._waiting_s.get(axis, 0.0) + seconds

    @property
    def due(self) -> bool:
        """Whether it is time for a line: soon after the start, then less and less often."""
        now_s = time.monotonic()
        return now_s - self._line_s >= min(_LONGEST_S, _FIRST_S + self._line_s - self._begun_s)

    def line(self, step: int) -> RankLine | None:
        """All ranks' means since the last line, gathered from all ranks; None where there was no step."""
        if not self._steps:
            return None
        steps, timed = self._steps, max(1, self._timed_steps)
        waiting = [self._waiting_s.get(axis, 0.0) / timed for axis in _AXES]
        own = [self._step_s / steps, float(self._peak_memory_bytes()), *waiting]
        step_s, memory, *waited = zip(*self._worker.all_gather(own), strict=True)
        self._clear()
        self._line_s = time.monotonic()
        return RankLine(
            step=step,
            steps=steps,
            hosts=tuple(self._worker.hosts),
            step_s=tuple(round(value, 6) for value in step_s),
            waiting_s={
                axis: tuple(round(value, 6) for value in values)
                for axis, values in zip(_AXES, waited, strict=True)
                if any(values)
            },
            peak_memory_bytes=tuple(int(value) for value in memory),
        )

    def _clear(self) -> None:
        self._steps = self._timed_steps = 0
        self._step_s = self._step_begun_s = 0.0
        self._waiting_s: dict[str, float] = {}

    def _peak_memory_bytes(self) -> int:
        """The device's, as far as PyTorch allocated it; on a CPU the process's, which getrusage(2) gives in KiB."""
        if self._worker.on_gpu:
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
