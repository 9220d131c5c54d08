"""What each task of the doctor's job does: it writes down what its node is like, then meets its peers and measures.

    slurm/doctor-<number>/order.json       what the caller wants to know, and what it runs itself
                          facts-<rank>.json   of the task and its node, before torch is loaded
                          names-<rank>.json   where the nodes' names lead, of each node's first task
                          rates-<rank>.json   what was measured; only where all found each other
                          log/rank-<n>.txt    what the task printed

Each file is there whole or not at all, and says by being there how far its task came.
"""

import json
import os
import platform
import shutil
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter

from runtime.doctor.node_benchmark import MEET_S, ProbeOrder
from runtime.run_folder.provenance import commit, versions
from runtime.slurm import client
from runtime.train.process import RankInfo
from specs.document.write import write_text

if TYPE_CHECKING:
    pass
from runtime.slurm.task import export_rendezvous, print_to

T = TypeVar("T")

_CONNECT_S = 5.0
"""For a node to answer: many times what the slowest network takes."""
_LOOK_S = 0.1
"""Time between two looks at the folder."""


@dataclass(frozen=True)
class Software:
    """What an interpreter runs."""

    python: str
    """Its version."""
    packages: dict[str, str]
    """Versions of ours and of those that change numbers."""
    commit: str | None
    """Of our sources; None outside of a checkout."""

    @staticmethod
    def here() -> "Software":
        """Of this process."""
        ours = {"isoplan": version("isoplan")}
        return Software(platform.python_version(), ours | versions(), commit(Path(__file__)))


@dataclass(frozen=True)
class Facts:
    """A task and its node."""

    token: str
    """The order's."""
    node: str
    """As the node calls itself."""
    time: float
    """Its clock, in seconds since 1970."""
    software: Software
    """What it runs."""
    free_bytes: int
    """Room where the workspace is."""
    shm_bytes: int
    """Size of /dev/shm, through which processes of a node talk."""
    data: bool
    """Whether the data's folder can be read."""
    sbatch: bool
    """Whether SLURM's programs are there: a study queues from a node what comes next."""
    load: float
    """Cores' worth of other work in the minute before."""
    port: int
    """Where the node's first task answers; 0 of the others."""


@dataclass(frozen=True)
class Names:
    """The nodes' names as one node sees them."""

    node: str
    """The node that looked."""
    wrong: dict[str, str]
    """Names that do not lead to their nodes, and why."""


def log_of(folder: Path, rank: int) -> Path:
    """What a task prints."""
    return folder / "log" / f"rank-{rank}.txt"


def write(folder: Path, name: str, report: Any) -> None:
    """A report, whole or not at all."""
    write_text(folder / f"{name}.json", json.dumps(asdict(report)))


def read(folder: Path, name: str, kind: type[T]) -> T | None:
    """A report; None while it is not there."""
    path = folder / f"{name}.json"
    return TypeAdapter(kind).validate_json(path.read_bytes()) if path.exists() else None


def probe(folder: Path, rank_info: RankInfo, first: str) -> None:
    """This task's part; `first` is the name of the node on which all meet. SystemExit where it comes to nothing."""
    order = _awaited(folder, "order", ProbeOrder, time.monotonic() + MEET_S)
    if order is None:
        sys.exit(f"OSError: {folder / 'order.json'} is not here: the folder is not the caller's")
    leads = rank_info.local_rank == 0
    with socket.create_server(("", 0)) as door:
        write(folder, f"facts-{rank_info.rank}", _facts(order, door.getsockname()[1] if leads else 0, folder))
        if leads:
            threading.Thread(target=_answer, args=(door,), daemon=True).start()
            deadline_s = time.monotonic() + MEET_S
            write(folder, f"names-{rank_info.rank}", _names(folder, order, deadline_s))
            for rank in range(0, order.nodes * order.tasks_per_node, order.tasks_per_node):
                _awaited(folder, f"names-{rank}", Names, deadline_s)  # who leaves earlier answers nobody
        try:
            socket.getaddrinfo(first, None)
        except OSError as error:  # else the tasks would wait for each other without a word
            sys.exit(f"OSError: the name of the first node, {first}, leads nowhere ({error.strerror})")

        from runtime.doctor.node_benchmark import measure  # torch: after what can be said without it

        write(folder, f"rates-{rank_info.rank}", measure(folder, order, rank_info))


def _facts(order: ProbeOrder, port: int, folder: Path) -> Facts:
    readable = order.data is None or os.access(order.data, os.R_OK | os.X_OK)
    return Facts(
        token=order.token,
        node=socket.gethostname(),
        time=time.time(),
        software=Software.here(),
        free_bytes=shutil.disk_usage(folder).free,
        shm_bytes=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0,
        data=readable,
        sbatch=client.is_here(),
        load=os.getloadavg()[0],
        port=port,
    )


def _answer(door: socket.socket) -> None:
    """Tell whoever calls which node this is, until the process ends."""
    while True:
        with suppress(OSError):
            caller, _ = door.accept()
            with caller:
                caller.sendall(socket.gethostname().encode())


def _names(folder: Path, order: ProbeOrder, deadline_s: float) -> Names:
    """Call every node of the job by its name."""
    from submitit import JobEnvironment

    wrong: dict[str, str] = {}
    for index, name in enumerate(JobEnvironment().hostnames):
        leader = _awaited(folder, f"facts-{index * order.tasks_per_node}", Facts, deadline_s)
        said = f"no task of it reported within {MEET_S:.0f} s" if leader is None else _called(name, leader)
        if said:
            wrong[name] = said
    return Names(socket.gethostname(), wrong)


def _called(name: str, leader: Facts) -> str:
    """What is wrong with a node's name; empty where its task answers there."""
    try:
        address = str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
    except OSError as error:
        return f"does not resolve ({error.strerror})"
    try:
        with socket.create_connection((address, leader.port), _CONNECT_S) as line:
            answered = line.recv(256).decode()
    except OSError as error:
        return f"leads to {address}, where nothing answers ({error.strerror or error})"
    return "" if answered == leader.node else f"leads to {address}, which is {answered or 'somebody else'}"


def _awaited(folder: Path, name: str, kind: type[T], deadline_s: float) -> T | None:
    """A report, as soon as it is there; None past the deadline."""
    while (found := read(folder, name, kind)) is None and time.monotonic() < deadline_s:
        time.sleep(_LOOK_S)
        os.listdir(folder)  # a folder on a network is looked at anew
    return found


@dataclass(frozen=True)
class Probe:
    """One task of the doctor's job."""

    folder: str
    """The submission's folder, an absolute path."""

    def __call__(self) -> None:
        """Look at this task's node, and measure its device."""
        peers, folder = export_rendezvous(), Path(self.folder)
        rank_info = RankInfo.of(os.environ)
        print_to(log_of(folder, rank_info.rank))
        probe(folder, rank_info, peers.master_addr)
