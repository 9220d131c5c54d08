"""Many robust descents at once: Levenberg-Marquardt with Huber's weights on the logarithms of a law's
constants.

A batch holds one descent per row: a start, or a posterior draw with its own targets and prior. All rows advance
together, each with its own damping, and leave the batch when they have nothing more to gain.
Only arithmetic on float64 arrays, in a fixed order, so the same runs give the same constants to the byte.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.scaling.laws import Array, Form, log_value_and_gradient

HUBER_DELTA = 1e-3
"""Hoffmann et al. 2022 (arXiv 2203.15556), appendix D.3."""
LOG_BOUND = 60.0
"""Log-constants stay within +-60 of unit scale, so that no exponential overflows and a vanishing floor stays
finite."""
_LOG_EXPONENT_BOUNDS = (np.log(1e-3), np.log(30.0))
"""Exponents stay in 1e-3..30: outside, a power term is a constant or a cliff and only the others move."""
_SEARCH_TOLERANCE = 1e-6
"""A step that gains less than this share has gained little. On 4000 resamples of Epoch's 240 rows descents
then end within 3e-6 of where they would converge (median 2e-10)."""
_SMALL_GAIN, _NO_GAIN, _IDLE_END = 2, 1, 6
"""A descent ends after three steps in a row of little gain, or six that were refused."""
_OUTSIDE_CURVATURE = 0.1
_MAX_STEPS = 500
_BLOCK_ELEMENTS = 60_000
"""Batch rows x runs advanced at a time, so that the work arrays stay in a core's cache."""


@dataclass(frozen=True)
class LeastSquaresProblem:
    """Runs in scaled logarithms: each variable is divided by its geometric mean, which uncouples coefficients
    from exponents."""

    form: Form
    log_variables: tuple[Array, ...]
    log_loss: Array
    centre: tuple[float, ...]

    def rows(self, batch: int) -> Array:
        """The same variables for every row of a batch, (batch, variables, runs)."""
        stacked = np.stack(self.log_variables)
        return np.broadcast_to(stacked, (batch, *stacked.shape))


def huber(residuals: Array, delta: ArrayLike = HUBER_DELTA) -> Array:
    """Huber loss of each residual: a parabola up to delta, a line beyond."""
    size, bend = np.abs(residuals), np.asarray(delta, float)
    return np.where(size <= bend, 0.5 * residuals**2, bend * (size - 0.5 * bend))


@dataclass(frozen=True)
class Descents:
    """What each row minimises: the sum of weights * Huber(log L - targets; delta), plus half of the squared
    distance of the state from its anchor in the metric of `precision`.

    Every array's first axis is the batch: starts and anchors are (batch, constants) in scaled logarithms,
    precision is (batch, constants, constants); log_variables are (batch, variables, runs); targets, weights and delta
    are (batch, runs).
    """

    starts: Array
    log_variables: Array
    targets: Array
    weights: Array
    delta: Array
    anchors: Array
    precision: Array

    def rows(self, chosen: slice) -> "Descents":
        """A slice of the batch."""
        return Descents(**{name: column[chosen] for name, column in vars(self).items()})


def unscaled(problem: LeastSquaresProblem, log_params: Array) -> Array:
    """Log-constants of the law in the variables themselves: A * X**-alpha = (A * G**-alpha) * (X/G)**-alpha."""
    form, logs = problem.form, log_params.copy()
    for coefficient, exponent, variable in form.powers:
        shift = problem.centre[form.variables.index(variable)]
        power = np.exp(log_params[:, form.index(exponent)]) if isinstance(exponent, str) else exponent
        logs[:, form.index(coefficient)] += power * shift
    return logs


@dataclass
class _Batch:
    """Descents under way, each with its own damping."""

    rows: NDArray[np.int64]
    goal: Descents
    state: Array
    residuals: Array
    jacobian: Array
    values: Array
    damping: Array
    idle: NDArray[np.int64]

    def keep(self, mask: NDArray[np.bool_]) -> "_Batch":
        """The rows of a mask."""
        columns = {name: column[mask] for name, column in vars(self).items() if name != "goal"}
        goal = Descents(**{name: column[mask] for name, column in vars(self.goal).items()})
        return _Batch(goal=goal, **columns)


def descend(form: Form, descents: Descents, tolerance: float = _SEARCH_TOLERANCE) -> tuple[Array, Array]:
    """Scaled log-constants, (batch, constants), and objective, (batch,), where each descent ends."""
    block = max(1, _BLOCK_ELEMENTS // descents.targets.shape[1])
    parts = [
        _descend_block(form, descents.rows(slice(i, i + block)), tolerance)
        for i in range(0, len(descents.starts), block)
    ]
    return np.concatenate([ends for ends, _ in parts]), np.concatenate([values for _, values in parts])


def _descend_block(form: Form, goal: Descents, tolerance: float) -> tuple[Array, Array]:
    ends, values = np.empty_like(goal.starts), np.empty(len(goal.starts))
    batch = _batch(form, goal)
    for _ in range(_MAX_STEPS):
        _advance(form, batch, tolerance)
        done = batch.idle >= _IDLE_END
        if done.any():
            ends[batch.rows[done]], values[batch.rows[done]] = batch.state[done], batch.values[done]
            batch = batch.keep(~done)
        if not len(batch.rows):
            break
    ends[batch.rows], values[batch.rows] = batch.state, batch.values
    return ends, values


def _evaluated(form: Form, goal: Descents, state: Array) -> tuple[Array, Array, Array]:
    """Residuals, Jacobian and objective of each row; an overflow counts as an infinite objective."""
    log_loss, jacobian = log_value_and_gradient(form, state, tuple(np.moveaxis(goal.log_variables, 1, 0)))
    residuals = goal.targets - log_loss
    with np.errstate(invalid="ignore"):  # an overflow times a weight of nothing
        fit_part = (goal.weights * huber(residuals, goal.delta)).sum(axis=1)
    values = fit_part + 0.5 * ((state - goal.anchors) * _prior_pull(goal, state)).sum(axis=1)
    return residuals, jacobian, np.where(np.isfinite(values), values, np.inf)


def _prior_pull(goal: Descents, state: Array) -> Array:
    """Gradient of the prior's part of each row's objective."""
    return np.asarray((goal.precision @ (state - goal.anchors)[:, :, None])[:, :, 0])


def _batch(form: Form, goal: Descents) -> _Batch:
    residuals, jacobian, values = _evaluated(form, goal, goal.starts)
    count = len(goal.starts)
    return _Batch(
        rows=np.arange(count),
        goal=goal,
        state=goal.starts.copy(),
        residuals=residuals,
        jacobian=jacobian,
        values=values,
        damping=np.full(count, 1e-3),
        idle=np.zeros(count, np.int64),
    )


def _advance(form: Form, batch: _Batch, tolerance: float) -> None:
    """One damped step of every row, kept where it lowers that row's objective."""
    trial = _bounded(form, batch.state + _step(batch))
    residuals, jacobian, values = _evaluated(form, batch.goal, trial)
    better = values < batch.values
    with np.errstate(invalid="ignore"):
        progress = batch.values - values > tolerance * batch.values
    batch.idle = np.where(progress, 0, batch.idle + np.where(better, _SMALL_GAIN, _NO_GAIN))
    batch.state[better], batch.values[better] = trial[better], values[better]
    batch.residuals[better], batch.jacobian[better] = residuals[better], jacobian[better]
    eased, tightened = np.maximum(batch.damping * 0.2, 1e-4), np.minimum(batch.damping * 10, 1e9)
    batch.damping = np.where(better, eased, tightened)


def _step(batch: _Batch) -> Array:
    """Levenberg-Marquardt's step on the Huber objective, (batch, constants).

    The gradient weighs a run beyond the bend by delta / |residual|. With that weight in the curvature too
    (iterated least squares) steps are safe but short; the true curvature has none of it, but steps then
    overshoot. A tenth of it converges fastest and is as safe. Damping scales with each constant's own
    curvature, floored at 1e-10 of the largest, so that a constant the data say nothing about (a floor near
    zero, a coupling near infinity) stays where it is instead of making the system singular.
    """
    goal = batch.goal
    size = np.abs(batch.residuals)
    inside = size <= goal.delta
    pull = goal.weights * np.where(inside, 1.0, goal.delta / np.maximum(size, 1e-300))
    curving = np.where(inside, pull, _OUTSIDE_CURVATURE * pull)
    normal = (batch.jacobian * curving[:, None, :]) @ batch.jacobian.transpose(0, 2, 1) + goal.precision
    gradient = (batch.jacobian @ (pull * batch.residuals)[:, :, None])[:, :, 0] - _prior_pull(
        goal, batch.state
    )
    diagonal = np.arange(normal.shape[1])
    curvature = normal[:, diagonal, diagonal]
    floor = 1e-10 * curvature.max(axis=1, keepdims=True) + 1e-30
    normal[:, diagonal, diagonal] += batch.damping[:, None] * np.maximum(curvature, floor) + floor
    return np.asarray(np.linalg.solve(normal, gradient[:, :, None])[:, :, 0])


def _bounded(form: Form, log_params: Array) -> Array:
    inside = np.clip(log_params, -LOG_BOUND, LOG_BOUND)
    for i in {form.index(exponent) for _, exponent, _ in form.powers if isinstance(exponent, str)}:
        inside[:, i] = np.clip(inside[:, i], *_LOG_EXPONENT_BOUNDS)
    return inside
