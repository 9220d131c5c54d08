"""How a model is laid over a cluster: the least model parallelism whose memory fits.

Bytes of one device, for the stage that holds most, with ZeRO-1 and bf16 training as in DeepSeek LLM, section 2.4:
parameters (2 a piece, 4 in fp32), fp32 gradients (4), and fp32 master and two moments (12, split over dp). Activations
of a block per token are 34 d bytes in 16-bit training without attention scores, which flash attention never stores
(Korthikanti et al., arXiv 2205.05198, section 4.1), divided by tp under sequence parallelism; the first of pp stages
holds pp micro-batches in flight. Seconds are not compared: model parallelism is used only where memory asks for it.
"""

import math
from dataclasses import dataclass

from specs.cluster import Cluster
from specs.layout import Layout
from specs.model import ModelSpec

USABLE_MEMORY = 0.9
"""Share of a device's memory that a plan may fill; the rest is left to the allocator, buffers and communication."""
ACTIVATION_BYTES_16 = 34
"""Bytes of a block's activations per token and unit of width in 16-bit training (Korthikanti et al., section 4.1)."""
LOGIT_BYTES = 6
"""Bytes per logit: bf16 value and its fp32 arithmetic in the in-place loss, a chunk at a time at most."""


@dataclass(frozen=True)
class Fit:
    """A layout with the memory of its fullest device."""

    layout: Layout
    memory_bytes: float


class NoLayoutError(ValueError):
    """No layout fits; the message has the nearest miss in bytes."""


def memory_bytes(model: ModelSpec, layout: Layout, precision: str) -> float:
    """Memory of the fullest device under a layout, in bytes (see the head of this file)."""
    width_bytes = 2 if precision == "bf16" else 4
    layers = math.ceil(model.layers / layout.pp)
    stage_params = model.block_params / model.layers * layers + model.vocab * model.width * (
        2 if layout.pp == 1 else 1
    )
    params = stage_params / layout.tp
    state = params * (width_bytes + 4 + 12 / layout.dp)
    tokens = layout.micro_batch_sequences * model.context
    split = layout.tp if layout.sequence_parallel else 1
    block = ACTIVATION_BYTES_16 * (width_bytes / 2) * model.width * tokens / split
    in_flight = min(layers * layout.pp, model.layers + layout.pp - 1)
    logits = LOGIT_BYTES * model.vocab / layout.tp * tokens
    return state + block * in_flight + logits


def candidates(model: ModelSpec, devices: int, devices_per_node: int) -> list[Layout]:
    """Layouts with the least model parallelism first, tensor parallelism kept inside a node before stages are cut."""
    found = []
    for tp in _powers_of_two(min(devices_per_node, devices)):
        for pp in _powers_of_two(devices // tp):
            dp = devices // (tp * pp)
            found.append(
                Layout(
                    dp=dp,
                    pp=pp,
                    tp=tp,
                    sequence_parallel=tp > 1,
                    micro_batch_sequences=1,
                    recompute="none",
                )
            )
    return sorted(found, key=lambda layout: (layout.pp * layout.tp, layout.pp))


def choose_layout(model: ModelSpec, cluster: Cluster, devices: int, batch: int, precision: str) -> Fit:
    """The first layout that fits the cluster's memory and leaves every replica a sequence; NoLayoutError if none does.

    The micro-batch is then made as large as memory and the batch allow.
    """
    limit = USABLE_MEMORY * cluster.device.memory
    nearest = math.inf
    for layout in candidates(model, devices, cluster.devices_per_node):
        if layout.dp > batch or layout.problems_of_shape(model):
            continue
        needed = memory_bytes(model, layout, precision)
        if needed <= limit:
            return _widest_micro_batch(model, layout, batch, precision, limit)
        nearest = min(nearest, needed - limit)
    if math.isinf(nearest):
        raise NoLayoutError(f"a batch of {batch} sequences is too small for {devices} devices")
    raise NoLayoutError(
        f"no layout of {devices} x {cluster.device.name} fits; the nearest misses by {nearest:.3g} bytes"
    )


def _widest_micro_batch(model: ModelSpec, layout: Layout, batch: int, precision: str, limit: float) -> Fit:
    best = layout
    per_replica = batch // layout.dp
    for size in _powers_of_two(per_replica // layout.pp or 1):
        wider = layout.model_copy(update={"micro_batch_sequences": size})
        if per_replica % size == 0 and memory_bytes(model, wider, precision) <= limit:
            best = wider
    if layout.pp == 1 and layout.dp * per_replica == batch:
        whole = layout.model_copy(update={"micro_batch_sequences": per_replica})
        best = whole if memory_bytes(model, whole, precision) <= limit else best
    return Fit(best, memory_bytes(model, best, precision))


def _powers_of_two(limit: int) -> list[int]:
    return [2**k for k in range(limit.bit_length()) if 2**k <= limit]
