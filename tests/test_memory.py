"""The planner's bytes of every rank beside those of the engine itself, going through a step on shapes alone."""

from typing import Any

import pytest

from planner.cost import architecture
from planner.engine import OURS
from planner.grid import grid_of
from planner.memory import _rank
from runtime.rehearse import rehearse_rank
from specs.layout import Layout
from specs.run import Execution
from tests import samples

MODEL = samples.model(layers=8, width=1024, heads=8, kv_heads=2, ffn=2816, vocab=4096, context=2048)


def laid(**changes: Any) -> Layout:
    plain = {"dp": 2, "pp": 1, "tp": 1, "micro_batch_sequences": 1, "recompute": "none"}
    return Layout.model_validate(plain | {"sequence_parallel": changes.get("tp", 1) > 1} | changes)


@pytest.mark.parametrize(
    ("layout", "rank"),
    [
        (laid(tp=2), 0),
        (laid(pp=2, stage_layers=(5, 3)), 1),
        (laid(pp=4, micro_batch_sequences=2), 1),
        (laid(pp=2, tp=2, interleave=2), 0),
        (laid(pp=4, recompute="selective"), 0),
        (laid(pp=4, tp=2, recompute="full"), 0),
    ],
    ids=lambda value: value.canonical_json() if isinstance(value, Layout) else f"rank {value}",
)
def test_bytes_of_a_rank_are_the_engines(layout: Layout, rank: int) -> None:
    """State to a thousandth, as norms are left out; what passes hold at most within a twentieth."""
    batch = 2 * layout.pp * layout.dp * layout.micro_batch_sequences
    run = samples.run(model=MODEL, optim=samples.optim(batch_sequences=batch), precision="bf16")
    execution = Execution(device="cuda", layout=layout, checkpoint_every_s=1.0)
    real = rehearse_rank(run, execution, rank * layout.tp, 2 * layout.pp).memory
    sizes = [len(blocks) for blocks in layout.blocks(MODEL.layers)]
    grid, ends = grid_of(layout, MODEL.layers, batch), (rank == 0, rank == layout.pp - 1)
    blocks = sum(sizes[rank :: layout.pp])
    planned = _rank(architecture(MODEL), OURS, 2, grid, blocks, rank, *ends)
    for part in ("parameters", "gradients", "optimizer"):
        assert float(planned[part]) == pytest.approx(real[part], rel=1e-3)
    passes = sum(float(planned[part]) for part in ("activations", "logits", "workspace"))
    assert passes == pytest.approx(real["passes"], rel=0.05)
