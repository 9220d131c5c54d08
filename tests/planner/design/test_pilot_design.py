"""The choice of a ladder: within its share, narrower than the paper's and a fixed one, and its width is a variance."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.ladder import Case, cases, pilots_of, study, walk
from planner.design.pilot_design import (
    HALF_DECADE,
    MAX_COMPUTE_RANGE,
    MAX_TOP_SHARE,
    PAPER_BUDGETS,
    PAPER_SIZES,
    UNKNOWN_SD,
    Ladder,
    PilotSetting,
    affordable_ladder,
    best_ladder,
    candidate_ladders,
    choose_ladder,
    constraint_violation,
    half_widths,
    log_loss_variances,
    paper_ladders,
    run_positions,
)
from planner.scaling import laws
from planner.scaling.laws import Array
from planner.scaling.model_averaging import CANDIDATES, DISCREPANCY_PER_DECADE, PRIOR_WEIGHTS
from planner.scaling.points import SHORT_RUN_NOISE
from planner.scaling.posterior import NOISE_SD, prior_of
from specs.budget import Budget, Pilots
from specs.document.files import load
from tests.support.paths import SPECS

CASES = {one.name: one for one in cases()}
ROOMY = ("the paper's", "afternoon", "budget_1e21")
"""Cases with room for any ladder; the demo's smallest shape stands in the way of most."""


def with_budget(one: Case, **stated: object) -> Pilots:
    """The case's pilots with these fields stated."""
    return one.pilots.model_copy(update=stated)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROOMY)
def test_it_beats_the_paper_and_the_fixed_ladder_at_equal_cost(name: str) -> None:
    """The paper's budgets and sizes may be as far apart as suits them."""
    one = CASES[name]
    choice = choose_ladder(one.pilots, one.setting)
    fixed, paper = (one.ladders[which] for which in ("fixed", "8 x 10"))
    assert choice.half_width < 0.99 * choice.paper_half_width
    assert choice.paper_half_width == pytest.approx(half_widths([paper], one.setting)[0])
    assert choice.half_width < 0.8 * half_widths([fixed], one.setting)[0]
    assert choice.ladder == one.ladders["chosen"]
    assert choice.half_width == choice.best_half_width


def test_it_is_the_best_of_all_candidates() -> None:
    """No sound candidate should leave a narrower interval."""
    one = CASES["budget_1e21"]
    sound = [
        ladder for ladder in candidate_ladders(one.pilots) if constraint_violation(ladder, one.setting) == 0
    ]
    assert choose_ladder(one.pilots, one.setting).half_width == pytest.approx(
        half_widths(sound, one.setting).min()
    )
    assert len(sound) > 100


@given(st.floats(0.001, 1.0), st.integers(2, 12), st.integers(4, 15), st.floats(1.1, 10.0))
def test_a_ladder_costs_no_more_than_its_share(share: float, budgets: int, sizes: int, step: float) -> None:
    """All budgets times sizes, and the learning-rate check, stay within the share; no budget is over a tenth."""
    asked = Pilots(kind="pilots", prior="tiny", share=share)
    budgets_flop = affordable_ladder(asked, budgets, sizes, 2.0, step).budgets_flop(1e20)
    assert sizes * sum(budgets_flop) + len(asked.rates) * budgets_flop[-2] <= share * 1e20 * (1 + 1e-12)
    assert budgets_flop[-1] <= MAX_TOP_SHARE * 1e20 * (1 + 1e-12)
    assert np.allclose(np.diff(np.log(budgets_flop)), math.log(step))


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(st.sampled_from(ROOMY), st.floats(0.02, 1.0), st.floats(1.0, 4.0))
def test_more_share_never_leaves_a_wider_interval(name: str, share: float, more: float) -> None:
    """Also where only a little more is given, as long as there is a sound ladder."""
    one = CASES[name]
    asked = (with_budget(one, share=min(1.0, given)) for given in (share, more * share))
    less, larger = (best_ladder(candidate_ladders(pilots), one.setting)[1] for pilots in asked)
    assert larger <= less * (1 + 1e-9)


def test_the_variance_is_that_of_the_linearised_surface() -> None:
    """Constants, misses and noise are drawn, and the target is regressed on the runs: what is left is the variance."""
    setting = replace(CASES["budget_1e21"].setting, low_flop=1.5e17)
    ladder = Ladder(budgets=3, sizes=4, spread=2.0, budget_ratio=10.0, top_share=0.02)
    log_flop, log_size = (column[0] for column in run_positions([ladder], setting))
    noise = setting.noise(log_flop, log_size)
    assert len(set(noise.ravel())) > 1
    best = math.log(setting.prior.flop_per_token.at(compute_flop=setting.target_flop))
    flop = np.append(log_flop.ravel(), math.log(setting.target_flop))
    size = np.append(log_size.ravel(), best)
    decades = (math.log(setting.target_flop) - log_flop[:, 0]) / math.log(10)
    generator, draws = np.random.default_rng(0), 100_000
    left = 0.0
    for form, weight in zip(CANDIDATES, PRIOR_WEIGHTS, strict=True):
        prior = prior_of(form, np.ones(1))
        gradient = slopes(form, prior.mean, flop, size, setting)
        drawn = prior.draw(generator, draws) - prior.mean
        seen = drawn @ gradient
        beyond = decades[-1] * generator.standard_normal((draws, 1))
        steps = generator.standard_normal((draws, 3)) * np.sqrt(-np.diff(decades, append=decades[-1]))
        below = np.cumsum(steps[:, ::-1], axis=1)[:, ::-1]
        seen[:, :-1] += np.repeat(DISCREPANCY_PER_DECADE * (beyond + below), 4, axis=1)
        seen[:, :-1] += noise.ravel() * generator.standard_normal((draws, 12))
        runs, target = seen[:, :-1], seen[:, -1]
        left += weight * float(np.var(target - runs @ np.linalg.lstsq(runs, target, rcond=None)[0]))
    assert log_loss_variances([ladder], setting)[0] == pytest.approx(left + NOISE_SD**2, rel=0.02)


def slopes(form: laws.Form, mean: Array, flop: Array, size: Array, setting: PilotSetting) -> Array:
    """Derivatives of ln L in the log-constants by differences, (constants, runs), about a tenth of the target."""
    known = MAX_TOP_SHARE * setting.target_flop
    x, c = np.exp(size) / setting.prior.flop_per_token.at(compute_flop=known), np.exp(flop) / known
    columns, step = laws.columns(form, x, c / x), 1e-5
    moved = [mean + sign * step * row for row in np.eye(len(mean)) for sign in (1, -1)]
    logs = np.array([np.log(laws.value(form, np.exp(one), *columns)) for one in moved])
    return np.asarray((logs[::2] - logs[1::2]) / (2 * step))


def test_runs_that_tell_less_count_for_less() -> None:
    """Under the family's steps a ninth; below the prior's range, or too short to be run, nothing."""
    one = CASES["budget_1e21"]
    flop, size = np.log([1e20, 1e20, 0.9e17]), np.log([5e9, 5e10, 1.4e8])
    assert one.setting.noise(flop, size).tolist() == [NOISE_SD, SHORT_RUN_NOISE * NOISE_SD, UNKNOWN_SD]
    assert one.setting.noise(np.log([1e18]), np.log([1e13])).tolist() == [UNKNOWN_SD]
    ladder = Ladder(budgets=3, sizes=4, spread=2.0, budget_ratio=10.0, top_share=0.02)
    narrow = [half_widths([ladder], replace(one.setting, low_flop=low))[0] for low in (1e17, 1e18, 1e30)]
    assert narrow == sorted(narrow)
    assert narrow[2] > 5 * narrow[0]


@pytest.mark.slow
def test_what_the_budget_states_stands() -> None:
    """A stated number of budgets is half a decade apart, as it was before ladders were chosen."""
    one = CASES["afternoon"]
    stated = with_budget(one, budgets=6, sizes=5, spread=1.5)
    choice = choose_ladder(stated, one.setting)
    assert choice.ladder == affordable_ladder(stated, 6, 5, 1.5, HALF_DECADE)
    assert choice.considered == 1
    assert choice.best_half_width == choose_ladder(one.pilots, one.setting).half_width < choice.half_width
    some = choose_ladder(with_budget(one, sizes=6), one.setting).ladder
    assert some.sizes == 6
    assert some.budgets >= 3
    assert choose_ladder(with_budget(one, spread=1.7), one.setting).ladder.spread == 1.7
    assert choose_ladder(with_budget(one, budgets=4), one.setting).ladder.budget_ratio == HALF_DECADE


def test_the_demos_ladder() -> None:
    """1e11, 3.16e11 and 1e12 for a target of 1e13: five sealed forecasts of the log rest on it."""
    asked = load(SPECS / "demo.yaml", Budget).evidence
    assert isinstance(asked, Pilots)
    ladder = choose_ladder(asked, CASES["demo"].setting).ladder
    assert ladder.budgets_flop(1e13) == pytest.approx([1e11, 10**11.5, 1e12])
    assert (ladder.budgets, ladder.sizes, ladder.spread) == (3, 4, 1.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_chosen_ladders_are_sound_and_the_same_twice(name: str) -> None:
    """No size below the smallest shape, no more decades than the paper's, no budget that the prior does not know."""
    one = CASES[name]
    ladder = choose_ladder(one.pilots, one.setting).ladder
    assert constraint_violation(ladder, one.setting) == 0
    assert ladder.budget_ratio ** (ladder.budgets - 1) <= MAX_COMPUTE_RANGE * (1 + 1e-9)
    assert ladder.budgets_flop(one.setting.target_flop)[0] >= one.setting.low_flop * (1 - 1e-9)
    assert choose_ladder(one.pilots, one.setting) == choose_ladder(one.pilots, one.setting)


def test_where_no_ladder_is_sound_the_one_that_oversteps_least_is_taken() -> None:
    """A target ten times the prior's smallest run."""
    one = CASES["demo"]
    setting = replace(one.setting, target_flop=3e11)
    choice = choose_ladder(one.pilots, setting)
    least = min(constraint_violation(ladder, setting) for ladder in candidate_ladders(one.pilots))
    assert constraint_violation(choice.ladder, setting) == pytest.approx(least)
    assert least > 0


def test_the_papers_ladder_is_eight_times_ten() -> None:
    """For its own share it is the one from 1e17 to 3e20."""
    one = CASES["the paper's"]
    paper = one.ladders["8 x 10"]
    budgets_flop = paper.budgets_flop(one.setting.target_flop)
    assert (len(budgets_flop), paper.sizes) == (PAPER_BUDGETS, PAPER_SIZES) == (8, 10)
    assert budgets_flop[0] == pytest.approx(1e17)
    assert budgets_flop[-1] == pytest.approx(3.16e20, rel=1e-3)
    assert all(ladder.budget_ratio <= HALF_DECADE * (1 + 1e-9) for ladder in paper_ladders(one.pilots))


@pytest.mark.slow
def test_a_band_is_as_narrow_as_predicted() -> None:
    """The forecast's own half-width on random surfaces, in the median within a fifth of what the choice was made by."""
    one = CASES["afternoon"]
    half, error, _ = np.array([study(one.ladders["chosen"], one.setting, seed) for seed in range(6)]).T
    assert np.median(half) == pytest.approx(choose_ladder(one.pilots, one.setting).half_width, rel=0.2)
    assert np.all(np.abs(error) < 2 * half)


def test_the_benchs_pilots_walk_off_their_law_together() -> None:
    """A miss shifts every run of a budget by the same, and its variance grows as believed."""
    one = CASES["budget_1e21"]
    ladder = one.ladders["chosen"]
    form, params = laws.STANDARD, [1.0, 20.0, 60.0, 0.3, 0.3]
    plain, moved = (
        pilots_of(ladder, one.setting, miss * np.ones(ladder.budgets), form, params, np.random.default_rng(0))
        for miss in (0.0, 0.01)
    )
    assert np.log(moved.loss / plain.loss) == pytest.approx(0.01)
    walks = np.array([walk(np.array([3.0, 2.0, 1.0]), np.random.default_rng(i)) for i in range(4000)])
    assert walks.std(axis=0) == pytest.approx(DISCREPANCY_PER_DECADE * np.sqrt([3, 2, 1]), rel=0.05)
