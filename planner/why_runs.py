"""Why a run is as it is: shape, tokens, batch, learning rate, schedule, evaluations.

Each rule recomputes what the law asks for and says how rounding, the budget or the learning-rate check moved it.
"""

import math
from collections.abc import Iterator

from planner.draft import EVALUATIONS, round_batch
from planner.fields import Field
from planner.shape import practice_depth
from planner.why import PAPER, Rule, Why, against, at, run_of
from specs.files import from_catalog
from specs.formulas import monomial_text
from specs.law import Allocation, Family, Monomial, RateCheck
from specs.optim import multi_step
from specs.plan import Plan, PlannedRun

_CURRENCIES = ("compute", "device_hours", "money", "energy", "loss", "deadline")
"""Fields of a budget that say how much may be spent, the first that is given counts."""
_SAME = 1e-9
"""Relative difference under which two numbers are the same but for the order of their sums."""


def peak_lr(field: Field, plan: Plan) -> Why:
    """The law's rate, and what the learning-rate check made of it."""
    planned, hyper = run_of(field, plan), plan.law.hyper
    if hyper is None:
        return Why("the plan; its law has no learning rate")
    own, where = at(hyper.peak_lr, planned)
    multiple = "" if planned.rate_multiple == 1 else f", x {planned.rate_multiple:.4g}"
    asked, came = own * planned.rate_multiple, planned.run.optim.peak_lr
    check = None if plan.fit is None else plan.fit.rate_check
    settled = _rate_settled(planned, check)
    if not math.isclose(asked, came, rel_tol=_SAME):
        settled = f"not the law alone: it gives {asked:.4g}, the plan has {came:.4g} ({against(asked, came)})"
    return Why(
        settled_by=settled,
        law=f"{plan.law.name}: {plan.law.source}; {hyper.regime}",
        equation=f"peak_lr = {monomial_text(hyper.peak_lr)} at {where}: {own:.4g}{multiple}",
        evidence=() if check is None else (rate_evidence(check),),
    )


def _rate_settled(planned: PlannedRun, check: RateCheck | None) -> str:
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


def batch(field: Field, plan: Plan) -> Why:
    """The law's tokens per step, rounded to sequences that data parallelism divides."""
    planned, hyper = run_of(field, plan), plan.law.hyper
    model = planned.run.model
    if hyper is None:
        return Why("the plan; its law has no batch size")
    own, where = at(hyper.batch_tokens, planned)
    wanted = own / model.context
    return Why(
        settled_by=_batch_settled(plan, planned, wanted),
        law=f"{plan.law.name}: {plan.law.source}; {hyper.regime}",
        equation=f"batch_tokens = {monomial_text(hyper.batch_tokens)} at {where}: {own:,.0f} tokens, "
        f"/ context {model.context:,} = {wanted:,.1f} sequences",
    )


def _batch_settled(plan: Plan, planned: PlannedRun, wanted: float) -> str:
    came, dp = planned.run.optim.batch_sequences, planned.execution.layout.dp
    asked = plan.budget.plain().get("batch") if planned.role == "target" else None
    if asked is not None:
        return f"the budget's field batch: {asked}, in whole sequences"
    said = f"{wanted:,.1f} sequences asked, {came:,} taken ({against(wanted, came)})"
    if came == round_batch(wanted, dp):
        return f"rounding: {said}, a multiple of dp {dp} and of a power of two"
    return f"not the law alone: {said}"


def steps(field: Field, plan: Plan) -> Why:
    """C / M tokens in whole steps."""
    planned = run_of(field, plan)
    wanted = _wanted_tokens(planned) / planned.run.batch_tokens
    return Why(
        settled_by=f"rounding: a multiple of {EVALUATIONS}, so that evaluations and milestones fall on whole steps "
        f"({against(wanted, planned.run.optim.steps)})",
        equation=f"C / M / batch_tokens = {planned.budget_flop:.4g} / {planned.run.model.flop_per_token:.4g} / "
        f"{planned.run.batch_tokens:,} = {wanted:,.1f}",
    )


def tokens(field: Field, plan: Plan) -> Why:
    """D = C / M, what the allocation says of it, and how often the text is read."""
    planned = run_of(field, plan)
    wanted, run = _wanted_tokens(planned), planned.run
    law = _allocation(plan, planned)
    best = "" if law is None else f"; D_opt = {_at(law.tokens, planned.budget_flop)}"
    return Why(
        settled_by=f"rounding to whole steps: {run.optim.steps:,} x {run.batch_tokens:,} tokens "
        f"({against(wanted, run.tokens)})",
        law=_allocation_source(plan, planned),
        equation=f"D = C / M = {planned.budget_flop:.4g} / {run.model.flop_per_token:.4g} = {wanted:.4g}{best}",
        evidence=(f"{run.tokens / plan.unique_tokens:.3g} passes over {plan.unique_tokens:,} unique tokens",),
    )


def milestones(field: Field, plan: Plan) -> Why:
    """The paper's multi-step schedule."""
    planned = run_of(field, plan)
    optim = planned.run.optim
    _, drops = multi_step(optim.steps, 1)
    said = "; ".join(f"x {one.factor:g} after {one.step / optim.steps:.0%} of the steps" for one in drops)
    same = optim.milestones == drops
    return Why(
        settled_by="the schedule, rounded to whole steps" if same else f"not the paper's schedule, {said}",
        law=f"{PAPER}, section 2.3",
        equation=f"{said}: {', '.join(f'{one.step:,}' for one in drops)} of {optim.steps:,}",
    )


def warmup(field: Field, plan: Plan) -> Why:
    """The family's warm-up, cut for short runs."""
    planned, family = run_of(field, plan), _family(plan)
    total, came = planned.run.optim.steps, planned.run.optim.warmup_steps
    cut = f"cut to a twentieth of the run's {total:,} steps" if came < family.warmup_steps else "not cut"
    return Why(
        settled_by=f"the family {family.name}: {family.warmup_steps:,} steps, {cut}",
        law=f"{family.name}: {family.source}; 2000 steps in {PAPER}, section 2.3",
        equation=f"min({family.warmup_steps:,}, {total:,} / 20) = {came:,}",
    )


def shape(field: Field, plan: Plan) -> Why:
    """The allocation's M, and the family's legal shape nearest to it."""
    planned, family = run_of(field, plan), _family(plan)
    model = planned.run.model
    wanted, equation = _wanted_size(plan, planned)
    off = "" if wanted is None else f", M {against(wanted, model.flop_per_token)}"
    return Why(
        settled_by=f"rounding to a legal shape of the family {family.name}{off}",
        law=_allocation_source(plan, planned),
        equation=equation,
        evidence=(*_practice(plan, family, planned), *_size_evidence(plan, planned)),
    )


def _practice(plan: Plan, family: Family, planned: PlannedRun) -> Iterator[str]:
    model = planned.run.model
    depth = practice_depth(family, model.width)
    yield f"family {family.name} ({family.source}): {depth:.1f} layers at width {model.width:,}, taken {model.layers}"
    aspect = plan.budget.plain().get("aspect")
    if aspect is not None:
        yield f"the budget's field aspect: {aspect} of width for each layer"


def _size_evidence(plan: Plan, planned: PlannedRun) -> Iterator[str]:
    if plan.fit is not None and planned.role == "target":
        yield plan.fit.allocation_basis
        yield f"{len(plan.fit.points)} runs of {len(plan.fit.profiles)} budgets"


def counted(field: Field, plan: Plan) -> Why:
    """What is counted from the shape: parameters and FLOP."""
    model = run_of(field, plan).run.model
    said = {
        "block_params": "N = L (2 d^2 + 2 d k e + 3 d f)",
        "params": "N + 2 V d + (2 L + 1) d",
        "flop_per_token": "M = 6 N + 12 L d s",
        "paper_flop_per_token": "M = 72 L d^2 + 12 L d s",
        "mfu_flop_per_token": "6 N + 6 L d s + 6 V d",
        "head_dim": "e = d / h",
    }
    source = {
        "flop_per_token": f"{PAPER}, Eq. 2, with the shape's own N in place of 12 L d^2",
        "paper_flop_per_token": f"{PAPER}, Eq. 2",
        "mfu_flop_per_token": "model FLOP without recomputation (PaLM, arXiv 2204.02311, appendix B), attention causal",
    }
    letters = (
        f"L {model.layers}, d {model.width}, h {model.heads}, k {model.kv_heads}, e {model.head_dim}, f {model.ffn}, "
        f"V {model.vocab}, s {model.context}"
    )
    name = field.path[-1]
    return Why(
        settled_by="the shape: counted exactly",
        law=source.get(name, "counted from the matrices of the shape"),
        equation=f"{said[name]} with {letters}",
    )


def compute(field: Field, plan: Plan) -> Why:
    """C = M D."""
    planned = run_of(field, plan)
    return Why(
        settled_by=f"rounding to a legal shape and whole steps: {planned.budget_flop:.4g} FLOP asked "
        f"({against(planned.budget_flop, planned.run.compute_flop)})",
        law=f"{PAPER}, section 3.2: C = M D",
        equation=f"C = M D = {planned.run.model.flop_per_token:.4g} x {planned.run.tokens:.4g}",
    )


def optimizer(field: Field, plan: Plan) -> Why:
    """Constants of AdamW."""
    return Why(f"practice: {field.said_of_it}", law=f"AdamW as in {PAPER}, section 2.3")


def evaluation(field: Field, plan: Plan) -> Why:
    """How often and on how much the held-out loss is measured."""
    planned, family = run_of(field, plan), _family(plan)
    optim, context = planned.run.optim, planned.run.model.context
    said = {
        "every_steps": f"{optim.steps:,} steps / {EVALUATIONS} points of the curve",
        "sequences": f"curve_tokens {family.curve_tokens:,} / context {context:,}",
        "final_sequences": f"final_tokens {family.final_tokens:,} / context {context:,}",
    }
    return Why(
        settled_by=f"the family {family.name}: the same held-out text for every size, so that runs compare",
        law=f"{family.name}: {family.source}",
        equation=said.get(field.path[-1]),
    )


def from_budget(field: Field, plan: Plan) -> Why:
    """What the budget says and nothing moves."""
    return Why(f"the budget's field {field.path[-1]}")


def from_family(field: Field, plan: Plan) -> Why:
    """What the family says and nothing moves."""
    family = _family(plan)
    return Why(f"the family {family.name}", law=f"{family.name}: {family.source}")


def vocabulary(field: Field, plan: Plan) -> Why:
    """The tokenizer's vocabulary, padded."""
    family = _family(plan)
    return Why(
        settled_by=f"rounding up to a multiple of {family.vocab_multiple} (family {family.name})",
        equation=f"the tokenizer has {plan.budget.data.vocab:,} entries",
    )


def data(field: Field, plan: Plan) -> Why:
    """The corpus by content."""
    return Why(
        "the budget's field data: the fingerprint of its text and tokenizer, the digest of what was built of it"
    )


def plain_choice(field: Field, plan: Plan) -> Why:
    """What no budget changes yet."""
    return Why(f"the engine: {field.said_of_it}")


def budget_flop(field: Field, plan: Plan) -> Why:
    """Compute that was asked for."""
    planned = run_of(field, plan)
    if planned.role == "target":
        given = plan.budget.plain()
        currency = next(name for name in _CURRENCIES if given.get(name) is not None)
        bought = None if currency == "compute" else f"bought at {planned.cost.basis}"
        return Why(f"the budget's field {currency}: {given[currency]}", equation=bought)
    return Why(
        "the budget's evidence: a rung of the ladder, half a decade apart, all pilots within evidence.share"
    )


def _at(law: Monomial, compute_flop: float) -> str:
    return f"{monomial_text(law)} = {law.at(compute_flop=compute_flop):.4g}"


def _wanted_tokens(planned: PlannedRun) -> float:
    return planned.budget_flop / planned.run.model.flop_per_token


def _wanted_size(plan: Plan, planned: PlannedRun) -> tuple[float | None, str | None]:
    """M as the allocation has it, with its equation; None for pilots, which are spread around it on purpose."""
    law = _allocation(plan, planned)
    if law is None:
        return None, None
    best = law.flop_per_token.at(compute_flop=planned.budget_flop)
    came = planned.run.model.flop_per_token
    said = f"M_opt = {monomial_text(law.flop_per_token)} at C = {planned.budget_flop:.4g}: {best:.4g} FLOP per token"
    if planned.role == "target":
        return best, f"{said}; this shape has {came:.4g}"
    return None, f"{said}; this pilot has {came:.4g}, {came / best:.2g} of it, as one of a spread of sizes"


def _allocation(plan: Plan, planned: PlannedRun) -> Allocation | None:
    fitted = plan.fit.allocation if plan.fit is not None and planned.role == "target" else None
    return fitted or plan.law.allocation


def _allocation_source(plan: Plan, planned: PlannedRun) -> str:
    if plan.fit is not None and planned.role == "target":
        return f"own fit: {plan.fit.allocation_basis}; form of {PAPER}, Eq. 4"
    return f"{plan.law.name}: {plan.law.source}"


def _family(plan: Plan) -> Family:
    return from_catalog(Family, plan.budget.family, None)


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
    (f"{_RUN}.data*", data),
    (f"{_RUN}.*", plain_choice),
    ("runs.*.budget_flop", budget_flop),
)
"""Rules of the fields below `runs.*.run`; those of execution and cost follow in planner/why_costs.py."""
