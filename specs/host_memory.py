"""Host memory that the ranks of a run need on a node: what their job requests, and what a plan must leave room for."""

import math

from specs.layout import Layout
from specs.model import ModelSpec

SNAPSHOT_BYTES = 12
"""Of a parameter, while a checkpoint is written: its fp32 master and two moments (runtime/train/async_checkpoint)."""
PROCESS_BYTES = {"cpu": 0.4e9, "cuda": 4e9}
"""A rank's interpreter with torch. On a CPU .33 GB after a tiny run (docs/log.md, 2026-12-01), rounded up; on a GPU
also what CUDA, its libraries and NCCL take: our allowance, not measured."""
TOKEN_BYTES = 8
"""A token of a batch (int64); the corpus is mapped from its file, so that its pages are the kernel's to drop."""
BATCH_COPIES = 2
"""A step's rows as they are loaded, and their pinned copy."""
MARGIN = 1.25
"""For files that are being written, and what Python's allocator keeps: our choice."""


def ranks_of_node(ranks: int, threads: int, device: str, devices_per_node: int) -> int:
    """Ranks on each of the fewest nodes that they fill evenly."""
    room = max(1, devices_per_node // (1 if device == "cuda" else threads))
    return next(
        ranks // nodes for nodes in range(1, ranks + 1) if ranks % nodes == 0 and ranks // nodes <= room
    )


def rank_params(model: ModelSpec, layout: Layout) -> int:
    """Parameters of the fullest rank."""
    blocks, block = layout.blocks(model.layers), model.block_params // model.layers + 2 * model.width
    held = [sum(map(len, blocks[rank :: layout.pp])) * block for rank in range(layout.pp)]
    table = model.vocab * model.width
    held[0] += table
    held[-1] += table + model.width
    return math.ceil(max(held) / layout.tp)


def rank_bytes(
    model: ModelSpec, layout: Layout, batch_sequences: int, device: str, device_bytes: float
) -> float:
    """Host memory of one rank; on a CPU it holds the device's memory too, `device_bytes` by the plan."""
    snapshot = SNAPSHOT_BYTES * rank_params(model, layout) / layout.dp
    batch = BATCH_COPIES * TOKEN_BYTES * math.ceil(batch_sequences / layout.dp) * (model.context + 1)
    trained = device_bytes if device == "cpu" else 0.0
    return MARGIN * (PROCESS_BYTES[device] + snapshot + batch + trained)
