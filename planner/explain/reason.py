"""What a reason consists of, and the sentences that several rules share."""

from collections.abc import Callable
from dataclasses import dataclass

from planner.design.run_draft import law_variables
from planner.explain.fields import Field
from specs.document.files import from_catalog
from specs.formatting import SYMBOLS
from specs.law import Family, Hyper, Monomial, PublishedLaw
from specs.plan import Plan, PlannedRun

PAPER = "DeepSeek LLM, arXiv 2401.02954"
"""Source of the laws, the schedule and the counts unless a catalog entry names another."""


@dataclass(frozen=True)
class Reason:
    """The reason of one field's value."""

    decided_by: str
    """What decided the value."""
    law: str | None = None
    """The law or practice with its source."""
    equation: str | None = None
    """The equation with its constants and what it gives."""
    evidence: tuple[str, ...] = ()
    """What it rests on."""
    interval: tuple[float, float] | None = None
    """Ends of an interval."""
    interval_of: str = "95 %"
    """What the interval holds."""


Rule = Callable[[Field, Plan], Reason]


def run_of(field: Field, plan: Plan) -> PlannedRun:
    """The planned run that a field below `runs` belongs to."""
    return plan.runs[int(field.path[1])] if len(field.path) > 1 else plan.runs[-1]


def law_value(law: Monomial, planned: PlannedRun) -> tuple[float, str]:
    """A power law's value for a run before rounding, and its variables as text."""
    values = law_variables(planned.run.model, planned.budget_flop)
    text = ", ".join(f"{SYMBOLS[name]} = {values[name]:.4g}" for name in law.exponents)
    return law.at(**values), text


def hyper_of(plan: Plan) -> tuple[Hyper, str] | None:
    """The formulas of learning rate and batch that the plan follows, and their source; None where it names none."""
    followed = next((one for one in plan.hypers if one.used), None)
    name = plan.law.name if followed is None else followed.law
    named = getattr(plan.budget.evidence, "hyper", None)
    if followed is None and named is not None:
        name = named
    law = plan.law if name == plan.law.name else from_catalog(PublishedLaw, name, None)
    hyper = law.hyper if followed is None else followed.hyper
    return None if hyper is None else (hyper, f"{name}: {law.source}; {hyper.regime}")


def family_of(plan: Plan) -> Family:
    """The plan's family of shapes."""
    return from_catalog(Family, plan.budget.family, None)


def deviation_text(target: float, actual: float) -> str:
    """How far the actual value is from its target: `+1.36 %`, or `unchanged` where that rounds to 0."""
    text = f"{actual / target - 1:+.2%}".replace("%", " %")
    return "unchanged" if text[1:] == "0.00 %" else text
