"""Why a forecast missed: what the records and the plan point at, most likely first.

No probabilities are made up. What the records prove comes first, then what the shape of the run's own curves points at,
then circumstances that are known to matter, and last what cannot change a loss. Every cause names its numbers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from statistics import mean

from specs.humanize import several
from specs.law import LawFit
from specs.optim import OptimSpec
from specs.plan import Forecast, Plan, PlannedRun
from specs.record import RunAudit, StepLine

FREE_EPOCHS = 4
"""Up to four epochs are nearly as good as new text (Muennighoff et al. 2023, arXiv 2305.16264, section 5)."""
SPIKE, SPIKE_STEPS, BEFORE_STEPS = 1.25, 20, 100
"""A spike is a mean training loss of 20 steps above 1.25 times that of the hundred before. Ours: 18 sound runs of 400
to 13,780 tiny steps peaked at 1.06 to 1.14; single steps, on odd documents, at up to 3.9."""
SHAPE_POINTS = 6
"""A line through fewer points of the curve tells no shape from noise: its slope alone takes two of them."""
SIGMAS = 2.0
"""A level, a slope or a drop counts from twice the scatter of the points about it (95 % of a normal distribution)."""
SLOW = 0.2
"""A throughput this far off the plan is worth a line: planned speeds are rarely better than that."""


class CauseRank(IntEnum):
    """How strongly something points at the miss."""

    PROVEN = 0
    POINTED_AT = 1
    POSSIBLE = 2
    NO_EFFECT = 3


@dataclass(frozen=True)
class Cause:
    """One cause."""

    rank: CauseRank
    what: str
    """schedule, data, learning rate, law, interruptions, throughput, record."""
    message: str
    """In words, with numbers."""


@dataclass(frozen=True)
class ForecastMiss:
    """A target whose final loss is outside the band of its forecast."""

    plan: Plan
    told: Forecast
    run: RunAudit
    metrics: Sequence[StepLine]
    """The target's training curve."""
    clipped_pilots: Sequence[float]
    """Share of clipped steps after the warm-up, of each pilot whose records are at hand."""

    @property
    def planned(self) -> PlannedRun:
        """What was planned."""
        return self.plan.runs[-1]

    @property
    def loss(self) -> float:
        """The final held-out loss."""
        assert self.run.loss is not None  # a miss is known from its loss
        return self.run.loss

    @property
    def worse(self) -> bool:
        """Whether the loss is above the forecast; what harms a run explains only that."""
        return self.loss > self.told.loss.median


def causes(miss: ForecastMiss) -> tuple[str, ...]:
    """The likely causes of a miss in words, most likely first."""
    found = [
        *_records(miss),
        *_learning_rate(miss),
        *_data(miss),
        *_shape(miss),
        *_evidence(miss),
        *_interruptions(miss),
        *_throughput(miss),
    ]
    return tuple(f"{cause.what}: {cause.message}" for cause in sorted(found, key=lambda cause: cause.rank))


def clipped_share(metrics: Sequence[StepLine], optim: OptimSpec) -> float:
    """Share of the steps after the warm-up whose gradient was scaled down."""
    settled = [
        line.grad_norm > optim.clip_norm
        for line in metrics
        if line.step > optim.warmup_steps and line.applied and line.grad_norm is not None
    ]
    return mean(settled) if settled else 0.0


def _records(miss: ForecastMiss) -> Iterator[Cause]:
    """What the recount found wrong: such a run is rejected, and this is why its loss is not the planned one."""
    for check in miss.run.checks:
        if not check.ok:
            what = check.name if check.name in ("schedule", "data") else "record"
            yield Cause(
                CauseRank.PROVEN,
                what,
                check.detail if what == check.name else f"{check.name}, {check.detail}",
            )


def _shape(miss: ForecastMiss) -> Iterator[Cause]:
    """Whether the curve is off only after the drops of the learning rate, more and more, or as a whole."""
    off = _deviations(miss)
    first_drop = min(
        (m.step for m in miss.planned.run.optim.milestones), default=miss.planned.run.optim.steps
    )
    before = [(step, value) for step, value in off.items() if step <= first_drop]
    after = [(step, value) for step, value in off.items() if step > first_drop]
    if len(before) < SHAPE_POINTS or not after:
        return
    line, scatter = _straight(before)
    start, end, level = line(before[0][0]), line(before[-1][0]), mean(value for _, value in before)
    went_on, came = line(mean(step for step, _ in after)), mean(value for _, value in after)
    if abs(came - went_on) > SIGMAS * scatter and abs(came) > abs(went_on):
        yield Cause(
            CauseRank.POINTED_AT,
            "law",
            f"before the first drop of the learning rate the curve is {_percent(end)} off, after it "
            f"{_percent(came)}: the gain from the drops is not what the pilots showed",
        )
    elif abs(end - start) > SIGMAS * scatter and abs(end) > abs(start):
        said = f"the deviation grows from {_percent(start)} to {_percent(end)} before the first drop: the slope is off"
        yield Cause(CauseRank.POINTED_AT, "law", said)
    elif abs(level) > SIGMAS * scatter and (level > 0) == miss.worse:
        said = (
            f"the curve has the forecast's shape and is {_percent(level)} off from early on: its level is off"
        )
        yield Cause(CauseRank.POINTED_AT, "law", said)


def _straight(points: Sequence[tuple[int, float]]) -> tuple[Callable[[float], float], float]:
    """The line through the points by least squares, and their scatter about it."""
    middle, level = mean(x for x, _ in points), mean(y for _, y in points)
    slope = sum((x - middle) * (y - level) for x, y in points) / sum((x - middle) ** 2 for x, _ in points)
    rest = sum((y - level - slope * (x - middle)) ** 2 for x, y in points)
    return lambda x: level + slope * (x - middle), math.sqrt(rest / (len(points) - 2))


def _deviations(miss: ForecastMiss) -> dict[int, float]:
    """ln of actual over forecast median, at every step of both curves."""
    curve = miss.told.curve
    if curve is None:
        return {}
    actual = dict(zip(miss.run.curve_step, miss.run.curve_loss, strict=True))
    pairs = zip(curve.step, curve.median, strict=True)
    return {step: math.log(actual[step] / median) for step, median in pairs if step in actual}


def _learning_rate(miss: ForecastMiss) -> Iterator[Cause]:
    check = None if miss.plan.fit is None else miss.plan.fit.rate_check
    if miss.worse:
        yield from _instability(miss)
    if check is not None and not check.bracketed:
        yield Cause(
            CauseRank.POSSIBLE,
            "learning rate",
            f"the check did not bracket the best rate: x {check.best_multiple:.2g} is at the edge of what was tried",
        )
    if check is not None and not check.near_optimal:
        yield Cause(
            CauseRank.POSSIBLE,
            "learning rate",
            f"the pilots ran at a rate that is not near-optimal (x {check.best_multiple:.2g} is best), so the law they "
            "gave may be too high",
        )


def _instability(miss: ForecastMiss) -> Iterator[Cause]:
    """Signs in the training curve that the rate was too high."""
    optim = miss.planned.run.optim
    settled = [
        line.loss
        for line in miss.metrics
        if line.step > optim.warmup_steps and line.applied and line.loss is not None
    ]
    thrown_away = sum(not line.applied for line in miss.metrics)
    if thrown_away:
        yield Cause(
            CauseRank.POINTED_AT, "learning rate", f"the guard threw away {several(thrown_away, 'step')}"
        )
    spikes = spike_count(settled)
    if spikes:
        times = "once" if spikes == 1 else f"{spikes} times"
        said = f"after the warm-up the training loss rose above {SPIKE:g} times its level {times}"
        yield Cause(CauseRank.POINTED_AT, "learning rate", said)
    share = clipped_share(miss.metrics, optim)
    most = max(miss.clipped_pilots, default=1.0)
    if share > most:
        said = f"{share:.0%} of the steps after the warm-up were clipped, in no pilot more than {most:.0%}"
        yield Cause(CauseRank.POINTED_AT, "learning rate", said)


def spike_count(losses: Sequence[float]) -> int:
    """How often the loss left its level upwards: excursions of a 20-step mean over the hundred steps before."""
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
    epochs = miss.planned.run.tokens / miss.plan.unique_tokens
    if epochs > 1 and miss.worse:
        rank = CauseRank.POINTED_AT if epochs > FREE_EPOCHS else CauseRank.POSSIBLE
        said = f"{epochs:.2f} epochs over {miss.plan.unique_tokens:,} unique tokens, and repeats teach less"
        yield Cause(rank, "data", said)


def _evidence(miss: ForecastMiss) -> Iterator[Cause]:
    """What was weak in the fit that the forecast rests on."""
    fit = miss.plan.fit
    if fit is None:
        return
    loose = [profile for profile in fit.profiles if not profile.bracketed]
    if loose:
        said = f"{len(loose)} of {len(fit.profiles)} isoFLOP minima are not bracketed"
        yield Cause(CauseRank.POSSIBLE, "law", said)
    yield from _forms(miss, fit)


def _forms(miss: ForecastMiss, fit: LawFit) -> Iterator[Cause]:
    scored = [form for form in fit.forms if form.held_out_error is not None]
    if scored:
        form = max(scored, key=lambda form: form.weight)
        said = (
            f"the heaviest form, {form.form}, missed held-out budgets by {form.held_out_error:.2%} on average"
        )
        yield Cause(
            CauseRank.POSSIBLE,
            "law",
            f"{said}, and the target by {_percent(math.log(miss.loss / form.forecast))}",
        )
    nearest = min(fit.forms, key=lambda form: abs(math.log(miss.loss / form.forecast)), default=None)
    heaviest = max(fit.forms, key=lambda form: form.weight, default=None)
    if nearest is not None and nearest != heaviest:
        off = _percent(math.log(miss.loss / nearest.forecast))
        said = f"the form {nearest.form} came nearest ({off}), with a weight of {nearest.weight:.2f}"
        yield Cause(CauseRank.POSSIBLE, "law", said)


def _interruptions(miss: ForecastMiss) -> Iterator[Cause]:
    run = miss.run
    times = "once" if run.restarts == 1 else f"{run.restarts} times"
    kinds = {"environments": len(run.environments), "layouts": len(run.layouts)}
    several_of = [f"{number} different {kind}" for kind, number in kinds.items() if number > 1]
    if run.restarts and several_of:
        said = f"restarted {times}, in {' and '.join(several_of)}, which may round differently"
        yield Cause(CauseRank.POSSIBLE, "interruptions", said)
    elif run.restarts:
        said = f"restarted {times}; a resumed run goes on bit for bit, so this does not explain the loss"
        yield Cause(CauseRank.NO_EFFECT, "interruptions", said)


def _throughput(miss: ForecastMiss) -> Iterator[Cause]:
    planned, actual = miss.planned.cost.tokens_per_s, miss.run.tokens_per_s
    if actual and abs(actual / planned - 1) > SLOW:
        said = (
            f"{actual:.3g} tokens/s against {planned:.3g} planned; this explains time and cost, not the loss"
        )
        yield Cause(CauseRank.NO_EFFECT, "throughput", said)


def _percent(log_ratio: float) -> str:
    return f"{math.expm1(log_ratio):+.1%}"
