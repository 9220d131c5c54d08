"""The target run: what a budget in any currency buys.

A budget in FLOP is the run's compute; a loss becomes the least compute that reaches it. Device-hours, money, energy and
a deadline become compute by the run's own cost: a run is drafted and its compute scaled until it costs the budget's
amount. The first draft gives the number of pipeline stages, a second one balances the depth over them. Errors, with a
budget that would work, come from planner/design/feasibility.py.
"""

import math
from collections.abc import Sequence
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
from planner.design.run_draft import EVALUATIONS
from planner.design.target_search import TargetSearch
from planner.performance.batch_and_layout import BatchAndLayout
from planner.performance.layout_search import NoLayoutError, compare_layouts
from specs.budget import Pilots, Published, Runs
from specs.document.files import DocumentError
from specs.plan import LayoutChoice, PlannedRun

COST_TOLERANCE = 0.002
"""A cost within this share of the budget is close enough: shapes come in whole layers, steps in twenties."""
_MAX_DRAFTS = 6
_MAX_TRIES = 30
"""Drafts of a search, with those that fit no layout."""


class _MisfitError(Exception):
    """A run of this compute fits no layout."""

    def __init__(self, compute_flop: float, reason: NoLayoutError) -> None:
        super().__init__(compute_flop, reason)
        self.compute_flop, self.reason = compute_flop, reason


@dataclass(frozen=True)
class Target:
    """The target run, and the layouts that were compared for it."""

    planned: PlannedRun
    layouts: LayoutChoice | None
    """None on a cluster without efficiencies, where layouts are chosen by memory."""


def find_target(search: TargetSearch) -> Target:
    """The target run; DocumentError at the budget's line where none is feasible."""
    inputs = search.inputs
    feasibility.check_laws(search)
    feasibility.check_batch(inputs)
    feasibility.check_held_out(inputs)
    try:
        run = _run_for_budget(search, stages=1)
        if run.execution.layout.pp > 1:
            run = min(_run_for_budget(search, run.execution.layout.pp), run, key=_hours_per_flop)
    except _MisfitError as misfit:
        raise feasibility.no_layout_error(search, misfit.compute_flop, misfit.reason, _has_run) from None
    except NoOptimumError as error:
        raise feasibility.no_optimum_error(inputs, str(error)) from None
    target = _with_fastest_layout(search, run)
    feasibility.check_data(search, target.planned)
    feasibility.check_deadline(search, target.planned, lambda compute_flop: _hours(search, compute_flop))
    return target


def _hours(search: TargetSearch, compute_flop: float) -> float:
    """Hours of the target run of this compute, whatever the deadline; errors as in `find_target`."""
    spends = {"compute": compute_flop, "loss": None, "deadline": None}
    return find_target(search.with_budget(**spends)).planned.cost.hours


def target_compute(search: TargetSearch) -> float:
    """C of the target run; a budget in compute needs no draft."""
    compute = search.inputs.budget.compute
    if compute is None:
        return find_target(search).planned.budget_flop
    _check_compute(search, compute)
    return compute


def _hours_per_flop(planned: PlannedRun) -> float:
    return planned.cost.device_hours / planned.cost.compute_flop


def _with_fastest_layout(search: TargetSearch, draft: PlannedRun) -> Target:
    """The run in the layout that the simulation finds fastest, its tokens scaled to that layout's cost."""
    run, inputs, devices = draft.run, search.inputs, draft.execution.layout.devices
    if inputs.cluster.efficiency is None:
        return Target(draft, None)
    batch = run.optim.batch_sequences
    layouts = compare_layouts(run.model, inputs.cluster, devices, batch, run.precision)
    best = layouts.ranked[0]
    chosen = BatchAndLayout(batch, best.layout, best.memory_bytes, best.step_s)
    planned = search.draft_shape(run.model, draft.budget_flop, chosen)
    if inputs.budget.currency in ("compute", "loss"):
        return Target(planned, layouts)
    ratio = getattr(inputs.budget, inputs.budget.currency) / cost_in_currency(inputs, planned.cost)
    return Target(search.draft_shape(run.model, draft.budget_flop * ratio, chosen), layouts)


def _has_run(search: TargetSearch) -> bool:
    """Whether the budget buys a run."""
    try:
        _run_for_budget(search, stages=1)
    except (_MisfitError, NoOptimumError, DocumentError):
        return False
    return True


def _run_for_budget(search: TargetSearch, stages: int) -> PlannedRun:
    """The run that the budget buys."""
    budget = search.inputs.budget
    if budget.compute is not None:
        return _checked_draft(search, budget.compute, stages)
    if budget.loss is not None:
        return _checked_draft(search, _compute_for_loss(search, budget.loss, stages), stages)
    return _run_for_amount(search, getattr(budget, budget.currency), stages)


def _run_for_amount(search: TargetSearch, amount: float, stages: int) -> PlannedRun:
    """The run that costs the amount. The search stays inside the compute that the law allows, and checks it only at the
    end: costs jump with the layout, so that a draft on the way may need more compute than the last one. It stays below
    compute that fits no layout, too: small runs may reach so little of the peak that the first guess is far too large.
    """
    low, high = _allowed_compute(search.inputs)
    guess, compute, drafts = _first_guess(search, amount), 0.0, list[PlannedRun]()
    misfit: _MisfitError | None = None
    for _ in range(_MAX_TRIES):
        if len(drafts) == _MAX_DRAFTS or compute == (compute := min(max(guess, low), high)):
            break
        try:
            drafts.append(_checked_draft(search, compute, stages))
        except _MisfitError as error:
            misfit = error
            high, guess = compute, math.sqrt(compute * max(_largest(drafts), compute / 4))
            continue
        if _cost_error(search, drafts[-1], amount) < COST_TOLERANCE:
            break
        guess = compute * amount / cost_in_currency(search.inputs, drafts[-1].cost)
    if not drafts:
        assert misfit is not None  # the first try is always made
        raise misfit
    best = min(drafts, key=lambda planned: _cost_error(search, planned, amount))
    if _cost_error(search, best, amount) >= COST_TOLERANCE:
        needed = best.budget_flop * amount / cost_in_currency(search.inputs, best.cost)
        _check_extrapolation(search, needed)
        if misfit is not None and needed > best.budget_flop:
            raise misfit
    return best


def _largest(drafts: Sequence[PlannedRun]) -> float:
    return max((planned.budget_flop for planned in drafts), default=0.0)


def _cost_error(search: TargetSearch, planned: PlannedRun, amount: float) -> float:
    """|ln(amount / cost)| of a run."""
    return abs(math.log(amount / cost_in_currency(search.inputs, planned.cost)))


def _checked_draft(search: TargetSearch, compute_flop: float, stages: int) -> PlannedRun:
    """The run of this compute; DocumentError if it is too little, too much or too far from the law, _MisfitError if it
    fits no layout."""
    _check_compute(search, compute_flop)
    try:
        return search.draft(compute_flop, stages)
    except NoLayoutError as error:
        raise _MisfitError(compute_flop, error) from None


def _first_guess(search: TargetSearch, amount: float) -> float:
    """C that the amount buys at the cluster's expected utilisation, which counts the FLOP of MFU, while C counts M."""
    inputs = search.inputs
    peak = inputs.cluster.device.peak_flop_per_s(inputs.budget.precision)
    rate = peak * inputs.cluster.model_flop_utilisation
    bought = device_hours(inputs, amount) * 3600 * rate
    _check_amount(inputs, bought)
    shape = search.shape(bought)
    return bought * shape.flop_per_token / shape.mfu_flop_per_token


def _compute_for_loss(search: TargetSearch, loss: float, stages: int) -> float:
    """The least compute that reaches the loss by the loss law."""
    inputs, surface = search.inputs, search.laws.surface
    assert surface is not None  # check_laws refuses a target loss without a loss law
    compute = least_compute_for_loss(loss, surface, lambda flop: search.shape(flop, stages), MAX_FLOP)
    if math.isinf(compute):
        raise feasibility.unreachable_loss_error(search, loss, _allowed_compute(inputs)[1])
    return compute


def _check_compute(search: TargetSearch, flop: float) -> None:
    """Refuse compute that is too little, too much, or too far from what the law was fitted on."""
    _check_amount(search.inputs, flop)
    _check_extrapolation(search, flop)


def _check_amount(inputs: PlanInputs, flop: float) -> None:
    """Refuse less compute than the shortest run of the smallest shape needs, and more than MAX_FLOP."""
    smallest = family_shapes(inputs.family, inputs.rows, 0.0)[0]
    least = float(smallest.flop_per_token) * smallest.context * EVALUATIONS
    field = inputs.budget.currency
    if flop < least:
        what = (
            f"this budget buys {flop:.3g} FLOP, but the shortest run of the smallest model of the family "
            f"{inputs.family.name} needs {least:.3g}"
        )
        raise inputs.refuse(field, what, "give a larger budget, or name a family with smaller models")
    if flop > MAX_FLOP:
        what = f"this budget buys {flop:.3g} FLOP, but a plan may use at most {MAX_FLOP:g}"
        raise inputs.refuse(field, what, "give a smaller budget")


def _allowed_compute(inputs: PlanInputs) -> tuple[float, float]:
    """The range of compute that evidence.reach allows of a published law or a table. plan.py checks that of pilots."""
    evidence, law = inputs.budget.evidence, inputs.law
    if isinstance(evidence, Pilots):
        return 0.0, MAX_FLOP
    if isinstance(evidence, Runs):
        assert inputs.table is not None  # loading reads it
        return 0.0, min(inputs.table.largest_flop * evidence.reach, MAX_FLOP)
    return law.compute_low_flop / evidence.reach, min(law.compute_high_flop * evidence.reach, MAX_FLOP)


def _check_extrapolation(search: TargetSearch, flop: float) -> None:
    """Refuse a target outside of the allowed compute."""
    inputs, law, evidence = search.inputs, search.inputs.law, search.inputs.budget.evidence
    low, high = _allowed_compute(inputs)
    if low <= flop <= high:
        return
    assert not isinstance(evidence, Pilots)  # with pilots everything up to MAX_FLOP is allowed
    if isinstance(evidence, Published):
        beyond = flop / law.compute_high_flop if flop > high else law.compute_low_flop / flop
        rests_on = (
            f"outside the range that the law {law.name} was fitted on, {law.compute_low_flop:.2g} to "
            f"{law.compute_high_flop:.2g} FLOP"
        )
    else:
        assert inputs.table is not None  # loading reads it
        beyond = flop / inputs.table.largest_flop
        rests_on = f"the compute of the table's largest run, {inputs.table.largest_flop:.2g} FLOP"
    what = (
        f"{flop:.3g} FLOP is {beyond:,.4g} times {rests_on}, but evidence.reach allows only "
        f"{evidence.reach:,.6g} times"
    )
    most = feasibility.within_epochs(search, high) if flop > high else low
    nearest = spend_at_most(search, most) if flop > high else spend_at_least(search, low)
    raise inputs.refuse(
        inputs.budget.currency, what, f"{nearest}, or write evidence.reach: {rounded_up(beyond):g}"
    )
