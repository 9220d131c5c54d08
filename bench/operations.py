"""The operations of a training step, one by one: how long each takes, and the least that it has to do.

The floor of an operation is the larger of two times: its FLOP at the rate of a large multiplication, and its bytes at
the rate of a large copy, each input read once and each result written once. Both rates are measured on the device.

R = B S rows    H width    V vocabulary
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.kernels import Heads, Kernels, positions
from runtime.doctor.benchmark import copy_bytes_per_s, multiply_s
from specs.model import ModelSpec

Draw = Callable[..., Tensor]
"""Random bf16 numbers of a shape, on the device."""


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches on work that cannot be better arranged."""

    flop_per_s: float
    bytes_per_s: float


def ceilings(device: str, size: int = 8192, copied_bytes: int = 2**31) -> Ceilings:
    """A multiplication of random bf16 squares; a copy, bytes read and written counted."""
    multiplied_s = multiply_s(device, torch.bfloat16, size, size, repeats=20)
    return Ceilings(2 * size**3 / multiplied_s, copy_bytes_per_s(device, copied_bytes))


@dataclass(frozen=True)
class Operation:
    """One operation of a step at its size, and the least that it has to do."""

    name: str
    run: Callable[[], Any]
    flop: float
    moved_bytes: float

    def floor_s(self, limits: Ceilings) -> float:
        """No arrangement is faster: all FLOP at the measured rate, or all bytes at the measured bandwidth."""
        return max(self.flop / limits.flop_per_s, self.moved_bytes / limits.bytes_per_s)


def operations(spec: ModelSpec, sequences: int, kernels: Kernels, device: str) -> Iterator[Operation]:
    """Of one micro-batch, each once: a block's, the head's, the optimizer's for one block's weights. One at a time."""
    draw = partial(torch.randn, device=device, dtype=torch.bfloat16)
    rows = sequences * spec.context
    yield from _elementwise(spec, rows, kernels, draw)
    yield from _attention(spec, sequences, kernels, draw)
    for name, out, into in (
        ("qkv", spec.width + 2 * spec.kv_heads * spec.head_dim, spec.width),
        ("gate_up", 2 * spec.ffn, spec.width),
        ("head", spec.vocab, spec.width),
    ):
        yield from _linear(name, rows, out, into, kernels, draw)
    yield from _cross_entropy(spec, rows, kernels, draw)
    yield _adamw(spec.block_params // spec.layers, kernels, device)


def _elementwise(spec: ModelSpec, rows: int, kernels: Kernels, draw: Draw) -> Iterator[Operation]:
    x, delta, dy, ds = (draw(rows, spec.width) for _ in range(4))
    gain = draw(spec.width)
    summed = torch.zeros_like(gain, dtype=torch.float32)
    forward = partial(kernels.norm.forward, x, delta, gain, spec.norm_eps)
    kept = forward()[2]
    yield Operation("norm, forward", forward, 0, 4 * x.nbytes)
    backward = partial(kernels.norm.backward, dy, ds, kept, gain, summed)
    yield Operation("norm, backward", backward, 0, 4 * x.nbytes)
    projected, dinner = draw(rows, 2 * spec.ffn), draw(rows, spec.ffn)
    _, within = kernels.gate.forward(projected)
    yield Operation("gate, forward", partial(kernels.gate.forward, projected), 0, 3 * dinner.nbytes)
    yield Operation("gate, backward", partial(kernels.gate.backward, dinner, within), 0, 6 * dinner.nbytes)


def _attention(spec: ModelSpec, sequences: int, kernels: Kernels, draw: Draw) -> Iterator[Operation]:
    """Positions included. Backward multiplies five times where forward does twice, as it makes the scores again."""
    heads = Heads(sequences, spec.context, spec.heads, spec.kv_heads, spec.head_dim)
    rows, mixed = sequences * spec.context, spec.heads * spec.head_dim
    qkv = draw(rows, mixed + 2 * spec.kv_heads * spec.head_dim)
    do = draw(rows, mixed)
    at = positions(spec.head_dim, spec.context, spec.rope_theta, qkv.dtype, qkv.device.type)
    product = 2 * rows * mixed * spec.context / 2
    forward = partial(kernels.attention.forward, qkv, heads, at)
    yield Operation("attention, forward", forward, 2 * product, 2 * qkv.nbytes)

    def backward() -> Tensor:  # its graph is spent each time
        return kernels.attention.backward(do, forward()[1], heads, at)

    yield Operation("attention, both", backward, 7 * product, 4 * qkv.nbytes)


def _linear(name: str, rows: int, out: int, into: int, kernels: Kernels, draw: Draw) -> Iterator[Operation]:
    x, dy, weight = draw(rows, into), draw(rows, out), draw(out, into)
    gradient = torch.zeros_like(weight, dtype=torch.float32)
    flop, moved = 2.0 * rows * out * into, x.nbytes + dy.nbytes + weight.nbytes
    yield Operation(f"{name}, forward", partial(kernels.linear, x, weight), flop, moved)
    yield Operation(f"{name}, input's gradient", partial(torch.mm, dy, weight), flop, moved)
    more = moved - weight.nbytes + 2 * gradient.nbytes
    yield Operation(f"{name}, weight's gradient", partial(kernels.accumulate, gradient, dy, x), flop, more)


def _cross_entropy(spec: ModelSpec, rows: int, kernels: Kernels, draw: Draw) -> Iterator[Operation]:
    """Over and over on the same logits: what they become is of no matter to the time."""
    logits = draw(rows, spec.vocab)
    column = torch.randint(spec.vocab, (rows,), device=logits.device)
    kernel = kernels.cross_entropy
    at_once = max(1, kernel.chunk_logits // spec.vocab) if kernel.chunk_logits else rows

    def both() -> None:
        for part, wanted in zip(logits.split(at_once), column.split(at_once), strict=True):
            found = kernel.measure(part, wanted)
            kernel.differentiate(part, wanted, found, 1 / (found.total * rows), 1 / rows)

    yield Operation("cross-entropy, both", both, 0, 3 * logits.nbytes)


def _adamw(params: int, kernels: Kernels, device: str) -> Operation:
    weights, gradients, exp_avg, exp_avg_sq = torch.rand(4, params, device=device)
    rounded = torch.empty(params, device=device, dtype=torch.bfloat16)
    state = (weights, gradients, exp_avg, exp_avg_sq, rounded)
    settings = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "eps": 1e-8, "grad_scale": 1.0}
    update = partial(kernels.adamw, *state, step=10, **settings)  # type: ignore[arg-type]
    return Operation("adamw, a block's weights", update, 0, (16 + 12 + 2) * params)
