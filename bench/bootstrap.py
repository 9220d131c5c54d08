"""Refits of a law on resampled runs, and the intervals that they give: what papers print beside their constants."""

import numpy as np
from numpy.typing import ArrayLike

from bench.log_huber import FormFit, scale, without_prior
from planner.scaling.laws import Array, columns, optimum, value
from planner.scaling.levenberg_marquardt import descend, huber, unscaled
from planner.scaling.posterior import LOG_LARGEST, DrawInterval, interval


def bootstrap(fitted: FormFit, draws: int, seed: int) -> Array:
    """Constants of `draws` refits on resampled runs, (draws, constants), each started at the fit.

    Runs that share size and tokens are replicates of one cell: cells are drawn first, then replicates within
    a cell, so that repeating seeds does not pass for more evidence on the law.
    """
    variables = columns(fitted.form, fitted.size, fitted.tokens, fitted.cost_per)
    problem = scale(fitted.form, tuple(np.log(column) for column in variables), np.log(fitted.loss))
    counts = resampled_counts(fitted.size, fitted.tokens, draws, seed, len(fitted.params))
    log_params = np.log(fitted.params[None])
    start = 2 * log_params - unscaled(
        problem, log_params
    )  # scaling shifts coefficients, as far the other way
    descents = without_prior(problem, np.repeat(start, draws, axis=0), counts * fitted.weights)
    return np.exp(np.minimum(unscaled(problem, descend(fitted.form, descents)[0]), LOG_LARGEST))


def resampled_counts(size: Array, tokens: Array, draws: int, seed: int, needed: int) -> Array:
    """How often each run is drawn, (draws, runs). A draw with too few different cells to fix the constants is
    drawn again."""
    generator = np.random.Generator(np.random.PCG64(seed))
    _, cell_of_run = np.unique(np.stack([size, tokens]), axis=1, return_inverse=True)
    runs_of_cell = [np.flatnonzero(cell_of_run == cell) for cell in range(cell_of_run.max() + 1)]
    cells = len(runs_of_cell)
    if cells < needed:
        raise ValueError(
            f"{cells} different (size, tokens) are too few to fit {needed} constants under resampling"
        )
    chosen = generator.multinomial(cells, np.full(cells, 1 / cells), size=draws)
    while (poor := np.flatnonzero((chosen > 0).sum(axis=1) < needed)).size:
        chosen[poor] = generator.multinomial(cells, np.full(cells, 1 / cells), size=poor.size)
    counts = np.empty((draws, len(size)))
    for cell, runs in enumerate(runs_of_cell):
        inside = generator.multinomial(chosen[:, cell] * len(runs), np.full(len(runs), 1 / len(runs)))
        counts[:, runs] = inside
    return counts


def constant_intervals(fitted: FormFit, draws: Array) -> dict[str, DrawInterval]:
    """The 95 % interval of each constant, by name."""
    return {name: interval(draws[:, i]) for i, name in enumerate(fitted.form.constants)}


def optimum_intervals(fitted: FormFit, draws: Array, flop: float) -> dict[str, DrawInterval]:
    """95 % intervals of the compute-optimal "size", "tokens", "tokens_per_size" and "loss" at a budget in FLOP."""
    size, tokens, loss = optimum(fitted.form, draws, flop, fitted.cost_per)
    quantities = {"size": size, "tokens": tokens, "tokens_per_size": tokens / size, "loss": loss}
    return {name: interval(values) for name, values in quantities.items()}


def objective(fitted: FormFit, params: ArrayLike) -> float:
    """The summed log-Huber objective of other constants on the same runs."""
    predicted = value(fitted.form, params, *columns(fitted.form, fitted.size, fitted.tokens, fitted.cost_per))
    return float((fitted.weights * huber(np.log(fitted.loss) - np.log(predicted))).sum())
