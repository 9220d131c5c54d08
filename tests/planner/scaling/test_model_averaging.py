from itertools import pairwise

import numpy as np
import pytest

from planner.scaling import laws
from planner.scaling.fit import fit
from planner.scaling.model_averaging import (
    CANDIDATES,
    HeldOutScore,
    Mixture,
    MixtureForecast,
    best_split,
    chosen_fit,
    chosen_form,
    compare_forms,
    fit_mixture,
    forecast_loss,
)
from planner.scaling.posterior import Points, points, posterior
from tests.support.needs import shared
from tests.support.paths import SHARED

SWEEP = SHARED / "facts/corpora.md"
BUDGETS = (1e11, 3e11, 1e12)
# A byte-level surface like the pilots': 2.7 bits at 1e12 FLOP, 30 % of it floor, coupled as public data are.
PILOTS = {"E": 0.8, "excess": 1.9, "alpha": 0.5, "beta": 0.55, "k": 0.45, "size": 4e5}


def _pilot_surface() -> tuple[laws.Form, list[float]]:
    """Constants whose optimum at 1e12 has that size and loss."""
    alpha, beta, k = PILOTS["alpha"], PILOTS["beta"], PILOTS["k"]
    inner = PILOTS["excess"] ** (1 / k)
    a = inner * beta / (alpha + beta) * PILOTS["size"] ** alpha
    b = inner * alpha / (alpha + beta) * (1e12 / PILOTS["size"]) ** beta
    return laws.COUPLED, [PILOTS["E"], a, b, alpha, beta, k]


def _ladder(
    form: laws.Form,
    params: list[float],
    budgets: tuple[float, ...] = BUDGETS,
    noise: float = 0.01,
    seed: int = 0,
    sizes: int = 5,
) -> Points:
    generator = np.random.default_rng(seed)
    flop = np.repeat(budgets, sizes)
    spread = np.tile(np.geomspace(1 / 3, 3, sizes), len(budgets))
    size = laws.optimum(form, params, flop)[0] * spread
    loss = laws.value(form, params, size, flop / size) * np.exp(noise * generator.standard_normal(len(size)))
    return points(size, flop / size, loss)


def _forecast(runs: Points, size: float, tokens: float, draws: int = 2000, seed: int = 0) -> MixtureForecast:
    return forecast_loss(fit_mixture(runs, draws=draws, seed=seed), size, tokens)


def _sweep() -> Points:
    """The measured sweep: rows '| C | d | tokens (M) | batch | lr | steps | bits/byte | ...' of two-layer
    models."""
    rows = [
        [float(cell) for cell in line.strip("| \n").split("|")]
        for line in shared(SWEEP).read_text().splitlines()
        if line.startswith(("| 1e+", "| 3e+"))
    ]
    flop, width, _, _, _, steps, loss, *_ = np.array(rows).T
    size = 72 * 2 * width**2 + 12 * 2 * width * 256  # the paper's M: 72 L d^2 + 12 L d s
    return points(size, flop / size, loss, steps=steps)


def test_posterior_gives_back_a_surface_that_many_runs_pin_down() -> None:
    form, params = _pilot_surface()
    runs = _ladder(form, params, tuple(np.geomspace(1e10, 1e15, 12)), noise=0.005, sizes=9)
    drawn = posterior(form, runs, 400, seed=0)
    assert np.median(drawn.noise_sd) == pytest.approx(0.005, rel=0.15)
    size, tokens, loss = laws.optimum(form, params, 1e16)
    low, high = np.percentile(drawn.log_loss(size, tokens), [1, 99])
    assert low < np.log(loss) < high
    assert high - low < 0.02


def _replicated(cell_sd: float, seed_sd: float, seeds: int, generator_seed: int = 0) -> Points:
    """The demo's ladder with several seeds of each run, whose shapes also lie off the surface by `cell_sd`."""
    form, params = _pilot_surface()
    generator = np.random.default_rng(generator_seed)
    once = _ladder(form, params, tuple(np.geomspace(1e11, 1e12, 5)), noise=0.0, sizes=9)
    off = cell_sd * np.repeat(generator.standard_normal(len(once.loss)), seeds)
    size, tokens, loss = (np.repeat(column, seeds) for column in (once.size, once.tokens, once.loss))
    return points(size, tokens, loss * np.exp(off + seed_sd * generator.standard_normal(len(loss))))


def test_seeds_average_out_and_their_noise_is_still_the_target_s() -> None:
    target = _target(*_pilot_surface(), 1e13)
    one, four = (posterior(laws.COUPLED, _replicated(0.0, 0.01, seeds), 600, seed=0) for seeds in (1, 4))
    assert np.median(one.noise_sd) == pytest.approx(0.01, rel=0.25)
    assert np.median(four.noise_sd) == pytest.approx(0.01, rel=0.15)
    assert four.log_loss(*target).std() < 0.85 * one.log_loss(*target).std()


def test_seeds_do_not_hide_that_shapes_lie_off_the_law() -> None:
    target = _target(*_pilot_surface(), 1e13)
    one, four = (posterior(laws.COUPLED, _replicated(0.01, 0.001, seeds), 600, seed=0) for seeds in (1, 4))
    assert np.median(four.noise_sd) == pytest.approx(0.01, rel=0.25)
    assert four.log_loss(*target).std() > 0.85 * one.log_loss(*target).std()


def test_the_order_of_the_runs_does_not_matter() -> None:
    runs = _replicated(0.005, 0.005, 2)
    turned = runs.take(np.random.default_rng(0).permutation(len(runs.loss)))
    first, second = (posterior(laws.STANDARD, r, 100, seed=0).log_params for r in (runs, turned))
    np.testing.assert_allclose(first, second, rtol=1e-4)


def test_short_runs_count_for_a_ninth() -> None:
    runs = points(
        [1e5, 2e5, 4e5], [1e6, 1e6, 1e6], [3.0, 2.9, 2.8], steps=[999, 1000, 5000], weights=[1, 1, 2]
    )
    assert runs.precision.tolist() == pytest.approx([1 / 9, 1, 2])
    assert runs.take([2]).precision.tolist() == [2]
    with pytest.raises(ValueError, match="steps has 2 entries"):
        points([1e5], [1e6], [3.0], steps=[1, 2])


def test_scores_are_errors_of_fits_below_on_runs_above() -> None:
    form, params = _pilot_surface()
    runs = _ladder(form, params)
    (score,) = compare_forms(runs, [laws.TIED])
    below, above = runs.take(runs.flop < 5e11), runs.take(runs.flop > 5e11)
    fitted = fit(laws.TIED, below.size, below.tokens, below.loss)
    errors = np.abs(np.log(fitted.predict(above.size, above.tokens) / above.loss))
    assert score.held_out_error == pytest.approx(errors.mean())
    assert score.behind_best == 0


@pytest.mark.slow
def test_the_law_that_made_the_runs_is_chosen_and_others_are_behind() -> None:
    form, params = _pilot_surface()
    runs = _ladder(form, params, tuple(np.geomspace(1e10, 1e14, 9)), noise=0.001)
    scores = compare_forms(runs)
    assert chosen_form(scores) is laws.COUPLED
    assert {score.form for score in scores} == set(CANDIDATES)
    assert [s.held_out_error for s in scores] == sorted(s.held_out_error for s in scores)
    assert scores[0].held_out_error < 0.005 < scores[-1].held_out_error
    assert chosen_fit(runs).form is laws.COUPLED


def test_the_simpler_law_is_preferred_within_one_standard_error() -> None:
    def score(form: laws.Form, behind: float, sd: float) -> HeldOutScore:
        return HeldOutScore(form, 0.01 + behind, behind, sd)

    best = score(laws.COUPLED, 0, 0)
    assert chosen_form([best, score(laws.TIED, 0.001, 0.002)]) is laws.TIED
    assert chosen_form([best, score(laws.TIED, 0.003, 0.002)]) is laws.COUPLED
    assert chosen_form([]) is laws.TIED


def test_two_budgets_leave_nothing_to_hold_out_but_still_give_a_forecast() -> None:
    form, params = _pilot_surface()
    runs = _ladder(form, params, BUDGETS[:2])
    assert compare_forms(runs) == ()
    told = _forecast(runs, *_target(form, params, 1e12))
    assert told.held_out_error is None
    assert sum(member.weight for member in told.members) == pytest.approx(1)


def _target(form: laws.Form, params: list[float], flop: float) -> tuple[float, float]:
    size, tokens, _ = laws.optimum(form, params, flop)
    return float(size), float(tokens)


@pytest.mark.slow
def test_ladders_like_the_demo_s_are_covered_within_five_per_cent() -> None:
    form, params = _pilot_surface()
    size, tokens = _target(form, params, 1e13)
    inside, half_widths = [], []
    for seed in range(10):
        told = _forecast(_ladder(form, params, noise=0.01, seed=seed), size, tokens, draws=1000)
        noise = np.exp(0.01 * np.random.default_rng([seed, 1]).standard_normal())
        true = float(laws.value(form, params, size, tokens)) * noise
        inside.append(told.low_95 < true < told.high_95)
        half_widths.append(np.log(told.high_95 / told.low_95) / 2)
        assert told.low_95 < told.low_50 < told.median < told.high_50 < told.high_95
        assert told.extrapolation == pytest.approx(10)
    assert sum(inside) >= 9
    assert np.median(half_widths) < 0.05


@pytest.mark.parametrize(
    ("lowest", "highest", "target"),
    [(1e11, 1e12, 3e12), (1e11, 1e12, 1e13), (3e11, 3e12, 1e13), (3e11, 3e12, 3e13), (1e12, 1e13, 1e14)],
)
def test_the_measured_sweep_lies_inside_up_to_ten_times_beyond(
    lowest: float, highest: float, target: float
) -> None:
    sweep = _sweep()
    evidence = fit_mixture(
        sweep.take((sweep.flop > lowest * 0.99) & (sweep.flop < highest * 1.01)), draws=1000
    )
    there = np.flatnonzero(np.abs(sweep.flop / target - 1) < 0.01)
    planned = np.log(best_split(evidence, target)["size"].median)
    run = there[np.argmin(np.abs(np.log(sweep.size[there]) - planned))]
    told = forecast_loss(evidence, sweep.size[run], sweep.tokens[run])
    assert told.low_95 < sweep.loss[run] < told.high_95


def test_a_band_widens_with_distance_and_noise() -> None:
    form, params = _pilot_surface()
    calm, noisy = (fit_mixture(_ladder(form, params, noise=noise), draws=1000) for noise in (0.003, 0.03))

    def width(evidence: Mixture, flop: float) -> float:
        told = forecast_loss(evidence, *_target(form, params, flop))
        return float(np.log(told.high_95 / told.low_95))

    assert width(calm, 3e12) < width(calm, 1e13) < width(calm, 1e14)
    assert width(calm, 1e13) < width(noisy, 1e13)


def test_more_budget_never_gives_a_worse_forecast() -> None:
    form, params = _pilot_surface()
    evidence = fit_mixture(_ladder(form, params), draws=1000)
    splits = [best_split(evidence, flop) for flop in np.geomspace(1e12, 1e15, 7)]
    medians = [
        forecast_loss(evidence, split["size"].median, split["tokens"].median).median for split in splits
    ]
    assert medians == sorted(medians, reverse=True)
    assert all(a["size"].median < b["size"].median for a, b in pairwise(splits))


def test_the_floor_s_effect_is_shown() -> None:
    form, params = _pilot_surface()
    told = _forecast(_ladder(form, params), *_target(form, params, 1e14))
    assert told.floor.floor[0] < told.floor.floor[1] < told.floor.floor[2]
    assert told.floor.loss[0] < told.floor.loss[1] < told.floor.loss[2]


def test_a_law_refuted_by_held_out_budgets_loses_its_weight() -> None:
    form, params = _pilot_surface()
    runs = _ladder(form, params, tuple(np.geomspace(1e10, 1e14, 9)), noise=0.002)
    weights = {member.form.name: member.weight for member in _forecast(runs, 1e7, 1e8).members}
    assert weights["standard"] < 0.01
    assert weights["coupled"] > 0.3


@pytest.mark.slow
def test_weak_evidence_is_flagged() -> None:
    form, params = _pilot_surface()
    runs = _ladder(form, params, noise=0.0, seed=0)
    clean = _forecast(runs, 1e6, 1e7, draws=200).flags
    assert clean == ("only 3 budgets: the loss floor is mostly that of the prior, from published laws",)
    one_sided = runs.take((runs.flop > 2e11) | (runs.size > np.median(runs.size[runs.flop < 2e11])))
    flags = _forecast(one_sided, 1e6, 1e7, draws=200).flags
    assert not any("1e+11" in flag for flag in flags)  # two sizes make no profile
    short = points(runs.size, runs.tokens, runs.loss, steps=np.where(runs.flop < 2e11, 500, 2000))
    assert (
        "5 of 15 runs have under 1000 steps and get a ninth of the weight" in _forecast(short, 1e6, 1e7).flags
    )


def test_too_little_evidence_is_refused() -> None:
    form, params = _pilot_surface()
    with pytest.raises(ValueError, match="5 different runs at 1 budget, but"):
        fit_mixture(_ladder(form, params, (1e11,)))
    with pytest.raises(ValueError, match="6 different runs at 2 budgets, but a forecast needs at least 7"):
        fit_mixture(_ladder(form, params, BUDGETS[:2], sizes=3))


def test_same_runs_give_the_same_bytes() -> None:
    form, params = _pilot_surface()
    runs = _ladder(form, params)
    first, second = (_forecast(runs, 1e6, 1e7, draws=300) for _ in range(2))
    assert repr(first) == repr(second)
    assert repr(_forecast(runs, 1e6, 1e7, draws=300, seed=1)) != repr(first)
