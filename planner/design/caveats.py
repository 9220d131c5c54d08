"""Notes that a reader of a plan needs beside its numbers: extrapolation, repeated data, short runs, serving cost."""

from collections.abc import Iterator, Sequence

from planner.design.allocation import Laws, least_compute_for_loss, serving_flop
from planner.design.hyperparameters import disagreement_note, own_rate_note
from planner.design.inputs import PlanInputs
from planner.design.target_search import TargetSearch
from planner.scaling.data_constrained import effective_tokens, one_epoch
from specs.budget import FixedRatio, FixedSize, Inference, Optimal, Published
from specs.humanize import count, duration, energy, several
from specs.law import PublishedLaw
from specs.plan import Cost, HyperAdvice, LadderChoice, PlannedRun

_MAX_NAMED = 4
"""Runs that a note names one by one; of more it gives the number."""
_SAMPLE = 100
"""Characters of a text that are shown."""


def notes(
    inputs: PlanInputs,
    runs: Sequence[PlannedRun],
    laws: Laws | None = None,
    hypers: tuple[HyperAdvice, ...] = (),
) -> tuple[str, ...]:
    """All notes on a plan of these runs. `laws` and `hypers` are the target's; a plan of pilots has none."""
    found = [*_extrapolation(inputs, runs[-1]), *_repeats(inputs, runs), *_short_runs(inputs, runs)]
    found += _corpus(inputs)
    if laws is not None:
        found += _assumed_of_table(inputs)
        found += [*_objective(inputs, laws, runs[-1]), *_overrides(inputs, runs[-1], hypers)]
    return tuple(found)


def _assumed_of_table(inputs: PlanInputs) -> Iterator[str]:
    """What was assumed when the table was read."""
    if inputs.table is not None:
        yield from (f"{inputs.table.path}: {note}" for note in inputs.table.notes)


def prior_target_note(planned: PlannedRun, prior: PublishedLaw) -> str:
    """Shape and cost of the target by the prior law, for a plan that has only its pilots."""
    run, cost = planned.run, planned.cost
    return (
        f"target run by the prior law {prior.name}: {several(run.model.layers, 'layer')} x {run.model.width}, "
        f"{count(run.tokens)} tokens; {cost.compute_flop:.3g} FLOP, {duration(cost.hours * 3600)}, {cost_text(cost)}"
    )


def ladder_note(ladder: LadderChoice) -> str:
    """The expected interval of the target's loss with this ladder, and with others of equal cost."""
    text = (
        f"expected 95 % interval of the target's loss: ±{ladder.half_width:.1%} with this ladder of pilots, "
    )
    text += f"±{ladder.paper_half_width:.1%} with DeepSeek LLM's ladder (8 budgets x 10 sizes) at equal cost"
    if round(ladder.best_half_width, 3) < round(ladder.half_width, 3):
        text += (
            f", ±{ladder.best_half_width:.1%} with the best ladder (to use it, omit "
            "evidence.budgets, evidence.sizes and evidence.spread)"
        )
    return text.replace("%", " %").replace("  %", " %")


def cost_text(cost: Cost) -> str:
    """A run's device-hours, money and energy."""
    hours = f"{cost.device_hours:,.0f}" if cost.device_hours >= 1000 else f"{cost.device_hours:.3g}"
    price = "price unknown" if cost.dollars is None else f"${cost.dollars:,.0f}"
    used = "energy unknown" if cost.energy_j is None else f"{energy(cost.energy_j)} used by the devices"
    return f"{hours} device-hours, {price}, {used}"


def _extrapolation(inputs: PlanInputs, planned: PlannedRun) -> Iterator[str]:
    flop, low, high = planned.budget_flop, inputs.law.compute_low_flop, inputs.law.compute_high_flop
    if not low <= flop <= high and isinstance(inputs.budget.evidence, Published):
        factor, side = (flop / high, "above") if flop > high else (low / flop, "below")
        yield (
            f"extrapolation: {flop:.1e} FLOP is {factor:,.4g} times {side} the range that the law {inputs.law.name} "
            f"was fitted on, {low:.1e} to {high:.1e} FLOP"
        )


def _corpus(inputs: PlanInputs) -> Iterator[str]:
    """What is unusual in the corpora, and the first words of tokens that others made."""
    if inputs.sources is None:
        return
    corpora = inputs.sources.corpora
    yield from (_of(name, note) for name, corpus in corpora.items() for note in corpus.notes)
    if inputs.bytes_per_token is None:
        yield "losses are in nats per token, as the bytes of the text are not known"
    for name, corpus in corpora.items():
        if corpus.sample is not None:
            yield _of(name, f"the first held-out tokens read: {corpus.sample[:_SAMPLE]!r}")


def _of(source: str, text: str) -> str:
    """A text on a source of a mix, or on the one corpus."""
    return f"{source}: {text}" if source else text


def _repeats(inputs: PlanInputs, runs: Sequence[PlannedRun]) -> Iterator[str]:
    for planned in runs:
        epochs = planned.run.tokens / one_epoch(inputs.unique_text)
        if epochs > 1:
            worth = effective_tokens(float(planned.run.tokens), inputs.unique_text) / planned.run.tokens
            over = _over(inputs, planned) or f"{epochs:.2f} epochs over the unique tokens"
            yield (
                f"{planned.title}: {over}; the repeated tokens are worth "
                f"{worth:.1%} of the same number of unique tokens (Muennighoff et al., arXiv 2305.16264)"
            )


def _over(inputs: PlanInputs, planned: PlannedRun) -> str:
    """The epochs of each source of a mix that is repeated; empty where the text is no mix."""
    if inputs.mix is None:
        return ""
    tokens = planned.run.tokens
    epochs = {
        name: share * tokens / inputs.mix.unique_tokens[name] for name, share in inputs.mix.shares.items()
    }
    return ", ".join(f"{value:.2f} epochs of {name}" for name, value in epochs.items() if value > 1)


def _short_runs(inputs: PlanInputs, runs: Sequence[PlannedRun]) -> Iterator[str]:
    short = [planned.title for planned in runs if planned.run.optim.steps < inputs.family.min_steps]
    if short:
        which = "; ".join(short) if len(short) <= _MAX_NAMED else f"{len(short)} of {len(runs)} runs"
        yield f"short runs with noisier losses (under {inputs.family.min_steps} steps): {which}"


def _objective(inputs: PlanInputs, laws: Laws, planned: PlannedRun) -> Iterator[str]:
    """How far the run is from the compute-optimal allocation, where the budget has another objective."""
    objective = inputs.budget.objective
    if isinstance(objective, Inference):
        yield _serving(inputs, laws, planned, objective)
    elif isinstance(objective, FixedSize | FixedRatio) and (laws.allocation or laws.surface):
        best = (
            TargetSearch(inputs, laws)
            .with_budget(objective=Optimal(kind="optimal"))
            .shape(planned.budget_flop)
        )
        share = best.flop_per_token / planned.run.model.flop_per_token
        excess = f"{share:.3g} times the tokens" if share > 1 else f"{1 / share:.3g} times the parameters"
        field = "params" if isinstance(objective, FixedSize) else "tokens_per_param"
        yield f"the budget sets objective.{field}: the run has {excess} of the compute-optimal run"


def _serving(inputs: PlanInputs, laws: Laws, planned: PlannedRun, objective: Inference) -> str:
    """FLOP of training and inference, against those of the compute-optimal model with the same loss."""
    surface, model, served = laws.surface, planned.run.model, objective.served
    assert surface is not None  # check_laws refuses this objective without a loss law
    loss = surface.loss(surface.measure(model), planned.run.tokens)
    best = TargetSearch(inputs, Laws(None, surface)).with_budget(objective=Optimal(kind="optimal"))
    plain = least_compute_for_loss(loss, surface, best.shape, planned.run.compute_flop)
    other = best.shape(plain)
    ours = planned.run.compute_flop + serving_flop(model, served)
    theirs = plain + serving_flop(other, served)
    return (
        f"training and inference on {count(served)} tokens take {ours:.3g} FLOP; the compute-optimal model of the same "
        f"loss (by the loss law {surface.name}) has {count(other.params)} parameters and takes {theirs:.3g} FLOP"
    )


def _overrides(inputs: PlanInputs, planned: PlannedRun, hypers: tuple[HyperAdvice, ...]) -> Iterator[str]:
    """Where laws disagree on learning rate and batch, and where the budget or the batch overrides them."""
    yield from (note for note in (disagreement_note(hypers), own_rate_note(hypers, planned)) if note)
    if inputs.budget.batch is not None:
        yield (
            f"the budget sets batch, but the learning rate of the law {inputs.hyper_law.name} assumes that "
            f"{inputs.hyper.regime}; to use the law's batch size, omit batch"
        )
    if planned.execution.layout.devices < inputs.cluster.devices:
        used = f"the run uses {planned.execution.layout.devices} of the cluster's {inputs.cluster.devices} devices"
        if inputs.budget.batch is None:
            yield f"{used}: with more, the batch per device would be too small"
        else:
            yield (
                f"{used}: more of them cannot share the budget's batch of "
                f"{several(planned.run.optim.batch_sequences, 'sequence')} evenly, or would have too little of it each"
            )
