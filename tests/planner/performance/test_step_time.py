"""Seconds and bytes of a step: what must hold whatever the constants are, and hand-counted cases."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.performance import cost, memory, step_time
from planner.performance.cost import architecture
from planner.performance.engine_features import OURS
from planner.performance.layout_grid import LayoutGrid, grid_of, rank_blocks, stage_cut
from planner.performance.layout_search import compare_layouts
from specs.cluster import Cluster
from specs.document.files import from_catalog
from specs.layout import Layout
from specs.model import ModelSpec
from specs.pipeline_schedule import one_f_one_b
from tests.support.pipelines import most_alive

SEVEN_B = ModelSpec(layers=32, width=4096, heads=32, kv_heads=8, ffn=11008, vocab=102400, context=4096)
H800 = from_catalog(Cluster, "h800-2048", None)
A = architecture(SEVEN_B)
ON = step_time.cluster_rates(H800, 2)


def layout(**changes: object) -> Layout:
    """One device, micro-batch 1, changed."""
    base = {"dp": 1, "pp": 1, "tp": 1, "micro_batch_sequences": 1, "recompute": "none"}
    merged = base | {"sequence_parallel": changes.get("tp", 1) != 1} | changes
    return Layout.model_validate(merged)


def parts(cut: Layout, batch: int = 64) -> dict[str, float]:
    found = step_time.step_seconds(A, OURS, ON, 2, grid_of(cut, A.layers, batch))
    return {name: float(part) for name, part in found.items()}


def total(cut: Layout, batch: int = 64) -> float:
    return sum(parts(cut, batch).values())


def column(cuts: list[Layout], batch: int = 64) -> LayoutGrid:
    """The grid of several layouts."""
    each = [grid_of(cut, A.layers, batch) for cut in cuts]
    return LayoutGrid(
        **{f.name: np.array([getattr(grid, f.name) for grid in each]) for f in fields(LayoutGrid)}
    )


def test_one_device_computes_and_nothing_else() -> None:
    """Most of the time is matrix multiplication at the rate the cluster states; there is nobody to talk to."""
    found = parts(layout())
    assert (
        found["tensor parallel"]
        == found["bubble"]
        == found["pipeline transfers"]
        == found["data parallel"]
        == 0
    )
    flop = 6 * cost.block_params(A) * 64 * A.context
    assert 1 < found["matmuls"] / (flop / ON.flop_per_s) < 2
    assert sum(found.values()) > flop / ON.peak_flop_per_s


@pytest.mark.parametrize(("pp", "interleave"), [(2, 1), (4, 1), (4, 2), (8, 4)])
def test_the_bubble(pp: int, interleave: int) -> None:
    """(p - 1) / (v m) of the work, as in arXiv 2104.04473, section 2.2, where the head costs nothing."""
    small = replace(A, vocab=1)
    grid = grid_of(layout(pp=pp, interleave=interleave), A.layers, 64)
    found = step_time.step_seconds(small, OURS, ON, 2, grid)
    work = sum(found[name] for name in ("matmuls", "attention", "elementwise", "head and loss"))
    assert found["bubble"] / work == pytest.approx((pp - 1) / (interleave * 64), rel=0.01)


def test_columns_are_the_layouts_one_by_one() -> None:
    """Ten layouts in one stroke, bit for bit, and bytes likewise."""
    cuts = [
        layout(dp=dp, pp=pp, tp=tp, recompute=recompute)
        for dp, pp, tp in ((8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8))
        for recompute in ("none", "full")
    ]
    together, bytes_ = column(cuts), memory.memory_parts(A, OURS, 2, column(cuts))
    at_once = step_time.step_seconds(A, OURS, ON, 2, together)
    for i, cut in enumerate(cuts):
        alone = grid_of(cut, A.layers, 64)
        assert {name: float(part[i]) for name, part in at_once.items()} == parts(cut)
        one = memory.memory_parts(A, OURS, 2, alone)
        assert {name: float(part[i]) for name, part in bytes_.items()} == {
            n: float(p) for n, p in one.items()
        }


def test_what_costs_more() -> None:
    """Recomputation costs a forward pass; not overlapping, not fusing and a slower link cost time."""
    plain = parts(layout())
    replayed = parts(layout(recompute="full"))
    forward = (plain["matmuls"] + plain["elementwise"]) / 3 + plain["attention"] / 3.5
    assert replayed["recompute"] == pytest.approx(forward, rel=0.05)
    grid = grid_of(layout(tp=8, dp=2), A.layers, 64)
    for worse in ({"overlaps_tensor": False}, {"overlaps_data": False}, {"fused": False}, {"flash": False}):
        slower = step_time.step_seconds(A, replace(OURS, **worse), ON, 2, grid)
        assert sum(slower.values()) > total(layout(tp=8, dp=2)), worse
    h100 = step_time.cluster_rates(from_catalog(Cluster, "h100-64", None), 2)
    assert sum(step_time.step_seconds(A, OURS, h100, 2, grid).values()) < total(layout(tp=8, dp=2))


def test_masked_documents_cost_the_attention_within_them() -> None:
    """And nothing else changes, but for what recomputes it; a kernel that stores its scores computes them all."""
    seen = SEVEN_B.context / 5
    masked = architecture(SEVEN_B.model_copy(update={"mean_attended_tokens": seen}))
    for cut in (layout(), layout(tp=8, recompute="full"), layout(pp=4, interleave=2)):
        grid, joined = grid_of(cut, A.layers, 64), parts(cut)
        found = {
            name: float(part) for name, part in step_time.step_seconds(masked, OURS, ON, 2, grid).items()
        }
        share = (seen + 1) / (SEVEN_B.context + 1)
        assert found["attention"] == pytest.approx(share * joined["attention"])
        same = set(found) - {"attention", "recompute", "bubble", "pipeline transfers", "data parallel"}
        assert {name: found[name] for name in same} == {name: joined[name] for name in same}
        if cut.recompute == "full":
            saved = (joined["attention"] - found["attention"]) / 3.5
            assert joined["recompute"] - found["recompute"] == pytest.approx(saved)
        stored = replace(OURS, flash=False)
        assert step_time.step_seconds(masked, stored, ON, 2, grid) == step_time.step_seconds(
            A, stored, ON, 2, grid
        )


def test_simulated_steps_of_masked_documents_are_shorter() -> None:
    """By what attention saves; the layouts compared are timed by simulation."""
    masked = SEVEN_B.model_copy(update={"mean_attended_tokens": SEVEN_B.context / 5})
    joined, apart = (compare_layouts(model, H800, 64, 512, "bf16") for model in (SEVEN_B, masked))
    shared = {one.layout: one for one in joined.ranked}
    for one in apart.ranked:
        if one.layout in shared:
            other = shared[one.layout]
            saved = other.seconds["attention"] - one.seconds["attention"]
            assert saved > 0.7 * other.seconds["attention"]
            assert other.step_s - one.step_s >= 0.9 * saved
    assert any(one.layout in shared for one in apart.ranked)


def test_collectives_by_place() -> None:
    """Inside a node the fast link; across nodes as many ports as the node has ranks; a ring of one sends nothing."""
    size, message = 8e9, ON.efficiency.message
    assert step_time.gather_s(ON, size, 1, 1) == 0
    assert step_time.gather_s(ON, size, 8, 1) == pytest.approx(7e9 / ON.intra_bytes_per_s + message)
    assert step_time.gather_s(ON, size, 8, 8) == pytest.approx(7e9 / ON.inter_bytes_per_s + 8 * message)
    assert step_time.gather_s(ON, size, 8, 4) == pytest.approx(7e9 / (2 * ON.inter_bytes_per_s) + 4 * message)


@settings(max_examples=60, deadline=None)
@given(
    pp=st.integers(1, 12),
    interleave=st.integers(1, 4),
    turns=st.integers(1, 6),
    data=st.data(),
)
def test_alive_passes_are_the_pipelines(pp: int, interleave: int, turns: int, data: st.DataObject) -> None:
    """The columns' count is that of the lists of work."""
    interleave = interleave if pp > 1 else 1
    rank = data.draw(st.integers(0, pp - 1))
    expected = most_alive(one_f_one_b(pp, rank, turns * pp, interleave))
    assert memory.in_flight_passes(pp, rank, turns * pp, interleave) == expected


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(("pp", "interleave"), [(1, 1), (2, 1), (4, 2), (8, 1), (5, 1), (3, 2)])
def test_no_rank_is_fuller_than_the_fullest(pp: int, interleave: int, recompute: str) -> None:
    """Every rank counted by itself, with an uneven cut too."""
    sizes = stage_cut(A.layers, pp * interleave, 1.7)
    cut = layout(pp=pp, interleave=interleave, recompute=recompute, stage_layers=sizes)
    grid = grid_of(cut, A.layers, 60)
    found = sum(memory.memory_parts(A, OURS, 2, grid).values())
    every = [
        sum(memory._rank(A, OURS, 2, grid, sum(sizes[r::pp]), r, r == 0, r == pp - 1).values())
        for r in range(pp)
    ]
    assert found == pytest.approx(max(float(x) for x in every))


def test_bytes_of_one_device_by_hand() -> None:
    """bf16 weights, fp32 gradients, fp32 master and moments, what a block keeps, logits once."""
    found = memory.memory_parts(A, OURS, 2, grid_of(layout(), A.layers, 64))
    matrices = SEVEN_B.params - (2 * SEVEN_B.layers + 1) * SEVEN_B.width
    assert found["parameters"] == 2 * matrices
    assert found["gradients"] == 4 * matrices
    assert found["optimizer"] == 12 * matrices
    assert found["activations"] == 4096 * 32 * 2 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 2 * 11008)
    assert found["logits"] == 4096 * 102400 * 2
    split = memory.memory_parts(A, OURS, 2, grid_of(layout(dp=64), A.layers, 64))
    assert split["optimizer"] == 18 * matrices / 64  # and the owned rows' summed gradient and rounded weights


@settings(max_examples=100, deadline=None)
@given(layers=st.integers(1, 130), stages=st.integers(1, 40), head=st.floats(0, 6, allow_nan=False))
def test_stage_cuts_balance(layers: int, stages: int, head: float) -> None:
    """Every stage has a block, all blocks are there, and no other size of the last stage would be faster."""
    if stages > layers:
        return
    sizes = stage_cut(layers, stages, head)
    assert len(sizes) == stages
    assert sum(sizes) == layers
    assert min(sizes) >= 1
    slowest = max(*sizes[:-1], sizes[-1] + head) if stages > 1 else layers
    for last in range(1, layers - stages + 2):
        others = -(-(layers - last) // max(1, stages - 1))
        assert stages == 1 or slowest <= max(others, last + head)
    first, most, _, last = rank_blocks(sizes, stages)
    assert (first, last) == (sizes[0], sizes[-1])
    assert most == max(sizes[:-1], default=sizes[0])


def test_the_papers_67b_is_cut_as_in_the_paper() -> None:
    """95 layers on 8 stages: the last has one fewer, and the head in its place."""
    head = 102400 / (2 * 8192 + 2 * 1024 + 3 * 22016)
    assert stage_cut(95, 8, head) == (12,) * 7 + (11,)


def test_a_cluster_without_efficiencies_has_no_seconds() -> None:
    with pytest.raises(ValueError, match="laptop has no efficiency"):
        step_time.cluster_rates(from_catalog(Cluster, "laptop", None), 4)
