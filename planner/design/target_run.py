"""The target run: what the budget buys, in whichever currency.

A budget in FLOP is the run's compute; a loss becomes the least compute that reaches it. Hours, money, energy and a
deadline become compute by the run's own cost: a run is drafted and its compute scaled until it costs what was asked.
A first draft says into how many stages the layout cuts the model, a second one balances its depth over them. Why there
is no run, and what would give one, is said in planner/design/feasibility.py.
"""

import math
from dataclasses import dataclass

from planner.design import feasibility
from planner.design.allocation import NoOptimumError, compute_for_loss
from planner.design.budget_currency import MOST_FLOP, at_least, at_most, device_hours, rounded_up, spent
from planner.design.inputs import PlanInputs
from planner.design.model_shape import sizes_of_family
from planner.design.run_draft import EVALUATIONS, peak_flop_per_s
from planner.design.target_search import Search
from planner.performance.batch_and_layout import BatchAndLayout
from planner.performance.layout_search import NoLayoutError, UndividedBatchError, compare_layouts
from specs.budget import Pilots, Published
from specs.plan import LayoutChoice, PlannedRun

CLOSE = 0.002
"""A cost within this share of the budget meets it: shapes come in whole layers, steps in twenties."""
_TRIES = 6


@dataclass(frozen=True)
class Target:
    """The target run, and the layouts that were compared for it."""

    planned: PlannedRun
    layouts: LayoutChoice | None
    """None on a cluster without efficiencies, where layouts are chosen by memory."""


def find_target(search: Search) -> Target:
    """The target run; DocumentError at the budget's line where there can be none."""
    inputs = search.inputs
    feasibility.check_laws(search)
    feasibility.check_batch(inputs)
    try:
        found = _bought(search, stages=1)
        if found.execution.layout.pp > 1:
            found = min(_bought(search, found.execution.layout.pp), found, key=_hours_per_flop)
    except NoOptimumError as error:
        raise inputs.refuse("evidence", str(error), "name a law with an allocation, like deepseek") from None
    target = _simulated(search, found)
    feasibility.check_data(search, target.planned)
    feasibility.check_deadline(search, target.planned)
    return target


def target_compute(search: Search) -> float:
    """C of the target run, without a draft where the budget says it."""
    compute = search.inputs.budget.compute
    if compute is None:
        return find_target(search).planned.budget_flop
    _check_buys_a_run(search, compute)
    return compute


def _hours_per_flop(planned: PlannedRun) -> float:
    return planned.cost.device_hours / planned.cost.compute_flop


def _simulated(search: Search, found: PlannedRun) -> Target:
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
    ratio = getattr(inputs.budget, inputs.budget.currency) / spent(inputs, planned.cost)
    return Target(search.train(run.model, found.budget_flop * ratio, chosen), layouts)


def _bought(search: Search, stages: int) -> PlannedRun:
    """The run that the budget buys."""
    budget = search.inputs.budget
    if budget.compute is not None:
        return _checked_draft(search, budget.compute, stages)
    if budget.loss is not None:
        return _checked_draft(search, _compute_for_loss(search, budget.loss, stages), stages)
    return _for_amount(search, getattr(budget, budget.currency), stages)


def _for_amount(search: Search, amount: float, stages: int) -> PlannedRun:
    """The run that costs the amount. Inside of the law's reach is looked for it, and outside it is refused at the end,
    since costs jump with the layout: a draft on the way there may ask for more than the last one."""
    low, high = _reach(search.inputs)
    wanted, compute, tried = _first_guess(search, amount), 0.0, list[PlannedRun]()
    while len(tried) < _TRIES and compute != (compute := min(max(wanted, low), high)):
        tried.append(_checked_draft(search, compute, stages))
        if _off(search, tried[-1], amount) < CLOSE:
            break
        wanted = compute * amount / spent(search.inputs, tried[-1].cost)
    best = min(tried, key=lambda planned: _off(search, planned, amount))
    if _off(search, best, amount) >= CLOSE:
        _check_reach(search, best.budget_flop * amount / spent(search.inputs, best.cost))
    return best


def _off(search: Search, planned: PlannedRun, amount: float) -> float:
    """How far a run's cost is from the amount, as the size of a logarithm."""
    return abs(math.log(amount / spent(search.inputs, planned.cost)))


def _checked_draft(search: Search, compute_flop: float, stages: int) -> PlannedRun:
    """The run of this compute; DocumentError where it is too little, too much, too far, or fits no layout."""
    _check_buys_a_run(search, compute_flop)
    try:
        return search.draft(compute_flop, stages)
    except UndividedBatchError as error:
        raise feasibility.undivided(search, compute_flop, error) from None
    except NoLayoutError as error:
        raise feasibility.too_large(search, compute_flop, error) from None


def _first_guess(search: Search, amount: float) -> float:
    """C that the amount buys at the cluster's utilisation, which counts MFU's FLOP, while C counts M."""
    inputs = search.inputs
    rate = peak_flop_per_s(inputs.cluster, inputs.budget.precision) * inputs.cluster.model_flop_utilisation
    bought = device_hours(inputs, amount) * 3600 * rate
    _check_amount(inputs, bought)
    shape = search.shape(bought)
    return bought * shape.flop_per_token / shape.mfu_flop_per_token


def _compute_for_loss(search: Search, loss: float, stages: int) -> float:
    """The least compute that reaches the loss by the loss law."""
    inputs, surface = search.inputs, search.laws.surface
    assert surface is not None  # check_laws has refused a loss without a loss law
    compute = compute_for_loss(loss, surface, lambda flop: search.shape(flop, stages), MOST_FLOP)
    if math.isinf(compute):
        model = search.shape(MOST_FLOP)
        least = surface.loss(surface.measure(model), MOST_FLOP / model.flop_per_token)
        what = f"the loss law {surface.name} reaches {least:.4g} nats/token with {MOST_FLOP:g} FLOP, not {loss:g}"
        raise inputs.refuse("loss", what, at_most(search, _reach(inputs)[1]))
    return compute


def _check_buys_a_run(search: Search, flop: float) -> None:
    """Refuse what no run could spend, and a target too far from the compute that the law was fitted on."""
    _check_amount(search.inputs, flop)
    _check_reach(search, flop)


def _check_amount(inputs: PlanInputs, flop: float) -> None:
    """Refuse less than the shortest run of the smallest shape, and more than anybody has."""
    smallest = sizes_of_family(inputs.family, inputs.vocab, 0.0)[0]
    least = float(smallest.flop_per_token) * smallest.context * EVALUATIONS
    field = inputs.budget.currency
    if flop < least:
        what = f"this buys {flop:.3g} FLOP, and the shortest run of the smallest {inputs.family.name} shape takes"
        write = "give a larger budget, or name a family of smaller shapes"
        raise inputs.refuse(field, f"{what} {least:.3g}", write)
    if flop > MOST_FLOP:
        what = f"this buys {flop:.3g} FLOP, and plans end at {MOST_FLOP:g}"
        raise inputs.refuse(field, what, "give a smaller budget")


def _reach(inputs: PlanInputs) -> tuple[float, float]:
    """The compute that a published law may be asked for. Pilots are checked by plan.py."""
    evidence, law = inputs.budget.evidence, inputs.law
    if isinstance(evidence, Pilots):
        return 0.0, MOST_FLOP
    return law.compute_low_flop / evidence.reach, min(law.compute_high_flop * evidence.reach, MOST_FLOP)


def _check_reach(search: Search, flop: float) -> None:
    """Refuse a target outside of that."""
    inputs, law = search.inputs, search.inputs.law
    low, high = _reach(inputs)
    if low <= flop <= high:
        return
    assert isinstance(inputs.budget.evidence, Published)  # pilots reach up to what nobody has
    beyond = flop / law.compute_high_flop if flop > high else law.compute_low_flop / flop
    what = (
        f"{flop:.3g} FLOP is {beyond:,.4g} times outside the {law.compute_low_flop:.2g} to {law.compute_high_flop:.2g} "
        f"FLOP that {law.name} was fitted on, and {inputs.budget.evidence.reach:,.6g} times is allowed"
    )
    nearest = at_most(search, high) if flop > high else at_least(search, low)
    raise inputs.refuse(
        inputs.budget.currency, what, f"{nearest}, or allow it: evidence.reach: {rounded_up(beyond):g}"
    )
