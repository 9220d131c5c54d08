"""Figures of runs, in the report of a fit and of a plan: curves against compute, learning rates and batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import exp, log

from specs.formatting import signed
from specs.humanize import Losses, count
from specs.report import figure_parts
from specs.report.figure_parts import FORECAST, Figure, Trace

_ABOVE = 1.6
"""Curves are cut off at this many times the largest final loss: the first steps would flatten all that follows."""
_SAME_SIZE, _SAME_TOKENS, _SAME_RATE, _SAME_BATCH = 0.01, 0.05, 0.005, 0.05
"""Values that differ by less are one: tokens come in whole steps, and batches may be derived from them."""
_WORST = 5.0
"""Per cent above the best loss at which the colours of a map end."""
_WRITTEN = 144
"""A map of more cells is drawn without their numbers."""


@dataclass(frozen=True)
class TrainingCurve:
    """Losses of one run against compute."""

    name: str
    flop: tuple[float, ...]
    loss: tuple[float, ...]
    """Nats per token."""


@dataclass(frozen=True)
class RatePoint:
    """A finished run with its learning rate and batch."""

    size: float
    tokens: float
    lr: float
    batch_tokens: float
    loss: float
    """Nats per token."""


@dataclass(frozen=True)
class RateMap:
    """Losses of runs of one size and one number of tokens, by learning rate and batch."""

    size: float
    tokens: float
    rates: tuple[float, ...]
    batches: tuple[float, ...]
    loss: tuple[tuple[float | None, ...], ...]
    """By batch and rate, the geometric mean of repeats; None where there is no run."""


def envelope(
    curves: Sequence[TrainingCurve],
    frontier: Sequence[tuple[float, float]],
    name: str,
    losses: Losses,
    compute: str,
) -> Figure | None:
    """All curves against compute, small runs light and large ones dark, above a frontier of that name, (C, L); None
    without curves. `compute` says how C is counted."""
    if not curves:
        return None
    ordered = sorted(curves, key=lambda curve: curve.flop[-1])
    top = _ABOVE * max(losses.of(curve.loss[-1]) for curve in ordered)
    drawn = [_curve(curve, losses, i, len(ordered)) for i, curve in enumerate(ordered)]
    heights = [top, *(y for trace in drawn for y in trace["y"] if y < top)]
    flops = [x for trace in drawn for x, y in zip(trace["x"], trace["y"], strict=True) if y < top]
    if frontier:
        x, y = [flop for flop, _ in frontier], [losses.of(loss) for _, loss in frontier]
        drawn.append(figure_parts.line(x, y, figure_parts.ACTUAL, name, width=2.5))
        heights, flops = heights + y, flops + x
    return figure_parts.figure(
        drawn,
        figure_parts.amount_axis(compute, flops, powers=True),
        figure_parts.loss_axis(f"loss, {losses.unit}", heights),
    )


def _curve(curve: TrainingCurve, losses: Losses, i: int, curves: int) -> Trace:
    x, y = [_short(flop) for flop in curve.flop], [_short(losses.of(loss)) for loss in curve.loss]
    trace = figure_parts.line(x, y, figure_parts.budget_colour(i, curves), curve.name, width=1)
    hover = f"{escape(curve.name, quote=False)}: %{{y:.4g}} at %{{x:.3g}} FLOP<extra></extra>"
    return trace | {"showlegend": False, "hovertemplate": hover}


def _short(value: float) -> float:
    """Five digits: a line shows no more, and thousands of points stay small."""
    return float(f"{value:.5g}")


def rate_map(points: Sequence[RatePoint]) -> RateMap | None:
    """The largest grid of learning rates and batches among runs of one size and tokens; None where none has two of
    each."""
    found = [one for group in _of_one_run(points) if (one := _grid(group)) is not None]
    return max(found, key=lambda one: (_cells(one), one.size * one.tokens), default=None)


def _of_one_run(points: Sequence[RatePoint]) -> Iterator[list[RatePoint]]:
    """Points by size and tokens."""
    sizes = _clusters([point.size for point in points], _SAME_SIZE)
    tokens = _clusters([point.tokens for point in points], _SAME_TOKENS)
    groups: dict[tuple[int, int], list[RatePoint]] = {}
    for key, point in zip(zip(sizes, tokens, strict=True), points, strict=True):
        groups.setdefault(key, []).append(point)
    yield from groups.values()


def _grid(points: Sequence[RatePoint]) -> RateMap | None:
    rates = _clusters([point.lr for point in points], _SAME_RATE)
    batches = _clusters([point.batch_tokens for point in points], _SAME_BATCH)
    losses: dict[tuple[int, int], list[float]] = {}
    for batch, rate, point in zip(batches, rates, points, strict=True):
        losses.setdefault((batch, rate), []).append(log(point.loss))
    columns, rows = max(rates) + 1, max(batches) + 1
    if min(columns, rows) < 2 or len(losses) < columns + rows:
        return None
    means = {cell: exp(sum(logs) / len(logs)) for cell, logs in losses.items()}
    return RateMap(
        size=points[0].size,
        tokens=points[0].tokens,
        rates=_first_of_each(rates, [point.lr for point in points]),
        batches=_first_of_each(batches, [point.batch_tokens for point in points]),
        loss=tuple(tuple(means.get((row, column)) for column in range(columns)) for row in range(rows)),
    )


def _clusters(values: Sequence[float], same: float) -> list[int]:
    """The number of each value among those that differ, smallest first."""
    numbers, last, number = [0] * len(values), None, -1
    for at in sorted(range(len(values)), key=values.__getitem__):
        if last is None or values[at] > last * (1 + same):
            number += 1
            last = values[at]
        numbers[at] = number
    return numbers


def _first_of_each(numbers: Sequence[int], values: Sequence[float]) -> tuple[float, ...]:
    found = dict(sorted(zip(numbers, values, strict=True), reverse=True))
    return tuple(found[number] for number in sorted(found))


def _cells(one: RateMap) -> int:
    return sum(loss is not None for row in one.loss for loss in row)


def rates_and_batches(found: RateMap, losses: Losses) -> Figure:
    """A map of how far each learning rate and batch is above the best."""
    best = min(loss for row in found.loss for loss in row if loss is not None)
    off = [[None if loss is None else 100 * (loss / best - 1) for loss in row] for row in found.loss]
    written = _cells(found) <= _WRITTEN
    cell = [["" if loss is None else losses.text(loss) for loss in row] for row in found.loss]
    hover = [
        ["" if loss is None else f"{losses.text(loss)}, {signed(loss / best - 1)}" for loss in row]
        for row in found.loss
    ]
    trace: Trace = {
        "type": "heatmap",
        "x": [f"{rate:.3g}" for rate in found.rates],
        "y": [f"{batch:.6g}" for batch in found.batches],
        "z": off,
        "zmin": 0,
        "zmax": min(_WORST, max(value for row in off for value in row if value is not None)) or _WORST,
        "colorscale": [[0, FORECAST], [1, "#f3f6f9"]],
        "xgap": 2,
        "ygap": 2,
        "colorbar": {"title": {"text": "above the best, %"}, "thickness": 12, "outlinewidth": 0},
        "customdata": hover,
        "hovertemplate": "lr %{x}, batch %{y} tokens: %{customdata}<extra></extra>",
    }
    if written:
        trace |= {"text": cell, "texttemplate": "%{text}"}
    return figure_parts.figure(
        [trace],
        figure_parts.linear("peak learning rate", type="category"),
        figure_parts.linear(
            "batch, tokens",
            type="category",
            tickvals=list(range(len(found.batches))),
            ticktext=[count(batch) for batch in found.batches],
        ),
    )
