"""The held-out losses of a mix's sources during the target run, beside their mean, which is what was forecast."""

from typing import Any

from specs.humanize import Losses
from specs.report import figure_parts
from specs.report.context import Case
from specs.report.figure_parts import GREY, INK, Figure

_COLOURS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#0072b2", "#d55e00")
"""Okabe & Ito's, which colour-blind readers can tell apart."""
_DASHES = ("solid", "dash", "dot", "dashdot")
"""More sources than colours have the same colours again, dashed."""


def by_source(case: Case) -> Figure | None:
    """Held-out loss of each source against the step; None without a mix, and where nothing is measured yet."""
    run, target = case.target_audit, case.target
    mix = None if target is None else target.run.mix
    if run is None or mix is None or not run.curve_sources:
        return None
    drawn = []
    for number, (name, curve) in enumerate(run.curve_sources.items()):
        losses = Losses(case.plan.sources[name].bytes_per_token if case.losses.bytes_per_token else None)
        y = [losses.of(loss) for loss in curve]
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)]
        texts = [
            f"{name}, step {step:,}: {losses.text(loss)} {losses.unit} ({loss:.4f} nats per token)"
            for step, loss in zip(run.curve_step, curve, strict=True)
        ]
        line = figure_parts.line(run.curve_step, y, colour, name, dash=dash)
        drawn.append(line | {"mode": "lines+markers"} | figure_parts.hover_text(texts))
    mean = [case.losses.of(loss) for loss in run.curve_loss]
    drawn.append(figure_parts.line(run.curve_step, mean, INK, "mean", width=2.5))
    return figure_parts.figure(
        drawn,
        figure_parts.linear("step", tickformat=",d", rangemode="tozero"),
        figure_parts.loss_axis(
            f"held-out loss, {case.losses.unit}", [loss for trace in drawn for loss in trace["y"]]
        ),
        shapes=[_upright(phase.from_step) for phase in mix.phases[1:]],
        annotations=[_label(phase.from_step, number) for number, phase in enumerate(mix.phases[1:], start=2)],
    )


def _upright(step: int) -> dict[str, Any]:
    """A dotted line where a phase begins."""
    style = {"color": GREY, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper", "line": style}


def _label(step: int, number: int) -> dict[str, Any]:
    place: dict[str, Any] = {"x": step, "y": 1, "yref": "paper", "yanchor": "top", "xanchor": "right"}
    style = {"size": 11.5, "color": GREY}
    return place | {"xshift": -4, "text": f"phase {number}", "showarrow": False, "font": style}
