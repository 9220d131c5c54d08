"""The audit of a target that another engine trained, by the table of its held-out loss curve.

The verdict is that of `runtime.audit.verdict`, by the numbers of the table. What nothing vouches for is said first, and
nothing enters the ledger.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Literal

from runtime.audit.causes import ForecastMiss, causes
from runtime.audit.verdict import Verdict, judge, missed_forecast, write_audit
from specs.document.files import DocumentError, locate
from specs.humanize import count, several
from specs.plan import Forecast, Plan, PlannedRun
from specs.record import ActualCurve, Audit, Check, RunAudit
from specs.run_table.curves import Curve, CurveTable

TOLERANCE = 0.01
"""A curve that ends within this share of the plan's tokens has reached its end: evaluations are rarer than steps. By
Hoffmann et al. 2022, Eq. 10, a hundredth of the tokens moves Chinchilla's loss by .02 %, less than a run's noise."""
EXACT = 5e-5
"""Tokens that differ by less are not said to differ: logs round them."""
MOST_POINTS = 1000
"""Points of a curve that an audit keeps, the last among them; a figure shows no more."""
_LISTED = 4


def audit_curve(plan: Plan, path: Path, table: CurveTable) -> Audit:
    """Audit the target of the plan at this path by a curve; writes audit.actual.json and audit.actual.html beside it.

    DocumentError where the plan is not of one target, or the table not of one held-out curve; nothing is written then.
    """
    if plan.phase != "target" or len(plan.runs) > 1:
        what = f"this plan has {several(len(plan.runs), 'pilot run')}, and a curve is of one run"
        write = "give the plan of the target; pilots of another engine are evidence as a table: isoplan fit"
        raise locate(path, "phase", what, write)
    planned, curve = plan.runs[0], _the_curve(table)
    run = _run_audit(planned, curve)
    verdict, reason = _judge(plan, run, _tokens_check(planned, curve).detail)
    forecast = missed_forecast(plan, run)
    miss = forecast and ForecastMiss(plan, forecast, run, metrics=(), clipped_pilots=(), verified=False)
    audit = Audit(
        verified=False,
        unverified=tuple(_unverified(planned, table, curve)),
        actual=ActualCurve(
            path=str(table.path),
            sha256=table.sha256,
            columns=table.columns,
            loss_unit=table.loss_unit,
            bytes_per_token=table.bytes_per_token if table.loss_unit == "bits/byte" else None,
            notes=(*table.notes, *_thinned(run, curve)),
        ),
        seal=plan.seal,
        verdict=verdict,
        reason=reason,
        curve_share_inside=_share_inside(plan, run),
        causes=causes(miss) if miss and verdict == "outside" else (),
        runs=(run,),
    )
    write_audit(plan, path, audit)
    return audit


def _the_curve(table: CurveTable) -> Curve:
    """The one curve of the table, which must be of held-out text."""
    if table.held_out is False:
        what = (
            f"{table.columns['loss']!r} is a training loss, and the forecast is of the loss on held-out text"
        )
        write = "give the held-out loss, or name its column: --column loss=eval/loss"
        raise DocumentError(table.path, 1, 1, what, write)
    if len(table.curves) > 1:
        names = list(table.curves)
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        what = f"the table has curves of {len(names)} runs ({', '.join(names[:_LISTED])}{more}), and the plan is of one"
        raise DocumentError(table.path, 1, 1, what, "keep the rows of the target's run")
    return next(iter(table.curves.values()))


def _run_audit(planned: PlannedRun, curve: Curve) -> RunAudit:
    """The run by its curve, whose tokens are counted in the plan's steps."""
    points = _points(planned, curve)
    check = _tokens_check(planned, curve)
    early = _tokens(planned, curve)[-1] < (1 - TOLERANCE) * planned.run.tokens
    state: Literal["unfinished", "unverified", "rejected"] = "unverified" if check.ok else "rejected"
    if early:
        state = "unfinished"
    return RunAudit(
        run=planned.run.fingerprint(),
        title=planned.title,
        role=planned.role,
        state=state,
        loss=float(curve.loss[-1]) if state == "unverified" else None,
        steps=max(points),
        seconds=None,
        device_s=None,
        tokens_per_s=None,
        restarts=0,
        curve_step=tuple(points),
        curve_loss=tuple(points.values()),
        incidents=(),
        checks=() if early else (check,),
    )


def _tokens(planned: PlannedRun, curve: Curve) -> list[float]:
    """Tokens of every point; of a table of steps alone, at the plan's batch."""
    if curve.tokens is not None:
        return [float(tokens) for tokens in curve.tokens]
    assert curve.steps is not None  # a point has tokens or steps
    return [float(step) * planned.run.batch_tokens for step in curve.steps]


def _points(planned: PlannedRun, curve: Curve) -> dict[int, float]:
    """Loss by the plan's step nearest to each point's tokens; of many points `MOST_POINTS`, evenly spaced.

    An end within `TOLERANCE` beyond the plan's is the plan's.
    """
    last, batch_tokens = planned.run.optim.steps, planned.run.batch_tokens
    found: dict[int, float] = {}
    for tokens, loss in zip(_tokens(planned, curve), curve.loss.tolist(), strict=True):
        step = max(1, round(tokens / batch_tokens))
        found[last if last < step <= (1 + TOLERANCE) * last else step] = loss
    points = list(found.items())
    spacing = max(1.0, (len(points) - 1) / (MOST_POINTS - 1))
    return dict(points[round(number * spacing)] for number in range(min(len(points), MOST_POINTS)))


def _thinned(run: RunAudit, curve: Curve) -> Iterator[str]:
    """A note where the audit keeps fewer points than the table has."""
    if len(run.curve_step) < len(curve.loss):
        yield f"{len(run.curve_step):,} of {len(curve.loss):,} points are kept, the last among them"


def _tokens_check(planned: PlannedRun, curve: Curve) -> Check:
    """The curve ends where the plan does."""
    total, end = planned.run.tokens, _tokens(planned, curve)[-1]
    off = end / total - 1
    detail = f"the curve ends at {count(end)} tokens ({end:,.0f}), {count(total)} planned ({total:,})"
    if abs(off) > EXACT:
        detail += f", {off:+.2%}" if off < 1 else f", {end / total:.3g} times as many"
        detail += f"; up to {TOLERANCE:.0%} is taken for the end" if abs(off) <= TOLERANCE else ""
    return Check(name="tokens", ok=abs(off) <= TOLERANCE, detail=detail)


def _share_inside(plan: Plan, run: RunAudit) -> float | None:
    """Share of the curve's points inside the 95 % band of the sealed curve; None where nothing can be compared."""
    sealed = plan.forecast.curve if isinstance(plan.forecast, Forecast) else None
    if sealed is None:
        return None
    points = zip(run.curve_step, run.curve_loss, strict=True)
    inside = [band.inside_95(loss) for step, loss in points if (band := sealed.at(step))]
    return mean(inside) if inside else None


def _judge(plan: Plan, run: RunAudit, tokens: str) -> tuple[Verdict, str]:
    """The verdict and its reason; `cannot tell` where the curve or its end is missing. `tokens` says where it ends."""
    if run.state == "unfinished":
        done = run.steps / plan.runs[0].run.optim.steps
        return (
            "cannot tell",
            f"the run is not finished, {done:.0%} of its tokens are done: {tokens}",
        )
    if run.state == "rejected":
        longer = "it is of a longer run, whose learning rate drops later; give the curve of a run as long as the plan's"
        return "cannot tell", f"{tokens}: {longer}"
    if len(run.curve_step) == 1:
        return (
            "cannot tell",
            "the table has one point, and no curve; give the held-out losses during training too",
        )
    verdict, reason = judge(plan, [run])
    return verdict, reason if tokens.endswith(")") else f"{reason}; {tokens}"


def _unverified(planned: PlannedRun, table: CurveTable, curve: Curve) -> Iterator[str]:
    """What the records of our engine show of a run, and nothing shows of this one."""
    run = planned.run
    yield "the forecast came first: no record of this run carries the plan's seal"
    yield "weights: no digest, so another model's losses would read the same"
    yield "data: training text, tokenizer and held-out text may be others than the plan's"
    yield f"schedule: the learning rate of no step is known, planned were {run.optim.steps:,} steps and their drops"
    if curve.tokens is None:
        yield f"batch: the table has steps alone, each is taken for the plan's batch of {run.batch_tokens:,} tokens"
    else:
        yield f"batch: tokens of a step, planned were {run.batch_tokens:,}"
    final = run.evaluation.final_sequences
    yield f"evaluation: on how many held-out sequences the last loss is measured, planned were {final:,}"
    if table.held_out is None:
        yield f"loss: the column {table.columns['loss']!r} does not say that it is of held-out text"
