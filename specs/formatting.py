"""How reports and tables write numbers: powers of ten, signed percentages, shapes, money."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from specs.humanize import Losses, count, duration, several
from specs.law import Band, Interval, LossLaw, Monomial, Optimum

if TYPE_CHECKING:  # see specs/report/__init__.py
    from specs.curate import CurationStage
    from specs.layout import Layout
    from specs.mix import Mix, MixPhase
    from specs.model import ModelSpec
    from specs.plan import HyperAdvice

_THIN = "\u202f"
"""A narrow space that does not break, between a number and its unit."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALL_WEIGHT = 0.01
"""Members of a forecast with less weight do not change its digits."""


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


FUNNEL_HEAD = ("step", "read", "dropped", "of these", "left of all")
"""Columns of `funnel_rows`."""


def funnel_rows(stages: Sequence["CurationStage"]) -> list[tuple[str, ...]]:
    """What each step of curation dropped, of the documents that came to it, and what is left of the first one's."""
    return [
        (
            stage.step,
            f"{stage.read:,}",
            f"{stage.dropped:,}",
            percent(stage.dropped / stage.read) if stage.read else "–",
            percent(stage.kept / stages[0].read) if stages[0].read else "–",
        )
        for stage in stages
    ]


def best_split(found: Optimum, losses: Losses) -> list[tuple[str, str]]:
    """Every quantity of a best split with its 95 % interval."""

    def text(one: Interval, unit: str, write: Callable[[float], str] = count) -> str:
        return f"{write(one.value)}{unit} ({write(one.low)} to {write(one.high)})"

    return [
        ("M*", text(found.flop_per_token, " FLOP per token")),
        ("N*", text(found.block_params, " parameters in blocks")),
        ("D*", text(found.tokens, " tokens")),
        ("D*/N*", text(found.tokens_per_block_param, "")),
        ("L*", text(found.loss, f" {losses.unit}", losses.text)),
    ]


class Member(Protocol):
    """What a member of a forecast is called, and what it weighs."""

    @property
    def form(self) -> str:
        """Name of the form."""

    @property
    def window_decades(self) -> float | None:
        """Decades of compute of the runs that it is fitted on; None for all runs."""

    @property
    def weight(self) -> float:
        """Its share in the forecast."""


def member_name(member: Member) -> str:
    """A member of a forecast: `coupled`, or `coupled, last 1.3 decades` where it is fitted on these runs only."""
    return member.form if member.window_decades is None else f"{member.form}, {member_runs(member)}"


def member_runs(member: Member) -> str:
    """The runs that a member is fitted on: `all runs`, or `last 1.3 decades` of compute."""
    window = member.window_decades
    return "all runs" if window is None else f"last {window:g} {'decade' if window == 1 else 'decades'}"


M = TypeVar("M", bound=Member)


def listed_members(members: Sequence[M]) -> tuple[tuple[M, ...], tuple[M, ...]]:
    """The members that a table for people lists, largest weight first, and those of under 1 % that it sums up in one
    line; a single one of these is listed too."""
    ordered = sorted(members, key=lambda member: -member.weight)
    small = tuple(member for member in ordered if member.weight < _SMALL_WEIGHT)
    if len(small) < 2:
        return tuple(ordered), ()
    return tuple(member for member in ordered if member.weight >= _SMALL_WEIGHT), small


def small_members_name(small: Sequence[Member]) -> str:
    """The line that sums up members of small weight: `7 more, each under 1 %`."""
    return f"{len(small)} more, each under {_SMALL_WEIGHT:.0%}".replace("%", " %")


def windows_text(members: Sequence[Member]) -> str:
    """What `last 1.3 decades` means, for every window of the members; empty where all are fitted on all runs."""
    windows = {member.window_decades: member_runs(member) for member in members}
    widths = sorted((width for width in windows if width is not None), reverse=True)
    return "; ".join(
        f"{windows[width]}: fitted on the runs down to 1/{10**width:.2g} of the third largest compute"
        for width in widths
    )


def near_optimal(advice: "HyperAdvice") -> str:
    """The rates that are as good as a law's best, in brackets; empty where they are not known."""
    if advice.near_optimal_lr is None:
        return ""
    low, high = advice.near_optimal_lr
    return f" ({low:.3g} to {high:.3g} within 0.25 % of its loss)"


def shape(model: "ModelSpec") -> str:
    """Layers by width."""
    return f"{model.layers} × {model.width:,}"


def attended_text(model: "ModelSpec") -> str:
    """What attention sees of the context, behind the context; empty where documents are joined."""
    if model.mean_attended_tokens is None:
        return ""
    return f", of which attention sees {model.mean_attended_tokens:,.4g} within documents"


def mix_text(mix: "Mix") -> str:
    """The shares of a mix's phases: `web 70 %, code 30 %; from step 900 web 20 %, code 80 %`."""
    return "; ".join(map(mix_phase_text, mix.phases))


def mix_phase_text(phase: "MixPhase") -> str:
    """The shares of a phase, and where it begins unless that is the start."""
    text = _shares_text({name: phase.share(name) for name in phase.samples})
    return f"from step {phase.from_step:,} {text}" if phase.from_step else text


def evaluation_mix_text(mix: "Mix") -> str:
    """Each source's share of the held-out loss of a mix."""
    return _shares_text({name: mix.evaluation_share(name) for name in mix.sources})


def _shares_text(shares: Mapping[str, float]) -> str:
    """Shares, the largest first; sources without one are left out."""
    ordered = sorted(shares.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{name} {100 * share:.4g} %" for name, share in ordered if share)


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


def shape_text(model: "ModelSpec") -> str:
    """A shape in a line."""
    kv = f", {model.kv_heads} kv heads" if model.kv_heads < model.heads else ""
    heads = several(model.heads, "head")
    return f"{several(model.layers, 'layer')} x {model.width:,}, {heads}{kv}, ffn {model.ffn:,}, vocab {model.vocab:,}"


def layout_text(layout: "Layout") -> str:
    """A layout in a line."""
    parts = [f"dp {layout.dp}", f"pp {layout.pp}", f"tp {layout.tp}"]
    text = " x ".join(parts) + (" + sp" if layout.sequence_parallel else "")
    if layout.interleave > 1:
        text += f", interleaved {layout.interleave}"
    recompute = "" if layout.recompute == "none" else f", recompute {layout.recompute}"
    sizes = layout.stage_layers
    cut = "" if sizes is None else f", stages of {min(sizes)} to {max(sizes)} layers"
    return f"{text}, micro-batch {layout.micro_batch_sequences}{recompute}{cut}"


SYMBOLS = {"compute_flop": "C", "flop_per_token": "M", "block_params": "N", "tokens": "D", "width": "d"}
"""The letter of each variable of a law."""


_GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "kappa": "κ", "lambda": "λ"}


_COMMANDS = {rf"\{name}": letter for name, letter in _GREEK.items()} | {
    r"{\left(": "(",
    r" \right)}": ")",
    r"\left": "",
    r"\right": "",
    r"\cdot": "·",
    r"\log": "ln",
    r"\,": " ",
}


def monomial_text(law: Monomial) -> str:
    """`0.3118 C^-0.125`."""
    powers = [
        SYMBOLS[name] if power == 1 else f"{SYMBOLS[name]}^{_number(power)}"
        for name, power in law.exponents.items()
        if power
    ]
    return " ".join([_number(law.coefficient), *powers])


def monomial_latex(law: Monomial) -> str:
    """`0.3118 \\, C^{-0.125}`."""
    powers = [
        SYMBOLS[name] if power == 1 else f"{SYMBOLS[name]}^{{{_number(power)}}}"
        for name, power in law.exponents.items()
        if power
    ]
    return r" \, ".join([_scientific(law.coefficient), *powers])


def loss_latex(law: LossLaw) -> str:
    """A published loss law with its constants."""
    size = {"flop_per_token": "M", "block_params": "N", "params": "N"}[law.size]
    terms = [(law.A, size, law.alpha), (law.B, "D", law.beta)]
    powers = [rf"{_scientific(factor)} \, {of}^{{-{_number(power)}}}" for factor, of, power in terms]
    return " + ".join([f"L = {_number(law.E)}", *powers])


def text_of(latex: str) -> str:
    """A form's LaTeX as one line of text: `A M^(-α) + B D^(-β) + E`. Only what our own forms use is known."""
    text = latex
    while fraction := re.search(r"\\frac\{", text):
        above, end = _braced(text, fraction.end() - 1)
        below, stop = _braced(text, end)
        text = f"{text[: fraction.start()]}({above})/({below}){text[stop:]}"
    for command, letter in _COMMANDS.items():
        text = text.replace(command, letter)
    text = text.replace("{", "(").replace("}", ")")
    text = re.sub(r"(?<!ln)\((\w)\)", r"\1", text)
    return " ".join(text.replace("(- ", "(-").split())


def readable(latex: str) -> str:
    """LaTeX with `e^{...}` as `exp(...)`: exponents are set too small to read."""
    start = latex.find("e^{")
    if start < 0 or latex[start - 1 : start].isalpha():
        return latex
    inside, end = _braced(latex, start + 2)
    return rf"{latex[:start]}\exp\left({inside}\right){latex[end:]}"


def _braced(text: str, start: int) -> tuple[str, int]:
    """The text between the brace at `start` and its partner, and the position after it."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + 1 : at], at + 1
    return text[start + 1 :], len(text)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _scientific(value: float) -> str:
    """A number as LaTeX: `0.3118`, `2.1 \\cdot 10^{-7}`."""
    digits, _, power = _number(value).partition("e")
    return digits if not power else rf"{digits} \cdot 10^{{{int(power)}}}"
