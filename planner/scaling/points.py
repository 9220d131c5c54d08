"""Finished runs as the laws see them, and how many of them are joined before a law is fitted.

Runs that differ in their seed only form a cell. Where there are hundreds of cells, those of nearly the same size and
tokens are joined to bins, whose mean says the same about a law as its runs do: over a bin a law is a plane.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.scaling.data_constrained import effective_tokens
from planner.scaling.laws import Array

SHORT_RUN_STEPS = 1000
"""Below this many steps warmup and noise dominate: the spread of byte-level pilots doubled to tripled
(docs/log.md)."""
SHORT_RUN_NOISE = 3.0
LARGEST_LOSS = 14.0
"""ln of 1.2 million, more than any vocabulary: a model that learned nothing has a loss of ln V nats per token."""
_SAME = 1e-3
"""Sizes, and tokens, that differ by less than this share are the same: steps come in whole batches."""
_HUBER_BEND_SDS = 1.5
"""Huber's bend in units of the noise: 96 % efficient on Gaussian noise (Huber 1981)."""
_MOST_BINS = 128
"""Bins span a tenth of a decade or so where ten thousand runs cover four decades."""


@dataclass(frozen=True)
class Points:
    """Finished runs: the evidence of a fit or a forecast. Arrays of one length; C = cost_per * size *
    tokens."""

    size: Array
    tokens: Array
    loss: Array
    cost_per: float
    weights: Array
    """A run's noise variance is divided by its weight."""
    short: Array
    """1.0 where the run had fewer than SHORT_RUN_STEPS steps, else 0.0."""
    fresh_tokens: Array
    """Fresh tokens that the run's tokens are worth; fewer where its text was repeated (data_constrained.py)."""

    @cached_property
    def cell(self) -> NDArray[np.int64]:
        """Number of each run's (size, tokens): runs of one cell differ in their seed only."""
        number = np.zeros(len(self.size), np.int64)
        for column in (self.size, self.tokens, self.fresh_tokens):
            own = _numbered(column)
            number = number * (own.max(initial=0) + 1) + own
        return np.asarray(np.unique(number, return_inverse=True)[1])

    @property
    def flop(self) -> Array:
        """Compute of each run."""
        return self.cost_per * self.size * self.tokens

    @property
    def precision(self) -> Array:
        """Weight of each run in a fit: its own, or a ninth of that if it is short."""
        return self.weights / np.where(self.short > 0, SHORT_RUN_NOISE**2, 1.0)

    def take(self, rows: ArrayLike) -> "Points":
        """The runs at these indices or under this mask."""
        chosen = np.asarray(rows)
        return Points(
            size=self.size[chosen],
            tokens=self.tokens[chosen],
            loss=self.loss[chosen],
            cost_per=self.cost_per,
            weights=self.weights[chosen],
            short=self.short[chosen],
            fresh_tokens=self.fresh_tokens[chosen],
        )


def points(
    size: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    cost_per: float = 1.0,
    steps: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    unique_tokens: ArrayLike = np.inf,
) -> Points:
    """Checked runs; `steps` (optimizer steps of each run) flags short ones, `unique_tokens` (different training tokens
    that each run's text has) those of repeated text. ValueError names the first bad run."""
    sizes, token_counts, losses, run_weights = checked_runs(size, tokens, loss, weights)
    lengths = np.full(len(losses), np.inf) if steps is None else np.asarray(steps, float).ravel()
    short = np.where(lengths < SHORT_RUN_STEPS, 1.0, 0.0)
    if len(short) != len(losses):
        raise ValueError(f"steps has {len(short)} entries for {len(losses)} losses")
    fresh = np.asarray(effective_tokens(token_counts, unique_tokens), float)
    return Points(sizes, token_counts, losses, cost_per, run_weights, short, fresh)


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


@dataclass(frozen=True)
class Cells:
    """Runs with their replicates averaged, and the bins that the cells are joined to; arrays by cell."""

    cost_per: float
    loss: Array
    """Of every run."""
    size: Array
    fresh_tokens: Array
    log_loss: Array
    """Means weighted by the runs' precision."""
    precision: Array
    """Mean precision of a run of the cell."""
    runs: Array
    """Number of runs in the cell."""
    bin: NDArray[np.int64]
    """Number of the cell's bin; each cell has its own where there are few."""
    square: float
    """Squared deviations of ln L from the cells' means, times precision."""
    freedom: float
    """Their degrees of freedom: 0 without replicates."""

    def relative_sd(self, seed_share: float) -> Array:
        """Standard deviation of each cell's mean over that of one run.

        `seed_share` of a run's variance changes with its seed and averages out; the rest, by which a shape lies off
        any smooth law, is the cell's own and does not.
        """
        return np.asarray(np.sqrt((1 - seed_share + seed_share / self.runs) / self.precision))

    def mean(self, per_cell: Array, weights: Array) -> Array:
        """Weighted mean of a quantity over the cells of each bin."""
        return np.asarray(np.bincount(self.bin, weights * per_cell) / np.bincount(self.bin, weights))

    def spread(self, sd: Array) -> tuple[Array, Array]:
        """Standard deviation of each bin's mean, from those of its cells, and where Huber's loss bends for it.

        The bend is that of one cell of the bin, as its cells share a residual.
        """
        count, precision = np.bincount(self.bin), np.bincount(self.bin, sd**-2)
        return np.asarray(precision**-0.5), _HUBER_BEND_SDS * np.sqrt(count / precision)


def cells(runs: Points) -> Cells:
    """The runs' cells, in the order of their bins."""
    number, precision = runs.cell, np.maximum(runs.precision, 1e-12)
    first = np.unique(number, return_index=True)[1]
    total, count = np.bincount(number, precision), np.bincount(number)
    mean = np.bincount(number, precision * np.log(runs.loss)) / total
    size, fresh = runs.size[first], runs.fresh_tokens[first]
    return Cells(
        cost_per=runs.cost_per,
        loss=runs.loss,
        size=size,
        fresh_tokens=fresh,
        log_loss=mean,
        precision=total / count,
        runs=count.astype(float),
        bin=_bins(np.log(size), np.log(fresh)),
        square=float((precision * (np.log(runs.loss) - mean[number]) ** 2).sum()),
        freedom=float(len(number) - len(first)),
    )


def _numbered(column: Array) -> NDArray[np.int64]:
    """The same number for values within `_SAME` of their neighbour, and of twice that of the lowest such value: tens of
    thousands of runs leave no gaps."""
    order = np.argsort(column, kind="stable")
    logs, numbers = np.log(column[order]), np.empty(len(column), np.int64)
    chain = np.cumsum(np.diff(logs, prepend=logs[:1]) > _SAME)
    lowest = logs[np.unique(chain, return_index=True)[1]][chain]
    step = np.floor((logs - lowest) / (2 * _SAME)).astype(np.int64)
    numbers[order] = np.cumsum((np.diff(chain, prepend=0) != 0) | (np.diff(step, prepend=0) != 0))
    return numbers


def _bins(log_size: Array, log_tokens: Array) -> NDArray[np.int64]:
    """Squares in log size and log tokens, as small as `_MOST_BINS` of them allow."""
    if len(log_size) <= _MOST_BINS:
        return np.arange(len(log_size))
    sides = log_size - log_size.min(), log_tokens - log_tokens.min()
    width = 0.01
    while True:
        column, row = (np.floor(side / width).astype(np.int64) for side in sides)
        number = np.unique(column * (row.max() + 1) + row, return_inverse=True)[1]
        if number.max() < _MOST_BINS:
            return np.asarray(number)
        width *= 1.2
