"""Where a run's size comes from: the split of its compute into model and data, the budget's objective, and rounding."""

from collections.abc import Iterator
from dataclasses import dataclass

from planner.design.model_shape import deepest, practice_depth
from planner.explain.fields import Field
from planner.explain.reason import PAPER, Reason, deviation_text, family_of, run_of
from specs.budget import FixedRatio, FixedSize, Inference
from specs.formatting import monomial_text
from specs.humanize import several
from specs.law import Allocation, Family, Monomial
from specs.plan import Plan, PlannedRun, evidence_source

BEST_SPLIT_INTERVAL = "95 % interval of the compute-optimal value by the fit's forms:"
"""What the interval of a size or of tokens holds."""
_SYMBOLS = "X model size, D training tokens"


@dataclass(frozen=True)
class TargetSize:
    """The size of a run before rounding to a legal shape."""

    equation: str
    """The equation that gives it."""
    law: str
    """The law behind it with its source."""
    size: float | None = None
    """The size; None where it cannot be read from the plan."""
    actual: float = 1.0
    """The same measure of the run's own shape."""


def shape(field: Field, plan: Plan) -> Reason:
    """The target size, and the family's legal shape nearest to it."""
    planned, family = run_of(field, plan), family_of(plan)
    target = _target_size(plan, planned)
    off = "" if target.size is None else f" (size {deviation_text(target.size, target.actual)})"
    return Reason(
        decided_by=f"rounding to a legal shape of the family {family.name}{off}",
        law=target.law,
        equation=target.equation,
        evidence=(*_practice(plan, family, planned), *_size_evidence(plan, planned)),
    )


def _target_size(plan: Plan, planned: PlannedRun) -> TargetSize:
    """The size by the budget's objective; pilots are spread around the prior's optimum."""
    objective, model, flop = plan.budget.objective, planned.run.model, planned.budget_flop
    if planned.role == "target":
        match objective:
            case FixedSize():
                text = f"the budget's objective: {objective.params:,} parameters; this shape has {model.params:,}"
                return TargetSize(text, "the budget's field objective", objective.params, model.params)
            case FixedRatio():
                ratio, product = objective.tokens_per_param, float(model.flop_per_token) * model.params
                text = f"D = {ratio:g} N_all, so M N_all = C / {ratio:g} = {flop / ratio:.4g}; here {product:.4g}"
                return TargetSize(text, "the budget's field objective", flop / ratio, product)
            case Inference():
                text = f"dL/dln X = (1 + D_served / (3 D)) dL/dln D at the budget's compute; {_SYMBOLS}"
                served = f"D_served = {objective.served:.4g} inference tokens"
                return TargetSize(
                    f"{text}, {served}", f"Sardana et al., arXiv 2401.00448, Eq. 3; {_loss_law_text(plan)}"
                )
    return _size_from_allocation(plan, planned)


def _size_from_allocation(plan: Plan, planned: PlannedRun) -> TargetSize:
    """M as the allocation has it, or the loss law's best split where there is no allocation."""
    law, actual = allocation_of(plan, planned), float(planned.run.model.flop_per_token)
    if law is None:
        return TargetSize(f"dL/dln X = dL/dln D at the budget's compute; {_SYMBOLS}", _loss_law_text(plan))
    best = law.flop_per_token.at(compute_flop=planned.budget_flop)
    text = f"M_opt = {monomial_text(law.flop_per_token)} at C = {planned.budget_flop:.4g}: {best:.4g} FLOP per token"
    source = allocation_source(plan, planned)
    if planned.role == "target":
        return TargetSize(f"{text}; this shape has {actual:.4g}", source, best, actual)
    return TargetSize(
        f"{text}; this pilot has {actual:.4g}, {actual / best:.2g} times that, as pilots cover a range of sizes",
        source,
    )


def _loss_law_text(plan: Plan) -> str:
    """The loss law that gives the split where there is no allocation."""
    named = getattr(plan.budget.evidence, "loss", None) or plan.law.name
    return (
        f"loss law {named}"
        if plan.fit is None
        else f"forms of the loss law, by weight, fitted on {several(plan.fit.evidence.runs, 'run')} of "
        f"{evidence_source(plan)}"
    )


def _practice(plan: Plan, family: Family, planned: PlannedRun) -> Iterator[str]:
    model = planned.run.model
    aspect, width = plan.budget.aspect, model.width
    if aspect is not None:
        depth = width / aspect
        yield f"the budget's field aspect, {aspect}: {depth:.1f} layers at width {width:,}, rounded to {model.layers}"
    else:
        depth = practice_depth(family, width)
        usual = f"{depth:.1f} layers at width {width:,}"
        yield f"family {family.name} ({family.source}): usually {usual}; here {model.layers}"
        if depth == deepest(family) and width > family.depths[-1][0]:
            yield (
                f"wider models are no deeper than {depth:.0f} layers, as models are built; a budget's field aspect "
                "says otherwise. Flat shapes cost little: 6 layers of width 4,288 came within 3 % of the loss of 48 "
                "of 1,600, equally large (arXiv 2001.08361, figure 5)"
            )
    layout = planned.execution.layout
    if layout.pp > 1:
        sizes = sorted({len(blocks) for blocks in layout.blocks(model.layers)})
        each = several(sizes[0], "layer") if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} layers"
        chunks = "" if layout.interleave == 1 else f"{layout.interleave} chunks with "
        yield f"{layout.pp} pipeline stages of {chunks}{each} each; the last stage also has the head"


def _size_evidence(plan: Plan, planned: PlannedRun) -> Iterator[str]:
    if plan.fit is not None and planned.role == "target":
        yield plan.fit.allocation_basis
        yield f"{len(plan.fit.points)} runs of {len(plan.fit.profiles)} budgets"


def best_split_interval(field: Field, plan: Plan) -> tuple[float, float] | None:
    """Interval, by the fit's forms, of the optimal size or tokens at the target's compute; None for other runs."""
    optimum = None if plan.fit is None else plan.fit.optimum
    if optimum is None or run_of(field, plan).role != "target":
        return None
    named = {
        "flop_per_token": optimum.flop_per_token,
        "block_params": optimum.block_params,
        "tokens": optimum.tokens,
    }
    ends = named.get(field.path[-1])
    return None if ends is None else (ends.low, ends.high)


def tokens(field: Field, plan: Plan) -> Reason:
    """D = C / M, the allocation's D_opt, and the number of epochs."""
    planned = run_of(field, plan)
    target, run = planned.budget_flop / planned.run.model.flop_per_token, planned.run
    law = allocation_of(plan, planned)
    optimal = "" if law is None else f"; D_opt = {_law_text(law.tokens, planned.budget_flop)}"
    return Reason(
        decided_by=f"rounding to whole steps: {run.optim.steps:,} x {run.batch_tokens:,} tokens "
        f"({deviation_text(target, run.tokens)})",
        law=allocation_source(plan, planned),
        equation=f"D = C / M = {planned.budget_flop:.4g} / {run.model.flop_per_token:.4g} = {target:.4g}{optimal}",
        evidence=tuple(
            f"{epochs:.3g} epochs over "
            + (f"the unique tokens of {name}" if name else f"{plan.unique_tokens:,} unique tokens")
            for name, epochs in plan.epochs(run).items()
        ),
        interval=best_split_interval(field, plan),
        interval_of=BEST_SPLIT_INTERVAL,
    )


def counted(field: Field, plan: Plan) -> Reason:
    """Counts of the shape: parameters and FLOP."""
    model = run_of(field, plan).run.model
    text = {
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
        f"V {model.vocab}, s {model.attended_tokens:g}"
    )
    name = field.path[-1]
    return Reason(
        decided_by="the shape: counted exactly",
        law=source.get(name, "counted from the matrices of the shape"),
        equation=f"{text[name]} with {letters}",
        interval=best_split_interval(field, plan),
        interval_of=BEST_SPLIT_INTERVAL,
    )


def compute(field: Field, plan: Plan) -> Reason:
    """C = M D."""
    planned = run_of(field, plan)
    return Reason(
        decided_by=f"rounding to a legal shape and whole steps: {planned.budget_flop:.4g} FLOP requested "
        f"({deviation_text(planned.budget_flop, planned.run.compute_flop)})",
        law=f"{PAPER}, section 3.2: C = M D",
        equation=f"C = M D = {planned.run.model.flop_per_token:.4g} x {planned.run.tokens:.4g}",
    )


def _law_text(law: Monomial, compute_flop: float) -> str:
    return f"{monomial_text(law)} = {law.at(compute_flop=compute_flop):.4g}"


def allocation_of(plan: Plan, planned: PlannedRun) -> Allocation | None:
    """The split of compute that a run follows: the fit's for a target, the prior's for pilots; None without one."""
    fitted = plan.fit.allocation if plan.fit is not None and planned.role == "target" else None
    return fitted or plan.law.allocation


def allocation_source(plan: Plan, planned: PlannedRun) -> str:
    """Source of that split."""
    if plan.fit is not None and planned.role == "target":
        return f"own fit: {plan.fit.allocation_basis}; form of {PAPER}, Eq. 4"
    return f"{plan.law.name}: {plan.law.source}"
