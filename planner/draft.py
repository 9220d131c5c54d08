"""One run with nothing left to derive: batch, learning rate, schedule, evaluations, layout and cost of a shape."""

import math
from dataclasses import dataclass
from typing import Literal

from planner.layouts import Fit, choose_layout
from specs.budget import Budget
from specs.cluster import Cluster
from specs.data import CorpusRef
from specs.law import Family, Hyper
from specs.layout import Layout
from specs.model import ModelSpec
from specs.optim import OptimSpec, multi_step
from specs.plan import Cost, PlannedRun
from specs.run import Evaluation, Execution, RunSpec

EVALUATIONS = 20
"""Points of the held-out curve; the milestones at 80 % and 90 % fall on two of them."""
BATCH_GRAIN = 16
"""A batch is a multiple of the largest power of two below a 16th of it: 2252 becomes 2304, as in the paper's
Table 2."""


@dataclass(frozen=True)
class Setting:
    """What all runs of a plan share."""

    budget: Budget
    family: Family
    cluster: Cluster
    hyper: Hyper
    data: CorpusRef
    vocab: int


@dataclass(frozen=True)
class Wish:
    """One run as the planner wants it, before rounding to steps and sequences."""

    role: Literal["pilot", "rate", "target"]
    title: str
    compute_flop: float
    shape: ModelSpec
    devices: int
    rate_multiple: float = 1.0
    batch_tokens: int | None = None
    """Tokens per step that the budget asks for; None is what the law says."""


class UndividedBatchError(ValueError):
    """No layout divides the batch that the budget asks for."""


def round_batch(sequences: float, multiple: int) -> int:
    """Whole sequences near the wanted number: a multiple of `multiple` and of a power of two that costs at most 3 %."""
    grain = 2 ** max(0, math.floor(math.log2(sequences / BATCH_GRAIN))) if sequences > BATCH_GRAIN else 1
    unit = math.lcm(grain, multiple)
    return max(1, round(sequences / unit)) * unit


def draft(setting: Setting, wish: Wish) -> PlannedRun:
    """The complete run for a wish; NoLayoutError where it fits no layout."""
    shape, cluster = wish.shape, setting.cluster
    tokens = wish.compute_flop / shape.flop_per_token
    batch, fit = _batch_and_layout(setting, wish)
    peak_lr = setting.hyper.peak_lr.at(**variables(shape, wish.compute_flop))
    optim = _optim(setting.family, tokens, batch * shape.context, batch, wish.rate_multiple * peak_lr)
    run = RunSpec(
        model=shape,
        data=setting.data,
        optim=optim,
        evaluation=_evaluation(setting.family, shape, optim),
        precision=setting.budget.precision,
        seed=setting.budget.seed,
    )
    return PlannedRun(
        role=wish.role,
        title=wish.title,
        budget_flop=wish.compute_flop,
        rate_multiple=wish.rate_multiple,
        run=run,
        execution=Execution(
            device=cluster.device.backend, layout=fit.layout, checkpoint_every_s=cluster.checkpoint_every
        ),
        cost=cost_of(run, cluster, fit.layout, fit.memory_bytes),
    )


def variables(shape: ModelSpec, compute_flop: float) -> dict[str, float]:
    """What the laws of learning rate and batch size are functions of, for a shape that is trained with this compute."""
    return {
        "compute_flop": compute_flop,
        "flop_per_token": shape.flop_per_token,
        "block_params": shape.block_params,
        "width": shape.width,
        "tokens": compute_flop / shape.flop_per_token,
    }


def _batch_and_layout(setting: Setting, wish: Wish) -> tuple[int, Fit]:
    """Sequences of a step and the layout that divides them."""
    shape, cluster, precision = wish.shape, setting.cluster, setting.budget.precision
    if wish.batch_tokens is not None:
        batch = wish.batch_tokens // shape.context
        fit = choose_layout(shape, cluster, wish.devices, batch, precision)
        if batch % fit.layout.dp:
            raise UndividedBatchError(f"no layout of {wish.devices} devices divides {batch} sequences")
        return batch, Fit(_divide(fit.layout, batch), fit.memory_bytes)
    wanted = setting.hyper.batch_tokens.at(**variables(shape, wish.compute_flop)) / shape.context
    devices = min(wish.devices, 2 ** math.floor(math.log2(max(1.0, wanted))))
    fit = choose_layout(shape, cluster, devices, round_batch(wanted, 1), precision)
    batch = round_batch(wanted, fit.layout.dp)
    return batch, Fit(_divide(fit.layout, batch), fit.memory_bytes)


def cost_of(run: RunSpec, cluster: Cluster, layout: Layout, memory_bytes: float) -> Cost:
    """Hours and money at the cluster's expected utilisation."""
    peak = peak_flop_per_s(cluster, run.precision)
    rate = layout.devices * peak * cluster.model_flop_utilisation / run.model.mfu_flop_per_token
    hours = run.tokens / rate / 3600
    device_hours = hours * layout.devices
    return Cost(
        compute_flop=run.compute_flop,
        device_hours=device_hours,
        hours=hours,
        dollars=None if cluster.price is None else device_hours * cluster.price,
        energy_j=None if cluster.device.power is None else device_hours * 3600 * cluster.device.power,
        tokens_per_s=rate,
        memory_bytes=memory_bytes,
        basis=f"{cluster.model_flop_utilisation:.0%} of {peak:.3g} FLOP/s per device "
        f"({cluster.model_flop_utilisation_source}); not simulated",
    )


def peak_flop_per_s(cluster: Cluster, precision: str) -> float:
    """A device's peak matrix rate in the run's precision."""
    return cluster.device.peak_bf16 if precision == "bf16" else cluster.device.peak_fp32


def _optim(family: Family, tokens: float, batch_tokens: int, batch: int, peak_lr: float) -> OptimSpec:
    steps = max(1, round(tokens / batch_tokens / EVALUATIONS)) * EVALUATIONS
    warmup, milestones = multi_step(steps, family.warmup_steps)
    return OptimSpec(
        steps=steps, batch_sequences=batch, peak_lr=peak_lr, warmup_steps=warmup, milestones=milestones
    )


def _evaluation(family: Family, shape: ModelSpec, optim: OptimSpec) -> Evaluation:
    return Evaluation(
        every_steps=optim.steps // EVALUATIONS,
        sequences=max(1, family.curve_tokens // shape.context),
        final_sequences=max(1, family.final_tokens // shape.context),
    )


def _divide(layout: Layout, batch: int) -> Layout:
    """The layout with its micro-batch cut until it divides the batch of a replica."""
    return layout.model_copy(
        update={"micro_batch_sequences": math.gcd(layout.micro_batch_sequences, batch // layout.dp)}
    )
