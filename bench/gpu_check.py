"""A node's first hour, in one command: `make gpu-check`, which is `python -m bench.gpu_check [PART ...]`.

    doctor     `isoplan doctor`: what would prevent a run, and this node's measured rates
    kernels    every kernel against fp64: the tests marked `gpu`
    parity     a small run under every layout of this node's devices: its losses are those of one device
    resume     the same run, killed with SIGKILL and started again: the same bytes as undisturbed
    speed      MFU, memory and waits of models of .3, 1.3 and 7 billion parameters on all devices, with the layout that
               the planner takes

Each part prints what it finds as it is found; all of it is in gpu-check/results.json, one file to send with an issue.
The runs are ordinary ones, started as `run` starts them, in gpu-check/. `--cpu RANKS` rehearses parity and resume on
CPU processes.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console

from bench.gpu import SHAPES
from planner.performance.batch_and_layout import choose_batch_and_layout
from planner.performance.layout_search import NoLayoutError
from runtime.data.build.corpus import build
from runtime.launch.jobs import RunRequest, prepare_jobs
from runtime.launch.local import Outcome, RunningJob, launch
from runtime.launch.machine import Machine, this_machine
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.workspace import Workspace
from runtime.study import rank_command
from specs.cluster import Cluster
from specs.data import CorpusRef, DataSpec, TokenFiles, TokenIds
from specs.document.files import from_catalog
from specs.document.write import write_text
from specs.layout import Layout
from specs.model import ModelSpec
from specs.optim import OptimSpec
from specs.record import Order, Start
from specs.run import Evaluation, Execution, RunSpec

PARTS = ("doctor", "kernels", "parity", "resume", "speed")
FOLDER = Path("gpu-check")
DOCTOR = ("-m", "isoplan", "doctor", "--json", "--out", f"{FOLDER}/node.yaml")
KERNELS = ("-m", "pytest", "-q", "-m", "gpu", "tests")
PARITY = 1e-5
"""Relative difference of the losses of two layouts in fp32: other orders of the same sums, over a few steps."""
SMALL = ModelSpec(layers=8, width=512, heads=8, kv_heads=8, ffn=1408, vocab=256, context=512)
"""Divides over eight devices by layers, heads and vocabulary."""
TINY = ModelSpec(layers=4, width=32, heads=4, kv_heads=4, ffn=96, vocab=64, context=32)
"""The same over four CPU processes."""
STEPS, SEQUENCES = 12, 16
SPEED = {name: SHAPES[name] for name in ("0.3B", "1.3B")} | {
    "7B": ModelSpec(layers=32, width=4096, heads=32, kv_heads=32, ffn=11008, vocab=32768, context=4096)
}
"""7B is Llama 2's shape (arXiv 2307.09288, table 1; Llama 1's, arXiv 2302.13971, table 2) with our vocabulary."""
STEP_TOKENS = 2**19
"""Of a step: about the batch of such models at the start of the paper's law."""
CLUSTERS = {
    "H100": "h100-64",
    "H200": "h200-256",
    "H800": "h800-2048",
    "B200": "b200-256",
    "A100": "a100-1024",
}
"""The catalog's cluster whose device a GPU of this name is; the layout is the planner's for it."""


@dataclass(frozen=True)
class Bench:
    """Where the runs are, and on what they run."""

    machine: Machine
    on_gpu: bool
    devices: int
    console: Console
    workspace: Workspace

    @property
    def model(self) -> ModelSpec:
        """What parity and resume train."""
        return SMALL if self.on_gpu else TINY

    def train(
        self,
        run: RunSpec,
        layout: Layout,
        title: str,
        *,
        peak_flop_per_s: float | None = None,
        every_steps: int | None = None,
        kill: bool = False,
    ) -> tuple[RunFolder, Outcome]:
        """Train a run, from its checkpoint if it has one; with `kill`, kill its ranks once there is one."""
        order = Order(
            run=run.fingerprint(),
            title=title,
            seal=None,
            execution=Execution(
                device="cuda" if self.on_gpu else "cpu",
                layout=layout,
                checkpoint_interval_s=3600.0,
                checkpoint_interval_steps=every_steps,
            ),
            peak_flop_per_s=peak_flop_per_s,
            curve=None,
        )
        request = RunRequest(Path(title), "", title, run, order, run.compute_flop)
        [job] = prepare_jobs([request], self.workspace)
        slots = self.machine.slots(on_gpu=self.on_gpu, limit=self.devices)
        command = rank_command(self.workspace.data.absolute())

        def watch(active: Sequence[RunningJob], outcomes: Sequence[Outcome]) -> None:
            if kill and active and RunFolder(job.folder).newest_step:
                active[0].send(signal.SIGKILL)

        [outcome] = launch([job], slots, command, watch)
        return RunFolder(job.folder), outcome


def layouts(devices: int, layers: int) -> Iterator[tuple[str, Layout]]:
    """Every way to cut over all of the devices, by name, with sequence parallelism and two chunks where they exist; one
    micro-batch a step where there is a pipeline, too."""
    one = Layout(dp=1, pp=1, tp=1, sequence_parallel=False, micro_batch_sequences=1, recompute="none")
    for dp in (size for size in range(1, devices + 1) if devices % size == 0):
        for tp in (size for size in range(1, devices // dp + 1) if devices // dp % size == 0):
            pp = devices // dp // tp
            cut = {"dp": dp, "pp": pp, "tp": tp}
            name = " x ".join(f"{axis} {size}" for axis, size in cut.items() if size > 1) or "one device"
            yield name, one.model_copy(update=cut)
            if tp > 1:
                yield f"{name}, sequence parallel", one.model_copy(update=cut | {"sequence_parallel": True})
            if pp > 1 and layers % (2 * pp) == 0:
                yield f"{name}, 2 chunks", one.model_copy(update=cut | {"interleave": 2})
            if pp > 1:
                whole = {"micro_batch_sequences": SEQUENCES // dp}
                yield f"{name}, one micro-batch", one.model_copy(update=cut | whole)


def small_run(bench: Bench, seed: int) -> RunSpec:
    """A run of a few seconds; it differs by its seed."""
    return RunSpec(
        model=bench.model,
        data=_corpus(bench, bench.model.vocab, 2**18),
        optim=OptimSpec(steps=STEPS, batch_sequences=SEQUENCES, peak_lr=3e-3, warmup_steps=2),
        evaluation=Evaluation(every_steps=STEPS, sequences=8, final_sequences=8),
        precision="fp32",
        seed=seed,
    )


def parity(bench: Bench, cuts: Sequence[tuple[str, Layout]] | None = None) -> dict[str, Any]:
    """Each layout's largest relative difference of a loss to one device's."""
    found: dict[str, Any] = {}
    reference: list[float] = []
    every = list(layouts(bench.devices, bench.model.layers)) if cuts is None else cuts
    for number, (name, layout) in enumerate([next(layouts(1, 1)), *every]):
        run = small_run(bench, seed=1)
        _fresh(bench, run)
        folder, outcome = bench.train(run, layout, name)
        losses = [line.loss for line in folder.metrics()] + [line.loss for line in folder.evals()]
        if number == 0:
            reference = [loss or 0.0 for loss in losses]
        if outcome.state != "finished" or not reference:
            found[name] = {"ok": False, "error": outcome.message}
        else:
            off = max(abs((loss or 0.0) / one - 1) for loss, one in zip(losses, reference, strict=True))
            found[name] = {"ok": off <= PARITY, "off": off, "last_loss": losses[-1]}
        _say(bench, f"parity, {name}", found[name])
    return found


def resume(bench: Bench) -> dict[str, Any]:
    """Whether a run that is killed and started again writes the same bytes as one that is not."""
    name, layout = list(layouts(bench.devices, bench.model.layers))[-1]
    run = small_run(bench, seed=2)
    _fresh(bench, run)
    folder, outcome = bench.train(run, layout, "undisturbed")
    whole = folder.metrics_jsonl.read_bytes() if outcome.state == "finished" else b""
    _fresh(bench, run)
    _, killed = bench.train(run, layout, f"killed, {name}", every_steps=2, kill=True)
    folder, again = bench.train(run, layout, f"again, {name}", every_steps=2)
    starts = [line for line in folder.records() if isinstance(line, Start)]
    found = {
        "ok": again.state == "finished" and len(starts) == 2 and folder.metrics_jsonl.read_bytes() == whole,
        "layout": name,
        "killed": killed.state,
        "resumed_from_step": starts[-1].from_step if len(starts) > 1 else None,
        "error": again.message or outcome.message,
    }
    _say(bench, "resume", found)
    return found


def speed(bench: Bench, gpu_name: str) -> dict[str, Any]:
    """Tokens per second, MFU, memory and waits of each model on all devices."""
    catalog = next((name for model, name in CLUSTERS.items() if model in gpu_name), None)
    cluster = from_catalog(Cluster, catalog or "h100-64", None)
    cluster = cluster.model_copy(update={"devices": bench.devices, "devices_per_node": max(bench.devices, 1)})
    peak = cluster.device.peak_bf16 if catalog else None
    corpus = _corpus(bench, SPEED["7B"].vocab, 2**24)
    found: dict[str, Any] = {}
    for name, model in SPEED.items():
        sequences = STEP_TOKENS // model.context
        try:
            chosen = choose_batch_and_layout(model, cluster, "bf16", bench.devices, sequences, sequences)
        except NoLayoutError as error:
            found[name] = {"ok": True, "skipped": str(error).splitlines()[0]}
            _say(bench, f"speed, {name}", found[name])
            continue
        run = RunSpec(
            model=model,
            data=corpus,
            optim=OptimSpec(steps=10, batch_sequences=sequences, peak_lr=1e-5, warmup_steps=2),
            evaluation=Evaluation(every_steps=10, sequences=1, final_sequences=1),
            precision="bf16",
            seed=0,
        )
        _fresh(bench, run)
        folder, outcome = bench.train(run, chosen.layout, name, peak_flop_per_s=peak)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)  # 12 bytes a parameter
        timing, ranks = (
            folder.timing()[1:],
            folder.newest_ranks(),
        )  # the first has compiling and connecting in it
        found[name] = {
            "ok": outcome.state == "finished",
            "layout": chosen.layout.plain(),
            "error": outcome.message,
        }
        if timing:
            found[name]["tokens_per_s"] = median(line.tokens_per_s for line in timing)
            found[name]["mfu"] = None if peak is None else median(line.mfu or 0.0 for line in timing)
        if ranks is not None:
            found[name]["peak_memory_bytes"] = max(ranks.peak_memory_bytes)
            found[name]["step_s"], found[name]["busy_s"] = max(ranks.step_s), median(ranks.busy_s)
            found[name]["waiting_s"] = {axis: median(waits) for axis, waits in ranks.waiting_s.items()}
        _say(bench, f"speed, {name}", found[name])
    return found


def command(words: Sequence[str]) -> dict[str, Any]:
    """What a command says, and whether it ends well."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return {"ok": done.returncode == 0, "command": words, "output": (done.stdout + done.stderr)[-20_000:]}


def main(arguments: Sequence[str]) -> int:
    """Run the parts; 1 where one of them failed, 2 where there is nothing to run them on."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument(
        "--cpu", type=int, metavar="RANKS", help="rehearse parity and resume on CPU processes"
    )
    chosen = parser.parse_args(arguments)
    if unknown := [part for part in chosen.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]}; write some of: {' '.join(PARTS)}")
    machine, console = this_machine(), Console()
    if chosen.cpu:
        machine = replace(machine, cores=max(machine.cores, chosen.cpu))
    elif not machine.gpus:
        print("gpu-check needs a CUDA device, and there is none; --cpu 2 rehearses it", file=sys.stderr)
        return 2
    bench = Bench(machine, not chosen.cpu, chosen.cpu or len(machine.gpus), console, Workspace(FOLDER))
    parts = chosen.parts or ([*PARTS] if bench.on_gpu else ["parity", "resume"])
    results: dict[str, Any] = {"isoplan": version("isoplan"), "time": time.time(), "devices": bench.devices}
    gpu_name = ""
    if bench.on_gpu:
        import torch

        gpu_name = torch.cuda.get_device_name()
        results |= {"gpu": gpu_name, "torch": torch.__version__, "cuda": torch.version.cuda}
    actions: dict[str, Callable[[], dict[str, Any]]] = {
        "doctor": lambda: command([sys.executable, *DOCTOR]),
        "kernels": lambda: command([sys.executable, *KERNELS]),
        "parity": lambda: parity(bench),
        "resume": lambda: resume(bench),
        "speed": lambda: speed(bench, gpu_name),
    }
    FOLDER.mkdir(exist_ok=True)
    for part in parts:
        console.rule(part)
        with _heartbeat(console, part):
            results[part] = actions[part]()
        if part in ("doctor", "kernels"):
            console.print(results[part]["output"][-2000:], markup=False, highlight=False)
        write_text(FOLDER / "results.json", json.dumps(results, indent=1) + "\n")
    failed = [part for part in parts if not _ok(results[part])]
    console.print(f"results: {(FOLDER / 'results.json').absolute()}", soft_wrap=True)
    console.print(f"failed: {', '.join(failed)}" if failed else "every part passed")
    return 1 if failed else 0


def _ok(found: dict[str, Any]) -> bool:
    """Whether a part's results, or all results in it, are good."""
    return found["ok"] if "ok" in found else all(one["ok"] for one in found.values())


def _say(bench: Bench, what: str, found: dict[str, Any]) -> None:
    words = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found.items()
        if name not in ("ok", "layout") and value not in ("", None)
    )
    bench.console.print(
        f"{'ok    ' if found['ok'] else 'FAILED'} {what}: {words}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _fresh(bench: Bench, run: RunSpec) -> None:
    """Remove what an earlier run of this spec left."""
    shutil.rmtree(bench.workspace.runs / run.fingerprint(), ignore_errors=True)


def _corpus(bench: Bench, vocab: int, tokens: int) -> CorpusRef:
    """A corpus of a random walk over the vocabulary: a few steps learn that the next token is one of the four above."""
    path = bench.workspace.path / f"walk-{vocab}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = np.random.default_rng(0).integers(1, 5, tokens)
    (steps.cumsum() % vocab).astype(np.uint16).tofile(path)
    spec = DataSpec(
        text=TokenFiles(source="tokens", paths=(path.name,), dtype="uint16"),
        tokenizer=TokenIds(kind="ids", vocab=vocab),
        held_out_one_in=100,
    )
    corpus = build(spec, bench.workspace.path, bench.workspace.data, bench.console)
    return CorpusRef(corpus=corpus.name, digest=corpus.digest)


@contextmanager
def _heartbeat(console: Console, part: str) -> Iterator[None]:
    """A line every minute, so that a long part is seen to go on."""
    over, begun_s = threading.Event(), time.monotonic()

    def beat() -> None:
        while not over.wait(60.0):
            console.print(f"{part}: {(time.monotonic() - begun_s) / 60:.0f} min so far", highlight=False)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
