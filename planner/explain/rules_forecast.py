"""What a forecast rests on: the forms and their weights, the fit and its runs, the law, the data, the budget."""

from collections.abc import Iterator

from planner.explain.fields import Field
from planner.explain.reason import Reason, Rule
from planner.explain.rules_shape import BEST_SPLIT_INTERVAL
from planner.explain.rules_training import rate_evidence
from specs.formatting import best_split, monomial_text, text_of
from specs.law import FormScore, Interval, LawFit
from specs.plan import Forecast, Plan

COLLAPSE = (
    "collapse of the pilots' normalised loss curves (Qiu et al., arXiv 2507.02119, section 3), each as the "
    "annealing law through its points has it (planner/scaling/lr_annealing.py, after Tissue et al., arXiv 2408.11029)"
)


def loss(field: Field, plan: Plan) -> Reason:
    """The final loss: forms weighted by how they predicted larger budgets."""
    told, fit = plan.forecast, plan.fit
    if not isinstance(told, Forecast):
        return no_forecast(field, plan)
    band = told.loss
    return Reason(
        decided_by=f"the forms of the loss law, each with {_weights(fit)}",
        law=None if fit is None else "; ".join(_form(form) for form in fit.forms if form.weight >= 0.01),
        equation=None if fit is None else _mixture(fit),
        evidence=(*(() if fit is None else _runs(fit)), told.basis),
        interval=(band.low_95, band.high_95),
    )


def _weights(fit: LawFit | None) -> str:
    """Where the forms' weights come from."""
    if fit is None or fit.held_out_error is None:
        return "the prior's weight, as no budget could be held out"
    together = f"{fit.held_out_error:.2%}".replace("%", " %")
    return f"the weight that it earned on budgets it had not seen, which they miss by {together} together"


def _form(form: FormScore) -> str:
    error = "not tested" if form.held_out_error is None else f"{form.held_out_error:.2%} on larger budgets"
    return f"{form.form} {text_of(form.latex)} ({error})".replace("%", " %")


def _mixture(fit: LawFit) -> str:
    """The median of all draws together: not the sum of the forms' own medians."""
    parts = [
        f"{form.weight:.2f} of {form.form} (median {form.forecast:.4f})"
        for form in fit.forms
        if form.weight >= 0.01
    ]
    return f"median of draws with their noise, by weight: {', '.join(parts)}"


def _runs(fit: LawFit) -> tuple[str, ...]:
    flops = [point.budget_flop for point in fit.points]
    short = sum(point.short for point in fit.points)
    said = f"{len(fit.points)} runs of {min(flops):.3g} to {max(flops):.3g} FLOP" if flops else "no runs"
    listed = ", ".join(point.run for point in fit.points)
    return (f"{said}, {short} of them short: {listed}", *fit.flags)


def curve(field: Field, plan: Plan) -> Reason:
    """The curve, scaled to the final loss."""
    told = plan.forecast
    ends = None
    if isinstance(told, Forecast) and told.curve is not None and field.path[-1].isdigit():
        at = int(field.path[-1])
        ends = (told.curve.low_95[at], told.curve.high_95[at])
        step = told.curve.step[at]
    return Reason(
        decided_by="the final loss and the pilots' common shape"
        + ("" if ends is None else f", at step {step:,}"),
        law=COLLAPSE,
        equation="L(x) = E + (L(1) - E) f(x), x the finished share of the steps",
        evidence=() if plan.fit is None else _runs(plan.fit),
        interval=None if field.path[-2:-1] == ("step",) else ends,
    )


def no_forecast(field: Field, plan: Plan) -> Reason:
    """Reason there is no forecast."""
    told = plan.forecast
    reason = told.basis if isinstance(told, Forecast) else told.reason
    return Reason(f"the planner: {reason}", law=f"{plan.law.name}: {plan.law.source}")


def points(field: Field, plan: Plan) -> Reason:
    """A run of the ledger."""
    fit = _fit(plan)
    if len(field.path) < 3:
        return Reason(
            "the ledger: every accepted run on this text, smaller than the target", evidence=_runs(fit)
        )
    point = fit.points[int(field.path[2])]
    return Reason(
        decided_by="the audit of the run, recounted from its records",
        evidence=(f"run {point.run}, runs/{point.run} and its line in {plan.ledger}",),
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
        "the minimum lies inside" if profile.bracketed else "no minimum inside: the best run stands for it"
    )
    equation = None
    if profile.coefficients is not None:
        c0, c1, c2 = profile.coefficients
        equation = f"ln L = {c0:.4g} {c1:+.4g} x {c2:+.4g} x^2, x = ln M"
    return Reason(
        decided_by=f"the fit: {inside} of the sizes that were tried",
        law="isoFLOP profiles, as in DeepSeek LLM, Fig. 4",
        equation=equation,
        evidence=tuple(
            f"run {point.run}: M {point.flop_per_token:.4g}, loss {point.loss:.4f}"
            for point in fit.points
            if abs(point.budget_flop / profile.compute_flop - 1) < 0.1
        ),
    )


def forms(field: Field, plan: Plan) -> Reason:
    """One form of the loss law, or one of its constants."""
    fit = _fit(plan)
    if len(field.path) < 3:
        return Reason("the fit: the forms side by side, heaviest first", evidence=_runs(fit))
    form = fit.forms[int(field.path[2])]
    constant = form.constants.get(field.path[4]) if len(field.path) > 4 else None
    said = (
        "median and 95 % of the constants' draws that the forecast is made of (planner/scaling/posterior.py)"
    )
    if field.path[-1] == "weight":
        said = _weights(fit)
    return Reason(
        decided_by=f"the fit: {said}",
        law=_form(form),
        equation=text_of(form.latex),
        evidence=_runs(fit),
        interval=(constant.low, constant.high) if isinstance(constant, Interval) else None,
    )


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
                f"{one.compute_flop:.3g} FLOP: lowest at M {one.flop_per_token:.4g}, loss {one.loss:.4f}"
                for one in fit.profiles
                if one.bracketed
            ),
        ),
        interval=_best_at(field, fit),
        interval_of=BEST_SPLIT_INTERVAL,
    )


def _best_at(field: Field, fit: LawFit) -> tuple[float, float] | None:
    """Ends of what one of the allocation's two laws gives for the target, by the forms; None for its parts."""
    if fit.optimum is None or field.path[-1] not in ("flop_per_token", "tokens"):
        return None
    ends = fit.optimum.flop_per_token if field.path[-1] == "flop_per_token" else fit.optimum.tokens
    return ends.low, ends.high


def _best_split(plan: Plan) -> Iterator[str]:
    """The best split of the target's compute by the forms, and what the allocation makes of it."""
    fit = _fit(plan)
    if fit.optimum is None:
        return
    flop = fit.optimum.compute_flop
    said = ", ".join(f"{name} {value}" for name, value in best_split(fit.optimum, plan.losses))
    here = fit.allocation.flop_per_token.at(compute_flop=flop)
    yield f"at {flop:.3g} FLOP {here:.4g} FLOP per token; by the forms of the loss law, 95 % in brackets: {said}"


def optimum(field: Field, plan: Plan) -> Reason:
    """The best split of the target's compute by the forms."""
    named = field.value if isinstance(field.value, Interval) else None
    return Reason(
        decided_by="the fit: draws of every form of the loss law, each with its weight",
        law="M dL/dM = D dL/dD at C = M D; a check on the allocation, which follows the isoFLOP minima",
        evidence=(*_best_split(plan), *_runs(_fit(plan))),
        interval=None if named is None else (named.low, named.high),
    )


def rate_check(field: Field, plan: Plan) -> Reason:
    """The learning-rate check."""
    check = None if plan.fit is None else plan.fit.rate_check
    return Reason(
        decided_by="the fit: a parabola of ln L in ln lr through the best rate and its neighbours",
        law="near-optimal is within 0.25 % of the lowest loss (DeepSeek LLM, section 3.1)",
        evidence=() if check is None else (rate_evidence(check),),
    )


def fit_of(field: Field, plan: Plan) -> Reason:
    """The fit as a whole, and what a reader must know of it."""
    if plan.fit is None:
        return Reason("the plan: there is no ledger evidence yet")
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
    """What the person asked."""
    return Reason(f"the budget: its field {'.'.join(field.path[1:]) or 'file'}, or that field's default")


def data_text(field: Field, plan: Plan) -> Reason:
    """What is known of the data."""
    built = plan.runs[-1].run.data.digest
    if built is None:
        return Reason("the budget's field data: the text is only declared")
    return Reason("the corpus: counted when it was built", evidence=(f"digest {built}",))


def document(field: Field, plan: Plan) -> Reason:
    """What belongs to the file itself."""
    return Reason(f"the planner, isoplan {plan.code.version}: {field.text}")


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
    ("law*", law_of),
    ("budget*", budget),
    ("unique_tokens", data_text),
    ("bytes_per_token", data_text),
    ("*", document),
)
"""Rules of everything else; the last one knows every path."""
