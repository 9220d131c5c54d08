"""Where a number of a plan comes from: the law, its equation, the evidence, the interval, and who had the last word.

Everything is read from the plan itself, so that a sealed plan explains itself years later; only the family of shapes is
looked up in the catalog. The rules are a table from paths to functions, first match first; a rule recomputes what it
explains and says by how much the plan differs, so that it cannot tell a story that the numbers do not bear out.
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
    """One field of a plan with all that is known of it."""

    field: str
    """Its whole path."""
    value: Any
    """Its value as JSON types."""
    said: str
    """The value in words with its unit."""
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
    """The interval in words: 95 % of the probability, or what is as good as the best."""
    decided_by: str
    """Who had the last word: the law, a field of the budget, the learning-rate check, rounding to something legal."""

    def plain(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


_EXACT_FROM = 10_000
"""Whole numbers from here on are said with three digits, and exactly beside it."""

RULES: tuple[tuple[str, Rule], ...] = (*rules_training.RULES, *rules_cost.RULES, *rules_forecast.RULES)


def explain(plan: Plan, name: str) -> Explanation:
    """The field of this name with its reasons; NoFieldError where there is none."""
    field = find_field(plan, name)
    why = reason_of(plan, field)
    return Explanation(
        field=field.name,
        value=field.plain(),
        said=_value_text(field),
        meaning=field.text,
        law=why.law,
        equation=why.equation,
        evidence=why.evidence,
        interval=why.interval,
        interval_text=why.interval and _interval_text(field, why.interval, why.interval_of),
        decided_by=why.decided_by,
    )


def reason_of(plan: Plan, field: Field) -> Reason:
    """The reasons of a field, by the first rule that knows its path; the last rule knows every path."""
    return next(rule for pattern, rule in RULES if fnmatchcase(field.pattern, pattern))(field, plan)


def _value_text(field: Field) -> str:
    """The value in words, and large whole numbers to the last digit."""
    exact = isinstance(field.value, int) and field.value >= _EXACT_FROM
    return f"{field.say()} ({field.value:,})" if exact else field.say()


def _interval_text(field: Field, ends: tuple[float, float], kind: str) -> str:
    low, high = (format_value(end, field.path, field.info) for end in ends)
    return f"{kind} from {low} to {high}"
