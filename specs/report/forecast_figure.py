"""The figure that the page exists for: the sealed curve with its bands, and what the run then did.

The final evaluation is on more text than those before it, so its band and its point are drawn apart from the curve.
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
    forecast, target = case.forecast and case.forecast.curve, case.target
    if not forecast or not forecast.step or target is None:
        return None
    drawn = [*_upper(case, forecast, target), *_lower(forecast, target)]
    if case.target_audit is not None:
        drawn += _measured(case, forecast, case.target_audit)
    optim = target.run.optim
    drops = {milestone.step: f"lr × {milestone.factor:g}" for milestone in optim.milestones}
    drops |= {step: "decay" for step in optim.drop_steps if step not in drops}
    below = {"domain": [0.0, 0.27], "ticksuffix": " %", "anchor": "x", "nticks": 5, "zeroline": True}
    return figure_parts.figure(
        drawn,
        figure_parts.linear("step", anchor="y2", range=[0, optim.steps * 1.03], tickformat=",d"),
        figure_parts.linear(f"held-out loss, {case.losses.unit}", domain=[0.36, 1.0]),
        yaxis2=figure_parts.linear("from the median", **below, zerolinecolor=FORECAST),
        shapes=[_upright(step) for step in drops],
        annotations=[
            _label(step, text, "right" if i == 0 else "left") for i, (step, text) in enumerate(drops.items())
        ],
    )


def final_is_separate(forecast: CurveBand, target: PlannedRun) -> bool:
    """Whether the curve's last point is the final evaluation, on more text than the others."""
    evaluation = target.run.evaluation
    return forecast.step[-1] == target.run.optim.steps and evaluation.final_sequences != evaluation.sequences


def _upper(case: Case, forecast: CurveBand, target: PlannedRun) -> Iterator[Trace]:
    shown = {name: [case.losses.of(loss) for loss in column] for name, column in _columns(forecast).items()}
    yield from _bands(forecast, target, shown, named=True)
    texts = [
        f"step {step:,}: forecast {case.losses.text(loss)} {case.losses.unit}"
        for step, loss in zip(forecast.step, forecast.median, strict=True)
    ]
    cut = len(forecast.step) - final_is_separate(forecast, target)
    name = "forecast, sealed before step 1" if case.verified else "sealed forecast"
    middle = figure_parts.line(forecast.step[:cut], shown["median"][:cut], FORECAST, name)
    yield middle | figure_parts.hover_text(texts[:cut])
    if cut < len(texts):
        tick = {"symbol": "line-ew-open", "size": 14, "line": {"color": FORECAST, "width": 2}}
        yield figure_parts.dots(
            forecast.step[cut:], shown["median"][cut:], FORECAST, None, texts[cut:], **tick
        )


def _lower(forecast: CurveBand, target: PlannedRun) -> Iterator[Trace]:
    def off(column: Sequence[float]) -> list[float]:
        return [100 * (loss / middle - 1) for loss, middle in zip(column, forecast.median, strict=True)]

    shown = {name: off(column) for name, column in _columns(forecast).items()}
    for trace in _bands(forecast, target, shown, named=False):
        yield figure_parts.on(trace, y="y2")


def _bands(
    forecast: CurveBand, target: PlannedRun, shown: dict[str, list[float]], named: bool
) -> Iterator[Trace]:
    """Both bands along the curve, and as upright bars for a separate final evaluation."""
    cut = len(forecast.step) - final_is_separate(forecast, target)
    for level, colour in (("95", BAND_95), ("50", BAND_50)):
        low, high = shown[f"low_{level}"], shown[f"high_{level}"]
        name = f"{level} % band" if named else None
        if cut:
            yield figure_parts.band(forecast.step[:cut], low[:cut], high[:cut], colour, name)
        if cut < len(forecast.step):
            yield figure_parts.bar(forecast.step[-1], low[-1], high[-1], 14, None, colour)


def _columns(forecast: CurveBand) -> dict[str, tuple[float, ...]]:
    return {
        "median": forecast.median,
        "low_50": forecast.low_50,
        "high_50": forecast.high_50,
        "low_95": forecast.low_95,
        "high_95": forecast.high_95,
    }


def _measured(case: Case, forecast: CurveBand, run: RunAudit) -> Iterator[Trace]:
    """Held-out points in both panels from where the forecast begins; the final evaluation is the largest."""
    pairs = zip(run.curve_step, run.curve_loss, strict=True)
    rows = [(step, loss) for step, loss in pairs if step >= forecast.step[0]]
    if not rows:
        return
    x, y = [step for step, _ in rows], [case.losses.of(loss) for _, loss in rows]
    texts = [_hover(case, forecast, step, loss) for step, loss in rows]
    yield figure_parts.dots(x, y, ACTUAL, "measured on held-out text", texts, **_style(case, x))
    off = [(step, loss, 100 * (loss / band.median - 1)) for step, loss in rows if (band := forecast.at(step))]
    x, y = [step for step, _, _ in off], [value for _, _, value in off]
    texts = [_hover(case, forecast, step, loss) for step, loss, _ in off]
    yield figure_parts.on(figure_parts.dots(x, y, ACTUAL, None, texts, **_style(case, x)), y="y2")


def _style(case: Case, steps: Sequence[int]) -> dict[str, Any]:
    last = None if case.target is None else case.target.run.optim.steps
    sizes = [12 if step == last else 7 for step in steps]
    return {"size": sizes, "line": {"color": "#fff", "width": 1}, "opacity": 1}


def _hover(case: Case, forecast: CurveBand, step: int, loss: float) -> str:
    text = f"step {step:,}: {case.losses.text(loss)} {case.losses.unit} ({loss:.4f} nats per token)"
    band = forecast.at(step)
    return text if band is None else f"{text}, {signed(loss / band.median - 1)} from the forecast"


def _upright(step: int) -> dict[str, Any]:
    """A dotted line through both panels where the learning rate drops."""
    style = {"color": GREY, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper", "line": style}


def _label(step: int, text: str, side: str) -> dict[str, Any]:
    style = {"size": 11.5, "color": GREY}
    place: dict[str, Any] = {"x": step, "y": 1, "yref": "paper", "yanchor": "top", "xanchor": side}
    place["xshift"] = -4 if side == "right" else 4
    return place | {"text": text, "showarrow": False, "font": style}
