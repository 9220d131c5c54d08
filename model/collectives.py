"""Communication on one axis: sums, and a sequence gathered or scattered, each also as something still on its way.

    gather     every rank's stretch of the sequence, on every rank                        (B, s, H) -> (B, S, H)
    scatter    this rank's stretch of the ranks' sum                                      (B, S, H) -> (B, s, H)
    leave      partial sums leave a region whose weights are split, differentiated: all-reduce forward and nothing
               backward (Megatron's g, arXiv 1909.08053); for a split sequence, scatter forward and gather backward
               (arXiv 2205.05198)

All are the identity at size 1. Collectives cut the first dimension; a batch of several sequences is turned for that,
and one sequence, which is what long contexts leave room for, needs no copy.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.mesh import Axis

# torch 2.13 renamed both; 2.11 knows the old names only.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class AsyncTensor:
    """A tensor that may still be on its way. What it is made of stays alive until it is waited for."""

    def __init__(self, work: Any, finish: Callable[[], Tensor]) -> None:
        self._work, self._finish = work, finish

    def wait(self) -> Tensor:
        """The tensor, once it is there."""
        if self._work is not None:
            self._work.wait()
        return self._finish()


def here(x: Tensor) -> AsyncTensor:
    """What need not be waited for."""
    return AsyncTensor(None, lambda: x)


def gather(x_BSH: Tensor, axis: Axis) -> AsyncTensor:
    """Every rank's stretch of the sequence, in rank order."""
    if axis.size == 1:
        return here(x_BSH)
    B, S, H = x_BSH.shape
    part_BSH = x_BSH.contiguous()
    parts = part_BSH.new_empty(axis.size, B, S, H)
    work = _all_gather(parts.view(-1), part_BSH.view(-1), group=axis.group, async_op=True)
    return AsyncTensor(work, lambda: (part_BSH, parts.transpose(0, 1).reshape(B, axis.size * S, H))[1])


def scatter(x_BSH: Tensor, axis: Axis) -> AsyncTensor:
    """This rank's stretch of the sequence of the ranks' sum."""
    if axis.size == 1:
        return here(x_BSH)
    B, S, H = x_BSH.shape
    parts = x_BSH.view(B, axis.size, S // axis.size, H).transpose(0, 1).contiguous()
    mine_BSH = parts.new_empty(parts.shape[1:])
    work = _reduce_scatter(mine_BSH.view(-1), parts.view(-1), group=axis.group, async_op=True)
    return AsyncTensor(work, lambda: (parts, mine_BSH)[1])


def reduce(x: Tensor, axis: Axis) -> AsyncTensor:
    """The ranks' sum, in place."""
    if axis.size == 1:
        return here(x)
    return AsyncTensor(dist.all_reduce(x, group=axis.group, async_op=True), lambda: x)


def leave(x_BSH: Tensor, axis: Axis, sequence_parallel: bool) -> Tensor:
    """Partial sums on their way out of a region whose weights are split over the axis."""
    if axis.size == 1:
        return x_BSH
    return _Leave.apply(x_BSH, axis, sequence_parallel)  # type: ignore[no-untyped-call,no-any-return]


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, sequence_parallel: bool) -> Tensor:
        ctx.axis, ctx.sequence_parallel = axis, sequence_parallel
        return scatter(x, axis).wait() if sequence_parallel else reduce(x.clone(), axis).wait()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return gather(grads[0], ctx.axis).wait() if ctx.sequence_parallel else grads[0], None, None


def sum_over(x: Tensor, axis: Axis) -> Tensor:
    """The sum over the axis' ranks, on every rank; the tensor itself at size 1. Not differentiated."""
    if axis.size > 1:
        x = x.clone()
        dist.all_reduce(x, group=axis.group)
    return x


def every(x: Tensor, axis: Axis) -> Tensor:
    """Every rank's tensor, on every rank: (ranks, *shape). Not differentiated."""
    parts = x.new_empty(axis.size, *x.shape)
    gather_into(parts.view(-1), x.contiguous().view(-1), axis)
    return parts


def gather_into(whole: Tensor, part: Tensor, axis: Axis, async_op: bool = False) -> Any:
    """Every rank's part into `whole`, in rank order, along the first dimension; the work where it is asynchronous."""
    return _all_gather(whole, part, group=axis.group, async_op=async_op)


def scatter_sum(part: Tensor, whole: Tensor, axis: Axis, async_op: bool = False) -> Any:
    """This rank's part of the ranks' sum of `whole`; the work to wait for where it is asynchronous."""
    return _reduce_scatter(part, whole, group=axis.group, async_op=async_op)
