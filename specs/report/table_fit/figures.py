"""Figures of a table's fit: isoFLOP profiles, the frontier with its bands, the best split, held-out runs."""

import math
from collections.abc import Callable, Iterator, Sequence

from specs.formatting import flop, percent, signed
from specs.humanize import count
from specs.law import Interval
from specs.report import figure_parts
from specs.report.figure_parts import ACTUAL, BAND_50, BAND_95, FORECAST, GREY, INK, Figure, Trace
from specs.table_fit import Backtest, BacktestRun, SizeProfile, TableFit, TableRun

_FAINT = "#c3c9d0"
_LABELLED = 10
"""With more profiles than this, none is labelled and only those with a minimum are drawn as lines."""
_MOST_RUNS = 200
"""Held-out runs that a figure shows, spread evenly over their forecasts."""
_VAGUE = 3.0
"""A minimum whose size is known to no better than this factor is not drawn."""
_DIAMOND = {"symbol": "diamond", "size": 11, "line": {"color": "#fff", "width": 1.5}}


def isoflop(fit: TableFit) -> Figure:
    """Loss against size: runs by compute, with the parabola and the minimum of each bracketed profile."""
    runs = _drawn_runs(fit)
    profiles = [profile for profile in fit.profiles if _runs_of(profile, runs)]
    loose = [run for run in runs if not any(_near(run, profile) for profile in profiles)]
    drawn = [_dots(fit, loose, _FAINT, 6) | {"name": "other runs"}] if loose else []
    few = len(profiles) <= _LABELLED
    for i, profile in enumerate(profiles):
        own = sorted(_runs_of(profile, runs), key=lambda run: run.size)
        drawn += _profile(fit, profile, own, figure_parts.budget_colour(i, len(profiles)), few)
    sizes = [run.size for run in runs]
    room = [min(sizes), max(sizes) * (max(sizes) / min(sizes)) ** 0.2]
    return figure_parts.figure(
        drawn,
        figure_parts.amount_axis(f"{fit.table.symbol}, {fit.table.size_name}", room),
        figure_parts.loss_axis(f"loss, {fit.table.losses.unit}", [fit.table.losses.of(r.loss) for r in runs]),
        showlegend=False,
    )


def frontier(fit: TableFit) -> Figure | None:
    """Loss against compute: the runs, the minima, and the bands of a run at the best split; None without a law."""
    if not fit.splits:
        return None
    shown, runs = fit.table.losses.of, _drawn_runs(fit)
    x = [split.compute_flop for split in fit.splits]
    ends = {
        name: [shown(getattr(split.run, name)) for split in fit.splits]
        for name in ("low_95", "low_50", "median", "high_50", "high_95")
    }
    texts = [
        f"{flop(split.compute_flop)}: {_loss(fit, split.run.median)} at {fit.table.symbol} {count(split.size.value)}, "
        f"{count(split.tokens.value)} tokens"
        for split in fit.splits
    ]
    middle = figure_parts.line(x, ends["median"], FORECAST, "a run at the best split")
    drawn = [
        figure_parts.band(x, ends["low_95"], ends["high_95"], BAND_95, "95 %"),
        figure_parts.band(x, ends["low_50"], ends["high_50"], BAND_50, "50 %"),
        _dots(fit, runs, _FAINT, 6)
        | {"x": [run.compute_flop for run in runs], "name": "runs", "showlegend": True},
        middle | figure_parts.hover_text(texts),
        *_minima(fit),
        *_targets(fit),
    ]
    flops = [*x, *(run.compute_flop for run in runs), *(one.compute_flop for one in fit.forecasts)]
    heights = [shown(run.loss) for run in runs] + ends["low_95"]
    heights += [shown(end) for one in fit.forecasts for end in (one.loss.low_95, one.loss.high_95)]
    return figure_parts.figure(
        drawn,
        figure_parts.amount_axis(_compute_title(fit), [min(flops), max(flops) * 2], powers=True),
        figure_parts.loss_axis(f"loss, {fit.table.losses.unit}", heights),
        shapes=[_end_of_runs(fit)],
    )


def best_size(fit: TableFit) -> Figure | None:
    """Best size against compute, with its 95 % interval, the runs, and the minima of the profiles."""
    runs = _drawn_runs(fit)
    x, y = [run.compute_flop for run in runs], [run.size for run in runs]
    dots = figure_parts.dots(x, y, _FAINT, "runs", [_hover(fit, run) for run in runs], size=5)
    title = f"{fit.table.symbol}*, {fit.table.size_name}"
    return _against_compute(
        fit, title, [one.size for one in fit.splits], lambda profile: profile.size, [dots], y
    )


def tokens_per_size(fit: TableFit) -> Figure | None:
    """Best tokens per unit of size against compute, with its 95 % interval, and the minima of the profiles."""
    title = f"D* / {fit.table.symbol}*"
    ratios = [one.tokens_per_size for one in fit.splits]
    return _against_compute(fit, title, ratios, lambda profile: profile.tokens / profile.size, [], [])


def _against_compute(
    fit: TableFit,
    title: str,
    best: Sequence[Interval],
    at: Callable[[SizeProfile], float],
    below: Sequence[Trace],
    heights: Sequence[float],
) -> Figure | None:
    """A quantity of the best split, `at` each profile's minimum too, on top of other traces; None without a law."""
    if not best:
        return None
    x = [one.compute_flop for one in fit.splits]
    texts = [
        f"{flop(c)}: {count(ends.value)} ({count(ends.low)} to {count(ends.high)})"
        for c, ends in zip(x, best, strict=True)
    ]
    held = _minima_of(fit)
    y = [at(profile) for profile in held]
    middle = figure_parts.line(x, [ends.value for ends in best], FORECAST, "best split")
    minima = figure_parts.dots(
        [one.compute_flop for one in held],
        y,
        INK,
        "isoFLOP minima",
        [f"{flop(one.compute_flop)}: {count(place)}" for one, place in zip(held, y, strict=True)],
        **_DIAMOND,
    )
    drawn = [
        figure_parts.band(x, [ends.low for ends in best], [ends.high for ends in best], BAND_95, "95 %"),
        *below,
        middle | figure_parts.hover_text(texts),
        *([minima] if held else []),
    ]
    ends = [end for one in best for end in (one.low, one.high)]
    return figure_parts.figure(
        drawn,
        figure_parts.amount_axis(_compute_title(fit), x, powers=True),
        figure_parts.amount_axis(title, [*ends, *y, *heights]),
        shapes=[_end_of_runs(fit)],
    )


def backtest(fit: TableFit, test: Backtest) -> Figure:
    """Held-out runs: measured against forecast, as deviation from the forecast's median, with both bands."""
    runs = sorted(test.runs, key=lambda run: run.forecast.median)
    every = math.ceil(len(runs) / _MOST_RUNS)
    runs = runs[::every]
    x = [fit.table.losses.of(run.forecast.median) for run in runs]
    texts = [
        f"{run.name}, {flop(run.compute_flop)}: forecast {_loss(fit, run.forecast.median)}, measured "
        f"{fit.table.losses.text(run.measured)}, {signed(run.error)}"
        for run in runs
    ]
    look = {"line": {"color": "#fff", "width": 1}}
    drawn = [
        _bars(x, runs, "low_95", "high_95", 2.0, "95 % band"),
        _bars(x, runs, "low_50", "high_50", 6.0, "50 % band"),
        figure_parts.dots(x, [100 * run.error for run in runs], ACTUAL, "measured", texts, size=8, **look),
    ]
    return figure_parts.figure(
        drawn,
        figure_parts.linear(f"forecast, {fit.table.losses.unit}", nticks=7),
        figure_parts.linear(
            "measured against forecast", ticksuffix=" %", zeroline=True, zerolinecolor=FORECAST, nticks=8
        ),
    )


def _profile(
    fit: TableFit, profile: SizeProfile, runs: Sequence[TableRun], colour: str, few: bool
) -> Iterator[Trace]:
    """One compute: its runs, its parabola and minimum; where there are few, a dotted line for none, and its name."""
    shown, name = fit.table.losses.of, flop(profile.compute_flop)
    x, y = [run.size for run in runs], [shown(run.loss) for run in runs]
    clear = profile in _minima_of(fit)
    if clear:
        yield _parabola(fit, profile, x, colour) | {"name": f"parabola of {name}"}
    elif few:
        yield figure_parts.line(x, y, colour, width=1.5, dash="dot") | {"name": f"runs of {name}, joined"}
    yield _dots(fit, runs, colour, 8) | {"name": f"runs of {name}"}
    if clear:
        best = f"{fit.table.symbol} {count(profile.size)}"
        text = f"{name}: lowest at {best}, {_loss(fit, profile.loss)}"
        lowest = figure_parts.dots([profile.size], [shown(profile.loss)], INK, None, [text], **_DIAMOND)
        yield lowest | {"name": f"minimum of {name}"}
    if few:
        missing = "" if clear else "<br>   no minimum"
        yield figure_parts.label(x[-1], y[-1], name + missing, colour, "middle right")


def _parabola(fit: TableFit, profile: SizeProfile, sizes: Sequence[float], colour: str) -> Trace:
    low, high, centre = math.log(min(sizes)), math.log(max(sizes)), math.log(profile.size)
    logs = [low + (high - low) * i / 40 for i in range(41)]
    losses = [profile.loss * math.exp(profile.curvature / 2 * (v - centre) ** 2) for v in logs]
    return figure_parts.line(
        [math.exp(v) for v in logs], [fit.table.losses.of(loss) for loss in losses], colour
    )


def _minima_of(fit: TableFit) -> list[SizeProfile]:
    """Profiles whose minimum says something."""
    return [
        one
        for one in fit.profiles
        if one.bracketed and (one.size_factor_95 is None or one.size_factor_95 < _VAGUE)
    ]


def _dots(fit: TableFit, runs: Sequence[TableRun], colour: str, size: int) -> Trace:
    """Runs against their size; open dots are short runs."""
    fills = ["#fff" if run.short else colour for run in runs]
    return figure_parts.dots(
        [run.size for run in runs],
        [fit.table.losses.of(run.loss) for run in runs],
        colour,
        None,
        [_hover(fit, run) for run in runs],
        color=fills,
        line={"color": colour, "width": 1.5},
        size=size,
    )


def _hover(fit: TableFit, run: TableRun) -> str:
    short = ", a short run" if run.short else ""
    place = f"{fit.table.symbol} {count(run.size)}, {count(run.tokens)} tokens"
    return f"{run.name}: {_loss(fit, run.loss)} at {place}{short}"


def _minima(fit: TableFit) -> Iterator[Trace]:
    held = _minima_of(fit)
    if held:
        yield figure_parts.dots(
            [one.compute_flop for one in held],
            [fit.table.losses.of(one.loss) for one in held],
            INK,
            "isoFLOP minima",
            [f"{flop(one.compute_flop)}: lowest {_loss(fit, one.loss)}" for one in held],
            **_DIAMOND,
        )


def _targets(fit: TableFit) -> Iterator[Trace]:
    """The forecasts that were asked for, an upright bar for each band."""
    shown = fit.table.losses.of
    for i, one in enumerate(fit.forecasts):
        x, loss = one.compute_flop, one.loss
        yield figure_parts.bar(
            x, shown(loss.low_95), shown(loss.high_95), 2, None if i else "forecast, 50 and 95 %", FORECAST
        )
        yield figure_parts.bar(x, shown(loss.low_50), shown(loss.high_50), 7, None, FORECAST)
        median = {"symbol": "line-ew-open", "size": 5, "line": {"width": 1.5}}
        text = f"{one.target}: {_loss(fit, loss.median)}"
        yield figure_parts.dots([x], [shown(loss.median)], "#fff", None, [text], **median)


def _bars(
    x: Sequence[float], runs: Sequence[BacktestRun], low: str, high: str, width: float, name: str
) -> Trace:
    """One band of every run, relative to its median in per cent, as one trace with gaps."""
    places: list[float | None] = []
    heights: list[float | None] = []
    for at, run in zip(x, runs, strict=True):
        ends = [100 * (getattr(run.forecast, end) / run.forecast.median - 1) for end in (low, high)]
        places += [at, at, None]
        heights += [*ends, None]
    style = {"color": FORECAST, "width": width}
    trace: Trace = {"x": places, "y": heights, "mode": "lines", "line": style, "opacity": 0.35}
    return trace | {"name": name, "hoverinfo": "skip"}


def _end_of_runs(fit: TableFit) -> dict[str, object]:
    """An upright line where the table's runs end and the extrapolation begins."""
    look = {"color": GREY, "width": 1, "dash": "dot"}
    at = fit.largest_flop
    return {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": look}


def _compute_title(fit: TableFit) -> str:
    return f"compute C = {fit.table.compute_formula.replace(' ', '·')}, FLOP"


def _drawn_runs(fit: TableFit) -> list[TableRun]:
    """Without the diverged, which would flatten all others."""
    return [run for run in fit.runs if not run.diverged]


def _runs_of(profile: SizeProfile, runs: Sequence[TableRun]) -> list[TableRun]:
    return [run for run in runs if _near(run, profile)]


def _near(run: TableRun, profile: SizeProfile) -> bool:
    """Whether a run is of a profile's compute."""
    return run.budget == profile.budget


def _loss(fit: TableFit, nats: float) -> str:
    return f"{fit.table.losses.text(nats)} {fit.table.losses.unit}"


def coverage(test: Backtest) -> str:
    """How a backtest came out, in a sentence."""
    return (
        f"Mean error {percent(test.mean_error, 2)}, bias {signed(test.bias)}; {percent(test.coverage_50, 0)} of the "
        f"runs are inside the 50 % band and {percent(test.coverage_95, 0)} inside the 95 % band; interval score "
        f"{percent(test.interval_score, 2)}."
    )
