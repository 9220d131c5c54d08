"""Tasks of a corpus on all cores, with their progress in bytes, and an end to all of them at an error.

The results come in the order of the tasks, whatever the number of processes, so a corpus does not depend on it. One
task, or one process, is done here. Otherwise each process is a Python of its own (`runtime.data.build.worker`), as fast
to start as its imports are, and unaware of threads, sockets and signals of this one.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from runtime.data.errors import KilledWorkerError

T = TypeVar("T")
R = TypeVar("R")

Report = Callable[[int], None]
"""Called with the bytes that were done since the last call."""


@dataclass(frozen=True)
class Workers:
    """Processes and the progress bar that shows their work."""

    processes: int
    progress: Progress

    def map(
        self, what: str, total_bytes: int, function: Callable[[T, Report], R], tasks: Sequence[T]
    ) -> list[R]:
        """The function's results for all tasks, in their order. `function`, tasks and results can be pickled.

        The first error of a task is raised here; KilledWorkerError where a process was killed.
        """
        bar = self.progress.add_task(what, total=total_bytes)
        report = lambda done: self.progress.advance(bar, done)  # noqa: E731
        if min(self.processes, len(tasks)) <= 1:
            found = [function(task, report) for task in tasks]
        else:
            with _started(min(self.processes, len(tasks))) as connections:
                found = _share_out(connections, function, tasks, report)
        self.progress.update(bar, completed=total_bytes)
        return found


@contextmanager
def open_workers(console: Console, processes: int | None = None) -> Iterator[Workers]:
    """Workers with this many processes, or one for each core that may be used."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Workers(processes or len(os.sched_getaffinity(0)), progress)


@contextmanager
def _started(processes: int) -> Iterator["list[Connection[Any, Any]]"]:
    """Connections to new processes, which are killed at the end: what they finished is on disk."""
    ours, running = [], []
    try:
        for _ in range(processes):
            here, there = Pipe()
            with there:
                running.append(_start(there))
            ours.append(here)
        yield ours
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()
        for connection in ours:
            connection.close()


def _start(connection: "Connection[Any, Any]") -> "subprocess.Popen[bytes]":
    number = connection.fileno()
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "runtime.data.build.worker", str(number), str(os.getpid())],
        pass_fds=[number],
        stdin=subprocess.DEVNULL,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        start_new_session=True,  # Ctrl-C is for this process alone
    )


def _share_out(
    connections: "list[Connection[Any, Any]]",
    function: Callable[[T, Report], R],
    tasks: Sequence[T],
    report: Report,
) -> list[R]:
    """Give each process a task, and the next one when it is done."""
    found: dict[int, R] = {}
    waiting = iter(enumerate(tasks))
    at_work: dict[Any, int] = {}

    def give_next(connection: "Connection[Any, Any]") -> None:
        for number, task in islice(waiting, 1):
            at_work[connection] = number
            connection.send((function, task))

    try:
        for connection in connections:
            give_next(connection)
        while at_work:
            ready: list[Any] = wait(list(at_work))
            for connection in ready:
                kind, value = connection.recv()
                if kind == "bytes":
                    report(value)
                elif kind == "error":
                    raise value
                else:
                    found[at_work.pop(connection)] = value
                    give_next(connection)
    except (EOFError, ConnectionError):
        raise KilledWorkerError(
            "a process that tokenizes was killed, perhaps as memory ran out; "
            "free memory and rerun: finished parts are kept"
        ) from None
    return [found[number] for number in range(len(tasks))]
