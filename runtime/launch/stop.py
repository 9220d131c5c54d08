"""Requests to stop a command: counted whenever they come, so that none is lost between two runs or two stages."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, kill, a closed terminal, and what batch systems send before a time limit."""


INTERRUPTED = "interrupted; rerun the same command to resume"
"""What a command says that was stopped."""


class StopSignals:
    """The stop signals that this process has received. They interrupt what it does, or are only counted."""

    def __init__(self) -> None:
        self.received = 0
        """How many, since `listen`. Whoever would start something new looks at it first: an interrupt can be lost in
        code that catches everything."""
        self._listening = self._counting = False

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Until the block ends, a stop signal is a KeyboardInterrupt; what nohup ignores stays ignored.

        A block inside another changes nothing. Only the main thread can listen (signal.signal's own rule).
        """
        if self._listening or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.received, self._listening = 0, True
        numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._listening = False

    @contextmanager
    def count(self) -> Iterator[None]:
        """Until the block ends, stop signals are only counted."""
        with self.listen():
            self._counting, before = True, self._counting
            try:
                yield
            finally:
                self._counting = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received += 1
        if not self._counting:
            raise KeyboardInterrupt


def ignore_stop_signals() -> None:
    """For the end of a command that has been stopped: another Ctrl-C does not change how it has ended."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


STOP = StopSignals()
"""Those of this process."""
