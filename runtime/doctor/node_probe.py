"""What each task of the doctor's job does: it reports facts about its node, then joins its peers and measures.

    slurm/doctor-<number>/order.json       the caller's instructions
                          facts-<rank>.json   about the task and its node, before torch is loaded
                          names-<rank>.json   whether the nodes' names resolve, from each node's first task
                          rates-<rank>.json   what was measured; only where all tasks joined
                          log/rank-<n>.txt    the task's output

Each file is written atomically, so the files that exist show how far a task came.
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
from typing import Any, TypeVar

from pydantic import TypeAdapter

from runtime.doctor.probe_order import RENDEZVOUS_TIMEOUT_S, ProbeOrder
from runtime.run_folder.provenance import commit, versions
from runtime.slurm import client
from runtime.slurm.task import export_rendezvous, redirect_output
from runtime.train.environment import communication_variables, is_before_blackwell, set_variables
from runtime.train.process import RankInfo
from specs.document.write import write_text

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 5.0
"""For a node to answer; the slowest network takes much less."""
_POLL_S = 0.1
"""Time between two listings of the folder."""


@dataclass(frozen=True)
class Software:
    """The Python and packages of a process."""

    python: str
    """Its version."""
    packages: dict[str, str]
    """Versions of isoplan and of the packages that change numbers."""
    commit: str | None
    """Commit of isoplan's sources; None outside of a checkout."""

    @staticmethod
    def here() -> "Software":
        """Of this process."""
        ours = {"isoplan": version("isoplan")}
        return Software(platform.python_version(), ours | versions(), commit(Path(__file__)))


@dataclass(frozen=True)
class NodeFacts:
    """Facts about a task and its node."""

    token: str
    """The order's token."""
    node: str
    """The node's own host name."""
    time: float
    """Its clock, in seconds since 1970."""
    software: Software
    """Its Python and packages."""
    free_bytes: int
    """Free disk space of the workspace."""
    shm_bytes: int
    """Size of /dev/shm, through which processes of a node communicate."""
    data: bool
    """Whether the data folder is readable."""
    sbatch: bool
    """Whether sbatch is installed: a study queues its next jobs from a node."""
    load: float
    """The load average of the last minute, in cores."""
    port: int
    """Port on which the node's first task answers; 0 of its other tasks."""


@dataclass(frozen=True)
class NameCheck:
    """Whether the nodes' names resolve on one node."""

    node: str
    """The node that checked."""
    wrong: dict[str, str]
    """Names that do not resolve to their nodes, each with the problem."""


def task_log(folder: Path, rank: int) -> Path:
    """The log of a task."""
    return folder / "log" / f"rank-{rank}.txt"


def write_report(folder: Path, name: str, report: Any) -> None:
    """Write a report atomically."""
    write_text(folder / f"{name}.json", json.dumps(asdict(report)))


def read_report(folder: Path, name: str, kind: type[T]) -> T | None:
    """A report; None while it does not exist."""
    path = folder / f"{name}.json"
    return TypeAdapter(kind).validate_json(path.read_bytes()) if path.exists() else None


def probe(folder: Path, rank_info: RankInfo, first: str) -> None:
    """Check this task's node and measure; `first` is the name of the rendezvous node. SystemExit where it fails."""
    order = _wait_for_report(folder, "order", ProbeOrder, time.monotonic() + RENDEZVOUS_TIMEOUT_S)
    if order is None:
        what = f"{folder / 'order.json'} does not exist on this node"
        sys.exit(f"OSError: {what}, which does not see the folder in which isoplan doctor was started")
    leads = rank_info.local_rank == 0
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1] if leads else 0
        write_report(folder, f"facts-{rank_info.rank}", _facts(order, port, folder))
        if leads:
            threading.Thread(target=_answer_callers, args=(server,), daemon=True).start()
            deadline_s = time.monotonic() + RENDEZVOUS_TIMEOUT_S
            write_report(folder, f"names-{rank_info.rank}", _check_names(folder, order, deadline_s))
            for rank in range(0, order.nodes * order.tasks_per_node, order.tasks_per_node):
                _wait_for_report(
                    folder, f"names-{rank}", NameCheck, deadline_s
                )  # a task that exits earlier would not answer
        try:
            socket.getaddrinfo(first, None)
        except OSError as error:  # otherwise the tasks would hang in the rendezvous without an error message
            sys.exit(f"OSError: the first node's name, {first}, does not resolve ({error.strerror})")

        if order.device == "cuda":
            set_variables(communication_variables(order.tasks_per_node, is_before_blackwell()), os.environ)
        from runtime.doctor.node_benchmark import (
            measure,  # imports torch, so it comes after the checks that do without
        )

        write_report(folder, f"rates-{rank_info.rank}", measure(folder, order, rank_info))


def _facts(order: ProbeOrder, port: int, folder: Path) -> NodeFacts:
    readable = order.data is None or os.access(order.data, os.R_OK | os.X_OK)
    return NodeFacts(
        token=order.token,
        node=socket.gethostname(),
        time=time.time(),
        software=Software.here(),
        free_bytes=shutil.disk_usage(folder).free,
        shm_bytes=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0,
        data=readable,
        sbatch=client.is_installed(),
        load=os.getloadavg()[0],
        port=port,
    )


def _answer_callers(server: socket.socket) -> None:
    """Send this node's name to every caller, until the process ends."""
    while True:
        with suppress(OSError):
            caller, _ = server.accept()
            with caller:
                caller.sendall(socket.gethostname().encode())


def _check_names(folder: Path, order: ProbeOrder, deadline_s: float) -> NameCheck:
    """Connect to every node of the job by its name."""
    from submitit import JobEnvironment

    wrong: dict[str, str] = {}
    for index, name in enumerate(JobEnvironment().hostnames):
        leader = _wait_for_report(folder, f"facts-{index * order.tasks_per_node}", NodeFacts, deadline_s)
        problem = _call_node(name, leader) if leader else f"has no report within {RENDEZVOUS_TIMEOUT_S:.0f} s"
        if problem:
            wrong[name] = problem
    return NameCheck(socket.gethostname(), wrong)


def _call_node(name: str, leader: NodeFacts) -> str:
    """What is wrong with a node's name; empty where it resolves to the node."""
    try:
        address = str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
    except OSError as error:
        return f"does not resolve ({error.strerror})"
    try:
        with socket.create_connection((address, leader.port), _CONNECT_TIMEOUT_S) as line:
            answered = line.recv(256).decode()
    except OSError as error:
        return f"resolves to {address}, which does not answer ({error.strerror or error})"
    return "" if answered == leader.node else f"resolves to {address}, which is {answered or 'another host'}"


def _wait_for_report(folder: Path, name: str, kind: type[T], deadline_s: float) -> T | None:
    """A report, as soon as it exists; None after the deadline."""
    while (found := read_report(folder, name, kind)) is None and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        os.listdir(folder)  # refreshes the cache of a network file system
    return found


@dataclass(frozen=True)
class Probe:
    """One task of the doctor's job."""

    folder: str
    """The submission's folder, an absolute path."""

    def __call__(self) -> None:
        """Check this task's node, and measure its device."""
        peers, folder = export_rendezvous(), Path(self.folder)
        rank_info = RankInfo.of(os.environ)
        redirect_output(task_log(folder, rank_info.rank))
        probe(folder, rank_info, peers.master_addr)
