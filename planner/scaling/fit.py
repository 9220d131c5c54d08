"""Robust fits of a law to runs, and their bootstrap.

The objective is the one the field compares by: the sum of Huber(delta = 1e-3) over residuals of log L
(Hoffmann et al. 2022, appendix D.3; summed, because a mean stops optimisers early, Besiroglu et al. 2024).
Its surface has many poor minima, so a grid of starts, and all bootstrap draws, descend together as one batch
(descent.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from planner.scaling.laws import Array, Form, columns, optimum, value
from planner.scaling.levenberg_marquardt import (
    LOG_BOUND,
    POLISH_TOLERANCE,
    LeastSquaresProblem,
    descend,
    huber,
    scale,
    scaled,
    unscaled,
    without_prior,
)

LOG_LARGEST = 690.0
"""ln of 1e300, the largest constant that is written: beyond it lies what a float cannot hold."""


@dataclass(frozen=True)
class FormFit:
    """A law's constants, what they were fitted on and how well they do there."""

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
    starts_at_best: float
    """Share of the starts that ended within 0.1 % of the best objective."""
    fixed: Mapping[str, float] = field(default_factory=dict)
    """Constants that were held, by name."""

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
    fixed: Mapping[str, float] | None = None,
) -> FormFit:
    """The constants with the lowest summed log-Huber objective over runs (size, tokens, loss), from a grid of
    starts.

    `weights` (default 1 per run) multiply each run's part of the objective; `fixed` holds constants at given
    values. ValueError when the runs are not positive, finite and at least as many as the free constants.
    """
    held = dict(fixed or {})
    sizes, token_counts, losses, run_weights = checked_runs(size, tokens, loss, weights)
    problem = _problem(form, sizes, token_counts, losses, cost_per, held)
    if len(losses) < int(problem.free.sum()):
        raise ValueError(
            f"{len(losses)} runs cannot fix the {problem.free.sum()} constants of the {form.name} law"
        )
    starts = _starts(problem, held)
    ends, objectives = descend(
        problem, without_prior(problem, starts, np.broadcast_to(run_weights, (len(starts), len(losses))))
    )
    ends, best_first = _polished(problem, ends, objectives, run_weights)
    params = _constants(problem, ends[:1])[0]
    with np.errstate(invalid="ignore"):
        predicted = value(form, params, *columns(form, sizes, token_counts, cost_per))
    if not np.isfinite(predicted).all():
        raise ValueError(f"the {form.name} law runs away on these runs: no finite constants are best")
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
        starts_at_best=float(np.mean(objectives <= best_first[0] * 1.001)),
        fixed=held,
    )


def bootstrap(fitted: FormFit, draws: int, seed: int) -> Array:
    """Constants of `draws` refits on resampled runs, (draws, constants), each started at the fit.

    Runs that share size and tokens are replicates of one cell: cells are drawn first, then replicates within
    a cell, so that repeating seeds does not pass for more evidence on the law.
    """
    problem = _problem(
        fitted.form, fitted.size, fitted.tokens, fitted.loss, fitted.cost_per, dict(fitted.fixed)
    )
    counts = resampled_counts(fitted.size, fitted.tokens, draws, seed, int(problem.free.sum()))
    start = scaled(problem, np.log(fitted.params[None]))
    descents = without_prior(problem, np.repeat(start, draws, axis=0), counts * fitted.weights)
    return _constants(problem, descend(problem, descents)[0])


def interval(draws: ArrayLike, level: float = 0.95) -> DrawInterval:
    """Median and central `level` interval of draws of one quantity."""
    tail = 50 * (1 - level)
    low, median, high = np.percentile(np.asarray(draws, float), [tail, 50, 100 - tail])
    return DrawInterval(float(low), float(median), float(high))


def _constants(problem: LeastSquaresProblem, scaled: Array) -> Array:
    """The constants; one that its runs do not bound, and that ran away, stops at the largest that can be written."""
    return np.exp(np.minimum(unscaled(problem, scaled), LOG_LARGEST))


def constant_intervals(fitted: FormFit, draws: Array, level: float = 0.95) -> dict[str, DrawInterval]:
    """An interval per constant, by name."""
    return {name: interval(draws[:, i], level) for i, name in enumerate(fitted.form.constants)}


def optimum_intervals(
    fitted: FormFit, draws: Array, flop: float, level: float = 0.95
) -> dict[str, DrawInterval]:
    """Intervals of the compute-optimal "size", "tokens", "tokens_per_size" and "loss" at a budget in FLOP."""
    size, tokens, loss = optimum(fitted.form, draws, flop, fitted.cost_per)
    quantities = {"size": size, "tokens": tokens, "tokens_per_size": tokens / size, "loss": loss}
    return {name: interval(values, level) for name, values in quantities.items()}


def objective(fitted: FormFit, params: ArrayLike) -> float:
    """The summed log-Huber objective of other constants on the same runs."""
    predicted = value(fitted.form, params, *columns(fitted.form, fitted.size, fitted.tokens, fitted.cost_per))
    return float((fitted.weights * huber(np.log(fitted.loss) - np.log(predicted))).sum())


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


def _problem(
    form: Form, size: Array, tokens: Array, loss: Array, cost_per: float, fixed: Mapping[str, float]
) -> LeastSquaresProblem:
    for name in fixed:
        if name not in form.constants or name in {coefficient for coefficient, _, _ in form.powers}:
            raise ValueError(f"{name} cannot be held in the {form.name} law; floors and exponents can")
    logs = tuple(np.log(column) for column in columns(form, size, tokens, cost_per))
    return scale(form, logs, np.log(loss), fixed)


def _starts(problem: LeastSquaresProblem, fixed: Mapping[str, float]) -> Array:
    """Log-constants of the grid of starts: every one passes near the middle of the data.

    Floors from none to nearly all of the lowest loss, exponents over the range that published laws span, and
    what lies above the floor split three ways between the power terms.
    """
    form = problem.form
    lowest, middle = float(np.exp(problem.log_loss.min())), float(np.exp(np.median(problem.log_loss)))
    exponents = [name for name in form.constants if name in {exponent for _, exponent, _ in form.powers}]
    floors = [0.02, 0.4, 0.7, 0.9] if form.has_floor else [0.0]
    splits = [0.2, 0.5, 0.8] if "B" in form.constants else [1.0]
    couplings = [0.4, 1.0, 2.5, 8.0] if "k" in form.constants else [1.0]
    grid = []
    for share, split, coupling, *powers in product(
        floors, splits, couplings, *[[0.15, 0.35, 0.7]] * len(exponents)
    ):
        floor = fixed.get("E", share * lowest)
        inner = max(middle - floor, 0.02 * middle) ** (1 / coupling)
        values = {"E": floor, "k": coupling, "A": inner * split, "B": inner * (1 - split), "K": inner}
        values |= {"Q": 1.0, "kappa": 0.1}
        values |= {name: power / coupling for name, power in zip(exponents, powers, strict=True)} | dict(
            fixed
        )
        grid.append([np.log(max(values[name], np.exp(-LOG_BOUND))) for name in form.constants])
    return np.unique(np.array(grid), axis=0)


def resampled_counts(size: Array, tokens: Array, draws: int, seed: int, needed: int) -> Array:
    """How often each run is drawn, (draws, runs). A draw with too few different cells to fix the constants is
    drawn again."""
    generator = np.random.Generator(np.random.PCG64(seed))
    _, cell_of_run = np.unique(np.stack([size, tokens]), axis=1, return_inverse=True)
    runs_of_cell = [np.flatnonzero(cell_of_run == cell) for cell in range(cell_of_run.max() + 1)]
    cells = len(runs_of_cell)
    if cells < needed:
        raise ValueError(f"{cells} different (size, tokens) cannot fix {needed} constants under resampling")
    chosen = generator.multinomial(cells, np.full(cells, 1 / cells), size=draws)
    while (poor := np.flatnonzero((chosen > 0).sum(axis=1) < needed)).size:
        chosen[poor] = generator.multinomial(cells, np.full(cells, 1 / cells), size=poor.size)
    counts = np.empty((draws, len(size)))
    for cell, runs in enumerate(runs_of_cell):
        inside = generator.multinomial(chosen[:, cell] * len(runs), np.full(len(runs), 1 / len(runs)))
        counts[:, runs] = inside
    return counts


def _polished(
    problem: LeastSquaresProblem, ends: Array, objectives: Array, weights: Array
) -> tuple[Array, Array]:
    """The eight best ends taken on to convergence, best first."""
    best = np.argsort(objectives, kind="stable")[:8]
    repeated = np.broadcast_to(weights, (len(best), len(weights)))
    polished, values = descend(problem, without_prior(problem, ends[best], repeated), POLISH_TOLERANCE)
    order = np.argsort(values, kind="stable")
    return polished[order], values[order]
