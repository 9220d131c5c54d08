"""The tables of the page, as rows of text; the page escapes and sets them."""

import math

from specs.plan import Forecast, Plan
from specs.record import Audit
from specs.report.figures import shown, unit
from specs.words import count, duration

Rows = list[tuple[str, ...]]


def loss(plan: Plan, nats: float | None) -> str:
    """A loss in the page's unit with nats per token beside it."""
    if nats is None:
        return "-"
    if plan.bytes_per_token is None:
        return f"{nats:.4f}"
    return f"{shown(plan, nats):.4f} ({nats:.4f})"


def runs(plan: Plan, audit: Audit | None) -> Rows:
    """Planned runs, with what became of them."""
    rows: Rows = [
        ("run", "shape", "M", "tokens", "batch", "peak lr", "steps", "planned", "took", "loss", "state")
    ]
    for i, planned in enumerate(plan.runs):
        model, optim, done = planned.run.model, planned.run.optim, None if audit is None else audit.runs[i]
        rows.append(
            (
                planned.title,
                f"{model.layers} x {model.width}",
                f"{model.flop_per_token:.3g}",
                count(planned.run.tokens),
                str(optim.batch_sequences),
                f"{optim.peak_lr:.2g}",
                str(optim.steps),
                duration(planned.cost.hours * 3600),
                "-" if done is None or not done.steps else duration(done.seconds),
                loss(plan, None if done is None else done.loss),
                "planned" if done is None else done.state,
            )
        )
    return rows


def evidence(plan: Plan) -> Rows:
    """The pilots that the fit saw."""
    rows: Rows = [("run", "budget", "M", "tokens", f"loss, {unit(plan)}", "note")]
    for point in plan.fit.points if plan.fit is not None else ():
        size, note = f"{point.flop_per_token:.3g}", "short" if point.short else ""
        rows.append(
            (point.run, f"{point.budget_flop:.2e}", size, count(point.tokens), loss(plan, point.loss), note)
        )
    return rows


def forms(plan: Plan) -> Rows:
    """The forms side by side."""
    rows: Rows = [("form", "L =", "held-out error", "weight", f"forecast, {unit(plan)}", "constants, 95 %")]
    for form in plan.fit.forms if plan.fit is not None else ():
        ends = ", ".join(f"{k} {v.value:.3g} [{v.low:.3g}, {v.high:.3g}]" for k, v in form.constants.items())
        error = "-" if form.held_out_error is None else f"{form.held_out_error:.2%}"
        rows.append((form.form, form.latex, error, f"{form.weight:.2f}", loss(plan, form.forecast), ends))
    return rows


def target(plan: Plan) -> Rows:
    """The run in full, where the plan has one."""
    planned = plan.runs[-1]
    model, optim, layout, cost = planned.run.model, planned.run.optim, planned.execution.layout, planned.cost
    drops = ", ".join(f"x {m.factor:g} after step {m.step:,}" for m in optim.milestones)
    shape = f"{model.layers} layers x {model.width}, {model.heads} heads, {model.kv_heads} kv heads, ffn {model.ffn}"
    price = "" if cost.dollars is None else f", ${cost.dollars:,.0f}"
    return [
        ("shape", f"{shape}, vocabulary {model.vocab:,}, context {model.context:,}"),
        ("parameters", f"{model.params:,}, of which {model.block_params:,} in blocks"),
        (
            "M",
            f"{model.flop_per_token:.4g} FLOP per token exact, {model.paper_flop_per_token:.4g} by Eq. 2 of the paper",
        ),
        ("tokens", f"{planned.run.tokens:,}, {planned.run.tokens / model.params:.1f} per parameter"),
        ("compute", f"{planned.run.compute_flop:.4g} FLOP"),
        ("batch", f"{optim.batch_sequences:,} sequences, {planned.run.batch_tokens:,} tokens"),
        (
            "learning rate",
            f"{optim.peak_lr:.4g} after {optim.warmup_steps:,} warm-up steps, {drops}, {optim.steps:,} steps",
        ),
        (
            "layout",
            f"dp {layout.dp} x pp {layout.pp} x tp {layout.tp}, micro-batch {layout.micro_batch_sequences}",
        ),
        ("cost", f"{duration(cost.hours * 3600)}, {cost.device_hours:.4g} device-hours{price}"),
        ("memory", f"{cost.memory_bytes / 2**30:.3g} GiB of the fullest device"),
        ("speed from", cost.basis),
    ]


def provenance(plan: Plan, audit: Audit | None) -> Rows:
    """Seal, code, data and law: what the figures rest on."""
    data = plan.runs[-1].run.data
    rows: Rows = [
        ("seal", plan.seal),
        ("code", f"isoplan {plan.code.version}, sources {plan.code.sha256}"),
        ("corpus", f"{data.corpus}, digest {data.digest or 'not built'}"),
        ("unique tokens", f"{plan.unique_tokens:,}"),
        ("law", f"{plan.law.name}: {plan.law.source}"),
    ]
    if plan.fit is not None:
        rows.append(("allocation", plan.fit.allocation_basis))
    if isinstance(plan.forecast, Forecast):
        rows.append(("forecast", plan.forecast.basis))
    if audit is not None and audit.curve_share_inside is not None:
        rows.append(
            ("curve", f"{audit.curve_share_inside:.0%} of the held-out points lie in the curve's 95 % band")
        )
    return rows


def checks(audit: Audit) -> Rows:
    """What the audit verified on the last run, and every check that failed on any."""
    rows: Rows = [("run", "check", "holds", "with")]
    for i, run in enumerate(audit.runs):
        for check in run.checks:
            if i == len(audit.runs) - 1 or not check.ok:
                rows.append((run.title, check.name, "yes" if check.ok else "NO", check.detail))
    return rows


def width_of(band_low: float, band_high: float) -> str:
    """Half the width of a band relative to its middle."""
    return f"±{(band_high - band_low) / 2 / math.sqrt(band_low * band_high):.1%}"
