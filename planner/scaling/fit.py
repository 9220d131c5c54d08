"""Robust fits of a law to runs.

The objective is the one the field compares by: the sum of Huber(delta = 1e-3) over residuals of log L
(Hoffmann et al. 2022, appendix D.3; summed, because a mean stops optimisers early, Besiroglu et al. 2024).
Its surface has many poor minima, so a grid of starts descends together as one batch (levenberg_marquardt.py).
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from planner.scaling.laws import Array, Form, columns, value
from planner.scaling.levenberg_marquardt import (
    LOG_BOUND,
    POLISH_TOLERANCE,
    LeastSquaresProblem,
    descend,
    scale,
    unscaled,
    without_prior,
)

LOG_LARGEST = 690.0
"""ln of 1e300, the largest constant that is written: a diverging constant stops there."""


@dataclass(frozen=True)
class FormFit:
    """A law's constants, the runs that they were fitted on, and the quality of the fit."""

    form: Form
    params: Array
    """Constants in the order of form.constants."""
    objective: float
    """Sum of weight * Huber(delta) over residuals."""
    residuals: Array
    """log L measured - log L of the law, one per run."""
    size: Array
    tokens: Array
    loss: Array
    weights: Array
    cost_per: float

    @property
    def constants(self) -> dict[str, float]:
        """The constants by name."""
        return dict(zip(self.form.constants, self.params.tolist(), strict=True))

    def predict(self, size: ArrayLike, tokens: ArrayLike) -> Array:
        """Loss of runs of these sizes and tokens."""
        return value(self.form, self.params, *columns(self.form, size, tokens, self.cost_per))


@dataclass(frozen=True)
class DrawInterval:
    """Median and central interval of draws."""

    low: float
    median: float
    high: float


def fit(
    form: Form,
    size: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    cost_per: float = 1.0,
    weights: ArrayLike | None = None,
) -> FormFit:
    """The constants with the lowest summed log-Huber objective over runs (size, tokens, loss), from a grid of
    starts.

    `weights` (default 1 per run) multiply each run's part of the objective. ValueError when the runs are not positive,
    finite and at least as many as the constants.
    """
    sizes, token_counts, losses, run_weights = checked_runs(size, tokens, loss, weights)
    logs = tuple(np.log(column) for column in columns(form, sizes, token_counts, cost_per))
    problem = scale(form, logs, np.log(losses))
    if len(losses) < len(form.constants):
        raise ValueError(
            f"{len(losses)} runs are too few to fit the {len(form.constants)} constants of the {form.name} law"
        )
    starts = _starts(problem)
    ends, objectives = descend(
        problem, without_prior(problem, starts, np.broadcast_to(run_weights, (len(starts), len(losses))))
    )
    ends, best_first = _polished(problem, ends, objectives, run_weights)
    params = np.exp(np.minimum(unscaled(problem, ends[:1]), LOG_LARGEST))[0]
    with np.errstate(invalid="ignore"):
        predicted = value(form, params, *columns(form, sizes, token_counts, cost_per))
    if not np.isfinite(predicted).all():
        raise ValueError(
            f"the fit of the {form.name} law to these runs diverges: its constants do not stay finite; run pilots "
            "over a wider range of sizes and budgets"
        )
    return FormFit(
        form=form,
        params=params,
        objective=float(best_first[0]),
        residuals=np.log(losses) - np.log(predicted),
        size=sizes,
        tokens=token_counts,
        loss=losses,
        weights=run_weights,
        cost_per=cost_per,
    )


def interval(draws: ArrayLike) -> DrawInterval:
    """Median and central 95 % interval of draws of one quantity."""
    tail = 50 * (1 - 0.95)
    low, median, high = np.percentile(np.asarray(draws, float), [tail, 50, 100 - tail])
    return DrawInterval(float(low), float(median), float(high))


def checked_runs(
    size: ArrayLike, tokens: ArrayLike, loss: ArrayLike, weights: ArrayLike | None = None
) -> tuple[Array, Array, Array, Array]:
    """Runs as flat float64 arrays of one length; ValueError naming the first bad one."""
    named = {"size": size, "tokens": tokens, "loss": loss}
    arrays = {name: np.asarray(column, float).ravel() for name, column in named.items()}
    arrays["weights"] = (
        np.ones(len(arrays["loss"])) if weights is None else np.asarray(weights, float).ravel()
    )
    for name, column in arrays.items():
        if len(column) != len(arrays["loss"]):
            raise ValueError(f"{name} has {len(column)} entries for {len(arrays['loss'])} losses")
        bad = np.flatnonzero(~(np.isfinite(column) & ((column > 0) if name != "weights" else (column >= 0))))
        if len(bad):
            raise ValueError(f"{name} of run {bad[0]} is {column[bad[0]]}; it must be positive and finite")
    return arrays["size"], arrays["tokens"], arrays["loss"], arrays["weights"]


def _starts(problem: LeastSquaresProblem) -> Array:
    """Log-constants of the grid of starts: every one passes near the middle of the data.

    Floors from none to nearly all of the lowest loss, exponents over the range that published laws span, and
    what lies above the floor split three ways between the power terms.
    """
    form = problem.form
    lowest, middle = float(np.exp(problem.log_loss.min())), float(np.exp(np.median(problem.log_loss)))
    exponents = [name for name in form.constants if name in {exponent for _, exponent, _ in form.powers}]
    splits = [0.2, 0.5, 0.8] if "B" in form.constants else [1.0]
    couplings = [0.4, 1.0, 2.5, 8.0] if "k" in form.constants else [1.0]
    grid = []
    for share, split, coupling, *powers in product(
        [0.02, 0.4, 0.7, 0.9], splits, couplings, *[[0.15, 0.35, 0.7]] * len(exponents)
    ):
        floor = share * lowest
        inner = max(middle - floor, 0.02 * middle) ** (1 / coupling)
        values = {"E": floor, "k": coupling, "A": inner * split, "B": inner * (1 - split), "K": inner}
        values |= {"Q": 1.0, "kappa": 0.1}
        values |= {name: power / coupling for name, power in zip(exponents, powers, strict=True)}
        grid.append([np.log(max(values[name], np.exp(-LOG_BOUND))) for name in form.constants])
    return np.unique(np.array(grid), axis=0)


def _polished(
    problem: LeastSquaresProblem, ends: Array, objectives: Array, weights: Array
) -> tuple[Array, Array]:
    """The eight best results, refined to convergence, best first."""
    best = np.argsort(objectives, kind="stable")[:8]
    repeated = np.broadcast_to(weights, (len(best), len(weights)))
    polished, values = descend(problem, without_prior(problem, ends[best], repeated), POLISH_TOLERANCE)
    order = np.argsort(values, kind="stable")
    return polished[order], values[order]
