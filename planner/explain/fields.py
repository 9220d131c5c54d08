"""The fields of a plan by name: finding a field, its description, and its value as text with its unit.

A field is stored, or derived from stored ones (a property of its Spec, like `tokens`). Its name is its whole path
(`runs.0.run.optim.peak_lr`), its path in the last run (`run.optim.peak_lr`), the end of a path if only one path ends so
(`peak_lr`), or a short name (`lr`).
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from pydantic.fields import FieldInfo

from specs.curate import CuratedText, CurationStage
from specs.document.base import Spec
from specs.document.quantity import Quantity
from specs.exit_codes import InputError
from specs.formatting import (
    evaluation_mix_text,
    layout_text,
    memory,
    mix_phase_text,
    mix_text,
    monomial_text,
    shape_text,
)
from specs.humanize import Losses, count, duration, energy
from specs.law import Band, Interval, Monomial
from specs.layout import Layout
from specs.mix import Mix, MixPhase
from specs.model import ModelSpec
from specs.optim import Milestone
from specs.plan import LayoutEstimate, Plan

_SHOWN_IN_ROWS = Milestone | Layout | MixPhase | CuratedText | CurationStage
"""Specs that are shown one after the other where there are several."""
SHORT_NAMES = {
    "lr": "run.optim.peak_lr",
    "batch": "run.optim.batch_sequences",
    "warmup": "run.optim.warmup_steps",
    "shape": "run.model",
    "parameters": "run.model.params",
    "M": "run.model.flop_per_token",
    "N": "run.model.block_params",
    "D": "run.tokens",
    "tokens": "run.tokens",
    "C": "run.compute_flop",
    "compute": "run.compute_flop",
    "price": "cost.dollars",
    "memory": "cost.memory_bytes",
    "speed": "cost.tokens_per_s",
    "micro_batch": "execution.layout.micro_batch_sequences",
    "hours": "cost.hours",
    "device_hours": "cost.device_hours",
    "layout": "execution.layout",
    "steps": "run.optim.steps",
    "precision": "run.precision",
    "seed": "run.seed",
    "context": "run.model.context",
    "learning_rate": "run.optim.peak_lr",
    "time": "cost.hours",
    "speed_from": "cost.basis",
    "schedule": "run.optim.schedule_text",
    "mix": "run.mix",
}
"""Short names of fields of the last run, the labels of the plan's own table among them."""

BEST_SPLIT = {
    "M*": "flop_per_token",
    "N*": "block_params",
    "D*": "tokens",
    "D*/N*": "tokens_per_block_param",
    "D/N": "tokens_per_block_param",
    "L*": "loss",
}
"""Names of the parts of the compute-optimal allocation, as a plan on a ledger prints them."""

_NATS = {"loss", "median", "low_50", "high_50", "low_95", "high_95", "forecast", "losses"}
_UNITS = {
    "layers": "layers",
    "steps": "steps",
    "batch_sequences": "sequences",
    "warmup_steps": "steps",
    "every_steps": "steps",
    "step": "steps",
    "sequences": "sequences",
    "final_sequences": "sequences",
    "micro_batch_sequences": "sequences",
    "devices": "devices",
    "tokens_per_s": "tokens/s",
    "bytes_per_token": "bytes per token",
}
_MAX_SUGGESTIONS = 4
"""Near matches that an error message names."""
_MAX_INLINE = 6
"""Parts of a value that are printed in one line."""


class NoFieldError(InputError):
    """No field has this name, or several have; the message names those nearest to it."""


@dataclass(frozen=True)
class Field:
    """One field of a plan."""

    path: tuple[str, ...]
    """Names and indices from the plan down to it."""
    value: Any
    """Its value: a number, text, a Spec, or several of these."""
    info: FieldInfo | None
    """How its Spec declares it; None for derived fields, and inside of tuples and dicts."""
    description: str
    """Its docstring."""

    @property
    def name(self) -> str:
        """The path with dots."""
        return ".".join(self.path)

    @cached_property
    def pattern(self) -> str:
        """The path with `*` in place of every index."""
        return ".".join("*" if part.isdigit() else part for part in self.path)

    def plain(self) -> Any:
        """The value as JSON types."""
        return _plain(self.value)

    def value_text(self) -> str:
        """The value as text with its unit."""
        return format_value(self.value, self.path, self.info)


def children(field: Field) -> Iterator[Field]:
    """The fields directly below a field, stored ones before derived ones."""
    value, path = field.value, field.path
    if isinstance(value, Spec):
        for name, info in type(value).model_fields.items():
            yield Field((*path, name), getattr(value, name), info, info.description or "")
        for name, description in _properties(type(value)):
            yield Field((*path, name), getattr(value, name), None, description)
    elif isinstance(value, tuple):
        for index, one in enumerate(value):
            yield Field((*path, str(index)), one, field.info, field.description)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield Field((*path, str(key)), one, None, field.description)


def descendants(field: Field) -> Iterator[Field]:
    """Every field below a field."""
    for child in children(field):
        yield child
        yield from descendants(child)


def root_field(plan: Plan) -> Field:
    """The plan itself as a field without a name."""
    return Field((), plan, None, "The plan.")


def find_field(plan: Plan, name: str) -> Field:
    """The field of this name; NoFieldError where there is none, or several."""
    last = f"runs.{len(plan.runs) - 1}"
    known = {field.name: field for field in descendants(root_field(plan))}
    for path in (_resolve_short_name(plan, name, last), name, f"{last}.{name}"):
        if path in known:
            return known[path]
    ends = [path for path in known if path.endswith(f".{name}")]
    inside = [path for path in ends if path.startswith(f"{last}.")]
    outside = [path for path in ends if not path.startswith("runs.")]
    for some in (inside, outside):
        nearest = [path for path in some if _depth(path) == min(map(_depth, some))]
        if len(nearest) == 1:
            return known[nearest[0]]
    if inside or outside:
        raise NoFieldError(f"several fields are called '{name}'; write {_joined([*inside, *outside], 'or')}")
    raise NoFieldError(
        f"this plan has no field '{name}'; write {_joined(_near_matches(name, known, last), 'or')}"
    )


def _resolve_short_name(plan: Plan, name: str, last: str) -> str:
    if name == "loss":
        return "forecast.loss" if plan.forecast.kind == "forecast" else "forecast.reason"
    if name == "allocation":
        return "law.allocation" if plan.fit is None else "fit.allocation"
    if name in BEST_SPLIT:
        return f"fit.optimum.{BEST_SPLIT[name]}"
    short = name.replace(" ", "_")
    return f"{last}.{SHORT_NAMES[short]}" if short in SHORT_NAMES else ""


def _depth(path: str) -> tuple[int, int]:
    """Number of list indices in a path, then of its parts."""
    parts = path.split(".")
    return sum(part.isdigit() for part in parts), len(parts)


def _near_matches(name: str, known: dict[str, Field], last: str) -> list[str]:
    """Names near an unknown one: those below the part of its path that exists, else paths with a similar last part."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        above = known.get(".".join(parts[:cut]))
        below = [] if above is None else [child.name for child in children(above)] or [above.name]
        if below:
            start = ".".join(parts[: cut + 1])
            return difflib.get_close_matches(start, below, _MAX_SUGGESTIONS, 0.7) or below
    ends: dict[str, str] = {one: one for one in (*SHORT_NAMES, "loss", "allocation")}
    for path in known:
        if not path.startswith("runs.") or path.startswith(f"{last}."):
            ends.setdefault(path.rpartition(".")[2], path)
    similar = difflib.get_close_matches(parts[-1], [*ends], _MAX_SUGGESTIONS, 0.6)
    return [ends[end] for end in similar] or [*SHORT_NAMES]


def _joined(names: list[str], last: str) -> str:
    """The first few names, joined by commas."""
    first = [
        *names[:_MAX_SUGGESTIONS],
        *([f"one of {len(names) - _MAX_SUGGESTIONS} more"] if len(names) > _MAX_SUGGESTIONS else []),
    ]
    return first[0] if len(first) == 1 else f"{', '.join(first[:-1])} {last} {first[-1]}"


def _properties(kind: type) -> Iterator[tuple[str, str]]:
    """Public properties of our own Specs, with their docstrings."""
    for owner in kind.__mro__:
        if not (issubclass(owner, Spec) and owner is not Spec):
            continue
        for name, member in vars(owner).items():
            if isinstance(member, property) and not name.startswith("_"):
                yield name, " ".join((member.__doc__ or "").split())


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.plain()
    if isinstance(value, Losses):
        return value.unit
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def format_value(value: Any, path: tuple[str, ...], info: FieldInfo | None = None) -> str:
    """A value as text: numbers with the unit of the field's name or type, compounds in short."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _format_number(value, path, info)
    if isinstance(value, str):
        return value
    return _format_spec(value, path)


def _format_number(value: float, path: tuple[str, ...], info: FieldInfo | None) -> str:
    names = [part for part in path if not part.isdigit()]
    name = names[-1] if names else ""
    if "exponents" in names:
        return f"{value:.4g}"
    quantity = None if info is None else _quantity([*info.metadata, info.annotation])
    if "seconds" in names[:-1] or re.search(r"(^|[^r])_s$", name):
        return duration(value)
    if "memory" in names[:-1] or name.endswith("_bytes"):
        return memory(value)
    if name == "hours":
        return duration(value * 3600)
    if name in ("dollars", "money"):
        return f"${value:,.2f}" if value < 100 else f"${value:,.0f}"
    if name == "energy_j":
        return energy(value)
    if name.endswith("half_width"):
        return f"±{value:.2%}".replace("%", " %")
    if name == "device_hours":
        return f"{value:,.4g} device-hours"
    if name.endswith("flop_per_token"):
        return f"{value:.4g} FLOP per token"
    if quantity is not None:
        return f"{quantity.prefix}{value:.6g} {quantity.base}".strip()
    if name.endswith("_flop"):
        return f"{value:.4g} FLOP"
    if name.endswith("tokens"):
        return f"{count(value)} tokens"
    if name.endswith("params"):
        return count(value)
    if name in _NATS:
        return f"{value:.4f} nats/token"
    bare, unit = f"{value:,}" if isinstance(value, int) else f"{value:.4g}", _UNITS.get(name)
    return bare if unit is None else f"{bare} {unit.removesuffix('s') if value == 1 else unit}"


def _quantity(parts: Iterable[Any]) -> Quantity | None:
    """The kind of quantity that a field's declaration names, however deep inside of unions."""
    for part in parts:
        if isinstance(part, Quantity):
            return part
        found = _quantity([*getattr(part, "__metadata__", ()), *get_args(part)])
        if found is not None:
            return found
    return None


def _format_spec(value: Any, path: tuple[str, ...]) -> str:
    match value:
        case Layout():
            return layout_text(value)
        case ModelSpec():
            return shape_text(value)
        case Losses():
            return value.unit
        case Monomial():
            return monomial_text(value)
        case Band():
            return f"{value.median:.4f} nats/token, 95 % from {value.low_95:.4f} to {value.high_95:.4f}"
        case Interval():
            middle, low, high = (format_value(end, path) for end in (value.value, value.low, value.high))
            return f"{middle}, 95 % from {low} to {high}"
        case LayoutEstimate():
            mfu = f"{value.model_flop_utilisation:.1%}".replace("%", " %")
            layout = layout_text(value.layout)
            return f"{layout}: {value.step_s:.4g} s a step, MFU {mfu}, {memory(value.memory_bytes)}"
        case CuratedText():
            name = f"{value.source}: " if value.source else ""
            return name + ", ".join(format_value(step, path) for step in value.steps)
        case CurationStage():
            return f"{value.step} dropped {value.dropped:,} of {value.read:,} documents"
        case Mix():
            return f"{mix_text(value)}; held-out loss: {evaluation_mix_text(value)}"
        case MixPhase():
            return mix_phase_text(value)
        case Milestone():
            return f"x {value.factor:g} after step {value.step:,}"
        case tuple():
            return _format_tuple(value, path)
    below = [
        child for child in children(Field(path, value, None, "")) if child.info or isinstance(value, dict)
    ]
    if len(below) <= _MAX_INLINE and all(isinstance(b.value, int | float | str | None) for b in below):
        named = (("" if child.path[-1] == "kind" else f"{child.path[-1]} ", child) for child in below)
        return ", ".join(f"{name}{child.value_text()}" for name, child in named)
    return f"a group of fields; name one of them: {', '.join(child.path[-1] for child in below)}"


def _format_tuple(values: tuple[Any, ...], path: tuple[str, ...]) -> str:
    if not values:
        return "none"
    if isinstance(values[0], Spec | dict) and not isinstance(values[0], _SHOWN_IN_ROWS):
        return f"{len(values)} entries; name one of them, like {'.'.join(path)}.0"
    if len(values) > _MAX_INLINE:
        return f"{len(values)} values, {format_value(values[0], path)} to {format_value(values[-1], path)}"
    return "; ".join(format_value(one, path) for one in values)
