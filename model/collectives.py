"""Collectives on one axis: all-reduce, all-gather, reduce-scatter; most may be asynchronous.

    gather_from_sp_region           all-gather of the ranks' shards of the sequence      (B, s, H) -> (B, S, H)
    reduce_scatter_to_sp_region     this rank's shard of the ranks' sum                  (B, S, H) -> (B, s, H)
    reduce_from_tp_region           the sum of partial results of tensor-parallel ranks, differentiable: all-reduce
                                    forward and the identity backward (Megatron's g, arXiv 1909.08053); with sequence
                                    parallelism reduce-scatter forward and all-gather backward (arXiv 2205.05198)

All are the identity at size 1. torch's collectives cut the first dimension: a batch of several sequences is transposed
for that, and one sequence, which is what long contexts leave room for, needs no copy.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.mesh import Axis
from model.waiting import WAITING

# torch 2.13 renamed both; 2.11 knows the old names only.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class AsyncTensor:
    """Async result of a collective. Its inputs stay alive until `wait()` has returned."""

    def __init__(self, work: Any, axis: Axis, finish: Callable[[], Tensor]) -> None:
        self._work, self._axis, self._finish = work, axis, finish

    def wait(self) -> Tensor:
        """Wait for the collective; the tensor."""
        if self._work is not None:
            with WAITING.on(self._axis.name):
                self._work.wait()
        return self._finish()


def ready(x: Tensor) -> AsyncTensor:
    """A tensor that is there already."""
    return AsyncTensor(None, Axis(), lambda: x)


def gather_from_sp_region(x_BSH: Tensor, axis: Axis) -> AsyncTensor:
    """All-gather of the sequence: every rank's shard, in rank order."""
    if axis.size == 1:
        return ready(x_BSH)
    B, S, H = x_BSH.shape
    part_BSH = x_BSH.contiguous()
    parts = part_BSH.new_empty(axis.size, B, S, H)
    work = _all_gather(parts.view(-1), part_BSH.view(-1), group=axis.group, async_op=True)
    return AsyncTensor(work, axis, lambda: (part_BSH, parts.transpose(0, 1).reshape(B, axis.size * S, H))[1])


def reduce_scatter_to_sp_region(x_BSH: Tensor, axis: Axis) -> AsyncTensor:
    """Reduce-scatter of the sequence: this rank's shard of the ranks' sum."""
    if axis.size == 1:
        return ready(x_BSH)
    B, S, H = x_BSH.shape
    parts = x_BSH.view(B, axis.size, S // axis.size, H).transpose(0, 1).contiguous()
    mine_BSH = parts.new_empty(parts.shape[1:])
    work = _reduce_scatter(mine_BSH.view(-1), parts.view(-1), group=axis.group, async_op=True)
    return AsyncTensor(work, axis, lambda: (parts, mine_BSH)[1])


def all_reduce_async(x: Tensor, axis: Axis) -> AsyncTensor:
    """The ranks' sum, in place, asynchronous."""
    if axis.size == 1:
        return ready(x)
    return AsyncTensor(dist.all_reduce(x, group=axis.group, async_op=True), axis, lambda: x)


def reduce_from_tp_region(x_BSH: Tensor, axis: Axis, sequence_parallel: bool) -> Tensor:
    """The ranks' sum of partial results, where weights are split over the axis. With sequence parallelism its shard."""
    if axis.size == 1:
        return x_BSH
    return _ReduceFromTpRegion.apply(x_BSH, axis, sequence_parallel)  # type: ignore[no-untyped-call,no-any-return]


class _ReduceFromTpRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, sequence_parallel: bool) -> Tensor:
        ctx.axis, ctx.sequence_parallel = axis, sequence_parallel
        return (
            reduce_scatter_to_sp_region(x, axis).wait()
            if sequence_parallel
            else all_reduce_async(x.clone(), axis).wait()
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return (
            gather_from_sp_region(grads[0], ctx.axis).wait() if ctx.sequence_parallel else grads[0],
            None,
            None,
        )


def all_reduce(x: Tensor, axis: Axis) -> Tensor:
    """The ranks' sum, on every rank; the tensor itself at size 1. Not differentiable."""
    if axis.size > 1:
        x = x.clone()
        with WAITING.on(axis.name):
            dist.all_reduce(x, group=axis.group)
    return x


def all_gather(x: Tensor, axis: Axis) -> Tensor:
    """Every rank's tensor, on every rank: (ranks, *shape). Not differentiable."""
    parts = x.new_empty(axis.size, *x.shape)
    all_gather_into(parts.view(-1), x.contiguous().view(-1), axis)
    return parts


def all_gather_into(whole: Tensor, part: Tensor, axis: Axis, async_op: bool = False) -> Any:
    """Every rank's part into `whole`, in rank order, along the first dimension; an async handle with `async_op`."""
    if async_op:
        return _all_gather(whole, part, group=axis.group, async_op=True)
    with WAITING.on(axis.name):
        return _all_gather(whole, part, group=axis.group)


def reduce_scatter_into(part: Tensor, whole: Tensor, axis: Axis, async_op: bool = False) -> Any:
    """This rank's part of the ranks' sum of `whole`; an async handle with `async_op`."""
    return _reduce_scatter(part, whole, group=axis.group, async_op=async_op)
