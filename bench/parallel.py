"""Layouts of a few processes beside one process on the same cores: `python -m bench.parallel [ROUNDS [RANKS]]`.

Every process is a rank of each layout, and rank 0 is also the one process, with as many threads as there are ranks; all
are pinned to the same cores. Layouts take turns step by step, so that what else the machine does falls on all alike. A
step's wall time is from one barrier to the next. Efficiency is the one process' time over the layout's; CPU is the
ranks' CPU time over that of the one process, which the machine's other work disturbs less. A pipeline's bubble bounds
its efficiency at 1 / (1 + (p - 1) / (m v)) for p ranks, m micro-batches, v chunks (arXiv 2104.04473, section 2.2).
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from bench.step import PEERS
from model.kernels import choose
from model.mesh import Mesh, connect, mesh_of
from model.pipeline_parallel import Pipeline
from model.transformer import WHOLE, Stage
from model.zero import AdamW
from specs.layout import Layout
from specs.optim import OptimSpec

SEQUENCES, MICRO_BATCH = 16, 4
"""Of a step and of a micro-batch: 4096 tokens a step, as the peers were measured."""
OPTIM = OptimSpec(steps=2, batch_sequences=SEQUENCES, peak_lr=1e-4, warmup_steps=1)
ROUNDS, RANKS = 8, 2

Seconds = tuple[float, float]
"""Wall and CPU seconds of a step: the ranks' CPU seconds together."""


def layouts(ranks: int) -> dict[str, Layout]:
    cuts = {
        "dp": {"dp": ranks},
        "pp": {"pp": ranks},
        "pp, 2 chunks": {"pp": ranks, "interleave": 2},
        "tp": {"tp": ranks},
        "tp + sp": {"tp": ranks, "sequence_parallel": True},
    }
    if ranks == 4:
        cuts |= {"dp 2 x pp 2": {"dp": 2, "pp": 2}, "pp 2 x tp 2": {"pp": 2, "tp": 2}}
    return {
        name: WHOLE.model_copy(update={"micro_batch_sequences": MICRO_BATCH} | cut)
        for name, cut in cuts.items()
    }


def trainer(mesh: Mesh, layout: Layout, precision: str) -> Callable[[torch.Tensor], None]:
    """A function that trains one step on this rank's part of the rows."""
    kernels = choose("auto", "cpu", precision)
    stage = Stage(PEERS, precision=precision, mesh=mesh, kernels=kernels, device="cpu", layout=layout)
    optimizer, pipeline = AdamW(stage, mesh.dp, OPTIM), Pipeline(stage)
    optimizer.initialize(0)

    def step(rows_BT: torch.Tensor) -> None:
        parts = rows_BT.chunk(mesh.dp.size)[mesh.dp.rank].split(MICRO_BATCH)
        optimizer.start_accumulation(len(parts))
        pipeline.train([len(part) for part in parts], parts.__getitem__, SEQUENCES * PEERS.context)
        optimizer.step(OPTIM.peak_lr)
        optimizer.wait_for_parameters()

    return step


def measure(world: Mesh, precision: str, rounds: int) -> dict[str, Seconds]:
    """Median seconds of a step under each layout, and in one process; the first round is a warm-up."""
    ranks, alone = world.world.size, world.world.rank == 0
    steps = {
        name: trainer(mesh_of(layout.dp, layout.pp, layout.tp), layout, precision)
        for name, layout in layouts(ranks).items()
    }
    one = trainer(Mesh(), layouts(1)["dp"], precision) if alone else lambda _: None
    found: dict[str, list[Seconds]] = {name: [] for name in ("one process", *steps)}
    for number in range(rounds + 1):
        generator = torch.Generator().manual_seed(number)
        rows_BT = torch.randint(PEERS.vocab, (SEQUENCES, PEERS.context + 1), generator=generator)
        for name, step in {"one process": one, **steps}.items():
            torch.set_num_threads(ranks if step is one else 1)
            found[name].append(_timed(step, rows_BT))
    return {
        name: (
            statistics.median(wall for wall, _ in seconds[1:]),
            statistics.median(cpu for _, cpu in seconds[1:]),
        )
        for name, seconds in found.items()
    }


def _timed(step: Callable[[torch.Tensor], None], rows_BT: torch.Tensor) -> Seconds:
    dist.barrier()
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    step(rows_BT)
    cpu_s = torch.tensor(time.process_time() - began_cpu_s)
    dist.all_reduce(cpu_s)
    return time.perf_counter() - began_s, float(cpu_s)


def _rank(rank: int, ranks: int, rendezvous: str, precision: str, rounds: int, cores: list[int]) -> None:
    os.sched_setaffinity(0, cores)
    with connect(ranks, 1, 1, rank=rank, rendezvous=rendezvous, device="cpu") as world:
        found = measure(world, precision, rounds)
    if rank == 0:
        print_table(precision, ranks, found)


def print_table(precision: str, ranks: int, found: dict[str, Seconds]) -> None:
    table = Table(
        "layout", "ms/step", "tokens/s", "efficiency", "CPU", "bubble's bound", title=f"{precision}, {ranks}"
    )
    one_s, one_cpu_s = found["one process"]
    for name, (wall_s, cpu_s) in found.items():
        rate = SEQUENCES * PEERS.context / wall_s
        bound = 1 / (1 + (ranks - 1) / (SEQUENCES // MICRO_BATCH * (2 if "chunks" in name else 1)))
        cells = [f"{1e3 * wall_s:.0f}", f"{rate:,.0f}", f"{one_s / wall_s:.3f}", f"{cpu_s / one_cpu_s:.3f}"]
        table.add_row(name, *cells, f"{bound:.3f}" if name.startswith("pp") and " x " not in name else "")
    Console().print(table)


def main() -> None:
    """Measure and print, in fp32 and in bf16, and say how busy the machine was."""
    rounds, ranks = [int(word) for word in sys.argv[1:]] + [ROUNDS, RANKS][len(sys.argv) - 1 :]
    cores = sorted(os.sched_getaffinity(0))[:ranks]
    print(f"cores {cores} of {os.cpu_count()}, {ranks} ranks, load {os.getloadavg()[0]:.1f} before")
    for precision in ("fp32", "bf16"):
        with tempfile.TemporaryDirectory() as folder:
            rendezvous = (Path(folder) / "rendezvous").as_uri()
            started = [
                multiprocessing.get_context("spawn").Process(
                    target=_rank, args=(rank, ranks, rendezvous, precision, rounds, cores)
                )
                for rank in range(ranks)
            ]
            for process in started:
                process.start()
            for process in started:
                process.join()
    print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
