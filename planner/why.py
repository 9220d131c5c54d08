"""What a reason consists of, and the few sentences that several rules share."""

from collections.abc import Callable
from dataclasses import dataclass

from planner.fields import Field
from specs.formulas import SYMBOLS
from specs.law import Monomial
from specs.plan import Plan, PlannedRun

PAPER = "DeepSeek LLM, arXiv 2401.02954"
"""Where the laws, the schedule and the counts come from unless a catalog entry says otherwise."""


@dataclass(frozen=True)
class Why:
    """The reasons of one field."""

    settled_by: str
    """Who had the last word."""
    law: str | None = None
    """The law or practice with its source."""
    equation: str | None = None
    """The equation with its constants and what it gives."""
    evidence: tuple[str, ...] = ()
    """What it rests on."""
    interval: tuple[float, float] | None = None
    """Ends of its 95 % interval."""


Rule = Callable[[Field, Plan], Why]


def run_of(field: Field, plan: Plan) -> PlannedRun:
    """The planned run that a field below `runs` belongs to."""
    return plan.runs[int(field.path[1])] if len(field.path) > 1 else plan.runs[-1]


def variables(planned: PlannedRun) -> dict[str, float]:
    """What a law of learning rate and batch may depend on, as it was when the run was drafted, before rounding."""
    model = planned.run.model
    return {
        "compute_flop": planned.budget_flop,
        "flop_per_token": float(model.flop_per_token),
        "block_params": float(model.block_params),
        "width": float(model.width),
        "tokens": planned.budget_flop / model.flop_per_token,
    }


def at(law: Monomial, planned: PlannedRun) -> tuple[float, str]:
    """A power law's value for a run, and the variables that went into it in words."""
    values = variables(planned)
    said = ", ".join(f"{SYMBOLS[name]} = {values[name]:.4g}" for name in law.exponents)
    return law.at(**values), said


def against(asked: float, came: float) -> str:
    """How far what came is from what was asked: `+1.36 %`, `as asked` where it rounds to nothing."""
    said = f"{came / asked - 1:+.2%}".replace("%", " %")
    return "as asked" if said[1:] == "0.00 %" else said
