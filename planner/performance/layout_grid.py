"""Layouts as columns of numbers, so that ten thousand of them are evaluated at once.

A column holds a value for every layout (or a single number). Of the split into pipeline stages the formulas need only
the blocks of the first rank, of the fullest one, and of the last one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.performance.cost import Architecture, architecture, forward_flop, head_flop
from specs.layout import Layout
from specs.model import ModelSpec

RECOMPUTE = ("none", "selective", "full")
"""Levels of activation recomputation, by the index in `LayoutGrid.recompute`."""


@dataclass(frozen=True)
class LayoutGrid:
    """Columns of layouts."""

    dp: Any
    pp: Any
    interleave: Any
    tp: Any
    sp: Any
    """1 with sequence parallelism, else 0."""
    micro_batch: Any
    """Sequences."""
    micro_batches: Any
    """Of a replica in one step: the steps of gradient accumulation."""
    recompute: Any
    """Index into RECOMPUTE."""
    first: Any
    """Blocks of the first rank of a pipeline."""
    most: Any
    """Blocks of the fullest of its ranks but the last (of the only one, where there is no pipeline)."""
    most_at: Any
    """The first such rank."""
    last: Any
    """Blocks of its last rank."""

    @property
    def recomputes_attention(self) -> Any:
        """1 where attention is recomputed."""
        return self.recompute >= 1

    @property
    def recomputes_block(self) -> Any:
        """1 where whole blocks are recomputed."""
        return self.recompute == 2


@dataclass(frozen=True)
class DeviceRange:
    """The numbers of devices that a layout may use: whole nodes, or devices of a single one."""

    fewest: int
    most: int
    per_node: int = 1

    def allows(self, devices: int) -> bool:
        """Whether a layout may use this number."""
        whole = devices <= self.per_node or devices % self.per_node == 0
        return self.fewest <= devices <= self.most and whole


def rank_blocks(sizes: tuple[int, ...], pp: int) -> tuple[int, int, int, int]:
    """Blocks of the first, fullest, and last rank, and where the fullest is, of virtual stages in order of depth."""
    ranks = [sum(sizes[rank::pp]) for rank in range(pp)]
    inner = ranks[: max(1, pp - 1)]
    return ranks[0], max(inner), inner.index(max(inner)), ranks[-1]


def grid_of(layout: Layout, layers: int, batch_sequences: int) -> LayoutGrid:
    """The columns of one layout."""
    sizes = tuple(len(blocks) for blocks in layout.blocks(layers))
    first, most, most_at, last = rank_blocks(sizes, layout.pp)
    return LayoutGrid(
        dp=layout.dp,
        pp=layout.pp,
        interleave=layout.interleave,
        tp=layout.tp,
        sp=int(layout.sequence_parallel),
        micro_batch=layout.micro_batch_sequences,
        micro_batches=batch_sequences // (layout.dp * layout.micro_batch_sequences),
        recompute=RECOMPUTE.index(layout.recompute),
        first=first,
        most=most,
        most_at=most_at,
        last=last,
    )


def stage_cut(layers: int, stages: int, head_layers: float) -> tuple[int, ...]:
    """Blocks of every virtual stage such that the slowest is fastest; the last stage also has the head.

    `head_layers` is the head's time in units of a block's. Of equally fast cuts the last stage gets the most blocks,
    then the later ones, which keep the activations of fewer micro-batches.
    """
    if stages == 1:
        return (layers,)
    fewest = -(-layers // stages)

    def slowest(last: int) -> float:
        return max(-(-(layers - last) // (stages - 1)), last + head_layers)

    last = min(range(min(fewest, layers - stages + 1), 0, -1), key=slowest)
    each, more = divmod(layers - last, stages - 1)
    return (*(each + (stage >= stages - 1 - more) for stage in range(stages - 1)), last)


def balanced_cut(a: Architecture, pp: int, interleave: int) -> tuple[int, ...] | None:
    """Blocks of every virtual stage; the head counts as the blocks that take as long. None where no such cut exists.

    With interleaving all stages but the last have the same size: unequal ones would wait for each other, which costs
    more than interleaving saves.
    """
    stages = pp * interleave
    if interleave > 1:
        each = -(-a.layers // stages)
        last = a.layers - each * (stages - 1)
        return (*((each,) * (stages - 1)), last) if last >= 1 else None
    head = head_flop(a)
    return stage_cut(a.layers, stages, head / (forward_flop(a, causal=True) - head) * a.layers)


def legal_grid(model: ModelSpec, devices: DeviceRange, batch_sequences: int) -> LayoutGrid | None:
    """The columns of all legal layouts on so many devices, each with its most replicas; None where there is none."""
    columns = [_columns(model, *split, batch_sequences) for split in splits(model, devices, batch_sequences)]
    rows = np.concatenate([np.empty((0, len(fields(LayoutGrid))), dtype=np.int64), *columns])
    return (
        LayoutGrid(**dict(zip((f.name for f in fields(LayoutGrid)), rows.T, strict=True)))
        if len(rows)
        else None
    )


def splits(model: ModelSpec, devices: DeviceRange, batch_sequences: int) -> Iterator[tuple[int, int, int]]:
    """Legal tensor- and pipeline-parallel sizes, each with the most replicas that divide the batch."""
    replicas = divisors(batch_sequences)[::-1]
    for tp in divisors(math.gcd(model.heads, model.kv_heads, model.ffn)):
        for pp in range(1, min(model.layers, devices.most // tp) + 1):
            dp = next((dp for dp in replicas if devices.allows(dp * tp * pp)), None)
            if dp is not None:
                yield tp, pp, dp


def _columns(model: ModelSpec, tp: int, pp: int, dp: int, batch_sequences: int) -> NDArray[np.int64]:
    """Rows, in the order of Grid's fields, of every interleaving, micro-batch and recomputation."""
    a, sp, per_replica = architecture(model), int(tp > 1 and model.context % tp == 0), batch_sequences // dp
    found = []
    for interleave in range(1, model.layers // pp + 1 if pp > 1 else 2):
        sizes = balanced_cut(a, pp, interleave)
        if sizes is None or (interleave > 1 and per_replica % pp):
            continue
        cut = rank_blocks(sizes, pp)
        found += [
            (dp, pp, interleave, tp, sp, size, per_replica // size, recompute, *cut)
            for size in divisors(per_replica if interleave == 1 else per_replica // pp)
            for recompute in range(len(RECOMPUTE))
        ]
    return np.array(found, dtype=np.int64)


def divisors(number: int) -> list[int]:
    """All divisors, smallest first."""
    small = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return sorted({*small, *(number // k for k in small)})
