"""The figure that the page exists for: the sealed curve with its bands, and what the run then did.

The final evaluation is on more text than those before it, so its band and its point stand apart from the curve.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from specs.formatting import signed
from specs.plan import CurveBand, PlannedRun
from specs.record import RunAudit
from specs.report import figure_parts
from specs.report.context import Case
from specs.report.figure_parts import ACTUAL, BAND_50, BAND_95, FORECAST, GREY, Figure, Trace


def curve(case: Case) -> Figure | None:
    """Above: held-out loss against the step. Below: the same as deviation from the forecast's median, in per cent."""
    told, target = case.forecast and case.forecast.curve, case.target
    if not told or not told.step or target is None:
        return None
    drawn = [*_upper(case, told, target), *_lower(told, target)]
    if case.target_audit is not None:
        drawn += _measured(case, told, case.target_audit)
    milestones, steps = target.run.optim.milestones, target.run.optim.steps
    below = {"domain": [0.0, 0.27], "ticksuffix": " %", "anchor": "x", "nticks": 5, "zeroline": True}
    return figure_parts.figure(
        drawn,
        figure_parts.linear("step", anchor="y2", range=[0, steps * 1.03], tickformat=",d"),
        figure_parts.linear(f"held-out loss, {case.losses.unit}", domain=[0.36, 1.0]),
        yaxis2=figure_parts.linear("off the median", **below, zerolinecolor=FORECAST),
        shapes=[_upright(milestone.step) for milestone in milestones],
        annotations=[
            _label(milestone.step, f"lr × {milestone.factor:g}", "right" if i == 0 else "left")
            for i, milestone in enumerate(milestones)
        ],
    )


def stands_apart(told: CurveBand, target: PlannedRun) -> bool:
    """Whether the curve's last point is the final evaluation, on more text than the others."""
    asked = target.run.evaluation
    return told.step[-1] == target.run.optim.steps and asked.final_sequences != asked.sequences


def _upper(case: Case, told: CurveBand, target: PlannedRun) -> Iterator[Trace]:
    shown = {name: [case.losses.of(loss) for loss in column] for name, column in _columns(told).items()}
    yield from _bands(told, target, shown, named=True)
    said = [
        f"step {step:,}: forecast {case.losses.text(loss)} {case.losses.unit}"
        for step, loss in zip(told.step, told.median, strict=True)
    ]
    cut = len(told.step) - stands_apart(told, target)
    middle = figure_parts.line(
        told.step[:cut], shown["median"][:cut], FORECAST, "forecast, sealed before step 1"
    )
    yield middle | figure_parts.under_pointer(said[:cut])
    if cut < len(said):
        tick = {"symbol": "line-ew-open", "size": 14, "line": {"color": FORECAST, "width": 2}}
        yield figure_parts.dots(told.step[cut:], shown["median"][cut:], FORECAST, None, said[cut:], **tick)


def _lower(told: CurveBand, target: PlannedRun) -> Iterator[Trace]:
    def off(column: Sequence[float]) -> list[float]:
        return [100 * (loss / middle - 1) for loss, middle in zip(column, told.median, strict=True)]

    shown = {name: off(column) for name, column in _columns(told).items()}
    for trace in _bands(told, target, shown, named=False):
        yield figure_parts.on(trace, y="y2")


def _bands(
    told: CurveBand, target: PlannedRun, shown: dict[str, list[float]], named: bool
) -> Iterator[Trace]:
    """Both bands along the curve, and as upright bars where the final evaluation stands apart."""
    cut = len(told.step) - stands_apart(told, target)
    for level, colour in (("95", BAND_95), ("50", BAND_50)):
        low, high = shown[f"low_{level}"], shown[f"high_{level}"]
        name = f"{level} % band" if named else None
        if cut:
            yield figure_parts.band(told.step[:cut], low[:cut], high[:cut], colour, name)
        if cut < len(told.step):
            yield figure_parts.bar(told.step[-1], low[-1], high[-1], 14, None, colour)


def _columns(told: CurveBand) -> dict[str, tuple[float, ...]]:
    return {
        "median": told.median,
        "low_50": told.low_50,
        "high_50": told.high_50,
        "low_95": told.low_95,
        "high_95": told.high_95,
    }


def _measured(case: Case, told: CurveBand, run: RunAudit) -> Iterator[Trace]:
    """Held-out points in both panels from where the forecast begins; the final evaluation is the largest."""
    pairs = zip(run.curve_step, run.curve_loss, strict=True)
    rows = [(step, loss) for step, loss in pairs if step >= told.step[0]]
    if not rows:
        return
    x, y = [step for step, _ in rows], [case.losses.of(loss) for _, loss in rows]
    said = [_said(case, told, step, loss) for step, loss in rows]
    yield figure_parts.dots(x, y, ACTUAL, "measured on held-out text", said, **_look(case, x))
    middle = dict(zip(told.step, told.median, strict=True))
    off = [(step, 100 * (loss / middle[step] - 1)) for step, loss in rows if step in middle]
    x, y = [step for step, _ in off], [value for _, value in off]
    said = [_said(case, told, step, loss) for step, loss in rows if step in middle]
    yield figure_parts.on(figure_parts.dots(x, y, ACTUAL, None, said, **_look(case, x)), y="y2")


def _look(case: Case, steps: Sequence[int]) -> dict[str, Any]:
    last = None if case.target is None else case.target.run.optim.steps
    sizes = [12 if step == last else 7 for step in steps]
    return {"size": sizes, "line": {"color": "#fff", "width": 1}, "opacity": 1}


def _said(case: Case, told: CurveBand, step: int, loss: float) -> str:
    said = f"step {step:,}: {case.losses.text(loss)} {case.losses.unit} ({loss:.4f} nats per token)"
    if step not in told.step:
        return said
    return f"{said}, {signed(loss / told.median[told.step.index(step)] - 1)} off the forecast"


def _upright(step: int) -> dict[str, Any]:
    """A dotted line through both panels where the learning rate drops."""
    look = {"color": GREY, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper", "line": look}


def _label(step: int, said: str, side: str) -> dict[str, Any]:
    look = {"size": 11.5, "color": GREY}
    place: dict[str, Any] = {"x": step, "y": 1, "yref": "paper", "yanchor": "top", "xanchor": side}
    place["xshift"] = -4 if side == "right" else 4
    return place | {"text": said, "showarrow": False, "font": look}
