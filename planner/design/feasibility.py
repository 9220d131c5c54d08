"""Why a budget has no feasible target run, and the nearest budget that has one. Proposals are tried where possible."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from planner.design.allocation import least_compute_for_loss, missing_law
from planner.design.budget_currency import (
    MAX_FLOP,
    amount_text,
    cost_in_currency,
    most_to_spend,
    rounded_down,
    rounded_up,
    spend_at_most,
)
from planner.design.inputs import PlanInputs
from planner.design.model_shape import SIZE_FREEDOM
from planner.design.pilot_design import Ladder
from planner.design.run_draft import DraftRequest, draft, evaluation_sequences
from planner.design.target_search import TargetSearch, run_settings
from planner.performance.layout_search import NoLayoutError
from planner.scaling.data_constrained import TRUSTED_EPOCHS, one_epoch
from planner.scaling.isoflop import Minimum
from specs.budget import FixedSize, Inference, Optimal, Pilots, Published
from specs.data import Corpus, DeclaredText, HeldOutChoice
from specs.document.files import DocumentError, catalog_names, from_catalog
from specs.formatting import memory
from specs.host_memory import rank_bytes, ranks_of_node
from specs.humanize import count, duration, several
from specs.law import Allocation, PublishedLaw
from specs.mix import held_out_sequences
from specs.plan import LadderChoice, PlannedRun

DEFAULT_LOSS_LAW = "epoch-chinchilla"
"""Proposed to budgets that need a loss law and name none (Besiroglu et al., arXiv 2404.10102)."""
_LOSS_LAW_REMEDY = (
    "give the budget in compute, or fit a law on your own data (evidence.kind: pilots): a published loss law holds "
    "only for the text that it was fitted on"
)
_FIRST_PILOTS = "first plan a budget that sets compute, then run and audit its pilots"
HELD_OUT_MARGIN = 1.02
"""Over what is needed: a tokenizer that is trained on another split needs other tokens, by .1 % (our measurement)."""
_DEADLINE_TRIES = 5
"""Runs that are planned to find one that ends in time."""
_MAX_DOUBLINGS = 20
"""Clusters up to a million times as large, and budgets down to a millionth, are tried."""


def check_laws(search: TargetSearch) -> None:
    """Refuse an objective or a currency that the laws cannot serve."""
    inputs, laws = search.inputs, search.laws
    missing = missing_law(inputs.budget.objective, laws)
    if missing:
        field = "evidence.law" if isinstance(inputs.budget.evidence, Published) else "evidence"
        if "allocation" in missing:
            what = f"the law {inputs.law.name} gives no compute-optimal allocation (parameters and tokens)"
            raise inputs.refuse(field, what, _allocation_remedy(inputs))
        raise inputs.refuse(
            field, f"the objective needs {missing}", _loss_law_remedy(inputs, DEFAULT_LOSS_LAW)
        )
    if inputs.budget.loss is None:
        return
    if laws.surface is None:
        fitting = [law.name for law in _loss_laws(inputs) if law.data == inputs.text]
        raise inputs.refuse("loss", "a target loss needs a loss law", _loss_law_remedy(inputs, *fitting))
    law = inputs.loss_law
    if law is not None and law.data != inputs.text:
        what = (
            f"the loss law {law.name} was fitted on {law.data}, and losses do not carry over to {inputs.text}"
        )
        raise inputs.refuse("loss", what, _LOSS_LAW_REMEDY)


def _allocation_remedy(inputs: PlanInputs) -> str:
    """Name a law with an allocation, and keep the named law for learning rate and batch."""
    named = inputs.budget.evidence
    if isinstance(named, Published) and named.hyper is None and inputs.law.hyper is not None:
        return f"write evidence.law: deepseek and evidence.hyper: {inputs.law.name}"
    return "write evidence.law: deepseek"


def _loss_law_remedy(inputs: PlanInputs, *fitting: str) -> str:
    """Name a loss law in addition to the law of the budget, the first of `fitting`."""
    if not isinstance(inputs.budget.evidence, Published):
        return _FIRST_PILOTS
    if not fitting:
        return _LOSS_LAW_REMEDY
    return f"write evidence.law: {inputs.law.name} and evidence.loss: {fitting[0]}"


def _loss_laws(inputs: PlanInputs) -> list[PublishedLaw]:
    """The catalog's laws that give a loss."""
    laws = (from_catalog(PublishedLaw, name, inputs.path) for name in catalog_names(PublishedLaw))
    return [law for law in laws if law.loss is not None]


def no_optimum_error(inputs: PlanInputs, reason: str) -> DocumentError:
    """The error of laws without a best split; `reason` says towards which size the loss falls."""
    write = {
        "published": "set evidence.law to a law that gives a compute-optimal allocation, e.g. deepseek",
        "pilots": "give the budget another name, then plan, run and audit pilots over a wider range of sizes",
        "runs": "add runs of other sizes to the table, or set the size by objective: {kind: size} or {kind: ratio}",
    }
    return inputs.refuse("evidence", reason, write[inputs.budget.evidence.kind])


def prior_allocation(inputs: PlanInputs) -> Allocation:
    """The prior law's allocation, on which the pilots' sizes are centred."""
    if inputs.law.allocation is None:
        what = f"the law {inputs.law.name} gives no compute-optimal allocation (parameters and tokens)"
        raise inputs.refuse(
            "evidence.prior", what, "set evidence.prior to a law that gives one, e.g. deepseek"
        )
    return inputs.law.allocation


def check_pilot_reach(inputs: PlanInputs, evidence: Pilots, ladder: Ladder) -> None:
    """Refuse a ladder whose largest pilots are too far below the target."""
    beyond = 1 / ladder.top_share
    if beyond <= evidence.reach:
        return
    share = evidence.share * beyond / evidence.reach
    what = (
        f"the target has {beyond:,.4g} times the compute of the largest pilot, but evidence.reach allows only "
        f"{evidence.reach:,.6g} times"
    )
    write = (
        f"write evidence.share: {math.ceil(share * 1e4) / 1e4:g} for larger pilots, or evidence.reach: "
        f"{rounded_up(beyond):g}"
    )
    raise inputs.refuse("evidence.share", what, write)


def draft_pilot(inputs: PlanInputs, request: DraftRequest) -> PlannedRun:
    """A pilot on its share of the devices, or on twice, four times as many where it fits no fewer."""
    try:
        return draft(run_settings(inputs), request)
    except NoLayoutError as error:
        if request.devices < inputs.cluster.devices:
            more = min(2 * request.devices, inputs.cluster.devices)
            return draft_pilot(inputs, replace(request, devices=more))
        what = f"the pilot {request.title}: {error}"
        raise inputs.refuse("cluster", what, "name a cluster whose devices have more memory") from None


def check_evidence(inputs: PlanInputs, reason: str) -> None:
    """Refuse a target loss or an inference objective where the ledger's runs give no loss law; `reason` says why."""
    budget = inputs.budget
    if reason and budget.loss is not None:
        raise inputs.refuse(
            "loss", f"a target loss needs a loss law of the ledger's runs: {reason}", _FIRST_PILOTS
        )
    if reason and isinstance(budget.objective, Inference):
        what = f"the inference objective needs a loss law of the ledger's runs: {reason}"
        raise inputs.refuse(
            "objective", what, "plan, run and audit more pilots, or write objective: {kind: optimal}"
        )


def check_minima(inputs: PlanInputs, minima: Sequence[Minimum], ladder: LadderChoice | None) -> None:
    """Refuse a ladder whose isoFLOP profiles all fall towards the same end: the best size is beyond those tried.

    Where some fall towards the smallest size and some towards the largest, the runs decide nothing: the prior is kept.
    """
    if any(minimum.bracketed for minimum in minima):
        return
    sides = {side for minimum in minima for side in ("smallest", "largest") if side in minimum.reason}
    if len(sides) != 1:
        return
    reasons = "; ".join(f"at {minimum.flop:.3g} FLOP {minimum.reason}" for minimum in minima)
    write = "give the budget another name, then plan, run and audit pilots over a wider range of sizes"
    if ladder is not None:
        write += f": write evidence.spread: {min(4.0, math.ceil(15 * ladder.spread) / 10):g}"
    raise inputs.refuse(
        "evidence", f"no isoFLOP profile of the ledger has an interior minimum: {reasons}", write
    )


def check_batch(inputs: PlanInputs) -> None:
    """Refuse a batch that is not whole sequences."""
    batch, context = inputs.budget.batch, inputs.family.context
    if batch is not None and batch % context:
        nearest = max(1, round(batch / context)) * context
        what = f"{batch:,} tokens are not a whole number of sequences of {context:,} tokens"
        raise inputs.refuse("batch", what, f"write batch: {nearest} tokens")


def check_held_out(inputs: PlanInputs) -> None:
    """Refuse a corpus, or a source of a mix, that holds out fewer sequences than a run's evaluations take of it."""
    if inputs.sources is None:
        return
    evaluations = evaluation_sequences(inputs.family, inputs.family.context, inputs.mix)
    for name, corpus in inputs.sources.corpora.items():
        taken = [
            sequences if inputs.mix is None else held_out_sequences(inputs.mix.evaluation, sequences)[name]
            for sequences in evaluations
        ]
        _check_held_out(inputs, name, corpus, max(taken))


def _check_held_out(inputs: PlanInputs, name: str, corpus: Corpus, needed: int) -> None:
    context = inputs.family.context
    available = (corpus.held_out.tokens - 1) // context
    if available >= needed:
        return
    what = (
        f"the held-out split{f' of {name}' if name else ''} has {several(available, 'sequence')} of {context:,} "
        f"tokens, but the evaluations of the family {inputs.family.name} take {needed:,}{' of it' if name else ''}"
    )
    field = f"data.text.parts.{name}" if name else "data"
    wanted = HELD_OUT_MARGIN * (needed * context + 1)
    enough = [choice.one_in for choice in corpus.held_out_choices if choice.tokens >= wanted]
    if enough:
        write = f"write held_out_one_in: {max(enough)}{f' in {name}' if name else ''}, then: isoplan data"
        raise inputs.refuse(f"{field}.held_out_one_in", what, write)
    here = HeldOutChoice(one_in=corpus.spec.held_out_one_in, tokens=corpus.held_out.tokens)
    most = max((here, *corpus.held_out_choices), key=lambda choice: choice.tokens)
    more = f"{math.ceil(10 * wanted / most.tokens) / 10:g} times as much text"
    write = f"provide {more} to hold out"
    if most is not here:
        write = f"provide {more} and write held_out_one_in: {most.one_in}{f' in {name}' if name else ''}"
    if inputs.mix is not None:
        write += ", or a smaller share of it in data.text.evaluation"
    raise inputs.refuse(field, what, write)


def _batch_that_fits(
    search: TargetSearch, compute_flop: float, has_run: Callable[[TargetSearch], bool]
) -> str | None:
    """The batch nearest to the budget's that a layout fits: with more replicas a device keeps less of the optimizer."""
    batch, context = search.inputs.budget.batch, search.inputs.family.context
    if batch is None:
        return None
    for sequences in _nearby_batches(batch // context):
        other = search.with_budget(batch=sequences * context)
        if _has_layout(other, compute_flop) and has_run(other):
            return f"write batch: {sequences * context} tokens"
    return None


def _nearby_batches(sequences: int) -> list[int]:
    """Multiples of each power of two on either side of a batch, nearest first."""
    grains = [2**k for k in range(sequences.bit_length() + 1)]
    nearby = {g * max(1, sequences // g + up) for g in grains for up in (0, 1)}
    return sorted(nearby - {sequences}, key=lambda batch: (abs(batch - sequences), batch))


def check_host_memory(inputs: PlanInputs, runs: Sequence[PlannedRun]) -> None:
    """Refuse a run whose ranks need more host memory on a node than the cluster's nodes have."""
    cluster, room = inputs.cluster, inputs.cluster.memory_per_node
    for planned in runs if room is not None else ():
        execution, run = planned.execution, planned.run
        device, layout = execution.device, execution.layout
        each = ranks_of_node(layout.devices, execution.threads_per_rank, device, cluster.devices_per_node)
        of_rank = rank_bytes(run.model, layout, run.optim.batch_sequences, device, planned.cost.memory_bytes)
        if room is not None and each * of_rank > room:
            what = (
                f"{planned.title} needs {memory(each * of_rank)} of host memory on a node ({several(each, 'rank')} of "
                f"{memory(of_rank)}: a checkpoint's copy, the loader, the processes), but memory_per_node is "
                f"{memory(room)}"
            )
            raise inputs.refuse(
                "cluster",
                what,
                "name a cluster whose nodes have more, or one of more nodes, which share the copy",
            )


def no_layout_error(
    search: TargetSearch, compute_flop: float, error: NoLayoutError, has_run: Callable[[TargetSearch], bool]
) -> DocumentError:
    """The error of a run that no layout fits, with the cluster, the budget and the batch nearest to it that fit.

    `has_run` tells whether a changed budget or cluster buys a run: on other devices the same money buys another one.
    """
    inputs = search.inputs
    devices = (inputs.cluster.devices * 2**k for k in range(1, _MAX_DOUBLINGS + 1))
    larger = ((n, search.with_devices(n)) for n in devices)
    enough = next((n for n, other in larger if _has_layout(other, compute_flop) and has_run(other)), None)
    remedies = [] if enough is None else [f"name a cluster of {enough} such devices"]
    smaller = _largest_that_fits(search, compute_flop, has_run)
    remedies += [remedy for remedy in (smaller, _batch_that_fits(search, compute_flop, has_run)) if remedy]
    return inputs.refuse(
        "cluster", str(error), ", or ".join(remedies) or "name a cluster whose devices have more memory"
    )


def _largest_that_fits(
    search: TargetSearch, compute_flop: float, has_run: Callable[[TargetSearch], bool]
) -> str | None:
    """The largest of repeatedly halved budgets (or sizes, where the budget fixes one) that fits the cluster."""
    objective = search.inputs.budget.objective
    for k in range(1, _MAX_DOUBLINGS + 1):
        if isinstance(objective, FixedSize):
            params = round(rounded_down(objective.params / 2**k))
            smaller = search.with_budget(objective=FixedSize(kind="size", params=max(1, params)))
            if _has_layout(smaller, compute_flop) and has_run(smaller):
                return f"write objective.params: {count(params)} params"
        elif _has_layout(search, less := rounded_down(compute_flop / 2**k)):
            amount = most_to_spend(search, less)
            if amount is not None and has_run(search.with_budget(**{search.inputs.budget.currency: amount})):
                return spend_at_most(search, less)
    return None


def _has_layout(search: TargetSearch, compute_flop: float) -> bool:
    try:
        search.draft(compute_flop)
    except NoLayoutError:
        return False
    return True


def check_data(search: TargetSearch, planned: PlannedRun) -> None:
    """Refuse a run that needs more epochs over the text than the budget allows."""
    inputs, budget = search.inputs, search.inputs.budget
    unique, tokens = one_epoch(inputs.unique_text), planned.run.tokens
    if tokens <= budget.epochs * unique:
        return
    what = f"{_passes(inputs, tokens)}, but the budget allows only {budget.epochs:g}"
    stages = planned.execution.layout.pp
    allowed = (
        budget.epochs * unique / (1 if budget.loss is None else 1 + SIZE_FREEDOM)
    )  # a loss keeps three digits
    most = _compute_for_tokens(search, allowed, planned.budget_flop, stages)
    enough = _enough_unique_tokens(search, tokens / budget.epochs, planned.budget_flop)
    remedies = [] if enough is None else [_more_text(inputs, enough)]
    remedies.append(spend_at_most(search, most))
    passes = math.ceil(10 * tokens / unique) / 10
    if passes <= TRUSTED_EPOCHS:
        remedies.append(f"write epochs: {passes:g}")
    field = "data.text.unique" if isinstance(budget.data.text, DeclaredText) else "data.text"
    raise inputs.refuse(field, what, ", or ".join(remedies))


def _passes(inputs: PlanInputs, tokens: float) -> str:
    """How often a run of so many tokens reads the text; of a mix, the source that it reads most often."""
    if inputs.mix is None:
        unique = inputs.unique_tokens
        passes = f"{tokens / unique:.3g} epochs over the {count(unique)} unique tokens"
        return f"the run needs {count(tokens)} tokens, {passes}"
    uniques, shares = inputs.mix.unique_tokens, inputs.mix.shares
    most = max(shares, key=lambda name: shares[name] / uniques[name])
    drawn, unique = tokens * shares[most], uniques[most]
    return (
        f"the run needs {count(drawn)} tokens of {most}, {drawn / unique:.3g} epochs over its {count(unique)} unique "
        "tokens"
    )


def _more_text(inputs: PlanInputs, enough: float) -> str:
    """The remedy of text with so many tokens in an epoch; of a mix, as much of every source more."""
    if inputs.mix is None:
        return f"provide {count(enough)} unique tokens"
    factor = rounded_up(enough / one_epoch(inputs.unique_text), digits=3)
    return f"provide {factor:g} times as many unique tokens of every source"


def unreachable_loss_error(search: TargetSearch, loss: float, allowed_flop: float) -> DocumentError:
    """The error of a target loss that no compute reaches: what the text lacks, or the lowest loss to ask for."""
    inputs, surface = search.inputs, search.laws.surface
    assert surface is not None  # check_laws refuses a target loss without a loss law
    unlimited = search.with_unique_tokens(math.inf)
    lowest, on = _lowest_loss(unlimited), ""
    if lowest <= loss:
        text = f"{count(inputs.unique_tokens)} unique tokens{' of the mix' if inputs.mix is not None else ''}"
        lowest, on = _lowest_loss(search), f" on {text}, repeated without end,"
    what = f"by the loss law {surface.name} even {MAX_FLOP:g} FLOP{on} reach {lowest:.4g} nats per token, not {loss:g}"
    enough = _enough_unique_tokens(search, one_epoch(surface.unique_tokens), allowed_flop) if on else None
    remedies = [] if enough is None else [_more_text(inputs, enough)]
    remedies.append(spend_at_most(search, within_epochs(search, allowed_flop)))
    return inputs.refuse("loss", what, ", or ".join(remedies))


def _lowest_loss(search: TargetSearch) -> float:
    """The loss that MAX_FLOP reaches."""
    surface, model = search.laws.surface, search.shape(MAX_FLOP)
    assert surface is not None  # check_laws refuses a target loss without a loss law
    return surface.loss(surface.measure(model), MAX_FLOP / model.flop_per_token)


def _enough_unique_tokens(search: TargetSearch, least: float, most_flop: float) -> float | None:
    """The least text, within some hundredths, whose run takes no more passes over it than the budget allows, as the
    tokens of an epoch.

    `least` of them, where the run does not depend on the text. Where it does, more: with more text the best run
    of a compute takes more tokens. None where no text lets `most_flop` reach the budget's loss.
    """
    if not _depends_on_text(search):
        return rounded_up(least, digits=3)

    def is_enough(unique: float) -> bool:
        other = search.with_unique_tokens(unique)
        compute = _compute_with(other, most_flop)
        return compute / other.shape(min(compute, MAX_FLOP)).flop_per_token <= limit * unique

    limit = search.inputs.budget.epochs / (1 + SIZE_FREEDOM)
    low, high = math.log(least), math.log(2 * least)
    while not is_enough(math.exp(high)):
        low, high = high, high + math.log(2)
        if high - math.log(least) > _MAX_DOUBLINGS * math.log(2):
            return None
    while high - low > 0.03:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(math.exp(middle)) else (middle, high)
    return rounded_up(math.exp(high), digits=3)


def _depends_on_text(search: TargetSearch) -> bool:
    """Whether the amount of text changes the run, by the loss surface, and not only how often it is read."""
    objective, laws = search.inputs.budget.objective, search.laws
    by_surface = isinstance(objective, Inference) or (
        isinstance(objective, Optimal) and laws.allocation is None
    )
    return laws.surface is not None and (by_surface or search.inputs.budget.loss is not None)


def _compute_with(search: TargetSearch, most_flop: float) -> float:
    """C that a budget in loss takes, infinite where `most_flop` does not reach it; of other budgets `most_flop`."""
    loss, surface = search.inputs.budget.loss, search.laws.surface
    if loss is None or surface is None:
        return most_flop
    return least_compute_for_loss(loss, surface, search.shape, most_flop)


def within_epochs(search: TargetSearch, compute_flop: float) -> float:
    """This compute, or less where its run would take more passes over the text than the budget allows."""
    tokens = search.inputs.budget.epochs * one_epoch(search.inputs.unique_text) / (1 + SIZE_FREEDOM)
    if compute_flop / search.shape(compute_flop).flop_per_token <= tokens:
        return compute_flop
    return _compute_for_tokens(search, tokens, compute_flop)


def _compute_for_tokens(search: TargetSearch, tokens: float, above_flop: float, stages: int = 1) -> float:
    """The largest compute, within a hundredth, whose run takes at most these tokens, balanced over stages or not."""
    low, high = 0.0, math.log(above_flop)
    while high - low > 0.01:
        middle = (low + high) / 2
        shapes = [search.shape(math.exp(middle), count) for count in {1, stages}]
        fits = math.exp(middle) / min(shape.flop_per_token for shape in shapes) <= tokens
        low, high = (middle, high) if fits else (low, middle)
    return rounded_down(math.exp(low))


def check_deadline(search: TargetSearch, planned: PlannedRun, hours_of: Callable[[float], float]) -> None:
    """Refuse a run that takes longer than the deadline that a budget in another currency gives. `hours_of` plans the
    run of a compute and says how long it takes."""
    inputs = search.inputs
    deadline, duration_s = inputs.budget.deadline, planned.cost.hours * 3600
    if deadline is None or inputs.budget.currency == "deadline" or duration_s <= deadline:
        return
    if inputs.budget.currency in ("compute", "loss"):
        fits = _compute_within(deadline, planned, hours_of)
        most = "" if fits is None else f"{spend_at_most(search, fits)}, "
    else:  # device-hours, money and energy are proportional to the time
        within = deadline / duration_s * cost_in_currency(inputs, planned.cost)
        most = f"spend at most {amount_text(inputs, within)}, "
    devices = math.ceil(inputs.cluster.devices * duration_s / deadline)
    what = (
        f"the target run takes {planned.cost.hours:.4g} h ({duration(duration_s)}), and the deadline is "
        f"{duration(deadline)}"
    )
    hours = math.ceil(planned.cost.hours)
    write = f"write deadline: {hours} h, {most}or name a cluster of {devices} such devices"
    raise inputs.refuse("deadline", what, write)


def _compute_within(
    deadline_s: float, planned: PlannedRun, hours_of: Callable[[float], float]
) -> float | None:
    """Compute whose run ends in time, near the largest; None where none is found. A smaller run has another shape and
    another layout, so its time is not in proportion."""
    compute_flop, duration_s = planned.budget_flop, planned.cost.hours * 3600
    for _ in range(_DEADLINE_TRIES):
        compute_flop = rounded_down(compute_flop * deadline_s / duration_s)
        try:
            duration_s = hours_of(compute_flop) * 3600
        except DocumentError:
            return None
        if duration_s <= deadline_s:
            return compute_flop
    return None
