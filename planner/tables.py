"""A plan as tables in the terminal: the runs, their cost, the forecast or why there is none, and the next command."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from planner.design.caveats import cost_text
from specs.formatting import (
    best_split,
    evaluation_mix_text,
    layout_text,
    listed_members,
    member_name,
    memory,
    mix_text,
    shape_text,
    small_members_name,
    windows_text,
)
from specs.humanize import count, duration
from specs.law import FormScore
from specs.plan import Forecast, LayoutChoice, Plan, PlannedRun, evidence_source

Row = tuple[str, str]
LAYOUTS = 4
"""Layouts that are printed; the report has more of them."""


def show(plan: Plan, path: Path, console: Console) -> None:
    """Print a plan. All numbers are the plan's own, converted to readable units."""
    head = f"[bold]{plan.budget.name}[/]  {plan.phase} plan for {escape(plan.budget.amount_text)}, "
    head += f"seal {plan.seal[:16]}"
    console.print(head, highlight=False)
    console.print(_run_table(plan) if plan.phase == "pilots" else _run_details(plan))
    last = plan.runs[-1].run
    if plan.phase == "pilots" and last.mix is not None:
        alike = (
            f"({last.optim.steps:,} steps; every run reads these shares, for the same shares of its steps)"
        )
        console.print(f"mix     {mix_text(last.mix)} {alike}", highlight=False, soft_wrap=True)
    if plan.layouts is not None:
        console.print(_layout_table(plan.layouts))
        console.print(_nearest_miss(plan.layouts), highlight=False)
    _show_forecast(plan, console)
    _show_remarks("note", plan.notes, console)
    for word, what in (("plan", path), ("report", path.parent / "report.html"), ("next", _next(plan, path))):
        console.print(f"{word:<8}{escape(str(what))}", highlight=False, soft_wrap=True)


def _next(plan: Plan, path: Path) -> str:
    """The next command, or what to change in the budget."""
    if plan.runs[0].run.data.digest is None:
        return "to train, give the budget your own text (data.text, source: files) and another name, then: plan BUDGET"
    if plan.phase == "target":
        return f"run {path}"
    return f"run {path}; audit {path}; plan BUDGET"


def _run_table(plan: Plan) -> Table:
    table = Table(title=_title_of_pilots(plan), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("run", "M", "tokens", "batch", "lr", "steps", "time"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    for planned in plan.runs:
        run, optim = planned.run, planned.run.optim
        table.add_row(
            planned.title,
            f"{run.model.flop_per_token:.3g}",
            count(run.tokens),
            str(optim.batch_sequences),
            f"{optim.peak_lr:.2g}",
            str(optim.steps),
            duration(planned.cost.hours * 3600),
        )
    return table


def _title_of_pilots(plan: Plan) -> str:
    costs = [planned.cost for planned in plan.runs]
    hours, flop = sum(cost.device_hours for cost in costs), sum(cost.compute_flop for cost in costs)
    return f"{len(costs)} runs, {flop:.3g} FLOP, {hours:,.3g} device-hours on {plan.budget.cluster}"


def _run_details(plan: Plan) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in rows(plan):
        table.add_row(f"[dim]{name}[/]", escape(value))
    return table


def rows(plan: Plan) -> list[Row]:
    """The target run as labels and values; `isoplan explain` accepts every label."""
    planned = plan.runs[0]
    return [*_model(planned), *_training(planned, plan), *_execution(planned, plan)]


def _model(planned: PlannedRun) -> Iterator[Row]:
    model = planned.run.model
    yield "shape", shape_text(model)
    yield "parameters", f"{count(model.params)}, of which {count(model.block_params)} in blocks"
    exact, paper = model.flop_per_token, model.paper_flop_per_token
    yield "M", f"{exact:.4g} FLOP/token exact; {paper:.4g} by Eq. 2 of DeepSeek LLM"


def _training(planned: PlannedRun, plan: Plan) -> Iterator[Row]:
    run, optim = planned.run, planned.run.optim
    ratio, epochs = run.tokens / run.model.params, plan.epochs(run)
    if run.mix is None:
        yield (
            "tokens",
            f"{count(run.tokens)}, {ratio:.3g} per parameter, {epochs['']:.3g} epochs over the text",
        )
    else:
        yield "tokens", f"{count(run.tokens)}, {ratio:.3g} per parameter"
        yield "mix", mix_text(run.mix)
        shares = run.mix.shares(optim.steps)
        read = sorted(shares, key=lambda name: -shares[name])
        yield (
            "sources",
            "; ".join(f"{n} {shares[n]:.1%}, {epochs[n]:.3g} epochs" for n in read).replace("%", " %"),
        )
        yield "evaluation", f"mean over {evaluation_mix_text(run.mix)}"
    yield "compute", f"{run.compute_flop:.4g} FLOP = M x tokens"
    yield (
        "batch",
        f"{optim.batch_sequences} sequences of {run.model.context}, {count(run.batch_tokens)} tokens",
    )
    regime = next((f" ({one.law}: {one.hyper.regime})" for one in plan.hypers if one.used), "")
    yield "learning rate", f"{optim.peak_lr:.4g}{regime}"
    yield "schedule", f"{optim.steps} steps: {optim.warmup_steps} of warmup, {optim.schedule_text}"


def _execution(planned: PlannedRun, plan: Plan) -> Iterator[Row]:
    cost, layout = planned.cost, planned.execution.layout
    yield "layout", f"{layout_text(layout)}, {layout.devices} x {plan.budget.cluster}"
    yield "memory", f"{memory(cost.memory_bytes)} of the fullest device"
    yield "time", f"{duration(cost.hours * 3600)}, {cost.tokens_per_s:.3g} tokens/s"
    yield "cost", cost_text(cost)
    yield "speed from", cost.basis
    yield "evidence", _evidence(plan)


def _evidence(plan: Plan) -> str:
    """The evidence of the plan, and the error of its forecast on held-out budgets."""
    law = plan.law
    if plan.fit is None:
        fitted = f"{law.compute_low_flop:.1e} to {law.compute_high_flop:.1e} FLOP on {law.data}"
        return f"law {law.name}, fitted on {fitted}; its source gives no held-out error"
    flops = [point.budget_flop for point in plan.fit.points]
    own = plan.fit.held_out_error
    error = "not measured" if own is None else f"{own:.2%} (all forms together, by weight)"
    runs = f"{len(flops)} runs of {evidence_source(plan)}, {min(flops):.1e} to {max(flops):.1e} FLOP"
    return f"{runs}; held-out error: {error}"


def _nearest_miss(choice: LayoutChoice) -> str:
    """The layout that misses the memory limit least, by how much, and its step time."""
    miss, over = choice.nearest_miss, choice.nearest_miss_bytes
    if miss is None or over is None:
        return "all layouts fit"
    slower = f"{miss.step_s / choice.ranked[0].step_s - 1:+.1%}".replace("%", " %")
    return f"nearest that does not fit: {layout_text(miss.layout)}; {memory(over)} too much memory, step time {slower}"


def _layout_table(choice: LayoutChoice) -> Table:
    title = f"{choice.fitting} of {choice.considered} layouts fit; {choice.reason}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("layout", "step", "MFU", "memory"):
        table.add_column(name, justify="left" if name == "layout" else "right")
    for one in choice.ranked[:LAYOUTS]:
        table.add_row(
            layout_text(one.layout),
            f"{one.step_s:.3g} s",
            f"{one.model_flop_utilisation:.1%}",
            memory(one.memory_bytes),
        )
    return table


def _show_forecast(plan: Plan, console: Console) -> None:
    forecast = plan.forecast
    if not isinstance(forecast, Forecast):
        console.print(f"[bold]forecast[/]  none: {escape(forecast.reason)}", highlight=False)
        _show_flags(plan, console)
        return
    band, losses = forecast.loss, plan.losses
    console.print(
        f"[bold]forecast[/]  held-out loss {band.median:.4f} nats/token, 50 % {band.low_50:.4f} to {band.high_50:.4f}, "
        f"95 % {band.low_95:.4f} to {band.high_95:.4f}",
        highlight=False,
    )
    if losses.bytes_per_token is not None:
        console.print(
            f"          {losses.of(band.median):.4f} {losses.unit}, 95 % {losses.of(band.low_95):.4f} to "
            f"{losses.of(band.high_95):.4f}",
            highlight=False,
        )
    console.print(Padding(escape(forecast.basis), (0, 0, 0, 10)), highlight=False)
    if plan.fit is not None and plan.fit.optimum is not None:
        split = ", ".join(f"{name} {value}" for name, value in best_split(plan.fit.optimum, losses))
        console.print(
            f"[bold]compute-optimal allocation[/]  by these forms (95 % interval): {split}", highlight=False
        )
    if plan.fit is not None:
        console.print(_form_table(plan.fit.forms))
    _show_flags(plan, console)


def _show_flags(plan: Plan, console: Console) -> None:
    _show_remarks("flag", () if plan.fit is None else plan.fit.flags, console)


def _show_remarks(kind: str, remarks: Sequence[str], console: Console) -> None:
    """Sentences after a word for their kind, wrapped beside it."""
    if not remarks:
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="yellow", no_wrap=True)
    table.add_column(overflow="fold")
    for remark in remarks:
        table.add_row(kind, escape(remark))
    console.print(table, highlight=False)


def _form_table(forms: Sequence[FormScore]) -> Table:
    """The members of the forecast; those of small weight in one line."""
    table = Table(title="forms of the loss law", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = windows_text(forms) or None, "left"
    for name in ("form", "held-out error", "weight", "forecast, nats/token"):
        table.add_column(name, justify="left" if name == "form" else "right", no_wrap=name == "form")
    listed, small = listed_members(forms)
    for form in listed:
        error = "-" if form.held_out_error is None else f"{form.held_out_error:.2%}"
        table.add_row(escape(member_name(form)), error, f"{form.weight:.2f}", f"{form.forecast:.4f}")
    if small:
        low, high = (end(form.forecast for form in small) for end in (min, max))
        weight = sum(form.weight for form in small)
        table.add_row(small_members_name(small), "", f"{weight:.2f}", f"{low:.4f} to {high:.4f}")
    return table
