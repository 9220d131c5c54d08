"""n processes on this machine, joined by gloo, each running one function: for tests of what communicates.

    results = spawn(2, case, "argument")      # case(mesh, "argument") on every rank; results in rank order

Starting processes costs more than most cases, so a test file puts several cases in one function.
"""

import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from model.mesh import Mesh, connect
from tests.support import poisoned_group
from tests.support.forkserver import PROCESSES


class RankError(AssertionError):
    """A rank raised, died or did not answer; the text is the first such rank's own traceback."""


def spawn(
    ranks: int, function: Callable[..., Any], *args: Any, timeout_s: float = 60.0, poisoned: bool = False
) -> list[Any]:
    """function(mesh, *args) on every rank of a dp axis; RankError from the first that fails, then the rest are ended.

    The function is one of a module's own, and what it returns can be pickled. `poisoned`: over process groups that find
    results that are not waited for and inputs that change too early (tests/support/poisoned_group.py).
    """
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = (Path(folder) / "rendezvous").as_uri()
        started = [
            _start(rank, ranks, rendezvous, timeout_s, poisoned, function, args) for rank in range(ranks)
        ]
        try:
            return _results([ours for _, ours in started], time.monotonic() + timeout_s)
        finally:
            for process, _ in started:
                process.kill()
                process.join()


def _start(rank: int, ranks: int, rendezvous: str, timeout_s: float, *work: Any) -> tuple[Any, Connection]:
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_run, args=(theirs, rank, ranks, rendezvous, timeout_s, *work))
    process.start()
    theirs.close()  # so that a process that dies closes the pipe
    return process, ours


def _results(answers: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(answers):
        waiting = [answer for rank, answer in enumerate(answers) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            silent = [rank for rank in range(len(answers)) if rank not in results]
            raise RankError(f"no answer from ranks {silent} in time")
        for answer in ready:
            rank = answers.index(answer)  # type: ignore[arg-type]
            results[rank] = _received(rank, answers[rank])
    return [results[rank] for rank in range(len(answers))]


def _received(rank: int, answer: Connection) -> Any:
    try:
        ok, value = pickle.loads(answer.recv_bytes())
    except EOFError:
        raise RankError(f"rank {rank} died") from None
    if not ok:
        raise RankError(f"rank {rank}:\n{value}")
    return value


def _run(
    answer: Connection,
    rank: int,
    ranks: int,
    rendezvous: str,
    timeout_s: float,
    poisoned: bool,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    if poisoned:
        poisoned_group.install()
    warnings.simplefilter("error")  # as in the tests' own process
    try:
        with connect(
            ranks, 1, 1, rank=rank, rendezvous=rendezvous, device="cpu", timeout_s=timeout_s
        ) as mesh:
            _send(answer, True, _call(function, mesh, args, answer))
    except _Told:
        return
    except Exception:  # of connecting or leaving
        _send(answer, False, traceback.format_exc())


def _send(answer: Connection, ok: bool, value: Any) -> None:
    """By value: a tensor sent as an object of multiprocessing lives only as long as its sender."""
    answer.send_bytes(pickle.dumps((ok, value)))


class _Told(Exception):
    """The error was sent already."""


def _call(function: Callable[..., Any], mesh: Mesh, args: tuple[Any, ...], answer: Connection) -> Any:
    """The result; an error is sent before the groups are torn down, which makes the other ranks fail too."""
    try:
        result = function(mesh, *args)
        poisoned_group.check_nothing_in_flight()
        return result
    except Exception:
        _send(answer, False, traceback.format_exc())
        raise _Told from None
