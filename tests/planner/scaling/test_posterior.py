"""The posterior of a law's constants: it holds the truth, and knows the runs' noise."""

import numpy as np
import pytest

from planner.scaling import laws
from planner.scaling.points import Points, points
from planner.scaling.posterior import fit_law, interval
from tests.support.ladders import ladder, pilot_surface, target

DECADES = tuple(np.geomspace(1e10, 1e13, 10))


def test_posterior_gives_back_a_surface_that_many_runs_pin_down() -> None:
    form, params = pilot_surface()
    runs = ladder(tuple(np.geomspace(1e10, 1e15, 12)), noise=0.005, sizes=9)
    drawn = fit_law(form, runs).draw(400, seed=0)
    assert np.median(drawn.noise_sd) == pytest.approx(0.005, rel=0.15)
    size, tokens, loss = laws.optimum(form, params, 1e16)
    low, high = np.percentile(drawn.log_loss(size, tokens), [1, 99])
    assert low < np.log(loss) < high
    assert high - low < 0.02


def test_the_gaussian_by_which_splits_are_scored_is_that_of_the_draws() -> None:
    law = fit_law(laws.COUPLED, ladder(DECADES, noise=0.005))
    size, tokens = np.array([target(3e13)]).T
    told, drawn = law.predict(size, tokens), law.draw(2000, seed=0).log_loss(size, tokens)[:, 0]
    assert drawn.std() == pytest.approx(np.sqrt(told.law_variance[0]), rel=0.15)
    assert drawn.mean() == pytest.approx(told.log_loss[0], abs=0.25 * drawn.std())


def _replicated(cell_sd: float, seed_sd: float, seeds: int) -> Points:
    """The demo's ladder with several seeds of each run, whose shapes also lie off the surface by `cell_sd`."""
    generator = np.random.default_rng(0)
    once = ladder(tuple(np.geomspace(1e11, 1e12, 5)), noise=0.0, sizes=9)
    off = cell_sd * np.repeat(generator.standard_normal(len(once.loss)), seeds)
    size, tokens, loss = (np.repeat(column, seeds) for column in (once.size, once.tokens, once.loss))
    return points(size, tokens, loss * np.exp(off + seed_sd * generator.standard_normal(len(loss))))


def test_seeds_average_out_and_their_noise_is_still_the_target_s() -> None:
    one, four = (fit_law(laws.COUPLED, _replicated(0.0, 0.01, seeds)).draw(600, seed=0) for seeds in (1, 4))
    assert np.median(one.noise_sd) == pytest.approx(0.01, rel=0.25)
    assert np.median(four.noise_sd) == pytest.approx(0.01, rel=0.15)
    assert four.log_loss(*target(1e13)).std() < 0.85 * one.log_loss(*target(1e13)).std()


def test_seeds_do_not_hide_that_shapes_lie_off_the_law() -> None:
    one, four = (fit_law(laws.COUPLED, _replicated(0.01, 0.001, seeds)).draw(600, seed=0) for seeds in (1, 4))
    assert np.median(four.noise_sd) == pytest.approx(0.01, rel=0.25)
    assert four.log_loss(*target(1e13)).std() > 0.85 * one.log_loss(*target(1e13)).std()


@pytest.mark.parametrize("seed", range(3))
def test_noise_that_falls_with_compute_is_found_and_the_target_gets_that_of_the_largest_runs(
    seed: int,
) -> None:
    law = fit_law(laws.COUPLED, ladder(DECADES, noise=np.geomspace(0.03, 0.003, 10), sizes=9, seed=seed))
    assert 0.15 < law.noise_slope < 0.4  # a third, which the prior holds back
    size, tokens = np.array([target(1e10), target(1e13), target(1e15)]).T
    smallest, largest, beyond = law.predict(size, tokens).noise_sd
    assert 0.003 / 1.5 < largest < 0.003 * 1.5
    assert smallest > 3 * largest
    assert beyond == largest


@pytest.mark.parametrize("seed", range(3))
def test_noise_that_is_the_same_everywhere_is_found_so(seed: int) -> None:
    law = fit_law(laws.COUPLED, ladder(DECADES, noise=0.01, sizes=9, seed=seed))
    assert abs(law.noise_slope) < 0.1
    assert law.noise.median == pytest.approx(0.01, rel=0.3)


def test_the_order_of_the_runs_does_not_matter() -> None:
    runs = _replicated(0.005, 0.005, 2)
    turned = runs.take(np.random.default_rng(0).permutation(len(runs.loss)))
    first, second = (fit_law(laws.STANDARD, r).draw(100, seed=0).log_params for r in (runs, turned))
    np.testing.assert_allclose(first, second, rtol=1e-4)


def test_repeated_text_of_the_runs_is_discounted() -> None:
    """Where the same losses were reached on less text, fresh tokens are worth more."""
    runs = ladder(DECADES, noise=0.003)
    few = points(runs.size, runs.tokens, runs.loss, unique_tokens=runs.tokens / 20)
    plain, repeated = (
        fit_law(laws.COUPLED, one).predict(*np.array([target(1e14)]).T).log_loss[0] for one in (runs, few)
    )
    assert repeated < plain - 0.02


def test_interval_is_the_central_one() -> None:
    found = interval(np.arange(1001))
    assert (found.low, found.median, found.high) == pytest.approx((25, 500, 975))
