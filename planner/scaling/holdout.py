"""Hold-out splits of runs by compute: a law is fitted on the smaller budgets and predicts the larger ones.

Laws are judged by nothing else: errors on the runs that a law was fitted on say nothing about larger ones.
"""

from dataclasses import dataclass

import numpy as np

from planner.scaling.isoflop import budget_groups
from planner.scaling.laws import Array
from planner.scaling.points import Points

_SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""If there are many possible splits: shares of the runs that are fitted."""


@dataclass(frozen=True)
class HoldOut:
    """Runs of the smaller budgets, and held-out runs of the larger ones."""

    train: Points
    held_out: Points


def holdout_splits(runs: Points, needed: int) -> list[HoldOut]:
    """Splits with at least two budgets and `needed` different runs to fit, and one budget held out; smallest first."""
    groups = budget_groups(runs.flop)
    cell, counts = runs.cell, np.cumsum([len(group) for group in groups])
    different = [len(np.unique(cell[np.concatenate(groups[: i + 1])])) for i in range(len(groups))]
    possible = [i for i in range(2, len(groups)) if different[i - 1] >= needed]
    if len(possible) > len(_SHARES):
        targets = np.array(_SHARES) * counts[-1]
        possible = sorted({min(possible, key=lambda i: abs(counts[i - 1] - target)) for target in targets})
    return [
        HoldOut(runs.take(np.concatenate(groups[:i])), runs.take(np.concatenate(groups[i:])))
        for i in possible
    ]


def decades_beyond(runs: Points, size: Array, fresh_tokens: Array) -> Array:
    """How far targets lie outside of the runs, in decades of compute; at least 0.

    That is the largest of the decades by which compute is above the runs', tokens per size outside of theirs, and size
    or tokens above theirs. The latter two count sqrt(2) times, so that the lines of equal distance are those of an
    octagon in log size and log tokens, and a step along both axes counts as the compute that it adds.
    """
    log_size, log_tokens = np.log10(size), np.log10(fresh_tokens)
    run_sizes, run_tokens = np.log10(runs.size), np.log10(runs.fresh_tokens)
    ratio, ratios = log_tokens - log_size, run_tokens - run_sizes
    parts = [
        log_size + log_tokens - (run_sizes + run_tokens).max(),
        ratio - ratios.max(),
        ratios.min() - ratio,
        np.sqrt(2) * (log_size - run_sizes.max()),
        np.sqrt(2) * (log_tokens - run_tokens.max()),
        np.zeros_like(ratio),
    ]
    return np.asarray(np.max(parts, axis=0))
