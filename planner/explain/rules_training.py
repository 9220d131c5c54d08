"""Why a run is trained as it is: batch, learning rate, schedule, evaluations. Its size: planner/explain/rules_shape.py.

Each rule recomputes what the law asks for and says how rounding, the budget or the learning-rate check moved it.
"""

import math

from planner.design.pilot_design import HALF_DECADE
from planner.design.run_draft import EVALUATIONS
from planner.explain.fields import Field
from planner.explain.reason import PAPER, Reason, Rule, deviation_text, family_of, hyper_of, law_value, run_of
from planner.explain.rules_shape import compute, counted, shape, tokens
from specs.budget import Pilots
from specs.formatting import monomial_text, near_optimal
from specs.law import RateCheck
from specs.optim import multi_step
from specs.plan import HyperAdvice, Plan, PlannedRun

NEAR_OPTIMAL = 0.0025
"""Rates within 0.25 % of the lowest loss are as good as the best (DeepSeek LLM, section 3.1)."""
_BATCH_TOLERANCE = 0.05
"""Batches this close to the law's, or to within a replica's worth of sequences, were rounded; others were chosen."""
_RELATIVE_TOLERANCE = 1e-9
"""Relative difference under which two numbers are the same but for the order of their sums."""


def peak_lr(field: Field, plan: Plan) -> Reason:
    """The law's rate, and what the learning-rate check made of it."""
    planned, followed = run_of(field, plan), hyper_of(plan)
    if followed is None:
        return Reason("the plan; its law has no learning rate")
    hyper, source = followed
    own, where = law_value(hyper.peak_lr, planned)
    multiple = "" if planned.rate_multiple == 1 else f", x {planned.rate_multiple:.4g}"
    asked, came = own * planned.rate_multiple, planned.run.optim.peak_lr
    check = None if plan.fit is None else plan.fit.rate_check
    settled = _rate_decided_by(planned, check)
    if not math.isclose(asked, came, rel_tol=_RELATIVE_TOLERANCE):
        settled = f"not the law alone: it gives {asked:.4g}, the plan has {came:.4g} ({deviation_text(asked, came)})"
    return Reason(
        decided_by=settled,
        law=source,
        equation=f"peak_lr = {monomial_text(hyper.peak_lr)} at {where}: {own:.4g}{multiple}",
        evidence=(
            *(() if check is None else (rate_evidence(check),)),
            *(
                f"{other.law} would take {other.peak_lr:.4g}{near_optimal(other)} = "
                f"{monomial_text(other.hyper.peak_lr)}"
                for other in _other_laws(plan, planned)
            ),
        ),
        interval=_near_optimal_rates(plan, planned, own),
        interval_of="within 0.25 % of the lowest loss",
    )


def _near_optimal_rates(plan: Plan, planned: PlannedRun, own: float) -> tuple[float, float] | None:
    """The rates whose loss is within 0.25 % of the lowest: by the learning-rate check, else by the ledger's own law."""
    if planned.role != "target":
        return None
    check = None if plan.fit is None else plan.fit.rate_check
    if check is not None and check.bracketed:
        return _rates_from_check(check, own)
    return next((one.near_optimal_lr for one in plan.hypers if one.near_optimal_lr is not None), None)


def _rates_from_check(check: RateCheck, own: float) -> tuple[float, float]:
    """By the parabola through the best rate, which is not at an edge of what was tried, and its neighbours.

    That the multiples hold for a larger run is the law's claim.
    """
    best = min(range(len(check.losses)), key=lambda i: check.losses[i])
    x0, x1, x2 = (math.log(m) for m in check.multiples[best - 1 : best + 2])
    y0, y1, y2 = (math.log(loss) for loss in check.losses[best - 1 : best + 2])
    curvature = ((y2 - y1) / (x2 - x1) - (y1 - y0) / (x1 - x0)) / (x2 - x0)
    reach = math.exp(math.sqrt(math.log1p(NEAR_OPTIMAL) / curvature))
    return own * check.best_multiple / reach, own * check.best_multiple * reach


def _rate_decided_by(planned: PlannedRun, check: RateCheck | None) -> str:
    if planned.role == "rate":
        return f"the learning-rate check: this run tries the law's rate x {planned.rate_multiple:g}"
    if planned.rate_multiple != 1:
        return "the learning-rate check: the law's own rate was more than 0.25 % worse in loss than the best"
    if check is not None and planned.role == "target":
        return "the law; the learning-rate check found its rate within 0.25 % of the lowest loss"
    return "the law; it was not checked on this data"


def rate_evidence(check: RateCheck) -> str:
    """The learning-rate check in a sentence."""
    tried = ", ".join(
        f"x {multiple:g}: {loss:.4f}" for multiple, loss in zip(check.multiples, check.losses, strict=True)
    )
    edge = "" if check.bracketed else ", at the edge of what was tried"
    return f"learning-rate check beside run {check.run}: {tried} nats/token; best at x {check.best_multiple:.3g}{edge}"


def batch(field: Field, plan: Plan) -> Reason:
    """The law's tokens per step, rounded to sequences that data parallelism divides."""
    planned, followed = run_of(field, plan), hyper_of(plan)
    model = planned.run.model
    if followed is None:
        return Reason("the plan; its law has no batch size")
    hyper, source = followed
    own, where = law_value(hyper.batch_tokens, planned)
    wanted = own / model.context
    return Reason(
        decided_by=_batch_decided_by(plan, planned, wanted),
        law=source,
        equation=f"batch_tokens = {monomial_text(hyper.batch_tokens)} at {where}: {own:,.0f} tokens, "
        f"/ context {model.context:,} = {wanted:,.1f} sequences",
        evidence=tuple(
            f"{other.law} would take {other.batch_tokens:,.0f} tokens = {monomial_text(other.hyper.batch_tokens)}"
            for other in _other_laws(plan, planned)
        ),
    )


def _other_laws(plan: Plan, planned: PlannedRun) -> list[HyperAdvice]:
    """What the laws that the target does not follow say, where that is something else."""
    used = next((one.hyper for one in plan.hypers if one.used), None)
    return [one for one in plan.hypers if one.hyper != used and planned.role == "target"]


def _batch_decided_by(plan: Plan, planned: PlannedRun, wanted: float) -> str:
    came, dp = planned.run.optim.batch_sequences, planned.execution.layout.dp
    if plan.budget.batch is not None and planned.role == "target":
        return f"the budget's field batch: {plan.budget.batch:,} tokens, in whole sequences"
    said = f"{wanted:,.1f} sequences asked, {came:,} taken ({deviation_text(wanted, came)})"
    if abs(came - wanted) <= max(dp, _BATCH_TOLERANCE * wanted):
        return f"rounding: {said}, in equal parts for dp {dp}"
    return f"not the law alone: {said}"


def steps(field: Field, plan: Plan) -> Reason:
    """C / M tokens in whole steps."""
    planned = run_of(field, plan)
    wanted = _target_tokens(planned) / planned.run.batch_tokens
    return Reason(
        decided_by=f"rounding: a multiple of {EVALUATIONS}, so that evaluations and milestones fall on whole steps "
        f"({deviation_text(wanted, planned.run.optim.steps)})",
        equation=f"C / M / batch_tokens = {planned.budget_flop:.4g} / {planned.run.model.flop_per_token:.4g} / "
        f"{planned.run.batch_tokens:,} = {wanted:,.1f}",
    )


def milestones(field: Field, plan: Plan) -> Reason:
    """The paper's multi-step schedule."""
    planned = run_of(field, plan)
    optim = planned.run.optim
    _, drops = multi_step(optim.steps, 1)
    said = "; ".join(f"x {one.factor:g} after {one.step / optim.steps:.0%} of the steps" for one in drops)
    same = optim.milestones == drops
    return Reason(
        decided_by="the schedule, rounded to whole steps" if same else f"not the paper's schedule, {said}",
        law=f"{PAPER}, section 2.3",
        equation=f"{said}: {', '.join(f'{one.step:,}' for one in drops)} of {optim.steps:,}",
    )


def warmup(field: Field, plan: Plan) -> Reason:
    """The family's warm-up, cut for short runs."""
    planned, family = run_of(field, plan), family_of(plan)
    total, came = planned.run.optim.steps, planned.run.optim.warmup_steps
    cut = f"cut to a twentieth of the run's {total:,} steps" if came < family.warmup_steps else "not cut"
    return Reason(
        decided_by=f"the family {family.name}: {family.warmup_steps:,} steps, {cut}",
        law=f"{family.name}: {family.source}; 2000 steps in {PAPER}, section 2.3",
        equation=f"min({family.warmup_steps:,}, {total:,} / 20) = {came:,}",
    )


def optimizer(field: Field, plan: Plan) -> Reason:
    """Constants of AdamW."""
    return Reason(f"practice: {field.text}", law=f"AdamW as in {PAPER}, section 2.3")


def evaluation(field: Field, plan: Plan) -> Reason:
    """How often and on how much the held-out loss is measured."""
    planned, family = run_of(field, plan), family_of(plan)
    optim, context = planned.run.optim, planned.run.model.context
    said = {
        "every_steps": f"{optim.steps:,} steps / {EVALUATIONS} points of the curve",
        "sequences": f"curve_tokens {family.curve_tokens:,} / context {context:,}",
        "final_sequences": f"final_tokens {family.final_tokens:,} / context {context:,}",
    }
    return Reason(
        decided_by=f"the family {family.name}: the same held-out text for every size, so that runs compare",
        law=f"{family.name}: {family.source}",
        equation=said.get(field.path[-1]),
    )


def from_budget(field: Field, plan: Plan) -> Reason:
    """What the budget says and nothing moves."""
    return Reason(f"the budget's field {field.path[-1]}")


def guard(field: Field, plan: Plan) -> Reason:
    """What keeps the run from diverging."""
    return Reason("the budget's field guard")


def from_family(field: Field, plan: Plan) -> Reason:
    """What the family says and nothing moves."""
    family = family_of(plan)
    return Reason(f"the family {family.name}", law=f"{family.name}: {family.source}")


def vocabulary(field: Field, plan: Plan) -> Reason:
    """The tokenizer's vocabulary, padded."""
    family = family_of(plan)
    return Reason(
        decided_by=f"rounding up to a multiple of {family.vocab_multiple} (family {family.name})",
        equation=f"the tokenizer has {plan.budget.data.vocab:,} entries",
    )


def data(field: Field, plan: Plan) -> Reason:
    """The corpus by content."""
    return Reason(
        "the budget's field data: the fingerprint of its text and tokenizer, the digest of what was built of it"
    )


def plain_choice(field: Field, plan: Plan) -> Reason:
    """What no budget changes yet."""
    return Reason(f"the engine: {field.text}")


def budget_flop(field: Field, plan: Plan) -> Reason:
    """Compute that was asked for."""
    planned = run_of(field, plan)
    if planned.role == "target":
        currency = plan.budget.currency
        bought = None if currency in ("compute", "loss") else f"bought at {planned.cost.basis}"
        return Reason(f"the budget's field {currency}: {plan.budget.amount_text}", equation=bought)
    return Reason(
        "the ladder: one of its budgets; all pilots together cost at most evidence.share of the target"
    )


def ladder(field: Field, plan: Plan) -> Reason:
    """What the budget states of the ladder, and what was chosen for the narrowest interval at the target."""
    choice, evidence = plan.ladder, plan.budget.evidence
    if choice is None or not isinstance(evidence, Pilots):
        return Reason("the plan: it buys no pilots")
    stated = {"budgets": evidence.budgets, "sizes": evidence.sizes, "spread": evidence.spread}
    stated["budget_ratio"] = None if evidence.budgets is None else HALF_DECADE
    settled = (
        f"the narrowest interval of the target among {choice.considered:,} ladders that cost evidence.share"
    )
    if stated.get(field.path[-1]) is not None:
        settled = f"the budget's evidence, which states it: {stated[field.path[-1]]:.4g}"
    return Reason(
        decided_by=settled,
        law="Bayesian linear design (Chaloner & Verdinelli 1995): forms of the loss law, linear about their priors, "
        "with the noise of a run and what laws miss per decade (planner/design/pilot_design.py)",
        equation="half width = 1.96 sqrt(sum over forms of weight J' (prior precision + information)^-1 J + noise^2)",
        evidence=(
            f"this ladder: ±{choice.half_width:.2%}; chosen freely: ±{choice.best_half_width:.2%}; the paper's 8 x 10 "
            f"at equal cost: ±{choice.paper_half_width:.2%}".replace("%", " %"),
        ),
    )


def _target_tokens(planned: PlannedRun) -> float:
    return planned.budget_flop / planned.run.model.flop_per_token


_RUN = "runs.*.run"
RULES: tuple[tuple[str, Rule], ...] = (
    (f"{_RUN}.optim.peak_lr", peak_lr),
    (f"{_RUN}.optim.batch_sequences", batch),
    (f"{_RUN}.batch_tokens", batch),
    (f"{_RUN}.optim.steps", steps),
    (f"{_RUN}.optim.milestones*", milestones),
    (f"{_RUN}.optim.warmup_steps", warmup),
    (f"{_RUN}.optim*", optimizer),
    (f"{_RUN}.tokens", tokens),
    (f"{_RUN}.compute_flop", compute),
    (f"{_RUN}.model.*params", counted),
    (f"{_RUN}.model.*flop_per_token", counted),
    (f"{_RUN}.model.head_dim", counted),
    (f"{_RUN}.model.vocab", vocabulary),
    (f"{_RUN}.model.context", from_family),
    (f"{_RUN}.model.init_std", from_family),
    (f"{_RUN}.model.rope_theta", plain_choice),
    (f"{_RUN}.model.norm_eps", plain_choice),
    (f"{_RUN}.model*", shape),
    (f"{_RUN}.evaluation*", evaluation),
    (f"{_RUN}.precision", from_budget),
    (f"{_RUN}.seed", from_budget),
    (f"{_RUN}.guard*", guard),
    (f"{_RUN}.data*", data),
    (f"{_RUN}.*", plain_choice),
    ("runs.*.budget_flop", budget_flop),
    ("ladder*", ladder),
)
"""Rules of the ladder and of fields below `runs.*.run`; those of execution and cost follow in
planner/explain/rules_cost.py."""
