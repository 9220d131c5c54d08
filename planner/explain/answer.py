"""Where a number of a plan comes from: the law, its equation, the evidence, the interval, and what decided it.

Everything is read from the plan itself, so that a sealed plan explains itself years later; only the family of shapes is
looked up in the catalog. The rules are a table from paths to functions, first match first. A rule recomputes what it
explains and reports by how much the plan differs, so that no explanation contradicts the numbers.
"""

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from planner.explain import rules_cost, rules_forecast, rules_training
from planner.explain.fields import Field, find_field, format_value
from planner.explain.reason import Reason, Rule
from specs.plan import Plan


@dataclass(frozen=True)
class Explanation:
    """One field of a plan and where it comes from."""

    field: str
    """Its whole path."""
    value: Any
    """Its value as JSON types."""
    value_text: str
    """The value as text with its unit."""
    meaning: str
    """What the field is."""
    law: str | None
    """The law or practice behind it, with its source."""
    equation: str | None
    """The law's equation with its constants, and what it gives here."""
    evidence: tuple[str, ...]
    """The runs, documents or measurements that it rests on."""
    interval: tuple[float, float] | None
    """Ends of its interval; None where it has none."""
    interval_text: str | None
    """The interval as text: 95 % of the probability, or the values that are near-optimal."""
    decided_by: str
    """What decided the value: the law, a field of the budget, the learning-rate check, rounding to a legal value."""

    def plain(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


_EXACT_FROM = 10_000
"""Integers from here on are printed with three digits and then exactly."""

RULES: tuple[tuple[str, Rule], ...] = (*rules_training.RULES, *rules_cost.RULES, *rules_forecast.RULES)


def explain(plan: Plan, name: str) -> Explanation:
    """The field of this name and its reason; NoFieldError where there is none."""
    field = find_field(plan, name)
    reason = reason_of(plan, field)
    return Explanation(
        field=field.name,
        value=field.plain(),
        value_text=_value_text(field),
        meaning=field.description,
        law=reason.law,
        equation=reason.equation,
        evidence=reason.evidence,
        interval=reason.interval,
        interval_text=reason.interval and _interval_text(field, reason.interval, reason.interval_of),
        decided_by=reason.decided_by,
    )


def reason_of(plan: Plan, field: Field) -> Reason:
    """The reason of a field, by the first rule that matches its path; the last rule matches every path."""
    return next(rule for pattern, rule in RULES if fnmatchcase(field.pattern, pattern))(field, plan)


def _value_text(field: Field) -> str:
    """The value as text, large integers also to the last digit."""
    text, exact = field.value_text(), f"{field.value:,}" if isinstance(field.value, int) else ""
    return f"{text} ({exact})" if exact not in text and field.value >= _EXACT_FROM else text


def _interval_text(field: Field, ends: tuple[float, float], kind: str) -> str:
    low, high = (format_value(end, field.path, field.info) for end in ends)
    return f"{kind} from {low} to {high}"
