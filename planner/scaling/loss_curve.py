"""Forecast of a run's held-out loss curve from the curves of smaller runs under the same schedule.

Curves of well-tuned runs, normalised as (L(x) - E) / (L(1) - E) over the finished fraction x, collapse onto one shape
(Qiu et al. 2025, arXiv 2507.02119, section 3). Those of tiny runs do so only nearly: their shape drifts with compute
and with tokens per size. So at every x the logarithm of the normalised loss is a polynomial in those two; the prior has
its slopes and curvature at zero, which is collapse. The band combines the pilots' scatter about it, the target's
distance from them, and the band of the final loss.

Legend: L held-out loss (nats per token), E floor, x finished steps over all steps, C = size * tokens compute.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specs.law import Band

Array = NDArray[np.float64]

SETTLED_WARMUPS = 2.0
"""A curve is used after this many times its warmup: before, it shows the ramp of the learning rate, whose share of the
steps differs from run to run (docs/log.md: loss curve)."""
SLOPE_SD = 0.2
"""Prior spread of the shape's relative drift per e-fold of compute, and of tokens per size. Collapse says 0; ladders of
tiny runs show up to .2 (docs/log.md: loss curve). Its bend has the square, as an exponential drift has."""
COMPUTE_WEIGHT = 0.3
"""A pilot counts as C**0.3, half as much a decade down: small runs scatter and drift more (docs/log.md: loss curve)."""
SCATTER_SD = 0.03
"""Prior scatter of ln normalised loss, with the weight of PRIOR_PILOTS pilots, so that a few pilots that agree by
chance do not give a band of zero width; runs of a thousand steps scatter by this much (docs/log.md: loss curve)."""
PRIOR_PILOTS = 2.0
_HUBER = 1.5
"""Residuals beyond 1.5 scales pull no harder than those at it (Huber 1981, section 4.5)."""
_ROUNDS = 30
"""Reweighting rounds; the last ones change no printed digit."""
_TOLERANCE = 1e-9
"""Fractions closer than this are equal."""


@dataclass(frozen=True)
class Curve:
    """A held-out loss curve, always on the same held-out tokens."""

    fraction: Array
    """Finished steps over all steps, increasing; the last is 1."""
    loss: Array
    """Nats per token."""


@dataclass(frozen=True)
class Pilot:
    """A finished run under the target's schedule: its curve, and where it lies among sizes and tokens."""

    curve: Curve
    size: float
    """M (FLOP per token) or N (parameters): any size, the same one for all pilots and the target."""
    tokens: float
    """Tokens trained on."""
    warmup: float
    """Warmup steps over all steps."""


@dataclass(frozen=True)
class CurveShape:
    """The pilots' normalised curves on common fractions."""

    fraction: Array
    """(points,) increasing, ends at 1; only where half of the pilots, and at least three, have a curve."""
    floor: float
    """E, nats per token."""
    log_excess: Array
    """(pilots, points) ln (L(x) - E) / (L(1) - E); NaN where a pilot's curve is not used."""
    log_compute: Array
    """(pilots,) ln size * tokens."""
    log_ratio: Array
    """(pilots,) ln tokens / size."""


@dataclass(frozen=True)
class CurveForecast:
    """A curve before its run: median, 50 % and 95 % bands of each point by itself, nats per token."""

    step: NDArray[np.int64]
    """Finished steps, from twice the warmup and the first evaluation of a pilot on."""
    median: Array
    low_50: Array
    high_50: Array
    low_95: Array
    high_95: Array


@dataclass(frozen=True)
class _Line:
    """ln normalised loss at the target: centre and half-widths on the shape's fractions."""

    centre: Array
    half_50: Array
    half_95: Array


def collapse(pilots: Sequence[Pilot], floor: float) -> CurveShape:
    """The pilots' curves above `floor`, each over its own end, on every fraction that one of them was evaluated at.

    ValueError where fewer than three pilots overlap, or the floor is not below every loss.
    """
    for i, pilot in enumerate(pilots):
        _check(pilot, floor, i)
    if len(pilots) < 3:
        raise ValueError(f"a common curve shape needs at least three pilots, and there are {len(pilots)}")
    grid = np.unique(np.round(np.concatenate([pilot.curve.fraction for pilot in pilots]), 9))
    log_excess = np.array([_log_excess(pilot, floor, grid) for pilot in pilots])
    covered = np.isfinite(log_excess).sum(axis=0) >= max(3.0, len(pilots) / 2)
    size, tokens = np.array([p.size for p in pilots], float), np.array([p.tokens for p in pilots], float)
    return CurveShape(
        fraction=grid[covered],
        floor=floor,
        log_excess=log_excess[:, covered],
        log_compute=np.log(size * tokens),
        log_ratio=np.log(tokens / size),
    )


def forecast_curve(
    shape: CurveShape,
    final: Band,
    steps: ArrayLike,
    *,
    total_steps: int,
    warmup_steps: int,
    size: float,
    tokens: float,
) -> CurveForecast:
    """The curve of a run of this size and tokens at its evaluation steps; at the last step it is `final` itself.

    `steps` are finished steps, increasing. Points before twice the warmup, or before half of the pilots have a curve,
    are omitted.
    ValueError where `final` does not lie above the shape's floor.
    """
    if final.low_95 <= shape.floor:
        raise ValueError(
            f"the final loss's 95 % interval starts at {final.low_95:.4g}, below the floor {shape.floor:.4g}"
        )
    first_fraction = max(SETTLED_WARMUPS * warmup_steps / total_steps, float(shape.fraction[0]))
    step = np.asarray(steps, np.int64)
    step = step[step / total_steps >= first_fraction - _TOLERANCE]
    line = _interpolated(
        _drift(shape, float(np.log(size * tokens)), float(np.log(tokens / size))), shape, step / total_steps
    )
    above = (final.median - shape.floor) * np.exp(line.centre)
    median = shape.floor + above
    by_final = np.exp(line.centre) * final.median / median

    def edge(side: int, end: float, half: Array) -> Array:
        """Shape and final loss err independently: half-widths in ln L add as squares."""
        return np.asarray(
            median * np.exp(side * np.hypot(by_final * np.log(end / final.median), above / median * half))
        )

    return CurveForecast(
        step=step,
        median=median,
        low_50=edge(-1, final.low_50, line.half_50),
        high_50=edge(1, final.high_50, line.half_50),
        low_95=edge(-1, final.low_95, line.half_95),
        high_95=edge(1, final.high_95, line.half_95),
    )


def _check(pilot: Pilot, floor: float, i: int) -> None:
    fraction, loss = pilot.curve.fraction, pilot.curve.loss
    if fraction.ndim != 1 or fraction.shape != loss.shape or not len(loss):
        raise ValueError(
            f"pilot {i}: fraction {fraction.shape} and loss {loss.shape} must be one-dimensional and of the same length"
        )
    if not (fraction[0] > 0 and (np.diff(fraction) > 0).all() and abs(fraction[-1] - 1) < _TOLERANCE):
        raise ValueError(f"pilot {i}: fractions must increase from above 0 to 1, as in a finished run")
    if not (np.isfinite(loss).all() and loss.min() > floor):
        raise ValueError(
            f"pilot {i}: every loss must be finite and above the floor {floor:.4g}; its lowest is {loss.min():.4g}"
        )
    if not (pilot.size > 0 and pilot.tokens > 0 and 0 <= pilot.warmup < 1):
        raise ValueError(
            f"pilot {i}: size {pilot.size} and tokens {pilot.tokens} must be positive, warmup {pilot.warmup} in [0, 1)"
        )


def _log_excess(pilot: Pilot, floor: float, grid: Array) -> Array:
    """ln (L(x) - E) / (L(1) - E) on the grid; NaN in the warmup and before the first evaluation."""
    curve = pilot.curve
    log_excess = np.log((curve.loss - floor) / (curve.loss[-1] - floor))
    start = max(SETTLED_WARMUPS * pilot.warmup, float(curve.fraction[0]))
    return np.where(grid >= start - _TOLERANCE, np.interp(grid, curve.fraction, log_excess), np.nan)


def _interpolated(line: _Line, shape: CurveShape, fraction: Array) -> _Line:
    return _Line(
        *(np.interp(fraction, shape.fraction, column) for column in (line.centre, line.half_50, line.half_95))
    )


def _drift(shape: CurveShape, log_compute: float, log_ratio: float) -> _Line:
    """The posterior of ln normalised loss at the target, at every fraction: a robust fit with a prior on its drift.

    Bayesian linear regression (Gelman et al. 2013, section 14.8) about the target, so that its constant is the answer.
    Pilots are counted by weight, and the scatter has a scaled inverse chi-square prior; hence Student's t.
    """
    from scipy.special import stdtrit

    there = np.isfinite(shape.log_excess).T
    y = np.where(there, shape.log_excess.T, 0.0)
    u, v = shape.log_compute - log_compute, shape.log_ratio - log_ratio
    off = np.stack([np.ones_like(u), u, v, 0.5 * u**2, 0.5 * v**2], axis=1)
    prior = np.array([0.0, SLOPE_SD**-2, SLOPE_SD**-2, SLOPE_SD**-4, SLOPE_SD**-4])
    weights = there * np.exp(COMPUTE_WEIGHT * (u - u.max()))
    level = np.maximum(np.abs((weights * y).sum(axis=1)) / weights.sum(axis=1), SCATTER_SD / 10)
    scatter, held = np.full(len(y), SCATTER_SD), np.ones_like(y)
    for _ in range(_ROUNDS):
        information = np.einsum("pi,ij,ik->pjk", weights * held, off, off)
        covariance = np.linalg.inv(information + ((scatter / level) ** 2)[:, None, None] * np.diag(prior))
        ends = np.einsum("pjk,pi,ik->pj", covariance, weights * held * y, off)
        residual = (y - ends @ off.T) * there
        spent = np.einsum("pjk,pkj->p", covariance, information)
        freedom = np.maximum(weights.sum(axis=1) - spent, 0) + PRIOR_PILOTS
        scatter = np.sqrt(((weights * residual**2).sum(axis=1) + PRIOR_PILOTS * SCATTER_SD**2) / freedom)
        held = np.minimum(
            1.0, _HUBER * _scale(residual, there)[:, None] / np.maximum(np.abs(residual), _TOLERANCE)
        )
    spread = scatter * np.sqrt(1 + covariance[:, 0, 0])
    spread[-1] = 0.0  # every normalised curve ends at 1 by its definition
    return _Line(ends[:, 0], spread * stdtrit(freedom, 0.75), spread * stdtrit(freedom, 0.975))


def _scale(residual: Array, there: NDArray[np.bool_]) -> Array:
    """A scale per point that is robust to one outlying pilot: the median absolute residual as a standard deviation."""
    middle = np.nanmedian(np.where(there, np.abs(residual), np.nan), axis=1)
    return np.asarray(np.maximum(1.4826 * middle, SCATTER_SD / 10))
