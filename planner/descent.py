"""Many robust descents at once: Levenberg-Marquardt with Huber's weights on the logarithms of a law's
constants.

A batch holds one descent per row (a start, or a bootstrap draw with its own weights on the same runs). All
rows advance together, each with its own damping, and leave the batch when they have nothing more to gain.
Only arithmetic on float64 arrays, in a fixed order, so the same runs give the same constants to the byte.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.laws import Array, Form, log_value_and_gradient

HUBER_DELTA = 1e-3
"""Hoffmann et al. 2022 (arXiv 2203.15556), appendix D.3."""
LOG_BOUND = 60.0
"""Log-constants stay within +-60 of unit scale, so that no exponential overflows and a vanishing floor stays
finite."""
_LOG_EXPONENT_BOUNDS = (np.log(1e-3), np.log(30.0))
"""Exponents stay in 1e-3..30: outside, a power term is a constant or a cliff and only the others move."""
_SEARCH_TOLERANCE = 1e-7
"""A descent that gains less than this share for _IDLE_STEPS steps has ended; bootstrap quantiles move by less
than 1e-3 of their width when it is made 100 times smaller (measured on Epoch's 240 rows)."""
POLISH_TOLERANCE = 1e-13
_IDLE_STEPS = 4
_MAX_STEPS = 500
_BLOCK_ELEMENTS = 60_000
"""Batch rows x runs advanced at a time, so that the work arrays stay in a core's cache."""


@dataclass(frozen=True)
class Problem:
    """Runs in scaled logarithms: each variable is divided by its geometric mean, which uncouples coefficients
    from exponents."""

    form: Form
    log_variables: tuple[Array, ...]
    log_loss: Array
    centre: tuple[float, ...]
    free: NDArray[np.bool_]


def huber(residuals: Array) -> Array:
    """Huber loss at HUBER_DELTA of each residual."""
    size = np.abs(residuals)
    return np.where(size <= HUBER_DELTA, 0.5 * residuals**2, HUBER_DELTA * (size - 0.5 * HUBER_DELTA))


@dataclass
class _Batch:
    """Descents under way: each row is one start or one bootstrap draw, with its own damping."""

    rows: NDArray[np.int64]
    weights: Array
    state: Array
    residuals: Array
    jacobian: Array
    values: Array
    damping: Array
    idle: NDArray[np.int64]

    def keep(self, mask: NDArray[np.bool_]) -> "_Batch":
        """The rows of a mask."""
        return _Batch(**{name: column[mask] for name, column in vars(self).items()})


def descend(
    problem: Problem, starts: Array, weights: Array, tolerance: float = _SEARCH_TOLERANCE
) -> tuple[Array, Array]:
    """Log-constants and objective where each start's descent ends; starts (batch, constants), weights (batch,
    runs)."""
    block = max(1, _BLOCK_ELEMENTS // len(problem.log_loss))
    blocks = [slice(i, i + block) for i in range(0, len(starts), block)]
    parts = [_descend_block(problem, starts[rows], weights[rows], tolerance) for rows in blocks]
    return np.concatenate([ends for ends, _ in parts]), np.concatenate([values for _, values in parts])


def _descend_block(problem: Problem, starts: Array, weights: Array, tolerance: float) -> tuple[Array, Array]:
    ends, values = np.empty_like(starts), np.empty(len(starts))
    batch = _batch(problem, starts, weights)
    for _ in range(_MAX_STEPS):
        _advance(problem, batch, tolerance)
        done = batch.idle >= _IDLE_STEPS
        if done.any():
            ends[batch.rows[done]], values[batch.rows[done]] = batch.state[done], batch.values[done]
            batch = batch.keep(~done)
        if not len(batch.rows):
            break
    ends[batch.rows], values[batch.rows] = batch.state, batch.values
    return ends, values


def _batch(problem: Problem, starts: Array, weights: Array) -> _Batch:
    log_loss, jacobian = log_value_and_gradient(problem.form, starts, problem.log_variables)
    residuals = problem.log_loss - log_loss
    values = (weights * huber(residuals)).sum(axis=1)
    count = len(starts)
    return _Batch(
        rows=np.arange(count),
        weights=weights,
        state=starts.copy(),
        residuals=residuals,
        jacobian=jacobian,
        values=np.where(np.isfinite(values), values, np.inf),
        damping=np.full(count, 1e-3),
        idle=np.zeros(count, np.int64),
    )


def _advance(problem: Problem, batch: _Batch, tolerance: float) -> None:
    """One damped step of every row, kept where it lowers that row's objective."""
    trial = _bounded(problem.form, batch.state + _step(problem, batch))
    log_loss, jacobian = log_value_and_gradient(problem.form, trial, problem.log_variables)
    residuals = problem.log_loss - log_loss
    values = (batch.weights * huber(residuals)).sum(axis=1)
    better = values < batch.values
    progress = better & (batch.values - values > tolerance * batch.values)
    batch.idle = np.where(progress, 0, batch.idle + 1)
    batch.state[better], batch.values[better] = trial[better], values[better]
    batch.residuals[better], batch.jacobian[better] = residuals[better], jacobian[better]
    batch.damping = np.where(
        better, np.maximum(batch.damping * 0.2, 1e-9), np.minimum(batch.damping * 4, 1e9)
    )


def _step(problem: Problem, batch: _Batch) -> Array:
    """Levenberg-Marquardt's step with Huber's weights, (batch, constants); held constants do not move.

    Damping scales with each constant's own curvature, floored at 1e-10 of the largest, so that a constant the
    data say nothing about (a floor near zero, a coupling near infinity) stays where it is instead of making
    the system singular.
    """
    robust = batch.weights / np.maximum(np.abs(batch.residuals) / HUBER_DELTA, 1.0)
    weighted = batch.jacobian * robust[:, None, :]
    normal = weighted @ batch.jacobian.transpose(0, 2, 1)
    gradient = (weighted @ batch.residuals[:, :, None])[:, :, 0]
    curvature = np.einsum("bii->bi", normal)
    floor = 1e-10 * curvature.max(axis=1, keepdims=True) + 1e-30
    diagonal = np.arange(normal.shape[1])
    normal[:, diagonal, diagonal] += batch.damping[:, None] * np.maximum(curvature, floor) + floor
    free = problem.free
    steps = np.zeros_like(batch.state)
    steps[:, free] = np.linalg.solve(normal[:, free][:, :, free], gradient[:, free, None])[:, :, 0]
    return steps


def _bounded(form: Form, log_params: Array) -> Array:
    inside = np.clip(log_params, -LOG_BOUND, LOG_BOUND)
    for i in {form.index(exponent) for _, exponent, _ in form.powers}:
        inside[:, i] = np.clip(inside[:, i], *_LOG_EXPONENT_BOUNDS)
    return inside
