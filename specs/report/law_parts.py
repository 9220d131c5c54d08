"""How laws and losses are shown on every page: formulae, constants, weights, a forecast as a strip."""

import re
from collections.abc import Mapping

from specs.formatting import readable
from specs.humanize import Losses
from specs.law import Band, Interval
from specs.report.html import Html, join, tag

GAUGE_MARGIN = 0.17
"""Room beside the band and the outcome, as a share of the gauge: a label of seven digits fits into it."""
_FORMULA = re.compile(
    r"(?:[A-Za-z0-9+\-=*/^_{}(),. ]|\\(?:alpha|beta|gamma|eta|kappa|delta|lambda|exp|frac|left|right|log|cdot|,))+"
)
"""LaTeX of our own laws. Anything else is shown as text, never converted."""

_GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "kappa": "κ", "lambda": "λ"}


def formula(latex: str) -> Html:
    """LaTeX as MathML, which browsers set without a script."""
    if not _FORMULA.fullmatch(latex):
        return tag("code", latex)
    from latex2mathml.converter import convert

    try:
        return Html(convert(readable(latex)))
    except Exception:  # a document may say anything; the converter's errors share no base of their own
        return tag("code", latex)


def constants_text(constants: Mapping[str, Interval]) -> str:
    """Constants of a law with their 95 % intervals."""
    return ", ".join(
        f"{_GREEK.get(name, name)} {v.value:.3g} ({v.low:.3g} to {v.high:.3g})"
        for name, v in constants.items()
    )


def weight_bar(weight: float) -> Html:
    """A weight as a bar and a number."""
    bar = tag("span", class_="weight", style=f"width:{60 * weight:.0f}px")
    return join((bar, f" {weight:.2f}"))


def gauge(losses: Losses, band: Band, actual: float | None) -> Html:
    """The band as a strip, the median as a tick, the outcome as a dot where there is one."""
    ends = [band.low_95, band.high_95, *([] if actual is None else [actual])]
    shown = max(ends) - min(ends) or band.median  # a band of no width is still drawn
    room = shown * GAUGE_MARGIN / (1 - 2 * GAUGE_MARGIN)
    start, width = min(ends) - room, shown + 2 * room

    def at(loss: float) -> str:
        return f"{100 * (loss - start) / width:.2f}%"

    def strip(low: float, high: float, kind: str) -> Html:
        return tag("i", class_=kind, style=f"left:{at(low)};width:{100 * (high - low) / width:.2f}%")

    parts = [
        strip(band.low_95, band.high_95, "wide"),
        strip(band.low_50, band.high_50, "narrow"),
        tag("i", class_="median", style=f"left:{at(band.median)}"),
        tag("span", losses.text(band.low_95), class_="low", style=f"left:{at(band.low_95)}"),
        tag("span", losses.text(band.high_95), class_="high", style=f"left:{at(band.high_95)}"),
        tag("span", f"forecast {losses.text(band.median)}", class_="middle", style=f"left:{at(band.median)}"),
    ]
    if actual is not None:
        parts.append(tag("i", class_="actual", style=f"left:{at(actual)}"))
        parts.append(
            tag("span", f"measured {losses.text(actual)}", class_="measured", style=f"left:{at(actual)}")
        )
    return tag("div", tag("div", *parts, class_="gauge"), class_="gauge-box")
