"""The memory of our Triton kernels without Triton, for rehearsals of GPU runs on machines without one.

Each function allocates what the function of the same name in model/kernels/triton_ops.py allocates, and computes
nothing. A test compares their memory.

R rows    H width    V this rank's part of the vocabulary
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from model.kernels import Kernels
from model.kernels.fused_attention import fused_attention
from model.kernels.interfaces import CrossEntropy, ForwardBackward, Measured, NormKernel, Positions
from model.kernels.torch_ops import core_attention

_NORM_PROGRAMS = 4 * 132
"""Rows of partial sums of a norm's gradient: four programs on each processor of an H100 (its data sheet: 132)."""


def with_triton_shapes(kernels: Kernels) -> Kernels:
    """The same kernels, but with the memory of Triton for the operations that `auto` takes from Triton."""
    triton = "shapes of our Triton kernels"
    replaced = dict.fromkeys(("attention", "norm", "gate", "cross_entropy"), triton)
    return replace(
        kernels,
        attention=fused_attention(_rotate, core_attention),
        norm=NormKernel(norm_forward, norm_backward),
        gate=ForwardBackward(gate_forward, gate_backward),
        cross_entropy=CrossEntropy(0, measure, _differentiate),
        chosen=tuple(sorted((kernels.describe() | replaced).items())),
    )


def norm_forward(x: Tensor, delta: Tensor | None, gain: Tensor, eps: float) -> tuple[Tensor, Tensor, Any]:
    """Keeps the sum, and one number per row."""
    total = x if delta is None else torch.empty_like(x)
    return total, torch.empty_like(x), (total, x.new_empty(len(x), dtype=torch.float32))


def norm_backward(dy: Tensor, ds: Tensor | None, saved: Any, gain: Tensor, gain_gradient: Tensor) -> Tensor:
    """Allocates the gradient, and rows of partial sums for the gain's gradient."""
    partial = dy.new_empty(min(len(dy), _NORM_PROGRAMS), dy.shape[1], dtype=torch.float32)
    gain_gradient.add_(partial.sum(0))
    return torch.empty_like(dy)


def gate_forward(projected: Tensor) -> tuple[Tensor, Any]:
    """Keeps the projection only."""
    return projected.new_empty(len(projected), projected.shape[1] // 2), projected


def gate_backward(dinner: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
    """Allocates the projection's gradient, and recomputes the inner activations."""
    return torch.empty_like(saved), torch.empty_like(dinner)


def measure(logits_RV: Tensor, column_R: Tensor) -> Measured:
    """Allocates three numbers per row; the logits are not copied."""
    peak, total, target_logit = (
        logits_RV.new_empty(len(logits_RV), 1, dtype=torch.float32) for _ in range(3)
    )
    return Measured(peak, total, target_logit, None)


def _differentiate(
    logits_RV: Tensor, column_R: Tensor, found: Measured, scale_R1: Tensor, share: float
) -> None:
    """The gradient overwrites the logits."""


def _rotate(x_BSNK: Tensor, at: Positions, sign: int, out_BSNK: Tensor) -> None:
    """Queries and keys are rotated in place."""
