"""Where a run's execution and cost come from: layout, memory, hours, money."""

from collections.abc import Iterator

from planner.explain.fields import Field
from planner.explain.reason import Reason, Rule, run_of
from specs.formatting import layout_text, memory, shape_text
from specs.humanize import several
from specs.plan import LayoutEstimate, Plan

_MAX_ALTERNATIVES = 3
"""Other layouts that an explanation names."""


def layout(field: Field, plan: Plan) -> Reason:
    """The fastest layout that fits, and the best one with another value of this field."""
    planned = run_of(field, plan)
    chosen, compared = planned.execution.layout, plan.layouts
    if compared is None or planned.role != "target":
        target_only = (
            "; the comparison of layouts is only in plan.target.yaml" if planned.role != "target" else ""
        )
        where = f"{several(chosen.devices, 'device')} of {plan.budget.cluster}"
        return Reason(
            f"the planner, on {where}: the fastest layout that fits, or the one with the least model parallelism if "
            f"the cluster file gives no efficiency{target_only}"
        )
    best = compared.ranked[0]
    return Reason(
        decided_by=f"the fastest of {compared.fitting:,} layouts that fit, of {compared.considered:,} legal ones",
        law="closed-form step times; those of the best layouts are simulated (planner/performance/layout_search.py)",
        equation=f"{layout_text(chosen)}: {best.step_s:.4g} s a step, {memory(best.memory_bytes)}",
        evidence=(compared.reason, *_other_layouts(field, compared.ranked)),
    )


def _other_layouts(field: Field, ranked: tuple[LayoutEstimate, ...]) -> Iterator[str]:
    """The fastest layouts with another value of this field, and how much slower they are."""
    best, name = ranked[0], field.path[-1]
    own = getattr(best.layout, name, best.layout)
    seen = [own]
    for one in ranked[1:]:
        value = getattr(one.layout, name, one.layout)
        if value not in seen and len(seen) <= _MAX_ALTERNATIVES:
            seen.append(value)
            text = f"{name} {value}: " if hasattr(best.layout, name) else ""
            slower = f"{one.step_s / best.step_s - 1:+.1%}".replace("%", " %")
            yield f"{text}{layout_text(one.layout)} takes {one.step_s:.4g} s a step ({slower})"


def execution(field: Field, plan: Plan) -> Reason:
    """Device, kernels, threads, checkpoints."""
    cluster = plan.budget.cluster
    text = {
        "device": f"the cluster {cluster}: its device",
        "checkpoint_interval_s": f"the cluster {cluster}: its checkpoint_interval",
        "checkpoint_interval_steps": f"the cluster {cluster}: its checkpoint_interval_steps",
        "hang_timeout_s": f"the cluster {cluster}: its hang_timeout",
        "kernels": "the engine: the fastest kernels available on the device, chosen and recorded when the run starts",
        "threads_per_rank": "the engine: one thread per rank",
    }
    inside = next((name for name in ("retention", "profile") if name in field.path), None)
    if inside is not None:
        return Reason(f"the cluster {cluster}: its {inside}")
    return Reason(text.get(field.path[-1], f"the planner, for the cluster {cluster}"))


def fallback_layouts(field: Field, plan: Plan) -> Reason:
    """The layouts for fewer nodes."""
    return Reason(
        decided_by="the planner: for each halving of the nodes, the fastest layout that fits, or the one with "
        f"the least model parallelism if the cluster file of {plan.budget.cluster} gives no efficiency; same batch",
        law="closed-form step times (planner/performance/layout_search.py), not simulated",
    )


def memory_bytes(field: Field, plan: Plan) -> Reason:
    """Memory of the fullest device."""
    planned = run_of(field, plan)
    compared = plan.layouts if planned.role == "target" else None
    parts = {} if compared is None else compared.ranked[0].memory
    text = [f"{name} {memory(size)}" for name, size in largest_first(parts) if size > 0]
    return Reason(
        decided_by=f"the layout {layout_text(planned.execution.layout)}",
        equation=" + ".join(text) or None,
        evidence=()
        if compared is None
        else (f"a plan may use {memory(compared.limit_bytes)} of a device's memory",),
    )


def largest_first(parts: dict[str, float]) -> list[tuple[str, float]]:
    """Parts of a sum by size."""
    return sorted(parts.items(), key=lambda part: (-part[1], part[0]))


def cost(field: Field, plan: Plan) -> Reason:
    """Hours, device-hours, money: from tokens over tokens per second."""
    planned = run_of(field, plan)
    spent, devices, tokens = planned.cost, planned.execution.layout.devices, planned.run.tokens
    equations = {
        "hours": f"{tokens:.4g} tokens / {spent.tokens_per_s:.4g} tokens/s = {spent.hours:.4g} h",
        "device_hours": f"{spent.hours:.4g} h x {several(devices, 'device')}",
        "tokens_per_s": f"{planned.run.model.mfu_flop_per_token:.4g} FLOP per token, {several(devices, 'device')}",
    }
    if spent.dollars is not None:
        price = spent.dollars / spent.device_hours
        equations["dollars"] = f"{spent.device_hours:.4g} device-hours x ${price:.4g}/h"
    unpriced = field.path[-1] == "dollars" and spent.dollars is None
    return Reason(
        decided_by=f"the cluster {plan.budget.cluster}" + (", which has no price" if unpriced else ""),
        equation=equations.get(field.path[-1]),
        evidence=(spent.basis,),
    )


def planned_run(field: Field, plan: Plan) -> Reason:
    """A run of the plan."""
    planned = run_of(field, plan)
    return Reason(f"the plan: a {planned.role} run, {shape_text(planned.run.model)}")


def comparison(field: Field, plan: Plan) -> Reason:
    """The layouts side by side."""
    return Reason(
        decided_by="the planner: step times by closed forms for every legal layout, the best ones simulated",
        evidence=() if plan.layouts is None else (plan.layouts.reason,),
    )


RULES: tuple[tuple[str, Rule], ...] = (
    ("runs.*.execution.layout*", layout),
    ("runs.*.execution*", execution),
    ("runs.*.fallback_layouts*", fallback_layouts),
    ("runs.*.cost.memory_bytes", memory_bytes),
    ("runs.*.cost*", cost),
    ("runs*", planned_run),
    ("layouts*", comparison),
)
"""Rules of the other fields of runs, and of the layouts that were compared."""
