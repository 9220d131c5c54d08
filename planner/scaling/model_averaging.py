"""Model averaging over loss laws: hold-out scores, weights, and a forecast whose intervals cover.

Laws are scored on held-out larger budgets only: fitted on the runs of the smaller budgets, they predict the larger
ones, at several hold-out splits. A forecast is a mixture of the laws, each drawn from its posterior and weighted by the
density that it gave to the held-out runs. To their spread it adds two errors that no law has: a discrepancy that grows
with the distance of the extrapolation, estimated on the held-out budgets, and the noise of the target run itself.
Nothing is tuned on a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.scaling.fit import DrawInterval, FormFit, fit, interval
from planner.scaling.holdout import HoldOut, decades_beyond, holdout_splits
from planner.scaling.isoflop import budget_groups, fit_minima
from planner.scaling.laws import COUPLED, STANDARD, TIED, VALLEY, Array, Form, optimum
from planner.scaling.noise_scale import NoiseScale, noise_scale
from planner.scaling.posterior import Points, Posterior, posterior
from specs.humanize import several

CANDIDATES = (TIED, STANDARD, COUPLED, VALLEY)
"""Fewest constants first: the order in which equally good laws are preferred."""
PRIOR_WEIGHTS = (0.025, 0.025, 0.475, 0.475)
"""Weights before any held-out budget: the standard and tied laws are the coupled law with a coupling of 1, and none of
six public data sets has one near 1 (posterior.py), so these two have small weights."""
_HOLDOUT_DRAWS = 200
DISCREPANCY_PER_DECADE, _DISCREPANCY_FACTOR = 0.004, 1.6
"""Prior of the discrepancy: standard deviation of log L per decade of compute beyond a law's runs, two thirds of it
within this factor. Laws chosen on the smaller runs of Farseer, Epoch, Gemstones and misfitting miss their larger ones
by 0.4 to 1.5 %, their own spread included, which leaves 0.4 to 0.9 % a decade (docs/log.md)."""
_HOLDOUT_SHARE = 0.5
"""Hold-out splits share most of their held-out runs, so together they count as half their number."""


@dataclass(frozen=True)
class HeldOutScore:
    """How a law predicts budgets larger than those it was fitted on."""

    form: Form
    held_out_error: float
    """Mean |log L measured - predicted| over the held-out runs, every split with the same weight."""
    behind_best: float
    """Difference of that error to the best law's."""
    behind_best_sd: float
    """Standard error of that difference, with the runs of one size counted as one."""


@dataclass(frozen=True)
class MixtureMember:
    """One law in a mixture forecast: its weight, and its own median and 95 % interval of the loss."""

    form: Form
    weight: float
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
    """Mean |log L measured - forecast| of the weighted laws on held-out larger budgets; None without any."""
    flags: tuple[str, ...]
    """What weakens the evidence: short runs, minima that are not bracketed, few budgets."""


@dataclass(frozen=True)
class Mixture:
    """All laws fitted on the runs, with their weights: fitted once, then used for any target."""

    runs: Points
    laws: tuple[Posterior, ...]
    weights: Array
    member: NDArray[np.int64]
    """(draws,) the law that each draw of the mixture comes from."""
    discrepancy: NoiseScale
    """Error of the laws in log L per decade of compute beyond their runs."""
    held_out_error: float | None
    seed: int

    def mixed(self, per_law: Sequence[Array]) -> Array:
        """One value per draw, each from its own law's draws."""
        return np.asarray(np.stack(per_law)[self.member, np.arange(len(self.member))])


@dataclass(frozen=True)
class _HoldOutError:
    """Error of the weighted laws on the held-out runs of a split, in log L."""

    mean: float
    """Measured - forecast."""
    explained: float
    """Variance of that mean by the laws' own spread and the runs' noise."""
    decades: float
    """Distance of the held-out runs from the fitted ones; at least a tenth."""
    error: float
    """Mean absolute."""


def compare_forms(runs: Points, forms: Sequence[Form] = CANDIDATES) -> tuple[HeldOutScore, ...]:
    """Every law's error on held-out larger budgets, best first; empty where the runs allow no hold-out split.

    Plain fits without priors, each on more runs than any law has constants. A law whose fit or prediction diverges is
    omitted.
    """
    splits = holdout_splits(runs, max(len(form.constants) for form in forms) + 1)
    if not splits:
        return ()
    tried = {form: np.concatenate([_errors(form, split) for split in splits]) for form in forms}
    errors = {form: error for form, error in tried.items() if np.isfinite(error).all()}
    if not errors:
        return ()
    shares = [split.held_out.precision / (split.held_out.precision.sum() * len(splits)) for split in splits]
    share, cluster = np.concatenate(shares), np.concatenate([split.held_out.size for split in splits])
    best = min(errors.values(), key=lambda error: float(share @ error))
    scores = [
        HeldOutScore(
            form=form,
            held_out_error=float(share @ error),
            behind_best=float(share @ (error - best)),
            behind_best_sd=_clustered_sd(share * (error - best), cluster),
        )
        for form, error in errors.items()
    ]
    return tuple(sorted(scores, key=lambda score: score.held_out_error))


def chosen_form(scores: Sequence[HeldOutScore]) -> Form:
    """The law with the fewest constants within one standard error of the best (Breiman et al. 1984), of equally many
    the best one; without scores, the law with the fewest constants.
    """
    if not scores:
        return CANDIDATES[0]
    close = [score for score in scores if score.behind_best <= score.behind_best_sd]
    return min(close, key=lambda score: (len(score.form.constants), score.held_out_error)).form


def chosen_fit(runs: Points) -> FormFit:
    """The chosen law fitted on all runs, to allocate a budget with."""
    form = chosen_form(compare_forms(runs))
    return fit(form, runs.size, runs.tokens, runs.loss, cost_per=runs.cost_per, weights=runs.precision)


def _errors(form: Form, split: HoldOut) -> Array:
    train, held_out = split.train, split.held_out
    try:
        fitted = fit(
            form, train.size, train.tokens, train.loss, cost_per=train.cost_per, weights=train.precision
        )
    except ValueError:  # these runs do not determine the law
        return np.full(len(held_out.loss), np.inf)
    with np.errstate(invalid="ignore"):
        return np.abs(np.log(fitted.predict(held_out.size, held_out.tokens) / held_out.loss))


def _clustered_sd(parts: Array, cluster: Array) -> float:
    """Standard error of a sum whose parts are dependent inside each cluster."""
    _, index = np.unique(cluster, return_inverse=True)
    sums = np.bincount(index, weights=parts)
    return float(np.sqrt(((sums - sums.mean()) ** 2).sum() * len(sums) / max(len(sums) - 1, 1)))


def fit_mixture(runs: Points, *, draws: int = 2000, seed: int = 0) -> Mixture:
    """Every law's posterior with its weight; deterministic in its arguments.

    ValueError with one budget, or with no more different runs than the largest law has constants: there is
    nothing to extrapolate from.
    """
    budgets = len(budget_groups(runs.flop))
    different = len(np.unique(runs.cell))
    needed = max(len(form.constants) for form in CANDIDATES) + 1
    if budgets < 2 or different < needed:
        raise ValueError(
            f"{several(different, 'different run')} at {several(budgets, 'budget')}, but a forecast needs at least "
            f"{needed} runs at two or more budgets"
        )
    weights, discrepancy, error = _holdout_evidence(runs, seed)
    laws = tuple(posterior(form, runs, draws, seed + i) for i, form in enumerate(CANDIDATES))
    generator = np.random.Generator(np.random.PCG64([seed, 0]))
    member = generator.choice(len(laws), size=draws, p=weights)
    return Mixture(runs, laws, weights, member, discrepancy, error, seed)


def forecast_loss(mixture: Mixture, size: float, tokens: float) -> MixtureForecast:
    """The forecast of one run: the spread of the laws, the discrepancy at its distance, and the run's own noise.

    The 50 and 95 % bands (prediction intervals) are percentiles of these draws.
    """
    log_losses = [law.log_loss(size, tokens)[:, 0] for law in mixture.laws]
    centre = mixture.mixed(log_losses)
    noise = mixture.mixed([law.noise_sd for law in mixture.laws])
    decades = float(decades_beyond(mixture.runs, np.array([size * tokens * mixture.runs.cost_per]))[0])
    generator = np.random.Generator(np.random.PCG64([mixture.seed, 1]))
    discrepancy = mixture.discrepancy.draw(generator, len(centre)) * decades
    total = centre + np.hypot(discrepancy, noise) * generator.standard_normal(len(centre))
    low_95, low_50, median, high_50, high_95 = np.exp(np.percentile(total, [2.5, 25, 50, 75, 97.5])).tolist()
    members = tuple(
        MixtureMember(law.form, float(weight), *_median_and_95(log_loss))
        for law, weight, log_loss in zip(mixture.laws, mixture.weights, log_losses, strict=True)
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
        noise_sd=float(np.median(noise)),
        discrepancy_sd=mixture.discrepancy.median * decades,
        extrapolation=10**decades,
        held_out_error=mixture.held_out_error,
        flags=flags(mixture.runs),
    )


def best_split(mixture: Mixture, flop: float) -> dict[str, DrawInterval]:
    """95 % intervals of the compute-optimal "size", "tokens", "tokens_per_size" and noise-free "loss" at a budget, over
    all weighted laws."""
    splits = [optimum(law.form, np.exp(law.log_params), flop, law.cost_per) for law in mixture.laws]
    size, tokens, loss = (mixture.mixed(column) for column in zip(*splits, strict=True))
    quantities = {"size": size, "tokens": tokens, "tokens_per_size": tokens / size, "loss": loss}
    return {name: interval(values) for name, values in quantities.items()}


def _median_and_95(log_loss: Array) -> tuple[float, float, float]:
    low, median, high = np.exp(np.percentile(log_loss, [2.5, 50, 97.5])).tolist()
    return median, low, high


def _holdout_evidence(runs: Points, seed: int) -> tuple[Array, NoiseScale, float | None]:
    """The laws' weights, the discrepancy per decade, and the mean error of the weighted laws on held-out budgets.

    A law's score is the sum over splits of the mean log density of the held-out runs (pseudo-Bayesian model averaging).
    """
    splits = holdout_splits(runs, 5)
    weights = np.array(PRIOR_WEIGHTS)
    if not splits:
        return weights, _discrepancy(()), None
    laws = [[posterior(form, split.train, _HOLDOUT_DRAWS, seed) for form in CANDIDATES] for split in splits]
    densities = [[_log_density(law, split) for law in row] for row, split in zip(laws, splits, strict=True)]
    scores = np.sum(densities, axis=0)
    weights = weights * np.exp(scores - scores.max())
    weights = weights / weights.sum()
    errors = [_holdout_error(row, split, weights) for row, split in zip(laws, splits, strict=True)]
    return weights, _discrepancy(errors), float(np.mean([one.error for one in errors]))


def _discrepancy(errors: Sequence[_HoldOutError]) -> NoiseScale:
    """The posterior of the discrepancy after all hold-out splits.

    The mean error of a split is Gaussian: the laws' own spread, the noise, and the discrepancy times the distance.
    """
    square = np.array([one.mean**2 for one in errors])
    explained = np.array([one.explained for one in errors])
    decades = np.array([one.decades for one in errors])

    def log_likelihood(sd: Array) -> Array:
        variance = explained + (sd[:, None] * decades) ** 2
        return np.asarray(-0.5 * _HOLDOUT_SHARE * (np.log(variance) + square / variance).sum(axis=1))

    return noise_scale(DISCREPANCY_PER_DECADE, _DISCREPANCY_FACTOR, log_likelihood)


def _log_density(law: Posterior, split: HoldOut) -> float:
    """Mean log density of the held-out runs under a Student t (5 degrees) around the law's draws."""
    log_loss = law.log_loss(split.held_out.size, split.held_out.tokens)
    distance = DISCREPANCY_PER_DECADE * decades_beyond(split.train, split.held_out.flop)
    scale = np.sqrt(log_loss.var(axis=0) + np.median(law.noise_sd) ** 2 + distance**2)
    standard = (np.log(split.held_out.loss) - log_loss.mean(axis=0)) / scale
    density = -3 * np.log1p(standard**2 / 5) - np.log(scale)
    return float(np.average(density, weights=split.held_out.precision))


def _holdout_error(laws: Sequence[Posterior], split: HoldOut, weights: Array) -> _HoldOutError:
    draws = [law.log_loss(split.held_out.size, split.held_out.tokens) for law in laws]
    residuals = np.log(split.held_out.loss) - weights @ np.stack([draw.mean(axis=0) for draw in draws])
    levels = np.stack([draw.mean(axis=1) for draw in draws])
    within, between = levels.var(axis=1), (levels.mean(axis=1) - weights @ levels.mean(axis=1)) ** 2
    noise = np.array([np.median(law.noise_sd) ** 2 for law in laws]) / len(residuals)
    return _HoldOutError(
        mean=float(residuals.mean()),
        explained=float(weights @ (within + between + noise)),
        decades=max(float(np.mean(decades_beyond(split.train, split.held_out.flop))), 0.1),
        error=float(np.abs(residuals).mean()),
    )


def _floor_effect(floors: Array, log_loss: Array) -> FloorEffect:
    """Medians of floor and loss over the lowest, middle and highest fifth of the draws in E."""
    order = np.argsort(floors, kind="stable")
    fifth = max(len(order) // 5, 1)
    middle = (len(order) - fifth) // 2
    parts = [order[:fifth], order[middle : middle + fifth], order[-fifth:]]
    low, median, high = (float(np.median(floors[part])) for part in parts)
    at_low, at_median, at_high = (float(np.exp(np.median(log_loss[part]))) for part in parts)
    return FloorEffect((low, median, high), (at_low, at_median, at_high))


def flags(runs: Points) -> tuple[str, ...]:
    """Texts on what weakens the evidence."""
    found = []
    if short := int(runs.short.sum()):
        found.append(f"{short} of {len(runs.loss)} runs have under 1000 steps and get a ninth of the weight")
    minima = fit_minima(runs.size, runs.tokens, runs.loss, cost_per=runs.cost_per, weights=runs.weights)
    found += [f"at {m.flop:.3g} FLOP {m.reason}" for m in minima if not m.bracketed]
    if (budgets := len(budget_groups(runs.flop))) < 4:
        found.append(
            f"only {several(budgets, 'budget')}: the loss floor is mostly that of the prior, from published laws"
        )
    return tuple(found)
