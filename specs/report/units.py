"""How the page says numbers: powers of ten, signed percentages, shapes, money."""

import math
from collections.abc import Callable

from specs.law import Band, Interval, Optimum
from specs.losses import Losses
from specs.model import ModelSpec
from specs.plan import HyperAdvice
from specs.words import count, duration

_THIN = "\u202f"
"""A narrow space that does not break, between a number and its unit."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(value: float) -> str:
    """`3.2·10¹¹`, `10¹²`: two digits and a power of ten."""
    digits, exponent = f"{value:.1e}".split("e")
    raised = "10" + str(int(exponent)).translate(_RAISED)
    return raised if digits == "1.0" else f"{digits}·{raised}"


def flop(value: float) -> str:
    """An amount of compute."""
    return f"{power(value)} FLOP"


def signed(share: float) -> str:
    """A signed percentage with a true minus: `−1.8 %`."""
    return f"{share:+.1%}".replace("-", "−").replace("%", f"{_THIN}%")


def percent(share: float, digits: int = 1) -> str:
    """A percentage: `4.8 %`."""
    return f"{share:.{digits}%}".replace("%", f"{_THIN}%")


def half_width(band: Band) -> str:
    """Half the width of the 95 % interval against its middle: `±3.1 %`."""
    return f"±{percent((band.high_95 - band.low_95) / 2 / math.sqrt(band.low_95 * band.high_95))}"


def best_split(found: Optimum, losses: Losses) -> list[tuple[str, str]]:
    """Every quantity of a best split with its 95 % interval."""

    def said(one: Interval, unit: str, say: Callable[[float], str] = count) -> str:
        return f"{say(one.value)}{unit} ({say(one.low)} to {say(one.high)})"

    return [
        ("M*", said(found.flop_per_token, " FLOP per token")),
        ("N*", said(found.block_params, " parameters in blocks")),
        ("D*", said(found.tokens, " tokens")),
        ("D*/N*", said(found.tokens_per_block_param, "")),
        ("L*", said(found.loss, f" {losses.unit}", losses.say)),
    ]


def near_optimal(told: HyperAdvice) -> str:
    """The rates that are as good as a law's best, in brackets; nothing where nobody knows them."""
    if told.near_optimal_lr is None:
        return ""
    low, high = told.near_optimal_lr
    return f" ({low:.3g} to {high:.3g} within 0.25 % of its loss)"


def shape(model: ModelSpec) -> str:
    """Layers by width."""
    return f"{model.layers} × {model.width:,}"


def memory(size_bytes: float) -> str:
    """Bytes in the largest binary unit that leaves at least one, never as a power of ten."""
    units = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
    unit, letters = next((u, n) for u, n in units if size_bytes >= u or u == 1)
    amount = size_bytes / unit
    return f"{amount:.3g} {letters}" if amount < 999.5 else f"{amount:,.0f} {letters}"


def device_time(hours: float) -> str:
    """Devices times time: as a duration below an hour, else in device-hours."""
    return duration(hours * 3600) if hours < 1 else f"{count(hours)} device-hours"


def dollars(value: float | None) -> str:
    """A price; a dash where none is known."""
    if value is None:
        return "–"
    return f"${count(value)}" if value >= 1e6 else f"${value:,.2f}" if value < 100 else f"${value:,.0f}"


def ticks(low: float, high: float) -> list[float]:
    """Round values between two ends, four to nine of them."""
    size = 10.0 ** math.floor(math.log10(high - low))
    step = next(s for s in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if (high - low) / (s * size) <= 9) * size
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(i * step, 10) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two ends; only the powers where these are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    return [d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high]
