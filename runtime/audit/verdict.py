"""The audit of a plan: its verdict, the likely causes of a miss, and new lines of the ledger.

The forecast is that of the sealed plan, the outcome that of the runs' own records (runtime/audit/checks.py). A target
is `inside` when its final held-out loss is in the 95 % band of a forecast that was sealed before its first step.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runtime.audit.causes import ForecastMiss, causes, clipped_share
from runtime.audit.checks import audit_run, data_check
from runtime.audit.ledger import append_new, ledger_path
from runtime.run_folder.folder import RunFolder
from specs.document.write import write_json, write_text
from specs.exit_codes import CANNOT_TELL, OK, OUTSIDE_BAND
from specs.humanize import count, duration
from specs.plan import CurveBand, Forecast, NoForecast, Plan, PlannedRun
from specs.record import Audit, Check, LedgerRecord, RunAudit, Start
from specs.report import render
from specs.report.context import earlier_plans

Verdict = Literal["inside", "outside", "cannot tell"]

EXIT_CODES: dict[Verdict, int] = {"inside": OK, "outside": OUTSIDE_BAND, "cannot tell": CANNOT_TELL}
_COLOURS: dict[Verdict, str] = {"inside": "green", "outside": "red", "cannot tell": "yellow"}


def audit_plan(plan: Plan, path: Path, workspace: Path) -> Audit:
    """Audit the runs of the plan at this path; writes audit.<phase>.json and audit.html beside it, and adds accepted
    runs to the ledger.

    DocumentError where a record or the ledger cannot be read; nothing is written then.
    """
    ledger = ledger_path(path, plan)
    folders = [RunFolder(workspace / "runs" / planned.run.fingerprint()) for planned in plan.runs]
    runs = [audit_run(folder, planned, plan.seal) for folder, planned in zip(folders, plan.runs, strict=True)]
    runs = _with_data(workspace / "data", plan, runs)
    verdict, reason = judge(plan, runs)
    audit = Audit(
        seal=plan.seal,
        verdict=verdict,
        reason=reason,
        curve_share_inside=_share_inside(plan, runs[-1]),
        causes=_causes(plan, runs[-1], workspace / "runs"),
        runs=tuple(runs),
    )
    append_new(ledger, list(_ledger_records(plan, audit, folders)))
    write_audit(plan, path, audit)
    return audit


def write_audit(plan: Plan, path: Path, audit: Audit) -> None:
    """Write the audit of the plan at this path beside it, with its report."""
    document, report = files(plan, path, audit)
    write_json(document, audit)
    write_text(report, render(plan, audit, earlier_plans(path.parent, plan)))


def files(plan: Plan, path: Path, audit: Audit) -> tuple[Path, Path]:
    """Where the audit of the plan at this path is written, and its report.

    Of a run that another engine trained they have names of their own, so that neither takes the place of an audit by
    our own records.
    """
    names = (f"audit.{plan.phase}.json", "audit.html")
    document, report = names if audit.verified else ("audit.actual.json", "audit.actual.html")
    return path.parent / document, path.parent / report


def exit_code(audit: Audit) -> int:
    """0 inside the band, or all pilots accepted; 1 outside; 3 cannot tell."""
    return EXIT_CODES[audit.verdict]


def show(audit: Audit, plan: Plan, path: Path, console: Console) -> None:
    """Print the audit of the plan at this path: what is not verified, runs, failed checks, verdict, likely causes."""
    for one in audit.unverified:
        _print(console, "red", "not verified", one)
    console.print(_table(audit, plan))
    for run in audit.runs:
        if run.restarts:
            _print(console, "dim", "restarts", f"{run.title}: {run.restarts_text}")
        for incident in run.incidents:
            _print(console, "red", "alarm", f"{run.title}: {incident}")
        for check in run.checks:
            if not check.ok:
                _print(console, "red", check.name, f"{run.title}: {check.detail}")
    if audit.curve_share_inside is not None:
        _print(
            console,
            "dim",
            "curve",
            f"{audit.curve_share_inside:.0%} of the loss curve's points are inside the 95 % band",
        )
    verdict = "accepted" if plan.phase == "pilots" and audit.verdict == "inside" else audit.verdict
    _print(console, f"bold {_COLOURS[audit.verdict]}", verdict, audit.reason)
    for cause in audit.causes:
        _print(console, "yellow", "likely cause", cause)
    _print(console, "dim", "report", str(files(plan, path, audit)[1]))


def _print(console: Console, style: str, label: str, text: str) -> None:
    console.print(f"[{style}]{escape(label)}[/]  {escape(text)}", highlight=False, soft_wrap=True)


def _table(audit: Audit, plan: Plan) -> Table:
    accepted = sum(run.state == "accepted" for run in audit.runs)
    title = f"{accepted} of {len(audit.runs)} runs accepted" if audit.verified else "a run of another engine"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    losses = plan.losses
    for name in ("run", "steps", "time", "planned", "tokens/s", losses.unit, "state"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right", no_wrap=name != "run")
    for run, planned in zip(audit.runs, plan.runs, strict=True):
        table.add_row(
            escape(run.title),
            str(run.steps),
            duration(run.seconds),
            duration(planned.cost.hours * 3600),
            "-" if run.tokens_per_s is None else count(run.tokens_per_s),
            "-" if run.loss is None else f"{losses.of(run.loss):.4f}",
            run.state,
        )
    return table


def _with_data(data: Path, plan: Plan, runs: Sequence[RunAudit]) -> list[RunAudit]:
    """The runs, with a check of the data for finished ones; token files are read once, and only for accepted runs."""
    accepted = [planned for planned, run in zip(plan.runs, runs, strict=True) if run.state == "accepted"]
    corpora = {planned.run.data: planned for planned in accepted}
    checks = {corpus: data_check(data, planned) for corpus, planned in corpora.items()}
    return [
        _with(run, checks[planned.run.data])
        if run.state != "unfinished" and planned.run.data in checks
        else run
        for planned, run in zip(plan.runs, runs, strict=True)
    ]


def _with(run: RunAudit, check: Check) -> RunAudit:
    state = "accepted" if run.state == "accepted" and check.ok else "rejected"
    return run.model_copy(update={"checks": (*run.checks, check), "state": state})


def judge(plan: Plan, runs: Sequence[RunAudit]) -> tuple[Verdict, str]:
    """The verdict on the runs of a plan, and its reason."""
    missing = _missing(runs)
    if missing:
        return "cannot tell", missing
    if plan.phase == "pilots":
        return "inside", f"all {len(runs)} runs are accepted; plan the budget again to get the target run"
    if isinstance(plan.forecast, NoForecast):
        return "cannot tell", f"the plan has no forecast: {plan.forecast.reason}"
    loss = runs[-1].loss
    assert loss is not None  # an accepted run has its evaluations
    return "inside" if plan.forecast.loss.inside_95(loss) else "outside", _compared(loss, plan.forecast)


def _missing(runs: Sequence[RunAudit]) -> str:
    """Why no verdict is possible yet; empty when every run is accepted."""
    unfinished = [run.title for run in runs if run.state == "unfinished"]
    if unfinished:
        return f"{len(unfinished)} of {len(runs)} runs are not finished: {'; '.join(unfinished)}"
    failed = [
        f"{run.title}: {check.name}, {check.detail}" for run in runs for check in run.checks if not check.ok
    ]
    return f"failed checks of the records: {'; '.join(failed)}" if failed else ""


def _compared(loss: float, forecast: Forecast) -> str:
    band = forecast.loss
    off = loss / band.median - 1
    return (
        f"final held-out loss {loss:.4f} nats per token, {off:+.2%} from the forecast {band.median:.4f}; "
        f"50 % band {band.low_50:.4f} to {band.high_50:.4f}, 95 % band {band.low_95:.4f} to {band.high_95:.4f}"
    )


def _share_inside(plan: Plan, run: RunAudit) -> float | None:
    """Share of the target's curve so far inside its 95 % band; None where nothing can be compared."""
    band = plan.forecast.curve if isinstance(plan.forecast, Forecast) else None
    if band is None or plan.phase != "target":
        return None
    inside = list(_inside(band, run))
    return mean(inside) if inside else None


def _inside(band: CurveBand, run: RunAudit) -> Iterator[bool]:
    actual = dict(zip(run.curve_step, run.curve_loss, strict=True))
    for step, low, high in zip(band.step, band.low_95, band.high_95, strict=True):
        if step in actual:
            yield low <= actual[step] <= high


def missed_forecast(plan: Plan, run: RunAudit) -> Forecast | None:
    """The forecast that a finished target missed, also when its records fail a check; None where it missed none."""
    forecast = plan.forecast
    if plan.phase != "target" or not isinstance(forecast, Forecast) or run.loss is None:
        return None
    return None if forecast.loss.inside_95(run.loss) else forecast


def _causes(plan: Plan, run: RunAudit, runs: Path) -> tuple[str, ...]:
    """Likely causes of a miss, by the records of the target and of the pilots."""
    forecast = missed_forecast(plan, run)
    if forecast is None:
        return ()
    pilots = [RunFolder(runs / point.run) for point in plan.fit.points] if plan.fit is not None else []
    clipped = [clipped_share(one.metrics(), one.run().optim) for one in pilots if one.run_json.exists()]
    metrics = RunFolder(runs / run.run).metrics()
    return causes(
        ForecastMiss(plan=plan, forecast=forecast, run=run, metrics=metrics, clipped_pilots=clipped)
    )


def _ledger_records(plan: Plan, audit: Audit, folders: Sequence[RunFolder]) -> Iterator[LedgerRecord]:
    """A line for every accepted run, in the plan's order."""
    for planned, run, folder in zip(plan.runs, audit.runs, folders, strict=True):
        if run.state == "accepted":
            yield _ledger_record(plan, planned, run, folder)


def _ledger_record(plan: Plan, planned: PlannedRun, run: RunAudit, folder: RunFolder) -> LedgerRecord:
    end, first = folder.end(), next(line for line in folder.records() if isinstance(line, Start))
    assert end is not None  # only finished runs are accepted
    assert first.seal is not None
    assert run.loss is not None
    assert run.tokens_per_s is not None
    tokens = run.steps * planned.run.batch_tokens
    return LedgerRecord(
        run=planned.run,
        role=planned.role,
        budget_flop=planned.budget_flop,
        rate_multiple=planned.rate_multiple,
        seal=first.seal,
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
