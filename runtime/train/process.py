"""One training process: its rank, its stop requests, its exit."""

import gc
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn


class StopRequest:
    """Whether this process was asked to stop. The handler only notes the signal; the loop acts at the end of a step."""

    def __init__(self) -> None:
        self.signal = 0
        """Number of the latest signal; 0 while no stop is requested."""

    def listen(self) -> None:
        """Handle SIGTERM (kill, SLURM's preemption), SIGUSR1 and SIGUSR2 (the time limit is near) as stop requests."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._note)

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal != 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


@dataclass(frozen=True)
class RankInfo:
    """This process's rank."""

    rank: int
    """Among all processes of the run."""
    local_rank: int
    """Among those of this node."""
    world_size: int
    """Processes of the run."""

    @staticmethod
    def of(environment: Mapping[str, str]) -> "RankInfo":
        """From RANK, LOCAL_RANK and WORLD_SIZE; without them the run has one process."""
        return RankInfo(
            rank=int(environment.get("RANK", "0")),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            world_size=int(environment.get("WORLD_SIZE", "1")),
        )


@contextmanager
def collecting_between_steps() -> Iterator[None]:
    """No garbage collection but where the loop asks for it; what exists by then is never looked at again.

    Python else collects whenever enough objects were made, on each rank at another moment: all wait for each in turn.
    """
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def end_process(status: int) -> NoReturn:
    """Exit at once with this status, after the output is flushed.

    Interpreter shutdown takes torch a second, in which signals have their default handlers again and would kill the
    process, and in which gloo's threads may abort it (pytorch/pytorch issue 190489). A finished run would look failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
