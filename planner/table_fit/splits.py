"""Best splits of compute by the laws of a table, their exponents, and the surface of losses around them."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from planner.scaling.best_split import best_split
from planner.scaling.laws import Array, optimum
from planner.scaling.model_averaging import Mixture, loss_bands
from planner.scaling.posterior import DrawInterval, interval
from planner.table_fit.backtest import to_band
from specs.law import Interval
from specs.table_fit import BestSplit, LossSurface, SplitExponents

REACH = 100.0
"""Best splits are given up to this many times the table's largest compute."""
_PER_DECADE = 4
_SAME = 0.05
"""Computes that differ by less are one."""
_GRID = (41, 33)
"""Computes and sizes of a surface: contours through so many are smooth."""
_ROOM = 2.0
"""A surface reaches this factor beyond all sizes that were run or are best, and below the smallest compute."""
_EVERY = 10
"""A median without an interval is taken over each tenth draw: another choice of them moves it by .01 %."""


def best_splits(mixture: Mixture, flops: Sequence[float]) -> tuple[BestSplit, ...]:
    """The best split of each compute, without those that the runs leave infinite, and the loss of one run at it."""
    found = [(flop, best_split(mixture, flop)) for flop in flops]
    known = [(flop, split) for flop, split in found if all(is_finite(ends) for ends in split.values())]
    if not known:
        return ()
    sizes = np.array([split["size"].median for _, split in known])
    tokens = np.array([flop for flop, _ in known]) / (mixture.runs.cost_per * sizes)
    bands = loss_bands(mixture, sizes, tokens).T.tolist()
    return tuple(
        BestSplit(compute_flop=flop, **{name: ends.to_document() for name, ends in split.items()}, run=to_band(band))
        for (flop, split), band in zip(known, bands, strict=True)
    )  # fmt: skip


def split_exponents(mixture: Mixture) -> SplitExponents | None:
    """How the best split moves with compute; None where the runs leave it infinite.

    Every form's best size is a power of compute, so two computes give each draw's exponent.
    """
    logs = [_log_best_size(mixture, flop) for flop in (1.0, 10.0)]
    ends = interval((logs[1] - logs[0]) / np.log(10.0))
    if not is_finite(ends):
        return None
    return SplitExponents(
        size=ends.to_document(),
        tokens=Interval(value=1 - ends.median, low=1 - ends.high, high=1 - ends.low),
    )


def _log_best_size(mixture: Mixture, times_largest: float) -> Array:
    flop, cost_per = float(mixture.runs.flop.max()) * times_largest, mixture.runs.cost_per
    with np.errstate(all="ignore"):
        return mixture.mixed(
            [np.log(optimum(law.law.form, np.exp(law.log_params), flop, cost_per)[0]) for law in mixture.laws]
        )


def computes(flop: Array) -> list[float]:
    """From the smallest to `REACH` times the largest: the ends, powers of ten, and equal parts of a decade between."""
    low, high = float(flop.min()), float(flop.max())
    first, last = (math.log10(end) * _PER_DECADE for end in (low, high * REACH))
    between = [10.0 ** (step / _PER_DECADE) for step in range(math.ceil(first), math.floor(last) + 1)]
    ends = [low, high, 10 * high, REACH * high]
    inner = [flop for flop in between if all(abs(math.log(flop / end)) > _SAME for end in ends)]
    return sorted([*ends, *inner])


def surface(mixture: Mixture, splits: Sequence[BestSplit]) -> LossSurface:
    """The loss around the runs and the best splits."""
    runs = mixture.runs
    sizes = [*(split.size.value for split in splits), float(runs.size.min()), float(runs.size.max())]
    flop = np.geomspace(runs.flop.min() / _ROOM, runs.flop.max() * REACH, _GRID[0])
    size = np.geomspace(min(sizes) / _ROOM, max(sizes) * _ROOM, _GRID[1])
    every_size, every_flop = np.meshgrid(size, flop, indexing="ij")
    loss = law_losses(mixture, every_size.ravel(), (every_flop / runs.cost_per / every_size).ravel())
    return LossSurface(
        compute_flop=tuple(flop.tolist()),
        size=tuple(size.tolist()),
        loss=tuple(map(tuple, loss.reshape(every_size.shape).tolist())),
    )


def law_losses(mixture: Mixture, size: ArrayLike, fresh_tokens: ArrayLike) -> Array:
    """The loss at each target without a run's noise: the median of the mixture's draws."""
    logs = [
        replace(law, log_params=law.log_params[:count:_EVERY]).log_loss(size, fresh_tokens)
        for law, count in zip(mixture.laws, mixture.counts.tolist(), strict=True)
        if count
    ]
    return np.asarray(np.exp(np.median(np.concatenate(logs), axis=0)))


def is_finite(ends: DrawInterval) -> bool:
    """Whether both ends are numbers."""
    return math.isfinite(ends.low) and math.isfinite(ends.high)
