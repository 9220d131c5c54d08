"""Hold-out splits by budget, and how far a target lies beyond the runs."""

import numpy as np
import pytest

from planner.scaling.holdout import decades_beyond, holdout_splits
from planner.scaling.points import points
from tests.support.ladders import BUDGETS, cloud, ladder, target


def test_splits_hold_out_the_larger_budgets() -> None:
    """Every one that leaves two budgets and enough runs to fit; two budgets leave nothing to hold out."""
    runs = ladder(tuple(np.geomspace(1e10, 1e13, 5)))
    splits = holdout_splits(runs, 5)
    assert [len(split.train.loss) for split in splits] == [10, 15, 20]
    for split in splits:
        assert split.train.flop.max() < split.held_out.flop.min()
        assert len(split.train.loss) + len(split.held_out.loss) == 25
    assert [len(split.train.loss) for split in holdout_splits(runs, 11)] == [15, 20]
    assert holdout_splits(ladder(BUDGETS[:2]), 5) == []


def test_runs_at_every_compute_are_split_by_shares_of_them() -> None:
    splits = holdout_splits(cloud(1000), 5)
    shares = [len(split.train.loss) / 1000 for split in splits]
    assert shares == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.9], abs=0.02)


def test_distance_counts_what_lies_outside_of_the_runs() -> None:
    """None inside; a decade for ten times the compute at the same split; and size, tokens and their ratio alone."""
    runs = ladder()
    size, tokens = target(1e12)

    def distance(size: float, tokens: float) -> float:
        return float(decades_beyond(runs, np.array([size]), np.array([tokens]))[0])

    assert distance(size, tokens) == 0
    assert distance(*target(2e11)) == 0
    assert distance(runs.size.max(), 1e12 / runs.size.max()) == pytest.approx(0, abs=1e-12)
    assert distance(size * 10**0.5, tokens * 10**0.5) == pytest.approx(1)
    assert distance(size * 1e-6, tokens * 1e-6) == pytest.approx(0, abs=1e-12)
    larger, longer = 2.9 * runs.size.max(), 2.9 * runs.tokens.max()
    ratios = runs.tokens / runs.size
    assert distance(1e3, 2.9e3 * ratios.max()) == pytest.approx(np.log10(2.9))
    assert distance(1e3, 1e3 * ratios.min() / 2.9) == pytest.approx(np.log10(2.9))
    # At the same compute it is their ratio that is furthest out.
    assert distance(larger, 1e12 / larger) == pytest.approx(np.log10(ratios.min() * larger**2 / 1e12))
    assert distance(1e12 / longer, longer) == pytest.approx(np.log10(longer**2 / 1e12 / ratios.max()))


def test_a_size_or_a_length_that_was_not_run_is_outside_whatever_its_compute_and_ratio() -> None:
    small = points([1e5, 1e5], [1e7, 1e5], [3.0, 3.1])
    short = points([1e6, 1e3], [1e6, 1e6], [3.0, 3.1])
    assert decades_beyond(small, np.array([1e6]), np.array([1e6]))[0] == pytest.approx(np.sqrt(2))
    assert decades_beyond(short, np.array([1e4]), np.array([1e7]))[0] == pytest.approx(np.sqrt(2))
