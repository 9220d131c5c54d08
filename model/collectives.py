"""Communication on one axis: the autograd pairs of tensor parallelism, and plain sums. All are the identity at size 1.

    enter      without sequence parallelism: copy forward, all-reduce backward        (Megatron's f, arXiv 1909.08053)
               with it: all-gather of the sequence forward, reduce-scatter backward   (g, arXiv 2205.05198)
    leave      without: all-reduce forward, copy backward; with: reduce-scatter forward, all-gather backward

Activations are (B, S, H). Collectives cut the first dimension, so the sequence is moved there and back: free of copies
for one sequence, which is what long contexts leave room for.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.mesh import Axis

# torch 2.13 renamed both; 2.11 knows the old names only.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def enter(x_BSH: Tensor, axis: Axis, sequence_parallel: bool = False) -> Tensor:
    """Activations on their way into a sub-layer whose weights are split over the axis."""
    if axis.size == 1:
        return x_BSH
    pair: Any = _GatherSequence if sequence_parallel else _Copy
    return pair.apply(x_BSH, axis)  # type: ignore[no-any-return]


def leave(x_BSH: Tensor, axis: Axis, sequence_parallel: bool = False) -> Tensor:
    """Partial sums on their way out of a sub-layer whose weights are split over the axis."""
    if axis.size == 1:
        return x_BSH
    pair: Any = _ScatterSequence if sequence_parallel else _Reduce
    return pair.apply(x_BSH, axis)  # type: ignore[no-any-return]


def sum_over(x: Tensor, axis: Axis) -> Tensor:
    """The sum over the axis' ranks, on every rank; the tensor itself at size 1. Not differentiated."""
    if axis.size > 1:
        x = x.clone()
        dist.all_reduce(x, group=axis.group)
    return x


def max_over(x: Tensor, axis: Axis) -> Tensor:
    """The elementwise maximum over the axis' ranks, on every rank; the tensor itself at size 1. Not differentiated."""
    if axis.size > 1:
        x = x.clone()
        dist.all_reduce(x, dist.ReduceOp.MAX, group=axis.group)
    return x


def gather_into(whole: Tensor, part: Tensor, axis: Axis) -> None:
    """Every rank's part into `whole`, in rank order, along the first dimension."""
    _all_gather(whole, part, group=axis.group)


def scatter_sum(part: Tensor, whole: Tensor, axis: Axis, async_op: bool = False) -> Any:
    """This rank's part of the ranks' sum of `whole`; the work to wait for where it is asynchronous."""
    return _reduce_scatter(part, whole, group=axis.group, async_op=async_op)


def _gather(x_BSH: Tensor, axis: Axis) -> Tensor:
    """Every rank's part of the sequence, in rank order."""
    part_SBH = x_BSH.transpose(0, 1).contiguous()
    whole_SBH = part_SBH.new_empty((axis.size * part_SBH.shape[0], *part_SBH.shape[1:]))
    gather_into(whole_SBH, part_SBH, axis)
    return whole_SBH.transpose(0, 1).contiguous()


def _scatter(x_BSH: Tensor, axis: Axis) -> Tensor:
    """This rank's part of the sequence of the ranks' sum."""
    whole_SBH = x_BSH.transpose(0, 1).contiguous()
    part_SBH = whole_SBH.new_empty((whole_SBH.shape[0] // axis.size, *whole_SBH.shape[1:]))
    scatter_sum(part_SBH, whole_SBH, axis)
    return part_SBH.transpose(0, 1).contiguous()


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
