"""Where a forecast comes from: the forms and their weights, the fit and its runs, the law, the data, the budget."""

from collections.abc import Iterator, Sequence

from planner.explain.fields import Field
from planner.explain.reason import Reason, Rule
from planner.explain.rules_shape import BEST_SPLIT_INTERVAL
from planner.explain.rules_training import rate_evidence
from specs.evidence import FILE_NAME, EvidencePoint
from specs.formatting import (
    best_split,
    listed_members,
    member_name,
    member_runs,
    monomial_text,
    small_members_name,
    text_of,
)
from specs.law import FormScore, Interval, LawFit
from specs.plan import Forecast, Plan

COLLAPSE = (
    "collapse of the pilots' normalised loss curves (Qiu et al., arXiv 2507.02119, section 3), each smoothed by the "
    "annealing law fitted to it (planner/scaling/lr_annealing.py, after Tissue et al., arXiv 2408.11029)"
)


_LISTED = 40
"""Runs that are named in one line."""


def loss(field: Field, plan: Plan) -> Reason:
    """The final loss: forms weighted by how they predicted larger budgets."""
    forecast, fit = plan.forecast, plan.fit
    if not isinstance(forecast, Forecast):
        return no_forecast(field, plan)
    band = forecast.loss
    return Reason(
        decided_by=f"the forms of the loss law, {_weights(fit)}",
        law=None if fit is None else _listed_forms(fit),
        equation=None if fit is None else _mixture(fit),
        evidence=(*(() if fit is None else _runs(fit)), forecast.basis),
        interval=(band.low_95, band.high_95),
    )


def _weights(fit: LawFit | None) -> str:
    """Where the forms' weights come from."""
    if fit is None or fit.held_out_error is None:
        return "weighted by the prior, as no budget could be held out"
    error = f"{fit.held_out_error:.2%}".replace("%", " %")
    return f"weighted by how well each predicts held-out budgets; the mean error of their mixture there is {error}"


def _listed_forms(fit: LawFit) -> str:
    """Each form once, with its error for every set of runs that it is fitted on."""
    named: dict[str, list[FormScore]] = {}
    for member in listed_members(fit.forms)[0]:
        named.setdefault(member.form, []).append(member)
    return "; ".join(_form(members) for members in named.values())


def _form(members: Sequence[FormScore]) -> str:
    """A form with the errors of its members."""
    errors = ", ".join(f"{_error(member)} ({member_runs(member)})" for member in members)
    if all(member.held_out_error is None for member in members):
        errors = "none"
    return f"{members[0].form} {text_of(members[0].latex)}, held-out error {errors}"


def _error(member: FormScore) -> str:
    error = member.held_out_error
    return "none" if error is None else f"{error:.2%}".replace("%", " %")


def _mixture(fit: LawFit) -> str:
    """The median of all draws together: not the sum of the members' own medians."""
    listed, small = listed_members(fit.forms)
    parts = [
        f"{member.weight:.2f} of {member_name(member)} (median {member.forecast:.4f})" for member in listed
    ]
    parts += [small_members_name(small)] if small else []
    return f"median of draws, with noise, from the mixture {'; '.join(parts)}"


def _runs(fit: LawFit) -> tuple[str, ...]:
    flops = [point.budget_flop for point in fit.points]
    short = sum(point.short for point in fit.points)
    text = f"{len(fit.points)} runs of {min(flops):.3g} to {max(flops):.3g} FLOP" if flops else "no runs"
    listed = ", ".join(point.run for point in fit.points[:_LISTED])
    more = f" and {len(fit.points) - _LISTED} more in {FILE_NAME}" if len(fit.points) > _LISTED else ""
    return (f"{text}, {short} of them short: {listed}{more}", *fit.flags)


def _evidence(plan: Plan) -> tuple[str, ...]:
    return () if plan.fit is None else _runs(plan.fit)


def curve(field: Field, plan: Plan) -> Reason:
    """The curve, scaled to the final loss."""
    forecast = plan.forecast
    if field.value is None:
        return Reason("the planner: the runs have no loss curves of a common shape", evidence=_evidence(plan))
    ends = None
    if isinstance(forecast, Forecast) and forecast.curve is not None and field.path[-1].isdigit():
        at = int(field.path[-1])
        ends = (forecast.curve.low_95[at], forecast.curve.high_95[at])
        step = forecast.curve.step[at]
    return Reason(
        decided_by="the forecast of the final loss and the common shape of the pilots' loss curves"
        + ("" if ends is None else f", at step {step:,}"),
        law=COLLAPSE,
        equation="L(x) = E + (L(1) - E) f(x), x the finished fraction of the steps",
        evidence=_evidence(plan),
        interval=None if field.path[-2:-1] == ("step",) else ends,
    )


def no_forecast(field: Field, plan: Plan) -> Reason:
    """Reason there is no forecast."""
    forecast = plan.forecast
    reason = forecast.basis if isinstance(forecast, Forecast) else forecast.reason
    decided_by = "the planner" if field.value == reason else f"the planner: {reason}"
    return Reason(decided_by, law=f"{plan.law.name}: {plan.law.source}")


def points(field: Field, plan: Plan) -> Reason:
    """A run of the ledger as evidence."""
    fit = _fit(plan)
    if len(field.path) < 3:
        runs = "the ledger: every accepted run smaller than the target that matches it in all but size and rate, "
        runs += "learned something, and lies near what all other runs say"
        if plan.budget.evidence.kind == "runs":
            runs = "the table: every run that lies near what all others say"
        return Reason(runs, evidence=_runs(fit))
    point = fit.points[int(field.path[2])]
    if plan.table is not None and point.line is not None:
        where = f"line {point.line} of {plan.table.path}, SHA-256 {plan.table.sha256}"
        return Reason("the table, in its own units", evidence=(f"{_named(point)}, {where}",))
    return Reason(
        decided_by="the audit of the run, from its records",
        evidence=(f"run {point.run}, runs/{point.run} and its line in {plan.ledger}",),
    )


def _named(point: EvidencePoint) -> str:
    """A run by its fingerprint or name; one without a name by its line."""
    return (
        point.run if point.line is not None and point.run.endswith(f" {point.line}") else f"run {point.run}"
    )


def profiles(field: Field, plan: Plan) -> Reason:
    """The parabola of one budget."""
    fit = _fit(plan)
    if len(field.path) < 3:
        return Reason(
            "the fit: one parabola for each budget", law="isoFLOP profiles, as in DeepSeek LLM, Fig. 4"
        )
    profile = fit.profiles[int(field.path[2])]
    inside = (
        "the minimum lies between"
        if profile.bracketed
        else "no interior minimum, so the best run is taken, of"
    )
    equation = None
    if profile.coefficients is not None:
        c0, c1, c2 = profile.coefficients
        equation = f"ln L = {c0:.4g} {c1:+.4g} x {c2:+.4g} x^2, x = ln {fit.symbol}"
    return Reason(
        decided_by=f"the fit: {inside} the sizes that were run",
        law="isoFLOP profiles, as in DeepSeek LLM, Fig. 4",
        equation=equation,
        evidence=tuple(
            f"{_named(point)}: {fit.symbol} {point.size:.4g}, loss {point.loss:.4f}"
            for point in fit.points
            if abs(point.budget_flop / profile.compute_flop - 1) < 0.1
        ),
    )


def forms(field: Field, plan: Plan) -> Reason:
    """One member of the forecast, a form of the loss law on some of the runs, or one of its constants."""
    fit = _fit(plan)
    if len(field.path) < 3:
        return Reason(
            "the fit: every form on all runs, and on those of the last decades of compute where these are enough, "
            "largest weight first",
            law=_listed_forms(fit),
            evidence=_runs(fit),
        )
    member = fit.forms[int(field.path[2])]
    constant = member.constants.get(field.path[4]) if len(field.path) > 4 else None
    text = "median and 95 % interval of the member's draws (planner/scaling/posterior.py)"
    reasons = {
        "weight": _weights(fit),
        "window_decades": "exponents and floor drift with scale, so each form is also fitted on the largest runs only",
        "held_out_error": "the member fitted on the smaller budgets, against the runs of the larger ones",
        "forecast": "median of the member's draws at the target",
    }
    return Reason(
        decided_by=f"the fit: {reasons.get(field.path[3] if len(field.path) > 3 else '', text)}",
        law=_form([member]),
        equation=text_of(member.latex),
        evidence=(_window(member, fit), *_runs(fit)),
        interval=(constant.low, constant.high) if isinstance(constant, Interval) else None,
    )


def _window(member: FormScore, fit: LawFit) -> str:
    """How many of the runs a member is fitted on."""
    flops = [fit.flop_per_size_token * point.size * point.tokens for point in fit.points]
    window = member.window_decades
    if window is None or not flops:
        return f"fitted on {member_runs(member)}"
    least = max(flops) / 10**window
    inside = sum(flop >= least for flop in flops)
    return f"fitted on the {member_runs(member)} of compute: {inside} of {len(flops)} runs, from {least:.3g} FLOP on"


def allocation(field: Field, plan: Plan) -> Reason:
    """M_opt(C) and D_opt(C) of the fit."""
    fit = _fit(plan)
    law = fit.allocation
    return Reason(
        decided_by=f"the fit: {fit.allocation_basis}",
        law=f"form of DeepSeek LLM, Eq. 4; prior {plan.law.name}: {plan.law.source}",
        equation=f"M_opt = {monomial_text(law.flop_per_token)}, D_opt = {monomial_text(law.tokens)}",
        evidence=(
            *_best_split(plan),
            *(
                f"{one.compute_flop:.3g} FLOP: minimum at {fit.symbol} {one.size:.4g}, loss {one.loss:.4f}"
                for one in fit.profiles
                if one.bracketed
            ),
        ),
        interval=_best_at(field, fit),
        interval_of=BEST_SPLIT_INTERVAL,
    )


def _best_at(field: Field, fit: LawFit) -> tuple[float, float] | None:
    """95 % interval, by all forms, of M_opt or D_opt at the target's compute; None for other fields."""
    if fit.optimum is None or field.path[-1] not in ("flop_per_token", "tokens"):
        return None
    ends = fit.optimum.flop_per_token if field.path[-1] == "flop_per_token" else fit.optimum.tokens
    return ends.low, ends.high


def _best_split(plan: Plan) -> Iterator[str]:
    """The compute-optimal allocation at the target's compute, by the allocation and by the forms."""
    fit = _fit(plan)
    if fit.optimum is None:
        return
    flop = fit.optimum.compute_flop
    text = ", ".join(f"{name} {value}" for name, value in best_split(fit.optimum, plan.losses))
    here = fit.allocation.flop_per_token.at(compute_flop=flop)
    yield f"at {flop:.3g} FLOP: M_opt {here:.4g} FLOP per token; by the forms of the loss law (95 % interval): {text}"


def optimum(field: Field, plan: Plan) -> Reason:
    """The compute-optimal allocation of the target's compute by the forms."""
    named = field.value if isinstance(field.value, Interval) else None
    return Reason(
        decided_by="the fit: draws of all forms of the loss law, by weight",
        law=_best_split_law(_fit(plan)),
        evidence=(*_best_split(plan), *_runs(_fit(plan))),
        interval=None if named is None else (named.low, named.high),
    )


def _best_split_law(fit: LawFit) -> str:
    if fit.size_kind != "flop_per_token":
        return "N dL/dN = (dln M/dln N) D dL/dD at C = M D, with the M that the family's shapes of N parameters have"
    return (
        "M dL/dM = D dL/dD at C = M D; the allocation follows the isoFLOP minima and is kept inside the interval "
        "of M*, unless the runs leave the split open"
    )


def table_of(field: Field, plan: Plan) -> Reason:
    """The table, or what was read from it."""
    if plan.table is None:
        return Reason("the planner: the plan rests on no table")
    return Reason(
        f"the budget's field evidence.{'table' if plan.budget.evidence.kind == 'runs' else 'also.table'}, read once",
        evidence=(f"{plan.table.path}, SHA-256 {plan.table.sha256}", *plan.table.notes),
    )


def rate_check(field: Field, plan: Plan) -> Reason:
    """The learning-rate check."""
    check = None if plan.fit is None else plan.fit.rate_check
    text = "a parabola of ln L in ln lr through the best rate and its neighbours"
    if check is not None and not check.bracketed:
        text = f"the lowest loss, without a parabola: x {check.best_multiple:.3g} is {check.reason}"
    return Reason(
        decided_by=f"the fit: {text}",
        law="near-optimal is within 0.25 % of the lowest loss (DeepSeek LLM, section 3.1)",
        evidence=() if check is None else (rate_evidence(check),),
    )


def fit_of(field: Field, plan: Plan) -> Reason:
    """The fit as a whole, and its flags."""
    if plan.fit is None:
        return Reason("the planner: the plan rests on no runs")
    return Reason("the fit", evidence=_runs(plan.fit))


def law_of(field: Field, plan: Plan) -> Reason:
    """The published law, or the prior."""
    named = "law" if plan.budget.evidence.kind == "published" else "prior"
    low, high = plan.law.compute_low_flop, plan.law.compute_high_flop
    return Reason(
        decided_by=f"the budget's field evidence.{named}: {plan.law.name}, from the catalog",
        law=f"{plan.law.name}: {plan.law.source}",
        evidence=(f"fitted or checked on {plan.law.data}, {low:.3g} to {high:.3g} FLOP",),
    )


def budget(field: Field, plan: Plan) -> Reason:
    """A field of the budget."""
    return Reason(f"the budget: its field {'.'.join(field.path[1:]) or 'file'}, or that field's default")


def data_text(field: Field, plan: Plan) -> Reason:
    """What is known of the data."""
    built = plan.runs[-1].run.data.digest
    if built is None:
        return Reason("the budget's field data: the text is declared, not built")
    return Reason("the corpus: counted when it was built", evidence=(f"corpus digest {built}",))


def document(field: Field, plan: Plan) -> Reason:
    """A field of the document itself."""
    return Reason(f"the planner, isoplan {plan.code.version}: {field.description}")


def _fit(plan: Plan) -> LawFit:
    assert plan.fit is not None  # a field below it exists
    return plan.fit


RULES: tuple[tuple[str, Rule], ...] = (
    ("forecast.loss*", loss),
    ("forecast.curve*", curve),
    ("forecast*", no_forecast),
    ("fit.points*", points),
    ("fit.profiles*", profiles),
    ("fit.forms*", forms),
    ("fit.allocation*", allocation),
    ("fit.optimum*", optimum),
    ("fit.rate_check*", rate_check),
    ("fit*", fit_of),
    ("table*", table_of),
    ("law*", law_of),
    ("budget*", budget),
    ("unique_tokens", data_text),
    ("sources*", data_text),
    ("curation*", data_text),
    ("bytes_per_token", data_text),
    ("vocab", data_text),
    ("*", document),
)
"""Rules of everything else; the last one matches every path."""
