"""What saving costs: `python -m bench.checkpoints [ROUNDS]`, at the shape where training steps are measured.

Each round, in turn: steps without a save; steps while a checkpoint is written; a checkpoint of a gigabyte; `dd` with
fsync of as many bytes to the same disk. So what else the machine does falls on all alike. The cost of a save is the
time that steps took longer while it was written, the copy of the state included; memory is what the process grew by.
"""

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import runtime.checkpoint.shards  # noqa: F401, so that its import is in nobody's time and memory
from bench.step import PEERS
from model.parameters import Piece
from model.zero import Box
from runtime.checkpoint.format import CheckpointManifest, commit, stage
from runtime.data.batches import RunData, Splits
from runtime.run_folder.folder import checkpoint_name
from runtime.train.async_checkpoint import AsyncCheckpointer
from runtime.train.resume import ResumeState, manifest_of
from runtime.train.worker import RankWorker, join_process_group
from specs.checkpoint_retention import Retention
from specs.data import CorpusRef
from specs.layout import Layout
from specs.optim import OptimSpec
from specs.run import Evaluation, Execution, RunSpec
from specs.spike_guard import SpikeGuardState

ROUNDS = 5
BATCH, MICRO_BATCH = 16, 4
WRITTEN_BYTES = 2**30
"""Enough that the disk's rate is what is measured; a rank of a 67B over 1000 devices has as much."""
EVERY_S = (300.0, 60.0)
"""The paper's cadence (DeepSeek LLM, section 2.4), and one for short runs."""


@dataclass(frozen=True)
class Round:
    """One round's measurements."""

    step_s: float
    """A step without a save, the median."""
    extra_s: float
    """What a save added to the steps in which it was written."""
    blocked_s: float
    """Of that, the time in which the loop waited."""
    write_s: float
    """A checkpoint of `WRITTEN_BYTES`, from its boxes in memory to its name on the disk."""
    dd_s: float
    """dd of as many bytes."""
    grown_bytes: int
    """Most memory during the steps with a save over that during those without; the first save makes the copy."""


def run_spec() -> RunSpec:
    """A run of the peers' shape."""
    return RunSpec(
        model=PEERS,
        data=CorpusRef(corpus="0" * 16, digest="0" * 64),
        optim=OptimSpec(steps=10**6, batch_sequences=BATCH, peak_lr=1e-4, warmup_steps=1),
        evaluation=Evaluation(every_steps=10**6, sequences=1, final_sequences=1),
        precision="fp32",
        seed=0,
    )


def trainer(worker: RankWorker) -> Callable[[], float]:
    """One step; its wall seconds."""
    numbers = iter(range(1, 10**6))

    def step() -> float:
        begin = time.perf_counter()
        worker.accumulate_gradients(next(numbers), ())
        worker.optimizer.apply(1e-4, worker.optimizer.reduce_gradients())
        return time.perf_counter() - begin

    return step


def measure(
    checkpointer: AsyncCheckpointer,
    step: Callable[[], float],
    manifest: Callable[[], CheckpointManifest],
    folder: Path,
    boxes: list[Box],
) -> Round:
    """One round."""
    with peak_rss() as before:
        step_s = statistics.median(step() for _ in range(4))
    begin = time.perf_counter()
    with peak_rss() as peak:
        checkpointer.start(manifest())
        blocked_s = time.perf_counter() - begin
        taken = 0
        while not checkpointer.idle:
            step()
            taken += 1
            checkpointer.advance(*checkpointer.progress())
    extra_s = time.perf_counter() - begin - taken * step_s
    told, large = manifest(), folder / "large"
    large.mkdir(exist_ok=True)
    dd_s(
        large, WRITTEN_BYTES
    )  # a thin disk is slow where it was not written lately: this one's blocks are used again
    begin = time.perf_counter()
    stage(large, told.step, 0, boxes)
    commit(large, told, 1, Retention(newest=1))
    write_s = time.perf_counter() - begin
    shutil.rmtree(large / checkpoint_name(told.step))
    return Round(step_s, extra_s, blocked_s, write_s, dd_s(large, WRITTEN_BYTES), peak[0] - before[0])


def large_boxes() -> list[Box]:
    """State of `WRITTEN_BYTES`: one tensor with its moments."""
    rows, cols = WRITTEN_BYTES // 12 // 4096, 4096
    values = [torch.randn(rows, cols) for _ in range(3)]
    return [Box(Piece("a.matrix", (rows, cols), 0, 0, rows, cols), *values)]


def dd_s(folder: Path, size: int) -> float:
    """Seconds in which dd writes so many bytes and waits for the disk."""
    path = folder / "dd"
    words = ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size // 2**20}", "conv=fsync"]
    said = subprocess.run(words, capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stderr
    path.unlink()
    found = re.search(r"([\d.e+-]+) s,", said)
    assert found is not None
    return float(found[1])


def rss_bytes() -> int:
    """SpikeGuardState of this process that is there now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@contextmanager
def peak_rss() -> Iterator[list[int]]:
    """The most memory while the block is open, looked at every few milliseconds."""
    most, ended = [rss_bytes()], threading.Event()

    def look() -> None:
        while not ended.wait(0.003):
            most[0] = max(most[0], rss_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def main() -> None:
    """Print what saving costs."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    run = run_spec()
    layout = Layout(
        dp=1, pp=1, tp=1, sequence_parallel=False, micro_batch_sequences=MICRO_BATCH, recompute="none"
    )
    execution = Execution(device="cpu", layout=layout, checkpoint_interval_s=EVERY_S[0])
    tokens = np.random.default_rng(0).integers(0, PEERS.vocab, 2**20, dtype=np.uint16)
    with (
        tempfile.TemporaryDirectory(dir=".") as where,
        join_process_group(run, execution, 0, 0, RunData(run, {"": Splits(tokens, tokens)})) as worker,
    ):
        folder = Path(where)
        worker.optimizer.initialize(0)
        checkpointer, step = AsyncCheckpointer(folder, worker, Retention()), trainer(worker)
        resumed, numbers = ResumeState(0, None, SpikeGuardState(), (), {}), iter(range(1, 10**6))
        step()
        state_bytes = 3 * worker.optimizer.state[0].nbytes

        def manifest() -> CheckpointManifest:
            return manifest_of(worker, run, resumed, next(numbers), None, SpikeGuardState())

        boxes = large_boxes()
        found = [measure(checkpointer, step, manifest, folder, boxes) for _ in range(rounds)]
    show(found, state_bytes)


def show(found: list[Round], state_bytes: int) -> None:
    """Print the medians beside what is asked of them."""

    def middle(of: Callable[[Round], float]) -> float:
        return statistics.median(of(one) for one in found)

    table = Table("what", "measured", "asked", box=None, pad_edge=False)
    table.add_row("state", f"{state_bytes / 2**20:.0f} MiB", "")
    table.add_row("step without a save", f"{middle(lambda r: r.step_s):.3f} s", "")
    table.add_row("a save adds to the steps", f"{middle(lambda r: r.extra_s):.3f} s", "")
    table.add_row("of which the loop waits", f"{middle(lambda r: r.blocked_s):.3f} s", "")
    for every_s in EVERY_S:
        share = middle(lambda r: r.extra_s) / every_s
        table.add_row(f"share of the time, a save every {every_s:.0f} s", f"{share:.2%}", "under 2 %")
    grown = max(one.grown_bytes for one in found)
    table.add_row("memory, the most", f"{grown / state_bytes:.2f} of the state", "one copy of it")
    table.add_row(
        "a gigabyte is written at", f"{WRITTEN_BYTES / middle(lambda r: r.write_s) / 1e6:.0f} MB/s", ""
    )
    table.add_row("dd with fsync", f"{WRITTEN_BYTES / middle(lambda r: r.dd_s) / 1e6:.0f} MB/s", "")
    table.add_row("ratio", f"{middle(lambda r: r.dd_s / r.write_s):.0%}", "at least 70 %")
    Console().print(table)


if __name__ == "__main__":
    main()
