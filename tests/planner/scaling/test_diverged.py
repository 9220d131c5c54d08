"""Diverged runs are left out and named; what cannot be nats per token is refused."""

import numpy as np
import pytest

from planner.scaling.diverged import UnusableLossesError, without_diverged
from planner.scaling.model_averaging import fit_mixture, forecast_loss
from planner.scaling.points import Points, points
from tests.support.ladders import ladder, target, with_losses

LARGEST = range(10, 15)
"""Rows of the largest budget."""


def left_out(runs: Points) -> list[int]:
    """The rows that are left out."""
    return [one.row for one in without_diverged(runs)[1]]


@pytest.mark.parametrize("row", LARGEST)
def test_a_diverged_run_of_the_largest_budget_is_left_out_and_nothing_else(row: int) -> None:
    runs = ladder()
    kept, gone = without_diverged(with_losses(runs, {row: 11.0}))
    assert [one.row for one in gone] == [row]
    assert gone[0].off == pytest.approx(np.log(11 / runs.loss[row]), abs=0.1)
    assert kept.loss.tolist() == np.delete(runs.loss, row).tolist()


@pytest.mark.parametrize(
    "losses", [{12: 11.0, 3: 7.0}, {13: 11.0, 14: 11.0}, {0: 11.0, 12: 11.0}, {12: 11.0, 13: 3.6}, {7: 1.0}]
)
@pytest.mark.parametrize("noise", [0.003, 0.02])
def test_several_diverged_runs_are_left_out(losses: dict[int, float], noise: float) -> None:
    """Two beside each other too, one of them by far less; and one with a loss that is too low."""
    assert left_out(with_losses(ladder(noise=noise), losses)) == sorted(losses)


def test_a_forecast_with_a_diverged_run_is_that_without_it() -> None:
    runs = ladder()
    diverged = fit_mixture(with_losses(runs, {12: 11.0}), draws=200)
    without = fit_mixture(runs.take(np.arange(15) != 12), draws=200)
    assert [one.row for one in diverged.left_out] == [12]
    assert not without.left_out
    first, second = (forecast_loss(mixture, *target(1e13)) for mixture in (diverged, without))
    assert first == second


@pytest.mark.parametrize("noise", [0.01, 0.02])
def test_a_noisy_ladder_keeps_all_of_its_runs(noise: float) -> None:
    assert all(not left_out(ladder(noise=noise, seed=seed)) for seed in range(5))


@pytest.mark.parametrize("row", [0, 7, 14])
def test_a_run_that_is_a_tenth_off_stays(row: int) -> None:
    runs = ladder(noise=0.003)
    assert not left_out(with_losses(runs, {row: 1.08 * runs.loss[row]}))


def test_at_most_a_quarter_of_the_runs_is_left_out() -> None:
    """Where more are far off the others, nobody knows which of them are right."""
    assert left_out(with_losses(ladder(), dict.fromkeys((2, 7, 12), 11.0))) == [2, 7, 12]
    assert not left_out(with_losses(ladder(), dict.fromkeys((2, 4, 7, 12), 11.0)))


def test_many_runs_that_are_far_off_in_ways_of_their_own_are_refused() -> None:
    runs = ladder()
    factors = zip((9, 8, 10, 5), np.geomspace(1.3, 40, 4), strict=True)
    with pytest.raises(UnusableLossesError, match="4 of 15 runs lie far off what the others say"):
        fit_mixture(with_losses(runs, {row: float(runs.loss[row] * factor) for row, factor in factors}))


def test_perplexities_are_refused() -> None:
    runs = ladder((1e9, 3e9, 1e10))
    with pytest.raises(
        ValueError, match=r"the median loss is .* are these perplexities\? Give their natural log"
    ):
        fit_mixture(points(runs.size, runs.tokens, np.exp(runs.loss)))


@pytest.mark.parametrize(("noise", "unit"), [(0.0, 1), (0.02, 1), (0.02, 100)])
def test_accuracies_are_refused(noise: float, unit: float) -> None:
    """Those in per cent, too: their logarithms would be no losses either."""
    runs = ladder(noise=noise)
    with pytest.raises(
        ValueError, match=r"the losses rise with size and with tokens; are these accuracies\?"
    ):
        fit_mixture(points(runs.size, runs.tokens, unit * (0.9 - 0.2 * runs.loss)))
