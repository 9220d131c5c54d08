"""Model averaging over loss laws: hold-out scores, weights, and a forecast whose intervals cover.

Laws are scored on held-out larger budgets only: fitted on the runs of the smaller budgets, they predict the larger
ones, at several hold-out splits. A member of the mixture is a law fitted on all runs, or on those of the last decade or
so of compute, since small runs pull exponents and floor away from where large ones go. A forecast is a mixture of the
members, each drawn from its posterior and weighted by the density that it gave to the held-out runs. To their spread it
adds two errors that no law has: a discrepancy that grows with the distance of the extrapolation, estimated on the
held-out budgets, and the noise of the target run itself. Nothing is tuned on a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.scaling.data_constrained import UniqueTokens, effective_tokens
from planner.scaling.diverged import LeftOut, without_diverged
from planner.scaling.holdout import HoldOut, decades_beyond, holdout_splits
from planner.scaling.isoflop import budget_groups
from planner.scaling.laws import COUPLED, STANDARD, TIED, VALLEY, Array, Form
from planner.scaling.noise_scale import NoiseScale, noise_scale
from planner.scaling.points import Cells, Points, cells
from planner.scaling.posterior import FittedLaw, Posterior, Prediction, fit_laws
from specs.humanize import several
from specs.law import Band

CANDIDATES = (TIED, STANDARD, COUPLED, VALLEY)
"""Fewest constants first."""
PRIOR_WEIGHTS = (0.025, 0.025, 0.475, 0.475)
"""Weights before any held-out budget: the standard and tied laws are the coupled law with a coupling of 1, and none of
six public data sets has one near 1 (posterior.py), so these two have small weights."""
WINDOWS = (1.3, 0.8)
"""Decades of compute below the largest runs: besides the laws of all runs, the members are laws of these runs only.
Exponents and floor drift over scale: on the public sources such members take a third off the error and a half off the
interval score (docs/log.md)."""
_WINDOW_TOP = 3
"""A window is measured from the third largest run: one that stands alone above a ladder is no decade of runs."""
_WINDOW_RUNS, _WINDOW_BUDGETS = 12, 3
"""A window holds at least twice as many different runs as the largest law has constants, at three budgets: with fewer
its priors decide."""
DISCREPANCY_PER_DECADE, _DISCREPANCY_FACTOR = 0.004, 1.6
"""Prior of the discrepancy: standard deviation of log L per decade of compute beyond a law's runs, two thirds of it
within this factor. Laws chosen on the smaller runs of Farseer, Epoch, Gemstones and misfitting miss their larger ones
by 0.4 to 1.5 %, their own spread included, which leaves 0.4 to 0.9 % a decade (docs/log.md)."""
_SHORTEST_DECADES = 0.1
"""Of an extrapolation, when its error is divided by its distance."""
_MEDIAN_INEFFICIENCY = np.pi / 2
"""Variance of a median over that of a mean of as many Gaussian values."""
_MEMBER_DRAWS = 200
"""At least, for a member's own interval."""
_TAIL = 5
"""Degrees of freedom of the Student density by which held-out runs are scored: a single odd run does not decide."""


class NotEnoughRunsError(ValueError):
    """The runs are too few, or all of one budget: there is nothing to extrapolate from."""


@dataclass(frozen=True)
class MixtureMember:
    """One law in a mixture forecast: its weight, and its own median and 95 % interval of the loss."""

    form: Form
    window: float | None
    """Decades of compute below the third largest run that it is fitted on, and what is above; None for all runs."""
    weight: float
    held_out_error: float | None
    """Its own mean |log L measured - predicted| on held-out larger budgets; None without any."""
    median: float
    low_95: float
    high_95: float


@dataclass(frozen=True)
class FloorEffect:
    """The forecast where the floor E is low, median and high among the draws."""

    floor: tuple[float, float, float]
    loss: tuple[float, float, float]


@dataclass(frozen=True)
class MixtureForecast:
    """The forecast of a target run's loss, with its parts. Losses are in the unit of the runs' losses."""

    size: float
    tokens: float
    median: float
    low_50: float
    high_50: float
    low_95: float
    high_95: float
    members: tuple[MixtureMember, ...]
    floor: FloorEffect
    noise_sd: float
    """Standard deviation of log L from run to run."""
    discrepancy_sd: float
    """Standard deviation of log L that the distance adds."""
    extrapolation: float
    """Target compute over the largest compute that was run; at least 1."""
    held_out_error: float | None
    """Mean |log L measured - forecast| of the weighted members on held-out larger budgets; None without any."""

    @property
    def band(self) -> Band:
        """Median and bands for a document."""
        return Band(
            median=self.median,
            low_50=self.low_50,
            high_50=self.high_50,
            low_95=self.low_95,
            high_95=self.high_95,
        )


@dataclass(frozen=True)
class Mixture:
    """All members fitted on the runs, with their weights: fitted once, then used for any target."""

    runs: Points
    """Without those that were left out."""
    left_out: tuple[LeftOut, ...]
    """Diverged runs, in their order."""
    windows: tuple[float | None, ...]
    """Of each member."""
    laws: tuple[Posterior, ...]
    """Each member's draws; the mixture uses the first `counts` of them."""
    weights: Array
    counts: NDArray[np.int64]
    held_out_errors: tuple[float | None, ...]
    """Of each member."""
    discrepancy: NoiseScale
    """Error of the laws in log L per decade of compute beyond their runs."""
    held_out_error: float | None
    seed: int

    def mixed(self, per_law: Sequence[Array]) -> Array:
        """Draws of the mixture from each member's draws, whose first axis they are."""
        return np.concatenate(
            [draws[:count] for draws, count in zip(per_law, self.counts.tolist(), strict=True)]
        )

    def log_loss(self, size: ArrayLike, fresh_tokens: ArrayLike) -> Array:
        """log L without noise at each target, by every draw: (draws, targets)."""
        return self.mixed([law.log_loss(size, fresh_tokens) for law in self.laws])


_Laws = dict[tuple[Form, float | None], FittedLaw]
"""By form and window; without those windows that have too few runs, or all of them."""


@dataclass(frozen=True)
class _Member:
    """A law, the window that it is fitted on, and its weight before any held-out budget."""

    form: Form
    window: float | None
    prior_weight: float


@dataclass(frozen=True)
class _Scored:
    """What the members say of a split's held-out runs."""

    split: HoldOut
    decades: Array
    """(runs,) distance from the fitted runs."""
    predictions: tuple[Prediction, ...]
    """By member."""

    @cached_property
    def residuals(self) -> Array:
        """(members, runs) log L measured - predicted."""
        measured = np.log(self.split.held_out.loss)
        return np.stack([measured - prediction.log_loss for prediction in self.predictions])

    @property
    def log_densities(self) -> Array:
        """(members,) mean log density of the held-out runs under a Student t around each prediction."""
        residuals, precision = self.residuals, self.split.held_out.precision
        distance = DISCREPANCY_PER_DECADE * self.decades
        variance = np.stack([one.law_variance + one.noise_sd**2 for one in self.predictions]) + distance**2
        density = -(_TAIL + 1) / 2 * np.log1p(residuals**2 / variance / _TAIL) - np.log(variance) / 2
        return np.asarray(density @ (precision / precision.sum()))


@dataclass(frozen=True)
class _BudgetError:
    """Error of the weighted members on one held-out budget of a split, in log L."""

    median: float
    """Measured - forecast: the median over the budget's runs, which one diverged run does not move."""
    explained: float
    """Variance of that by the members' own spread and the runs' noise."""
    decades: float
    """Distance from the fitted runs."""
    share: float
    """Of its split, which counts once: the errors of its budgets are those of one fit."""


@dataclass(frozen=True)
class _Evidence:
    """What the hold-out splits say."""

    weights: Array
    member_errors: tuple[float | None, ...]
    error: float | None
    discrepancy: NoiseScale


def fit_mixture(runs: Points, *, draws: int = 2000, seed: int = 0, members_alone: bool = True) -> Mixture:
    """Every member's posterior with its weight; deterministic in its arguments.

    Where nobody asks what `members_alone` say, those without a draw in the mixture get one only, which saves up to a
    third of the time and changes nothing in the mixture.

    NotEnoughRunsError with one budget, or with no more different runs than the largest law has constants.
    UnusableLossesError where the losses cannot be nats per token, or too many are far off the others.
    """
    kept, left_out = without_diverged(runs)
    budgets, different = len(budget_groups(kept.flop)), len(np.unique(kept.cell))
    needed = max(len(form.constants) for form in CANDIDATES) + 1
    if budgets < 2 or different < needed:
        raise NotEnoughRunsError(
            f"{several(different, 'different run')} at {several(budgets, 'budget')}, but a forecast needs at least "
            f"{needed} runs at two or more budgets"
        )
    splits = holdout_splits(kept, 5)
    all_runs, *smaller = _fitted([kept, *(split.train for split in splits)])
    members = _members(kept, all_runs)
    evidence = _holdout_evidence(splits, smaller, members)
    counts = np.diff(np.round(np.cumsum([0.0, *evidence.weights]) * draws)).astype(np.int64)
    laws = tuple(
        all_runs[member.form, member.window].draw(
            max(int(count), _MEMBER_DRAWS) if count or members_alone else 1, seed + i
        )
        for i, (member, count) in enumerate(zip(members, counts, strict=True))
    )
    return Mixture(
        runs=kept,
        left_out=left_out,
        windows=tuple(member.window for member in members),
        laws=laws,
        weights=evidence.weights,
        counts=counts,
        held_out_errors=evidence.member_errors,
        discrepancy=evidence.discrepancy,
        held_out_error=evidence.error,
        seed=seed,
    )


def forecast_loss(
    mixture: Mixture, size: float, tokens: float, unique_tokens: UniqueTokens = np.inf
) -> MixtureForecast:
    """The forecast of one run: the spread of the members, the discrepancy at its distance, and the run's own noise.

    The 50 and 95 % bands (prediction intervals) are percentiles of these draws. Repeated tokens count as the fresh ones
    that they are worth.
    """
    fresh = float(effective_tokens(tokens, unique_tokens))
    log_losses = [law.log_loss(size, fresh)[:, 0] for law in mixture.laws]
    centre = mixture.mixed(log_losses)
    decades = decades_beyond(mixture.runs, np.array([size]), np.array([fresh]))
    low_95, low_50, median, high_50, high_95 = _percentiles(mixture, centre[:, None], decades)[:, 0].tolist()
    members = tuple(
        MixtureMember(law.law.form, window, float(weight), error, *_median_and_95(log_loss))
        for law, window, weight, error, log_loss in zip(
            mixture.laws,
            mixture.windows,
            mixture.weights,
            mixture.held_out_errors,
            log_losses,
            strict=True,
        )
    )
    return MixtureForecast(
        size=size,
        tokens=tokens,
        median=median,
        low_50=low_50,
        high_50=high_50,
        low_95=low_95,
        high_95=high_95,
        members=members,
        floor=_floor_effect(mixture.mixed([law.constant("E") for law in mixture.laws]), centre),
        noise_sd=float(np.median(mixture.mixed([law.noise_sd for law in mixture.laws]))),
        discrepancy_sd=mixture.discrepancy.median * float(decades[0]),
        extrapolation=max(mixture.runs.cost_per * size * tokens / float(mixture.runs.flop.max()), 1.0),
        held_out_error=mixture.held_out_error,
    )


def loss_bands(mixture: Mixture, size: Array, fresh_tokens: Array) -> Array:
    """Forecasts of many runs (runs,): 2.5, 25, 50, 75 and 97.5 % as `forecast_loss` gives them, (5, runs)."""
    decades = decades_beyond(mixture.runs, size, fresh_tokens)
    return _percentiles(mixture, mixture.log_loss(size, fresh_tokens), decades)


def _percentiles(mixture: Mixture, centre: Array, decades: Array) -> Array:
    """2.5, 25, 50, 75 and 97.5 % of the loss, (5, runs): to ln L without noise by every draw, (draws, runs), come the
    discrepancy at each run's distance and the run's own noise."""
    noise = mixture.mixed([law.noise_sd for law in mixture.laws])
    generator = np.random.Generator(np.random.PCG64([mixture.seed, 1]))
    discrepancy = mixture.discrepancy.draw(generator, len(centre))
    deviation = generator.standard_normal(len(centre))
    total = centre + np.hypot(discrepancy[:, None] * decades, noise[:, None]) * deviation[:, None]
    return np.asarray(np.exp(np.percentile(total, [2.5, 25, 50, 75, 97.5], axis=0)))


def _fitted(evidence: Sequence[Points]) -> list[_Laws]:
    """Every law on all runs of each evidence, and on each of its windows."""
    rows = [
        (at, window, joined)
        for at, runs in enumerate(evidence)
        for window, joined in _windows_of(runs).items()
    ]
    laws: list[_Laws] = [{} for _ in evidence]
    for form in CANDIDATES:
        fitted = fit_laws(form, [joined for _, _, joined in rows])
        for (at, window, _), law in zip(rows, fitted, strict=True):
            laws[at][form, window] = law
    return laws


def _windows_of(runs: Points) -> dict[float | None, Cells]:
    """All runs, and those of each window that leaves some out and keeps enough to fit a law."""
    found: dict[float | None, Cells] = {None: cells(runs)}
    for window in WINDOWS:
        inside = runs.flop >= np.sort(runs.flop)[-_WINDOW_TOP] / 10**window
        chosen = runs.take(inside)
        few = len(np.unique(chosen.cell)) < _WINDOW_RUNS or len(budget_groups(chosen.flop)) < _WINDOW_BUDGETS
        if not (inside.all() or few):
            found[window] = cells(chosen)
    return found


def _members(runs: Points, laws: _Laws) -> list[_Member]:
    """The laws with their weights. A window weighs as much as the share of the decades that it leaves out: the more
    that is, the more its runs may differ from those."""
    decades = float(np.log10(runs.flop.max() / runs.flop.min()))
    shares: dict[float | None, float] = {w: max(1 - w / decades, 0.0) / len(WINDOWS) for w in WINDOWS}
    shares[None] = 1 - sum(shares.values())
    weights = dict(zip(CANDIDATES, PRIOR_WEIGHTS, strict=True))
    return [_Member(form, window, weights[form] * shares[window]) for form, window in laws]


def _holdout_evidence(
    splits: Sequence[HoldOut], laws: Sequence[_Laws], members: Sequence[_Member]
) -> _Evidence:
    """The members' weights and errors, and the discrepancy per decade, from the laws of each split's smaller budgets.

    A member's score is the sum over splits of the mean log density of the held-out runs (pseudo-Bayesian model
    averaging).
    """
    weights = np.array([member.prior_weight for member in members])
    if not splits:
        return _Evidence(weights / weights.sum(), (None,) * len(members), None, _discrepancy(()))
    scored = [_scored(split, own, members) for split, own in zip(splits, laws, strict=True)]
    scores = np.sum([one.log_densities for one in scored], axis=0)
    weights = weights * np.exp(scores - scores.max())
    weights = weights / weights.sum()
    own_errors = np.mean([np.abs(one.residuals).mean(axis=1) for one in scored], axis=0)
    mixed = [float(np.abs(weights @ one.residuals).mean()) for one in scored]
    errors = [error for one in scored for error in _budget_errors(one, weights)]
    return _Evidence(weights, tuple(own_errors.tolist()), float(np.mean(mixed)), _discrepancy(errors))


def _scored(split: HoldOut, laws: _Laws, members: Sequence[_Member]) -> _Scored:
    """What each member says of the held-out runs; the law of all runs stands for a window that the split has not."""
    size, tokens = split.held_out.size, split.held_out.fresh_tokens
    chosen = [laws.get((member.form, member.window), laws[member.form, None]) for member in members]
    predictions = tuple(law.predict(size, tokens) for law in chosen)
    return _Scored(split, decades_beyond(split.train, size, tokens), predictions)


def _budget_errors(scored: _Scored, weights: Array) -> list[_BudgetError]:
    held_out, residuals = scored.split.held_out, weights @ scored.residuals
    groups = budget_groups(held_out.flop)
    errors = []
    for group in groups:
        part = held_out.precision[group] / held_out.precision[group].sum()
        levels = np.array([one.log_loss[group] @ part for one in scored.predictions])
        within = np.array([one.mean_variance(group, part) for one in scored.predictions])
        noise = np.array([(one.noise_sd[group] ** 2).mean() for one in scored.predictions]) / len(group)
        noise = noise * (_MEDIAN_INEFFICIENCY if len(group) > 2 else 1.0)
        errors.append(
            _BudgetError(
                median=_weighted_median(residuals[group], part),
                explained=float(weights @ (within + (levels - weights @ levels) ** 2 + noise)),
                decades=max(float(part @ scored.decades[group]), _SHORTEST_DECADES),
                share=1 / len(groups),
            )
        )
    return errors


def _weighted_median(values: Array, weights: Array) -> float:
    """The value below which half of the weight lies, between neighbours in proportion; the weights sum to 1."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(0.5, below, values[order]))


def _discrepancy(errors: Sequence[_BudgetError]) -> NoiseScale:
    """The posterior of the discrepancy after all hold-out splits.

    A budget's error is Gaussian: the members' own spread, the noise, and the discrepancy times the distance.
    """
    square = np.array([one.median**2 for one in errors])
    explained = np.array([one.explained for one in errors])
    decades = np.array([one.decades for one in errors])
    share = np.array([one.share for one in errors])

    def log_likelihood(sd: Array) -> Array:
        variance = explained + (sd[:, None] * decades) ** 2
        return np.asarray(-0.5 * (share * (np.log(variance) + square / variance)).sum(axis=1))

    return noise_scale(DISCREPANCY_PER_DECADE, _DISCREPANCY_FACTOR, log_likelihood)


def _median_and_95(log_loss: Array) -> tuple[float, float, float]:
    low, median, high = np.exp(np.percentile(log_loss, [2.5, 50, 97.5])).tolist()
    return median, low, high


def _floor_effect(floors: Array, log_loss: Array) -> FloorEffect:
    """Medians of floor and loss over the lowest, middle and highest fifth of the draws in E."""
    order = np.argsort(floors, kind="stable")
    fifth = max(len(order) // 5, 1)
    middle = (len(order) - fifth) // 2
    parts = [order[:fifth], order[middle : middle + fifth], order[-fifth:]]
    low, median, high = (float(np.median(floors[part])) for part in parts)
    at_low, at_median, at_high = (float(np.exp(np.median(log_loss[part]))) for part in parts)
    return FloorEffect((low, median, high), (at_low, at_median, at_high))
