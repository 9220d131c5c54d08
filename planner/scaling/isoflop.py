"""isoFLOP profiles: parabolas through the runs of a budget, their minima, and a cross-check on the laws.

Runs of one budget C trade size against tokens; log L against log size is close to a parabola whose minimum is
the best split (Hoffmann et al. 2022, approach 2; DeepSeek LLM, section 3.2). Each minimum has its standard
error; a minimum that its runs do not bracket is flagged with the reason, because it is an extrapolation. Power
laws through the bracketed minima give X* ~ C**a and D* ~ C**b. The parabola is biased where sizes span widely
(Czech et al. 2026, arXiv 2603.22339), so allocate by a parametric law and compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.scaling.laws import Array
from planner.scaling.points import checked_runs

BUDGET_TOLERANCE = 0.05
"""Runs whose compute differs by less than this share belong to one budget: steps come in whole batches, so C
is met only nearly."""


@dataclass(frozen=True)
class Minimum:
    """The parabola of one budget."""

    flop: float
    """Geometric mean of the budget's runs."""
    size: float
    tokens: float
    loss: float
    curvature: float
    """Second derivative of log L in log size; positive for a valley."""
    log_size_sd: float
    """Standard error of log size* (and of log tokens*): inf where the runs cannot tell."""
    log_loss_sd: float
    """Standard error of log loss at the minimum."""
    runs: int
    bracketed: bool
    """Whether runs lie on both sides of a true minimum."""
    reason: str
    """Why it is not bracketed; empty when it is."""


@dataclass(frozen=True)
class PowerLaw:
    """quantity = coefficient * C**exponent."""

    coefficient: float
    exponent: float
    exponent_sd: float
    """Standard error of the exponent."""

    def at(self, flop: ArrayLike) -> Array:
        """The quantity at a budget."""
        return np.asarray(self.coefficient * np.asarray(flop, float) ** self.exponent)


def budget_groups(flop: ArrayLike, tolerance: float = BUDGET_TOLERANCE) -> list[list[int]]:
    """Indices of the runs of each budget, lowest budget first.

    A gap of more than `tolerance` starts a new budget, and so does compute that is further than twice that above the
    budget's lowest: runs at every compute are many budgets, not one.
    """
    compute = np.log(np.asarray(flop, float))
    order = np.argsort(compute, kind="stable")
    groups, gap, span = list[list[int]](), np.log1p(tolerance), np.log1p(2 * tolerance)
    lowest = last = -np.inf
    for run in order.tolist():
        if compute[run] - last > gap or compute[run] - lowest > span:
            groups.append([])
            lowest = compute[run]
        groups[-1].append(run)
        last = compute[run]
    return groups


def fit_minima(
    size: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    cost_per: float = 1.0,
    noise_sd: float | None = None,
    weights: ArrayLike | None = None,
) -> list[Minimum]:
    """Fit the isoFLOP minimum of every budget with at least three sizes, lowest budget first.

    `noise_sd` is the standard deviation of log L from run to run (replicates); without it the parabolas'
    residuals, pooled over the budgets, stand in for it. `weights` divide a run's variance.
    """
    sizes, token_counts, losses, run_weights = checked_runs(size, tokens, loss, weights)
    groups = [g for g in budget_groups(cost_per * sizes * token_counts) if len(np.unique(sizes[g])) >= 3]
    fits = [_fit_parabola(np.log(sizes[g]), np.log(losses[g]), run_weights[g]) for g in groups]
    sd = _pooled_sd(fits) if noise_sd is None else noise_sd
    return [
        _minimum(fitted, sizes[g], cost_per * sizes[g] * token_counts[g], cost_per, sd)
        for g, fitted in zip(groups, fits, strict=True)
    ]


@dataclass(frozen=True)
class _Parabola:
    centre: float
    coefficients: Array
    """log L = c0 + c1 u + c2 u**2, u = log size - centre."""
    unit_covariance: Array
    """Covariance of the coefficients for noise of standard deviation 1."""
    residual_square: float
    freedom: int


def _fit_parabola(log_size: Array, log_loss: Array, weights: Array) -> _Parabola:
    centre = float(log_size.mean())
    design = np.vander(log_size - centre, 3, increasing=True)
    root = np.sqrt(weights)[:, None]
    inverse = np.linalg.pinv((design * root).T @ (design * root))
    coefficients = inverse @ (design.T @ (weights * log_loss))
    square = float((weights * (log_loss - design @ coefficients) ** 2).sum())
    return _Parabola(centre, coefficients, np.asarray(inverse, float), square, int((weights > 0).sum()) - 3)


def _pooled_sd(fits: Sequence[_Parabola]) -> float:
    """Residual standard deviation over all parabolas; nan when no budget has more than three runs."""
    freedom = sum(max(fitted.freedom, 0) for fitted in fits)
    return float(np.sqrt(sum(fitted.residual_square for fitted in fits) / freedom)) if freedom else np.nan


def _minimum(fitted: _Parabola, size: Array, flop: Array, cost_per: float, sd: float) -> Minimum:
    """The parabola's lowest point within the range of its runs."""
    offsets = np.log([size.min(), size.max()]) - fitted.centre
    place, reason = _lowest(fitted.coefficients, float(offsets[0]), float(offsets[1]))
    height = np.array([1.0, place, place**2])
    slope = np.array([0.0, 1.0, 2 * place])
    curvature = 2 * float(fitted.coefficients[2])
    compute = float(np.exp(np.log(flop).mean()))
    best_size = float(np.exp(fitted.centre + place))
    return Minimum(
        flop=compute,
        size=best_size,
        tokens=compute / (cost_per * best_size),
        loss=float(np.exp(fitted.coefficients @ height)),
        curvature=curvature,
        log_size_sd=np.inf if reason else sd * _root(slope @ fitted.unit_covariance @ slope) / curvature,
        log_loss_sd=sd * _root(height @ fitted.unit_covariance @ height),
        runs=len(size),
        bracketed=not reason,
        reason=reason,
    )


def _root(square: float) -> float:
    return float(np.sqrt(max(square, 0.0)))


def _lowest(coefficients: Array, low: float, high: float) -> tuple[float, str]:
    """Where the parabola is lowest on [low, high], and why that is not a minimum (empty when it is)."""
    ends = np.array([low, high])
    lowest_end = int(np.argmin(np.vander(ends, 3, increasing=True) @ coefficients))
    side = ("smallest", "largest")[lowest_end]
    if coefficients[2] <= 0:
        return float(ends[lowest_end]), f"the loss has no minimum and falls towards the {side} size"
    vertex = -coefficients[1] / (2 * coefficients[2])
    if low < vertex < high:
        return float(vertex), ""
    return float(ends[lowest_end]), f"the minimum lies beyond the {side} size that was run"


def power_laws(minima: Sequence[Minimum]) -> tuple[PowerLaw, PowerLaw]:
    """(size, tokens) = power laws of C through the bracketed minima, each weighted by its own uncertainty.

    ValueError with fewer than two bracketed minima: one point has no slope.
    """
    held = [minimum for minimum in minima if minimum.bracketed]
    if len(held) < 2:
        reasons = "; ".join(f"{m.flop:.3g} FLOP: {m.reason}" for m in minima if not m.bracketed)
        raise ValueError(
            f"a power law needs at least two bracketed isoFLOP minima, and there are {len(held)} "
            f"({reasons or 'too few budgets'})"
        )
    log_flop = np.log([minimum.flop for minimum in held])
    sds = np.array([minimum.log_size_sd for minimum in held])
    known = bool(np.all(np.isfinite(sds) & (sds > 0)))
    size = _line(log_flop, np.log([m.size for m in held]), sds if known else np.ones(len(held)), known)
    tokens = _line(log_flop, np.log([m.tokens for m in held]), sds if known else np.ones(len(held)), known)
    return size, tokens


def _line(log_flop: Array, log_quantity: Array, sds: Array, sds_known: bool) -> PowerLaw:
    """Weighted least squares; its error grows with the residuals where they exceed the minima's own uncertainty."""
    centre = float(log_flop.mean())
    design = np.stack([np.ones_like(log_flop), log_flop - centre], axis=1)
    inverse = np.linalg.inv((design / sds[:, None]).T @ (design / sds[:, None]))
    level, exponent = inverse @ (design.T @ (log_quantity / sds**2))
    freedom = len(log_flop) - 2
    excess = (
        float((((log_quantity - design @ [level, exponent]) / sds) ** 2).sum()) / freedom
        if freedom
        else np.nan
    )
    inflation = max(1.0, excess) if sds_known and freedom else 1.0 if sds_known else excess
    return PowerLaw(
        coefficient=float(np.exp(level - exponent * centre)),
        exponent=float(exponent),
        exponent_sd=float(np.sqrt(inverse[1, 1] * inflation)),
    )
