"""What a job of ours does, as submitit's pickle holds it: a path, and nothing else. All state is in the folder."""

import os
import random
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lock import Claim, Hold, at_work
from runtime.train.loop import train_rank
from runtime.train.process import RankInfo, StopRequest, end_process
from specs.exit_codes import BAD_INPUT, FAILED, NO_RETRY, OK, RESUME

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission
    from submitit.helpers import TorchDistributedEnvironment

_PORTS = range(20000, 32768)
"""Above those of services, below those that Linux gives to clients (ip(7), ip_local_port_range)."""
_LOOK_S = 1.0
"""Time between two looks at a lock whose owner may be dead."""
_BEHIND_S = 3.0
"""How much later a rank ends that has failed: mostly because another one is gone, of which srun is to hear first."""
_STRANGER_S = 540.0
"""How long one who lives is waited for: on a node that SLURM has given up, ranks may go on. The other ranks here wait
ten minutes for this one (model/mesh.py)."""


@dataclass(frozen=True)
class Task:
    """One rank of a run: every task of the job's step calls this."""

    folder: str
    """The run's folder, an absolute path."""

    def __call__(self) -> NoReturn:
        """Train this rank, and end the process with its status.

        A rank that was told to leave ends like one that is finished: a status other than 0 would end its peers, which
        may still be writing. What comes next is decided once all have ended (runtime/slurm/requeue.py).
        """
        leave = StopRequest()
        leave.listen()  # instead of submitit's handlers, which know of rank 0 only
        status = _train(RunFolder(Path(self.folder)), leave)
        if status == FAILED:
            time.sleep(_BEHIND_S)
        end_process({RESUME: OK, BAD_INPUT: NO_RETRY}.get(status, status))

    def checkpoint(self) -> "DelayedSubmission":
        """The same again, for a signal that comes before this task listens."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def export_rendezvous() -> "TorchDistributedEnvironment":
    """Where the ranks meet, told to torch: on another port than other jobs', and than the job's last start."""
    from submitit.helpers import TorchDistributedEnvironment

    start = f"{os.environ['SLURM_JOB_ID']} {os.environ.get('SLURM_RESTART_COUNT', '0')}"
    os.environ["MASTER_PORT"] = str(random.Random(start).choice(_PORTS))
    return TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def _train(folder: RunFolder, leave: StopRequest) -> int:
    peers = export_rendezvous()
    rank_info = RankInfo.of(os.environ)
    print_to(folder.log / f"rank-{rank_info.rank}.txt")
    try:
        socket.getaddrinfo(peers.master_addr, peers.master_port)
    except OSError as error:  # else the ranks would wait for each other without a word
        where = f"leads nowhere on {socket.gethostname()} ({error.strerror})"
        said = f"the name of the first node, {peers.master_addr}, {where}; see isoplan doctor --slurm"
        print(f"OSError: {said}", file=sys.stderr, flush=True)
        return FAILED
    data = folder.path.parents[1] / "data"
    if rank_info.rank > 0:
        return train_rank(folder, data, rank_info, leave)
    hold = _hold(folder, leave)
    if hold is None:
        if leave.asked:
            return RESUME
        print(f"OSError: {at_work(folder.path)}; stop it, then run again", file=sys.stderr, flush=True)
        return FAILED
    try:
        return train_rank(folder, data, rank_info, leave)
    finally:
        hold.close()


def _hold(folder: RunFolder, leave: StopRequest) -> Hold | None:
    """The folder's lock, held by rank 0 for the job; None where somebody else keeps it, or it is time to leave."""
    claim, told, until_s = Claim(folder.path), False, time.monotonic() + _STRANGER_S
    while not leave.asked and time.monotonic() < until_s:
        hold = claim.take()
        if hold is not None:
            return hold
        if claim.hopeless:
            claim = Claim(folder.path)
        if not told:
            print(f"waits: {at_work(folder.path)}, or was when its host was lost", flush=True)
            told = True
        time.sleep(_LOOK_S)
    return None


def print_to(path: Path) -> None:
    """From now on, whatever this process prints goes to the rank's log, as in a run without SLURM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
