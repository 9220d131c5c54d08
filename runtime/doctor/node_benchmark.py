"""What the doctor's tasks measure, all at the same time: device rates, links within and between nodes, clocks."""

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.collectives import all_gather, all_reduce
from model.mesh import Axis, Mesh, connect
from runtime.doctor.benchmark import COPIED_BYTES, DeviceRates, LinkRates, device_rates, rates_along
from runtime.doctor.probe_order import RENDEZVOUS_TIMEOUT_S, ProbeOrder
from runtime.train.environment import gpu_index
from runtime.train.process import RankInfo

CPU_SIZE = 1024
"""Rows of the matrices on a CPU: a core's rate there is within a tenth of that at 2048, in an eighth of the time."""
GATHERED_BYTES = {"cpu": 2**25, "cuda": 2**27}
"""Of each axis: large enough that latency does not count, and small enough for all cores of a node at once."""
WRITTEN_BYTES = 2**27
"""Written by each node: the size of a small model's checkpoint."""
_CLOCK_READINGS = 5
"""Barriers after which the clocks are read."""


@dataclass(frozen=True)
class NodeRates:
    """The rates that one task measured."""

    clock_s: float
    """Its clock minus rank 0's."""
    device: DeviceRates
    """Its device, while all others measured too."""
    intra_node: LinkRates | None
    """To the other tasks of its node; None where there are none."""
    inter_node: LinkRates | None
    """To the tasks with its local rank on the other nodes, all at once; None where there are none."""
    write_bytes_per_s: float
    """Into the workspace, fsync included, while all others wrote too."""


def measure(folder: Path, order: ProbeOrder, rank_info: RankInfo) -> NodeRates:
    """Join the process group, and measure while all other tasks do."""
    device, tasks = order.device, order.tasks_per_node
    if device == "cuda":
        seen = torch.cuda.device_count()
        if not seen:
            raise RuntimeError(
                f"local rank {rank_info.local_rank} has no GPU: torch {torch.__version__} finds none"
            )
        torch.cuda.set_device(gpu_index(rank_info.local_rank, seen))
    size, copied = (None, None) if device == "cuda" else (CPU_SIZE, max(COPIED_BYTES["cpu"] // tasks, 2**22))
    with connect(
        order.nodes,
        1,
        tasks,
        rank=rank_info.rank,
        rendezvous="env://",
        device=device,
        timeout_s=RENDEZVOUS_TIMEOUT_S,
    ) as mesh:
        mark = torch.zeros(1, dtype=torch.float64, device=device)
        clock_s = _clock_offset_s(mesh, mark)
        rates = device_rates(device, size, copied)
        return NodeRates(
            clock_s=clock_s,
            device=rates,
            intra_node=_link_rates(mesh.tp, mesh, mark, device),
            inter_node=_link_rates(mesh.dp, mesh, mark, device),
            write_bytes_per_s=_write_bytes_per_s(
                folder / f"written-{rank_info.rank}", WRITTEN_BYTES // tasks, mesh, mark
            ),
        )


def _barrier(mesh: Mesh, mark: Tensor) -> None:
    """Wait for all tasks."""
    all_reduce(mark, mesh.world).item()


def _clock_offset_s(mesh: Mesh, mark: Tensor) -> float:
    """This clock minus rank 0's: the median of some readings, each after a barrier."""
    if mesh.world.size == 1:
        return 0.0
    read = []
    for _ in range(_CLOCK_READINGS):
        _barrier(mesh, mark)
        clocks = all_gather(torch.full_like(mark, time.time()), mesh.world)
        read.append(float(clocks[mesh.world.rank, 0] - clocks[0, 0]))
    return statistics.median(read)


def _link_rates(axis: Axis, mesh: Mesh, mark: Tensor, device: str) -> LinkRates | None:
    """The links of a mesh axis, with all of its groups communicating at once."""
    _barrier(mesh, mark)
    return None if axis.size == 1 else rates_along(axis, device, GATHERED_BYTES[device] // axis.size // 4 * 4)


def _write_bytes_per_s(path: Path, size: int, mesh: Mesh, mark: Tensor) -> float:
    """Rate of writing and syncing a file."""
    content = os.urandom(size)  # a file system may compress
    _barrier(mesh, mark)
    begin = time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return size / (time.perf_counter() - begin)
    finally:
        path.unlink(missing_ok=True)
