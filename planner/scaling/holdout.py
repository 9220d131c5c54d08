"""Splits of runs in compute: what lies below a cut is fitted, what lies above is predicted.

Nothing else may judge a law: errors on the runs that it was fitted on say nothing about larger ones.
"""

from dataclasses import dataclass

import numpy as np

from planner.scaling.isoflop import budget_groups
from planner.scaling.laws import Array
from planner.scaling.posterior import Points

_SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Where many budgets leave a choice of cuts: shares of the runs below."""


@dataclass(frozen=True)
class HoldOut:
    """Runs of the smaller budgets and of the larger ones."""

    below: Points
    above: Points


def holdout_splits(runs: Points, needed: int) -> list[HoldOut]:
    """Cuts with at least two budgets and `needed` different runs below, one budget above; lowest first."""
    groups = budget_groups(runs.flop)
    cell, counts = runs.cell, np.cumsum([len(group) for group in groups])
    different = [len(np.unique(cell[np.concatenate(groups[: i + 1])])) for i in range(len(groups))]
    possible = [i for i in range(2, len(groups)) if different[i - 1] >= needed]
    if len(possible) > len(_SHARES):
        wanted = np.array(_SHARES) * counts[-1]
        possible = sorted({min(possible, key=lambda i: abs(counts[i - 1] - want)) for want in wanted})
    return [
        HoldOut(runs.take(np.concatenate(groups[:i])), runs.take(np.concatenate(groups[i:])))
        for i in possible
    ]


def decades_beyond(runs: Points, flop: Array) -> Array:
    """Decades of compute between the largest run and each target; at least 0."""
    return np.asarray(np.maximum(np.log10(flop / runs.flop.max()), 0.0))
