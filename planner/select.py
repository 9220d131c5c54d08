"""Which law to believe, by what each predicts, and a forecast that covers.

Laws are scored on held-out larger budgets only: fitted on the runs below a cut in compute, they predict the runs above it, at several
cuts. A forecast then sets the laws side by side, each drawn from its posterior and weighted by the density it gave to the held-out
runs. To their spread it adds what no law knows: a discrepancy that grows with the distance of the extrapolation, as large as the
held-out budgets show it to be, and the noise of the target run itself. Nothing is tuned on a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.fit import Fit, fit
from planner.isoflop import Minimum, budget_groups, profiles
from planner.laws import COUPLED, STANDARD, TIED, VALLEY, Array, Form
from planner.posterior import Points, Posterior, posterior

CANDIDATES = (TIED, STANDARD, COUPLED, VALLEY)
"""Fewest constants first: the order in which equally good laws are preferred."""
_PRIOR_WEIGHTS = (1 / 6, 1 / 6, 1 / 3, 1 / 3)
"""One vote per idea: tied is a case of standard."""
_CUT_SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Where many budgets leave a choice of cuts: shares of the runs below."""
_FOLD_DRAWS = 200
_DISCREPANCY_PER_DECADE, _DISCREPANCY_FOLDS = 0.01, 4.0
"""Standard deviation of log L that laws miss per decade of compute beyond their runs, expected before looking and worth this many cuts:
laws chosen on the smaller runs of Farseer, Epoch, Gemstones and misfitting miss their larger ones by 0.4 to 1.5 % (docs/log.md)."""


@dataclass(frozen=True)
class FormScore:
    """How a law predicts budgets larger than those it was fitted on."""

    form: Form
    heldout_error: float
    """Mean |log L measured - predicted| over the cuts' held-out runs, each cut counting the same."""
    behind_best: float
    """How much worse than the best law."""
    behind_best_sd: float
    """Standard error of that difference, runs of one size counted as one piece of evidence."""
    cuts: int


@dataclass(frozen=True)
class Member:
    """One law's part in a forecast: its own median and 95 % interval of the loss, and its weight."""

    form: Form
    weight: float
    median: float
    low95: float
    high95: float


@dataclass(frozen=True)
class FloorEffect:
    """The forecast where the floor E is low, median and high among the draws."""

    floor: tuple[float, float, float]
    loss: tuple[float, float, float]


@dataclass(frozen=True)
class Forecast:
    """The loss of a target run with what it rests on. Losses are in the unit of the points' losses."""

    size: float
    tokens: float
    median: float
    low50: float
    high50: float
    low95: float
    high95: float
    members: tuple[Member, ...]
    floor: FloorEffect
    noise_sd: float
    """Standard deviation of log L from run to run."""
    discrepancy_sd: float
    """Standard deviation of log L that the distance adds."""
    extrapolation: float
    """Target compute over the largest compute that was run."""
    flags: tuple[str, ...]
    """What weakens the evidence: short runs, minima that are not bracketed, few budgets."""


@dataclass(frozen=True)
class _Cut:
    below: Points
    above: Points


def compare_forms(runs: Points, forms: Sequence[Form] = CANDIDATES) -> tuple[FormScore, ...]:
    """Every law's error on held-out larger budgets, best first; empty where the runs allow no cut.

    Plain fits without priors. A law that has more constants than a cut has runs is left out.
    """
    cuts = _cuts(runs, max(len(form.constants) for form in forms) + 1)
    if not cuts:
        return ()
    errors = [np.concatenate([_errors(form, cut) for cut in cuts]) for form in forms]
    share = np.concatenate([np.full(len(cut.above.loss), 1 / len(cut.above.loss)) for cut in cuts]) / len(cuts)
    cluster = np.concatenate([cut.above.size for cut in cuts])
    means = [float(share @ error) for error in errors]
    best = int(np.argmin(means))
    scores = [
        FormScore(form, mean, mean - means[best], _clustered_sd(share * (error - errors[best]), cluster), len(cuts))
        for form, mean, error in zip(forms, means, errors, strict=True)
    ]
    return tuple(sorted(scores, key=lambda score: score.heldout_error))


def chosen_form(scores: Sequence[FormScore], forms: Sequence[Form] = CANDIDATES) -> Form:
    """The law with the fewest constants within one standard error of the best (Breiman et al. 1984); among equals the best.

    Without scores, the law with the fewest constants.
    """
    if not scores:
        return forms[0]
    close = [score for score in scores if score.behind_best <= score.behind_best_sd]
    return min(close, key=lambda score: (len(score.form.constants), score.heldout_error)).form


def chosen_fit(runs: Points, forms: Sequence[Form] = CANDIDATES) -> Fit:
    """The chosen law fitted on all runs: what to allocate a budget with."""
    form = chosen_form(compare_forms(runs, forms), forms)
    return fit(form, runs.size, runs.tokens, runs.loss, cost_per=runs.cost_per, weights=runs.weights)


def _cuts(runs: Points, needed: int) -> list[_Cut]:
    """Splits of the runs in compute, with at least two budgets and `needed` runs below, one budget above."""
    groups = budget_groups(runs.flop)
    counts = np.cumsum([len(group) for group in groups])
    possible = [i for i in range(2, len(groups)) if counts[i - 1] >= needed]
    if len(possible) > len(_CUT_SHARES):
        wanted = np.array(_CUT_SHARES) * counts[-1]
        possible = sorted({min(possible, key=lambda i: abs(counts[i - 1] - want)) for want in wanted})
    return [
        _Cut(runs.take(np.concatenate(groups[:i])), runs.take(np.concatenate(groups[i:]))) for i in possible
    ]


def _errors(form: Form, cut: _Cut) -> Array:
    below, above = cut.below, cut.above
    fitted = fit(form, below.size, below.tokens, below.loss, cost_per=below.cost_per, weights=below.weights)
    return np.abs(np.log(fitted.predict(above.size, above.tokens) / above.loss))


def _clustered_sd(parts: Array, cluster: Array) -> float:
    """Standard error of a sum whose parts are dependent inside each cluster."""
    _, index = np.unique(cluster, return_inverse=True)
    sums = np.bincount(index, weights=parts)
    return float(np.sqrt(((sums - sums.mean()) ** 2).sum() * len(sums) / max(len(sums) - 1, 1)))


def forecast_loss(
    runs: Points, target_size: float, target_tokens: float, *, draws: int = 2000, seed: int = 0
) -> Forecast:
    """Median, 50 % and 95 % interval of the loss of one run at (target_size, target_tokens).

    ValueError with fewer than two budgets or five runs: there is nothing to extrapolate from.
    """
    if len(budget_groups(runs.flop)) < 2 or len(runs.loss) < 5:
        raise ValueError("a forecast needs at least five runs at two or more budgets")
    weights, spread = _held_out_evidence(runs, seed)
    laws = [posterior(form, runs, draws, seed + i) for i, form in enumerate(CANDIDATES)]
    log_losses = [law.log_loss(target_size, target_tokens)[:, 0] for law in laws]
    decades = _decades_beyond(runs, np.array([target_size * target_tokens * runs.cost_per]))[0]
    generator = np.random.Generator(np.random.PCG64([seed, len(runs.loss)]))
    chosen = generator.choice(len(laws), size=draws, p=weights)
    pick = np.arange(draws)
    centre = np.stack(log_losses)[chosen, pick]
    noise = np.stack([law.noise_sd for law in laws])[chosen, pick]
    beyond = spread.draw(generator, draws) * decades
    total = centre + beyond * generator.standard_normal(draws) + noise * generator.standard_normal(draws)
    low95, low50, median, high50, high95 = np.exp(np.percentile(total, [2.5, 25, 50, 75, 97.5])).tolist()
    floors = np.stack([law.constant("E") for law in laws])[chosen, pick]
    return Forecast(
        size=target_size,
        tokens=target_tokens,
        median=median,
        low50=low50,
        high50=high50,
        low95=low95,
        high95=high95,
        members=tuple(
            Member(law.form, float(weight), *_median_and_95(log_loss))
            for law, weight, log_loss in zip(laws, weights, log_losses, strict=True)
        ),
        floor=_floor_effect(floors, centre),
        noise_sd=float(np.median(noise)),
        discrepancy_sd=float(spread.sd * decades),
        extrapolation=float(10**decades),
        flags=_flags(runs),
    )


def _median_and_95(log_loss: Array) -> tuple[float, float, float]:
    low, median, high = np.exp(np.percentile(log_loss, [2.5, 50, 97.5])).tolist()
    return median, low, high


def _decades_beyond(runs: Points, flop: Array) -> Array:
    """Decades of compute between the largest run and each target; at least 0."""
    return np.maximum(np.log10(flop / runs.flop.max()), 0.0)


@dataclass(frozen=True)
class _Discrepancy:
    """What laws miss per decade: a scaled inverse chi-square belief about its variance."""

    sd: float
    freedom: float

    def draw(self, generator: np.random.Generator, draws: int) -> Array:
        return self.sd * np.sqrt(self.freedom / generator.chisquare(self.freedom, draws))


def _held_out_evidence(runs: Points, seed: int) -> tuple[Array, _Discrepancy]:
    """The laws' weights, and the discrepancy per decade that the weighted laws show on held-out budgets.

    A law's score is the sum over cuts of the mean log density of the held-out runs (pseudo-Bayesian model averaging).
    """
    cuts = _cuts(runs, 5)
    laws = [[posterior(form, cut.below, _FOLD_DRAWS, seed) for form in CANDIDATES] for cut in cuts]
    scores = np.array([[_log_density(law, cut) for law in row] for row, cut in zip(laws, cuts, strict=True)])
    weights = np.array(_PRIOR_WEIGHTS) * np.exp((scores - scores.max(axis=1, keepdims=True)).sum(axis=0)) if cuts else np.array(_PRIOR_WEIGHTS)
    weights = weights / weights.sum()
    missed = [_missed(row, cut, weights) for row, cut in zip(laws, cuts, strict=True)]
    # Cuts share most of their held-out runs, so together they count as half their number.
    seen = len(missed) / 2
    freedom = _DISCREPANCY_FOLDS + seen
    square = (_DISCREPANCY_FOLDS * _DISCREPANCY_PER_DECADE**2 + seen * float(np.mean(missed or [0.0]))) / freedom
    return weights, _Discrepancy(float(np.sqrt(square)), freedom)


def _log_density(law: Posterior, cut: _Cut) -> float:
    """Mean log density of the held-out runs under a Student t (5 degrees) around the law's draws."""
    log_loss = law.log_loss(cut.above.size, cut.above.tokens)
    distance = _DISCREPANCY_PER_DECADE * _decades_beyond(cut.below, cut.above.flop)
    scale = np.sqrt(log_loss.var(axis=0) + np.median(law.noise_sd) ** 2 + distance**2)
    standard = (np.log(cut.above.loss) - log_loss.mean(axis=0)) / scale
    return float(np.mean(-3 * np.log1p(standard**2 / 5) - np.log(scale)))


def _missed(laws: Sequence[Posterior], cut: _Cut, weights: Array) -> float:
    """Squared miss per decade of the weighted laws' mean on a cut's held-out runs, less what their own spread explains."""
    draws = [law.log_loss(cut.above.size, cut.above.tokens) for law in laws]
    residual = np.mean(np.log(cut.above.loss) - sum(w * d.mean(axis=0) for w, d in zip(weights, draws, strict=True)))
    explained = sum(w * d.mean(axis=1).var() for w, d in zip(weights, draws, strict=True))
    noise = np.median([np.median(law.noise_sd) for law in laws]) ** 2 / len(cut.above.loss)
    decades = max(float(np.mean(_decades_beyond(cut.below, cut.above.flop))), 0.1)
    return max(float(residual**2 - explained - noise), 0.0) / decades**2


def _floor_effect(floors: Array, log_loss: Array) -> FloorEffect:
    """Medians of floor and loss over the lowest, middle and highest fifth of the draws in E."""
    order = np.argsort(floors, kind="stable")
    fifth = max(len(order) // 5, 1)
    middle = (len(order) - fifth) // 2
    parts = [order[:fifth], order[middle : middle + fifth], order[-fifth:]]
    low, median, high = (float(np.median(floors[part])) for part in parts)
    at_low, at_median, at_high = (float(np.exp(np.median(log_loss[part]))) for part in parts)
    return FloorEffect((low, median, high), (at_low, at_median, at_high))


def _flags(runs: Points) -> tuple[str, ...]:
    """Plain sentences on what weakens the evidence."""
    found = []
    if short := int(runs.short.sum()):
        found.append(f"{short} of {len(runs.loss)} runs are under 1000 steps and count for a ninth")
    minima: list[Minimum] = profiles(runs.size, runs.tokens, runs.loss, cost_per=runs.cost_per, weights=runs.weights)
    found += [f"at {m.flop:.3g} FLOP {m.reason}" for m in minima if not m.bracketed]
    if (budgets := len(budget_groups(runs.flop))) < 4:
        found.append(f"only {budgets} budgets: the floor rests on other people's laws")
    return tuple(found)
