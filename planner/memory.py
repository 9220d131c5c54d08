"""Bytes of the fullest device of a layout, by what they go to.

A pipeline's rank holds its blocks' weights, the first the embedding and the last the head too. Under 1F1B a rank keeps
the activations of as many micro-batches as there are ranks from it to the end; interleaved, of the passes that
`specs.pipeline.most_alive` counts. The fullest rank is the first one, the first of those with the most blocks, or the
last one: all three are counted, for all layouts of a grid at once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner import cost
from planner.cost import Architecture
from planner.engine import Engine
from planner.grid import Grid

PARTS = ("parameters", "gradients", "optimizer", "activations", "logits", "workspace")
"""What memory goes to."""
MASTER_BYTES = 12
"""fp32 master and two moments (AdamW; DeepSeek LLM, section 2.4)."""
GRADIENT_BYTES = 4
"""Gradients are summed in fp32 (DeepSeek LLM, section 2.4)."""
UNFUSED_LOGIT_BYTES = 10
"""16-bit logits, their fp32 copy and its gradient, as torch's cross-entropy makes them."""
Columns = dict[str, NDArray[np.float64]]


def memory_parts(a: Architecture, engine: Engine, width_bytes: int, grid: Grid) -> Columns:
    """Bytes of the fullest device by part; the parts add up."""
    places = [
        (grid.first, np.zeros_like(grid.first), True, False),
        (grid.most, grid.most_at, False, False),
        (grid.last, grid.pp - 1, False, True),
    ]
    ranks = [_rank(a, engine, width_bytes, grid, *place) for place in places]
    totals = np.array([sum(rank.values()) for rank in ranks])
    fullest = totals.argmax(axis=0)
    return {
        part: np.take_along_axis(np.array([rank[part] for rank in ranks]), fullest[None], 0)[0]
        for part in PARTS
    }


def _rank(
    a: Architecture, engine: Engine, w: int, grid: Grid, blocks: Any, rank: Any, first: bool, last: bool
) -> Columns:
    """Bytes of one rank of a pipeline; without one (pp 1) it has embedding and head."""
    alone = grid.pp == 1
    embedding, head = (first | alone), (last | alone)
    vocab = np.where(embedding, cost.embedding_params(a), 0) + np.where(head, a.vocab * a.width, 0)
    vocab = vocab - np.where(alone, a.vocab * a.width if a.tied else 0, 0)
    params = (blocks * cost.layer_params(a) + vocab) / grid.tp
    rows = grid.micro_batch * a.context
    shards = grid.dp if engine.shards_optimizer else 1
    full = np.broadcast_arrays(
        params * w,
        params * GRADIENT_BYTES,
        params * _state_bytes(w, grid.dp, engine) / shards,
        rows * _activations(a, engine, w, grid, blocks, rank),
        rows * np.where(head, a.vocab / grid.tp * (w if engine.fused_loss else UNFUSED_LOGIT_BYTES), 0),
        rows * _workspace(a, w, grid, rank),
    )
    return {part: np.asarray(column, float) for part, column in zip(PARTS, full, strict=True)}


def _state_bytes(w: int, dp: Any, engine: Engine) -> Any:
    """Bytes of optimizer state per parameter.

    In fp32 on one replica the masters are the parameters. Replicas that share the optimizer have the summed gradient of
    their rows beside it, and their rows rounded to 16 bit (model/zero.py).
    """
    alone = MASTER_BYTES - 4 * (w == 4)
    shared = MASTER_BYTES + (GRADIENT_BYTES + w * (w == 2)) * engine.shards_optimizer
    return np.where(dp == 1, alone, shared)


def alive_passes(pp: Any, rank: Any, micro_batches: Any, interleave: Any) -> Any:
    """`specs.pipeline.most_alive` for columns."""
    warm = np.where(interleave == 1, pp - rank - 1, 2 * (pp - rank - 1) + (interleave - 1) * pp)
    return np.minimum(warm + 1, micro_batches * interleave)


def _activations(a: Architecture, engine: Engine, w: int, grid: Grid, blocks: Any, rank: Any) -> Any:
    """Bytes per token of a micro-batch that are kept for backward, with what one block's replay adds."""
    alive = alive_passes(grid.pp, rank, grid.micro_batches, grid.interleave) / grid.interleave * blocks
    kept = {level: _kept(a, engine, w, grid, level) for level in (0, 1, 2)}
    chosen = np.choose(grid.recompute, [kept[level] for level in (0, 1, 2)])
    return alive * chosen + np.where(grid.recompute > 0, kept[0] - chosen, 0)


def _kept(a: Architecture, engine: Engine, w: int, grid: Grid, recompute: int) -> Any:
    """A block's kept bytes per token at a level of recomputation."""
    if recompute == 2:
        return cost.checkpoint_bytes(a, grid.tp, grid.sp, w)
    scores = int(not engine.flash and recompute == 0)
    kept = cost.kept_bytes(a, grid.tp, grid.sp, w, scores, engine.inner_kept)
    if recompute == 1 and engine.replays_norms:
        return kept - cost.kept_less_bytes(a, grid.tp, grid.sp, w)
    return kept


def _workspace(a: Architecture, w: int, grid: Grid, rank: Any) -> Any:
    """Bytes per token beside what blocks keep: a backward pass in progress, and what comes from and goes to neighbours.

    A block's backward holds its input and that one's gradient, and gradients of the feed-forward's inner tensors; with
    tensor parallelism three gathered tensors more. A rank of a pipeline holds the output of every pass whose backward
    is to come, and its input where the blocks do not keep that anyway; and one of either on its way.
    """
    gathered = np.where(grid.tp > 1, 5, 2) * w * a.width
    inner = w * a.ffn_matrices * a.ffn / grid.tp
    alive = alive_passes(grid.pp, rank, grid.micro_batches, grid.interleave)
    held = alive * np.where(grid.recompute > 0, 1, 2) + 2
    ends = np.where(grid.pp > 1, held, 0) * cost.checkpoint_bytes(a, grid.tp, grid.sp, w)
    return gathered + inner + ends
