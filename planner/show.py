"""A plan as tables in the terminal: the runs, their cost, the forecast or why there is none, what to type next."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specs.plan import Forecast, Plan, PlannedRun
from specs.words import count, duration


def show(plan: Plan, path: Path, console: Console) -> None:
    """Print a plan. Nothing here is computed that the plan does not hold, but for units."""
    console.print(f"[bold]{plan.budget.name}[/]  {plan.phase} plan, seal {plan.seal[:16]}", highlight=False)
    console.print(_run_details(plan) if len(plan.runs) == 1 else _run_table(plan))
    _show_forecast(plan, console)
    for note in plan.notes:
        console.print(f"[yellow]note[/]  {escape(note)}", highlight=False)
    for word, what in (("plan", path), ("report", path.parent / "report.html"), ("next", f"run {path}")):
        console.print(f"{word:<8}{escape(str(what))}", highlight=False, soft_wrap=True)


def _run_table(plan: Plan) -> Table:
    table = Table(title=f"{len(plan.runs)} runs", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
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


def _run_details(plan: Plan) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in _details(plan.runs[0], plan):
        table.add_row(f"[dim]{name}[/]", value)
    return table


def _details(planned: PlannedRun, plan: Plan) -> list[tuple[str, str]]:
    run, model, optim, cost = planned.run, planned.run.model, planned.run.optim, planned.cost
    layout = planned.execution.layout
    drops = ", ".join(f"x{m.factor:g} after step {m.step}" for m in optim.milestones)
    kv = f", {model.kv_heads} kv heads" if model.kv_heads < model.heads else ""
    return [
        (
            "shape",
            f"{model.layers} layers x {model.width}, {model.heads} heads{kv}, ffn {model.ffn}, vocab {model.vocab}",
        ),
        ("parameters", f"{count(model.params)}, of which {count(model.block_params)} in blocks"),
        (
            "M",
            f"{model.flop_per_token:.4g} FLOP/token exact; {model.paper_flop_per_token:.4g} by the paper's Eq. 2",
        ),
        ("tokens", f"{count(run.tokens)}, {run.tokens / model.params:.1f} per parameter"),
        ("compute", f"{run.compute_flop:.4g} FLOP = M x tokens"),
        ("batch", f"{optim.batch_sequences} sequences of {model.context}, {count(run.batch_tokens)} tokens"),
        ("learning rate", f"{optim.peak_lr:.4g} after {optim.warmup_steps} warm-up steps, {drops}"),
        ("steps", f"{optim.steps}"),
        (
            "layout",
            f"dp {layout.dp} x pp {layout.pp} x tp {layout.tp}{' + sp' if layout.sequence_parallel else ''}, "
            f"micro-batch {layout.micro_batch_sequences}, {layout.devices} x {plan.budget.cluster}",
        ),
        ("memory", f"{cost.memory_bytes / 2**30:.2f} GiB of the fullest device"),
        (
            "time",
            f"{duration(cost.hours * 3600)}, {cost.device_hours:.4g} device-hours, {cost.tokens_per_s:.3g} tokens/s",
        ),
        ("price", "no price known" if cost.dollars is None else f"${cost.dollars:,.0f}"),
        ("speed from", cost.basis),
        ("law", f"{plan.law.name}: {plan.law.source}"),
    ]


def _show_forecast(plan: Plan, console: Console) -> None:
    told = plan.forecast
    if not isinstance(told, Forecast):
        console.print(f"[bold]forecast[/]  none: {escape(told.reason)}", highlight=False)
        return
    band, losses = told.loss, plan.losses
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
    console.print(f"          {escape(told.basis)}", highlight=False)
    if plan.fit is not None:
        console.print(_form_table(plan))
        for flag in plan.fit.flags:
            console.print(f"[yellow]flag[/]  {escape(flag)}", highlight=False)


def _form_table(plan: Plan) -> Table:
    table = Table(title="forms side by side", title_justify="left", box=SIMPLE_HEAD)
    for name in ("form", "held-out error", "weight", "forecast, nats/token"):
        table.add_column(name, justify="left" if name == "form" else "right")
    for form in plan.fit.forms if plan.fit is not None else ():
        error = "-" if form.held_out_error is None else f"{form.held_out_error:.2%}"
        table.add_row(form.form, error, f"{form.weight:.2f}", f"{form.forecast:.4f}")
    return table
