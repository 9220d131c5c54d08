"""Figures of what the forecast rests on: the ladder, the isoFLOP profiles, the frontier, the learning-rate check.

C compute (FLOP)    M non-embedding FLOP per token    D tokens
"""

import math
from collections.abc import Iterator, Sequence

from specs.evidence import EvidencePoint
from specs.formatting import flop, listed_members, member_name, percent, signed
from specs.humanize import count
from specs.law import IsoflopProfile, SizeKind
from specs.report import figure_parts
from specs.report.context import Case
from specs.report.figure_parts import ACTUAL, FORECAST, GREY, Figure, Trace

NEAR_OPTIMAL = 0.0025
"""Within 0.25 % of the lowest loss a learning rate is as good as the best (DeepSeek LLM, section 3.1)."""

SIZE_AXIS: dict[SizeKind, str] = {
    "flop_per_token": "M, non-embedding FLOP per token",
    "block_params": "N, non-embedding parameters",
    "params": "N, parameters",
}
"""Titles of an axis of sizes."""

FAINT = "#c3c9d0"
"""The colour of runs that only stand behind a figure."""
_LABELLED = 10
"""With more isoFLOP profiles than this none is labelled."""
_MOST_DRAWN = 2000
"""Runs in one figure."""

_Budget = tuple[float, list[EvidencePoint]]


def ladder(case: Case) -> Figure | None:
    """Sizes and tokens of planned pilots, a line for each budget; None once their losses are known."""
    planned = [run for run, _ in case.runs if run.role == "pilot"]
    if not planned or case.points():
        return None
    budgets = sorted({run.budget_flop for run in planned})
    drawn = []
    for i, budget in enumerate(budgets):
        runs = sorted(
            (r for r in planned if r.budget_flop == budget), key=lambda r: r.run.model.flop_per_token
        )
        x, y = [float(r.run.model.flop_per_token) for r in runs], [float(r.run.tokens) for r in runs]
        colour = figure_parts.budget_colour(i, len(budgets))
        texts = [f"{r.title}: M {count(m)}, {count(d)} tokens" for r, m, d in zip(runs, x, y, strict=True)]
        drawn += [
            figure_parts.line(x, y, colour, width=1),
            figure_parts.dots(x, y, colour, None, texts),
            figure_parts.label(x[-1], y[-1], flop(budget), colour, "middle right"),
        ]
    sizes = [float(run.run.model.flop_per_token) for run in planned]
    tokens = [float(run.run.tokens) for run in planned]
    return figure_parts.figure(
        drawn,
        figure_parts.amount_axis("M, non-embedding FLOP per token", _with_room(sizes)),
        figure_parts.amount_axis("tokens", tokens),
        showlegend=False,
    )


def reach(case: Case) -> Figure | None:
    """How far a published allocation is extrapolated: its lines, solid where it was fitted, and the target on them."""
    law, target = case.plan.law, case.target
    if case.plan.fit is not None or target is None or law.allocation is None:
        return None
    low, high, end = law.compute_low_flop, law.compute_high_flop, target.run.compute_flop
    beyond = [high, end] if end > high else [end, low]
    drawn: list[Trace] = []
    heights: list[float] = []
    for text, line, actual in (
        ("M", law.allocation.flop_per_token, float(target.run.model.flop_per_token)),
        ("tokens", law.allocation.tokens, float(target.run.tokens)),
    ):
        inside = [line.at(compute_flop=c) for c in (low, high)]
        drawn += [
            figure_parts.line([low, high], inside, FORECAST),
            figure_parts.dots([end], [actual], FORECAST, None, [f"target: {text} {count(actual)}"]),
            figure_parts.label(end, actual, text, FORECAST, "middle right"),
        ]
        if not low <= end <= high:
            drawn.append(
                figure_parts.line(beyond, [line.at(compute_flop=c) for c in beyond], FORECAST, dash="dash")
            )
        heights += [*inside, actual]
    x = figure_parts.amount_axis("compute C = M·D, FLOP", [min(low, end), max(high, end) * 8], powers=True)
    y = figure_parts.amount_axis("FLOP per token, and tokens", heights, powers=True)
    return figure_parts.figure(drawn, x, y, showlegend=False)


def isoflop(case: Case) -> Figure | None:
    """Loss against size at every budget, with parabolas and minima where they were fitted, and the target's forecast.

    A table may have runs of any compute: those of no profile are grey, and many profiles are not labelled.
    """
    points = _drawn_points(case)
    if not points:
        return None
    profiles = () if case.plan.fit is None else case.plan.fit.profiles
    drawn: list[Trace] = []
    if case.plan.table is not None:
        fitted = [any(_near(p.compute_flop, point.budget_flop) for p in profiles) for point in points]
        loose = [point for point, inside in zip(points, fitted, strict=True) if not inside]
        points = [point for point, inside in zip(points, fitted, strict=True) if inside]
        drawn.append(_dots(case, loose, [point.size for point in loose], None))
    budgets = _by_budget(points)
    for i, (budget, runs) in enumerate(budgets):
        colour = figure_parts.budget_colour(i, len(budgets))
        profile = next((p for p in profiles if _near(p.compute_flop, budget)), None)
        drawn += _profile(case, budget, runs, profile, colour, len(budgets) <= _LABELLED)
    target_size = None if case.target is None else float(getattr(case.target.run.model, case.size_kind))
    drawn += _target(case, target_size)
    sizes = [point.size for point in _drawn_points(case)]
    if target_size is not None and case.forecast is not None:
        sizes.append(target_size)
    return figure_parts.figure(
        drawn,
        figure_parts.amount_axis(SIZE_AXIS[case.size_kind], _with_room(sizes)),
        figure_parts.loss_axis(f"held-out loss, {case.losses.unit}", _heights(case)),
        showlegend=False,
    )


def frontier(case: Case) -> Figure | None:
    """Loss against compute: the runs, a straight line through the bracketed minima, forecast and outcome."""
    fit, forecast, target = case.plan.fit, case.forecast, case.target
    if fit is None or forecast is None or target is None:
        return None
    held = [profile for profile in fit.profiles if profile.bracketed]
    size = float(getattr(target.run.model, fit.size_kind))
    end = fit.flop_per_size_token * size * target.run.tokens
    drawn = [_pilots(case)]
    if held:
        last = max(held, key=lambda profile: profile.compute_flop)
        start = case.losses.of(last.loss)
        ends = [case.losses.of(loss) for loss in (forecast.loss.low_95, forecast.loss.high_95)]
        drawn.append(
            figure_parts.band(
                [last.compute_flop, end], [start, ends[0]], [start, ends[1]], "rgba(33,102,172,.07)", None
            )
        )
    drawn += _straight(case, held, end)
    drawn += _minima(case, held)
    for form in listed_members(fit.forms)[0]:
        text = f"{member_name(form)}: {case.losses.text(form.forecast)} {case.losses.unit}, weight {form.weight:.2f}"
        mark = {"symbol": "line-ew", "size": 9, "line": {"color": FORECAST, "width": 1 + 3 * form.weight}}
        drawn.append(
            figure_parts.dots([end * 1.35], [case.losses.of(form.forecast)], FORECAST, None, [text], **mark)
        )
    drawn += _target(case, end, "forecast")
    flops = [*(point.budget_flop for point in fit.points), end]
    return figure_parts.figure(
        drawn,
        figure_parts.amount_axis(
            f"compute C = {'M·D' if case.symbol == 'M' else '6·N·D'}, FLOP",
            [min(flops), max(flops) * 2],
            powers=True,
        ),
        figure_parts.loss_axis(f"held-out loss, {case.losses.unit}", _heights(case)),
    )


def rates(case: Case) -> Figure | None:
    """The learning-rate check: loss against the multiple of the law's rate; the strip is as good as the best."""
    check = None if case.plan.fit is None else case.plan.fit.rate_check
    if check is None:
        return None
    y = [case.losses.of(loss) for loss in check.losses]
    best = min(y)
    texts = [
        f"× {multiple:g}: {value:.3f} {case.losses.unit}, {signed(value / best - 1)} against the best"
        for multiple, value in zip(check.multiples, y, strict=True)
    ]
    strip = [min(check.multiples) / 1.2, max(check.multiples) * 1.2]
    drawn = [
        figure_parts.band(
            strip, [best, best], [best * (1 + NEAR_OPTIMAL)] * 2, "rgba(139,146,155,.22)", None
        ),
        figure_parts.line(check.multiples, y, FORECAST, width=1.5),
        figure_parts.dots(check.multiples, y, FORECAST, None, texts),
        figure_parts.label(
            strip[0] * 1.02,
            best * (1 + NEAR_OPTIMAL / 2),
            f"within {percent(NEAR_OPTIMAL, 2)} of the best",
            GREY,
            "middle right",
        ),
    ]
    x = figure_parts.linear(
        "multiple of the law's learning rate",
        type="log",
        range=[math.log10(strip[0]), math.log10(strip[1])],
        tickvals=list(check.multiples),
        ticktext=[f"× {multiple:g}" for multiple in check.multiples],
    )
    return figure_parts.figure(
        drawn, x, figure_parts.linear(f"held-out loss, {case.losses.unit}", nticks=6), showlegend=False
    )


def _profile(
    case: Case,
    budget: float,
    points: Sequence[EvidencePoint],
    profile: IsoflopProfile | None,
    colour: str,
    labelled: bool,
) -> Iterator[Trace]:
    """One budget: a parabola and its minimum, or, where no minimum lies inside, the runs joined by a dotted line."""
    x, y = [point.size for point in points], [case.losses.of(point.loss) for point in points]
    texts = [_hover(case, point) for point in points]
    fills = ["#fff" if point.short else colour for point in points]
    name = flop(budget)
    runs = {"name": f"runs of {name}"}
    if profile is None or profile.coefficients is None:
        yield figure_parts.line(x, y, colour, width=1.5, dash="dot") | {"name": f"runs of {name}, joined"}
        name += "" if profile is None else "<br>   no minimum"
    else:
        yield _parabola(case, profile, x, colour) | {"name": f"parabola of {name}"}
    look = {"color": fills, "line": {"color": colour, "width": 2}, "size": 8}
    yield figure_parts.dots(x, y, colour, None, texts, **look) | runs
    if profile is not None and profile.bracketed:
        lowest = f"lowest at {case.symbol} {count(profile.size)}: {case.losses.text(profile.loss)} {case.losses.unit}"
        mark = {"symbol": "diamond", "size": 11, "line": {"color": "#fff", "width": 1.5}}
        yield figure_parts.dots(
            [profile.size], [case.losses.of(profile.loss)], figure_parts.INK, None, [lowest], **mark
        )
    if labelled:
        yield figure_parts.label(x[-1], y[-1], name, colour, "middle right")


def _parabola(case: Case, profile: IsoflopProfile, x: Sequence[float], colour: str) -> Trace:
    assert profile.coefficients is not None
    c0, c1, c2 = profile.coefficients
    low, high = math.log(min(x)), math.log(max(x))
    logs = [low + (high - low) * i / 40 for i in range(41)]
    losses = [case.losses.of(math.exp(c0 + c1 * v + c2 * v * v)) for v in logs]
    return figure_parts.line([math.exp(v) for v in logs], losses, colour)


def _drawn_points(case: Case) -> list[EvidencePoint]:
    """The runs that figures show: of very many, some spread evenly over compute."""
    points = sorted(case.points(), key=lambda point: point.budget_flop)
    return points[:: max(1, math.ceil(len(points) / _MOST_DRAWN))]


def _pilots(case: Case) -> Trace:
    points = _drawn_points(case)
    name = "pilots" if case.plan.table is None else "runs"
    return _dots(case, points, [point.budget_flop for point in points], name)


def _dots(case: Case, points: Sequence[EvidencePoint], x: Sequence[float], name: str | None) -> Trace:
    """Runs behind a figure."""
    texts = [_hover(case, point) for point in points]
    return figure_parts.dots(x, [case.losses.of(p.loss) for p in points], FAINT, name, texts, size=6)


def _minima(case: Case, held: Sequence[IsoflopProfile]) -> Iterator[Trace]:
    x, y = [p.compute_flop for p in held], [case.losses.of(p.loss) for p in held]
    texts = [f"{flop(p.compute_flop)}: lowest {case.losses.text(p.loss)} {case.losses.unit}" for p in held]
    mark = {"symbol": "diamond", "size": 11, "line": {"color": "#fff", "width": 1.5}}
    yield figure_parts.dots(x, y, figure_parts.INK, "isoFLOP minima", texts, **mark)


def _straight(case: Case, held: Sequence[IsoflopProfile], end: float) -> Iterator[Trace]:
    """The power law through the minima by least squares in logarithms, solid among them and dashed beyond."""
    if len(held) < 2:
        return
    x, y = [math.log(p.compute_flop) for p in held], [math.log(case.losses.of(p.loss)) for p in held]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )

    def at(flops: Sequence[float]) -> list[float]:
        return [math.exp(mean_y + slope * (math.log(c) - mean_x)) for c in flops]

    inside, beyond = [math.exp(min(x)), math.exp(max(x))], [math.exp(max(x)), end]
    yield figure_parts.line(inside, at(inside), GREY, width=1.5)
    yield figure_parts.line(
        beyond,
        at(beyond),
        GREY,
        f"power law C<sup>{slope:.3f}</sup>".replace("-", "−"),
        width=1.5,
        dash="dash",
    )


def _target(case: Case, x: float | None, name: str | None = None) -> Iterator[Trace]:
    """The target's forecast, an upright bar for each band, and its outcome."""
    forecast = case.forecast
    if x is None or forecast is None:
        return
    band, shown = forecast.loss, case.losses.of
    yield figure_parts.bar(
        x, shown(band.low_95), shown(band.high_95), 2, name and f"{name}, 50 and 95 %", FORECAST
    )
    yield figure_parts.bar(x, shown(band.low_50), shown(band.high_50), 7, None, FORECAST)
    text = f"forecast {case.losses.text(band.median)} {case.losses.unit}"
    median = {"symbol": "line-ew-open", "size": 5, "line": {"width": 1.5}}
    yield figure_parts.dots([x], [shown(band.median)], "#fff", None, [text], **median)
    if case.actual is not None:
        actual = f"measured {case.losses.text(case.actual)} {case.losses.unit}"
        look = {"size": 10, "line": {"color": "#fff", "width": 1.5}}
        yield figure_parts.dots([x], [shown(case.actual)], ACTUAL, name and "measured", [actual], **look)
    if name is None:
        yield figure_parts.label(x, shown(band.median), "target", FORECAST, "middle right")


def _heights(case: Case) -> list[float]:
    """Every loss that a figure of the evidence shows."""
    losses = [point.loss for point in case.points()]
    if case.forecast is not None:
        losses += [case.forecast.loss.low_95, case.forecast.loss.high_95]
    if case.actual is not None:
        losses.append(case.actual)
    return [case.losses.of(loss) for loss in losses]


def _hover(case: Case, point: EvidencePoint) -> str:
    named = "" if point.line is None else f"{point.run}: "
    short = ", a short run" if point.short else ""
    sizes = f"{case.symbol} {count(point.size)}, {count(point.tokens)} tokens"
    return f"{named}{case.losses.text(point.loss)} {case.losses.unit} at {sizes}{short}"


def _by_budget(points: Sequence[EvidencePoint]) -> list[_Budget]:
    found: list[_Budget] = []
    for point in sorted(points, key=lambda p: p.budget_flop):
        if not found or not _near(found[-1][0], point.budget_flop):
            found.append((point.budget_flop, []))
        found[-1][1].append(point)
    return [(budget, sorted(runs, key=lambda p: p.size)) for budget, runs in found]


def _with_room(sizes: Sequence[float]) -> list[float]:
    """The ends of an axis with room on its right for the budgets' names."""
    return [min(sizes), max(sizes) * (max(sizes) / min(sizes)) ** 0.2]


def _near(one: float, other: float) -> bool:
    """Whether two budgets are the same but for rounding to whole steps."""
    return abs(math.log(one / other)) < 0.1
