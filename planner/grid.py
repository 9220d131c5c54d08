"""Layouts as columns of numbers, so that ten thousand of them are judged in one stroke of arithmetic.

A column holds a value for every layout (or a single number). Stage cuts enter as what the formulas need of them: the
blocks of the first rank, of the fullest one, and of the last one of a pipeline.
"""

from dataclasses import dataclass
from typing import Any

from specs.layout import Layout

RECOMPUTE = ("none", "selective", "full")
"""How `Grid.recompute` counts."""


@dataclass(frozen=True)
class Grid:
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
    """Of a replica in one step."""
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
    def replays_attention(self) -> Any:
        """1 where attention is computed again."""
        return self.recompute >= 1

    @property
    def replays_all(self) -> Any:
        """1 where the whole block is computed again."""
        return self.recompute == 2


def rank_blocks(sizes: tuple[int, ...], pp: int) -> tuple[int, int, int, int]:
    """Blocks of the first, fullest, and last rank, and where the fullest is, of virtual stages in order of depth."""
    ranks = [sum(sizes[rank::pp]) for rank in range(pp)]
    inner = ranks[: max(1, pp - 1)]
    return ranks[0], max(inner), inner.index(max(inner)), ranks[-1]


def grid_of(layout: Layout, layers: int, batch_sequences: int) -> Grid:
    """The columns of one layout."""
    sizes = tuple(len(blocks) for blocks in layout.blocks(layers))
    first, most, most_at, last = rank_blocks(sizes, layout.pp)
    return Grid(
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
    """Blocks of every virtual stage such that the slowest is fastest, the last one having the head beside its blocks.

    `head_layers` is the head's time in units of a block's. Of equally fast cuts the last stage gets the most blocks,
    and of the others the later ones: they keep fewer micro-batches.
    """
    if stages == 1:
        return (layers,)
    fewest = -(-layers // stages)

    def slowest(last: int) -> float:
        return max(-(-(layers - last) // (stages - 1)), last + head_layers)

    last = min(range(min(fewest, layers - stages + 1), 0, -1), key=slowest)
    each, more = divmod(layers - last, stages - 1)
    return (*(each + (stage >= stages - 1 - more) for stage in range(stages - 1)), last)
