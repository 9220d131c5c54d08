"""The figures as plain plotly dicts, each from the documents alone; None where there is nothing to show.

Losses are shown in bits per byte where the bytes per token are known, else in nats per token.
"""

import math
from collections.abc import Sequence
from typing import Any

from specs.law import EvidencePoint, IsoflopProfile
from specs.plan import CurveBand, Forecast, Plan
from specs.record import Audit, RunAudit

Figure = dict[str, Any]

BLUE, RED, GREY, INK = "#2a5f9e", "#c8452f", "#8a8f98", "#22262b"
LADDER = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
"""Budgets from small to large, light to dark (ColorBrewer Blues, leaving out the palest)."""


def unit(plan: Plan) -> str:
    """What losses are shown in."""
    return "nats per token" if plan.bytes_per_token is None else "bits per byte"


def shown(plan: Plan, nats: float) -> float:
    """A loss in the unit of the page."""
    return nats if plan.bytes_per_token is None else nats / (plan.bytes_per_token * math.log(2))


def isoflop(plan: Plan, audit: Audit | None) -> Figure | None:
    """Loss against M at every budget, with parabolas and minima where they were fitted."""
    traces: list[Any] = []
    groups = _by_budget(_points(plan, audit))
    for i, (budget, points) in enumerate(groups):
        colour = _rung(i, len(groups))
        traces.append(
            {
                "x": [size for size, _ in points],
                "y": [shown(plan, loss) for _, loss in points],
                "mode": "markers",
                "marker": {"color": colour, "size": 9},
                "name": f"{budget:.1e} FLOP",
                "legendgroup": f"{budget:.3e}",
            }
        )
    profiles = plan.fit.profiles if plan.fit is not None else ()
    for i, profile in enumerate(profiles):
        sizes = [
            size for budget, points in groups if _near(budget, profile.compute_flop) for size, _ in points
        ]
        traces += _parabola(plan, profile, sizes, _rung(i, len(profiles)))
    return _figure(traces, _log("M, non-embedding FLOP per token"), _linear(f"held-out loss, {unit(plan)}"))


def frontier(plan: Plan, audit: Audit | None) -> Figure | None:
    """The minima of the profiles against compute, the forecast with its bands, and the outcome."""
    if plan.fit is None or not isinstance(plan.forecast, Forecast):
        return None
    target, band = plan.runs[-1].run.compute_flop, plan.forecast.loss
    held = [profile for profile in plan.fit.profiles if profile.bracketed]
    points = [(p.compute_flop, shown(plan, p.loss)) for p in held]
    traces: list[Any] = [
        _line_trace([*points, (target, shown(plan, band.median))], GREY, "minima to forecast", dash="dot"),
        {
            "x": [x for x, _ in points],
            "y": [y for _, y in points],
            "mode": "markers",
            "marker": {"color": BLUE, "size": 10},
            "name": "isoFLOP minima",
        },
        _bar(target, [shown(plan, v) for v in (band.low_95, band.median, band.high_95)], 2, "forecast, 95 %"),
        _bar(target, [shown(plan, v) for v in (band.low_50, band.median, band.high_50)], 7, "forecast, 50 %"),
    ]
    actual = None if audit is None else audit.runs[-1].loss
    if actual is not None:
        traces.append(_outcome(target, shown(plan, actual)))
    return _figure(traces, _log("compute C = M D, FLOP"), _log(f"held-out loss, {unit(plan)}"))


def curve(plan: Plan, audit: Audit | None) -> Figure | None:
    """The target's forecast curve with its bands and milestones, and the points that were measured."""
    told = plan.forecast.curve if isinstance(plan.forecast, Forecast) else None
    run = None if audit is None or plan.phase != "target" else audit.runs[-1]
    if told is None:
        return None
    traces = [
        _band_trace(plan, told.step, told.low_95, told.high_95, "rgba(42,95,158,.14)", "95 % band"),
        _band_trace(plan, told.step, told.low_50, told.high_50, "rgba(42,95,158,.28)", "50 % band"),
        _line_trace(
            list(zip(told.step, _all(plan, told.median), strict=True)),
            BLUE,
            "forecast, sealed before the run",
        ),
    ]
    if run is not None and run.curve_step:
        traces.append(_measured(plan, run, told))
    figure = _figure(traces, _linear("step"), _linear(f"held-out loss, {unit(plan)}"))
    if figure is not None:
        figure["layout"]["shapes"] = [_mark(m.step) for m in plan.runs[-1].run.optim.milestones]
    return figure


def rates(plan: Plan) -> Figure | None:
    """The learning-rate check: loss against the multiple of the law's rate."""
    check = None if plan.fit is None else plan.fit.rate_check
    if check is None:
        return None
    points = list(zip(check.multiples, _all(plan, check.losses), strict=True))
    traces = [_line_trace(points, BLUE, "runs", mode="lines+markers")]
    return _figure(
        traces, _log("multiple of the law's learning rate"), _linear(f"held-out loss, {unit(plan)}")
    )


def _points(plan: Plan, audit: Audit | None) -> list[tuple[float, float, float]]:
    """(budget, M, loss in nats) of every pilot that is known."""
    if plan.fit is not None:
        return [_of_evidence(point) for point in plan.fit.points]
    if audit is None:
        return []
    pairs = zip(plan.runs, audit.runs, strict=True)
    return [
        (planned.budget_flop, float(planned.run.model.flop_per_token), run.loss)
        for planned, run in pairs
        if run.role == "pilot" and run.loss is not None
    ]


def _of_evidence(point: EvidencePoint) -> tuple[float, float, float]:
    return point.budget_flop, point.flop_per_token, point.loss


def _by_budget(points: Sequence[tuple[float, float, float]]) -> list[tuple[float, list[tuple[float, float]]]]:
    budgets = sorted({budget for budget, _, _ in points})
    return [(b, sorted((size, loss) for budget, size, loss in points if budget == b)) for b in budgets]


def _parabola(plan: Plan, profile: IsoflopProfile, sizes: Sequence[float], colour: str) -> list[Any]:
    if profile.coefficients is None or not sizes:
        return []
    c0, c1, c2 = profile.coefficients
    low, high = math.log(min(sizes)), math.log(max(sizes))
    x = [low + (high - low) * i / 40 for i in range(41)]
    line = [(math.exp(v), shown(plan, math.exp(c0 + c1 * v + c2 * v * v))) for v in x]
    minimum = {
        "x": [profile.flop_per_token],
        "y": [shown(plan, profile.loss)],
        "mode": "markers",
        "marker": {"symbol": "diamond", "size": 11, "color": "white", "line": {"color": colour, "width": 2}},
        "showlegend": False,
        "name": "minimum",
    }
    return [_line_trace(line, colour, "parabola", showlegend=False), minimum]


def _measured(plan: Plan, run: RunAudit, told: CurveBand) -> dict[str, Any]:
    """Held-out points from where the forecast begins; earlier ones would squeeze the picture."""
    pairs = zip(run.curve_step, run.curve_loss, strict=True)
    points = [(step, shown(plan, loss)) for step, loss in pairs if step >= told.step[0]]
    return {
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "mode": "markers",
        "marker": {"color": RED, "size": 8},
        "name": "actual",
    }


def _outcome(x: float, y: float) -> dict[str, Any]:
    marker = {"color": RED, "size": 13, "symbol": "x"}
    return {"x": [x], "y": [y], "mode": "markers", "marker": marker, "name": "actual"}


def _bar(x: float, ends: Sequence[float], width: int, name: str) -> dict[str, Any]:
    low, middle, high = ends
    line = {"color": BLUE, "width": width}
    return {"x": [x, x, x], "y": [low, middle, high], "mode": "lines", "line": line, "name": name}


def _band_trace(
    plan: Plan, steps: Sequence[int], low: Sequence[float], high: Sequence[float], colour: str, name: str
) -> dict[str, Any]:
    return {
        "x": [*steps, *reversed(steps)],
        "y": [*_all(plan, low), *reversed(_all(plan, high))],
        "fill": "toself",
        "fillcolor": colour,
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "name": name,
    }


def _line_trace(
    points: Sequence[tuple[float, float]],
    colour: str,
    name: str,
    dash: str = "solid",
    mode: str = "lines",
    showlegend: bool = True,
) -> dict[str, Any]:
    return {
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "mode": mode,
        "line": {"color": colour, "width": 2, "dash": dash},
        "name": name,
        "showlegend": showlegend,
    }


def _mark(step: int) -> dict[str, Any]:
    """A vertical line where the learning rate drops."""
    line = {"color": GREY, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _all(plan: Plan, losses: Sequence[float]) -> list[float]:
    return [shown(plan, loss) for loss in losses]


def _near(one: float, other: float) -> bool:
    return abs(math.log(one / other)) < 0.1


def _rung(i: int, count: int) -> str:
    """The ladder's colour of budget `i`, the largest always the darkest."""
    return LADDER[max(0, len(LADDER) - count + i) % len(LADDER)]


def _linear(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "gridcolor": "#e8eaed", "zeroline": False, "linecolor": "#c5c9cf"}


def _log(title: str) -> dict[str, Any]:
    return _linear(title) | {
        "type": "log",
        "dtick": "D2" if "loss" in title else 1,
        "exponentformat": "power",
    }


def _figure(traces: list[Any], x: dict[str, Any], y: dict[str, Any]) -> Figure | None:
    if not traces:
        return None
    layout = {
        "xaxis": x,
        "yaxis": y,
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "margin": {"l": 64, "r": 16, "t": 12, "b": 52},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "y": 1.12, "x": 0},
        "hovermode": "closest",
    }
    return {"data": traces, "layout": layout}
