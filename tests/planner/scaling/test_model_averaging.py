"""The mixture: its members, their weights, and forecasts whose bands widen as they should."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from planner.scaling import laws, model_averaging
from planner.scaling import points as joined
from planner.scaling.best_split import best_split
from planner.scaling.holdout import holdout_splits
from planner.scaling.model_averaging import CANDIDATES, Mixture, MixtureForecast, fit_mixture, forecast_loss
from planner.scaling.points import Points, points
from planner.scaling.posterior import fit_law
from tests.support.ladders import BUDGETS, cloud, ladder, target, true_loss
from tests.support.needs import shared
from tests.support.paths import SHARED

SWEEP = SHARED / "facts/corpora.md"
DECADES = tuple(np.geomspace(1e9, 1e13, 13))
"""Thirteen budgets over four decades."""


def _forecast(runs: Points, size: float, tokens: float, draws: int = 300, seed: int = 0) -> MixtureForecast:
    return forecast_loss(fit_mixture(runs, draws=draws, seed=seed), size, tokens)


def _weight(mixture: Mixture, window: float | None) -> float:
    """Of all members on these decades."""
    return sum(float(w) for w, own in zip(mixture.weights, mixture.windows, strict=True) if own == window)


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


# --- members ---


def test_a_long_ladder_has_laws_of_its_last_decades_too() -> None:
    mixture = fit_mixture(ladder(DECADES), draws=100)
    assert set(mixture.windows) == {None, 1.3, 0.8}
    for window in (None, 1.3, 0.8):
        own = [law.law for law, at in zip(mixture.laws, mixture.windows, strict=True) if at == window]
        assert {law.form for law in own} == set(CANDIDATES)
        inside = mixture.runs.flop >= mixture.runs.flop.max() / 10 ** (window or 9)
        assert {len(law.relative_sd) for law in own} == {int(inside.sum())}
    assert mixture.weights.sum() == pytest.approx(1)
    assert mixture.counts.sum() == 100


@pytest.mark.parametrize(
    ("budgets", "sizes", "windows"),
    [
        (tuple(np.geomspace(1e12, 6e12, 5)), 5, {None}),  # shorter than a window
        (tuple(np.geomspace(1e9, 1e13, 5)), 7, {None}),  # two budgets in the last 1.3 decades
        (DECADES, 2, {None}),  # eight runs in the last 1.3 decades
        (DECADES, 3, {None, 1.3}),  # nine in the last .8, fifteen in the last 1.3
    ],
)
def test_short_or_thin_ladders_have_none(
    budgets: tuple[float, ...], sizes: int, windows: set[float | None]
) -> None:
    assert set(fit_mixture(ladder(budgets, sizes=sizes), draws=50).windows) == windows


def test_a_run_that_stands_alone_leaves_the_windows_where_its_ladder_ends() -> None:
    below, (size, tokens) = ladder(DECADES, noise=0.003, kink=-0.1), target(3e14)
    columns = [below.size, below.tokens, below.loss]
    joint = points(
        *(np.append(c, one) for c, one in zip(columns, (size, tokens, true_loss(size, tokens)), strict=True))
    )
    mixture = fit_mixture(joint, draws=200)
    assert set(mixture.windows) == {None, 1.3, 0.8}
    assert forecast_loss(mixture, size, tokens).median == pytest.approx(true_loss(size, tokens), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kink", [-0.1, -0.05, 0.05])
def test_where_small_runs_follow_another_law_the_last_decades_decide(
    kink: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forecast is nearer than that of the laws of all runs, and its band holds the truth."""
    runs, (size, tokens) = ladder(DECADES, noise=0.003, kink=kink, seed=1), target(1e14)
    mixture = fit_mixture(runs, draws=300)
    assert _weight(mixture, 1.3) + _weight(mixture, 0.8) > 0.9
    told, true = forecast_loss(mixture, size, tokens), true_loss(size, tokens)
    monkeypatch.setattr(model_averaging, "WINDOWS", ())
    without = _forecast(runs, size, tokens)
    assert {member.window for member in without.members} == {None}
    assert abs(np.log(told.median / true)) < 0.5 * abs(np.log(without.median / true))
    assert told.low_95 < true < told.high_95


def test_where_one_law_holds_throughout_all_runs_keep_their_say() -> None:
    mixture = fit_mixture(ladder(DECADES, noise=0.003), draws=100)
    assert _weight(mixture, None) > 0.2


def test_each_member_gives_its_share_of_the_draws() -> None:
    mixture = fit_mixture(ladder(DECADES, sizes=3), draws=250)
    per_law = [np.full(len(law.noise_sd), float(i)) for i, law in enumerate(mixture.laws)]
    mixed = mixture.mixed(per_law)
    assert len(mixed) == 250
    assert np.bincount(mixed.astype(int), minlength=len(mixture.laws)).tolist() == mixture.counts.tolist()
    assert mixture.counts / 250 == pytest.approx(mixture.weights, abs=1 / 250)


# --- weights ---


def test_a_members_error_is_that_of_its_fit_below_on_the_runs_above() -> None:
    runs = ladder()
    (split,) = holdout_splits(runs, 5)
    assert split.train.flop.max() < 5e11 < split.held_out.flop.min()
    mixture = fit_mixture(runs, draws=50)
    for law, error in zip(mixture.laws, mixture.held_out_errors, strict=True):
        below = fit_law(law.law.form, split.train)
        told = below.predict(split.held_out.size, split.held_out.tokens).log_loss
        assert error == pytest.approx(np.abs(np.log(split.held_out.loss) - told).mean(), rel=1e-3)


def test_a_law_refuted_by_held_out_budgets_loses_its_weight() -> None:
    mixture = fit_mixture(ladder(DECADES, noise=0.002), draws=50)
    weights = dict.fromkeys(CANDIDATES, 0.0)
    errors: dict[laws.Form, float] = {}
    for law, window, weight, error in zip(
        mixture.laws, mixture.windows, mixture.weights, mixture.held_out_errors, strict=True
    ):
        weights[law.law.form] += float(weight)
        if window is None:
            assert error is not None
            errors[law.law.form] = error
    assert weights[laws.STANDARD] < 0.01
    assert weights[laws.COUPLED] > 0.3
    assert errors[laws.COUPLED] < 0.005 < errors[laws.TIED]


def test_two_budgets_leave_nothing_to_hold_out_but_still_give_a_forecast() -> None:
    told = _forecast(ladder(BUDGETS[:2]), *target(1e12))
    assert told.held_out_error is None
    assert sum(member.weight for member in told.members) == pytest.approx(1)


# --- bands ---


@pytest.mark.slow
def test_ladders_like_the_demo_s_are_covered_within_five_per_cent() -> None:
    size, tokens = target(1e13)
    inside, half_widths = [], []
    for seed in range(10):
        told = _forecast(ladder(noise=0.01, seed=seed), size, tokens, draws=1000)
        true = true_loss(size, tokens) * np.exp(0.01 * np.random.default_rng([seed, 1]).standard_normal())
        inside.append(told.low_95 < true < told.high_95)
        half_widths.append(np.log(told.high_95 / told.low_95) / 2)
        assert told.low_95 < told.low_50 < told.median < told.high_50 < told.high_95
        assert told.extrapolation == pytest.approx(10)
    assert sum(inside) >= 9
    assert np.median(half_widths) < 0.05


@pytest.mark.parametrize(
    ("lowest", "highest", "at"),
    [(1e11, 1e12, 3e12), (1e11, 1e12, 1e13), (3e11, 3e12, 1e13), (3e11, 3e12, 3e13), (1e12, 1e13, 1e14)],
)
def test_the_measured_sweep_lies_inside_up_to_ten_times_beyond(
    lowest: float, highest: float, at: float
) -> None:
    sweep = _sweep()
    evidence = fit_mixture(
        sweep.take((sweep.flop > lowest * 0.99) & (sweep.flop < highest * 1.01)), draws=1000
    )
    there = np.flatnonzero(np.abs(sweep.flop / at - 1) < 0.01)
    planned = np.log(best_split(evidence, at)["size"].median)
    run = there[np.argmin(np.abs(np.log(sweep.size[there]) - planned))]
    told = forecast_loss(evidence, sweep.size[run], sweep.tokens[run])
    assert told.low_95 < sweep.loss[run] < told.high_95


def _width(evidence: Mixture, size: float, tokens: float) -> float:
    told = forecast_loss(evidence, size, tokens)
    return float(np.log(told.high_95 / told.low_95))


def test_a_band_widens_with_distance_and_noise() -> None:
    calm, noisy = (fit_mixture(ladder(noise=noise), draws=1000) for noise in (0.003, 0.03))
    assert _width(calm, *target(3e12)) < _width(calm, *target(1e13)) < _width(calm, *target(1e14))
    assert _width(calm, *target(1e13)) < _width(noisy, *target(1e13))


def test_a_band_widens_where_no_such_size_was_run_at_the_same_compute() -> None:
    """2.9 times beyond the largest size, or the longest run, of the largest budget."""
    runs = ladder(noise=0.003)
    evidence, inside = fit_mixture(runs, draws=500), target(1e12)
    larger, longer = 2.9 * runs.size.max(), 2.9 * runs.tokens.max()
    assert forecast_loss(evidence, *inside).discrepancy_sd == 0
    for size, tokens in ((larger, 1e12 / larger), (1e12 / longer, longer)):
        assert _width(evidence, size, tokens) > 1.5 * _width(evidence, *inside)
        assert forecast_loss(evidence, size, tokens).discrepancy_sd > 0
        assert forecast_loss(evidence, size, tokens).extrapolation == pytest.approx(1)


def test_the_targets_noise_is_that_of_the_largest_runs() -> None:
    noise = np.geomspace(0.03, 0.003, 10)
    runs = ladder(tuple(np.geomspace(1e10, 1e13, 10)), noise=noise, sizes=9, seed=1)
    assert _forecast(runs, *target(1e14)).noise_sd == pytest.approx(0.003, rel=0.5)


def test_the_floor_s_effect_is_shown() -> None:
    told = _forecast(ladder(), *target(1e14), draws=2000)
    assert told.floor.floor[0] < told.floor.floor[1] < told.floor.floor[2]
    assert told.floor.loss[0] < told.floor.loss[1] < told.floor.loss[2]


# --- many runs ---


@pytest.mark.slow
def test_many_runs_give_the_forecast_of_each_run_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined to bins, within a tenth of its band; in any order."""
    runs, there = cloud(1000), target(1e14)
    binned = _forecast(runs, *there, draws=200)
    turned = runs.take(np.random.default_rng(0).permutation(len(runs.loss)))
    assert _forecast(turned, *there, draws=200).median == pytest.approx(binned.median, rel=1e-6)
    monkeypatch.setattr(joined, "_MOST_BINS", 10**6)
    alone = _forecast(runs, *there, draws=200)
    half = np.log(alone.high_95 / alone.low_95) / 2
    assert abs(np.log(binned.median / alone.median)) < 0.1 * half
    assert np.log(binned.high_95 / binned.low_95) / 2 == pytest.approx(half, rel=0.2)
    assert binned.noise_sd == pytest.approx(alone.noise_sd, rel=0.02)


@pytest.mark.slow
def test_many_runs_give_the_same_bytes_whatever_the_threads_and_hash_seed() -> None:
    code = (
        "import hashlib\n"
        "from planner.scaling.model_averaging import fit_mixture, forecast_loss\n"
        "from tests.support.ladders import cloud\n"
        "mixture = fit_mixture(cloud(2000), draws=200)\n"
        "told = forecast_loss(mixture, 3e6, 3e7)\n"
        "drawn = [law.log_params.tobytes() for law in mixture.laws]\n"
        "print(hashlib.sha256(repr((told.low_95, told.median, told.floor, drawn)).encode()).hexdigest())"
    )
    digests = set()
    for threads, hash_seed in (("1", "1"), ("1", "2"), ("2", "2")):
        env = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONHASHSEED": hash_seed,
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
    assert len(digests.pop()) == hashlib.sha256().digest_size * 2


def test_same_runs_give_the_same_bytes() -> None:
    runs = ladder()
    first, second = (_forecast(runs, 1e6, 1e7) for _ in range(2))
    assert repr(first) == repr(second)
    assert repr(_forecast(runs, 1e6, 1e7, seed=1)) != repr(first)


def test_too_little_evidence_is_refused() -> None:
    with pytest.raises(ValueError, match="5 different runs at 1 budget, but"):
        fit_mixture(ladder((1e11,)))
    with pytest.raises(ValueError, match="6 different runs at 2 budgets, but a forecast needs at least 7"):
        fit_mixture(ladder(BUDGETS[:2], sizes=3))
