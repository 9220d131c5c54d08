import numpy as np
import pytest

from planner.scaling.noise_scale import noise_scale, noise_scale_from_residuals


def test_without_evidence_it_is_the_log_normal_that_was_believed() -> None:
    believed = noise_scale_from_residuals(0.01, 2.0, 0.0, 0.0)
    assert believed.median == pytest.approx(0.01, rel=0.01)
    assert believed.quantile(np.array([0.1587, 0.8413])) == pytest.approx([0.005, 0.02], rel=0.02)


@pytest.mark.parametrize("true", [0.0005, 0.005, 0.05])
def test_residuals_move_it_to_where_they_are(true: float) -> None:
    believed = noise_scale_from_residuals(0.005, 3.0, 30 * true**2, 30.0)
    assert believed.median == pytest.approx(true, rel=0.06)
    low, high = believed.quantile(np.array([0.025, 0.975]))
    assert low < true < high < 1.6 * true


def test_draws_follow_it() -> None:
    believed = noise_scale(0.01, 2.0, lambda sd: np.zeros_like(sd))
    draws = believed.draw(np.random.default_rng(0), 20_000)
    assert np.exp(np.log(draws).mean()) == pytest.approx(0.01, rel=0.02)
    assert np.log(draws).std() == pytest.approx(np.log(2), rel=0.02)
