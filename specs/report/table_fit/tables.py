"""Tables of the page of a table's fit."""

from collections.abc import Iterator

from specs.formatting import flop, listed_members, member_name, percent, signed, small_members_name
from specs.humanize import count
from specs.law import Band, Interval
from specs.report.html import Html, dense, tag
from specs.report.law_parts import constants_text, formula, weight_bar
from specs.table_fit import Backtest, BestSplit, Convention, TableFit, TableForecast

MOST_ROWS = 200
"""Runs that a table of the page lists; --json holds all."""


def forecasts(fit: TableFit) -> Html | None:
    """The loss at each target with its bands."""
    if not fit.forecasts:
        return None
    heads = (
        "at",
        fit.table.symbol,
        "D",
        "C",
        *fit.table.losses.heads,
        "50 %",
        "95 %",
        "of the largest run",
        "noise",
    )
    rows = [
        (
            one.target,
            count(one.size),
            count(one.tokens),
            flop(one.compute_flop),
            *fit.table.losses.cells(one.loss.median),
            *_bands(fit, one.loss),
            f"{one.extrapolation:.3g}×",
            _errors(one),
        )
        for one in fit.forecasts
    ]
    return dense((*heads[:-1], "noise, extrapolation"), rows, text=("at",))


def _errors(one: TableForecast) -> str:
    """The two errors that no form has, as standard deviations."""
    return f"{percent(one.noise_sd, 2)}, {percent(one.extrapolation_sd, 2)}"


def conventions(fit: TableFit) -> Html | None:
    """The best split in each convention of size and compute."""
    if not fit.conventions:
        return None
    heads = ("convention", "a of size", "b of tokens", "at", "C", "best size", "D*", "D* per size")
    rows = [row for one in fit.conventions for row in _convention(one)]
    return dense(heads, rows, text=("convention", "at"))


def _convention(one: Convention) -> Iterator[tuple[str, ...]]:
    exponents = (_exponent(one.exponents.size), _exponent(one.exponents.tokens))
    for i, split in enumerate(one.splits):
        yield (
            *((one.name, *exponents) if i == 0 else ("", "", "")),
            split.at,
            flop(split.compute_flop),
            *(_span(ends) for ends in (split.size, split.tokens, split.tokens_per_size)),
        )


def _exponent(ends: Interval) -> str:
    return f"{ends.value:.3f} ({ends.low:.3f} to {ends.high:.3f})"


def splits(fit: TableFit) -> Html | None:
    """The best split of each compute."""
    if not fit.splits:
        return None
    symbol = fit.table.symbol
    heads = ("C, FLOP", f"{symbol}*", "D*", f"D*/{symbol}*", f"L*, {fit.table.losses.unit}")
    return dense(heads, [_split(fit, split) for split in fit.splits[::2]], text=())


def _split(fit: TableFit, split: BestSplit) -> tuple[str, ...]:
    losses = fit.table.losses
    return (
        flop(split.compute_flop).removesuffix(" FLOP"),
        *(_span(ends) for ends in (split.size, split.tokens, split.tokens_per_size)),
        f"{losses.text(split.loss.value)} ({losses.text(split.loss.low)} to {losses.text(split.loss.high)})",
    )


def members(fit: TableFit) -> Html | None:
    """The laws of the mixture, those of small weight in one line."""
    if not fit.members:
        return None
    last = "constants with 95 % interval"
    listed, small = listed_members(fit.members)
    rows: list[tuple[str, ...]] = [
        (
            member_name(member),
            formula(member.latex.removeprefix("L = ")),
            "–" if member.held_out_error is None else percent(member.held_out_error),
            weight_bar(member.weight),
            tag("small", constants_text(member.constants)),
        )
        for member in listed
    ]
    if small:
        rows.append((small_members_name(small), "", "", weight_bar(sum(one.weight for one in small)), ""))
    return dense(("form", "L =", "held-out error", "weight", last), rows, text=("form", "L =", last))


def profiles(fit: TableFit) -> Html | None:
    """The lowest point of each isoFLOP profile."""
    if not fit.profiles:
        return None
    symbol = fit.table.symbol
    heads = ("C", "runs", f"{symbol}*", "95 %", "D*", *fit.table.losses.heads, "minimum")
    rows = [
        (
            flop(one.compute_flop),
            str(one.runs),
            count(one.size),
            "–"
            if one.size_factor_95 is None
            else f"{count(one.size / one.size_factor_95)} to {count(one.size * one.size_factor_95)}",
            count(one.tokens),
            *fit.table.losses.cells(one.loss),
            one.reason or "bracketed",
        )
        for one in fit.profiles[-MOST_ROWS:]
    ]
    return dense(heads, rows, text=("C", "minimum"))


def held_out(fit: TableFit, test: Backtest) -> Html:
    """The held-out runs of a backtest."""
    losses = fit.table.losses
    heads = (
        "run",
        "C",
        fit.table.symbol,
        "D",
        f"forecast, {losses.unit}",
        "50 %",
        "95 %",
        "measured",
        "error",
        "inside",
    )
    rows = [
        (
            run.name,
            flop(run.compute_flop),
            count(run.size),
            count(run.tokens),
            losses.text(run.forecast.median),
            *_bands(fit, run.forecast),
            losses.text(run.measured),
            signed(run.error),
            "50 %" if run.inside_50 else "95 %" if run.inside_95 else tag("span", "outside", class_="no"),
        )
        for run in test.runs[:MOST_ROWS]
    ]
    return dense(heads, rows, text=("run", "inside"))


def runs(fit: TableFit) -> Html:
    """The runs, largest compute first."""
    heads = ("run", "line", fit.table.symbol, "D", "C", *fit.table.losses.heads, "")
    runs = sorted(fit.runs, key=lambda run: -run.compute_flop)[:MOST_ROWS]
    rows = [
        (
            run.name,
            str(run.line),
            count(run.size),
            count(run.tokens),
            flop(run.compute_flop),
            *fit.table.losses.cells(run.loss),
            "diverged, left out" if run.diverged else "short" if run.short else "",
        )
        for run in runs
    ]
    return dense(heads, rows, text=("run", ""))


def _bands(fit: TableFit, band: Band) -> tuple[str, str]:
    text = fit.table.losses.text
    return f"{text(band.low_50)} to {text(band.high_50)}", f"{text(band.low_95)} to {text(band.high_95)}"


def _span(ends: Interval) -> str:
    return f"{count(ends.value)} ({count(ends.low)} to {count(ends.high)})"
