import numpy as np
import pytest

from planner.scaling.isoflop import budget_groups, fit_minima, power_laws


def _valley(
    flop: float, sizes: np.ndarray, best: float, floor: float = 2.0, bend: float = 0.02
) -> np.ndarray:
    return floor * np.exp(bend * np.log(sizes / best) ** 2) * (flop / 1e20) ** -0.05


def _ladder(noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    rows = []
    for flop in (1e18, 1e19, 1e20):
        best = 0.1715 * flop**0.5243
        sizes = best * np.geomspace(0.25, 4, 7)
        loss = _valley(flop, sizes, best) * np.exp(noise * generator.standard_normal(7))
        rows += list(zip(sizes, flop / sizes, loss, strict=True))
    size, tokens, loss = np.array(rows).T
    return size, tokens, loss


def test_noise_free_parabolas_give_back_minima_and_exponents() -> None:
    minima = fit_minima(*_ladder())
    assert [m.flop for m in minima] == pytest.approx([1e18, 1e19, 1e20])
    assert all(m.bracketed and m.reason == "" and m.runs == 7 for m in minima)
    assert [m.size for m in minima] == pytest.approx([0.1715 * c**0.5243 for c in (1e18, 1e19, 1e20)])
    assert [m.size * m.tokens for m in minima] == pytest.approx([1e18, 1e19, 1e20])
    assert [m.loss for m in minima] == pytest.approx([2 * 10**0.1, 2 * 10**0.05, 2])
    assert [m.curvature for m in minima] == pytest.approx([0.04] * 3)
    size, tokens = power_laws(minima)
    assert (size.coefficient, size.exponent) == pytest.approx((0.1715, 0.5243))
    assert (tokens.coefficient, tokens.exponent) == pytest.approx((1 / 0.1715, 0.4757))
    assert size.at(1e24) == pytest.approx(6.5685e11, rel=1e-3)


def test_stated_uncertainty_matches_the_scatter_over_seeds() -> None:
    found = [fit_minima(*_ladder(0.005, seed), noise_sd=0.005)[1] for seed in range(300)]
    log_sizes, log_losses = np.log([m.size for m in found]), np.log([m.loss for m in found])
    assert log_sizes.std() == pytest.approx(np.median([m.log_size_sd for m in found]), rel=0.25)
    assert log_losses.std() == pytest.approx(np.median([m.log_loss_sd for m in found]), rel=0.25)
    exponents = [power_laws(fit_minima(*_ladder(0.005, seed), noise_sd=0.005))[0] for seed in range(300)]
    covered = np.mean([abs(law.exponent - 0.5243) < 2 * law.exponent_sd for law in exponents])
    assert 0.88 < covered <= 1


def test_pooled_residuals_stand_in_for_the_noise() -> None:
    sds = [fit_minima(*_ladder(0.01, seed))[0].log_size_sd for seed in range(100)]
    assert np.median(sds) == pytest.approx(fit_minima(*_ladder(0.01), noise_sd=0.01)[0].log_size_sd, rel=0.2)


def test_minimum_beyond_the_runs_is_flagged_and_not_used() -> None:
    size, tokens, loss = _ladder()
    keep = ~((size * tokens < 2e18) & (size < 0.1715 * 1e18**0.5243 * 1.2))
    minima = fit_minima(size[keep], tokens[keep], loss[keep])
    assert [m.bracketed for m in minima] == [False, True, True]
    assert minima[0].reason == "the minimum lies beyond the smallest size that was run"
    assert minima[0].size == pytest.approx(size[keep][0])
    assert np.isinf(minima[0].log_size_sd)
    assert power_laws(minima)[0].exponent == pytest.approx(0.5243)
    with pytest.raises(ValueError, match="1e\\+18 FLOP: the minimum lies beyond"):
        power_laws(minima[:2])


def test_a_hill_is_no_valley() -> None:
    size = np.geomspace(1e7, 1e9, 5)
    (minimum,) = fit_minima(size, 1e19 / size, 3 - 0.01 * np.log(size / 8e7) ** 2)
    assert not minimum.bracketed
    assert minimum.reason == "the loss has no minimum and falls towards the largest size"
    assert minimum.size == pytest.approx(1e9)


def test_budgets_met_only_nearly_are_one_budget() -> None:
    assert budget_groups([1e18, 1.01e18, 3e18, 0.99e18, 3.04e18]) == [[3, 0, 1], [2, 4]]


def test_runs_at_every_compute_are_many_budgets() -> None:
    """None of them spans more than a tenth, though no gap parts them."""
    flop = np.random.default_rng(0).permutation(np.geomspace(1e18, 1e19, 1000))
    groups = budget_groups(flop)
    assert sorted(run for group in groups for run in group) == list(range(1000))
    assert max(flop[group].max() / flop[group].min() for group in groups) < 1.1
    assert len(groups) == pytest.approx(np.log(10) / np.log(1.1), abs=2)


def test_budgets_of_two_sizes_have_no_profile() -> None:
    size = np.array([1e7, 2e7, 1e8, 2e8, 4e8])
    tokens = np.array([1e18, 1e18, 1e19, 1e19, 1e19]) / size
    assert len(fit_minima(size, tokens, np.array([3.0, 3.1, 2.6, 2.5, 2.6]))) == 1


def test_exact_three_point_profiles_have_no_measured_uncertainty() -> None:
    size = np.array([1e7, 2e7, 4e7])
    (minimum,) = fit_minima(size, 1e18 / size, [3.1, 3.0, 3.1])
    assert minimum.bracketed
    assert np.isnan(minimum.log_size_sd)
