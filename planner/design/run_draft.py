"""One fully specified run of a shape: batch, learning rate, schedule, evaluations, layout and cost."""

from dataclasses import dataclass
from typing import Literal

from planner.design.mix import PlannedMix
from planner.design.model_shape import make_shape
from planner.performance.batch_and_layout import BatchAndLayout, choose_batch_and_layout
from specs.budget import Budget
from specs.cluster import Cluster
from specs.data import CorpusRef
from specs.law import Family, Hyper
from specs.model import ModelSpec
from specs.optim import OptimSpec, in_steps
from specs.plan import Cost, PlannedRun
from specs.run import Evaluation, Execution, RunSpec

EVALUATIONS = 20
"""Evaluations during a run; the learning-rate milestones at 80 % and 90 % coincide with two of them."""


@dataclass(frozen=True)
class RunSettings:
    """Settings that all runs of a plan share."""

    budget: Budget
    family: Family
    cluster: Cluster
    hyper: Hyper
    data: CorpusRef
    vocab: int
    mix: PlannedMix | None
    """Shares of the sources; None where the data are one corpus."""


@dataclass(frozen=True)
class DraftRequest:
    """A requested run, before rounding to whole steps and sequences."""

    role: Literal["pilot", "rate", "target"]
    title: str
    compute_flop: float
    shape: ModelSpec
    devices: int
    rate_multiple: float = 1.0
    batch_tokens: int | None = None
    """Tokens per step that the budget fixes; None for the law's batch."""


def draft(setting: RunSettings, request: DraftRequest, chosen: BatchAndLayout | None = None) -> PlannedRun:
    """The complete run for a request, in the given batch and layout or the best ones.

    Errors as in `choose_batch_and_layout`.
    """
    shape, cluster = request.shape, setting.cluster
    own_lr = law_lr(setting.hyper, shape, request.compute_flop)
    known = law_variables(shape, request.compute_flop)
    law_sequences = setting.hyper.batch_tokens.at(**known) / shape.context
    fixed_sequences = None if request.batch_tokens is None else request.batch_tokens // shape.context
    chosen = chosen or choose_batch_and_layout(
        shape, cluster, setting.budget.precision, request.devices, law_sequences, fixed_sequences
    )
    optim = _optim(setting.family, request, chosen.batch_sequences, request.rate_multiple * own_lr)
    run = _run_spec(setting, shape, optim, _evaluation(setting, shape, optim))
    return PlannedRun(
        role=request.role,
        title=request.title,
        budget_flop=request.compute_flop,
        rate_multiple=request.rate_multiple,
        run=run,
        execution=Execution(
            device=cluster.device.backend,
            layout=chosen.layout,
            checkpoint_interval_s=cluster.checkpoint_interval,
            checkpoint_interval_steps=cluster.checkpoint_interval_steps,
            retention=cluster.retention,
            hang_timeout_s=cluster.hang_timeout,
            profile=cluster.profile,
        ),
        cost=cost_of(run, cluster, chosen),
    )


def same_size_run(setting: RunSettings, run: RunSpec) -> RunSpec:
    """The run that these settings give at another run's size, length, batch and learning rate.

    ValueError where the family has no shape of that width, or no schedule of so few steps.
    """
    shape = make_shape(setting.family, run.model.width, run.model.layers, setting.vocab)
    theirs = run.optim
    optim = _optim_of(setting.family, theirs.steps, theirs.batch_sequences, theirs.peak_lr)
    evaluation = _evaluation(setting, shape, optim).model_copy(
        update={"every_steps": run.evaluation.every_steps}
    )
    return _run_spec(setting, shape, optim, evaluation)


def _run_spec(setting: RunSettings, shape: ModelSpec, optim: OptimSpec, evaluation: Evaluation) -> RunSpec:
    return RunSpec(
        model=shape,
        data=setting.data,
        mix=None if setting.mix is None else setting.mix.of_run(optim),
        documents=setting.budget.documents,
        optim=optim,
        evaluation=evaluation,
        precision=setting.budget.precision,
        seed=setting.budget.seed,
        guard=setting.budget.guard,
    )


def law_lr(hyper: Hyper, shape: ModelSpec, compute_flop: float) -> float:
    """The law's learning rate for a shape trained with this compute."""
    return hyper.peak_lr.at(**law_variables(shape, compute_flop))


def law_variables(shape: ModelSpec, compute_flop: float) -> dict[str, float]:
    """The variables of the laws of learning rate and batch size, for a shape trained with this compute."""
    return {
        "compute_flop": compute_flop,
        "flop_per_token": shape.flop_per_token,
        "block_params": shape.block_params,
        "width": shape.width,
        "tokens": compute_flop / shape.flop_per_token,
    }


def cost_of(run: RunSpec, cluster: Cluster, chosen: BatchAndLayout) -> Cost:
    """Time, money and energy of a run, from its layout's seconds a step or the cluster's expected utilisation."""
    devices, peak = chosen.layout.devices, cluster.device.peak_flop_per_s(run.precision)
    full = devices * peak / run.model.mfu_flop_per_token
    if chosen.step_s is None or cluster.efficiency is None:
        rate = cluster.model_flop_utilisation * full
    else:
        rate = cluster.efficiency.uptime * run.batch_tokens / chosen.step_s
    hours = run.tokens / rate / 3600
    device_hours = hours * devices
    return Cost(
        compute_flop=run.compute_flop,
        device_hours=device_hours,
        hours=hours,
        dollars=None if cluster.price is None else device_hours * cluster.price,
        energy_j=None if cluster.device.power is None else device_hours * 3600 * cluster.device.power,
        tokens_per_s=rate,
        memory_bytes=chosen.memory_bytes,
        basis=_basis(cluster, chosen, rate / full, peak),
    )


def _basis(cluster: Cluster, chosen: BatchAndLayout, utilisation: float, peak: float) -> str:
    if chosen.step_s is None or cluster.efficiency is None:
        source = cluster.model_flop_utilisation_source
        return f"{utilisation:.0%} of the peak {peak:.3g} FLOP/s per device ({source}); no step time was simulated"
    uptime = cluster.efficiency.uptime
    return (
        f"a predicted step time of {chosen.step_s:.3g} s, which is {utilisation / uptime:.1%} of the peak {peak:.3g} "
        f"FLOP/s per device, and {uptime:.0%} uptime"
    )


def _optim(family: Family, request: DraftRequest, batch: int, peak_lr: float) -> OptimSpec:
    tokens, batch_tokens = request.compute_flop / request.shape.flop_per_token, batch * request.shape.context
    steps = max(1, round(tokens / batch_tokens / EVALUATIONS)) * EVALUATIONS
    return _optim_of(family, steps, batch, peak_lr)


def _optim_of(family: Family, steps: int, batch_sequences: int, peak_lr: float) -> OptimSpec:
    """The optimizer's settings under the family's schedule."""
    stepped = in_steps(family.schedule, steps, family.warmup_steps)
    return OptimSpec(steps=steps, batch_sequences=batch_sequences, peak_lr=peak_lr, **stepped._asdict())


def _evaluation(setting: RunSettings, shape: ModelSpec, optim: OptimSpec) -> Evaluation:
    curve, final = evaluation_sequences(setting.family, shape.context, setting.mix)
    return Evaluation(every_steps=optim.steps // EVALUATIONS, sequences=curve, final_sequences=final)


def evaluation_sequences(family: Family, context: int, mix: PlannedMix | None) -> tuple[int, int]:
    """Held-out sequences of a point of the curve and of the last evaluation: one of each source at least."""
    least = 1 if mix is None else len(mix.evaluation)
    return max(least, family.curve_tokens // context), max(least, family.final_tokens // context)
