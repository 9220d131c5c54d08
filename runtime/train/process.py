"""TODO."""

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    pass


class StopRequest:
    """Whether this process was asked to leave: the handlers only note it, the loop acts at the next step's end."""

    def __init__(self) -> None:
        self.asked = 0

    def listen(self) -> None:
        """Take over the signals that mean it: SIGTERM (kill, SLURM), SIGUSR1 and SIGUSR2 (time is nearly up)."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = number


@dataclass(frozen=True)
class RankInfo:
    """Which of how many ranks this process is."""

    rank: int
    local_rank: int
    ranks: int

    @staticmethod
    def of(environment: Mapping[str, str]) -> "RankInfo":
        """The seat that the launcher's variables name; alone where there are none."""
        return RankInfo(
            rank=int(environment.get("RANK", "0")),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            ranks=int(environment.get("WORLD_SIZE", "1")),
        )


def end_process(status: int) -> NoReturn:
    """End this process with this status, now that a rank has nothing more to do.

    While an interpreter ends, which takes torch a second, signals kill again, whose handlers are put back; and gloo's
    threads may abort the process (pytorch/pytorch issue 190489). Either would make a failure of a finished run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
