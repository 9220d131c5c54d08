"""The page of a table's fit: the law, the optimum, forecasts, the backtest, and the runs that they rest on."""

from collections.abc import Iterator
from pathlib import Path

from specs.formatting import (
    flop,
    half_width,
    listed_members,
    member_name,
    percent,
    signed,
    small_members_name,
    windows_text,
)
from specs.humanize import count, several
from specs.law import Band, Interval
from specs.report import table_fit_figures as figures
from specs.report.headline import gauge, large_numbers
from specs.report.html import Html, bullets, join, pairs, tag
from specs.report.page_parts import document, place_of_figure, section, two_columns
from specs.report.tables import constants_text, dense, formula, weight_bar
from specs.table_fit import Backtest, BestSplit, TableFit, TableForecast

_MOST_ROWS = 200
"""Runs that a table of the page lists; --json holds all."""


def render_table_fit(fit: TableFit) -> str:
    """The page as HTML; the same fit gives the same bytes."""
    return document(f"{_name(fit)}, fit", _headline(fit), _sections(fit))


def _headline(fit: TableFit) -> Html:
    first = fit.forecasts[0] if fit.forecasts else None
    parts = [
        tag("p", "isoplan", tag("span", f"{_name(fit)} · fit"), class_="above"),
        tag("h1", _title(fit), class_="open"),
        tag("p", _question(fit), class_="lede"),
    ]
    if first is not None:
        parts.append(gauge(fit.table.losses, first.loss, None))
    return tag("header", *parts, large_numbers(_numbers(fit)))


def _title(fit: TableFit) -> str:
    if fit.no_forecast is not None:
        return "Profiles, but no law"
    if not fit.forecasts:
        return f"A law from {several(len(fit.runs), 'run')}"
    first = fit.forecasts[0]
    return f"{fit.table.losses.text(first.loss.median)} {fit.table.losses.unit} at {first.target}"


def _question(fit: TableFit) -> str:
    flops = [run.compute_flop for run in fit.runs]
    runs = (
        f"{several(len(fit.runs), 'run')} of {flop(min(flops))} to {flop(max(flops))}. C = {fit.table.compute_formula} "
        f"with {fit.table.symbol} in {fit.table.size_name} as the table counts them and D in tokens. "
    )
    if fit.no_forecast is not None:
        return f"{runs}No forecast: {fit.no_forecast}."
    if not fit.forecasts:
        return runs
    band, losses = fit.forecasts[0].loss, fit.table.losses
    return (
        f"{runs}One run of that forecast: 95 % interval {losses.text(band.low_95)} to {losses.text(band.high_95)} "
        f"{losses.unit}."
    )


def _numbers(fit: TableFit) -> Iterator[tuple[str, str]]:
    losses, symbol = fit.table.losses, fit.table.symbol
    for one in fit.forecasts[:2]:
        yield losses.text(one.loss.median), f"{losses.unit} at {one.target}, {half_width(one.loss)}"
    top = next((split for split in fit.splits if split.compute_flop == fit.largest_flop), None)
    if top is not None and not fit.open_split:
        ratio = top.tokens_per_size
        yield (
            f"{ratio.value:.3g}",
            f"best D/{symbol} at {flop(top.compute_flop)}, {ratio.low:.3g} to {ratio.high:.3g}",
        )
    if fit.exponents is not None and not fit.open_split:
        size = fit.exponents.size
        yield f"{size.value:.3f}", f"exponent of {symbol}* in C, {size.low:.3f} to {size.high:.3f}"
    for test in fit.backtests[-1:]:
        yield (
            percent(test.mean_error, 2),
            f"mean error on its {several(len(test.runs), 'largest run')}, held out",
        )
    yield f"{len(fit.runs)}", f"runs at {several(fit.budgets, 'compute')}"


def _sections(fit: TableFit) -> Iterator[Html]:
    remarks = [("flag", flag.message) for flag in fit.flags] + [("note", note) for note in fit.table.notes]
    yield section("Notes", bullets(remarks) if remarks else None)
    yield section("Forecasts", _forecasts(fit), "Final loss of one run: median with the 50 and 95 % band.")
    doubt = " The runs leave it open: see the flags." if fit.open_split else ""
    dropped = sum(run.diverged for run in fit.runs)
    not_drawn = f" {several(dropped, 'diverged run')} not drawn." if dropped else ""
    yield two_columns(
        section(
            "isoFLOP profiles",
            place_of_figure("isoflop", figures.isoflop(fit)),
            "Parabolas through the runs of one compute; diamonds: their minima. Open dots: short runs. Grey: runs of a "
            f"compute with fewer than three sizes.{not_drawn}",
        ),
        section(
            "Compute frontier",
            place_of_figure("frontier", figures.frontier(fit)),
            "The loss of one run at the best split of each compute, with its bands. Dotted: the table’s largest "
            "compute.",
        ),
    )
    yield two_columns(*_backtests(fit))
    yield two_columns(
        section(
            "Best size",
            place_of_figure("size", figures.best_size(fit)),
            "The size of the best split of each compute, with its 95 % interval. " + _exponents(fit),
        ),
        section(
            f"Tokens per {'unit of M' if fit.table.symbol == 'M' else 'parameter'}",
            place_of_figure("ratio", figures.tokens_per_size(fit)),
            "At the best split, with its 95 % interval.",
        ),
    )
    yield section(
        "Best split", _splits(fit), f"Medians with 95 % intervals; L* is without a run’s noise.{doubt}"
    )
    yield section("Forms of the law", _members(fit), _member_note(fit))
    yield section(
        "Profiles", _profiles(fit), "The lowest point of each parabola, with the 95 % interval of its size."
    )
    yield from _held_out(fit)
    yield section("Runs", _runs(fit), _listed("Largest compute first.", len(fit.runs)))
    yield section("Provenance", pairs(_provenance(fit)))


def _forecasts(fit: TableFit) -> Html | None:
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


def _backtests(fit: TableFit) -> Iterator[Html]:
    for i, test in enumerate(fit.backtests):
        note = (
            f"The runs within {test.window_text} of the largest compute, forecast from the {test.fitted_runs} "
            f"others, up to {flop(test.fitted_to_flop)}. {figures.coverage(test)}"
        )
        title = f"Backtest: its {several(len(test.runs), 'largest run')}"
        yield section(title, place_of_figure(f"backtest-{i + 1}", figures.backtest(fit, test)), note)


def _exponents(fit: TableFit) -> str:
    if fit.exponents is None:
        return ""
    size, tokens = fit.exponents.size, fit.exponents.tokens
    return (
        f"{fit.table.symbol}* grows as C to the {size.value:.3f} ({size.low:.3f} to {size.high:.3f}), D* to the "
        f"{tokens.value:.3f} ({tokens.low:.3f} to {tokens.high:.3f})."
    )


def _splits(fit: TableFit) -> Html | None:
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


def _members(fit: TableFit) -> Html | None:
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


def _member_note(fit: TableFit) -> str:
    windows = windows_text(fit.members)
    note = "Every forecast mixes these laws by their weights. "
    if fit.held_out_error is None:
        note += "No compute could be held out: the weights are the prior’s. "
    else:
        note += (
            "A law gains weight by how well it, fitted on the smaller computes, predicted the larger ones that were "
            f"held out; together they missed these by {percent(fit.held_out_error)} on average. "
        )
    return f"{note}{windows[0].upper()}{windows[1:]}." if windows else note


def _profiles(fit: TableFit) -> Html | None:
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
        for one in fit.profiles[-_MOST_ROWS:]
    ]
    return dense(heads, rows, text=("C", "minimum"))


def _held_out(fit: TableFit) -> Iterator[Html]:
    for test in fit.backtests[-1:]:
        title = f"Held-out runs, {test.window_text}"
        yield section(title, _held_out_rows(fit, test), _listed("Largest compute first.", len(test.runs)))


def _held_out_rows(fit: TableFit, test: Backtest) -> Html:
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
        for run in test.runs[:_MOST_ROWS]
    ]
    return dense(heads, rows, text=("run", "inside"))


def _runs(fit: TableFit) -> Html:
    heads = ("run", "line", fit.table.symbol, "D", "C", *fit.table.losses.heads, "")
    runs = sorted(fit.runs, key=lambda run: -run.compute_flop)[:_MOST_ROWS]
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


def _listed(note: str, runs: int) -> str:
    return f"{note} {_MOST_ROWS} of {runs:,}; --json holds all." if runs > _MOST_ROWS else note


def _provenance(fit: TableFit) -> Iterator[tuple[str, str]]:
    table = fit.table
    yield "table", table.path
    yield "digest", tag("code", table.sha256)
    yield "columns", join((f"{quantity}: {column}" for quantity, column in table.columns.items()), ", ")
    yield (
        "losses",
        f"in {table.loss_unit}"
        + ("" if table.bytes_per_token is None else f", {table.bytes_per_token:.4g} bytes per token"),
    )
    yield "compute", f"C = {table.compute_formula}"


def _bands(fit: TableFit, band: Band) -> tuple[str, str]:
    text = fit.table.losses.text
    return f"{text(band.low_50)} to {text(band.high_50)}", f"{text(band.low_95)} to {text(band.high_95)}"


def _span(ends: Interval) -> str:
    return f"{count(ends.value)} ({count(ends.low)} to {count(ends.high)})"


def _name(fit: TableFit) -> str:
    return Path(fit.table.path).name
