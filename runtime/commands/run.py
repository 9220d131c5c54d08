"""`run` and `audit`: what they accept, what they print, and their exit codes. Nothing is decided here."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runtime.audit import verdict
from runtime.commands.options import AsJson, Debug, File, PlanFile
from runtime.launch.jobs import RunRequest, from_plan, from_run, missing_resources
from runtime.launch.machine import this_machine
from runtime.run_folder.tail import last_line
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.study import Driver, RunResults, chain_steps, run_all, run_budget
from specs.budget import Budget
from specs.document.base import Spec
from specs.document.files import DocumentError
from specs.document.write import print_json
from specs.exit_codes import OK
from specs.extras import SUBMIT, TRAIN, require
from specs.humanize import duration
from specs.plan import Plan
from specs.plan_file import load_document, load_plan
from specs.record import Audit
from specs.run import RunSpec
from specs.table_options import (
    BytesPerToken,
    Columns,
    LossUnit,
    checked_unit,
    column_mapping,
)
from specs.version import Version


def run_command(
    file: File,
    local: Annotated[
        bool, typer.Option("--local", help="Run as processes of this machine (the default).")
    ] = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Run as SLURM jobs; the cluster file says how.")
    ] = False,
    until_done: Annotated[
        bool,
        typer.Option(
            "--until-done",
            help="With --slurm and a budget: queue all further steps of its study automatically.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; start and write nothing.")
    ] = False,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Use at most this many CPU cores or GPUs.",
            show_default="all; of a run spec, all cores or one GPU",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="With --slurm and a run spec: the cluster to queue it on.",
            show_default=False,
        ),
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Run a plan, a run spec, or the whole study of a budget.

    A budget's study is: data, plan, pilots, audit, plan, target, audit.

    Rerunning is safe: finished runs are skipped, and interrupted runs resume from their latest checkpoint.
    Ctrl-C lets every run save a checkpoint and exit; a second Ctrl-C kills them at once.

    With --slurm, all unfinished runs whose inputs are ready are queued, and the command exits: rerun it to continue,
    or add --until-done. A run that is pending or running is never queued twice.

    Exit codes: 0 finished or queued (a budget: the target is inside its forecast), 1 the target is outside,
    2 bad input, 3 no verdict yet, 70 a run failed or internal error, 75 interrupted or busy (rerun the same command).
    """
    if slurm and local:
        raise RefusedError("--slurm and --local exclude each other; drop one of them")
    if until_done and not slurm:
        raise RefusedError(
            "--until-done: without --slurm a budget is always run until it is done; drop it, or add --slurm"
        )
    document = load_document(file)
    if slurm and devices is not None and not isinstance(document, RunSpec):
        raise RefusedError("--devices: with --slurm the plan's layout sets the number of devices; drop it")
    if cluster is not None and not (slurm and isinstance(document, RunSpec)):
        raise RefusedError("--cluster is for a run spec on SLURM; a plan or a budget names its own; drop it")
    if not dry_run:
        require("run", SUBMIT if slurm else TRAIN)
    driver = Driver(Workspace(Path()), this_machine(), devices, Console(stderr=json))
    if slurm:
        code = _run_slurm(driver, file, document, cluster, until_done, dry_run, json)
    elif isinstance(document, Budget):
        code = _run_budget(driver, file, document, dry_run, json)
    elif isinstance(document, Plan):
        code = _run_requests(
            driver, from_plan(document, file), dry_run, json, f"audit {shlex.quote(str(file))}"
        )
    elif isinstance(document, RunSpec):
        requests = from_run(document, file, driver.machine, devices)
        code = _run_requests(driver, requests, dry_run, json, "")
    else:
        raise DocumentError(file, 1, 1, "this is not a budget, a plan or a run spec", "name one of these")
    raise typer.Exit(code)


def _run_slurm(
    driver: Driver,
    file: Path,
    document: Spec,
    cluster: str | None,
    until_done: bool,
    dry_run: bool,
    json: bool,
) -> int:
    from runtime.slurm import commands

    if isinstance(document, Budget):
        if dry_run:
            return commands.preview_budget(driver, document, file, until_done, json)
        return commands.queue_budget(driver, document, file, until_done, json)
    if until_done:
        raise RefusedError(
            f"{file}: --until-done continues the study of a budget; drop it, or name the budget"
        )
    if isinstance(document, Plan):
        queue = commands.queue_of_plan(document, file)
    elif isinstance(document, RunSpec):
        queue = commands.queue_of_run(document, file, cluster, driver.limit)
    else:
        raise DocumentError(file, 1, 1, "this is not a budget, a plan or a run spec", "name one of these")
    return commands.preview(driver, queue, json) if dry_run else commands.submit_queue(driver, queue, json)


def audit_command(
    plan: PlanFile,
    actual: Annotated[
        Path | None,
        typer.Option(
            metavar="CURVE",
            help="Judge a run that another engine trained by its held-out loss curve: CSV, JSONL or Parquet, tokens or "
            "steps with the loss.",
        ),
    ] = None,
    column: Columns = None,
    bytes_per_token: BytesPerToken = None,
    loss_unit: LossUnit = None,
    json: AsJson = False,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Compare what was planned with what happened, recounted from the records.

    Writes audit.<phase>.json and audit.html beside the plan.
    Appends accepted runs to the ledger, on which the next plan is fitted.

    With --actual, the target was trained by another engine. The verdict is by the numbers of its curve; what cannot
    be verified is said first. Writes audit.actual.json and audit.actual.html; nothing enters the ledger. --column,
    --bytes-per-token (the plan's, where it has them) and --loss-unit are about the curve.

    Exit codes: 0 inside the forecast's 95 % band, 1 outside, 2 bad input, 3 no verdict yet.
    """
    driver = Driver(Workspace(Path()), this_machine(), None, Console(stderr=json))
    document = load_plan(plan)
    if actual is None:
        if column or bytes_per_token is not None or loss_unit is not None:
            raise RefusedError(
                "--column, --bytes-per-token and --loss-unit are about a curve; add --actual CURVE"
            )
        audited = verdict.audit_plan(document, plan, driver.workspace.path)
    else:
        per_byte = document.bytes_per_token if bytes_per_token is None else bytes_per_token
        audited = _audit_curve(document, plan, actual, column or [], per_byte, loss_unit)
    verdict.show(audited, document, plan, driver.console)
    if json:
        print_json(_audit_answer(audited, document, plan) | {"exit_code": verdict.exit_code(audited)})
    raise typer.Exit(verdict.exit_code(audited))


def _audit_curve(
    document: Plan,
    path: Path,
    actual: Path,
    columns: Sequence[str],
    bytes_per_token: float | None,
    loss_unit: str | None,
) -> Audit:
    from runtime.audit.other_engine import audit_curve
    from specs.run_table.curves import read_curves

    mapping, unit = column_mapping(columns), checked_unit(loss_unit)
    return audit_curve(
        document, path, read_curves(actual, mapping, bytes_per_token=bytes_per_token, loss_unit=unit)
    )


def _audit_answer(audited: Audit, plan: Plan, path: Path) -> dict[str, Any]:
    """The audit for programs, with what its numbers are compared with: the forecast, and each run's size and length."""
    plain = audited.answer()
    document, report = verdict.files(plan, path, audited)
    plain["runs"] = [
        run | planned.run.counts() for run, planned in zip(plain["runs"], plan.runs, strict=True)
    ]
    return plain | {
        "plan": str(path),
        "phase": plan.phase,
        "forecast": plan.forecast.plain(),
        "bytes_per_token": plan.bytes_per_token,
        "path": str(document),
        "report": str(report),
    }


def _run_requests(driver: Driver, requests: list[RunRequest], dry_run: bool, json: bool, then: str) -> int:
    if dry_run:
        return _preview(driver, requests, json)
    results = run_all(driver, requests)
    if json:
        print_json({"runs": _states(driver, requests), "exit_code": results.exit_code})
    _show_failures(driver, results)
    if results.exit_code == OK:
        driver.say("every run is finished" + (f"; next: {escape(then)}" if then else ""))
    return results.exit_code


def _show_failures(driver: Driver, results: RunResults) -> None:
    """List the runs that are not finished once more, at the end of the output."""
    rest = [outcome for outcome in results.outcomes if outcome.state != "finished"]
    if len(results.requests) == 1:
        return  # the line is right above
    if rest:
        driver.say(f"\n{len(rest)} of {len(results.requests)} runs are not finished:")
    for outcome in rest:
        line = f"  [bold]{escape(outcome.job.title)}[/] {outcome.state}: {escape(outcome.message)}"
        driver.say(line)


def _run_budget(driver: Driver, path: Path, budget: Budget, dry_run: bool, json: bool) -> int:
    if dry_run:
        return _preview_chain(driver, budget, path, json)
    study = run_budget(driver, budget, path, lambda _, requests: run_all(driver, requests))
    if study.audit is None:
        _show_failures(driver, study.results)
    if json:
        found = None if study.audit is None else study.audit.verdict
        runs = _states(driver, study.results.requests)
        print_json({"plan": str(study.path), "runs": runs, "verdict": found, "exit_code": study.exit_code})
    return study.exit_code


def _preview(driver: Driver, requests: list[RunRequest], json: bool) -> int:
    """What `run` would start, and which resources are missing here."""
    todo = [one for one in requests if not one.finished(driver.workspace)]
    missing = missing_resources(todo, driver.workspace, driver.machine, driver.limit)
    if json:
        print_json({"runs": _states(driver, requests), "missing": missing})
        return OK
    table = Table("run", "state", "devices", "steps", "tokens", "FLOP", "planned", box=None, pad_edge=False)
    for one, state in zip(requests, _states(driver, requests), strict=True):
        planned = "-" if one.order.seal is None else duration(one.planned_s)
        steps, tokens, flop = one.run.optim.steps, one.run.tokens, one.run.compute_flop
        devices = one.job(Path()).slots
        table.add_row(
            escape(one.title), state["state"], str(devices), str(steps), f"{tokens:,}", f"{flop:.2e}", planned
        )
    driver.console.print(table)
    if missing:
        driver.say(
            f"These runs cannot start on this machine: {escape('; '.join(missing))}. Nothing was started."
        )
        return OK
    disk = sum(one.disk_bytes() for one in todo)
    slots = len(driver.machine.slots(on_gpu=requests[0].on_gpu, limit=driver.limit))
    driver.say(
        f"{len(todo)} of {len(requests)} runs to do on {slots} {'GPUs' if requests[0].on_gpu else 'CPU cores'}, "
        f"at most {disk / 1e6:,.0f} MB on disk in {driver.workspace.runs}/. Nothing was started.",
    )
    return OK


def _preview_chain(driver: Driver, budget: Budget, path: Path, json: bool) -> int:
    """The steps of a budget's study, each with its state."""
    steps = chain_steps(driver.workspace, budget, path)
    if json:
        print_json({"steps": [{"step": name, "state": state} for name, state in steps]})
        return OK
    for number, (name, state) in enumerate(steps, 1):
        driver.say(f"{number}. {name:<8}{escape(state)}")
    driver.say("Nothing was started.")
    return OK


def _states(driver: Driver, requests: Sequence[RunRequest]) -> list[dict[str, Any]]:
    """The state of every run."""
    found = []
    for one in requests:
        folder = one.folder(driver.workspace)
        line = last_line(folder / "metrics.jsonl")
        step = 0 if line is None else line["step"]
        state = "finished" if one.finished(driver.workspace) else f"at step {step}" if step else "new"
        found.append(
            {
                "run": one.run.fingerprint(),
                "title": one.title,
                "folder": str(folder),
                "state": state,
                "step": step,
            }
            | {"steps": one.run.optim.steps}
            | one.run.counts()
        )
    return found
