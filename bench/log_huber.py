"""Plain robust fits of a law to runs, as papers make them ("approach 3"): no prior, no noise model.

The objective is the one the field compares by: the sum of Huber(delta = 1e-3) over residuals of log L
(Hoffmann et al. 2022, appendix D.3; summed, because a mean stops optimisers early, Besiroglu et al. 2024).
Its surface has many poor minima, so a grid of starts descends together as one batch
(planner/scaling/levenberg_marquardt.py).
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from planner.scaling.laws import Array, Form, columns, value
from planner.scaling.levenberg_marquardt import (
    HUBER_DELTA,
    LOG_BOUND,
    Descents,
    LeastSquaresProblem,
    descend,
    unscaled,
)
from planner.scaling.points import checked_runs
from planner.scaling.posterior import LOG_LARGEST

_POLISH_TOLERANCE = 1e-13


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
        form, without_prior(problem, starts, np.broadcast_to(run_weights, (len(starts), len(losses))))
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


def scale(form: Form, log_variables: tuple[Array, ...], log_loss: Array) -> LeastSquaresProblem:
    """The fitting problem of runs given by the logarithms of the form's variables and of the loss."""
    centre = tuple(float(log.mean()) for log in log_variables)
    return LeastSquaresProblem(
        form=form,
        log_variables=tuple(log - middle for log, middle in zip(log_variables, centre, strict=True)),
        log_loss=log_loss,
        centre=centre,
    )


def without_prior(problem: LeastSquaresProblem, starts: Array, weights: Array) -> Descents:
    """Descents on the runs themselves at HUBER_DELTA; weights (batch, runs)."""
    shape = weights.shape
    return Descents(
        starts=starts,
        log_variables=problem.rows(len(starts)),
        targets=np.broadcast_to(problem.log_loss, shape),
        weights=weights,
        delta=np.broadcast_to(HUBER_DELTA, shape),
        anchors=starts,
        precision=np.broadcast_to(0.0, (*starts.shape, starts.shape[1])),
    )


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
    polished, values = descend(problem.form, without_prior(problem, ends[best], repeated), _POLISH_TOLERANCE)
    order = np.argsort(values, kind="stable")
    return polished[order], values[order]
