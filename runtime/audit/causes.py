"""Likely causes of a missed forecast, from the records and the plan, most likely first.

They are ranked without invented probabilities: first what the records prove, then what the shape of the run's curves
points at, then circumstances that can matter, last what cannot change a loss. Every cause has its numbers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from statistics import mean

from specs.formatting import member_name
from specs.humanize import several
from specs.law import LawFit
from specs.optim import OptimSpec
from specs.plan import Forecast, Plan, PlannedRun
from specs.record import RunAudit, StepLine

FREE_EPOCHS = 4
"""Up to four epochs are nearly as good as new text (Muennighoff et al. 2023, arXiv 2305.16264, section 5)."""
SPIKE, SPIKE_STEPS, BEFORE_STEPS = 1.25, 20, 100
"""A lasting loss spike is a mean training loss of 20 steps above 1.25 times that of the hundred before (the guard,
specs/spike_guard.py, judges single steps instead). Our measurement: 18
sound runs of 400 to 13,780 tiny steps peaked at 1.06 to 1.14; single steps, on unusual documents, at up to 3.9."""
SHAPE_POINTS = 6
"""The shape of a curve with fewer points cannot be told from noise: the slope alone takes two of them."""
SIGMAS = 2.0
"""A level, a slope or a drop counts from twice the scatter of the points about it (95 % of a normal distribution)."""
SLOW = 0.2
"""A throughput this far off the plan is reported: planned speeds are rarely more accurate."""


class CauseRank(IntEnum):
    """How strong the evidence for a cause is."""

    PROVEN = 0
    POINTED_AT = 1
    POSSIBLE = 2
    NO_EFFECT = 3


@dataclass(frozen=True)
class Cause:
    """One cause."""

    rank: CauseRank
    topic: str
    """schedule, data, learning rate, law, interruptions, throughput, record."""
    message: str
    """The cause, with its numbers."""


@dataclass(frozen=True)
class ForecastMiss:
    """A target whose final loss is outside the band of its forecast."""

    plan: Plan
    forecast: Forecast
    run: RunAudit
    metrics: Sequence[StepLine]
    """The target's training curve."""
    clipped_pilots: Sequence[float]
    """Share of clipped steps after the warmup, of each pilot whose records are available."""
    verified: bool = True
    """Whether our engine trained it, so that its data, batch and schedule are known to be the plan's."""

    @property
    def planned(self) -> PlannedRun:
        """The planned target."""
        return self.plan.runs[-1]

    @property
    def loss(self) -> float:
        """The final held-out loss."""
        assert self.run.loss is not None  # a miss has a loss
        return self.run.loss

    @property
    def worse(self) -> bool:
        """Whether the loss is above the forecast; damage to a run explains only that."""
        return self.loss > self.forecast.loss.median


def causes(miss: ForecastMiss) -> tuple[str, ...]:
    """Messages of the likely causes, most likely first.

    Of a run that another engine trained, only those that its curve and the plan show.
    """
    found = [
        *_records(miss),
        *_learning_rate(miss),
        *_data(miss),
        *_shape(miss),
        *_evidence(miss),
        *_interruptions(miss),
        *_throughput(miss),
    ]
    return tuple(f"{cause.topic}: {cause.message}" for cause in sorted(found, key=lambda cause: cause.rank))


def clipped_share(metrics: Sequence[StepLine], optim: OptimSpec) -> float:
    """Share of the steps after the warmup whose gradient was clipped."""
    clipped = [
        line.grad_norm > optim.clip_norm
        for line in metrics
        if line.step > optim.warmup_steps and line.applied and line.grad_norm is not None
    ]
    return mean(clipped) if clipped else 0.0


def _records(miss: ForecastMiss) -> Iterator[Cause]:
    """Failed checks of the records: the run is rejected, and its loss is not that of the planned run."""
    for check in miss.run.checks:
        if not check.ok:
            topic = check.name if check.name in ("schedule", "data") else "record"
            message = check.detail if topic == check.name else f"{check.name}, {check.detail}"
            yield Cause(CauseRank.PROVEN, topic, message)


def _shape(miss: ForecastMiss) -> Iterator[Cause]:
    """Whether the curve deviates only after the learning rate drops, increasingly, or by a constant."""
    off = _deviations(miss)
    optim = miss.planned.run.optim
    first_drop = min(optim.drop_steps, default=optim.steps)
    before = [(step, value) for step, value in off.items() if step <= first_drop]
    after = [(step, value) for step, value in off.items() if step > first_drop]
    if len(before) < SHAPE_POINTS or not after:
        return
    line, scatter = _straight(before)
    start, end, level = line(before[0][0]), line(before[-1][0]), mean(value for _, value in before)
    extrapolated, actual = line(mean(step for step, _ in after)), mean(value for _, value in after)
    if abs(actual - extrapolated) > SIGMAS * scatter and abs(actual) > abs(extrapolated):
        yield Cause(
            CauseRank.POINTED_AT,
            "law",
            f"before the first drop of the learning rate the curve deviates by {_percent(end)}, after it by "
            f"{_percent(actual)}: the gain from the drops differs from the pilots'" + _or_settings(miss),
        )
    elif abs(end - start) > SIGMAS * scatter and abs(end) > abs(start):
        growth = f"from {_percent(start)} to {_percent(end)}"
        message = f"the deviation grows {growth} before the first drop of the learning rate: the law's slope is wrong"
        yield Cause(CauseRank.POINTED_AT, "law", message + _or_settings(miss))
    elif abs(level) > SIGMAS * scatter and (level > 0) == miss.worse:
        shift = f"{_percent(level)} off from early on"
        message = f"the curve has the forecast's shape but is {shift}: the law's level is wrong"
        yield Cause(CauseRank.POINTED_AT, "law", message + _or_settings(miss))


def _or_settings(miss: ForecastMiss) -> str:
    """What a curve's shape may come from as well where nothing shows that the run had the plan's settings."""
    return "" if miss.verified else ", or the run's data, batch or schedule were not the plan's"


def _straight(points: Sequence[tuple[int, float]]) -> tuple[Callable[[float], float], float]:
    """The line through the points by least squares, and their scatter about it."""
    middle, level = mean(x for x, _ in points), mean(y for _, y in points)
    slope = sum((x - middle) * (y - level) for x, y in points) / sum((x - middle) ** 2 for x, _ in points)
    rest = sum((y - level - slope * (x - middle)) ** 2 for x, y in points)
    return lambda x: level + slope * (x - middle), math.sqrt(rest / (len(points) - 2))


def _deviations(miss: ForecastMiss) -> dict[int, float]:
    """ln(actual / forecast median) at the run's steps for which there is a forecast."""
    curve = miss.forecast.curve
    if curve is None:
        return {}
    pairs = zip(miss.run.curve_step, miss.run.curve_loss, strict=True)
    return {step: math.log(loss / band.median) for step, loss in pairs if (band := curve.at(step))}


def _learning_rate(miss: ForecastMiss) -> Iterator[Cause]:
    check = None if miss.plan.fit is None else miss.plan.fit.rate_check
    if miss.worse:
        yield from _instability(miss)
    if check is not None and not check.bracketed:
        yield Cause(
            CauseRank.POSSIBLE,
            "learning rate",
            f"the check did not bracket the best rate: x {check.best_multiple:.2g} is {check.reason}",
        )
    if check is not None and not check.near_optimal:
        yield Cause(
            CauseRank.POSSIBLE,
            "learning rate",
            f"the pilots' rate was not near-optimal (x {check.best_multiple:.2g} is best), so the law fitted to them "
            "may predict too high a loss",
        )


def _instability(miss: ForecastMiss) -> Iterator[Cause]:
    """Signs in the training curve that the learning rate was too high."""
    optim = miss.planned.run.optim
    losses = [
        line.loss
        for line in miss.metrics
        if line.step > optim.warmup_steps and line.applied and line.loss is not None
    ]
    rejected = sum(not line.applied for line in miss.metrics)
    if rejected:
        message = f"the loss-spike guard rejected {several(rejected, 'step')}"
        yield Cause(CauseRank.POINTED_AT, "learning rate", message)
    spikes = spike_count(losses)
    if spikes:
        message = (
            f"{several(spikes, 'loss spike')} after warmup, above {SPIKE:g} times the loss before the spike"
        )
        yield Cause(CauseRank.POINTED_AT, "learning rate", message)
    share = clipped_share(miss.metrics, optim)
    most = max(miss.clipped_pilots, default=1.0)
    if share > most:
        message = f"{share:.0%} of the gradients after warmup were clipped, in the pilots at most {most:.0%}"
        yield Cause(CauseRank.POINTED_AT, "learning rate", message)


def spike_count(losses: Sequence[float]) -> int:
    """Number of loss spikes: excursions of a 20-step mean above the hundred steps before."""
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    high = [
        (sums[i + SPIKE_STEPS] - sums[i]) / SPIKE_STEPS
        > SPIKE * (sums[i] - sums[i - BEFORE_STEPS]) / BEFORE_STEPS
        for i in range(BEFORE_STEPS, len(losses) - SPIKE_STEPS + 1)
    ]
    return sum(now and not then for then, now in zip([False, *high], high, strict=False))


def _data(miss: ForecastMiss) -> Iterator[Cause]:
    by_source = miss.plan.epochs(miss.planned.run)
    name = max(by_source, key=by_source.__getitem__)
    epochs = by_source[name]
    if epochs > 1 and miss.worse and miss.verified:
        rank = CauseRank.POINTED_AT if epochs > FREE_EPOCHS else CauseRank.POSSIBLE
        text = miss.plan.sources.get(name)
        unique = (
            f"{miss.plan.unique_tokens:,} unique tokens"
            if text is None
            else f"{text.unique_tokens:,} unique tokens of {name}"
        )
        message = f"{epochs:.2f} epochs over {unique}; repeated tokens lower the loss less than new ones"
        yield Cause(rank, "data", message)


def _evidence(miss: ForecastMiss) -> Iterator[Cause]:
    """Weak evidence in the fit of the forecast."""
    fit, table = miss.plan.fit, miss.plan.table
    if fit is None:
        return
    if table is not None:
        message = (
            f"text, tokenizer and held-out set of the runs in {table.path} are this budget's by its statement, which "
            "nothing checked; losses of others say nothing of this run"
        )
        yield Cause(CauseRank.POSSIBLE, "data", message)
    loose = [profile for profile in fit.profiles if not profile.bracketed]
    if loose:
        message = f"{len(loose)} of {len(fit.profiles)} isoFLOP minima are not bracketed"
        yield Cause(CauseRank.POSSIBLE, "law", message)
    yield from _forms(miss, fit)


def _forms(miss: ForecastMiss, fit: LawFit) -> Iterator[Cause]:
    scored = [form for form in fit.forms if form.held_out_error is not None]
    if scored:
        form = max(scored, key=lambda form: form.weight)
        held_out = f"held-out budgets by {form.held_out_error:.2%} on average"
        target = f"the target by {_percent(math.log(miss.loss / form.forecast))}"
        message = f"the form with the largest weight, {member_name(form)}, missed {held_out}, and {target}"
        yield Cause(CauseRank.POSSIBLE, "law", message)
    nearest = min(fit.forms, key=lambda form: abs(math.log(miss.loss / form.forecast)), default=None)
    heaviest = max(fit.forms, key=lambda form: form.weight, default=None)
    if nearest is not None and nearest != heaviest:
        off = _percent(math.log(miss.loss / nearest.forecast))
        message = (
            f"the form {member_name(nearest)} was closest ({off}), with a weight of {nearest.weight:.2f}"
        )
        yield Cause(CauseRank.POSSIBLE, "law", message)


def _interruptions(miss: ForecastMiss) -> Iterator[Cause]:
    run = miss.run
    times = "once" if run.restarts == 1 else f"{run.restarts} times"
    kinds = {"environments": len(run.environments), "layouts": len(run.layouts)}
    several_of = [f"{number} different {kind}" for kind, number in kinds.items() if number > 1]
    if run.restarts and several_of:
        message = f"restarted {times}, in {' and '.join(several_of)}, between which floating-point rounding may differ"
        yield Cause(CauseRank.POSSIBLE, "interruptions", message)
    elif run.restarts:
        message = f"restarted {times}; resuming is bitwise identical, so this does not explain the loss"
        yield Cause(CauseRank.NO_EFFECT, "interruptions", message)


def _throughput(miss: ForecastMiss) -> Iterator[Cause]:
    planned, actual = miss.planned.cost.tokens_per_s, miss.run.tokens_per_s
    if actual and abs(actual / planned - 1) > SLOW:
        message = f"{actual:.3g} tokens/s, planned {planned:.3g}; this explains time and cost, not the loss"
        yield Cause(CauseRank.NO_EFFECT, "throughput", message)


def _percent(log_ratio: float) -> str:
    return f"{math.expm1(log_ratio):+.1%}"
