"""Scores of forecasts: point error, coverage of both bands, their width, and the interval score, always together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.scaling.laws import Array
from planner.scaling.model_averaging import MixtureForecast
from planner.table_fit.backtest import interval_score


@dataclass(frozen=True)
class Scores:
    """Means over runs, in % of loss; coverage in % of runs."""

    error: float
    """Mean |ln(forecast / measured)|."""
    bias: float
    inside_95: float
    inside_50: float
    half_width: float
    """Half of the 95 % band, its median over the runs."""
    interval_score: float
    """Of the 95 % band, lower is better: planner/table_fit/backtest.py."""

    def cells(self) -> tuple[str, ...]:
        """Texts for a table."""
        return (
            f"{self.error:.2f}",
            f"{self.bias:+.2f}",
            f"{self.inside_95:.1f}",
            f"{self.inside_50:.0f}",
            f"{self.half_width:.2f}",
            f"{self.interval_score:.2f}",
        )


HEADS = ("error", "bias", "in 95", "in 50", "± 95", "score")


def scored(median: Array, band_50: Array, band_95: Array, measured: Array) -> Scores:
    """Scores of forecasts of runs (runs,), with bands (2, runs)."""
    middle, inner, outer = (np.log(np.asarray(losses) / measured) for losses in (median, band_50, band_95))
    return Scores(
        error=100 * float(np.abs(middle).mean()),
        bias=100 * float(middle.mean()),
        inside_95=100 * float(((outer[0] <= 0) & (outer[1] >= 0)).mean()),
        inside_50=100 * float(((inner[0] <= 0) & (inner[1] >= 0)).mean()),
        half_width=50 * float(np.median(outer[1] - outer[0])),
        interval_score=100 * interval_score(band_95[0], band_95[1], measured),
    )


def of_forecasts(forecasts: Sequence[MixtureForecast], measured: Sequence[float]) -> Scores:
    """Scores of these forecasts."""
    rows = [(f.median, f.low_50, f.high_50, f.low_95, f.high_95) for f in forecasts]
    median, low_50, high_50, low_95, high_95 = np.array(rows).T
    return scored(median, np.stack([low_50, high_50]), np.stack([low_95, high_95]), np.asarray(measured))


def mean(scores: Sequence[Scores]) -> Scores:
    """The mean over sets, each with the same weight."""
    return Scores(**{name: float(np.mean([getattr(s, name) for s in scores])) for name in vars(scores[0])})
