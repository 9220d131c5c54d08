"""A task of the preflight: one for each rank, in a job step of their own before the ranks start.

    python -m runtime.slurm.preflight.probe FOLDER

    FOLDER/node-<rank>.json         about its node and device
           link-<rank>-<peer>.json  about the link to the next rank of its node, and to the same rank of the next node
           port-<rank>-<peer>       where the first of two listens for the other

A pair has a process group of its own, so that a link or a device that hangs holds up nobody but its ends, for seconds.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from runtime.slurm.preflight.report import LinkReport, NodeReport, write_report
from runtime.train.environment import gpu_index
from specs.document.files import load
from specs.document.write import write_text
from specs.humanize import first_line
from specs.preflight import PreflightOrder
from specs.slurm_submission import Submission

_SIZE = {"cpu": 1024, "cuda": 8192}
"""Rows of the square matrices, as the doctor's (runtime/doctor)."""
_GATHERED_BYTES = {"cpu": 2**22, "cuda": 2**26}
"""Of each end of a pair: large enough that latency does not count."""
_REPEATS, _MESSAGES = 5, 20
"""Measurements, of which the best counts: others of the node measure at the same time."""
_POLL_S = 0.05
"""Time between two looks into the folder."""


class Place(NamedTuple):
    """A task's place among all."""

    rank: int
    local_rank: int
    tasks_per_node: int
    nodes: int

    @property
    def pairs(self) -> Iterator[tuple[int, int]]:
        """Its pairs of ranks, itself among each, in an order in which no two wait in a circle."""
        node = self.rank // self.tasks_per_node
        for at, size, stride in (
            (self.local_rank, self.tasks_per_node, 1),
            (node, self.nodes, self.tasks_per_node),
        ):
            for parity in (0, 1):
                first = self.rank if at % 2 == parity else self.rank - stride
                index = at if at % 2 == parity else at - 1
                if 0 <= index < size - 1:
                    yield first, first + stride


def main(folder: Path) -> None:
    """Report about this task's node, then about its links."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a warning is for the ranks
    begun, order = time.monotonic(), load(folder.parent / "submission.json", Submission).preflight
    assert order is not None  # the script that calls this has a preflight
    rank, nodes = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NNODES"])
    place = Place(rank, int(os.environ["SLURM_LOCALID"]), order.tasks_per_node, nodes)
    report = _node_report(folder, order, place)
    write_report(folder, f"node-{rank}", report)
    if report.error:
        sys.exit(report.error)
    half = begun + order.limits.timeout / 2
    _wait(folder, [f"node-{other}.json" for other in range(nodes * place.tasks_per_node)], half)
    for first, second in place.pairs:
        peer = second if rank == first else first
        if not (folder / f"node-{peer}.json").exists():
            continue  # the judge knows
        try:
            found = _link(folder, order, place, (first, second))
        except Exception as error:
            found = LinkReport(first, second, 0.0, 0.0, 0.0, f"{type(error).__name__}: {first_line(error)}")
        if found.error or rank == first:
            write_report(folder, f"link-{first}-{second}", found)


def _node_report(folder: Path, order: PreflightOrder, place: Place) -> NodeReport:
    temporary = tempfile.gettempdir()
    known = NodeReport(
        devices=0,
        bound=False,
        device_free_bytes=None,
        host_free_bytes=_available_memory(),
        folder_free_bytes=float(shutil.disk_usage(folder).free),
        temporary=temporary,
        temporary_free_bytes=float(shutil.disk_usage(temporary).free),
        flop_per_s=0.0,
    )
    try:
        import torch

        if order.device == "cpu":
            torch.set_num_threads(order.threads)
            return replace(known, devices=len(os.sched_getaffinity(0)), flop_per_s=_flop_per_s("cpu"))
        seen = torch.cuda.device_count()
        known = replace(known, devices=seen, bound=seen == 1 and order.tasks_per_node > 1)
        if seen <= place.local_rank and not known.bound:
            return known
        torch.cuda.set_device(gpu_index(place.local_rank, seen))
        free = float(torch.cuda.mem_get_info()[0])
        return replace(known, device_free_bytes=free, flop_per_s=_flop_per_s("cuda"))
    except Exception as error:
        return replace(known, error=f"{type(error).__name__}: {first_line(error)}")


def _available_memory() -> float:
    """Bytes that the node can give to processes (proc(5), MemAvailable)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _flop_per_s(device: str) -> float:
    """Best rate of a multiplication of square matrices, bf16 on GPUs and fp32 on CPUs, after one to warm up."""
    import torch

    size = _SIZE[device]
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    result = torch.empty_like(a)

    def multiply() -> None:
        torch.mm(a, a, out=result)
        _synchronize(device)

    multiply()
    return 2.0 * size**3 / min(_seconds(multiply) for _ in range(_REPEATS))


def _seconds(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _link(folder: Path, order: PreflightOrder, place: Place, pair: tuple[int, int]) -> LinkReport:
    """Measure the link of a pair, as one of its ends."""
    import torch
    from torch.distributed import ReduceOp

    device, own = order.device, pair.index(place.rank)
    group = _group(folder, order, pair, own)
    one = torch.zeros(1, device=device, dtype=torch.float64)
    part = torch.zeros(_GATHERED_BYTES[device] // 4, device=device)
    whole = [torch.empty_like(part) for _ in range(2)]

    def message() -> None:
        group.allreduce([one], ReduceOp.SUM).wait()
        _synchronize(device)

    def gather() -> None:
        group.allgather([whole], [part]).wait()
        _synchronize(device)

    message()
    gather()
    clocks = [torch.empty_like(one) for _ in range(2)]
    group.allgather([clocks], [torch.full_like(one, time.time())]).wait()
    _synchronize(device)
    message_s = min(_seconds(message) for _ in range(_MESSAGES))
    gather_s = min(_seconds(gather) for _ in range(_REPEATS))
    clock_s = float(clocks[1] - clocks[0])
    return LinkReport(*pair, _GATHERED_BYTES[device] / gather_s, message_s, clock_s)


def _group(folder: Path, order: PreflightOrder, pair: tuple[int, int], own: int) -> Any:
    """A process group of two; the first listens."""
    import torch.distributed as dist
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    timeout = timedelta(seconds=order.limits.timeout / 8)  # of a half for four links
    port = folder / f"port-{pair[0]}-{pair[1]}"
    if own == 0:
        host = os.environ["SLURMD_NODENAME"]
        store = TCPStore(host, 0, 2, True, timeout, wait_for_workers=False)
        write_text(port, f"{host} {store.port}")
    else:
        if not _wait(folder, [port.name], time.monotonic() + timeout.total_seconds()):
            raise TimeoutError(f"rank {pair[0]} does not listen")
        host, number = port.read_text().split()
        store = TCPStore(host, int(number), 2, False, timeout)
    if order.device == "cpu":
        return dist.ProcessGroupGloo(store, own, 2, timeout)
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # a wait that times out raises; else the process is ended
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(store, own, 2, options)


def _wait(folder: Path, names: list[str], until_s: float) -> bool:
    """Whether all of these files are in the folder before it is too late."""
    while not (there := set(names) <= set(os.listdir(folder))) and time.monotonic() < until_s:
        time.sleep(_POLL_S)
    return there


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(0)  # the groups of links that hung would wait for their peers
