"""One GPU beside its limits: `python -m bench.gpu [ceilings] [loss] [kernels] [steps] [peer] [--shapes 0.3B 1.3B 3B]`.

Without names, every part in this order, each printed as it is measured:

    ceilings   a large bf16 multiplication and a large copy: the rates that everything else is held against
    loss       loss and gradient of a small model in bf16 here, against fp32 on the CPU with the same weights
    kernels    each operation of a step, by each back end, against its floor: the larger of its FLOP over the measured
               multiplication and its bytes over the measured copy
    steps      whole training steps: tokens per second, MFU over the measured rate and over the data sheet, memory
    peer       transformers' Llama under torch.compile, the same tokens

MFU counts causal attention once and the head (specs/model.py). Runs train with deterministic kernels, and so do steps
here; a line without them shows what that costs.

R = B S rows    H width    I inner width of SwiGLU    V vocabulary    P parameters
"""

import argparse
import gc
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.operations import Ceilings, ceilings, operations
from bench.trainers import Step, llama, ours
from model.kernels import Kernels, choose, shape_of
from model.mesh import Mesh
from model.transformer import Stage
from model.zero import AdamW
from runtime.doctor.benchmark import seconds, wall_seconds
from specs.model import ModelSpec
from specs.optim import OptimSpec

CONTEXT = 4096
SHAPES = {
    "0.3B": ModelSpec(layers=24, width=1024, heads=8, kv_heads=8, ffn=2816, vocab=32768, context=CONTEXT),
    "1.3B": ModelSpec(layers=24, width=2048, heads=16, kv_heads=16, ffn=5632, vocab=32768, context=CONTEXT),
    "3B": ModelSpec(layers=28, width=3072, heads=24, kv_heads=24, ffn=8192, vocab=32768, context=CONTEXT),
}
"""Heads of 128, FFN 8/3 of the width in multiples of 256: .31, 1.23 and 3.17 billion parameters in the blocks."""
MICRO_BATCH = {"0.3B": 8, "1.3B": 4, "3B": 1}
"""Sequences that fit beside weights and optimizer in 80 GB without recomputation, at about 27 bytes a row, width and
layer; halved where they do not."""
MICRO_BATCHES = 8
"""Of a step: a GPU of a cluster has as many or more, so that the optimizer weighs as little as it does there."""
CHECKED = ModelSpec(
    layers=4, width=512, heads=4, kv_heads=2, ffn=1408, vocab=8192, context=512, init_std=0.05
)
"""The shape whose loss is compared: small enough for a CPU in fp32; its weights are large enough for sharp logits."""
DATA_SHEET_FLOP_PER_S = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "B200": 2250e12, "A100": 312e12}
"""Dense bf16 with tensor cores, NVIDIA's data sheets (SXM); as in specs/catalog/clusters."""
PARTS = ("ceilings", "loss", "kernels", "steps", "peer")


# Loss and gradient.


def compared(
    spec: ModelSpec, device: str, kernels: Kernels, sequences: int = 2
) -> tuple[float, float, float]:
    """Loss in fp32 on the CPU, loss in bf16 on the device, and its gradient's distance relative to the reference's.

    Both have the weights that bf16 rounded.
    """
    tokens_BT = torch.randint(
        spec.vocab, (sequences, spec.context + 1), generator=torch.Generator().manual_seed(0)
    )
    checked = Stage(spec, precision="bf16", mesh=Mesh(), kernels=kernels, device=device)
    AdamW(checked, Mesh().dp, OptimSpec(steps=2, batch_sequences=1, peak_lr=1e-4, warmup_steps=1)).initialize(
        0
    )
    exact = Stage(spec, precision="fp32", mesh=Mesh(), kernels=choose("torch", "cpu"), device="cpu")
    exact.weights.copy_(checked.weights)
    reference, found = (_loss(stage, tokens_BT) for stage in (exact, checked))
    distance = (checked.gradients.cpu() - exact.gradients).norm() / exact.gradients.norm()
    return reference, found, float(distance)


def _loss(stage: Stage, tokens_BT: Tensor) -> float:
    tokens_BT = tokens_BT.to(stage.weights.device)
    loss = stage.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], tokens_BT[:, 1:].numel())
    loss.backward()
    return float(loss.detach())


LOSS_BOUND, GRADIENT_BOUND = 2.0**-8, 2.0**-4
"""Relative. A rounding to bf16 is off by up to 2^-8. A loss is a mean over tokens, whose roundings average out; a
gradient went through every layer twice, and 16 roundings in sequence a layer and way add up as squares: sqrt(128) 2^-8
is below 2^-4."""


# Whole steps.


@dataclass(frozen=True)
class Measured:
    """A trainer's steps."""

    micro_batch: int
    tokens: int
    step_s: float
    peak_bytes: int


def steps(
    make: Callable[[int], Step], spec: ModelSpec, micro_batch: int, device: str, timed: int = 3
) -> Measured | None:
    """Median of a few steps after one that warms up, at the largest micro-batch that fits; None where none does."""
    while micro_batch:
        try:
            return _steps(make(micro_batch), spec, micro_batch, device, timed)
        except torch.cuda.OutOfMemoryError:
            micro_batch //= 2
        free(device)
    return None


def _steps(step: Step, spec: ModelSpec, micro_batch: int, device: str, timed: int) -> Measured:
    sequences = micro_batch * MICRO_BATCHES
    tokens_BT = torch.randint(spec.vocab, (sequences, spec.context + 1), device=device)
    step(tokens_BT)
    taken = [wall_seconds(partial(step, tokens_BT)) for _ in range(timed)]  # a step ends by reading its loss
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return Measured(micro_batch, sequences * spec.context, statistics.median(taken), peak)


def free(device: str) -> None:
    """Give back what the last trainer held."""
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def mfu(spec: ModelSpec, found: Measured, flop_per_s: float) -> float:
    """Model FLOP of the step over what the device would do in its time."""
    return spec.mfu_flop_per_token * found.tokens / found.step_s / flop_per_s


# Printing.


def say(*cells: object, widths: tuple[int, ...] = (38, 14, 14, 14, 14, 14, 14)) -> None:
    """One line of a table, at once: a run that is cut off has shown what it measured."""
    line = "".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=False))
    print(line.rstrip(), flush=True)


def print_loss(device: str, settings: Sequence[str], spec: ModelSpec = CHECKED) -> bool:
    """Whether loss and gradient of every set of kernels lie within their bounds."""
    say("loss", "fp32, CPU", "bf16, here", "off by", "bound", "gradient off", "bound")
    fine = True
    for setting in settings:
        reference, found, distance = compared(spec, device, choose(setting, device, shape=shape_of(spec, 1)))
        off = abs(found / reference - 1)
        bounds = [f"{bound:.1e}" for bound in (LOSS_BOUND, GRADIENT_BOUND)]
        say(
            setting, f"{reference:.5f}", f"{found:.5f}", f"{off:.1e}", bounds[0], f"{distance:.1e}", bounds[1]
        )
        fine &= off <= LOSS_BOUND and distance <= GRADIENT_BOUND
    say("within the bounds" if fine else "OUTSIDE THE BOUNDS: a mistake, not rounding")
    return fine


def print_kernels(
    device: str, settings: Sequence[str], limits: Ceilings, name: str, spec: ModelSpec, sequences: int
) -> None:
    """Floor and time of every operation, and what share of the time the floor is, for every set of kernels."""
    say(f"{name}, {sequences} x {spec.context} tokens", "floor, ms", *(f"{one}, ms" for one in settings))
    found: dict[str, list[str]] = {}
    for setting in settings:
        kernels = choose(setting, device, shape=shape_of(spec, 1))
        for operation in operations(spec, sequences, kernels, device):
            taken, floor = seconds(operation.run, device), operation.floor_s(limits)
            line = found.setdefault(operation.name, [f"{1e3 * floor:.3f}"])
            line.append(f"{1e3 * taken:.3f} {floor / taken:.0%}")
    for operation_name, cells in found.items():
        say(operation_name, *cells)


def print_steps(device: str, limits: Ceilings, names: list[str], peer: bool) -> None:
    """Whole steps of ours and, if asked for, of the peer; the ratio is to the peer."""
    say("step", "micro-batch", "tokens/s", "MFU, measured", "data sheet", "peak GB", "of the peer")
    for name in names:
        spec, micro_batch = SHAPES[name], MICRO_BATCH[name]
        against = None
        if peer:
            compiled = partial(llama, spec, "bf16", device, compiled=True)
            against = _print_step(
                f"{name} transformers, compiled", compiled, spec, micro_batch, device, limits, None
            )
        for words, deterministic in (("ours", True), ("ours, not deterministic", False)):
            _deterministic(deterministic)
            kernels = choose("auto", device, shape=shape_of(spec, 1), deterministic=deterministic)
            make = partial(ours, spec, "bf16", device, kernels=kernels)
            _print_step(f"{name} {words}", make, spec, micro_batch, device, limits, against)
        _deterministic(False)


def _print_step(
    words: str,
    make: Callable[[int], Step],
    spec: ModelSpec,
    micro_batch: int,
    device: str,
    limits: Ceilings,
    against: float | None,
) -> float | None:
    """Tokens per second, printed with the rest."""
    free(device)
    found = steps(make, spec, micro_batch, device)
    if found is None:
        say(words, "does not fit")
        return None
    rate, sheet = found.tokens / found.step_s, data_sheet()
    cells = [
        f"{mfu(spec, found, limits.flop_per_s):.1%}",
        f"{mfu(spec, found, sheet):.1%}" if sheet else "unknown",
    ]
    say(
        words,
        found.micro_batch,
        f"{rate:.0f}",
        *cells,
        f"{found.peak_bytes / 1e9:.1f}",
        f"{rate / against:.2f}x" if against else "",
    )
    return rate


def settings_here(device: str) -> list[str]:
    """Sets of kernels that run here, torch's first, then the back ends alone, then all together."""
    found = []
    for setting in ("torch", "triton", "apex", "flash-attn", "auto"):
        try:
            choose(setting, device)
        except ValueError as absent:
            print(absent, flush=True)
        else:
            found.append(setting)
    return found


def _deterministic(wanted: bool) -> None:
    """As runtime/train/worker.py makes a run, or not."""
    torch.set_deterministic_debug_mode("error" if wanted else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def data_sheet() -> float | None:
    """The device's bf16 rate as sold, if it is known here."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((rate for model, rate in DATA_SHEET_FLOP_PER_S.items() if model in name), None)


def main(arguments: list[str]) -> int:
    """Print the parts asked for; 1 where a loss is outside of its bounds, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all by default")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.gpu measures a CUDA device, and there is none", file=sys.stderr)
        return 2
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before the first multiplication; as in runs
    parts, device = asked.parts or list(PARTS), "cuda"
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, words in choose("auto", device).describe().items():
        say(name, words, widths=(20, 80))
    limits = ceilings(device)
    free(device)
    say("ceilings", f"{limits.flop_per_s / 1e12:.0f} TFLOP/s", f"{limits.bytes_per_s / 1e12:.2f} TB/s")
    settings = settings_here(device)
    fine = print_loss(device, settings) if "loss" in parts else True
    if "kernels" in parts:
        for name in asked.shapes:
            print_kernels(device, settings, limits, name, SHAPES[name], MICRO_BATCH[name])
            free(device)
    if "steps" in parts or "peer" in parts:
        print_steps(device, limits, asked.shapes, "peer" in parts)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
