"""Where a run's training settings come from: batch, learning rate, schedule, evaluations. Its size: rules_shape.py.

Each rule recomputes the law's value and reports how rounding, the budget or the learning-rate check changed it.
"""

import math

from planner.design.hyperparameters import OWN_LAWS
from planner.design.pilot_design import HALF_DECADE
from planner.design.run_draft import EVALUATIONS
from planner.explain.fields import Field
from planner.explain.reason import PAPER, Reason, Rule, deviation_text, family_of, hyper_of, law_value, run_of
from planner.explain.rules_shape import compute, counted, shape, tokens
from specs.budget import Pilots
from specs.formatting import evaluation_mix_text, mix_text, monomial_text, near_optimal
from specs.law import RateCheck
from specs.mix import PERIOD
from specs.optim import in_steps
from specs.plan import HyperAdvice, Plan, PlannedRun

NEAR_OPTIMAL = 0.0025
"""Rates within 0.25 % of the lowest loss are as good as the best (DeepSeek LLM, section 3.1)."""
_BATCH_TOLERANCE = 0.05
"""Batches this close to the law's, or within one sequence per replica, differ from it by rounding only."""
_RELATIVE_TOLERANCE = 1e-9
"""Relative difference under which two numbers are the same but for the order of their sums."""


def peak_lr(field: Field, plan: Plan) -> Reason:
    """The law's learning rate, and how the learning-rate check changed it."""
    planned, followed = run_of(field, plan), hyper_of(plan)
    if followed is None:
        return Reason("the planner's default, since the plan's law gives no learning rate")
    hyper, source = followed
    own, where = law_value(hyper.peak_lr, planned)
    multiple = "" if planned.rate_multiple == 1 else f", x {planned.rate_multiple:.4g}"
    target, actual = own * planned.rate_multiple, planned.run.optim.peak_lr
    check = None if plan.fit is None else plan.fit.rate_check
    decided_by = _rate_decided_by(planned, check)
    if not math.isclose(target, actual, rel_tol=_RELATIVE_TOLERANCE):
        deviation = deviation_text(target, actual)
        decided_by = (
            f"differs from the law: the law gives {target:.4g}, the plan has {actual:.4g} ({deviation})"
        )
    return Reason(
        decided_by=decided_by,
        law=source,
        equation=f"peak_lr = {monomial_text(hyper.peak_lr)} at {where}: {own:.4g}{multiple}",
        evidence=(
            *(() if check is None else (rate_evidence(check),)),
            *(
                f"{_law_name(other)} gives {other.peak_lr:.4g}{near_optimal(other)} = "
                f"{monomial_text(other.hyper.peak_lr)}"
                for other in _other_laws(plan, planned)
            ),
        ),
        interval=_near_optimal_rates(plan, planned, own),
        interval_of="loss within 0.25 % of the lowest:",
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
    """By the parabola through the best rate and its neighbours, which only a bracketed best has.

    Applying the check's multiples to a larger run relies on the law.
    """
    best = min(range(len(check.losses)), key=lambda i: check.losses[i])
    x0, x1, x2 = (math.log(m) for m in check.multiples[best - 1 : best + 2])
    y0, y1, y2 = (math.log(loss) for loss in check.losses[best - 1 : best + 2])
    curvature = ((y2 - y1) / (x2 - x1) - (y1 - y0) / (x1 - x0)) / (x2 - x0)
    reach = math.exp(math.sqrt(math.log1p(NEAR_OPTIMAL) / curvature))
    return own * check.best_multiple / reach, own * check.best_multiple * reach


def _rate_decided_by(planned: PlannedRun, check: RateCheck | None) -> str:
    if planned.role == "rate":
        return f"the learning-rate check: this run tries the law's learning rate x {planned.rate_multiple:g}"
    if planned.rate_multiple != 1:
        return (
            "the learning-rate check: the law's learning rate gave a loss more than 0.25 % above the lowest"
        )
    if check is not None and planned.role == "target":
        return "the law; in the learning-rate check its loss was within 0.25 % of the lowest"
    return "the law; no learning-rate check was run on this data"


def rate_evidence(check: RateCheck) -> str:
    """A sentence on the learning-rate check."""
    tried = ", ".join(
        f"x {multiple:g}: {loss:.4f}" for multiple, loss in zip(check.multiples, check.losses, strict=True)
    )
    edge = "" if check.bracketed else f", {check.reason}"
    best = f"best at x {check.best_multiple:.3g}{edge}"
    return f"learning-rate check on the shape of run {check.run}: {tried} nats per token; {best}"


def batch(field: Field, plan: Plan) -> Reason:
    """The law's tokens per step, rounded to sequences that data parallelism divides."""
    planned, followed = run_of(field, plan), hyper_of(plan)
    model = planned.run.model
    if followed is None:
        return Reason("the planner's default, since the plan's law gives no batch size")
    hyper, source = followed
    own, where = law_value(hyper.batch_tokens, planned)
    target = own / model.context
    return Reason(
        decided_by=_batch_decided_by(plan, planned, target),
        law=source,
        equation=f"batch_tokens = {monomial_text(hyper.batch_tokens)} at {where}: {own:,.0f} tokens, "
        f"/ context {model.context:,} = {target:,.1f} sequences",
        evidence=tuple(
            f"{_law_name(other)} gives {other.batch_tokens:,.0f} tokens = {monomial_text(other.hyper.batch_tokens)}"
            for other in _other_laws(plan, planned)
        ),
    )


def _other_laws(plan: Plan, planned: PlannedRun) -> list[HyperAdvice]:
    """The laws that the target does not follow, where they differ from the one that it follows."""
    used = next((one.hyper for one in plan.hypers if one.used), None)
    return [one for one in plan.hypers if one.hyper != used and planned.role == "target"]


def _law_name(advice: HyperAdvice) -> str:
    return f"the {advice.law}'s fit" if advice.law in OWN_LAWS else f"the law {advice.law}"


def _batch_decided_by(plan: Plan, planned: PlannedRun, target: float) -> str:
    actual, dp = planned.run.optim.batch_sequences, planned.execution.layout.dp
    if plan.budget.batch is not None and planned.role == "target":
        return f"the budget's field batch, {plan.budget.batch:,} tokens"
    text = (
        f"the law gives {target:,.1f} sequences, the plan has {actual:,} ({deviation_text(target, actual)})"
    )
    if abs(actual - target) <= max(dp, _BATCH_TOLERANCE * target):
        return f"rounding to a batch that dp {dp} divides: {text}"
    return f"differs from the law: {text}"


def steps(field: Field, plan: Plan) -> Reason:
    """C / M tokens in whole steps."""
    planned = run_of(field, plan)
    target = _target_tokens(planned) / planned.run.batch_tokens
    return Reason(
        decided_by=f"rounding to a multiple of {EVALUATIONS}, so that evaluations and milestones are at whole steps "
        f"({deviation_text(target, planned.run.optim.steps)})",
        equation=f"C / M / batch_tokens = {planned.budget_flop:.4g} / {planned.run.model.flop_per_token:.4g} / "
        f"{planned.run.batch_tokens:,} = {target:,.1f}",
    )


_SCHEDULES = {
    "multi-step": f"{PAPER}, section 2.3",
    "cosine": "cosine: Loshchilov and Hutter, arXiv 1608.03983",
    "wsd": "warmup, stable, decay: Hu et al., arXiv 2404.06395; its decay as Hägele et al., arXiv 2405.18392",
}
"""Where each kind of schedule comes from."""


def schedule(field: Field, plan: Plan) -> Reason:
    """The schedule of the budget, or the family's."""
    planned, family = run_of(field, plan), family_of(plan)
    optim, own = planned.run.optim, plan.budget.schedule
    kind = own or family.schedule
    stepped = in_steps(kind, optim.steps, family.warmup_steps)
    whose = f"the family {family.name}" if own is None else "the budget's field schedule"
    same = (optim.milestones, optim.decay) == (stepped.milestones, stepped.decay)
    drops = ", ".join(f"{step:,}" for step in optim.drop_steps)
    shares = ", ".join(f"{step / optim.steps:.0%}" for step in optim.drop_steps)
    return Reason(
        decided_by=f"{whose}: {kind.kind}, rounded to whole steps"
        if same
        else f"differs from the schedule {kind.kind} of {whose}",
        law=_SCHEDULES[kind.kind],
        equation=f"{shares} of {optim.steps:,} steps: {drops}" if drops else None,
    )


def warmup(field: Field, plan: Plan) -> Reason:
    """The family's warmup, shortened for short runs."""
    planned, family = run_of(field, plan), family_of(plan)
    total, actual = planned.run.optim.steps, planned.run.optim.warmup_steps
    cut = (
        f"shortened to a twentieth of the run's {total:,} steps"
        if actual < family.warmup_steps
        else "not shortened"
    )
    return Reason(
        decided_by=f"the family {family.name}: {family.warmup_steps:,} steps, {cut}",
        law=f"{family.name}: {family.source}; 2000 steps in {PAPER}, section 2.3",
        equation=f"min({family.warmup_steps:,}, {total:,} / 20) = {actual:,}",
    )


def optimizer(field: Field, plan: Plan) -> Reason:
    """Constants of AdamW."""
    return Reason(f"usual practice: {field.description}", law=f"AdamW as in {PAPER}, section 2.3")


def evaluation(field: Field, plan: Plan) -> Reason:
    """How often and on how much the held-out loss is measured."""
    planned, family = run_of(field, plan), family_of(plan)
    optim, context = planned.run.optim, planned.run.model.context
    text = {
        "every_steps": f"{optim.steps:,} steps / {EVALUATIONS} evaluations",
        "sequences": f"curve_tokens {family.curve_tokens:,} / context {context:,}",
        "final_sequences": f"final_tokens {family.final_tokens:,} / context {context:,}",
    }
    return Reason(
        decided_by=f"the family {family.name}: the same held-out text for every size, so that losses are comparable",
        law=f"{family.name}: {family.source}",
        equation=text.get(field.path[-1]),
    )


def from_budget(field: Field, plan: Plan) -> Reason:
    """A setting taken from the budget as it is."""
    return Reason(f"the budget's field {field.path[-1]}")


def guard(field: Field, plan: Plan) -> Reason:
    """The guard against loss spikes."""
    return Reason("the budget's field guard")


def from_family(field: Field, plan: Plan) -> Reason:
    """A setting taken from the family as it is."""
    family = family_of(plan)
    return Reason(f"the family {family.name}", law=f"{family.name}: {family.source}")


def vocabulary(field: Field, plan: Plan) -> Reason:
    """The tokenizer's vocabulary, padded."""
    family, reserved = family_of(plan), plan.budget.data.reserved_rows
    kept = f", and the budget reserves {reserved:,} rows" if reserved > plan.vocab else ""
    return Reason(
        decided_by=f"rounding up to a multiple of {family.vocab_multiple} (family {family.name})",
        equation=f"the tokenizer has {plan.vocab:,} entries{kept}",
    )


def data(field: Field, plan: Plan) -> Reason:
    """The corpus by content."""
    return Reason(
        "the budget's field data: the fingerprint is of its text and tokenizer settings, the digest of the built corpus"
    )


def mix(field: Field, plan: Plan) -> Reason:
    """Shares of the sources, phases and evaluation mix."""
    run = run_of(field, plan).run
    if run.mix is None:
        return Reason("the budget's field data.text: it is one source, and no mix")
    epochs, shares = plan.epochs(run), run.mix.shares(run.optim.steps)
    unique = {name: plan.sources[name].unique_tokens for name in run.mix.sources}
    return Reason(
        decided_by="the budget's field data.text: weights in parts, phases and evaluation, the same for all runs",
        law="Muennighoff et al., arXiv 2305.16264, Eq. 5, for the repeats of each source",
        equation=f"shares are whole samples of a period of at most {PERIOD:,}: {mix_text(run.mix)}; of the held-out "
        f"loss: {evaluation_mix_text(run.mix)}",
        evidence=tuple(
            f"{name}: {shares[name]:.4g} of the tokens, {epochs[name]:.3g} epochs over {unique[name]:,} unique tokens"
            for name in run.mix.sources
        ),
    )


def attended(field: Field, plan: Plan) -> Reason:
    """What attention sees of the context."""
    if run_of(field, plan).run.documents == "joined":
        return Reason("the budget's field documents: they are joined, so attention sees the context")
    return Reason(
        decided_by="the text: how long its documents are, as `isoplan data` has counted them",
        law="counted from the corpus",
        equation="sum(l^2) / sum(l) over the parts l of documents in sequences, cut anywhere",
    )


def plain_choice(field: Field, plan: Plan) -> Reason:
    """A setting that no budget changes."""
    return Reason(f"the engine: {field.description}")


def budget_flop(field: Field, plan: Plan) -> Reason:
    """The requested compute."""
    planned = run_of(field, plan)
    if planned.role == "target":
        currency = plan.budget.currency
        price = None if currency in ("compute", "loss") else f"converted with {planned.cost.basis}"
        return Reason(f"the budget's field {currency}: {plan.budget.amount_text}", equation=price)
    return Reason(
        "the ladder: one of its isoFLOP budgets; all pilots together cost at most evidence.share of the target"
    )


def ladder(field: Field, plan: Plan) -> Reason:
    """What the budget fixes of the ladder, and what was chosen for the narrowest interval of the target's loss."""
    choice, evidence = plan.ladder, plan.budget.evidence
    if choice is None or not isinstance(evidence, Pilots):
        return Reason("the planner: the plan has no pilots")
    fixed = {"budgets": evidence.budgets, "sizes": evidence.sizes, "spread": evidence.spread}
    fixed["budget_ratio"] = None if evidence.budgets is None else HALF_DECADE
    decided_by = (
        f"the narrowest expected interval of the target's loss among {choice.considered:,} affordable ladders"
    )
    if fixed.get(field.path[-1]) is not None:
        decided_by = f"the budget's field evidence: {fixed[field.path[-1]]:.4g}"
    own, best, paper = (
        f"±{half:.2%}".replace("%", " %")
        for half in (choice.half_width, choice.best_half_width, choice.paper_half_width)
    )
    return Reason(
        decided_by=decided_by,
        law="Bayesian linear design (Chaloner & Verdinelli 1995): forms of the loss law, linearised at their priors, "
        "with run-to-run noise and the laws' discrepancy per decade (planner/design/pilot_design.py)",
        equation="half width = 1.96 sqrt(sum over forms of weight J' (prior precision + information)^-1 J + noise^2)",
        evidence=(
            f"expected 95 % interval of the target's loss: {own} with this ladder, {best} with the best ladder, "
            f"{paper} with DeepSeek LLM's ladder (8 budgets x 10 sizes) at equal cost",
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
    (f"{_RUN}.optim.milestones*", schedule),
    (f"{_RUN}.optim.decay*", schedule),
    (f"{_RUN}.optim.schedule_text", schedule),
    (f"{_RUN}.optim.warmup_steps", warmup),
    (f"{_RUN}.optim*", optimizer),
    (f"{_RUN}.tokens", tokens),
    (f"{_RUN}.compute_flop", compute),
    (f"{_RUN}.model.*params", counted),
    (f"{_RUN}.model.*flop_per_token", counted),
    (f"{_RUN}.model.head_dim", counted),
    (f"{_RUN}.model.vocab", vocabulary),
    (f"{_RUN}.model.context", from_family),
    (f"{_RUN}.model.*attended_tokens", attended),
    (f"{_RUN}.model.init_std", from_family),
    (f"{_RUN}.model.rope_theta", plain_choice),
    (f"{_RUN}.model.norm_eps", plain_choice),
    (f"{_RUN}.model*", shape),
    (f"{_RUN}.evaluation*", evaluation),
    (f"{_RUN}.precision", from_budget),
    (f"{_RUN}.documents", from_budget),
    (f"{_RUN}.seed", from_budget),
    (f"{_RUN}.guard*", guard),
    (f"{_RUN}.data*", data),
    (f"{_RUN}.mix*", mix),
    (f"{_RUN}.*", plain_choice),
    ("runs.*.budget_flop", budget_flop),
    ("ladder*", ladder),
)
"""Rules of the ladder and of fields below `runs.*.run`; those of execution and cost follow in
planner/explain/rules_cost.py."""
