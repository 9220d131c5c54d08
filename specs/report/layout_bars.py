"""Layouts compared: seconds of a step and bytes of a device as bars, by part.

A bar is a layout, the plan's own on top; a part has the same colour in every bar. Work that advances the model is blue,
communication and recomputation are warm, waiting is grey. The bars are plain HTML: they need no script and print well.
"""

from collections.abc import Callable, Iterator, Sequence

from specs.formatting import memory, percent, signed
from specs.layout import Layout
from specs.plan import LayoutChoice, LayoutEstimate
from specs.report.html import Html, join, tag

MOST = 6
"""Most layouts that are shown."""
ROOM = 1.12
"""The memory's bars reach this far beyond what may be filled; the layout that does not fit is cut off there."""
SECONDS = {
    "matmuls": "#12508c",
    "attention": "#3b7fb9",
    "head and loss": "#6aa5d2",
    "elementwise": "#9cc5e3",
    "optimizer": "#c9def0",
    "recompute": "#8c3d04",
    "tensor parallel": "#d1570a",
    "pipeline transfers": "#ee9249",
    "data parallel": "#f8c79a",
    "bubble": "#cfd4da",
}
"""Parts of a step and their colours, in the order of a bar."""
MEMORY = {
    "parameters": "#12508c",
    "gradients": "#3b7fb9",
    "optimizer": "#9cc5e3",
    "activations": "#d1570a",
    "logits": "#ee9249",
    "workspace": "#cfd4da",
}
"""Parts of a device's memory, likewise."""
_OTHER = "#8b929b"
"""The colour of a part that has none of its own."""


def steps(choice: LayoutChoice) -> Html:
    """Seconds of a step under the best layouts."""
    shown = distinct(choice.ranked)
    longest = max(one.step_s for one in shown)
    best = shown[0].step_s
    rows = (
        _row(one.layout, _pace(one, best), _segments(one.seconds, SECONDS, longest, seconds_text))
        for one in shown
    )
    return join((_legend([one.seconds for one in shown], SECONDS), tag("div", *rows, class_="bars")))


def memories(choice: LayoutChoice) -> Html:
    """Bytes of the fullest device under the same layouts, and under the nearest miss, against what may be filled."""
    shown, miss = distinct(choice.ranked), choice.nearest_miss
    longest = ROOM * choice.limit_bytes
    limit = tag("u", style=f"left:{_share(choice.limit_bytes, longest)}", title=_limit(choice))
    rows = [
        _row(one.layout, memory(one.memory_bytes), [*_segments(one.memory, MEMORY, longest, memory), limit])
        for one in shown
    ]
    if miss is not None:
        cut = miss.memory_bytes > longest
        bar = [*_segments(miss.memory, MEMORY, longest, memory), limit]
        text = f"{memory(miss.memory_bytes)}, does not fit"
        rows.append(_row(miss.layout, text, bar, "missed cut" if cut else "missed"))
    drawn = [one.memory for one in shown] + ([] if miss is None else [miss.memory])
    keys = _legend(drawn, MEMORY, tag("li", tag("u"), _limit(choice)))
    return join((keys, tag("div", *rows, class_="bars")))


def distinct(ranked: Sequence[LayoutEstimate]) -> list[LayoutEstimate]:
    """The best of every split into dp, pp and tp, then the best of the others, all in the order of the ranking."""
    first: dict[tuple[int, int, int], int] = {}
    for at, one in enumerate(ranked):
        first.setdefault((one.layout.dp, one.layout.pp, one.layout.tp), at)
    others = [at for at in range(len(ranked)) if at not in first.values()]
    return [ranked[at] for at in sorted([*first.values(), *others][:MOST])]


def counts(choice: LayoutChoice) -> str:
    """How many layouts there were, and the nearest one that does not fit, as text."""
    text = f"{choice.considered:,} layouts are possible, and {choice.fitting:,} of them fit. "
    miss = choice.nearest_miss
    if miss is None or choice.nearest_miss_bytes is None:
        return text
    pace = miss.step_s / choice.ranked[0].step_s - 1
    over = memory(choice.nearest_miss_bytes)
    return f"{text}The last bar is the nearest that does not fit: {signed(pace)} step time, {over} over the limit."


def seconds_text(value: float) -> str:
    """Seconds with three digits: steps of two layouts often differ in the third."""
    scale, unit = (1.0, "s") if value >= 1 else (1e-3, "ms") if value >= 1e-3 else (1e-6, "µs")
    return f"{value / scale:#.3g}".rstrip(".") + f" {unit}"


def _limit(choice: LayoutChoice) -> str:
    return f"{memory(choice.limit_bytes)} usable"


def _pace(one: LayoutEstimate, best: float) -> str:
    """Seconds and utilisation; behind the best, how far."""
    used = f"MFU {percent(one.model_flop_utilisation, 0)}"
    return f"{seconds_text(one.step_s)}, {used if one.step_s == best else signed(one.step_s / best - 1)}"


def _row(layout: Layout, end: str, segments: Sequence[Html], kind: str = "fits") -> Html:
    sizes, rest = lines(layout)
    head = tag("p", tag("b", sizes), tag("span", rest), tag("em", end))
    return tag("div", head, tag("div", *segments, class_="bar"), class_=kind)


def lines(layout: Layout) -> tuple[str, str]:
    """The sizes of the axes, and what goes with them."""
    sizes = f"dp {layout.dp} · pp {layout.pp} · tp {layout.tp}{' + sp' if layout.sequence_parallel else ''}"
    rest = [f"micro-batch {layout.micro_batch_sequences}"]
    rest += [f"interleaved × {layout.interleave}"] if layout.interleave > 1 else []
    rest += [f"recompute {layout.recompute}"] if layout.recompute != "none" else []
    if layout.stage_layers is not None:
        rest.append(f"stages of {min(layout.stage_layers)} to {max(layout.stage_layers)}")
    return sizes, ", ".join(rest)


def _segments(
    parts: dict[str, float], colours: dict[str, str], longest: float, text_of: Callable[[float], str]
) -> list[Html]:
    total = sum(parts.values())
    return [
        tag(
            "i",
            style=f"width:{_share(parts[name], longest)};background:{colours.get(name, _OTHER)}",
            title=f"{name}: {text_of(parts[name])}, {percent(parts[name] / total)}",
        )
        for name in _ordered(parts, colours)
        if parts[name] > 0
    ]


def _legend(parts: Sequence[dict[str, float]], colours: dict[str, str], *more: Html) -> Html:
    """What the colours mean; parts that no bar has are left out."""
    present = {name: 1.0 for one in parts for name, value in one.items() if value > 0}
    return tag("ul", *_swatches(present, colours), *more, class_="keys")


def _swatches(present: dict[str, float], colours: dict[str, str]) -> Iterator[Html]:
    for name in _ordered(present, colours):
        yield tag("li", tag("i", style=f"background:{colours.get(name, _OTHER)}"), name)


def _ordered(parts: dict[str, float], colours: dict[str, str]) -> list[str]:
    """Names in the order of their colours, those without one last."""
    return [*(name for name in colours if name in parts), *sorted(set(parts) - set(colours))]


def _share(value: float, longest: float) -> str:
    return f"{100 * value / longest:.3f}%"
