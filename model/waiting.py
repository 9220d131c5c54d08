"""Where a rank waits for other ranks, and for how long: collectives and receives, by axis of the mesh.

    with WAITING.on("tp"):
        work.wait()

A rank's busy time is its step's time less these waits. All ranks' steps take equally long, since they wait for each
other; their busy times tell which rank the others wait for. On a GPU, a wait stalls the stream and not the host, so two
events on the stream bracket it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Waiting:
    """What this rank waits in now, and the seconds that it has waited since they were last taken."""

    def __init__(self) -> None:
        self.now = ""
        """The axis on which it waits; empty while it computes. Another thread may read it."""
        self.on_gpu = False
        """Whether waits stall a CUDA stream."""
        self.timed = True
        """Whether waits are timed; on a GPU two events a wait are worth sampling."""
        self.ended = 0
        """Waits that have ended, a sign of life."""
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def on(self, axis: str) -> Iterator[None]:
        """Around a call that waits for other ranks of this axis; one inside another belongs to the outer one."""
        if self.now:
            yield
            return
        self.now, begun_s = axis, time.perf_counter()
        events = self._start_event() if self.timed and self.on_gpu else None
        try:
            yield
        finally:
            self.now = ""
            self.ended += 1
            if events is not None:
                end = torch.cuda.Event(enable_timing=True)
                end.record()
                self._events.append((axis, events, end))
            elif self.timed:
                self._add(axis, time.perf_counter() - begun_s)

    def take(self) -> dict[str, float]:
        """Seconds by axis since the last call; on a GPU, waits for the events."""
        for axis, start, end in self._events:
            end.synchronize()
            self._add(axis, start.elapsed_time(end) / 1e3)
        self._events.clear()
        taken, self._seconds = self._seconds, {}
        return taken

    def _add(self, axis: str, seconds: float) -> None:
        self._seconds[axis] = self._seconds.get(axis, 0.0) + seconds

    @staticmethod
    def _start_event() -> torch.cuda.Event:
        start = torch.cuda.Event(enable_timing=True)
        start.record()
        return start


WAITING = Waiting()
"""Of this process."""
