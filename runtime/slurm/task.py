"""The task of a run's job. Its pickle holds only the run folder's path; all state is in that folder."""

import os
import random
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lock import FolderLock, LockAttempt, busy_message
from runtime.train.loop import train_rank
from runtime.train.process import RankInfo, StopRequest, end_process
from specs.exit_codes import BAD_INPUT, FAILED, NO_RETRY, OK, RESUME

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission
    from submitit.helpers import TorchDistributedEnvironment

_PORTS = range(20000, 32768)
"""Rendezvous ports: above those of services, below Linux's ephemeral ports (ip(7), ip_local_port_range)."""
_POLL_S = 1.0
"""Time between two attempts to take a lock whose owner may be dead."""
_FAILED_RANK_DELAY_S = 3.0
"""How long a failed rank waits before it exits: usually another rank failed first, and srun is to report that one."""
_LOCK_TIMEOUT_S = 540.0
"""How long rank 0 waits for an owner that is alive: on a node that SLURM has lost, ranks may still be running. The
other ranks wait ten minutes for rank 0 (model/mesh.py)."""


@dataclass(frozen=True)
class Task:
    """One rank of a run; every task of the job step calls it."""

    folder: str
    """The run's folder, an absolute path."""

    def __call__(self) -> NoReturn:
        """Train this rank, and exit with its status.

        A rank that stopped after a signal exits with 0, as a finished one does: with any other status srun would kill
        its peers, which may still be saving. Whether to requeue is decided later (runtime/slurm/requeue.py).
        """
        stop = StopRequest()
        stop.listen()  # replaces submitit's handlers, which act on rank 0 only
        status = _train(RunFolder(Path(self.folder)), stop)
        if status == FAILED:
            time.sleep(_FAILED_RANK_DELAY_S)
        end_process({RESUME: OK, BAD_INPUT: NO_RETRY}.get(status, status))

    def checkpoint(self) -> "DelayedSubmission":
        """The same task, if submitit gets a signal before this task has installed its handlers."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def export_rendezvous() -> "TorchDistributedEnvironment":
    """Set torch's rendezvous variables, with a port that differs from other jobs' and from the job's last start."""
    from submitit.helpers import TorchDistributedEnvironment

    start = f"{os.environ['SLURM_JOB_ID']} {os.environ.get('SLURM_RESTART_COUNT', '0')}"
    os.environ["MASTER_PORT"] = str(random.Random(start).choice(_PORTS))
    return TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def _train(folder: RunFolder, stop: StopRequest) -> int:
    peers = export_rendezvous()
    rank_info = RankInfo.of(os.environ)
    redirect_output(folder.log / f"rank-{rank_info.rank}.txt")
    try:
        socket.getaddrinfo(peers.master_addr, peers.master_port)
    except OSError as error:  # otherwise the ranks would hang in the rendezvous without an error message
        where = f"does not resolve on {socket.gethostname()} ({error.strerror})"
        message = f"the first node's name, {peers.master_addr}, {where}; run isoplan doctor --slurm"
        print(f"OSError: {message}", file=sys.stderr, flush=True)
        return FAILED
    data = folder.path.parents[1] / "data"
    if rank_info.rank > 0:
        return train_rank(folder, data, rank_info, stop)
    lock = _take_lock(folder, stop)
    if lock is None:
        if stop.requested:
            return RESUME
        print(
            f"OSError: {busy_message(folder.path)}; stop that process and rerun", file=sys.stderr, flush=True
        )
        return FAILED
    try:
        return train_rank(folder, data, rank_info, stop)
    finally:
        lock.release()


def _take_lock(folder: RunFolder, stop: StopRequest) -> FolderLock | None:
    """The folder's lock, held by rank 0 for the job; None where another process keeps it, or a stop is requested."""
    attempt, printed, until_s = LockAttempt(folder.path), False, time.monotonic() + _LOCK_TIMEOUT_S
    while not stop.requested and time.monotonic() < until_s:
        lock = attempt.acquire()
        if lock is not None:
            return lock
        if attempt.owner_is_alive:
            attempt = LockAttempt(folder.path)
        if not printed:
            print(
                f"waiting: {busy_message(folder.path)}; if its host was lost, its lock expires soon",
                flush=True,
            )
            printed = True
        time.sleep(_POLL_S)
    return None


def redirect_output(path: Path) -> None:
    """From now on, standard output and error of this process go to this log, as in a run without SLURM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
