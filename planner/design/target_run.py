"""The target run: what the budget buys, in whichever currency.

A budget in FLOP is the run's compute; a loss becomes the least compute that reaches it. Hours, money, energy and a
deadline become compute by the run's own cost: a run is drafted and its compute scaled until it costs what was asked.
A first draft says into how many stages the layout cuts the model, a second one balances its depth over them. Why there
is no run, and what would give one, is said in planner/design/feasibility.py.
"""

import math
from dataclasses import dataclass

from planner.design import feasibility
from planner.design.allocation import NoOptimumError, least_compute_for_loss
from planner.design.budget_currency import (
    MAX_FLOP,
    cost_in_currency,
    device_hours,
    rounded_up,
    spend_at_least,
    spend_at_most,
)
from planner.design.inputs import PlanInputs
from planner.design.model_shape import family_shapes
from planner.design.run_draft import EVALUATIONS, peak_flop_per_s
from planner.design.target_search import TargetSearch
from planner.performance.batch_and_layout import BatchAndLayout
from planner.performance.layout_search import NoLayoutError, UndividedBatchError, compare_layouts
from specs.budget import Pilots, Published
from specs.plan import LayoutChoice, PlannedRun

COST_TOLERANCE = 0.002
"""A cost within this share of the budget meets it: shapes come in whole layers, steps in twenties."""
_MAX_DRAFTS = 6


@dataclass(frozen=True)
class Target:
    """The target run, and the layouts that were compared for it."""

    planned: PlannedRun
    layouts: LayoutChoice | None
    """None on a cluster without efficiencies, where layouts are chosen by memory."""


def find_target(search: TargetSearch) -> Target:
    """The target run; DocumentError at the budget's line where there can be none."""
    inputs = search.inputs
    feasibility.check_laws(search)
    feasibility.check_batch(inputs)
    try:
        found = _run_for_budget(search, stages=1)
        if found.execution.layout.pp > 1:
            found = min(_run_for_budget(search, found.execution.layout.pp), found, key=_hours_per_flop)
    except NoOptimumError as error:
        raise inputs.refuse("evidence", str(error), "name a law with an allocation, like deepseek") from None
    target = _with_fastest_layout(search, found)
    feasibility.check_data(search, target.planned)
    feasibility.check_deadline(search, target.planned)
    return target


def target_compute(search: TargetSearch) -> float:
    """C of the target run, without a draft where the budget says it."""
    compute = search.inputs.budget.compute
    if compute is None:
        return find_target(search).planned.budget_flop
    _check_compute(search, compute)
    return compute


def _hours_per_flop(planned: PlannedRun) -> float:
    return planned.cost.device_hours / planned.cost.compute_flop


def _with_fastest_layout(search: TargetSearch, found: PlannedRun) -> Target:
    """The run under the layout that the simulation finds fastest, its tokens scaled to what that costs."""
    run, inputs, devices = found.run, search.inputs, found.execution.layout.devices
    if inputs.cluster.efficiency is None:
        return Target(found, None)
    batch = run.optim.batch_sequences
    layouts = compare_layouts(run.model, inputs.cluster, devices, batch, run.precision)
    best = layouts.ranked[0]
    chosen = BatchAndLayout(batch, best.layout, best.memory_bytes, best.step_s)
    planned = search.train(run.model, found.budget_flop, chosen)
    if inputs.budget.currency in ("compute", "loss"):
        return Target(planned, layouts)
    ratio = getattr(inputs.budget, inputs.budget.currency) / cost_in_currency(inputs, planned.cost)
    return Target(search.train(run.model, found.budget_flop * ratio, chosen), layouts)


def _run_for_budget(search: TargetSearch, stages: int) -> PlannedRun:
    """The run that the budget buys."""
    budget = search.inputs.budget
    if budget.compute is not None:
        return _checked_draft(search, budget.compute, stages)
    if budget.loss is not None:
        return _checked_draft(search, _compute_for_loss(search, budget.loss, stages), stages)
    return _run_for_amount(search, getattr(budget, budget.currency), stages)


def _run_for_amount(search: TargetSearch, amount: float, stages: int) -> PlannedRun:
    """The run that costs the amount. Inside of the law's reach is looked for it, and outside it is refused at the end,
    since costs jump with the layout: a draft on the way there may ask for more than the last one."""
    low, high = _allowed_compute(search.inputs)
    wanted, compute, tried = _first_guess(search, amount), 0.0, list[PlannedRun]()
    while len(tried) < _MAX_DRAFTS and compute != (compute := min(max(wanted, low), high)):
        tried.append(_checked_draft(search, compute, stages))
        if _cost_error(search, tried[-1], amount) < COST_TOLERANCE:
            break
        wanted = compute * amount / cost_in_currency(search.inputs, tried[-1].cost)
    best = min(tried, key=lambda planned: _cost_error(search, planned, amount))
    if _cost_error(search, best, amount) >= COST_TOLERANCE:
        _check_extrapolation(search, best.budget_flop * amount / cost_in_currency(search.inputs, best.cost))
    return best


def _cost_error(search: TargetSearch, planned: PlannedRun, amount: float) -> float:
    """How far a run's cost is from the amount, as the size of a logarithm."""
    return abs(math.log(amount / cost_in_currency(search.inputs, planned.cost)))


def _checked_draft(search: TargetSearch, compute_flop: float, stages: int) -> PlannedRun:
    """The run of this compute; DocumentError where it is too little, too much, too far, or fits no layout."""
    _check_compute(search, compute_flop)
    try:
        return search.draft(compute_flop, stages)
    except UndividedBatchError as error:
        raise feasibility.indivisible_batch_error(search, compute_flop, error) from None
    except NoLayoutError as error:
        raise feasibility.no_layout_error(search, compute_flop, error) from None


def _first_guess(search: TargetSearch, amount: float) -> float:
    """C that the amount buys at the cluster's utilisation, which counts MFU's FLOP, while C counts M."""
    inputs = search.inputs
    rate = peak_flop_per_s(inputs.cluster, inputs.budget.precision) * inputs.cluster.model_flop_utilisation
    bought = device_hours(inputs, amount) * 3600 * rate
    _check_amount(inputs, bought)
    shape = search.shape(bought)
    return bought * shape.flop_per_token / shape.mfu_flop_per_token


def _compute_for_loss(search: TargetSearch, loss: float, stages: int) -> float:
    """The least compute that reaches the loss by the loss law."""
    inputs, surface = search.inputs, search.laws.surface
    assert surface is not None  # check_laws has refused a loss without a loss law
    compute = least_compute_for_loss(loss, surface, lambda flop: search.shape(flop, stages), MAX_FLOP)
    if math.isinf(compute):
        model = search.shape(MAX_FLOP)
        least = surface.loss(surface.measure(model), MAX_FLOP / model.flop_per_token)
        what = (
            f"the loss law {surface.name} reaches {least:.4g} nats/token with {MAX_FLOP:g} FLOP, not {loss:g}"
        )
        raise inputs.refuse("loss", what, spend_at_most(search, _allowed_compute(inputs)[1]))
    return compute


def _check_compute(search: TargetSearch, flop: float) -> None:
    """Refuse what no run could spend, and a target too far from the compute that the law was fitted on."""
    _check_amount(search.inputs, flop)
    _check_extrapolation(search, flop)


def _check_amount(inputs: PlanInputs, flop: float) -> None:
    """Refuse less than the shortest run of the smallest shape, and more than anybody has."""
    smallest = family_shapes(inputs.family, inputs.vocab, 0.0)[0]
    least = float(smallest.flop_per_token) * smallest.context * EVALUATIONS
    field = inputs.budget.currency
    if flop < least:
        what = f"this buys {flop:.3g} FLOP, and the shortest run of the smallest {inputs.family.name} shape takes"
        write = "give a larger budget, or name a family of smaller shapes"
        raise inputs.refuse(field, f"{what} {least:.3g}", write)
    if flop > MAX_FLOP:
        what = f"this buys {flop:.3g} FLOP, and plans end at {MAX_FLOP:g}"
        raise inputs.refuse(field, what, "give a smaller budget")


def _allowed_compute(inputs: PlanInputs) -> tuple[float, float]:
    """The compute that a published law may be asked for. Pilots are checked by plan.py."""
    evidence, law = inputs.budget.evidence, inputs.law
    if isinstance(evidence, Pilots):
        return 0.0, MAX_FLOP
    return law.compute_low_flop / evidence.reach, min(law.compute_high_flop * evidence.reach, MAX_FLOP)


def _check_extrapolation(search: TargetSearch, flop: float) -> None:
    """Refuse a target outside of that."""
    inputs, law = search.inputs, search.inputs.law
    low, high = _allowed_compute(inputs)
    if low <= flop <= high:
        return
    assert isinstance(inputs.budget.evidence, Published)  # pilots reach up to what nobody has
    beyond = flop / law.compute_high_flop if flop > high else law.compute_low_flop / flop
    what = (
        f"{flop:.3g} FLOP is {beyond:,.4g} times outside the {law.compute_low_flop:.2g} to {law.compute_high_flop:.2g} "
        f"FLOP that {law.name} was fitted on, and {inputs.budget.evidence.reach:,.6g} times is allowed"
    )
    nearest = spend_at_most(search, high) if flop > high else spend_at_least(search, low)
    raise inputs.refuse(
        inputs.budget.currency, what, f"{nearest}, or allow it: evidence.reach: {rounded_up(beyond):g}"
    )
