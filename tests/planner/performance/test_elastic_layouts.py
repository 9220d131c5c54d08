"""Layouts for fewer nodes: legal, of the same batch, of whole nodes, most devices first; none for a run of one node."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.design.run_draft import DraftRequest, draft
from planner.design.target_search import run_settings
from planner.performance.elastic_layouts import with_fallback_layouts
from planner.performance.layout_grid import grid_of
from planner.performance.layout_search import (
    LayoutProblem,
    NoLayoutError,
    UndividedBatchError,
    fastest_by_closed_form,
)
from planner.performance.memory import memory_parts
from planner.plan import make_plan
from runtime.launch.jobs import from_plan
from specs.cluster import Cluster
from specs.document.files import from_catalog
from specs.layout import Layout
from specs.model import ModelSpec
from specs.plan import PlannedRun
from tests.support.paths import SPECS
from tests.support.planning import inputs_of

FRONTIER = inputs_of(SPECS / "budget_1e24.yaml", Path("plans/budget_1e24"), Path("data"))
H100 = from_catalog(Cluster, "h100-64", None)
PLAIN = from_catalog(Cluster, "laptop", None)
SEVEN_B = ModelSpec(layers=30, width=4096, heads=32, kv_heads=32, ffn=11008, vocab=102400, context=4096)
SMALL = ModelSpec(layers=4, width=256, heads=4, kv_heads=2, ffn=704, vocab=1024, context=256)
TINY = ModelSpec(layers=2, width=32, heads=2, kv_heads=1, ffn=96, vocab=256, context=64)


def planned(model: ModelSpec, cluster: Cluster, batch: int | None = None) -> PlannedRun:
    """A run on all of the cluster, of a batch of so many sequences or the law's."""
    tokens = None if batch is None else batch * model.context
    setting = replace(run_settings(FRONTIER), cluster=cluster)
    return draft(setting, DraftRequest("target", "", 1e21, model, cluster.devices, batch_tokens=tokens))


def nodes(cluster: Cluster, count: int, devices: int) -> Cluster:
    """So many nodes of such devices."""
    return cluster.model_copy(update={"devices": count * devices, "devices_per_node": devices})


def memory_of(run: PlannedRun, cluster: Cluster, layout: Layout) -> tuple[float, float]:
    """Bytes of a layout's fullest device, and those that it may fill."""
    batch = run.run.optim.batch_sequences
    problem = LayoutProblem(run.run.model, cluster, layout.devices, batch, run.run.precision)
    grid = grid_of(layout, run.run.model.layers, batch)
    parts = memory_parts(problem.a, problem.engine, problem.width_bytes, grid)
    return float(sum(parts.values())), problem.limit_bytes


@pytest.mark.slow
@settings(max_examples=60)
@given(
    model=st.sampled_from([SEVEN_B, SMALL, TINY]),
    cluster=st.sampled_from([H100, PLAIN]),
    count=st.integers(1, 12),
    each=st.sampled_from([1, 2, 3, 8]),
    batch=st.sampled_from([None, 8, 14, 36, 512]),
)
def test_every_layout_is_legal_and_of_half_the_nodes(
    model: ModelSpec, cluster: Cluster, count: int, each: int, batch: int | None
) -> None:
    """It fits, divides the batch, and takes whole nodes where it takes more than one."""
    cluster = nodes(cluster, count, each)
    try:
        run = planned(model, cluster, batch)
    except (NoLayoutError, UndividedBatchError):
        return
    found = with_fallback_layouts(run, cluster)
    assert found == with_fallback_layouts(run, cluster)
    assert found.model_copy(update={"fallback_layouts": ()}) == run
    left = -(-run.execution.layout.devices // each)
    for layout in found.fallback_layouts:
        assert layout.problems(run.run.model, run.run.optim) == []
        needed, limit = memory_of(run, cluster, layout)
        assert needed <= limit
        assert layout.devices <= each or layout.devices % each == 0
        while left // 2 * each >= layout.devices:
            left //= 2
        assert left * each >= layout.devices > left // 2 * each


@pytest.mark.slow
def test_the_frontier_run_is_halved_as_far_as_it_fits() -> None:
    """By the best layout of each half; the same plan again has the same bytes."""
    plan = make_plan(FRONTIER)
    (run,) = plan.runs
    assert [layout.devices for layout in run.fallback_layouts] == [1024, 512, 256, 128, 64, 32]
    spec = run.run
    for layout in run.fallback_layouts:
        batch = spec.optim.batch_sequences
        assert (
            layout
            == fastest_by_closed_form(spec.model, FRONTIER.cluster, layout.devices, batch, "bf16").layout
        )
    with pytest.raises(NoLayoutError):
        fastest_by_closed_form(spec.model, FRONTIER.cluster, 16, spec.optim.batch_sequences, "bf16")
    assert make_plan(FRONTIER).canonical_json() == plan.canonical_json()


def test_the_ranks_are_told_of_them() -> None:
    plan = make_plan(FRONTIER)
    (wanted,) = from_plan(plan, FRONTIER.out / "plan.target.yaml")
    assert wanted.order.fallback_layouts == plan.runs[0].fallback_layouts != ()


@pytest.mark.parametrize("cluster", [nodes(H100, 1, 8), nodes(PLAIN, 1, 2), nodes(PLAIN, 1, 1)])
def test_a_run_of_one_node_has_none(cluster: Cluster) -> None:
    assert with_fallback_layouts(planned(SMALL, cluster), cluster).fallback_layouts == ()


def test_a_cluster_without_efficiencies_is_halved_too() -> None:
    cluster = nodes(PLAIN, 4, 2)
    found = with_fallback_layouts(planned(TINY, cluster, 16), cluster).fallback_layouts
    assert [(layout.dp, layout.micro_batch_sequences) for layout in found] == [(4, 4), (2, 8)]


def test_nodes_that_do_not_divide_the_batch_are_left_out() -> None:
    """14 sequences on seven nodes: three cannot share them, two can."""
    cluster = nodes(PLAIN, 7, 2)
    found = with_fallback_layouts(planned(TINY, cluster, 14), cluster).fallback_layouts
    assert [layout.devices for layout in found] == [4, 2]
