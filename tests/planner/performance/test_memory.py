"""The planner's bytes of every rank beside those of the engine itself, going through a step on shapes alone."""

from typing import Any

import pytest

from model import buckets, pipeline_parallel, tensor_parallel
from planner.performance import memory
from planner.performance.cost import architecture
from planner.performance.engine_features import OURS
from planner.performance.layout_grid import grid_of
from planner.performance.memory import _rank
from runtime.rehearse import triton_shapes
from runtime.rehearse.step import rehearse_rank
from specs.layout import Layout
from specs.model import ModelSpec
from specs.pipeline_schedule import Action, one_f_one_b, rank_schedule
from specs.run import Execution
from tests.support import samples

MODEL = samples.model(layers=8, width=1024, heads=8, kv_heads=2, ffn=2816, vocab=4096, context=2048)


def chosen(**changes: Any) -> Layout:
    plain = {"dp": 2, "pp": 1, "tp": 1, "micro_batch_sequences": 1, "recompute": "none"}
    return Layout.model_validate(plain | {"sequence_parallel": changes.get("tp", 1) > 1} | changes)


@pytest.mark.parametrize(
    ("layout", "rank"),
    [
        (chosen(tp=2), 0),
        (chosen(pp=2, stage_layers=(5, 3)), 1),
        (chosen(pp=4, micro_batch_sequences=2), 1),
        (chosen(pp=2, tp=2, interleave=2), 0),
        (chosen(pp=4, recompute="selective"), 0),
        (chosen(pp=4, tp=2, recompute="full"), 0),
        (chosen(dp=1, recompute="full"), 0),
        (chosen(recompute="full"), 0),
        (chosen(recompute="selective"), 0),
        (chosen(tp=2, sequence_parallel=False, recompute="selective"), 0),
        (chosen(pp=2, recompute="full"), 1),
        (chosen(pp=4, recompute="selective"), 3),
        (chosen(pp=4, recompute="full"), 1),
        (chosen(pp=2, interleave=4), 0),
        (chosen(pp=2, interleave=4), 1),
        (chosen(pp=4, interleave=2), 0),
        (chosen(pp=4, interleave=2, recompute="selective"), 1),
        (chosen(pp=2, interleave=4, recompute="full"), 0),
        (chosen(pp=2, tp=2, interleave=4, micro_batch_sequences=2), 1),
    ],
    ids=lambda value: value.canonical_json() if isinstance(value, Layout) else f"rank {value}",
)
def test_bytes_of_a_rank_are_the_engines(layout: Layout, rank: int) -> None:
    same_bytes(MODEL, layout, rank)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize(
    ("changes", "rank"),
    [({}, 0), ({"pp": 2}, 1), ({"pp": 2, "tp": 2, "interleave": 2}, 1)],
    ids=str,
)
def test_logits_are_there_when_no_block_is_at_work(
    changes: dict[str, Any], rank: int, recompute: str
) -> None:
    """A vocabulary that outweighs a block: the fullest moment is the head's."""
    wordy = MODEL.model_copy(update={"vocab": 65536})
    same_bytes(wordy, chosen(dp=1, recompute=recompute, **changes), rank)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "rank"), [({}, 0), ({"pp": 2}, 1), ({"pp": 2, "interleave": 4}, 0)], ids=str
)
def test_replicas_copy_small_gradients_into_buckets(changes: dict[str, Any], rank: int) -> None:
    """32 blocks of 1024: the copies outweigh what recomputing passes hold, which one replica does not have."""
    deep = MODEL.model_copy(update={"layers": 32})
    alone, several = (chosen(dp=dp, recompute="full", **changes) for dp in (1, 8))
    assert same_bytes(deep, several, rank) > 1.5 * same_bytes(deep, alone, rank)


@pytest.mark.parametrize(("pp", "chunks"), [(2, 1), (4, 1), (8, 1), (2, 4), (3, 3), (4, 2), (8, 2)])
def test_results_under_way_are_the_lists(pp: int, chunks: int) -> None:
    for rank in range(pp):
        expected = memory.tensors_in_flight(pp, rank, chunks)
        assert abs(under_way(pp, rank, chunks) - int(expected)) <= 1


def under_way(pp: int, rank: int, chunks: int) -> int:
    """Most results of neighbours, or for them, beside a backward while most passes are alive, by the lists of work."""
    orders = [one_f_one_b(pp, each, 4 * pp, chunks) for each in range(pp)]
    leaving, coming, alive, found = 0, set[Action](), 0, []
    for step in rank_schedule(orders, chunks, rank):
        if isinstance(step, list):
            sent = sum(transfer.kind == "send" for transfer in step)
            leaving = min(leaving, memory.MAX_SENDS_IN_FLIGHT - 1) + sent
            coming |= {transfer.action for transfer in step if transfer.kind == "receive"}
            continue
        coming.discard(step)
        if step.kind == "backward":
            found.append((alive, leaving + len(coming)))
        alive += 1 if step.kind == "forward" else -1
    return max(found)[1]


def test_short_micro_batches_do_not_hide_what_they_do_not_scale() -> None:
    """512 tokens over 8 ranks: a norm's partial sums are a tenth of all."""
    wide = samples.model(layers=8, width=4096, heads=32, kv_heads=32, ffn=11008, vocab=32000, context=512)
    same_bytes(wide, chosen(dp=1, pp=4, tp=8, micro_batch_sequences=2, recompute="full"), 0)


def test_constants_are_the_engines() -> None:
    assert memory.BUCKET_BYTES == buckets.BUCKET_BYTES
    assert (memory.PIECES, memory.PIECE_BYTES) == (tensor_parallel.PIECES, tensor_parallel.PIECE_BYTES)
    assert memory.NORM_ROWS == triton_shapes._NORM_PROGRAMS
    assert memory.MAX_SENDS_IN_FLIGHT == pipeline_parallel._MAX_SENDS_IN_FLIGHT + 1


def same_bytes(model: ModelSpec, layout: Layout, rank: int) -> float:
    """State to a thousandth, as norms are left out; what passes hold at most, which is returned, within a twentieth."""
    batch = 2 * layout.pp * layout.dp * layout.micro_batch_sequences
    run = samples.run(model=model, optim=samples.optim(batch_sequences=batch), precision="bf16")
    execution = Execution(device="cuda", layout=layout, checkpoint_interval_s=1.0)
    real = rehearse_rank(run, execution, rank * layout.tp, 2 * layout.pp).memory
    sizes = [len(blocks) for blocks in layout.blocks(model.layers)]
    grid, ends = grid_of(layout, model.layers, batch), (rank == 0, rank == layout.pp - 1)
    blocks = sum(sizes[rank :: layout.pp])
    planned = _rank(architecture(model), OURS, 2, grid, blocks, rank, *ends)
    for part in ("parameters", "gradients", "optimizer"):
        assert float(planned[part]) == pytest.approx(real[part], rel=1e-3)
    passes = sum(float(planned[part]) for part in ("activations", "logits", "workspace"))
    assert passes == pytest.approx(real["activations"], rel=0.05)
    return real["activations"]
