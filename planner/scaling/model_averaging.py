"""Which law to believe, by what each predicts, and a forecast that covers.

Laws are scored on held-out larger budgets only: fitted on the runs below a cut in compute, they predict the
runs above it, at several cuts. A forecast then sets the laws side by side, each drawn from its posterior and
weighted by the density it gave to the held-out runs. To their spread it adds what no law knows: a discrepancy
that grows with the distance of the extrapolation, as large as the held-out budgets show it to be, and the
noise of the target run itself. Nothing is tuned on a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.scaling.fit import DrawInterval, FormFit, fit, interval
from planner.scaling.holdout import HoldOut, decades_beyond, holdout_splits
from planner.scaling.isoflop import budget_groups, profiles
from planner.scaling.laws import COUPLED, STANDARD, TIED, VALLEY, Array, Form, optimum
from planner.scaling.noise_scale import NoiseScale, noise_scale
from planner.scaling.posterior import Points, Posterior, posterior
from specs.humanize import several

CANDIDATES = (TIED, STANDARD, COUPLED, VALLEY)
"""Fewest constants first: the order in which equally good laws are preferred."""
PRIOR_WEIGHTS = (0.025, 0.025, 0.475, 0.475)
"""Before any held-out budget: of six public data sets none has a coupling near 1, which is what the standard
and tied laws are (posterior.py), so those two stay as a hedge."""
_HOLDOUT_DRAWS = 200
DISCREPANCY_PER_DECADE, _DISCREPANCY_FACTOR = 0.004, 1.6
"""Standard deviation of log L that laws miss per decade of compute beyond their runs, expected before looking, two
thirds of the belief within this factor: laws chosen on the smaller runs of Farseer, Epoch, Gemstones and misfitting
miss their larger ones by 0.4 to 1.5 %, their own spread included, which leaves 0.4 to 0.9 % a decade (docs/log.md)."""
_HOLDOUT_SHARE = 0.5
"""Cuts share most of their held-out runs, so together they count as half their number."""


@dataclass(frozen=True)
class HeldOutScore:
    """How a law predicts budgets larger than those it was fitted on."""

    form: Form
    held_out_error: float
    """Mean |log L measured - predicted| over the cuts' held-out runs, each cut counting the same."""
    behind_best: float
    """How much worse than the best law."""
    behind_best_sd: float
    """Standard error of that difference, runs of one size counted as one piece of evidence."""


@dataclass(frozen=True)
class MixtureMember:
    """One law's part in a forecast: its own median and 95 % interval of the loss, and its weight."""

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
    """The loss of a target run with what it rests on. Losses are in the unit of the runs' losses."""

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
    """What runs say about every law: learned once, asked for many targets."""

    runs: Points
    laws: tuple[Posterior, ...]
    weights: Array
    member: NDArray[np.int64]
    """(draws,) the law that each draw of the mixture comes from."""
    discrepancy: NoiseScale
    """What laws miss per decade of compute beyond their runs, in log L."""
    held_out_error: float | None
    seed: int

    def mixed(self, per_law: Sequence[Array]) -> Array:
        """One value per draw, each from its own law's draws."""
        return np.asarray(np.stack(per_law)[self.member, np.arange(len(self.member))])


@dataclass(frozen=True)
class _HoldOutError:
    """How the weighted laws did on a cut's held-out runs, in log L."""

    mean: float
    """Measured - forecast."""
    explained: float
    """Variance of that mean by the laws' own spread and the runs' noise."""
    decades: float
    """How far beyond the runs below; at least a tenth."""
    error: float
    """Mean absolute."""


def compare_forms(runs: Points, forms: Sequence[Form] = CANDIDATES) -> tuple[HeldOutScore, ...]:
    """Every law's error on held-out larger budgets, best first; empty where the runs allow no cut.

    Plain fits without priors; a cut leaves more runs below than any law has constants. A law that runs away on the
    runs below, or beyond them, is left out.
    """
    cuts = holdout_splits(runs, max(len(form.constants) for form in forms) + 1)
    if not cuts:
        return ()
    tried = {form: np.concatenate([_errors(form, cut) for cut in cuts]) for form in forms}
    errors = {form: error for form, error in tried.items() if np.isfinite(error).all()}
    if not errors:
        return ()
    shares = [cut.above.precision / (cut.above.precision.sum() * len(cuts)) for cut in cuts]
    share, cluster = np.concatenate(shares), np.concatenate([cut.above.size for cut in cuts])
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
    """The law with the fewest constants within one standard error of the best (Breiman et al. 1984); among
    equals the best.

    Without scores, the law with the fewest constants.
    """
    if not scores:
        return CANDIDATES[0]
    close = [score for score in scores if score.behind_best <= score.behind_best_sd]
    return min(close, key=lambda score: (len(score.form.constants), score.held_out_error)).form


def chosen_fit(runs: Points) -> FormFit:
    """The chosen law fitted on all runs: what to allocate a budget with."""
    form = chosen_form(compare_forms(runs))
    return fit(form, runs.size, runs.tokens, runs.loss, cost_per=runs.cost_per, weights=runs.precision)


def _errors(form: Form, cut: HoldOut) -> Array:
    below, above = cut.below, cut.above
    try:
        fitted = fit(
            form, below.size, below.tokens, below.loss, cost_per=below.cost_per, weights=below.precision
        )
    except ValueError:  # the runs below do not hold this law
        return np.full(len(above.loss), np.inf)
    with np.errstate(invalid="ignore"):
        return np.abs(np.log(fitted.predict(above.size, above.tokens) / above.loss))


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
            f"{different} different runs at {budgets} budgets; a forecast needs at least {needed} at two or more"
        )
    weights, discrepancy, error = _holdout_evidence(runs, seed)
    laws = tuple(posterior(form, runs, draws, seed + i) for i, form in enumerate(CANDIDATES))
    generator = np.random.Generator(np.random.PCG64([seed, 0]))
    member = generator.choice(len(laws), size=draws, p=weights)
    return Mixture(runs, laws, weights, member, discrepancy, error, seed)


def forecast(evidence: Mixture, size: float, tokens: float) -> MixtureForecast:
    """The forecast of one run: the laws' spread, the discrepancy of the distance and the run's own noise."""
    log_losses = [law.log_loss(size, tokens)[:, 0] for law in evidence.laws]
    centre = evidence.mixed(log_losses)
    noise = evidence.mixed([law.noise_sd for law in evidence.laws])
    decades = float(decades_beyond(evidence.runs, np.array([size * tokens * evidence.runs.cost_per]))[0])
    generator = np.random.Generator(np.random.PCG64([evidence.seed, 1]))
    missed = evidence.discrepancy.draw(generator, len(centre)) * decades
    total = centre + np.hypot(missed, noise) * generator.standard_normal(len(centre))
    low_95, low_50, median, high_50, high_95 = np.exp(np.percentile(total, [2.5, 25, 50, 75, 97.5])).tolist()
    members = tuple(
        MixtureMember(law.form, float(weight), *_median_and_95(log_loss))
        for law, weight, log_loss in zip(evidence.laws, evidence.weights, log_losses, strict=True)
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
        floor=_floor_effect(evidence.mixed([law.constant("E") for law in evidence.laws]), centre),
        noise_sd=float(np.median(noise)),
        discrepancy_sd=evidence.discrepancy.median * decades,
        extrapolation=10**decades,
        held_out_error=evidence.held_out_error,
        flags=flags(evidence.runs),
    )


def best_split(evidence: Mixture, flop: float) -> dict[str, DrawInterval]:
    """95 % intervals of the compute-optimal "size", "tokens", "tokens_per_size" and noise-free "loss" at a budget, over
    all weighted laws."""
    splits = [optimum(law.form, np.exp(law.log_params), flop, law.cost_per) for law in evidence.laws]
    size, tokens, loss = (evidence.mixed(column) for column in zip(*splits, strict=True))
    quantities = {"size": size, "tokens": tokens, "tokens_per_size": tokens / size, "loss": loss}
    return {name: interval(values) for name, values in quantities.items()}


def _median_and_95(log_loss: Array) -> tuple[float, float, float]:
    low, median, high = np.exp(np.percentile(log_loss, [2.5, 50, 97.5])).tolist()
    return median, low, high


def _holdout_evidence(runs: Points, seed: int) -> tuple[Array, NoiseScale, float | None]:
    """The laws' weights, the discrepancy per decade and the mean error that the weighted laws show on
    held-out budgets.

    A law's score is the sum over cuts of the mean log density of the held-out runs (pseudo-Bayesian model
    averaging).
    """
    cuts = holdout_splits(runs, 5)
    weights = np.array(PRIOR_WEIGHTS)
    if not cuts:
        return weights, _discrepancy(()), None
    laws = [[posterior(form, cut.below, _HOLDOUT_DRAWS, seed) for form in CANDIDATES] for cut in cuts]
    densities = [[_log_density(law, cut) for law in row] for row, cut in zip(laws, cuts, strict=True)]
    scores = np.sum(densities, axis=0)
    weights = weights * np.exp(scores - scores.max())
    weights = weights / weights.sum()
    missed = [_holdout_error(row, cut, weights) for row, cut in zip(laws, cuts, strict=True)]
    return weights, _discrepancy(missed), float(np.mean([miss.error for miss in missed]))


def _discrepancy(missed: Sequence[_HoldOutError]) -> NoiseScale:
    """The belief in the discrepancy after the cuts.

    A cut's mean miss is Gaussian: the laws' own spread, the noise, and the discrepancy times the distance.
    """
    square = np.array([miss.mean**2 for miss in missed])
    explained = np.array([miss.explained for miss in missed])
    decades = np.array([miss.decades for miss in missed])

    def log_likelihood(sd: Array) -> Array:
        variance = explained + (sd[:, None] * decades) ** 2
        return np.asarray(-0.5 * _HOLDOUT_SHARE * (np.log(variance) + square / variance).sum(axis=1))

    return noise_scale(DISCREPANCY_PER_DECADE, _DISCREPANCY_FACTOR, log_likelihood)


def _log_density(law: Posterior, cut: HoldOut) -> float:
    """Mean log density of the held-out runs under a Student t (5 degrees) around the law's draws."""
    log_loss = law.log_loss(cut.above.size, cut.above.tokens)
    distance = DISCREPANCY_PER_DECADE * decades_beyond(cut.below, cut.above.flop)
    scale = np.sqrt(log_loss.var(axis=0) + np.median(law.noise_sd) ** 2 + distance**2)
    standard = (np.log(cut.above.loss) - log_loss.mean(axis=0)) / scale
    density = -3 * np.log1p(standard**2 / 5) - np.log(scale)
    return float(np.average(density, weights=cut.above.precision))


def _holdout_error(laws: Sequence[Posterior], cut: HoldOut, weights: Array) -> _HoldOutError:
    draws = [law.log_loss(cut.above.size, cut.above.tokens) for law in laws]
    residuals = np.log(cut.above.loss) - weights @ np.stack([draw.mean(axis=0) for draw in draws])
    levels = np.stack([draw.mean(axis=1) for draw in draws])
    within, between = levels.var(axis=1), (levels.mean(axis=1) - weights @ levels.mean(axis=1)) ** 2
    noise = np.array([np.median(law.noise_sd) ** 2 for law in laws]) / len(residuals)
    return _HoldOutError(
        mean=float(residuals.mean()),
        explained=float(weights @ (within + between + noise)),
        decades=max(float(np.mean(decades_beyond(cut.below, cut.above.flop))), 0.1),
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
    """Plain sentences on what weakens the evidence."""
    found = []
    if short := int(runs.short.sum()):
        found.append(f"{short} of {len(runs.loss)} runs are under 1000 steps and count for a ninth")
    minima = profiles(runs.size, runs.tokens, runs.loss, cost_per=runs.cost_per, weights=runs.weights)
    found += [f"at {m.flop:.3g} FLOP {m.reason}" for m in minima if not m.bracketed]
    if (budgets := len(budget_groups(runs.flop))) < 4:
        found.append(f"only {several(budgets, 'budget')}: the floor rests on other people's laws")
    return tuple(found)
