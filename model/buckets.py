"""What data-parallel ranks exchange in a step, bucket by bucket, behind the passes that make it and use it.

Gradients go to the ranks that own them (reduce-scatter), each bucket as soon as the backward pass of a step's last
micro-batch has gone through all that is in it. New parameters come from their owners (all-gather) and are waited for
when the next forward pass gets to them. With both, a step's communication is that of plain data parallelism, and hides
behind arithmetic (ZeRO, arXiv 1910.02054, section 7; MegaScale, arXiv 2402.15627, section 3.2).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.collectives import gather_into, reduce, scatter_sum
from model.mesh import Axis
from model.parameters import Local, owner
from model.transformer import Stage

BUCKET_BYTES = 25 * 2**20
"""Parameters that travel together are copied side by side up to this size (the default of PyTorch's DDP, whose paper,
arXiv 2006.15704, section 5.2, measures it); a larger one travels alone, from where it lies."""


@dataclass(frozen=True)
class Bucket:
    """Consecutive parameters that travel together: all matrices, or all vectors."""

    locals: tuple[Local, ...]
    owners: frozenset[str]
    """The parts of the stage that they belong to (see `model.parameters.owner`)."""
    span: slice
    """Where its part lies in a rank's state."""

    @property
    def matrices(self) -> bool:
        """Not vectors."""
        return self.locals[0].decays


class Exchange:
    """One rank's buckets, and where they are. It watches its stage's passes (see `model.transformer.Watch`)."""

    def __init__(self, stage: Stage, axis: Axis) -> None:
        self._stage, self._axis = stage, axis
        self._buckets = list(
            _buckets(stage.locals, axis.size, BUCKET_BYTES // stage.gradients.element_size())
        )
        vectors = [local.start for local in stage.locals.values() if not local.decays]
        self._vectors = stage.gradients[min(vectors, default=stage.gradients.numel()) :]
        self._passes: dict[str, int] = {}
        self._leaving: dict[int, tuple[Any, Tensor]] = {}
        self._coming: dict[int, tuple[Any, Tensor, Tensor]] = {}
        self.mine = stage.gradients if axis.size == 1 else stage.gradients.new_zeros(owned(stage, axis))
        """This rank's part of the summed gradients, after `reduce`."""
        if axis.size > 1:
            stage.watch = self

    def expect(self, micro_batches: int) -> None:
        """Passes of so many micro-batches will add to the gradients; a bucket leaves with the last of them."""
        owners = {one for bucket in self._buckets for one in bucket.owners}
        self._passes = dict.fromkeys(owners, micro_batches)

    def needed(self, owner: str) -> None:
        """Wait for the parameters of a part of the stage."""
        if not self._coming:
            return
        for number in [n for n in self._coming if owner in self._buckets[n].owners]:
            self._arrive(number)

    def spent(self, owner: str) -> None:
        """A backward pass is through with a part of the stage."""
        left = self._passes.get(owner, 0) - 1
        self._passes[owner] = left
        if left != 0:
            return
        for number, bucket in enumerate(self._buckets):
            if (
                owner in bucket.owners
                and bucket.matrices
                and not any(self._passes[one] for one in bucket.owners)
            ):
                self._leave(number)

    def reduce(self) -> None:
        """Sum the gradients over the ranks, each its part; what has not left yet leaves now."""
        if self._stage.layout.sequence_parallel:  # every rank has seen its stretch of the sequence only
            reduce(self._vectors, self._stage.mesh.tp).wait()
        self._passes = {}
        if self._axis.size == 1:
            return
        for number in range(len(self._buckets)):
            if number not in self._leaving:
                self._leave(number)
        for work, _ in self._leaving.values():
            work.wait()
        self._leaving = {}

    def publish(self, weights: Tensor) -> None:
        """Send this rank's part of the weights to all, and theirs here; `needed` waits for them."""
        if self._axis.size == 1:
            return
        for number in sorted(range(len(self._buckets)), key=lambda n: self._buckets[n].matrices):
            bucket = self._buckets[number]
            mine, flat = weights[bucket.span], self._stage.weights
            if len(bucket.locals) == 1:
                whole = flat[bucket.locals[0].start : bucket.locals[0].stop]
            else:
                whole = mine.new_empty(self._axis.size * mine.numel())
            self._coming[number] = (gather_into(whole, mine, self._axis, async_op=True), whole, mine)

    def settle(self) -> None:
        """Wait for all parameters."""
        for number in list(self._coming):
            self._arrive(number)

    def _leave(self, number: int) -> None:
        bucket = self._buckets[number]
        parts = [self._by_rank(self._stage.gradients, local) for local in bucket.locals]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        work = scatter_sum(self.mine[bucket.span], whole.view(-1), self._axis, async_op=True)
        self._leaving[number] = (work, whole)

    def _arrive(self, number: int) -> None:
        bucket = self._buckets[number]
        work, whole, _ = self._coming.pop(number)
        work.wait()
        if len(bucket.locals) == 1:
            return
        each = [(local.stop - local.start) // self._axis.size for local in bucket.locals]
        parts = whole.view(self._axis.size, -1).split(each, dim=1)
        for local, part in zip(bucket.locals, parts, strict=True):
            self._by_rank(self._stage.weights, local).copy_(part)

    def _by_rank(self, flat: Tensor, local: Local) -> Tensor:
        """A parameter's elements as (ranks, elements of each)."""
        return flat[local.start : local.stop].view(self._axis.size, -1)


def owned(stage: Stage, axis: Axis) -> int:
    """Elements of a stage that each rank owns, padding included."""
    return stage.weights.numel() // axis.size


def _buckets(locals_: dict[str, Local], ranks: int, elements: int) -> Iterator[Bucket]:
    """Consecutive parameters, up to so many elements, that are all matrices or all vectors."""
    held: list[tuple[str, Local]] = []
    for path, local in locals_.items():
        if held and (local.stop - held[0][1].start > elements or local.decays != held[0][1].decays):
            yield _bucket(held, ranks)
            held = []
        held.append((path, local))
    yield _bucket(held, ranks)


def _bucket(held: list[tuple[str, Local]], ranks: int) -> Bucket:
    paths, locals_ = zip(*held, strict=True)
    span = slice(locals_[0].start // ranks, locals_[-1].stop // ranks)
    return Bucket(locals_, frozenset(map(owner, paths)), span)
