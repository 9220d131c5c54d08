"""Figures of a law on a table's runs: lines of equal loss with the frontier, and what the law misses of each run."""

from collections.abc import Sequence
from math import ceil, floor, log10

from specs.formatting import flop, signed
from specs.humanize import count
from specs.report import figure_parts
from specs.report.figure_parts import ACTUAL, BAND_95, FORECAST, GREY, Figure, Trace
from specs.table_fit import TableFit, TableRun

_LINES = 16
"""Of equal loss, about, up to that of most runs."""
_MOST, _TIMES = 0.9, 4.0
"""Lines of equal loss are for this share of the runs, and an axis of residuals ends at so many times what it lies
within: a few runs that did badly would flatten all others."""


def equal_loss(fit: TableFit) -> Figure | None:
    """Size against compute: lines of equal loss, the best splits through their lowest points, runs and targets."""
    surface = fit.surface
    if surface is None or not fit.splits:
        return None
    shown = fit.table.losses
    lines: Trace = {
        "type": "contour",
        "x": list(surface.compute_flop),
        "y": list(surface.size),
        "z": [[shown.of(loss) for loss in row] for row in surface.loss],
        "autocontour": False,
        "contours": {"coloring": "lines", "showlabels": True, "labelfont": {"size": 11}, **_levels(fit)},
        "line": {"width": 1},
        "colorscale": [[0, FORECAST], [1, "#c3c9d0"]],
        "colorbar": {"title": {"text": f"loss, {shown.unit}"}},
        "showscale": False,
        "name": "equal loss",
        "hovertemplate": f"%{{z:.4g}} {shown.unit} at %{{x:.3g}} FLOP, {fit.table.symbol} %{{y:.3g}}<extra></extra>",
    }
    x, best = [split.compute_flop for split in fit.splits], [split.size for split in fit.splits]
    runs = [run for run in fit.runs if not run.diverged]
    dots = figure_parts.dots(
        [run.compute_flop for run in runs],
        [run.size for run in runs],
        GREY,
        "runs",
        [_hover(fit, run) for run in runs],
        size=5,
    )
    drawn = [
        lines,
        figure_parts.band(x, [ends.low for ends in best], [ends.high for ends in best], BAND_95, "95 %"),
        dots,
        figure_parts.line(x, [ends.value for ends in best], ACTUAL, "best split"),
    ]
    if fit.forecasts:
        drawn.append(
            figure_parts.dots(
                [one.compute_flop for one in fit.forecasts],
                [one.size for one in fit.forecasts],
                ACTUAL,
                "forecast",
                [f"{one.target}: {shown.text(one.loss.median)} {shown.unit}" for one in fit.forecasts],
                symbol="diamond",
                size=11,
            )
        )
    return figure_parts.figure(
        drawn,
        _inside(
            figure_parts.amount_axis(_compute(fit), surface.compute_flop, powers=True), surface.compute_flop
        ),
        _inside(
            figure_parts.amount_axis(f"{fit.table.symbol}, {fit.table.size_name}", surface.size), surface.size
        ),
    )


def _levels(fit: TableFit) -> dict[str, float]:
    """Losses of the lines, a round number apart."""
    assert fit.surface is not None
    shown = fit.table.losses.of
    low = shown(min(loss for row in fit.surface.loss for loss in row))
    losses = sorted(shown(run.loss) for run in fit.runs if not run.diverged)
    high = max(losses[int(_MOST * (len(losses) - 1))], 1.05 * low)
    tenth = 10.0 ** floor(log10((high - low) / _LINES))
    step = next(tenth * times for times in (1, 2, 5, 10) if tenth * times >= (high - low) / _LINES)
    return {"start": ceil(low / step) * step, "end": high, "size": step}


def residuals(fit: TableFit) -> Figure | None:
    """What each run came to over what the law says, against compute and against size; None without a law."""
    runs = [run for run in fit.runs if not run.diverged and run.residual is not None]
    if not runs:
        return None
    y = [100 * (run.residual or 0.0) for run in runs]
    fills = ["#fff" if run.short else FORECAST for run in runs]
    look = {"size": 6, "color": fills, "line": {"color": FORECAST, "width": 1}}
    texts = [_hover(fit, run) for run in runs]
    end = _end_of_axis(y)
    ends = {"range": [-end, end]} if end < max(map(abs, y)) else {}
    flops, sizes = [run.compute_flop for run in runs], [run.size for run in runs]
    left = figure_parts.dots(flops, y, FORECAST, None, texts, **look)
    right = figure_parts.on(figure_parts.dots(sizes, y, FORECAST, None, texts, **look), x="x2")
    size = figure_parts.amount_axis(f"{fit.table.symbol}, {fit.table.size_name}", sizes)
    return figure_parts.figure(
        [trace | {"name": "runs", "cliponaxis": True} for trace in (left, right)],
        figure_parts.amount_axis(_compute(fit), flops, powers=True) | {"domain": [0.0, 0.48]},
        figure_parts.linear(
            "measured over the law", ticksuffix=" %", zeroline=True, zerolinecolor=ACTUAL, nticks=8, **ends
        ),
        xaxis2=size | {"domain": [0.52, 1.0], "anchor": "y"},
        showlegend=False,
    )


def residuals_beyond(fit: TableFit) -> int:
    """Runs whose residual lies beyond the axis."""
    y = [100 * run.residual for run in fit.runs if not run.diverged and run.residual is not None]
    end = _end_of_axis(y) if y else 0.0
    return sum(abs(value) > end for value in y)


def _end_of_axis(y: Sequence[float]) -> float:
    return _TIMES * sorted(map(abs, y))[int(_MOST * (len(y) - 1))]


def _inside(axis: dict[str, object], values: Sequence[float]) -> dict[str, object]:
    """The axis without a margin: beyond a surface there is nothing."""
    return axis | {"range": [log10(values[0]), log10(values[-1])]}


def _hover(fit: TableFit, run: TableRun) -> str:
    shown = fit.table.losses
    off = "" if run.residual is None else f", {signed(run.residual)} from the law"
    place = f"{flop(run.compute_flop)}, {count(run.tokens)} tokens"
    return f"{run.name}: {shown.text(run.loss)} {shown.unit} at {place}{off}"


def _compute(fit: TableFit) -> str:
    return f"compute C = {fit.table.compute_formula.replace(' ', '·')}, FLOP"
