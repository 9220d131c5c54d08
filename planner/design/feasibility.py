"""Why a budget has no target run, and the nearest thing that would work: tried before it is proposed where it can."""

import math
from collections.abc import Sequence

from planner.design.allocation import missing_law
from planner.design.budget_currency import (
    amount_text,
    cost_in_currency,
    rounded_down,
    rounded_up,
    spend_at_most,
)
from planner.design.inputs import PlanInputs
from planner.design.pilot_design import Ladder
from planner.design.target_search import TargetSearch
from planner.performance.layout_search import NoLayoutError, UndividedBatchError
from planner.scaling.data_constrained import TRUSTED_EPOCHS
from planner.scaling.isoflop import Minimum
from specs.budget import FixedSize, Pilots, Published
from specs.data import DeclaredText
from specs.document.files import DocumentError, catalog_names, from_catalog
from specs.humanize import count, duration
from specs.law import Allocation, EvidencePoint, PublishedLaw
from specs.plan import LadderChoice, PlannedRun

DEFAULT_LOSS_LAW = "epoch-chinchilla"
"""The loss law that weighs training against serving where a budget names none (Besiroglu et al., arXiv 2404.10102)."""
_LOSS_LAW_REMEDY = (
    "give compute, or evidence.kind: pilots on your own data: published loss laws hold for their own text"
)
_MAX_DOUBLINGS = 20
"""Clusters up to a million times as large, and budgets down to a millionth, are looked at."""


def check_laws(search: TargetSearch) -> None:
    """Refuse an objective or a currency that the laws at hand know nothing about."""
    inputs, laws = search.inputs, search.laws
    lacks = missing_law(inputs.budget.objective, laws)
    if lacks:
        named = inputs.budget.evidence
        field = "evidence.law" if isinstance(named, Published) else "evidence"
        split = "allocation" in lacks
        what = f"the law {inputs.law.name} has no allocation" if split else f"the objective needs {lacks}"
        raise inputs.refuse(
            field, what, _allocation_remedy(inputs) if split else _loss_law_remedy(inputs, DEFAULT_LOSS_LAW)
        )
    if inputs.budget.loss is None:
        return
    if laws.surface is None:
        fitting = [law.name for law in _loss_laws(inputs) if law.data == inputs.text]
        raise inputs.refuse("loss", "a target loss needs a loss law", _loss_law_remedy(inputs, *fitting))
    law = inputs.loss_law
    if law is not None and law.data != inputs.text:
        what = (
            f"the loss law {law.name} holds for {law.data}, not for {inputs.text}: losses do not carry over"
        )
        raise inputs.refuse("loss", what, _LOSS_LAW_REMEDY)


def _allocation_remedy(inputs: PlanInputs) -> str:
    """A law with an allocation; its learning rate and batch stay with the law that was named."""
    named = inputs.budget.evidence
    if isinstance(named, Published) and named.hyper is None and inputs.law.hyper is not None:
        return f"write law: deepseek, hyper: {inputs.law.name}"
    return "write law: deepseek"


def _loss_law_remedy(inputs: PlanInputs, *fitting: str) -> str:
    """A loss law beside the one that is named; none where none holds for the text."""
    if not isinstance(inputs.budget.evidence, Published):
        return "audit the pilots of a budget in compute first"
    if not fitting:
        return _LOSS_LAW_REMEDY
    return f"write law: {inputs.law.name}, loss: {fitting[0]}"


def _loss_laws(inputs: PlanInputs) -> list[PublishedLaw]:
    """The catalog's laws that print one."""
    laws = (from_catalog(PublishedLaw, name, inputs.path) for name in catalog_names(PublishedLaw))
    return [law for law in laws if law.loss is not None]


def prior_allocation(inputs: PlanInputs) -> Allocation:
    """The allocation that centres the pilots."""
    if inputs.law.allocation is None:
        what = f"the law {inputs.law.name} has no allocation"
        raise inputs.refuse("evidence.prior", what, "name one that has, like deepseek")
    return inputs.law.allocation


def check_pilot_reach(inputs: PlanInputs, evidence: Pilots, ladder: Ladder) -> None:
    """Refuse a ladder that ends too far below the target."""
    beyond = 1 / ladder.top
    if beyond <= evidence.reach:
        return
    share = evidence.share * beyond / evidence.reach
    what = f"the target is {beyond:,.4g} times beyond the largest pilot, and {evidence.reach:,.6g} times is allowed"
    write = f"write share: {math.ceil(share * 1e4) / 1e4:g}, or allow it: reach: {rounded_up(beyond):g}"
    raise inputs.refuse("evidence.share", what, write)


def check_points(inputs: PlanInputs, points: Sequence[EvidencePoint]) -> None:
    """Refuse to look for a loss in a ledger that holds no law."""
    if inputs.budget.loss is None or len({point.budget_flop for point in points}) > 1:
        return
    what = (
        f"a target loss needs a loss law, and the ledger has {len(points)} runs on this text, too few for one"
    )
    raise inputs.refuse("loss", what, "give compute first, and audit its pilots")


def check_minima(inputs: PlanInputs, minima: Sequence[Minimum], ladder: LadderChoice | None) -> None:
    """Refuse a ladder whose profiles all fall towards the same end: the best size lies beyond its sizes.

    Where some fall towards the smallest size and some towards the largest, the runs cannot tell, and the prior stands.
    """
    if any(minimum.bracketed for minimum in minima):
        return
    sides = {side for minimum in minima for side in ("smallest", "largest") if side in minimum.reason}
    if len(sides) != 1:
        return
    reasons = "; ".join(f"at {minimum.flop:.3g} FLOP {minimum.reason}" for minimum in minima)
    write = "audit pilots over a wider range of sizes under another name"
    if ladder is not None:
        write += f": write spread: {min(4.0, math.ceil(15 * ladder.spread) / 10):g}"
    raise inputs.refuse("evidence", f"the ledger has no interior optimum: {reasons}", write)


def check_batch(inputs: PlanInputs) -> None:
    """Refuse a batch that is not whole sequences."""
    batch, context = inputs.budget.batch, inputs.family.context
    if batch is not None and batch % context:
        nearest = max(1, round(batch / context)) * context
        what = f"{batch:,} tokens are not a whole number of sequences of {context:,}"
        raise inputs.refuse("batch", what, f"write batch: {nearest} tokens")


def indivisible_batch_error(
    search: TargetSearch, compute_flop: float, error: UndividedBatchError
) -> DocumentError:
    """The refusal of a batch that no layout divides, with the nearest one that some layout does."""
    inputs = search.inputs
    batch, context = inputs.budget.batch, inputs.family.context
    assert batch is not None  # only a batch of the budget's is kept as it is
    for sequences in _nearby_batches(batch // context):
        if _has_layout(search.asking(batch=sequences * context), compute_flop):
            return inputs.refuse("batch", str(error), f"write batch: {sequences * context} tokens")
    return inputs.refuse("batch", str(error), "leave it out, so that the law's is rounded to one that fits")


def _nearby_batches(sequences: int) -> list[int]:
    """Multiples of each power of two on either side of a batch, nearest first."""
    grains = [2**k for k in range(sequences.bit_length() + 1)]
    found = {g * max(1, sequences // g + up) for g in grains for up in (0, 1)}
    return sorted(found - {sequences}, key=lambda batch: (abs(batch - sequences), batch))


def no_layout_error(search: TargetSearch, compute_flop: float, error: NoLayoutError) -> DocumentError:
    """The refusal of a run that fits no layout, with the smallest cluster and the largest budget that would do."""
    inputs = search.inputs
    devices = (inputs.cluster.devices * 2**k for k in range(1, _MAX_DOUBLINGS + 1))
    enough = next((n for n in devices if _has_layout(search.on(n), compute_flop)), None)
    remedies = [] if enough is None else [f"name a cluster of {enough} such devices"]
    smaller = _largest_that_fits(search, compute_flop)
    remedies += [] if smaller is None else [smaller]
    return inputs.refuse("cluster", str(error), ", or ".join(remedies) or "name a cluster of larger devices")


def _largest_that_fits(search: TargetSearch, compute_flop: float) -> str | None:
    """The largest of a row of halved budgets, or sizes where the budget fixes one, that fits the cluster."""
    objective = search.inputs.budget.objective
    for k in range(1, _MAX_DOUBLINGS + 1):
        if isinstance(objective, FixedSize):
            params = round(rounded_down(objective.params / 2**k))
            smaller = search.asking(objective=FixedSize(kind="size", params=max(1, params)))
            if _has_layout(smaller, compute_flop):
                return f"write objective.params: {count(params)} params"
        elif _has_layout(search, rounded_down(compute_flop / 2**k)):
            return spend_at_most(search, rounded_down(compute_flop / 2**k))
    return None


def _has_layout(search: TargetSearch, compute_flop: float) -> bool:
    try:
        search.draft(compute_flop)
    except (NoLayoutError, UndividedBatchError):
        return False
    return True


def check_data(search: TargetSearch, planned: PlannedRun) -> None:
    """Refuse a run that needs more passes over the text than the budget allows."""
    inputs, budget = search.inputs, search.inputs.budget
    unique, tokens = inputs.unique_tokens, planned.run.tokens
    if tokens <= budget.epochs * unique:
        return
    declared = isinstance(budget.data.text, DeclaredText)
    what = (
        f"the run takes {count(tokens)} tokens, {tokens / unique:.3g} passes over the {count(unique)} unique ones, "
        f"and {budget.epochs:g} are allowed"
    )
    most = _compute_for_tokens(search, budget.epochs * unique, planned.budget_flop)
    remedies = [f"bring {count(tokens / budget.epochs)} unique tokens", spend_at_most(search, most)]
    passes = math.ceil(10 * tokens / unique) / 10
    if passes <= TRUSTED_EPOCHS:
        remedies.append(f"allow it: epochs: {passes:g}")
    field = "data.text.unique" if declared else "data.text"
    raise inputs.refuse(field, what, ", or ".join(remedies))


def _compute_for_tokens(search: TargetSearch, tokens: float, above_flop: float) -> float:
    """The largest compute, within a hundredth, whose run takes at most these tokens."""
    low, high = 0.0, math.log(above_flop)
    while high - low > 0.01:
        middle = (low + high) / 2
        fits = math.exp(middle) / search.shape(math.exp(middle)).flop_per_token <= tokens
        low, high = (middle, high) if fits else (low, middle)
    return rounded_down(math.exp(low))


def check_deadline(search: TargetSearch, planned: PlannedRun) -> None:
    """Refuse a run that takes longer than the deadline beside another currency."""
    inputs = search.inputs
    deadline, took_s = inputs.budget.deadline, planned.cost.hours * 3600
    if deadline is None or inputs.budget.currency == "deadline" or took_s <= deadline:
        return
    within = deadline / took_s
    if inputs.budget.currency in ("compute", "loss"):
        most = spend_at_most(search, rounded_down(within * planned.budget_flop))
    else:  # hours, and with them money and energy, are as many as the time
        most = f"spend at most {amount_text(inputs, within * cost_in_currency(inputs, planned.cost))}"
    devices = math.ceil(inputs.cluster.devices * took_s / deadline)
    what = f"the target run takes {planned.cost.hours:.4g} h ({duration(took_s)}), and {duration(deadline)} are given"
    hours = math.ceil(planned.cost.hours)
    write = f"allow {hours} h, {most}, or name a cluster of {devices} such devices"
    raise inputs.refuse("deadline", what, write)
