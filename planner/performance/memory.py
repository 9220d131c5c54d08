"""Memory of the fullest device of a layout, by part.

A pipeline rank holds its blocks' parameters, gradients and optimizer state, the first rank also the embedding's and the
last the head's. Beside these a rank's memory peaks at one of three moments:

    block      end of a block's backward, while the most micro-batches are in flight
    head       the head's backward, with the logits' gradient, while the most are in flight (last rank)
    buckets    the last block's backward of a step, with bucket copies of all small gradients in flight (dp > 1)

Under 1F1B a rank saves the activations of as many micro-batches as there are ranks from it to the end; with
interleaving, of the passes of its warmup and one more. The fullest rank is the first one, the first of those with the
most blocks, or the last one: all three are counted, for all layouts of a grid at once."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.performance import cost
from planner.performance.cost import Architecture
from planner.performance.engine_features import Engine
from planner.performance.layout_grid import LayoutGrid

PARTS = ("parameters", "gradients", "optimizer", "activations", "logits", "workspace")
"""Parts of memory."""
MASTER_BYTES = 12
"""fp32 master and two moments (AdamW; DeepSeek LLM, section 2.4)."""
GRADIENT_BYTES = 4
"""Gradients are summed in fp32 (DeepSeek LLM, section 2.4)."""
UNFUSED_LOGIT_BYTES = 10
"""16-bit logits, their fp32 copy and its gradient, as in torch's cross-entropy."""
BUCKET_BYTES = 25 * 2**20
"""Gradients reduced together are copied into a bucket of at most this size (model/buckets.py, which has the source)."""
PIECES, PIECE_BYTES = 4, 2**20
"""A gathered sequence is multiplied in up to 4 pieces of at least 1 MiB each (model/tensor_parallel.py)."""
MAX_SENDS_IN_FLIGHT = 3
"""Activations being sent to neighbours at once: model/pipeline_parallel.py has two in flight, then starts one more."""
NORM_ROWS = 4 * 132
"""Rows of fp32 partial sums of a norm's gradient (runtime/rehearse/triton_shapes.py, which has the source)."""
_SAMPLE_BLOCKS = 64
"""Blocks over which bucket copies are averaged."""
Columns = dict[str, NDArray[np.float64]]


def memory_parts(a: Architecture, engine: Engine, width_bytes: int, grid: LayoutGrid) -> Columns:
    """Bytes of the fullest device by part; the parts add up."""
    places = [
        (grid.first, np.zeros_like(grid.first), True, False),
        (grid.most, grid.most_at, False, False),
        (grid.last, grid.pp - 1, False, True),
    ]
    return _fullest([_rank(a, engine, width_bytes, grid, *place) for place in places])


def _fullest(candidates: list[Columns]) -> Columns:
    """Of several ranks or moments the one with the most bytes, for each layout."""
    fullest = np.array([sum(one.values()) for one in candidates]).argmax(axis=0)
    return {
        part: np.take_along_axis(np.array([one[part] for one in candidates]), fullest[None], 0)[0]
        for part in candidates[0]
    }


def _rank(
    a: Architecture, engine: Engine, w: int, grid: LayoutGrid, blocks: Any, rank: Any, first: bool, last: bool
) -> Columns:
    """Bytes of one pipeline rank; with pp 1 it has both embedding and head."""
    alone = grid.pp == 1
    embedding, head = (first | alone), (last | alone)
    vocab = np.where(embedding, cost.embedding_params(a), 0) + np.where(head, a.vocab * a.width, 0)
    vocab = vocab - np.where(alone, a.vocab * a.width if a.tied else 0, 0)
    params = (blocks * cost.layer_params(a) + vocab) / grid.tp
    shards = grid.dp if engine.shards_optimizer else 1
    copies = _bucket_copy_bytes(a, grid, blocks, embedding, head)
    state = (params * w, params * GRADIENT_BYTES, params * _state_bytes(w, grid.dp, engine) / shards)
    moments = (
        _block_moment(a, engine, w, grid, blocks, rank),
        _head_moment(a, engine, w, grid, blocks, rank, head),
        _buckets_moment(a, engine, w, grid, rank, *copies),
    )
    return _fullest([_columns(grid, *state, *moment) for moment in moments])


def _columns(grid: LayoutGrid, *parts: Any) -> Columns:
    full = np.broadcast_arrays(grid.dp, *parts)[1:]
    return {part: np.asarray(column, float) for part, column in zip(PARTS, full, strict=True)}


def _state_bytes(w: int, dp: Any, engine: Engine) -> Any:
    """Bytes of optimizer state per parameter.

    In fp32 on one replica the masters are the parameters. With ZeRO-1 a replica also has the reduced gradient of its
    rows, and its rows rounded to 16 bit (model/zero.py).
    """
    alone = MASTER_BYTES - 4 * (w == 4)
    shared = MASTER_BYTES + (GRADIENT_BYTES + w * (w == 2)) * engine.shards_optimizer
    return np.where(dp == 1, alone, shared)


def in_flight_passes(pp: Any, rank: Any, micro_batches: Any, interleave: Any) -> Any:
    """The most forward passes, of one chunk each, whose activations a rank saves at the same time under 1F1B."""
    warm = np.where(interleave == 1, pp - rank - 1, 2 * (pp - rank - 1) + (interleave - 1) * pp)
    return np.minimum(warm + 1, micro_batches * interleave)


def tensors_in_flight(pp: Any, rank: Any, interleave: Any) -> Any:
    """Activations being sent, and being received for later passes: as in the schedule of specs/pipeline_schedule.py,
    within one."""
    between = np.where((rank > 0) & (rank < pp - 1), 1, 0)
    receives = np.where(interleave > 1, np.where(rank > 0, 2, 0), between)
    return np.where(pp > 1, MAX_SENDS_IN_FLIGHT + receives, 0)


# The three moments, each as bytes of saved activations, of logits, and of temporary workspace.


def _block_moment(a: Architecture, engine: Engine, w: int, grid: LayoutGrid, blocks: Any, rank: Any) -> Any:
    rows = grid.micro_batch * a.context
    return (
        rows * _saved_by_all_passes(a, engine, w, grid, blocks, rank),
        0,
        _backward_workspace(a, engine, w, grid, rank),
    )


def _head_moment(
    a: Architecture, engine: Engine, w: int, grid: LayoutGrid, blocks: Any, rank: Any, head: Any
) -> Any:
    """The head holds its input and the norm's output, then both gradients too. 0 for a rank without a head.

    With sequence parallelism it has two gathered tensors, and computes the logits in pieces of the sequence: the last
    two pieces exist beside the whole (model/tensor_parallel.py).
    """
    rows, stream = grid.micro_batch * a.context, cost.block_input_bytes(a, grid.tp, grid.sp, w)
    logits = a.vocab / grid.tp * (w if engine.fused_loss else UNFUSED_LOGIT_BYTES)
    pieces = np.clip(rows * stream // PIECE_BYTES, 1, PIECES)
    extra = np.where((grid.sp == 1) & (pieces > 1), 2 / pieces, 0) * logits
    work = 2 * stream + np.maximum(extra, 2 * stream) + grid.sp * 2 * w * a.width
    saved, in_flight = _saved_by_all_passes(a, engine, w, grid, blocks, rank), _in_flight(a, w, grid, rank)
    return tuple(np.where(head, rows * part, 0) for part in (saved, logits, work + in_flight))


def _buckets_moment(
    a: Architecture, engine: Engine, w: int, grid: LayoutGrid, rank: Any, copies: Any, before: Any
) -> Any:
    """One block's activations and its backward with the copies sent `before` it, or all `copies` after the last block.

    Bucket copies live until all gradients are reduced.
    """
    rows = grid.micro_batch * a.context
    saved = rows * _saved_by_block(a, engine, w, grid, grid.recompute)
    return saved, 0, np.maximum(_backward_workspace(a, engine, w, grid, rank) + before, copies - saved)


def _backward_workspace(a: Architecture, engine: Engine, w: int, grid: LayoutGrid, rank: Any) -> Any:
    """Temporary bytes at the end of a block's backward."""
    rows = grid.micro_batch * a.context
    tokens = _recomputed(a, engine, w, grid) + _block_workspace(a, w, grid) + _in_flight(a, w, grid, rank)
    return rows * tokens + NORM_ROWS * 4 * a.width


def _saved_by_all_passes(
    a: Architecture, engine: Engine, w: int, grid: LayoutGrid, blocks: Any, rank: Any
) -> Any:
    """Bytes per token of a micro-batch that are saved for backward while the most passes are in flight.

    A pass keeps only what its blocks save: its input is its first block's, and its output is freed as soon as it has
    been sent (model/pipeline_parallel.py).
    """
    alive = in_flight_passes(grid.pp, rank, grid.micro_batches, grid.interleave) / grid.interleave * blocks
    return alive * _saved_by_block(a, engine, w, grid, grid.recompute)


def _saved_by_block(a: Architecture, engine: Engine, w: int, grid: LayoutGrid, recompute: Any) -> Any:
    """A block's saved activations in bytes per token, for columns of levels of activation recomputation."""
    scores = int(not engine.flash)
    whole, plain = (
        cost.saved_activation_bytes(a, grid.tp, grid.sp, w, stored, engine.saved_inner_tensors)
        for stored in (scores, 0)
    )
    less = cost.dropped_by_selective_bytes(a, grid.tp, grid.sp, w) if engine.recomputes_norms else 0
    full = cost.block_input_bytes(a, grid.tp, grid.sp, w)
    return np.where(recompute == 0, whole, np.where(recompute == 1, plain - less, full))


def _recomputed(a: Architecture, engine: Engine, w: int, grid: LayoutGrid) -> Any:
    """Bytes per token that activation recomputation recreates before the end of the feed-forward's backward.

    Of selective recomputation that is the norm's output. Attention is recomputed later, when the feed-forward's tensors
    are freed, and needs less than these unless it stores its scores.
    """
    dropped = _saved_by_block(a, engine, w, grid, 0) - _saved_by_block(a, engine, w, grid, grid.recompute)
    norm = cost.block_input_bytes(a, grid.tp, grid.sp, w)
    return np.where((grid.recompute == 1) & engine.flash, np.minimum(dropped, norm), dropped)


def _block_workspace(a: Architecture, w: int, grid: LayoutGrid) -> Any:
    """Bytes per token at the end of a block's backward beside saved activations (model/layers.py, `SubLayer`).

    Three gradients of the residual stream: of the output, the norm and the sum. Of the feed-forward the gradients of
    its output and of its activation's input, and the activation's output. With sequence parallelism three gathered
    tensors: the output's gradient, the input, and the input's gradient before its reduce-scatter.
    """
    streams = 3 * cost.block_input_bytes(a, grid.tp, grid.sp, w) + grid.sp * 3 * w * a.width
    return streams + w * (a.ffn_matrices + 1) * a.ffn / grid.tp


def _in_flight(a: Architecture, w: int, grid: LayoutGrid, rank: Any) -> Any:
    """Bytes per token in pipeline transfers during a backward pass."""
    return tensors_in_flight(grid.pp, rank, grid.interleave) * cost.block_input_bytes(a, grid.tp, grid.sp, w)


def _bucket_copy_bytes(
    a: Architecture, grid: LayoutGrid, blocks: Any, embedding: Any, head: Any
) -> tuple[Any, Any]:
    """Bytes of gradients that a step copies into buckets: all, and those copied before the last block's backward ends.

    Embedding and head count if they fit into a bucket with their neighbour. If a block's last matrix shares a bucket
    with the next block's first, that bucket waits for the earlier block.
    """
    d, kv = a.width, a.kv_heads * a.head_dim
    sizes = ((d + 2 * kv) * d, d * d, (a.ffn_matrices - 1) * a.ffn * d, a.ffn * d)
    vocab, most = a.vocab * d, BUCKET_BYTES // GRADIENT_BYTES * grid.tp
    limits, row = np.unique(most, return_inverse=True)
    block = np.array([_bucket_copy_elements(sizes, int(one)) for one in limits])[row].reshape(np.shape(most))
    at_head = np.where(head & (vocab + sizes[-1] <= most), vocab, 0)
    whole = blocks * block + at_head + np.where(embedding & (vocab + sizes[0] <= most), vocab, 0)
    waiting = 1 + (
        sizes[-1] + sizes[0] <= most
    )  # for the last block of backward, which is the first in depth
    before = np.maximum(blocks - waiting, 0) * block + at_head
    each = np.where(grid.dp > 1, GRADIENT_BYTES / grid.tp, 0)
    return whole * each, before * each


@lru_cache(1024)
def _bucket_copy_elements(sizes: tuple[int, ...], most: int) -> float:
    """Elements of a block that are copied, on average, if matrices of these sizes fill buckets in order.

    A bucket takes matrices as long as they fit; a single one is reduced in place, without a copy (model/buckets.py).
    """
    copied, bucket = 0, list[int]()
    for size in sizes * _SAMPLE_BLOCKS:
        if bucket and sum(bucket) + size > most:
            copied += sum(bucket) if len(bucket) > 1 else 0
            bucket = []
        bucket.append(size)
    return (copied + (sum(bucket) if len(bucket) > 1 else 0)) / _SAMPLE_BLOCKS
