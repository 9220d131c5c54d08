"""A table's fit in the terminal: the law, the optimum, the forecasts, the backtest, and what weakens them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from specs.formatting import listed_members, member_name, small_members_name, text_of
from specs.humanize import count, flop_text, scientific, several
from specs.law import Band, Interval
from specs.table_fit import Backtest, BestSplit, SizeProfile, TableFit

_RUNS = 4
"""Held-out runs of a backtest that are printed; the report has more of them."""
_PROFILES = 8


def show(fit: TableFit, report: Path | None, console: Console) -> None:
    """Print what a person wants first; the report, if one was written, and --json hold everything."""
    console.print(f"[bold]{escape(Path(fit.table.path).name)}[/]  {_summary(fit)}", highlight=False)
    if fit.no_forecast is not None:
        console.print(f"[bold]law[/]  none: {escape(fit.no_forecast)}", highlight=False)
        _print_tables(console, [_profiles(fit)] if fit.profiles else [])
    else:
        _print_tables(console, [_law(fit)])
        console.print(Padding(escape(_heaviest(fit)), (0, 0, 1, 1)), highlight=False)
        _print_tables(console, [_optimum(fit)])
        console.print(Padding(_exponents(fit), (0, 0, 1, 1)), highlight=False)
        _print_tables(console, [_conventions(fit)] if fit.conventions else [])
        _print_tables(console, [_forecasts(fit)] if fit.forecasts else [])
        _print_tables(console, [_backtest(fit, one) for one in fit.backtests])
    _remarks(fit, console)
    if report is not None:
        console.print(f"report  {escape(str(report))}", highlight=False, soft_wrap=True)


def show_forecasts(fit: TableFit, console: Console) -> None:
    """Print the forecasts alone."""
    _print_tables(console, [_forecasts(fit)])


def _summary(fit: TableFit) -> str:
    flops, table = [run.compute_flop for run in fit.runs], fit.table
    return (
        f"{several(len(fit.runs), 'run')} at {several(fit.budgets, 'compute')}, {flop_text(min(flops))} to "
        f"{flop_text(max(flops))}; C = {table.compute_formula}, {table.symbol}: {table.size_name}, D: tokens; loss in "
        f"{table.loss_unit}{_curves(fit)}"
    )


def _curves(fit: TableFit) -> str:
    if fit.curves is None:
        return ""
    return f"; curves of {several(fit.curves.runs, 'run')}, {several(fit.curves.points, 'point')}"


def _law(fit: TableFit) -> Table:
    table = _table("law: its forms by weight", ("form", "weight", "held-out error"))
    listed, small = listed_members(fit.members)
    for member in listed:
        table.add_row(escape(member_name(member)), f"{member.weight:.2f}", _error(member.held_out_error))
    if small:
        table.add_row(small_members_name(small), f"{sum(one.weight for one in small):.2f}", "")
    table.add_row("all together", "", _error(fit.held_out_error))
    return table


def _heaviest(fit: TableFit) -> str:
    """The form of the largest weight in full."""
    member = fit.members[0]
    constants = ", ".join(_constant(name, ends) for name, ends in member.constants.items())
    return f"{member_name(member)}: {text_of(member.latex)}\n{constants}"


def _error(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _constant(name: str, ends: Interval) -> str:
    return f"{name} {ends.value:.3g} ({ends.low:.3g} to {ends.high:.3g})"


def _optimum(fit: TableFit) -> Table:
    symbol, doubt = fit.table.symbol, ", not known from these runs (see the flags)" if fit.open_split else ""
    loss = tuple(f"L*, {head}" for head in fit.table.losses.heads)
    table = _table(
        f"optimum: best split of a compute (95 %){doubt}",
        ("C, FLOP", f"{symbol}*", "D*", f"D*/{symbol}*", *loss),
    )
    for split in _shown(fit):
        table.add_row(
            scientific(split.compute_flop),
            *(_span(ends) for ends in (split.size, split.tokens, split.tokens_per_size)),
            *_loss_spans(fit, split.loss),
        )
    return table


def _shown(fit: TableFit) -> list[BestSplit]:
    """The ends of the range and what lies 1, 10 and 100 times at the largest compute."""
    wanted = [min(run.compute_flop for run in fit.runs), *(fit.largest_flop * k for k in (1, 10, 100))]
    return [
        split for split in fit.splits if any(abs(split.compute_flop / flop - 1) < 1e-9 for flop in wanted)
    ]


def _exponents(fit: TableFit) -> str:
    if fit.exponents is None:
        return ""
    size, tokens = fit.exponents.size, fit.exponents.tokens
    return (
        f"{fit.table.symbol}* ~ C^{size.value:.3f} ({size.low:.3f} to {size.high:.3f}), "
        f"D* ~ C^{tokens.value:.3f} ({tokens.low:.3f} to {tokens.high:.3f})"
    )


def _conventions(fit: TableFit) -> Table:
    """The split at each compute, as each convention has it."""
    table = _table(
        "optimum in other conventions of size and compute",
        ("convention", "a", "b", "at", "size*", "D*", "D*/size*"),
    )
    for one in fit.conventions:
        exponents = one.exponents
        heads = (one.name, f"{exponents.size.value:.3f}", f"{exponents.tokens.value:.3f}")
        for i, split in enumerate(one.splits):
            table.add_row(
                *(escape(head) if i == 0 else "" for head in heads),
                escape(split.at),
                *(count(ends.value) for ends in (split.size, split.tokens, split.tokens_per_size)),
            )
    return table


def _forecasts(fit: TableFit) -> Table:
    unit = fit.table.losses.heads
    heads = ("at", fit.table.symbol, "D", *unit, "50 %", "95 %")
    table = _table(f"forecast: final loss of one run, bands in {unit[0]}", heads)
    for one in fit.forecasts:
        table.add_row(
            one.target,
            count(one.size),
            count(one.tokens),
            *_losses(fit, one.loss.median),
            *_bands(fit, one.loss),
        )
    return table


def _backtest(fit: TableFit, test: Backtest) -> Table:
    unit = fit.table.losses.heads[0]
    table = _table(
        f"backtest: {several(len(test.runs), 'run')} within {test.window_text} of the largest compute, forecast "
        f"from {several(test.fitted_runs, 'run')} up to {flop_text(test.fitted_to_flop)}",
        ("run", "C, FLOP", f"{unit}, 95 %", "measured", "error", "inside"),
    )
    for run in test.runs[:_RUNS]:
        table.add_row(
            escape(run.name),
            scientific(run.compute_flop),
            f"{_shown_loss(fit, run.forecast.median)} ({_bands(fit, run.forecast)[1]})",
            _shown_loss(fit, run.measured),
            f"{run.error:+.2%}",
            "50 %" if run.inside_50 else "95 %" if run.inside_95 else "no",
        )
    if len(test.runs) > _RUNS:
        table.add_row(f"{len(test.runs) - _RUNS} more", *[""] * 5)
    table.caption = (
        f"mean error {test.mean_error:.2%}, bias {test.bias:+.2%}; {test.coverage_50:.0%} in the 50 % band, "
        f"{test.coverage_95:.0%} in the 95 % band; interval score {test.interval_score:.2%}"
    )
    return table


def _profiles(fit: TableFit) -> Table:
    symbol = fit.table.symbol
    loss = tuple(f"L*, {head}" for head in fit.table.losses.heads)
    table = _table(
        "isoFLOP profiles: lowest point (95 %)", ("C, FLOP", "runs", f"{symbol}*", "D*", *loss, "")
    )
    for profile in fit.profiles[-_PROFILES:]:
        table.add_row(
            scientific(profile.compute_flop),
            str(profile.runs),
            _profile_size(profile),
            count(profile.tokens),
            *_losses(fit, profile.loss),
            escape(profile.reason),
        )
    return table


def _profile_size(profile: SizeProfile) -> str:
    factor = profile.size_factor_95
    if factor is None:
        return count(profile.size)
    return f"{count(profile.size)} ({count(profile.size / factor)} to {count(profile.size * factor)})"


def _remarks(fit: TableFit, console: Console) -> None:
    remarks = [("flag", flag.message) for flag in fit.flags] + [("note", note) for note in fit.every_note]
    if not remarks:
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="yellow", no_wrap=True)
    table.add_column(overflow="fold")
    for kind, text in remarks:
        table.add_row(kind, escape(text))
    console.print(table, highlight=False)


def _table(title: str, heads: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left"
    )
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _print_tables(console: Console, tables: Sequence[Table]) -> None:
    for table in tables:
        console.print(table, highlight=False)


def _span(ends: Interval) -> str:
    return f"{count(ends.value)} ({count(ends.low)} to {count(ends.high)})"


def _losses(fit: TableFit, nats: float) -> Iterator[str]:
    """A loss in the table's unit, and in nats per token where that is another."""
    yield _shown_loss(fit, nats)
    if len(fit.table.losses.heads) > 1:
        yield f"{nats:.4f}"


def _loss_spans(fit: TableFit, ends: Interval) -> Iterator[str]:
    for middle, low, high in zip(
        *(_losses(fit, nats) for nats in (ends.value, ends.low, ends.high)), strict=True
    ):
        yield f"{middle} ({low} to {high})"


def _bands(fit: TableFit, band: Band) -> tuple[str, str]:
    """The 50 and the 95 % band in the table's unit."""
    return (
        f"{_shown_loss(fit, band.low_50)} to {_shown_loss(fit, band.high_50)}",
        f"{_shown_loss(fit, band.low_95)} to {_shown_loss(fit, band.high_95)}",
    )


def _shown_loss(fit: TableFit, nats: float) -> str:
    return f"{fit.table.losses.of(nats):.4f}"
