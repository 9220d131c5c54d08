"""What a task of the doctor's job measures with all others at the same work: device, links along each axis, clocks."""

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.collectives import every, sum_over
from model.mesh import Axis, Mesh, connect
from runtime.doctor.benchmark import COPIED_BYTES, DeviceRates, LinkRates, device_rates, rates_along
from runtime.train.process import RankInfo
from specs.humanize import several

MEET_S = 60.0
"""For peers to report, and then to find each other."""
CPU_SIZE = 1024
"""Rows of the matrices on a CPU: a core's rate there is within a tenth of that at 2048, in an eighth of the time."""
GATHERED_BYTES = {"cpu": 2**25, "cuda": 2**27}
"""By each rank along an axis: more than a message's start-up, and little enough for every core of a node at once."""
WRITTEN_BYTES = 2**27
"""Of each node: a checkpoint of a small model."""
_ROUNDS = 5
"""Barriers at which clocks are read."""


@dataclass(frozen=True)
class ProbeOrder:
    """What the caller tells its tasks."""

    token: str
    """To be repeated: a task that can has read the caller's file."""
    device: str
    """`cpu` or `cuda`."""
    nodes: int
    """Nodes of the job."""
    tasks_per_node: int
    """Tasks on each."""
    data: str | None
    """Folder that must be readable; None where there is none yet."""


@dataclass(frozen=True)
class NodeRates:
    """What a task measured."""

    clock_s: float
    """Its clock less that of the first task."""
    device: DeviceRates
    """Its device, while all others did the same."""
    within: LinkRates | None
    """To the others of its node; None where there are none."""
    between: LinkRates | None
    """To its like on the other nodes, while their others did the same; None where there are none."""
    write_bytes_per_s: float
    """Into the workspace, until it is on disk, while all others did the same."""


def measure(folder: Path, order: ProbeOrder, rank_info: RankInfo) -> NodeRates:
    """Meet the others, and measure what each can do while all do it."""
    device, tasks = order.device, order.tasks_per_node
    if device == "cuda":
        seen = torch.cuda.device_count()
        if seen <= rank_info.local_rank:
            there = f"torch {torch.__version__} sees {several(seen, 'GPU')} here"
            raise RuntimeError(
                f"{there}, and this is task {rank_info.local_rank} of the node, counted from 0"
            )
        torch.cuda.set_device(rank_info.local_rank)
    size, copied = (None, None) if device == "cuda" else (CPU_SIZE, max(COPIED_BYTES["cpu"] // tasks, 2**22))
    with connect(
        order.nodes, 1, tasks, rank=rank_info.rank, rendezvous="env://", device=device, timeout_s=MEET_S
    ) as mesh:
        mark = torch.zeros(1, dtype=torch.float64, device=device)
        clock_s = _clock_s(mesh, mark)
        rates = device_rates(device, size, copied)
        return NodeRates(
            clock_s=clock_s,
            device=rates,
            within=_along(mesh.tp, mesh, mark, device),
            between=_along(mesh.dp, mesh, mark, device),
            write_bytes_per_s=_write_bytes_per_s(
                folder / f"written-{rank_info.rank}", WRITTEN_BYTES // tasks, mesh, mark
            ),
        )


def _meet(mesh: Mesh, mark: Tensor) -> None:
    """Go on when all are here."""
    sum_over(mark, mesh.world).item()


def _clock_s(mesh: Mesh, mark: Tensor) -> float:
    """Median, over some moments that are the same for all, of this clock less the first task's."""
    if mesh.world.size == 1:
        return 0.0
    read = []
    for _ in range(_ROUNDS):
        _meet(mesh, mark)
        clocks = every(torch.full_like(mark, time.time()), mesh.world)
        read.append(float(clocks[mesh.world.rank, 0] - clocks[0, 0]))
    return statistics.median(read)


def _along(axis: Axis, mesh: Mesh, mark: Tensor, device: str) -> LinkRates | None:
    """The links of an axis, every group of it at work at once."""
    _meet(mesh, mark)
    return None if axis.size == 1 else rates_along(axis, device, GATHERED_BYTES[device] // axis.size // 4 * 4)


def _write_bytes_per_s(path: Path, size: int, mesh: Mesh, mark: Tensor) -> float:
    """Rate of a file that is written and synced."""
    content = os.urandom(size)  # a file system may compress
    _meet(mesh, mark)
    begin = time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return size / (time.perf_counter() - begin)
    finally:
        path.unlink(missing_ok=True)
