"""A backtest: what the law would have said of a table's own largest runs, had they not been there."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.scaling.diverged import UnusableLossesError
from planner.scaling.laws import Array
from planner.scaling.model_averaging import NotEnoughRunsError, fit_mixture, loss_bands
from planner.scaling.points import Points
from specs.law import Band
from specs.table_fit import Backtest, BacktestRun

DECADES = (0.5, 1.0, 1.5)
"""Of compute below the largest run, all runs of which are held out."""
_BACKTESTS = 2
"""The first so many that hold out different runs: where budgets are a decade apart, that is the largest or two."""
_EDGE = 1.03
"""A run this little above the edge is on it, and is fitted: computes are met only nearly."""
_DRAWS = 1000
_AT_ONCE = 500
"""Runs that are forecast at once: a thousand draws of each are held in memory."""


def backtests(runs: Points, named: Sequence[tuple[str, int]]) -> tuple[tuple[Backtest, ...], str]:
    """Backtests at the first of `DECADES` that hold out different runs and leave enough to fit; else why there is none.

    `named` are name and line of each run.
    """
    found: list[Backtest] = []
    reason = ""
    for decades in DECADES:
        held_out = runs.flop > _EDGE * runs.flop.max() / 10**decades
        if held_out.all():
            reason = reason or f"all runs are within {decades:g} decades of the largest compute"
            break
        if len(found) == _BACKTESTS or (found and int(held_out.sum()) == len(found[-1].runs)):
            continue
        try:
            found.append(_backtest(runs, named, decades, np.flatnonzero(held_out)))
        except (NotEnoughRunsError, UnusableLossesError) as error:
            what = "there are " if isinstance(error, NotEnoughRunsError) else ""
            fault = str(error).partition(";")[0]  # what to do about losses is of the whole table
            reason = (
                reason or f"without those within {decades:g} decades of the largest compute {what}{fault}"
            )
    return tuple(found), "" if found else reason


def _backtest(
    runs: Points, named: Sequence[tuple[str, int]], decades: float, held_out: NDArray[np.int64]
) -> Backtest:
    """The held-out runs forecast from all others."""
    others = runs.take(np.setdiff1d(np.arange(len(runs.loss)), held_out))
    mixture = fit_mixture(others, draws=_DRAWS, members_alone=False)
    order = held_out[np.argsort(-runs.flop[held_out], kind="stable")]
    chosen = runs.take(order)
    bands = np.concatenate(
        [
            loss_bands(mixture, chosen.size[at : at + _AT_ONCE], chosen.fresh_tokens[at : at + _AT_ONCE])
            for at in range(0, len(order), _AT_ONCE)
        ],
        axis=1,
    )
    judged = [
        _judged(named[row], runs, row, to_band(ends))
        for row, ends in zip(order.tolist(), bands.T.tolist(), strict=True)
    ]
    error = np.log(chosen.loss / bands[2])
    return Backtest(
        decades=decades,
        fitted_runs=len(mixture.runs.loss),
        fitted_to_flop=float(mixture.runs.flop.max()),
        mean_error=float(np.abs(error).mean()),
        bias=float(error.mean()),
        coverage_50=float(np.mean([run.inside_50 for run in judged])),
        coverage_95=float(np.mean([run.inside_95 for run in judged])),
        interval_score=interval_score(bands[0], bands[4], chosen.loss),
        runs=tuple(judged),
    )


def to_band(ends: Sequence[float]) -> Band:
    """A band from its 2.5, 25, 50, 75 and 97.5 % ends."""
    low_95, low_50, median, high_50, high_95 = ends
    return Band(median=median, low_50=low_50, high_50=high_50, low_95=low_95, high_95=high_95)


def _judged(named: tuple[str, int], runs: Points, row: int, band: Band) -> BacktestRun:
    measured = float(runs.loss[row])
    return BacktestRun(
        name=named[0],
        line=named[1],
        size=float(runs.size[row]),
        tokens=float(runs.tokens[row]),
        compute_flop=float(runs.flop[row]),
        forecast=band,
        measured=measured,
        error=measured / band.median - 1,
        inside_50=band.low_50 <= measured <= band.high_50,
        inside_95=band.inside_95(measured),
    )


def interval_score(low_95: Array, high_95: Array, measured: Array) -> float:
    """Mean score of 95 % bands in ln L: their width, plus 2 / .05 of what a run lies outside (Gneiting & Raftery 2007,
    JASA 102:359, Eq. 43)."""
    low, high = np.log(low_95 / measured), np.log(high_95 / measured)
    missed = np.maximum(low, 0) + np.maximum(-high, 0)
    return float((high - low + 2 / 0.05 * missed).mean())
