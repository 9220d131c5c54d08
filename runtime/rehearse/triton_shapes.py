"""What our Triton kernels make and keep, on shapes alone: for rehearsals of runs on GPUs, where Triton itself is not.

Each stands for the function of the same name in model/kernels/triton_ops.py, allocates what that allocates, and
computes nothing. A test compares what they leave behind.

R rows    H width    V this rank's part of the vocabulary
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from model.kernels import Kernels
from model.kernels.fused_attention import fused_attention
from model.kernels.interfaces import CrossEntropy, Gate, Measured, NormKernel, Positions
from model.kernels.torch_ops import mix

_NORM_PROGRAMS = 4 * 132
"""Rows of partial sums of a norm's gradient: four programs on each processor of an H100 (its data sheet: 132)."""


def as_on_gpu(kernels: Kernels) -> Kernels:
    """The same kernels, those operations that `auto` takes from Triton as Triton leaves memory."""
    triton = "shapes of our Triton kernels"
    said = dict.fromkeys(("attention", "norm", "gate", "cross_entropy"), triton)
    return replace(
        kernels,
        attention=fused_attention(_rotate, mix),
        norm=NormKernel(norm_forward, norm_backward),
        gate=Gate(gate_forward, gate_backward),
        cross_entropy=CrossEntropy(0, measure, _differentiate),
        chosen=tuple(sorted((kernels.describe() | said).items())),
    )


def norm_forward(x: Tensor, delta: Tensor | None, gain: Tensor, eps: float) -> tuple[Tensor, Tensor, Any]:
    """Keeps the sum and a number a row."""
    total = x if delta is None else torch.empty_like(x)
    return total, torch.empty_like(x), (total, x.new_empty(len(x), dtype=torch.float32))


def norm_backward(dy: Tensor, ds: Tensor | None, kept: Any, gain: Tensor, gain_gradient: Tensor) -> Tensor:
    """Makes the gradient, and rows of partial sums for the gain's."""
    partial = dy.new_empty(min(len(dy), _NORM_PROGRAMS), dy.shape[1], dtype=torch.float32)
    gain_gradient.add_(partial.sum(0))
    return torch.empty_like(dy)


def gate_forward(projected: Tensor) -> tuple[Tensor, Any]:
    """Keeps the projection only."""
    return projected.new_empty(len(projected), projected.shape[1] // 2), projected


def gate_backward(dinner: Tensor, kept: Any) -> tuple[Tensor, Tensor]:
    """Makes the projection's gradient, and the inner activations once more."""
    return torch.empty_like(kept), torch.empty_like(dinner)


def measure(logits_RV: Tensor, column_R: Tensor) -> Measured:
    """Three numbers a row; the logits stay as they are."""
    peak, total, wanted = (logits_RV.new_empty(len(logits_RV), 1, dtype=torch.float32) for _ in range(3))
    return Measured(peak, total, wanted, None)


def _differentiate(
    logits_RV: Tensor, column_R: Tensor, found: Measured, scale_R1: Tensor, share: float
) -> None:
    """The gradient takes the logits' place."""


def _rotate(x_BSNK: Tensor, at: Positions, sign: int, out_BSNK: Tensor) -> None:
    """Queries and keys turn where they lie."""
