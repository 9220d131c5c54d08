"""A budget's currency: what an amount of it buys, what a run costs in it, and how to write bounds on compute in it.

Error messages propose amounts in the budget's own currency, so that they can be copied into the budget.
"""

import math

from planner.design.inputs import PlanInputs
from planner.design.target_search import TargetSearch
from planner.performance.layout_search import NoLayoutError
from specs.humanize import count, energy
from specs.plan import Cost

MAX_FLOP = 1e30
"""Larger budgets are typing errors: a thousand H100s at their peak would need some thirty thousand years."""
_MARGIN = 0.99
"""Proposed amounts keep this margin to their bound, since shapes come in whole layers and steps in twenties."""


def cost_in_currency(inputs: PlanInputs, cost: Cost) -> float:
    """A run's cost in the budget's currency."""
    amount = {
        "device_hours": cost.device_hours,
        "money": cost.dollars,
        "energy": cost.energy_j,
        "deadline": cost.hours * 3600,
    }[inputs.budget.currency]
    assert amount is not None  # `device_hours` refuses clusters without a price or power
    return amount


def device_hours(inputs: PlanInputs, amount: float) -> float:
    """Device-hours that an amount of the budget's currency buys on the cluster."""
    currency, cluster = inputs.budget.currency, inputs.cluster
    if currency == "money":
        if cluster.price is None:
            raise inputs.refuse(
                "money",
                f"the cluster {cluster.name} has no price",
                "give the budget in compute or device_hours",
            )
        return amount / cluster.price
    if currency == "energy":
        if cluster.device.power is None:
            raise inputs.refuse(
                "energy",
                f"the power of {cluster.device.name} is not known",
                "give the budget in compute or device_hours",
            )
        return amount / 3600 / cluster.device.power
    return amount if currency == "device_hours" else cluster.devices * amount / 3600


def spend_at_most(search: TargetSearch, compute_flop: float) -> str:
    """The amount to write for a run of at most this compute."""
    return _bound_text(search, compute_flop, most=True)


def spend_at_least(search: TargetSearch, compute_flop: float) -> str:
    """The amount to write for a run of at least this compute."""
    return _bound_text(search, compute_flop, most=False)


def _bound_text(search: TargetSearch, compute_flop: float, *, most: bool) -> str:
    inputs, bound = search.inputs, "at most" if most else "at least"
    if inputs.budget.currency == "compute":
        return f"spend {bound} {compute_flop:.2g} FLOP"
    if inputs.budget.currency == "loss":
        bound = "at least" if most else "at most"
        return f"set a loss of {bound} {reachable_loss(search, compute_flop, most=most):g} nats/token"
    costs = _costs(search, compute_flop)
    if not costs:
        return f"set {inputs.budget.currency} so that it buys {bound} {compute_flop:.2g} FLOP"
    return f"spend {bound} {amount_text(inputs, min(costs) if most else max(costs), most=most)}"


def most_to_spend(search: TargetSearch, compute_flop: float) -> float | None:
    """The amount that `spend_at_most` names, in the budget's unit; None where it names none."""
    inputs = search.inputs
    if inputs.budget.currency == "compute":
        return compute_flop
    if inputs.budget.currency == "loss":
        return reachable_loss(search, compute_flop)
    costs = _costs(search, compute_flop)
    return _rounded(inputs, min(costs), most=True) * _unit(inputs) if costs else None


def _costs(search: TargetSearch, compute_flop: float) -> list[float]:
    """What the run of this compute costs, and the same with its depth balanced; empty where it fits no layout."""
    try:
        drafted = search.draft(compute_flop)
        balanced = search.draft(compute_flop, drafted.execution.layout.pp)
    except NoLayoutError:
        return []
    return [cost_in_currency(search.inputs, planned.cost) for planned in (drafted, balanced)]


def _unit(inputs: PlanInputs) -> float:
    """What amounts are written in: hours, as a budget keeps seconds and joules."""
    return 3600.0 if inputs.budget.currency in ("energy", "deadline") else 1.0


def _rounded(inputs: PlanInputs, amount: float, *, most: bool) -> float:
    """An amount in its unit, to two digits, a little inside of the bound."""
    in_unit = amount / _unit(inputs)
    return rounded_down(_MARGIN * in_unit) if most else rounded_up(in_unit / _MARGIN)


def amount_text(inputs: PlanInputs, amount: float, *, most: bool = True) -> str:
    """An amount in the budget's currency as a budget writes it, to two digits, a little inside of the bound."""
    rounded = _rounded(inputs, amount, most=most)
    match inputs.budget.currency:
        case "money":
            return f"${count(rounded)}"
        case "energy":
            return energy(rounded * _unit(inputs))
        case "deadline":
            return f"{rounded:g} h"
    return f"{count(rounded)} device-hours"


def reachable_loss(search: TargetSearch, compute_flop: float, *, most: bool = True) -> float:
    """The loss that this compute reaches by the loss law, rounded to a thousandth on the safe side."""
    surface, model = search.laws.surface, search.shape(compute_flop)
    assert surface is not None  # check_laws refuses a target loss without a loss law
    loss = surface.loss(surface.measure(model), compute_flop / model.flop_per_token)
    return (math.ceil(1e3 * loss + 0.2) if most else math.floor(1e3 * loss - 0.2)) / 1e3


def rounded_up(value: float, digits: int = 2) -> float:
    """So many significant digits, upwards."""
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return float(f"{math.ceil(value / unit * (1 - 1e-9)) * unit:.{digits}g}")


def rounded_down(value: float) -> float:
    """Two significant digits, towards zero."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / unit * (1 + 1e-9)) * unit:.2g}")
