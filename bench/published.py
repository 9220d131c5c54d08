"""Published runs as the planner sees them: rows of ../shared/tables, their architectures, layouts and engines."""

import csv
from dataclasses import replace
from pathlib import Path

from planner.performance.cost import Architecture
from planner.performance.engine_features import OURS
from specs.layout import Layout
from specs.model import ModelSpec

TABLES = Path(__file__).parents[1].parent / "shared/tables"
Published = dict[str, str]

MEGATRON_2021 = replace(
    OURS,
    flash=False,
    fused_loss=False,
    fused_gradients=False,
    overlaps_tensor=False,
    overlaps_data=False,
    overlaps_pipeline=False,
    shards_optimizer=False,
    reduce_bytes=2,
    stages_adjacent=False,
    recomputes_norms=False,
)
"""Megatron-LM v2.6: fp16, unfused attention, gradients in a separate fp32 sum, nothing overlapped."""
MEGATRON_2022 = replace(MEGATRON_2021, fused_gradients=True)
"""Korthikanti et al.: with the fused weight gradient of early 2022."""
MEGATRON_CORE = replace(OURS, fused_loss=False, stages_adjacent=False, recomputes_norms=False)
"""r0.8.0 with its overlap flags on; the loss in fp32 steps."""
TORCHTITAN = replace(OURS, fused_loss=False, overlaps_tensor=False, recomputed_matmul_share=0.5)
"""FSDP2, which sends what ZeRO-1 does and hides it; selective recomputation replays every second multiplication."""
NANOTRON = replace(
    OURS,
    fused_loss=False,
    fused_gradients=False,
    overlaps_tensor=False,
    overlaps_data=False,
    overlaps_pipeline=False,
    stages_adjacent=False,
)
"""v0.5: fused norms and flash attention, nothing overlapped (its ZeRO-1 overlap is broken, nanotron issue 261)."""


def read(name: str) -> list[Published]:
    """The rows of a table."""
    with (TABLES / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def gpt(row: Published, *, dropout: bool) -> Architecture:
    """The row's GPT: GELU, LayerNorm, learned positions, tied head."""
    width, heads = int(row["hidden"]), int(row["heads"])
    return Architecture(
        int(row["layers"]),
        width,
        heads,
        heads,
        width // heads,
        4 * width,
        int(row["vocab"]),
        int(row["seq"]),
        ffn_matrices=2,
        learned_positions=True,
        tied=True,
        dropout=dropout,
    )


def llama(row: Published) -> Architecture:
    """The row's LLaMA."""
    layers, width, heads, kv_heads, ffn, vocab, context = (
        int(row[name]) for name in ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "seq")
    )
    return Architecture(layers, width, heads, kv_heads, width // heads, ffn, vocab, context)


def layout(row: Published, *, recompute: str, sp: bool, interleave: int = 1, micro_batch: int = 0) -> Layout:
    """The row's layout."""
    return Layout.model_validate(
        {name: int(row[name]) for name in ("dp", "pp", "tp")}
        | {
            "sequence_parallel": sp,
            "micro_batch_sequences": micro_batch or int(row["micro_batch"]),
            "recompute": recompute,
            "interleave": interleave,
        }
    )


LLAMA_405B = Architecture(126, 16384, 128, 8, 128, 53248, 128256, 8192)
"""Llama 3 405B (arXiv 2407.21783, Table 3)."""
MEGASCALE_175B = Architecture(96, 12288, 128, 128, 96, 49152, 64000, 2048, ffn_matrices=2, tied=True)
"""The GPT of MegaScale (arXiv 2402.15627, section 6): GELU, flash attention, no recomputation."""
DEEPSEEK_67B = ModelSpec(layers=95, width=8192, heads=64, kv_heads=8, ffn=22016, vocab=102400, context=4096)
"""DeepSeek LLM 67B (arXiv 2401.02954, Table 2)."""
