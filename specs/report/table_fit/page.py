"""The page of a table's fit: the law, the optimum, forecasts, the backtest, and the runs that they rest on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from specs.formatting import flop, half_width, percent, windows_text
from specs.humanize import count, several
from specs.report.figure_parts import Figure
from specs.report.html import Html, bullets, join, large_numbers, pairs, tag
from specs.report.law_parts import gauge
from specs.report.page_parts import document, place_of_figure, section, two_columns
from specs.report.run_figures import RateMap, RatePoint, TrainingCurve, envelope, rate_map, rates_and_batches
from specs.report.table_fit import figures, law_figures, tables
from specs.table_fit import TableFit

_BEYOND = 3.0
"""The law is drawn this far beyond the end of the curves."""


def render_table_fit(fit: TableFit, curves: Sequence[TrainingCurve] = ()) -> str:
    """The page as HTML, with training curves of the runs; the same fit and curves give the same bytes."""
    return document(f"{_name(fit)}, fit", _headline(fit), _sections(fit, curves))


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


def _sections(fit: TableFit, curves: Sequence[TrainingCurve]) -> Iterator[Html]:
    remarks = [("flag", flag.message) for flag in fit.flags] + [("note", note) for note in fit.every_note]
    yield section("Notes", bullets(remarks) if remarks else None)
    yield section(
        "Forecasts", tables.forecasts(fit), "Final loss of one run: median with the 50 and 95 % band."
    )
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
    yield two_columns(
        section(
            "Equal loss",
            place_of_figure("contours", law_figures.equal_loss(fit)),
            "Lines of equal loss by the law, without a run’s noise. The best split is where a line reaches furthest to "
            "the left.",
        ),
        section(
            "Training curves", place_of_figure("curves", _envelope(fit, curves)), _curves_note(fit, curves)
        ),
    )
    yield section(
        "Residuals",
        place_of_figure("residuals", law_figures.residuals(fit)),
        "Each run’s loss over that of the law, which is fitted on it too. A trend in compute or size is what the law "
        f"misses. Open dots: short runs.{_beyond(fit)}",
    )
    yield from _rates(fit)
    yield section(
        "Best split", tables.splits(fit), f"Medians with 95 % intervals; L* is without a run’s noise.{doubt}"
    )
    yield section(
        "Other conventions of size and compute",
        tables.conventions(fit),
        "The same runs and forms, fitted once more with size or compute counted otherwise. C is that of the best split "
        "by the table’s own convention, recounted.",
    )
    yield section("Forms of the law", tables.members(fit), _member_note(fit))
    yield section(
        "Profiles",
        tables.profiles(fit),
        "The lowest point of each parabola, with the 95 % interval of its size.",
    )
    yield from _held_out(fit)
    yield section("Runs", tables.runs(fit), _listed("Largest compute first.", len(fit.runs)))
    yield section("Provenance", pairs(_provenance(fit)))


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


def _envelope(fit: TableFit, curves: Sequence[TrainingCurve]) -> Figure | None:
    frontier = [(split.compute_flop, split.loss.value) for split in fit.splits]
    flops = [flop for curve in curves for flop in curve.flop]
    near = [(flop, loss) for flop, loss in frontier if not flops or flop <= max(flops) * _BEYOND]
    title = f"compute C = {fit.table.compute_formula.replace(' ', '·')}, FLOP"
    return envelope(curves, near, "the law at the best split", fit.table.losses, title)


def _curves_note(fit: TableFit, curves: Sequence[TrainingCurve]) -> str:
    if fit.curves is None:
        return ""
    drawn = "" if len(curves) == fit.curves.runs else f", {len(curves)} of them drawn"
    return (
        f"{several(fit.curves.runs, 'run')} with {several(fit.curves.points, 'point')}{drawn}, dark for large compute. "
        "The line is the law at the best split; curves reach it near their end, if the learning rate has decayed."
    )


def _beyond(fit: TableFit) -> str:
    beyond = law_figures.residuals_beyond(fit)
    return f" {several(beyond, 'run')} beyond the axis; the CSV has all." if beyond else ""


def _rates(fit: TableFit) -> Iterator[Html]:
    points = [
        RatePoint(run.size, run.tokens, run.lr, run.batch_tokens, run.loss)
        for run in fit.runs
        if not run.diverged and run.lr is not None and run.batch_tokens is not None
    ]
    found = rate_map(points)
    if found is not None:
        drawn = rates_and_batches(found, fit.table.losses)
        yield section("Learning rate and batch", place_of_figure("rates", drawn), _rates_note(fit, found))


def _rates_note(fit: TableFit, found: RateMap) -> str:
    size = f"{fit.table.symbol} {count(found.size)}, {count(found.tokens)} tokens"
    return f"The runs of {size}, the largest grid of the table: final loss, and by colour how far it is above the best."


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


def _held_out(fit: TableFit) -> Iterator[Html]:
    for test in fit.backtests[-1:]:
        title = f"Held-out runs, {test.window_text}"
        yield section(title, tables.held_out(fit, test), _listed("Largest compute first.", len(test.runs)))


def _listed(note: str, runs: int) -> str:
    return f"{note} {tables.MOST_ROWS} of {runs:,}; --json holds all." if runs > tables.MOST_ROWS else note


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


def _name(fit: TableFit) -> str:
    return Path(fit.table.path).name
