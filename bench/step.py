"""A training step on one CPU thread beside plain loops: `python -m bench.step [ROUNDS]`.

Trainers take turns step by step, so that what else the machine does falls on all alike; times are the process' own CPU
seconds, and tokens per CPU second are printed with their ratio to transformers' plain loop. The ceiling is the step's
own multiplications, each alone, at its shape: the time below which no arrangement of them gets.

R rows of a micro-batch    H width    V vocabulary    F rows of a weight
"""

import os
import statistics
import sys
import time
from collections.abc import Iterator

import torch
from rich.console import Console
from rich.table import Table

from bench.trainers import Step, llama, nanogpt, ours
from planner.design.model_shape import make_shape
from specs.document.files import from_catalog
from specs.law import Family
from specs.model import ModelSpec

PEERS = ModelSpec(layers=8, width=256, heads=8, kv_heads=8, ffn=688, vocab=8192, context=256)
"""The shape at which peers were measured: 10.5M parameters, 4096 tokens a step, micro-batches of 4 sequences."""
ROUNDS = 5


def shapes() -> dict[str, tuple[ModelSpec, int, int]]:
    """(shape, sequences of a step, of a micro-batch): the peers' shape, then the demo's."""
    tiny = from_catalog(Family, "tiny", None)
    found = {"8 layers x 256, 4096 tokens": (PEERS, 16, 4)}
    for width, batch in ((32, 2), (96, 8)):
        found[f"2 layers x {width}, {256 * batch} tokens"] = (make_shape(tiny, width, 2, 256), batch, batch)
    return found


def step_seconds(trainers: dict[str, Step], batches: list[torch.Tensor]) -> dict[str, float]:
    """Median CPU seconds of a step of each, taking turns; the first step is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for tokens_BT in batches:
        for name, step in trainers.items():
            begin = time.process_time()
            step(tokens_BT)
            seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(measured[1:]) for name, measured in seconds.items()}


def products(spec: ModelSpec, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """(how often, rows, columns, inner) of every multiplication of a micro-batch, there and back.

    Attention is counted as the causal half of its squares, a sequence and a head at a time.
    """
    width, kv = spec.width, spec.kv_heads * spec.head_dim
    linear = [(spec.layers, width + 2 * kv, width), (spec.layers, width, width)]
    linear += [(spec.layers, 2 * spec.ffn, width), (spec.layers, width, spec.ffn), (1, spec.vocab, width)]
    for times, out, into in linear:
        yield from ((times, rows, out, into), (times, rows, into, out), (times, out, into, rows))
    square = spec.layers * spec.heads * rows // spec.context
    half = (spec.context + 1) // 2
    yield 3 * square, half, spec.context, spec.head_dim  # scores, their gradient, the gradient of values
    yield 3 * square, half, spec.head_dim, spec.context


def ceiling_seconds(spec: ModelSpec, rows: int, precision: str) -> float:
    """CPU seconds of a micro-batch's multiplications, each the best of a few, alone and warm."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    total = 0.0
    for times, m, n, k in products(spec, rows):
        a, b = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
        result = torch.empty(m, n, dtype=dtype)
        best = min(_seconds(a, b, result, max(1, 10**7 // (m * n * k))) for _ in range(5))
        total += times * best
    return total


def _seconds(a: torch.Tensor, b: torch.Tensor, result: torch.Tensor, repeats: int) -> float:
    begin = time.process_time()
    for _ in range(repeats):
        torch.mm(a, b.t(), out=result)
    return (time.process_time() - begin) / repeats


def flop(spec: ModelSpec, tokens: int) -> float:
    """Of a step: what `ceiling_seconds` multiplies."""
    return float(spec.mfu_flop_per_token) * tokens


def rows(name: str, rounds: int) -> Iterator[tuple[str, ...]]:
    """The lines of one shape."""
    spec, batch, micro = shapes()[name]
    generator = torch.Generator().manual_seed(0)
    batches = [
        torch.randint(spec.vocab, (batch, spec.context + 1), generator=generator) for _ in range(rounds + 1)
    ]
    tokens = batch * spec.context
    for precision in ("fp32", "bf16"):
        makers = {"transformers": llama, "nanoGPT's way": nanogpt, "ours": ours}
        found = step_seconds(
            {who: make(spec, precision, "cpu", micro) for who, make in makers.items()}, batches
        )
        alone = ceiling_seconds(spec, micro * spec.context, precision) * batch / micro
        for who, seconds in found.items():
            rate = f"{flop(spec, tokens) / seconds / 1e9:.0f}"
            against = f"{found['transformers'] / seconds:.2f}x"
            yield name, precision, who, f"{tokens / seconds:.0f}", against, rate, f"{alone / seconds:.0%}"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    table = Table(
        "shape", "precision", "trainer", "tokens / CPU s", "against transformers", "GFLOP/s", "of ceiling"
    )
    for name in shapes():
        for line in rows(name, rounds):
            table.add_row(*line)
    load = os.getloadavg()[0]
    table.caption = f"torch {torch.__version__}, one thread; load of the machine {load:.1f}"
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
