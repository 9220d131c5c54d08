"""Communication volume of a step: bytes that a rank of each pipeline stage sends, by collective (all-reduce,
all-gather, reduce-scatter, send, receive) and axis.

The counts are those of the first tensor-parallel rank; if the vocabulary is not divisible, those of the other ranks
differ by a row. `isoplan rehearse` counts the same with the engine's own code.
"""

import math
from collections import Counter
from typing import Any

from planner.performance import cost
from planner.performance.cost import Architecture
from planner.performance.engine_features import Engine
from specs.layout import Layout

LOSS_FLOATS_PER_TOKEN = 3
"""fp32 numbers per token that vocabulary-parallel ranks all-gather: maximum, sum and target logit (model/loss.py)."""
NORM_BYTES = 8
"""A parameter's square in the gradient's norm, summed in fp64 (model/zero.py)."""


def stage_traffic(
    a: Architecture, engine: Engine, w: int, layout: Layout, batch_sequences: int
) -> tuple[dict[str, float], ...]:
    """Bytes that a rank of each stage sends in a step, by '<collective> <axis>'; of 'receive pp', that it receives."""
    micro_batches = batch_sequences // (layout.dp * layout.micro_batch_sequences)
    return tuple(_one_stage(a, engine, w, layout, micro_batches, stage) for stage in range(layout.pp))


def _one_stage(
    a: Architecture, engine: Engine, w: int, layout: Layout, micro_batches: int, stage: int
) -> dict[str, float]:
    blocks = sum(len(chunk) for chunk in layout.blocks(a.layers)[stage :: layout.pp])
    first, last = stage == 0, stage == layout.pp - 1
    vectors = (2 * blocks + last) * _padded(a.width, layout.dp)
    passes = _tensor_parallel(a, w, layout, blocks, first, last) | _pipeline(a, w, layout, first, last)
    sent = Counter({kind: micro_batches * size for kind, size in passes.items()})
    if layout.sequence_parallel:
        sent["all_reduce tp"] += 2 * cost.gather_bytes(vectors * engine.reduce_bytes, layout.tp)
    if layout.dp > 1:
        params = vectors + _matrices(a, layout, blocks, first, last)
        sent["reduce_scatter dp"] += cost.gather_bytes(params * engine.reduce_bytes, layout.dp)
        sent["all_gather dp"] += cost.gather_bytes(params * w, layout.dp)
    if layout.devices > 1:
        squares = NORM_BYTES * (cost.BLOCK_PARAMETERS * a.layers + 3)  # embedding, last norm and head too
        sent[f"all_reduce {_world_axis(layout)}"] += 2 * cost.gather_bytes(squares, layout.devices)
    return {kind: float(sent[kind]) for kind in sorted(sent)}


def _tensor_parallel(
    a: Architecture, w: int, layout: Layout, blocks: int, first: bool, last: bool
) -> dict[str, Any]:
    """Of one micro-batch: the blocks, the embedding and its gradient, the head's input, its gradient and the loss."""
    if layout.tp == 1:
        return {}
    rows, tp, recomputes = layout.micro_batch_sequences * a.context, layout.tp, layout.recompute == "full"
    one = cost.gather_bytes(rows * a.width * w, tp)
    halves = (2 + recomputes) * cost.BLOCK_GATHERS // 2  # forward, backward, maybe a recomputed forward
    loss = last * cost.gather_bytes(tp * rows * 4 * LOSS_FLOATS_PER_TOKEN, tp)
    scatters = blocks * halves + first + last
    if not layout.sequence_parallel:
        return {"all_reduce tp": 2 * scatters * one, "all_gather tp": loss}
    gathers = blocks * (halves + cost.REGATHERS) + first + 2 * last
    return {"all_gather tp": gathers * one + loss, "reduce_scatter tp": scatters * one}


def _pipeline(a: Architecture, w: int, layout: Layout, first: bool, last: bool) -> dict[str, Any]:
    """Of one micro-batch: activations and gradients between virtual stages; the first and last have one neighbour."""
    if layout.pp == 1:
        return {}
    rows = layout.micro_batch_sequences * a.context
    one = cost.stage_boundary_bytes(a, rows, layout.tp, int(layout.sequence_parallel), w)
    size = (2 * layout.interleave - first - last) * one
    return {"send pp": size, "receive pp": size}


def _matrices(a: Architecture, layout: Layout, blocks: int, first: bool, last: bool) -> int:
    """Elements of the matrices of a rank, with rows padded to a multiple of the replicas."""
    tp, d = layout.tp, a.width
    block = (
        ((d + 2 * a.kv_heads * a.head_dim) // tp, d),
        (d, d // tp),
        ((a.ffn_matrices - 1) * a.ffn // tp, d),
        (d, a.ffn // tp),
    )
    each = sum(_padded(rows, layout.dp) * columns for rows, columns in block)
    return int(blocks * each + (first + last) * _padded(a.vocab // tp, layout.dp) * d)


def _padded(rows: int, dp: int) -> int:
    return math.ceil(rows / dp) * dp


def _world_axis(layout: Layout) -> str:
    """Name of the group of all ranks: that of an axis, if one axis spans all ranks."""
    return next((axis for axis in ("tp", "pp", "dp") if getattr(layout, axis) == layout.devices), "world")
