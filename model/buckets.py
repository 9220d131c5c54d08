"""ZeRO-1's reduce-scatters and all-gathers of a step, bucket by bucket, overlapped with the passes.

Gradients are reduce-scattered to the ranks that own them: each bucket as soon as the backward pass of a step's last
micro-batch has gone through every module in it (until then gradients accumulate). New parameters are all-gathered from
their owners and waited for when the next forward pass needs them. Together that is the communication of plain data
parallelism, overlapped with arithmetic (ZeRO, arXiv 1910.02054, section 7; MegaScale, arXiv 2402.15627, section 3.2).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.collectives import all_gather_into, all_reduce_async, reduce_scatter_into
from model.mesh import Axis
from model.parameters import LocalParameter, module_of
from model.transformer import Stage
from model.waiting import WAITING

BUCKET_BYTES = 25 * 2**20
"""Size up to which parameters are copied into one bucket (the default of PyTorch's DDP, whose paper, arXiv 2006.15704,
section 5.2, measures it); a larger parameter is a bucket of its own, and is not copied."""


@dataclass(frozen=True)
class Bucket:
    """Consecutive parameters that share a collective: all matrices, or all vectors."""

    parameters: tuple[LocalParameter, ...]
    modules: frozenset[str]
    """The modules that they belong to (see `model.parameters.module_of`)."""
    span: slice
    """Its part of a rank's state."""

    @property
    def matrices(self) -> bool:
        """Not vectors."""
        return self.parameters[0].decays


class GradAndParamBuckets:
    """One rank's buckets and their collectives in flight; the hooks of its stage (`model.transformer.StageHooks`)."""

    def __init__(self, stage: Stage, axis: Axis) -> None:
        self._stage, self._axis = stage, axis
        self._buckets = list(
            _buckets(stage.local_parameters, axis.size, BUCKET_BYTES // stage.gradients.element_size())
        )
        vectors = [local.start for local in stage.local_parameters.values() if not local.decays]
        self._vectors = stage.gradients[min(vectors, default=stage.gradients.numel()) :]
        self._backwards_left: dict[str, int] = {}
        self._reduce_scatters: dict[int, tuple[Any, Tensor]] = {}
        self._all_gathers: dict[int, tuple[Any, Tensor, Tensor]] = {}
        self.owned_gradients = (
            stage.gradients if axis.size == 1 else stage.gradients.new_zeros(owned(stage, axis))
        )
        """This rank's part of the summed gradients, after `reduce_scatter_gradients`."""
        if axis.size > 1:
            stage.hooks = self

    def start_accumulation(self, micro_batches: int) -> None:
        """Gradient accumulation over so many micro-batches: the last one's backward starts the reduce-scatters."""
        modules = {one for bucket in self._buckets for one in bucket.modules}
        self._backwards_left = dict.fromkeys(modules, micro_batches)

    def before_forward(self, module: str) -> None:
        """Wait for the parameters of a module."""
        if not self._all_gathers:
            return
        for number in [n for n in self._all_gathers if module in self._buckets[n].modules]:
            self._finish_all_gather(number)

    def after_backward(self, module: str) -> None:
        """Reduce-scatter the buckets whose gradients are complete with this module's."""
        left = self._backwards_left.get(module, 0) - 1
        self._backwards_left[module] = left
        if left != 0:
            return
        for number, bucket in enumerate(self._buckets):
            if (
                module in bucket.modules
                and bucket.matrices
                and not any(self._backwards_left[one] for one in bucket.modules)
            ):
                self._start_reduce_scatter(number)

    def reduce_scatter_gradients(self) -> None:
        """Sum the gradients over the ranks, each rank its part: start what is left to start, and wait for all."""
        if self._stage.layout.sequence_parallel:  # every rank has seen its shard of the sequence only
            all_reduce_async(self._vectors, self._stage.mesh.tp).wait()
        self._backwards_left = {}
        if self._axis.size == 1:
            return
        for number in range(len(self._buckets)):
            if number not in self._reduce_scatters:
                self._start_reduce_scatter(number)
        with WAITING.on(self._axis.name):
            for work, _ in self._reduce_scatters.values():
                work.wait()
        self._reduce_scatters = {}

    def all_gather_parameters(self, weights: Tensor) -> None:
        """Start the all-gathers of the ranks' new weights; `before_forward` waits for them."""
        if self._axis.size == 1:
            return
        for number in sorted(range(len(self._buckets)), key=lambda n: self._buckets[n].matrices):
            bucket = self._buckets[number]
            mine, flat = weights[bucket.span], self._stage.weights
            if len(bucket.parameters) == 1:
                whole = flat[bucket.parameters[0].start : bucket.parameters[0].stop]
            else:
                whole = mine.new_empty(self._axis.size * mine.numel())
            self._all_gathers[number] = (all_gather_into(whole, mine, self._axis, async_op=True), whole, mine)

    def wait_for_parameters(self) -> None:
        """Wait for every all-gather of parameters."""
        for number in list(self._all_gathers):
            self._finish_all_gather(number)

    def _start_reduce_scatter(self, number: int) -> None:
        bucket = self._buckets[number]
        parts = [self._by_rank(self._stage.gradients, local) for local in bucket.parameters]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        work = reduce_scatter_into(
            self.owned_gradients[bucket.span], whole.view(-1), self._axis, async_op=True
        )
        self._reduce_scatters[number] = (work, whole)

    def _finish_all_gather(self, number: int) -> None:
        bucket = self._buckets[number]
        work, whole, _ = self._all_gathers.pop(number)
        with WAITING.on(self._axis.name):
            work.wait()
        if len(bucket.parameters) == 1:
            return
        each = [(local.stop - local.start) // self._axis.size for local in bucket.parameters]
        parts = whole.view(self._axis.size, -1).split(each, dim=1)
        for local, part in zip(bucket.parameters, parts, strict=True):
            self._by_rank(self._stage.weights, local).copy_(part)

    def _by_rank(self, flat: Tensor, local: LocalParameter) -> Tensor:
        """A parameter's elements as (ranks, elements of each)."""
        return flat[local.start : local.stop].view(self._axis.size, -1)


def owned(stage: Stage, axis: Axis) -> int:
    """Elements of a stage that each rank owns, padding included."""
    return stage.weights.numel() // axis.size


def _buckets(locals_: dict[str, LocalParameter], ranks: int, elements: int) -> Iterator[Bucket]:
    """Consecutive parameters, up to so many elements, that are all matrices or all vectors."""
    held: list[tuple[str, LocalParameter]] = []
    for path, local in locals_.items():
        if held and (local.stop - held[0][1].start > elements or local.decays != held[0][1].decays):
            yield _bucket_of(held, ranks)
            held = []
        held.append((path, local))
    yield _bucket_of(held, ranks)


def _bucket_of(held: list[tuple[str, LocalParameter]], ranks: int) -> Bucket:
    paths, locals_ = zip(*held, strict=True)
    span = slice(locals_[0].start // ranks, locals_[-1].stop // ranks)
    return Bucket(locals_, frozenset(map(module_of, paths)), span)
