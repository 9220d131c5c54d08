"""Seconds of a step in a layout, by part: arithmetic on a cluster's data sheet and its efficiencies.

A matrix multiplication takes its FLOP over the share of the peak that it reaches; short inner dimensions and partly
filled last waves cost more. Elementwise operations take their bytes over the memory bandwidth; collectives their bytes
over the links' bandwidth, plus a latency. Pipelines add their bubble and transfers; replicas add what ZeRO-1's
collectives cannot overlap with the first forward and the last backward pass. Everything works on columns of layouts
(`LayoutGrid`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.performance import cost
from planner.performance.cost import Architecture
from planner.performance.engine_features import Engine
from planner.performance.layout_grid import LayoutGrid
from specs.cluster import Cluster, Efficiency

PARTS = (
    "matmuls",
    "attention",
    "elementwise",
    "recompute",
    "tensor parallel",
    "head and loss",
    "bubble",
    "pipeline transfers",
    "data parallel",
    "optimizer",
)
"""Parts of a step's seconds."""
TILE = 128 * 256
"""Elements of a tile of the result, the largest that CUTLASS and cuBLAS use on A100 and H100 (CUTLASS's profiler)."""
BACKWARD_ATTENTION = 2.5
"""Flash attention's backward pass has five matrix products, its forward pass two (arXiv 2307.08691, section 3.1.2)."""
FORWARD_LAUNCHES, BACKWARD_LAUNCHES = 10, 14
"""Kernels of a block other than matrix multiplications (norms, rotation, attention, activation, additions)."""
UNFUSED_PASSES = 2
"""Memory traffic of unfused elementwise chains over that of fused ones: each intermediate is written and read."""
LOSS_BYTES, UNFUSED_LOSS_BYTES = 8, 40
"""Bytes moved per logit: two passes over 16-bit logits; unfused: an fp32 copy (6), maximum (4), difference (8),
exponential (8), sum (4), and the gradient's scaling and rounding (10)."""
GRADIENT_PASS_BYTES = 12
"""Unfused gradient accumulation in fp32: the 16-bit gradient is written and read, the sum read and written."""
OPTIMIZER_BYTES = 30
"""Gradient read; master and two moments read and written; parameter written (AdamW in fp32)."""
Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class ClusterRates:
    """A cluster's rates at the efficiency that training reaches."""

    flop_per_s: float
    attention_flop_per_s: float
    memory_bytes_per_s: float
    intra_bytes_per_s: float
    inter_bytes_per_s: float
    node: int
    peak_flop_per_s: float
    efficiency: Efficiency


@dataclass(frozen=True)
class BlockSeconds:
    """One micro-batch through one block of a rank: forward, backward, and activation recomputation."""

    matmul: tuple[Any, Any]
    attention: tuple[Any, Any]
    elementwise: tuple[Any, Any]
    collectives: tuple[Any, Any]
    recompute: Any

    @property
    def forward(self) -> Any:
        """Seconds of the forward pass."""
        return self.matmul[0] + self.attention[0] + self.elementwise[0] + self.collectives[0]

    @property
    def backward(self) -> Any:
        """Seconds of the backward pass."""
        return self.matmul[1] + self.attention[1] + self.elementwise[1] + self.collectives[1] + self.recompute


def cluster_rates(cluster: Cluster, width_bytes: int) -> ClusterRates:
    """The rates of a cluster for 16-bit (2) or fp32 (4) training; ValueError where its efficiencies aren't known."""
    efficiency, device = cluster.efficiency, cluster.device
    if efficiency is None:
        what = f"the file of cluster {cluster.name} has no efficiency, so step times are unknown"
        raise ValueError(f"{what}; add efficiency, or measure it with isoplan doctor")
    peak = device.peak_bf16 if width_bytes == 2 else device.peak_fp32
    return ClusterRates(
        flop_per_s=peak * efficiency.matmul,
        attention_flop_per_s=peak * efficiency.attention,
        memory_bytes_per_s=device.memory_bandwidth * efficiency.memory,
        intra_bytes_per_s=cluster.intra_node * efficiency.links,
        inter_bytes_per_s=cluster.inter_node * efficiency.links,
        node=cluster.devices_per_node,
        peak_flop_per_s=peak,
        efficiency=efficiency,
    )


def matmul_s(rates: ClusterRates, w: int, m: Any, n: Any, k: Any, count: Any = 1) -> Any:
    """`count` products of (m, k) and (k, n) matrices."""
    at = rates.efficiency
    waves = count * m * n / TILE / at.multiprocessors
    shape = (1 + at.matmul_half_depth / k) * (1 + 0.5 / waves)  # on average the last wave is half full
    compute = 2 * count * m * n * k / rates.flop_per_s * shape
    traffic = w * count * (m * n + m * k + n * k) / rates.memory_bytes_per_s
    return np.maximum(compute, traffic) + at.launch


def gather_s(rates: ClusterRates, size: Any, ranks: Any, stride: Any) -> Any:
    """All-gather or reduce-scatter of `size` bytes over ranks at distance `stride`, in a ring through all nodes.

    A ring uses as many network ports of a node as it has ranks there.
    """
    local = np.clip(rates.node // stride, 1, ranks)
    nodes = np.ceil(ranks / local)
    through = np.minimum(rates.intra_bytes_per_s, local * rates.inter_bytes_per_s)
    rate = np.where(nodes == 1, rates.intra_bytes_per_s, through)
    return np.where(ranks == 1, 0.0, cost.gather_bytes(size, ranks) / rate + nodes * rates.efficiency.message)


def block_seconds(
    a: Architecture, engine: Engine, rates: ClusterRates, w: int, grid: LayoutGrid
) -> BlockSeconds:
    """A micro-batch through one block."""
    rows = grid.micro_batch * a.context
    matmul = _matmuls(a, rates, w, rows, grid.tp)
    attention, core = _attention(a, engine, rates, w, rows, grid.tp)
    elementwise = _elementwise(a, engine, rates, w, rows, grid)
    one = gather_s(rates, rows * a.width * w, grid.tp, 1)
    collectives = cost.BLOCK_GATHERS * one
    hidden = engine.overlaps_tensor * rates.efficiency.overlap
    exposed = [np.maximum(collectives * (1 - hidden), collectives - overlapped) for overlapped in matmul]
    whole = matmul[0] + attention[0] + elementwise[0] + exposed[0]
    part = core + _selective_recompute(a, engine, rates, w, rows, grid, matmul[0], elementwise[0])
    recompute = np.where(grid.recomputes_block, whole, np.where(grid.recomputes_attention, part, 0.0))
    return BlockSeconds(matmul, attention, elementwise, (exposed[0], exposed[1]), recompute)


def _matmuls(a: Architecture, rates: ClusterRates, w: int, rows: Any, tp: Any) -> tuple[Any, Any]:
    """The four products of a block; each has two gradients."""
    d, kv = a.width, a.kv_heads * a.head_dim
    products = (
        ((d + 2 * kv) / tp, d),
        (d, d / tp),
        ((a.ffn_matrices - 1) * a.ffn / tp, d),
        (d, a.ffn / tp),
    )
    forward = sum(matmul_s(rates, w, rows, n, k) for n, k in products)
    backward = sum(matmul_s(rates, w, rows, k, n) + matmul_s(rates, w, n, k, rows) for n, k in products)
    return forward, backward


def _attention(
    a: Architecture, engine: Engine, rates: ClusterRates, w: int, rows: Any, tp: Any
) -> tuple[tuple[Any, Any], Any]:
    """Forward and backward seconds of attention's core, and those of recomputing it.

    Flash attention skips what another document hides; where scores are stored, all of the square is computed.
    """
    if engine.flash:
        flop = rows * cost.attention_flop(a, causal=True) / a.layers / tp
        forward = flop / rates.attention_flop_per_s
        return (forward, BACKWARD_ATTENTION * forward), forward
    heads, s, e = a.heads / tp * rows / a.context, a.context, a.head_dim
    products = matmul_s(rates, w, s, s, e, heads) + matmul_s(rates, w, s, e, s, heads)
    passes = [rows * moved / tp / rates.memory_bytes_per_s for moved in cost.moved_score_bytes(a, w)]
    forward = products + passes[0]
    return (forward, 2 * products + passes[1]), forward


def _elementwise(
    a: Architecture, engine: Engine, rates: ClusterRates, w: int, rows: Any, grid: LayoutGrid
) -> tuple[Any, Any]:
    """Forward and backward seconds of the memory-bound operations."""
    whole, split = cost.moved_whole_bytes(a, w), cost.moved_split_bytes(a, w)
    shards = 1 + grid.sp * (grid.tp - 1)
    passes = 1 if engine.fused else UNFUSED_PASSES
    moved = [
        passes * rows * (one / shards + other / grid.tp) for one, other in zip(whole, split, strict=True)
    ]
    if not engine.fused_gradients:
        moved[1] = moved[1] + GRADIENT_PASS_BYTES * cost.layer_params(a) / grid.tp
    rate, launch = rates.memory_bytes_per_s, rates.efficiency.launch
    return moved[0] / rate + FORWARD_LAUNCHES * launch, moved[1] / rate + BACKWARD_LAUNCHES * launch


def _selective_recompute(
    a: Architecture,
    engine: Engine,
    rates: ClusterRates,
    w: int,
    rows: Any,
    grid: LayoutGrid,
    matmul: Any,
    elementwise: Any,
) -> Any:
    """Seconds of what selective recomputation repeats beside attention's core; forward seconds are given."""
    if engine.recomputed_matmul_share:
        return engine.recomputed_matmul_share * matmul + elementwise
    if not engine.recomputes_norms:
        return 0.0
    whole, split = cost.recompute_moved_bytes(a, w)
    moved = rows * (whole / (1 + grid.sp * (grid.tp - 1)) + split / grid.tp)
    return moved / rates.memory_bytes_per_s


def head_seconds(
    a: Architecture, engine: Engine, rates: ClusterRates, w: int, grid: LayoutGrid
) -> tuple[Any, Any]:
    """A micro-batch through the head and the loss, forward and backward."""
    rows, columns = grid.micro_batch * a.context, a.vocab / grid.tp
    forward = matmul_s(rates, w, rows, columns, a.width)
    backward = matmul_s(rates, w, rows, a.width, columns) + matmul_s(rates, w, columns, a.width, rows)
    moved = LOSS_BYTES * w / 2 if engine.fused_loss else UNFUSED_LOSS_BYTES
    return forward + rows * columns * moved / rates.memory_bytes_per_s, backward


def transfer_seconds(
    a: Architecture, engine: Engine, rates: ClusterRates, w: int, grid: LayoutGrid
) -> tuple[Any, Any]:
    """A micro-batch from one stage to the next: seconds of the transfer, and seconds that a rank spends on it per pass.

    Without sequence parallelism each rank sends a share, and the shares are all-gathered. An engine that overlaps
    transfers still issues one receive and one send with each pass.
    """
    stride = grid.tp if engine.stages_adjacent else grid.tp * grid.dp
    near = stride * grid.pp <= rates.node
    rows = grid.micro_batch * a.context
    size = cost.stage_boundary_bytes(a, rows, grid.tp, 1, w)
    rate = np.where(near, rates.intra_bytes_per_s, rates.inter_bytes_per_s)
    gathered = np.where(grid.sp == 1, 0.0, gather_s(rates, rows * a.width * w, grid.tp, 1))
    message = rates.efficiency.message
    transfer = np.where(grid.pp == 1, 0.0, size / rate + message + gathered)
    if not engine.overlaps_pipeline:
        return np.zeros_like(transfer), transfer
    return transfer, np.where(grid.pp == 1, 0.0, 2 * message)


def per_step_seconds(
    a: Architecture, engine: Engine, rates: ClusterRates, w: int, grid: LayoutGrid, block: BlockSeconds
) -> tuple[Any, Any]:
    """Seconds once a step: the exposed part of the replicas' collectives, and the optimizer."""
    ends = np.where(grid.pp == 1, a.vocab * a.width * (1 if a.tied else 2), a.vocab * a.width)
    params = (np.maximum(grid.first, grid.last) * cost.layer_params(a) + ends) / grid.tp
    stride = grid.tp * grid.pp if engine.stages_adjacent else grid.tp
    scatter = gather_s(rates, params * engine.reduce_bytes, grid.dp, stride)
    gather = gather_s(
        rates, params * (w if engine.shards_optimizer else engine.reduce_bytes), grid.dp, stride
    )
    if engine.overlaps_data:
        scatter = _exposed(scatter, grid, block.backward)
        gather = _exposed(gather, grid, block.forward)
    shards = grid.dp if engine.shards_optimizer else 1
    moved = params * (OPTIMIZER_BYTES / shards + 4)  # and all gradients are zeroed
    return scatter + gather, moved / rates.memory_bytes_per_s


def _exposed(collective: Any, grid: LayoutGrid, pass_s: Any) -> Any:
    """The exposed part of a collective that overlaps with one micro-batch's pass through the first rank's blocks.

    A block's share can start when the pass leaves it (or is needed when it enters). With interleaving the other ranks'
    chunks run between this rank's, and only the last chunk's share overlaps with its own pass alone.
    """
    chunk = grid.first / grid.interleave * pass_s
    window = ((grid.interleave - 1) * grid.pp + 1) * chunk
    at_least = collective / np.maximum(2, grid.first)
    return np.maximum(at_least, np.maximum(collective / grid.interleave - chunk, collective - window))


def step_seconds(a: Architecture, engine: Engine, rates: ClusterRates, w: int, grid: LayoutGrid) -> Columns:
    """Seconds of a step by part, on the slowest stage; the parts add up."""
    block = block_seconds(a, engine, rates, w, grid)
    head = sum(head_seconds(a, engine, rates, w, grid))
    travel, busy = transfer_seconds(a, engine, rates, w, grid)
    data, optimizer = per_step_seconds(a, engine, rates, w, grid, block)
    each = block.forward + block.backward
    last_is_slowest = (grid.pp == 1) | (grid.last * each + head >= grid.most * each)
    blocks = np.where(last_is_slowest, grid.last, grid.most)
    heads = np.where(last_is_slowest, head, 0.0)
    work = a.layers * each + head
    slow = blocks * each + heads
    exposed = _exposed_transfers(grid, travel, busy, slow, work)
    m = grid.micro_batches
    parts = np.broadcast_arrays(
        m * blocks * sum(block.matmul),
        m * blocks * sum(block.attention),
        m * blocks * sum(block.elementwise),
        m * blocks * block.recompute,
        m * blocks * sum(block.collectives),
        m * heads,
        (work - slow) / grid.interleave,
        exposed + 2 * (grid.pp - 1) * (travel + busy),
        data,
        optimizer,
    )
    return {name: np.asarray(part, float) for name, part in zip(PARTS, parts, strict=True)}


def _exposed_transfers(grid: LayoutGrid, travel: Any, busy: Any, slow: Any, work: Any) -> Any:
    """Exposed seconds of transfers in a step after the first; `work` is a micro-batch's seconds in all stages.

    Plain 1F1B has exactly as many micro-batches in flight as stages: pp of them take at least one round trip. With
    interleaving more are in flight, and transfers are hidden.
    """
    period = (work + 2 * (grid.pp - 1) * travel) / grid.pp
    waits = np.where((grid.interleave == 1) & (grid.pp > 1), np.maximum(0.0, period - slow), 0.0)
    return grid.micro_batches * (waits + 2 * grid.interleave * busy)
