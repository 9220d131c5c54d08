"""A table of runs gives back the law that it was made from, tests itself on its own runs, and says what is missing."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from planner.scaling.diverged import UnusableLossesError, without_diverged
from planner.scaling.isoflop import budget_groups, fit_minima
from planner.scaling.laws import STANDARD, Array, optimum
from planner.scaling.laws import value as law_value
from planner.scaling.model_averaging import fit_mixture, forecast_loss
from planner.scaling.points import points
from planner.table_fit.analysis import analyse, default_target, table_points, table_source
from planner.table_fit.backtest import backtests
from planner.table_fit.flags import evidence_flags
from planner.table_fit.targets import ComputeTarget, RunTarget, Target, TargetError, parse_target, target_text
from planner.table_fit.terminal import show
from specs.report.table_fit.page import render_table_fit
from specs.run_table.table import RunTable
from specs.table_fit import FlagKind, TableFit
from tests.support.run_tables import run_table

TRUTH = (1.7, 400.0, 410.0, 0.34, 0.30)
"""E, A, B, alpha, beta."""
BUDGETS = tuple(1e18 * 4.0**i for i in range(5))


def loss_at(size: float, tokens: float) -> float:
    return float(law_value(STANDARD, TRUTH, size, tokens))


def ladder(budgets: tuple[float, ...] = BUDGETS, sizes: int = 7, noise: float = 0.001) -> RunTable:
    """isoFLOP profiles around the true best sizes."""
    generator = np.random.Generator(np.random.PCG64(7))
    rows = [
        (float(optimum(STANDARD, TRUTH, flop, 6.0)[0]) * factor, flop)
        for flop in budgets
        for factor in np.geomspace(0.25, 4, sizes)
    ]
    size, flop = np.array(rows).T
    tokens = flop / 6 / size
    loss = law_value(STANDARD, TRUTH, size, tokens) * np.exp(noise * generator.standard_normal(len(size)))
    return run_table(size, tokens, loss)


@pytest.fixture(scope="module")
def table() -> RunTable:
    return ladder()


@pytest.fixture(scope="module")
def fit(table: RunTable) -> TableFit:
    return analyse(table, [ComputeTarget(1e22), RunTarget(2e9, 4e10)])


def kinds(fit: TableFit) -> list[FlagKind]:
    return [flag.kind for flag in fit.flags]


def message(fit: TableFit, kind: FlagKind) -> str:
    return {flag.kind: flag.message for flag in fit.flags}[kind]


def flags(table: RunTable) -> dict[FlagKind, str]:
    """Flags of a table's runs, without fitting a law."""
    runs = table_points(table)
    minima = fit_minima(runs.size, runs.tokens, runs.loss, cost_per=runs.cost_per)
    found = evidence_flags(table, table_source(table), runs, (), minima, len(budget_groups(runs.flop)))
    return {flag.kind: flag.message for flag in found}


def test_a_table_made_from_a_law_gives_it_back(fit: TableFit) -> None:
    assert (len(fit.runs), fit.budgets, fit.flags) == (35, 5, ())
    assert fit.exponents is not None
    alpha, beta = TRUTH[3:]
    assert fit.exponents.size.low < beta / (alpha + beta) < fit.exponents.size.high
    for split in fit.splits:
        size, tokens, loss = optimum(STANDARD, TRUTH, split.compute_flop, 6.0)
        assert split.size.low < size < split.size.high
        assert split.tokens.low < tokens < split.tokens.high
        assert split.run.low_95 < loss < split.run.high_95
    for one in fit.forecasts:
        assert one.loss.inside_95(loss_at(one.size, one.tokens))
    assert sum(member.weight for member in fit.members) == pytest.approx(1)


def test_every_profile_has_its_minimum(fit: TableFit) -> None:
    assert [profile.compute_flop for profile in fit.profiles] == pytest.approx(BUDGETS)
    for profile in fit.profiles:
        assert profile.bracketed
        assert profile.size_factor_95 is not None
        truth = float(optimum(STANDARD, TRUTH, profile.compute_flop, 6.0)[0])
        assert abs(math.log(profile.size / truth)) < 0.15  # a parabola is not the law: biased (isoflop.py)


def test_best_splits_reach_100_times_beyond_the_runs(fit: TableFit) -> None:
    computes = [split.compute_flop for split in fit.splits]
    assert computes == sorted(computes)
    assert (computes[0], computes[-1]) == pytest.approx((BUDGETS[0], 100 * BUDGETS[-1]))


def test_residuals_and_the_surface_are_those_of_the_law(fit: TableFit) -> None:
    residuals = [run.residual for run in fit.runs if run.residual is not None]
    assert len(residuals) == len(fit.runs)
    assert np.std(residuals) == pytest.approx(0.001, rel=0.4)
    assert fit.surface is not None
    surface = np.array(fit.surface.loss)
    assert surface.shape == (len(fit.surface.size), len(fit.surface.compute_flop))
    rows = zip(fit.surface.compute_flop, surface.T.argmin(axis=1), strict=True)
    for flop, lowest in [row for row in rows if BUDGETS[0] < row[0] < BUDGETS[-1]]:
        best = float(optimum(STANDARD, TRUTH, flop, 6.0)[0])
        assert abs(math.log(fit.surface.size[lowest] / best)) < 0.5  # of a grid that is .3 apart


def test_the_forecast_is_the_one_of_every_other_command(table: RunTable, fit: TableFit) -> None:
    mixture = fit_mixture(points(table.size, table.tokens, table.loss, cost_per=6.0))
    for one in fit.forecasts:
        same = forecast_loss(mixture, one.size, one.tokens)
        found = one.loss
        assert (found.low_95, found.low_50, found.median, found.high_50, found.high_95) == (
            same.low_95, same.low_50, same.median, same.high_50, same.high_95,
        )  # fmt: skip
    at_compute, of_run = fit.forecasts
    assert at_compute.split is not None
    assert at_compute.size == at_compute.split.size.value
    assert at_compute.compute_flop == pytest.approx(1e22)
    assert at_compute.loss.median == pytest.approx(at_compute.split.run.median, rel=1e-12)
    assert (of_run.split, of_run.size, of_run.tokens) == (None, 2e9, 4e10)


def test_a_backtest_forecasts_only_runs_that_it_was_not_fitted_on(table: RunTable, fit: TableFit) -> None:
    assert [test.decades for test in fit.backtests] == [0.5, 1.0]
    for test in fit.backtests:
        edge = BUDGETS[-1] / 10**test.decades
        lines = {run.line for run in test.runs}
        assert lines == {run.line for run in fit.runs if run.compute_flop > 1.03 * edge}
        assert test.fitted_runs == len(fit.runs) - len(lines)
        assert test.fitted_to_flop < min(run.compute_flop for run in test.runs)
        others = np.array([line not in lines for line in table.line.tolist()])
        mixture = fit_mixture(
            points(table.size[others], table.tokens[others], table.loss[others], cost_per=6.0), draws=1000
        )
        first = test.runs[0]
        assert first.forecast.median == pytest.approx(
            forecast_loss(mixture, first.size, first.tokens).median, rel=1e-12
        )
        assert test.mean_error == pytest.approx(np.mean([abs(math.log1p(run.error)) for run in test.runs]))
        assert test.coverage_95 == np.mean([run.inside_95 for run in test.runs])
        assert test.coverage_95 > 0.8
        assert test.interval_score > 0


@pytest.mark.slow
def test_what_is_held_out_does_not_change_its_own_forecast(table: RunTable, fit: TableFit) -> None:
    largest = np.array([run.compute_flop > 0.9 * fit.largest_flop for run in fit.runs])
    other = analyse(replace(table, loss=np.where(largest, 1.02 * table.loss, table.loss)), [])
    for before, after in zip(fit.backtests[0].runs, other.backtests[0].runs, strict=True):
        assert before.forecast == after.forecast
        assert after.measured == pytest.approx(1.02 * before.measured)


def test_one_budget_shows_its_profile_and_no_forecast(tmp_path: Path) -> None:
    fit = analyse(ladder(BUDGETS[:1]), [ComputeTarget(1e22)])
    assert (fit.members, fit.splits, fit.forecasts, fit.backtests) == ((), (), (), ())
    assert fit.no_forecast is not None
    assert "1 budget" in fit.no_forecast
    assert len(fit.profiles) == 1
    assert kinds(fit) == ["one budget"]
    assert "Profiles, but no law" in render_table_fit(fit)
    printed = shown(fit, tmp_path)
    assert "isoFLOP profiles" in printed
    assert "law  none" in printed


def test_few_budgets_are_named() -> None:
    assert list(flags(ladder(BUDGETS[:3]))) == ["few budgets"]


@pytest.mark.slow
def test_runs_along_one_ray_leave_the_split_open(tmp_path: Path) -> None:
    size = np.geomspace(2e7, 2e9, 8)
    noise = np.exp(0.003 * np.random.Generator(np.random.PCG64(1)).standard_normal(8))
    table = run_table(size, 20 * size, noise * law_value(STANDARD, TRUTH, size, 20 * size))
    fit = analyse(table, [default_target(table)])
    assert "20 tokens per unit of N" in message(fit, "single ray")
    assert fit.open_split
    assert "open split" in kinds(fit)
    assert "not known from these runs" in shown(fit, tmp_path)
    assert "The runs leave it open" in render_table_fit(fit)
    [one] = fit.forecasts  # further along the ray, not at a split that the runs do not know
    assert one.tokens / one.size == pytest.approx(20)
    assert one.extrapolation == pytest.approx(10)
    assert one.loss.inside_95(loss_at(one.size, one.tokens))


@pytest.mark.parametrize(
    ("size", "tokens", "what"),
    [
        (np.full(12, 1e8), np.geomspace(1e8, 1e10, 12), "one size, N = 100M"),
        (np.geomspace(1e7, 1e9, 12), np.full(12, 1e9), "all runs have 1B tokens"),
    ],
)
def test_runs_that_vary_one_thing_are_a_ray_too(size: Array, tokens: Array, what: str) -> None:
    assert what in flags(run_table(size, tokens, law_value(STANDARD, TRUTH, size, tokens)))["single ray"]


@pytest.mark.slow
def test_a_diverged_run_is_named_and_left_out(table: RunTable, fit: TableFit) -> None:
    loss = table.loss.copy()
    loss[33] *= 1.5
    names = ("small",) * 33 + ("spiked", "last")
    found = analyse(replace(table, loss=loss, name=names), [])
    assert "run spiked (line 35)" in message(found, "diverged run")
    assert [run.name for run in found.runs if run.diverged] == ["spiked"]
    assert all(run.name != "spiked" for test in found.backtests for run in test.runs)
    assert "1 diverged run not drawn" in render_table_fit(found)


def test_short_runs_count_less(table: RunTable) -> None:
    steps = np.where(np.arange(len(table.loss)) < 7, 500.0, 5000.0)
    assert "7 of 35 runs" in flags(replace(table, steps=steps))["short runs"]


def test_a_minimum_that_is_not_bracketed_says_why(table: RunTable) -> None:
    kept = ~((table.line >= 2) & (table.line <= 5))  # the smaller half of the first budget
    assert "beyond the smallest size" in flags(only(table, kept))["unbracketed minimum"]


def test_a_table_with_another_compute_is_told_what_c_means(table: RunTable) -> None:
    own = replace(table, flop=1.2 * table.flop, columns=table.columns | {"flop": "total_flops"})
    found = flags(own)["compute"]
    assert "column total_flops" in found
    assert "1.2 times 6 N D" in found
    rounded = replace(table, flop=1.01 * table.flop, columns=table.columns | {"flop": "total_flops"})
    assert "compute" not in flags(rounded)


def test_repeated_text_counts_as_what_it_is_worth(table: RunTable) -> None:
    assert "repeated text" in flags(replace(table, unique_tokens=np.full(len(table.loss), 1e12)))


def test_too_few_larger_runs_have_no_backtest() -> None:
    fit = analyse(ladder(BUDGETS[:2], sizes=5), [])
    assert fit.backtests == ()
    assert kinds(fit) == ["few budgets", "no backtest"]


def test_smaller_runs_on_which_no_law_can_rest_give_no_backtest_and_refuse_no_table() -> None:
    """Of all runs most pairs fall; of those below the last budget all rise."""
    good = ladder()
    small = good.flop < 0.9 * good.flop.max()
    loss = np.where(small, 3.6 * (good.flop / good.flop.min()) ** 0.02, 0.85 * good.loss)
    runs = table_points(replace(good, loss=loss))
    with pytest.raises(UnusableLossesError):
        without_diverged(runs.take(np.flatnonzero(small)))
    reason = (
        "without those within 0.5 decades of the largest compute the losses rise with size and with tokens"
    )
    assert backtests(runs, [("a", 1)] * len(loss)) == ((), reason)


def test_a_compute_that_is_met_nearly_is_one_budget_and_its_losses_are_losses() -> None:
    """Along one compute a loss may rise with size and with tokens both: that makes no accuracy of it."""
    table = ladder(BUDGETS[:1])
    wobble = np.exp(0.004 * np.sin(np.arange(len(table.loss))))
    fit = analyse(replace(table, tokens=table.tokens * wobble), [])
    assert kinds(fit) == ["one budget"]


def test_perplexities_are_refused(table: RunTable) -> None:
    with pytest.raises(UnusableLossesError, match="perplexities"):
        analyse(replace(table, loss=np.exp(table.loss + 1)), [])


def test_json_holds_everything(fit: TableFit) -> None:
    plain = json.loads(fit.canonical_json())
    assert TableFit.model_validate_json(fit.canonical_json()) == fit
    assert len(plain["runs"]) == 35
    assert set(plain) >= {"members", "splits", "forecasts", "backtests", "profiles", "flags", "exponents"}
    assert all(math.isfinite(number) for number in numbers(plain))


def numbers(plain: object) -> Iterator[float]:
    if isinstance(plain, float):
        yield plain
    for one in plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ():
        yield from numbers(one)


def shown(fit: TableFit, folder: Path) -> str:
    with (folder / "shown.txt").open("w+") as file:
        show(fit, Path("fits/runs/fit.html"), Console(file=file, width=140))
        file.seek(0)
        return file.read()


def test_the_terminal_names_law_optimum_forecast_backtest_and_unit(fit: TableFit, tmp_path: Path) -> None:
    printed = shown(fit, tmp_path)
    for part in (
        "nats/token",
        "law:",
        "optimum",
        "N* ~ C^",
        "forecast:",
        "1e22 FLOP",
        "backtest:",
        "fit.html",
    ):
        assert part in printed


def test_a_table_of_sweeps_is_flagged(table: RunTable) -> None:
    swept = [np.repeat(getattr(table, name), 3) for name in ("size", "tokens", "loss")]
    rates = np.tile([5e-4, 1e-3, 2e-3], len(table.loss))
    assert "best run of each size and tokens" in flags(run_table(*swept, lr=rates))["sweep"]
    assert "sweep" not in flags(run_table(*swept, lr=np.full(len(rates), 1e-3)))
    assert "sweep" not in flags(replace(table, lr=np.geomspace(1e-4, 1e-3, len(table.loss))))


@pytest.mark.slow
def test_losses_are_shown_in_the_tables_unit(table: RunTable, tmp_path: Path) -> None:
    bytes_too = analyse(replace(table, loss_unit="bits/byte", bytes_per_token=4.0), [ComputeTarget(1e21)])
    printed = shown(bytes_too, tmp_path)
    assert "bits per byte" in printed
    nats = bytes_too.forecasts[0].loss.median
    assert f"{nats / math.log(2) / 4:.4f}" in printed
    assert f"{nats:.4f}" in printed


@pytest.mark.slow
def test_the_page_is_one_file_with_its_figures_and_escapes_names(table: RunTable) -> None:
    evil = "</script><script>alert(1)</script>"
    fit = analyse(replace(table, name=(evil,) * len(table.loss)), [ComputeTarget(1e22)])
    page = render_table_fit(fit)
    assert page == render_table_fit(fit)
    assert evil not in page
    for name in ("isoflop", "frontier", "size", "ratio", "backtest-1", "backtest-2", "contours", "residuals"):
        assert f'id="{name}"' in page
        assert f'data-figure="{name}"' in page


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("1e22 FLOP", "params", ComputeTarget(1e22)),
        ("10 ZFLOP", "block_params", ComputeTarget(1e22)),
        ("7e9 params 2e12 tokens", "params", RunTarget(7e9, 2e12)),
        ("7B params, 2T tokens", "block_params", RunTarget(7e9, 2e12)),
        ("42 GFLOP/token 2T tokens", "flop_per_token", RunTarget(4.2e10, 2e12)),
    ],
)
def test_targets_are_written_with_their_units(text: str, kind: str, target: Target) -> None:
    assert parse_target(text, kind) == target  # type: ignore[arg-type]
    assert parse_target(target_text(target, kind).replace(",", ""), kind) == target  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1e22", "params"),
        ("7B params", "params"),
        ("2T tokens", "params"),
        ("0 params 2T tokens", "params"),
        ("7B params 2T tokens", "flop_per_token"),
        ("42 GFLOP/token 2T tokens", "params"),
        ("many FLOP", "params"),
    ],
)
def test_other_targets_are_refused_with_what_to_write(text: str, kind: str) -> None:
    with pytest.raises(TargetError, match="write it like"):
        parse_target(text, kind)  # type: ignore[arg-type]


def only(table: RunTable, rows: NDArray[np.bool_]) -> RunTable:
    columns = {name: getattr(table, name)[rows] for name in ("line", "size", "tokens", "loss", "flop")}
    names = tuple(name for name, kept in zip(table.name, rows.tolist(), strict=True) if kept)
    return replace(table, name=names, **columns)
