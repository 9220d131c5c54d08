"""What holds of every plan: legal runs, milestones that add up, the same bytes again, more budget is never worse."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cli import write_plan
from planner.design.allocation import Laws, published_loss_surface
from planner.design.inputs import PlanInputs
from planner.design.target_run import find_target
from planner.design.target_search import TargetSearch
from specs.budget import Budget
from specs.document.files import DocumentError, from_catalog, load
from specs.law import PublishedLaw
from specs.plan import Plan, PlannedRun
from tests.support.planning import inputs_of

BUDGET = """\
kind: budget
name: b
compute: {compute:.6e} FLOP
evidence: {{kind: published, law: epoch-chinchilla, hyper: {hyper}, reach: 1e7}}
family: deepseek
cluster: h100-64
data:
  text: {{source: declared, describe: massivetext, unique: 1000T tokens}}
  tokenizer: {{kind: bbpe, vocab: 100015}}
"""

LAW = from_catalog(PublishedLaw, "epoch-chinchilla", None)
SURFACE = published_loss_surface(LAW)
OBJECTIVES = (
    "{kind: optimal}",
    "{kind: inference, served: 1T tokens}",
    "{kind: ratio, tokens_per_param: 100}",
    "{kind: size, params: 3B params}",
)
budgets = st.builds(
    lambda log_flop, hyper, objective: (
        BUDGET.format(compute=10**log_flop, hyper=hyper) + f"objective: {objective}\n"
    ),
    st.floats(19, 24),
    st.sampled_from(["deepseek", "step-law"]),
    st.sampled_from(OBJECTIVES),
)


def inputs(text: str, devices: int = 64) -> PlanInputs:
    """What the planner sees of a budget, on so many H100s."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.yaml"
        path.write_text(text)
        found = inputs_of(path, Path(folder), Path(folder))
    return replace(found, cluster=found.cluster.model_copy(update={"devices": devices}))


def target(of: PlanInputs) -> PlannedRun | None:
    """The target run; None where it fits no layout, which is a refusal and not a plan."""
    try:
        return find_target(TargetSearch(of, Laws(of.allocation, SURFACE))).planned
    except (DocumentError, FileNotFoundError):
        return None


@pytest.mark.slow
@settings(max_examples=40)
@given(budgets, st.sampled_from([1, 8, 24, 64, 96, 512, 2048]))
def test_every_run_is_legal_and_its_schedule_adds_up(text: str, devices: int) -> None:
    """For its layout, batch and cluster; drops at 80 and 90 % of the steps; compute within a hundredth."""
    asked = inputs(text, devices)
    planned = target(asked)
    if planned is None:
        return
    run, optim, layout = planned.run, planned.run.optim, planned.execution.layout
    assert layout.problems(run.model, optim) == []
    assert layout.devices <= devices
    assert planned.cost.memory_bytes <= asked.cluster.device.memory
    assert optim.warmup_steps < optim.milestones[0].step < optim.milestones[1].step < optim.steps
    assert [m.step * 10 for m in optim.milestones] == [8 * optim.steps, 9 * optim.steps]
    assert run.tokens == optim.steps * optim.batch_sequences * run.model.context
    assert math.isclose(run.compute_flop, planned.budget_flop, rel_tol=0.01)
    assert math.isclose(planned.cost.hours * layout.devices, planned.cost.device_hours, rel_tol=1e-9)


@pytest.mark.slow
@settings(max_examples=30)
@given(st.floats(19.5, 23), st.floats(1.1, 10), st.sampled_from(["deepseek", "step-law"]))
def test_more_budget_never_gives_a_worse_forecast(log_flop: float, more: float, hyper: str) -> None:
    """By the loss law, for the runs as they are emitted, rounded to layers, sequences and steps.

    A tenth more at least: shapes come in whole layers and widths of 128, below 1e20 FLOP steps of 5 % in size.
    """
    assert SURFACE is not None
    losses = []
    for compute in (10**log_flop, 10**log_flop * more):
        planned = target(inputs(BUDGET.format(compute=compute, hyper=hyper), 512))
        assert planned is not None
        losses.append(SURFACE.loss(planned.run.model.params, planned.run.tokens))
    assert losses[1] < losses[0]


@pytest.mark.slow
@settings(max_examples=5)
@given(budgets)
def test_the_same_inputs_give_the_same_bytes(text: str) -> None:
    """Two workspaces, one plan: the sealed file and the report, byte for byte."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a", "b"):
            home = Path(folder) / name
            home.mkdir()
            (home / "b.yaml").write_text(text)
            try:
                path, _ = write_plan(home / "b.yaml", home / "plans")
            except DocumentError:
                return
            made.append((path.read_bytes(), (path.parent / "report.html").read_bytes()))
            assert load(path, Plan).budget == load(home / "b.yaml", Budget)
    assert made[0] == made[1]
