"""The formulas that a plan rests on, set as MathML, each with what it gives here and where it comes from."""

from collections.abc import Iterator

from specs.formatting import flop, loss_latex, member_name, monomial_latex, near_optimal
from specs.humanize import count
from specs.law import Monomial
from specs.plan import Plan, PlannedRun
from specs.report.context import Case
from specs.report.html import Html, table, tag
from specs.report.law_parts import formula

_Row = tuple[str, str, str, str]


def formulas(case: Case) -> Html:
    """A table of formulas with their values for one run."""
    planned = shown_for(case)
    rows, above = [], ""
    for name, latex, value, source in _rows(case.plan, planned):
        rows.append((name, formula(latex), value, tag("small", "as above" if source == above else source)))
        above = source
    return table(("", "formula", "value", "source"), rows, text=(0, 1, 2, 3))


def shown_for(case: Case) -> PlannedRun:
    """The target, or the largest pilot where there is no target yet."""
    return case.target or max(case.plan.runs, key=lambda run: run.budget_flop)


def _rows(plan: Plan, planned: PlannedRun) -> Iterator[_Row]:
    run, model = planned.run, planned.run.model
    paper = "DeepSeek LLM"
    yield "compute", r"C = M \cdot D", flop(run.compute_flop), f"{paper}, section 3.2"
    counted = f"{count(model.flop_per_token)} FLOP per token"
    yield "size", r"M = 6 N + 12 L d s", counted, f"{paper}, Eq. 2, with this shape’s own N"
    yield from _allocation(plan, planned)
    yield from _hyper(plan, planned)
    source = f"{plan.law.name}: {plan.law.source}"
    if plan.law.loss is not None:
        yield "loss", loss_latex(plan.law.loss), "", source
    if plan.fit is not None and plan.fit.forms:
        best = plan.fit.forms[0]
        value = f"{member_name(best)}: weight {best.weight:.2f}"
        yield "loss", best.latex, value, "own fit, constants in the table of forms"


def _allocation(plan: Plan, planned: PlannedRun) -> Iterator[_Row]:
    fitted = plan.fit is not None and planned.role == "target"
    law = plan.fit.allocation if plan.fit is not None and fitted else plan.law.allocation
    if law is None:
        return
    source = f"{plan.law.name}: {plan.law.source}"
    if plan.fit is not None and fitted:
        source = f"own fit: {plan.fit.allocation_basis}"
    at = planned.budget_flop
    best_m, best_d = law.flop_per_token.at(compute_flop=at), law.tokens.at(compute_flop=at)
    yield "best size", _left(r"M_{opt}", law.flop_per_token), f"{count(best_m)} FLOP per token", source
    yield "best data", _left(r"D_{opt}", law.tokens), f"{count(best_d)} tokens", source


def _hyper(plan: Plan, planned: PlannedRun) -> Iterator[_Row]:
    """Learning rate and batch by the law that the run follows, and by the other laws that give one."""
    run, own = planned.run, plan.law.hyper
    if not plan.hypers and own is not None:
        source = f"{plan.law.name}, {own.regime}: {plan.law.source}"
        yield "learning rate", _left(r"\eta", own.peak_lr), f"{run.optim.peak_lr:.4g}", source
        yield "batch", _left("B", own.batch_tokens), f"{run.batch_tokens:,} tokens", source
    used = next((one.hyper for one in plan.hypers if one.used), None)
    shown = [one for one in plan.hypers if one.used or one.hyper != used]
    for advice in sorted(shown, key=lambda one: not one.used):
        source = f"{advice.law}, {advice.hyper.regime}{'' if advice.used else '; not followed'}"
        batch = f"{run.batch_tokens:,} tokens" if advice.used else f"{count(advice.batch_tokens)} tokens"
        rate = f"{advice.peak_lr:.4g}{near_optimal(advice)}"
        yield "learning rate", _left(r"\eta", advice.hyper.peak_lr), rate, source
        yield "batch", _left("B", advice.hyper.batch_tokens), batch, source


def _left(symbol: str, law: Monomial) -> str:
    return f"{symbol} = {monomial_latex(law)}"
