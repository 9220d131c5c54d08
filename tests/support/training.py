"""Tiny runs on a tiny corpus, and processes to train them in, which can be killed."""

import json
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from runtime.data.batches import first_sample_of_step
from runtime.data.build.corpus import build
from runtime.launch.local import rendezvous_environment, rendezvous_socket
from runtime.run_folder.folder import RunFolder, open_folder
from runtime.train.loop import main, train
from runtime.train.process import RankInfo, StopRequest
from specs.data import Bytes, CorpusRef, DataSpec, FileText
from specs.exit_codes import OK, RESUME
from specs.layout import Layout
from specs.optim import Milestone
from specs.plan import CurveBand
from specs.record import Order, SkippedRange
from specs.run import Evaluation, Execution, RunSpec
from tests.support import samples
from tests.support.forkserver import PROCESSES

TEXTS = [f"Document {i} says: " + f"{i * 7919 % 1009} things about {i}. " * 20 for i in range(40)]


def corpus(home: Path) -> CorpusRef:
    """A corpus under `home / "data"`."""
    (home / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    text = FileText(source="files", paths=("text.jsonl",))
    spec = DataSpec(text=text, tokenizer=Bytes(kind="bytes"), held_out_one_in=4)
    built = build(spec, home, home / "data", Console(quiet=True))
    return CorpusRef(corpus=built.name, digest=built.digest)


def tiny_run(data: CorpusRef, steps: int = 20, **changes: Any) -> RunSpec:
    """A run of a few milliseconds a step."""
    plain = {
        "data": data,
        "model": samples.model(width=16, heads=2, kv_heads=1, ffn=32, context=32),
        "optim": samples.optim(
            steps=steps,
            batch_sequences=4,
            peak_lr=0.01,
            warmup_steps=2,
            milestones=(
                Milestone(step=steps * 4 // 5, factor=0.316),
                Milestone(step=steps * 9 // 10, factor=0.1),
            ),
        ),
        "evaluation": Evaluation(every_steps=5, sequences=6, final_sequences=9),
    }
    return samples.run(**(plain | changes))


def order(
    run: RunSpec,
    dp: int = 1,
    micro_batch: int = 2,
    every_s: float = 60.0,
    every_steps: int | None = None,
    curve: CurveBand | None = None,
    fallback_layouts: tuple[Layout, ...] = (),
    **cut: Any,
) -> Order:
    """The order for the ranks; `cut` are fields of the layout."""
    layout = samples.layout(dp=dp, micro_batch_sequences=micro_batch, **cut)
    return Order(
        run=run.fingerprint(),
        title="a tiny run",
        seal="5" * 64,
        execution=Execution(
            device="cpu", layout=layout, checkpoint_interval_s=every_s, checkpoint_interval_steps=every_steps
        ),
        fallback_layouts=fallback_layouts,
        peak_flop_per_s=1e12,
        curve=curve,
    )


def opened(home: Path, run: RunSpec, how: Order | None = None) -> RunFolder:
    """The run's folder under `home / "runs"`."""
    return open_folder(home / "runs", run, how or order(run))


Outcome = tuple[bytes, bytes, str, float]
"""Bytes of metrics.jsonl and evals.jsonl, digest of the weights, final loss."""


def outcome(folder: RunFolder) -> Outcome:
    end = folder.end()
    assert end is not None
    return folder.metrics_jsonl.read_bytes(), folder.evals_jsonl.read_bytes(), end.weights_sha256, end.loss


def train_here(folder: RunFolder, data: Path) -> int:
    """Train in this process, alone; the exit status."""
    return train(folder, data, RankInfo(rank=0, local_rank=0, world_size=1), StopRequest())


def poison(first: int, last: int) -> None:
    """From now on, the loss on batches number `first` to `last` of the data is not a number in this process."""
    from runtime.train.worker import RankWorker

    accumulate = RankWorker.accumulate_gradients

    def poisoned(self: RankWorker, step: int, skipped: Sequence[SkippedRange]) -> Tensor:
        share = accumulate(self, step, skipped)
        return share * math.nan if first <= first_sample_of_step(step, 1, skipped) + 1 <= last else share

    RankWorker.accumulate_gradients = poisoned  # type: ignore[method-assign]


class Ranks:
    """Processes that train a run: started at once, since they are forked from one that has imported torch."""

    def __init__(
        self, folder: RunFolder, data: Path, ranks: int = 1, prepare: Callable[[], None] | None = None
    ) -> None:
        with rendezvous_socket() as listener:  # as runtime/launch/local.py has it
            self.processes = [
                PROCESSES.Process(
                    target=_rank,
                    args=(folder.path, data, _environment(rank, ranks, listener), prepare),
                    kwargs={} if rank else {"listener": listener},
                )
                for rank in range(ranks)
            ]
            for process in self.processes:
                process.start()

    def kill(self) -> None:
        """SIGKILL, to all of them."""
        for process in self.processes:
            process.kill()
        self.join()

    def join(self) -> list[int | None]:
        """Wait for the ends; exit statuses. As by a launcher, who waits for a rank that has failed is killed."""
        until_s = time.monotonic() + 180
        while alive := [process.sentinel for process in self.processes if process.is_alive()]:
            if any(process.exitcode not in (None, OK, RESUME) for process in self.processes):
                until_s = min(until_s, time.monotonic() + 20)
            if time.monotonic() > until_s:
                self.kill()
            wait(alive, timeout=1)
        return [process.exitcode for process in self.processes]


def _environment(rank: int, ranks: int, listener: socket.socket) -> dict[str, str]:
    return rendezvous_environment(rank, listener) | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _rank(
    folder: Path,
    data: Path,
    environment: Mapping[str, str],
    prepare: Callable[[], None] | None,
    listener: socket.socket | None = None,
) -> None:
    os.environ.update(environment)
    if listener is not None:  # has another number in this process
        os.environ["MASTER_LISTEN_FD"] = str(listener.fileno())
    (folder / "log").mkdir(exist_ok=True)
    log = os.open(folder / "log" / f"rank-{environment['RANK']}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if prepare is not None:
        prepare()
    os._exit(main([str(folder), "--data", str(data)]))
