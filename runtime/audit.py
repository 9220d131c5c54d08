"""Planned against actual: the verdict on a plan, the likely causes of a miss, and the ledger's new lines.

The forecast is read from the sealed plan and the outcome from the runs' own records (runtime/recount.py). A target is
`inside` when its final held-out loss lies in the 95 % band of a forecast that was sealed before its first step.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from runtime.folder import RunFolder
from runtime.recount import data_check, recount
from specs.files import append_line, load, read_lines, write_json, write_text
from specs.law import LawFit
from specs.plan import CurveBand, Forecast, NoForecast, Plan, PlannedRun
from specs.record import Audit, Check, LedgerRecord, RunAudit, StepLine
from specs.report import render

CLIPPED_OFTEN = 0.2
"""Share of steps with clipped gradients after the warm-up from which the learning rate is suspected."""
SPIKE = 1.5
"""A step's loss this many times the mean of the hundred before it is a spike."""
LEVEL_SHARE = 0.5
"""A curve with more than this share of its points outside on one side is off in level, which points at the law."""


def audit_plan(plan_path: Path, workspace: Path) -> Audit:
    """Audit a plan's runs; writes audit.<phase>.json and audit.html beside the plan, accepted runs into the ledger.

    DocumentError where a document cannot be read; nothing is written then.
    """
    plan = load(plan_path, Plan)
    folders = [RunFolder(workspace / "runs" / planned.run.fingerprint()) for planned in plan.runs]
    runs = [recount(folder, planned, plan.seal) for folder, planned in zip(folders, plan.runs, strict=True)]
    if any(run.state == "accepted" for run in runs):
        data = data_check(workspace / "data", plan.runs[0])  # the runs of a plan share their data
        runs = [run if run.state == "unfinished" else _with(run, data) for run in runs]
    audit = _verdict(plan, runs, folders[-1])
    _extend_ledger(plan, plan_path.parent / plan.ledger, audit, folders)
    write_json(plan_path.parent / f"audit.{plan.phase}.json", audit)
    write_text(plan_path.parent / "audit.html", render(plan, audit))
    return audit


def _with(run: RunAudit, check: Check) -> RunAudit:
    state = "accepted" if run.state == "accepted" and check.ok else "rejected"
    return run.model_copy(update={"checks": (*run.checks, check), "state": state})


def _verdict(plan: Plan, runs: Sequence[RunAudit], last: RunFolder) -> Audit:
    """The verdict on all runs; `last` is the folder of the plan's last run, a target plan's only one."""
    audit = Audit(
        seal=plan.seal,
        verdict="cannot tell",
        reason=_missing(runs),
        curve_share_inside=None,
        causes=(),
        runs=tuple(runs),
    )
    if audit.reason:
        return audit
    if plan.phase == "pilots":
        said = f"all {len(runs)} runs are accepted; plan again for the target"
        return audit.model_copy(update={"verdict": "inside", "reason": said})
    if isinstance(plan.forecast, NoForecast):
        return audit.model_copy(update={"reason": f"there is no forecast: {plan.forecast.reason}"})
    return audit.model_copy(update=_against(plan, plan.forecast, runs[-1], last))


def _against(plan: Plan, told: Forecast, run: RunAudit, folder: RunFolder) -> dict[str, Any]:
    """The outcome of the accepted target against its forecast, as fields of the audit."""
    assert run.loss is not None  # an accepted run has its evaluations
    inside = told.loss.inside_95(run.loss)
    return {
        "verdict": "inside" if inside else "outside",
        "reason": _compared(run.loss, told),
        "curve_share_inside": None if told.curve is None else _share_inside(told.curve, run),
        "causes": () if inside else tuple(_causes(plan, plan.runs[-1], run, told, folder)),
    }


def _missing(runs: Sequence[RunAudit]) -> str:
    """Why no verdict is possible yet; empty when every run is accepted."""
    unfinished = [run.title for run in runs if run.state == "unfinished"]
    if unfinished:
        return f"{len(unfinished)} of {len(runs)} runs are not finished: {'; '.join(unfinished)}"
    failed = [
        f"{run.title}: {check.name}, {check.detail}" for run in runs for check in run.checks if not check.ok
    ]
    return f"rejected by its own records: {'; '.join(failed)}" if failed else ""


def _compared(loss: float, told: Forecast) -> str:
    band = told.loss
    off = loss / band.median - 1
    return (
        f"final held-out loss {loss:.4f} nats/token, {off:+.2%} from the forecast {band.median:.4f}; "
        f"50 % band {band.low_50:.4f} to {band.high_50:.4f}, 95 % band {band.low_95:.4f} to {band.high_95:.4f}"
    )


def _sides(curve: CurveBand, run: RunAudit) -> list[int]:
    """For every point of both curves: -1 below the 95 % band, 0 inside, 1 above."""
    actual = dict(zip(run.curve_step, run.curve_loss, strict=True))
    rows = zip(curve.step, curve.low_95, curve.high_95, strict=True)
    return [(actual[s] > high) - (actual[s] < low) for s, low, high in rows if s in actual]


def _share_inside(curve: CurveBand, run: RunAudit) -> float | None:
    sides = _sides(curve, run)
    return mean(side == 0 for side in sides) if sides else None


def _causes(plan: Plan, planned: PlannedRun, run: RunAudit, told: Forecast, folder: RunFolder) -> list[str]:
    """What a miss most likely comes from, most likely first: each one names its numbers."""
    found = _data_causes(plan, planned) + _rate_causes(plan, planned, folder.metrics())
    if run.restarts:
        found.append(f"schedule: {run.restarts} restarts; their seams are in the record")
    found += _law_causes(plan, run, told)
    if run.tokens_per_s and abs(run.tokens_per_s / planned.cost.tokens_per_s - 1) > 0.2:
        found.append(
            f"throughput: {run.tokens_per_s:.3g} tokens/s against {planned.cost.tokens_per_s:.3g} planned; "
            "this explains time and cost, not the loss"
        )
    return found


def _data_causes(plan: Plan, planned: PlannedRun) -> list[str]:
    epochs = planned.run.tokens / plan.unique_tokens
    if epochs <= 1:
        return []
    return [f"data: {epochs:.2f} epochs over {plan.unique_tokens:,} unique tokens, and repeats teach less"]


def _rate_causes(plan: Plan, planned: PlannedRun, metrics: Sequence[StepLine]) -> list[str]:
    found = []
    settled = [line for line in metrics if line.step > planned.run.optim.warmup_steps]
    clipped = mean(line.grad_norm > planned.run.optim.clip_norm for line in settled) if settled else 0.0
    if clipped > CLIPPED_OFTEN:
        found.append(f"learning rate: {clipped:.0%} of the steps after warm-up were clipped")
    spikes = _spikes([line.loss for line in settled])
    if spikes:
        found.append(f"learning rate: {spikes} loss spikes after warm-up")
    check = plan.fit.rate_check if plan.fit is not None else None
    if check is not None and not check.bracketed:
        found.append(
            f"learning rate: the check did not bracket the best rate (x{check.best_multiple:.2g} is at its edge)"
        )
    return found


def _spikes(losses: Sequence[float]) -> int:
    return sum(losses[i] > SPIKE * mean(losses[i - 100 : i]) for i in range(100, len(losses)))


def _law_causes(plan: Plan, run: RunAudit, told: Forecast) -> list[str]:
    found = []
    sides = _sides(told.curve, run) if told.curve is not None else []
    for side, word in ((1, "above"), (-1, "below")):
        share = mean(one == side for one in sides) if sides else 0.0
        if share > LEVEL_SHARE:
            found.append(
                f"law: {share:.0%} of the curve lies {word} its band, so its level is off, not its shape"
            )
    return found if plan.fit is None else found + _fit_causes(plan.fit)


def _fit_causes(fit: LawFit) -> list[str]:
    """What was weak in the evidence that the forecast rests on."""
    found = []
    loose = [profile for profile in fit.profiles if not profile.bracketed]
    if loose:
        found.append(f"law: {len(loose)} of {len(fit.profiles)} isoFLOP minima are not bracketed")
    scored = [form for form in fit.forms if form.held_out_error is not None]
    if scored:
        form = max(scored, key=lambda form: form.weight)
        found.append(
            f"law: the heaviest form, {form.form}, missed held-out budgets by {form.held_out_error:.2%}"
        )
    return found


def _extend_ledger(plan: Plan, ledger: Path, audit: Audit, folders: Sequence[RunFolder]) -> None:
    """Accepted runs that the ledger does not hold yet, in the plan's order."""
    there = read_lines(ledger, LedgerRecord) if ledger.exists() else []
    held = {record.fingerprint_of_run for record in there}
    for planned, run, folder in zip(plan.runs, audit.runs, folders, strict=True):
        if run.state == "accepted" and run.run not in held:
            append_line(ledger, _ledger_record(plan, planned, run, folder))


def _ledger_record(plan: Plan, planned: PlannedRun, run: RunAudit, folder: RunFolder) -> LedgerRecord:
    end = folder.end()
    assert end is not None  # only finished runs are accepted
    assert run.loss is not None
    assert plan.bytes_per_token is not None  # a run needs a built corpus
    tokens = run.steps * planned.run.batch_tokens
    return LedgerRecord(
        run=planned.run,
        role=planned.role,
        budget_flop=planned.budget_flop,
        rate_multiple=planned.rate_multiple,
        seal=plan.seal,
        tokens=tokens,
        compute_flop=float(planned.run.model.flop_per_token) * tokens,
        loss=run.loss,
        bytes_per_token=plan.bytes_per_token,
        curve_step=run.curve_step,
        curve_loss=run.curve_loss,
        tokens_per_s=run.tokens_per_s,
        weights_sha256=end.weights_sha256,
        flags=run.incidents,
    )
