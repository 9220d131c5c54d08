"""Communication on one axis: the autograd pairs of tensor parallelism, and plain sums. All are the identity at size 1.

    enter      without sequence parallelism: copy forward, all-reduce backward        (Megatron's f, arXiv 1909.08053)
               with it: all-gather of the sequence forward, reduce-scatter backward   (g, arXiv 2205.05198)
    leave      without: all-reduce forward, copy backward; with: reduce-scatter forward, all-gather backward

Activations are (S, B, H), sequence first, so that the sequence is the dimension which contiguous collectives cut.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.mesh import Axis


def enter(x_SBH: Tensor, axis: Axis, sequence_parallel: bool = False) -> Tensor:
    """Activations on their way into a sub-layer whose weights are split over the axis."""
    if axis.size == 1:
        return x_SBH
    pair: Any = _GatherSequence if sequence_parallel else _Copy
    return pair.apply(x_SBH, axis)  # type: ignore[no-any-return]


def leave(x_SBH: Tensor, axis: Axis, sequence_parallel: bool = False) -> Tensor:
    """Partial sums on their way out of a sub-layer whose weights are split over the axis."""
    if axis.size == 1:
        return x_SBH
    pair: Any = _ScatterSequence if sequence_parallel else _Reduce
    return pair.apply(x_SBH, axis)  # type: ignore[no-any-return]


def sum_over(x: Tensor, axis: Axis) -> Tensor:
    """The sum over the axis' ranks, on every rank; the tensor itself at size 1. Not differentiated."""
    if axis.size > 1:
        x = x.clone()
        dist.all_reduce(x, group=axis.group)
    return x


def _gather(x: Tensor, axis: Axis) -> Tensor:
    whole = x.new_empty((axis.size * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(whole, x.contiguous(), group=axis.group)
    return whole


def _scatter(x: Tensor, axis: Axis) -> Tensor:
    part = x.new_empty((x.shape[0] // axis.size, *x.shape[1:]))
    dist.reduce_scatter_tensor(part, x.contiguous(), group=axis.group)
    return part


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return sum_over(grads[0], ctx.axis), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return sum_over(x, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _gather(x, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _scatter(grads[0], ctx.axis), None


class _ScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _scatter(x, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _gather(grads[0], ctx.axis), None
