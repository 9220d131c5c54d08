"""What a reader of a plan must know besides its numbers: extrapolation, repeats, short runs, what serving trades."""

from collections.abc import Iterator, Sequence

from planner.design.allocation import Laws, least_compute_for_loss, serving_flop
from planner.design.hyperparameters import disagreement_note, ledger_rate_note
from planner.design.inputs import PlanInputs
from planner.design.target_search import TargetSearch
from planner.scaling.data_constrained import effective_tokens
from specs.budget import FixedRatio, FixedSize, Inference, Optimal, Published
from specs.humanize import count, duration, energy, several
from specs.law import PublishedLaw
from specs.plan import Cost, HyperAdvice, LadderChoice, PlannedRun

_MAX_NAMED = 4
"""Runs that a note names one by one."""


def notes(
    inputs: PlanInputs,
    runs: Sequence[PlannedRun],
    laws: Laws | None = None,
    hypers: tuple[HyperAdvice, ...] = (),
) -> tuple[str, ...]:
    """Every note on a plan of these runs; `laws` and `hypers` are the target's, without them in a plan of pilots."""
    found = [*_extrapolation(inputs, runs[-1]), *_repeats(inputs, runs), *_short_runs(inputs, runs)]
    if laws is not None:
        found += [*_objective(inputs, laws, runs[-1]), *_overrides(inputs, runs[-1], hypers)]
    return tuple(found)


def prior_target_note(planned: PlannedRun, prior: PublishedLaw) -> str:
    """What the target will be and cost if the prior is right, for a plan that has its pilots only."""
    run, cost = planned.run, planned.cost
    return (
        f"the target as the prior {prior.name} has it: {several(run.model.layers, 'layer')} x {run.model.width}, "
        f"{count(run.tokens)} tokens; {cost.compute_flop:.3g} FLOP, {duration(cost.hours * 3600)}, {cost_text(cost)}"
    )


def ladder_note(ladder: LadderChoice) -> str:
    """How sure of the target's loss the ladder should make, beside what the same compute could have bought."""
    said = f"this ladder should leave ±{ladder.half_width:.1%} at the target, 95 %; the paper's 8 x 10 at equal cost "
    said += f"±{ladder.paper_half_width:.1%}"
    if round(ladder.best_half_width, 3) < round(ladder.half_width, 3):
        said += f", one chosen freely ±{ladder.best_half_width:.1%} (leave out evidence.budgets, sizes and spread)"
    return said.replace("%", " %").replace("  %", " %")


def cost_text(cost: Cost) -> str:
    """What a run costs besides its FLOP."""
    hours = f"{cost.device_hours:,.0f}" if cost.device_hours >= 1000 else f"{cost.device_hours:.3g}"
    price = "no price known" if cost.dollars is None else f"${cost.dollars:,.0f}"
    power = "no power known" if cost.energy_j is None else f"{energy(cost.energy_j)} of the devices"
    return f"{hours} device-hours, {price}, {power}"


def _extrapolation(inputs: PlanInputs, planned: PlannedRun) -> Iterator[str]:
    top, low, high = planned.budget_flop, inputs.law.compute_low_flop, inputs.law.compute_high_flop
    if not low <= top <= high and isinstance(inputs.budget.evidence, Published):
        beyond = top / high if top > high else low / top
        yield (
            f"the law {inputs.law.name} was fitted on {low:.1e} to {high:.1e} FLOP; {top:.1e} is an extrapolation, "
            f"{beyond:,.4g} times"
        )


def _repeats(inputs: PlanInputs, runs: Sequence[PlannedRun]) -> Iterator[str]:
    for planned in runs:
        epochs = planned.run.tokens / inputs.unique_tokens
        if epochs > 1:
            worth = effective_tokens(planned.run.tokens, inputs.unique_tokens) / planned.run.tokens
            yield (
                f"{planned.title}: {epochs:.2f} epochs over the unique tokens, worth {worth:.1%} of as many fresh ones "
                "(Muennighoff et al., arXiv 2305.16264)"
            )


def _short_runs(inputs: PlanInputs, runs: Sequence[PlannedRun]) -> Iterator[str]:
    short = [planned.title for planned in runs if planned.run.optim.steps < inputs.family.min_steps]
    if short:
        which = "; ".join(short) if len(short) <= _MAX_NAMED else f"{len(short)} of {len(runs)} runs"
        yield f"under {inputs.family.min_steps} steps, so that their losses scatter: {which}"


def _objective(inputs: PlanInputs, laws: Laws, planned: PlannedRun) -> Iterator[str]:
    """How far the run is from the best split of its compute, where that is not what was asked for."""
    objective = inputs.budget.objective
    if isinstance(objective, Inference):
        yield _serving(inputs, laws, planned, objective)
    elif isinstance(objective, FixedSize | FixedRatio) and (laws.allocation or laws.surface):
        best = TargetSearch(inputs, laws).asking(objective=Optimal(kind="optimal")).shape(planned.budget_flop)
        share = best.flop_per_token / planned.run.model.flop_per_token
        said = f"{share:.3g} times the tokens" if share > 1 else f"{1 / share:.3g} times the size"
        yield f"the size is the budget's, not the law's: the run has {said} of the best split of its compute"


def _serving(inputs: PlanInputs, laws: Laws, planned: PlannedRun, objective: Inference) -> str:
    """What the smaller model saves in training and serving together, against the best split with the same loss."""
    surface, model, served = laws.surface, planned.run.model, objective.served
    assert surface is not None  # check_laws has refused the objective without one
    loss = surface.loss(surface.measure(model), planned.run.tokens)
    best = TargetSearch(inputs, Laws(None, surface)).asking(objective=Optimal(kind="optimal"))
    plain = least_compute_for_loss(loss, surface, best.shape, planned.run.compute_flop)
    other = best.shape(plain)
    ours = planned.run.compute_flop + serving_flop(model, served)
    theirs = plain + serving_flop(other, served)
    return (
        f"for {count(served)} served tokens, training and serving take {ours:.3g} FLOP; the best split of training "
        f"compute with the same loss by {surface.name} has {count(other.params)} parameters and takes {theirs:.3g}"
    )


def _overrides(inputs: PlanInputs, planned: PlannedRun, hypers: tuple[HyperAdvice, ...]) -> Iterator[str]:
    """Where laws disagree on learning rate and batch, and where the budget overrode them."""
    yield from (said for said in (disagreement_note(hypers), ledger_rate_note(hypers, planned)) if said)
    if inputs.budget.batch is not None:
        yield (
            f"the batch is the budget's; the learning rate of {inputs.hyper_law.name} supposes that "
            f"{inputs.hyper.regime}"
        )
    if planned.execution.layout.devices < inputs.cluster.devices:
        yield (
            f"the run uses {planned.execution.layout.devices} of {inputs.cluster.devices} devices: "
            "its batch has no more to give them"
        )
