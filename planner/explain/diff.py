"""What differs between two plans, field by field, grouped by topic.

Stored fields and those derived from them (tokens, M, parameters) are compared. Targets are compared with each other,
pilots with the pilot of the same title; a list of numbers is one field.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from planner.explain.fields import Field, children, root_field
from specs.document.base import Spec
from specs.formatting import listed_members, member_name
from specs.humanize import several
from specs.law import Band, FormScore, Interval, LawFit, Monomial
from specs.mix import Mix
from specs.plan import Forecast, HyperAdvice, LayoutChoice, LayoutEstimate, NoForecast, Plan, PlannedRun

Group = Literal["budget", "evidence", "runs", "shape", "schedule", "layout", "cost", "forecast", "document"]
GROUPS: tuple[tuple[Group, tuple[str, ...]], ...] = (
    ("budget", ("budget",)),
    (
        "evidence",
        ("law", "fit", "table", "unique_tokens", "sources", "curation", "bytes_per_token", "ledger"),
    ),
    ("runs", ("runs",)),
    ("shape", ("run.model",)),
    ("schedule", ("run", "budget_flop", "rate_multiple", "hypers")),
    ("layout", ("execution", "fallback_layouts", "layouts")),
    ("cost", ("cost",)),
    ("forecast", ("forecast",)),
    ("document", ("",)),
)
"""The groups in order, each with the path prefixes that belong to it (of a run: below the run). The longest wins."""

_COMPARED_WHOLE = (Band, Interval, Monomial, LayoutEstimate, Mix)
"""Specs that are compared and printed as a whole."""
_SKIPPED = ("title", "seal", "sha256")
"""Fields that change whenever anything else does."""


@dataclass(frozen=True)
class Difference:
    """One field that differs."""

    group: Group
    """What it is about."""
    field: str
    """Its path; for a field of a run, the path below the run."""
    run: str | None
    """Title of the pilot that it belongs to; None outside of runs and for the target."""
    before: Any
    """The first plan's value as JSON types; None where it has none."""
    after: Any
    """The second plan's."""
    text_before: str
    """The first plan's value as text."""
    text_after: str
    """The second plan's."""
    ratio: float | None
    """Second over first, where both are positive numbers."""

    def plain(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def diff(before: Plan, after: Plan) -> tuple[Difference, ...]:
    """What differs, in the order of the groups; nothing where the plans have the same content."""
    one, other = (
        {child.path[-1]: child for child in children(root_field(plan)) if child.path[-1] != "runs"}
        for plan in (before, after)
    )
    found = [_difference(pair, None) for name in one for pair in _differing_fields(one[name], other[name])]
    found += _runs(before, after)
    order = [group for group, _ in GROUPS]
    return tuple(sorted(found, key=lambda difference: order.index(difference.group)))


def without_small_members(
    found: Sequence[Difference], before: Plan, after: Plan
) -> tuple[tuple[Difference, ...], int]:
    """The differences without those of members of the forecast whose weight is small in both plans, and the number of
    these members."""
    fits = [plan.fit for plan in (before, after) if plan.fit is not None]
    listed = {member_name(member) for fit in fits for member in listed_members(fit.forms)[0]}
    small = {member_name(member) for fit in fits for member in fit.forms} - listed
    of = [next((name for name in small if _is_below(one.field, f"fit.forms.{name}")), None) for one in found]
    kept = tuple(one for one, member in zip(found, of, strict=True) if member is None)
    return kept, len({*of} - {None})


def _is_below(field: str, above: str) -> bool:
    return f"{field}.".startswith(f"{above}.")


def _runs(before: Plan, after: Plan) -> list[Difference]:
    """Differences of runs with the same title, targets taken as one, and the runs that only one plan has."""
    one, other = ({_key(run): run for run in plan.runs} for plan in (before, after))
    found = []
    if [*one] != [*other]:
        texts = [_runs_text(mine, theirs) for mine, theirs in ((one, other), (other, one))]
        titles = [[run.title for run in side.values()] for side in (one, other)]
        found.append(Difference("runs", "runs", None, titles[0], titles[1], texts[0], texts[1], None))
    for key in one:
        if key in other:
            pair = (Field((), run, None, "") for run in (one[key], other[key]))
            title = None if one[key].role == "target" else one[key].title
            found += [_difference(fields, title) for fields in _differing_fields(*pair)]
    return found


def _key(planned: PlannedRun) -> str:
    return "target" if planned.role == "target" else planned.title


def _runs_text(mine: dict[str, PlannedRun], theirs: dict[str, PlannedRun]) -> str:
    alone = [run.title for key, run in mine.items() if key not in theirs]
    if not alone:
        return several(len(mine), "run")
    return f"{several(len(mine), 'run')}, only in this plan: {'; '.join(alone)}"


def _differing_fields(one: Field, other: Field) -> Iterator[tuple[Field, Field]]:
    """The smallest fields below two that differ; both have the same path."""
    if (one.path and one.path[-1] in _SKIPPED) or one.plain() == other.plain():
        return
    if not _is_compared_by_part(one.value) or type(one.value) is not type(other.value):
        yield one, other
        return
    below, above = ({child.path[-1]: child for child in _parts(field)} for field in (one, other))
    for name in dict.fromkeys((*below, *above)):
        missing = Field((*one.path, name), None, None, "")
        yield from _differing_fields(below.get(name, missing), above.get(name, missing))


def _is_compared_by_part(value: Any) -> bool:
    """Whether a value is compared part by part."""
    if isinstance(value, tuple):
        return bool(value) and isinstance(value[0], FormScore | HyperAdvice)
    return isinstance(value, dict) or (isinstance(value, Spec) and not isinstance(value, _COMPARED_WHOLE))


def _parts(field: Field) -> Iterator[Field]:
    """The parts of a field; members of the forecast and laws by their names."""
    for child in children(field):
        if isinstance(child.value, FormScore | HyperAdvice):
            name = member_name(child.value) if isinstance(child.value, FormScore) else child.value.law
            yield Field((*field.path, name), child.value, child.info, child.description)
        elif child.info is not None or field.path[:1] != ("budget",):
            yield child


def _difference(pair: tuple[Field, Field], run: str | None) -> Difference:
    one, other = pair
    return Difference(
        group=_group(one.name),
        field=one.name,
        run=run,
        before=one.plain(),
        after=other.plain(),
        text_before=_summary(one),
        text_after=_summary(other),
        ratio=_ratio(_number(one.value), _number(other.value)),
    )


def _group(name: str) -> Group:
    fits = [(len(path), group) for group, paths in GROUPS for path in paths if f"{name}.".startswith(path)]
    return max(fits)[1]


def _summary(field: Field) -> str:
    """A value as text, whole documents in short."""
    match field.value:
        case Forecast():
            return Field(field.path, field.value.loss, None, "").value_text()
        case NoForecast():
            return f"none: {field.value.reason}"
        case LawFit():
            return (
                f"{several(len(field.value.points), 'run')}, {several(len(field.value.forms), 'fitted law')}"
            )
        case FormScore():
            return f"weight {field.value.weight:.2f}, forecast {field.value.forecast:.4f} nats/token"
        case LayoutChoice():
            return f"{field.value.fitting:,} of {field.value.considered:,} layouts fit"
        case (HyperAdvice(), *_):
            return ", ".join(one.law for one in field.value)
        case (LayoutEstimate() as best, *_):
            return f"{len(field.value)} ranked, first {Field(field.path, best, None, '').value_text()}"
        case (dict(), *_):
            return f"{len(field.value)} entries"
        case tuple() if field.value and isinstance(field.value[0], Spec) and len(field.value) > 2:
            return f"{len(field.value)} entries"
    return field.value_text()


def _number(value: Any) -> float | None:
    """The number that a ratio is taken of."""
    match value:
        case bool():
            return None
        case int() | float():
            return float(value)
        case Band():
            return value.median
        case Interval():
            return value.value
    return None


def _ratio(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None or before <= 0 or after <= 0 else after / before
