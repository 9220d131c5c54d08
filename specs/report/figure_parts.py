"""The parts that figures are made of, as plain plotly dicts: points, lines, bands, axes, layout.

The forecast is blue, what happened is orange, and budgets go from light to dark: so colour-blind readers can tell
them apart.
"""

from collections.abc import Sequence
from html import escape
from math import log10
from typing import Any

from specs.formatting import log_ticks, power, ticks
from specs.humanize import count

Trace = dict[str, Any]
Figure = dict[str, Any]

FORECAST, ACTUAL, GREY, INK = "#2166ac", "#d1570a", "#8b929b", "#1d2227"
BAND_95, BAND_50 = "rgba(33,102,172,.13)", "rgba(33,102,172,.25)"
LADDER = ("#a6c8e0", "#7fb0d3", "#5697c4", "#357db3", "#1f639d", "#124a80", "#0a3260")
"""Budgets from small to large, light to dark."""
FONT = '"Inter", "Helvetica Neue", Helvetica, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif'


def budget_colour(i: int, count: int) -> str:
    """The colour of budget `i` of so many: spread over the ladder, the largest always the darkest."""
    last = len(LADDER) - 1
    return LADDER[last - round((count - 1 - i) * min(2.0, last / max(1, count - 1)))]


def line(x: Sequence[float], y: Sequence[float], colour: str, name: str | None = None, **style: Any) -> Trace:
    """A line; without a name it has no legend and no hover."""
    look = {"color": colour, "width": 2} | style
    return _named({"x": list(x), "y": list(y), "mode": "lines", "line": look}, name)


def dots(
    x: Sequence[float],
    y: Sequence[float],
    colour: str,
    name: str | None = None,
    hover: Sequence[str] = (),
    **look: Any,
) -> Trace:
    """Points, each with a line of text under the pointer."""
    marker = {"color": colour, "size": 9} | look
    trace = {"x": list(x), "y": list(y), "mode": "markers", "marker": marker, "cliponaxis": False}
    if hover:
        trace |= hover_text(hover)
    return _named(trace, name)


def hover_text(lines: Sequence[str]) -> Trace:
    """Hover text of each point; escaped, since plotly reads some HTML."""
    return {
        "text": [escape(one, quote=False) for one in lines],
        "hovertemplate": "%{text}<extra></extra>",
    }


def label(x: float, y: float, text: str, colour: str, position: str) -> Trace:
    """Text beside a point, in the units of the axes."""
    return _named(
        {
            "x": [x],
            "y": [y],
            "mode": "text",
            "text": [f"   {text}" if position.endswith("right") else text],
            "textposition": position,
            "textfont": {"color": colour, "size": 12.5},
            "cliponaxis": False,
        },
        None,
    )


def band(
    x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str, name: str | None
) -> Trace:
    """The area between two curves."""
    outline = {"x": [*x, *reversed(x)], "y": [*low, *reversed(high)], "mode": "lines"}
    return _named(
        outline | {"fill": "toself", "fillcolor": colour, "line": {"width": 0}, "hoverinfo": "skip"}, name
    )


def bar(x: float, low: float, high: float, width: float, name: str | None, colour: str) -> Trace:
    """An interval at one place, upright."""
    return line([x, x], [low, high], colour, name, width=width)


def _named(trace: Trace, name: str | None) -> Trace:
    if name is not None:
        return trace | {"name": name}
    return {"hoverinfo": "skip"} | trace | {"showlegend": False}


def on(trace: Trace, x: str = "x", y: str = "y") -> Trace:
    """The trace on other axes."""
    return trace | {"xaxis": x, "yaxis": y}


def linear(title: str, **more: Any) -> dict[str, Any]:
    """A linear axis."""
    return {
        "title": {"text": title, "standoff": 10, "font": {"size": 12.5, "color": "#5f6770"}},
        "gridcolor": "#eceef1",
        "linecolor": "#b9bfc6",
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "tickcolor": "#b9bfc6",
        "ticklen": 4,
    } | more


def loss_axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis of losses with round numbers on it."""
    low, high = _ends(values)
    marks = ticks(low, high)
    return _logarithmic(title, low, high, marks, [f"{mark:.4g}" for mark in marks])


def amount_axis(title: str, values: Sequence[float], powers: bool = False) -> dict[str, Any]:
    """A logarithmic axis of amounts: powers of ten for compute, k, M and B else."""
    low, high = _ends(values)
    marks = [mark for mark in log_ticks(low, high) if not powers or f"{mark:.0e}"[0] == "1"]
    if len(marks) < 2 and not powers:
        marks = ticks(low, high)
    return _logarithmic(title, low, high, marks, [power(m) if powers else count(m) for m in marks])


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis with a margin, also where all values are the same."""
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.06, 1.01)
    return low / margin, high * margin


def _logarithmic(
    title: str, low: float, high: float, marks: Sequence[float], labels: Sequence[str]
) -> dict[str, Any]:
    ends = [log10(low), log10(high)]
    return linear(title, type="log", range=ends, tickvals=list(marks), ticktext=list(labels))


def figure(traces: Sequence[Trace], x: dict[str, Any], y: dict[str, Any], **more: Any) -> Figure:
    """Traces and axes in the page's look."""
    layout = {
        "xaxis": x,
        "yaxis": y,
        "font": {"family": FONT, "size": 12.5, "color": INK},
        "margin": {"l": 58, "r": 18, "t": 36, "b": 50},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12.5}},
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "#fff", "bordercolor": "#b9bfc6", "font": {"color": INK, "family": FONT}},
        "dragmode": False,
    }
    return {"data": list(traces), "layout": layout | more}
