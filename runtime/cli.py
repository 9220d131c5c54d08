"""The commands `run`, `audit` and `isoplan`: what a person types, what they read, and the exit code.

Nothing is decided here. Expected errors are one line on standard error and exit code 2; anything unexpected is one
line with the path of a log that holds the traceback, and exit code 70. torch is imported by the ranks, never by
these commands.
"""

import functools
import json as jsonlib
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runtime import audit, drive, prepare, steering, verbs
from runtime.documents import CorpusError
from runtime.launch import RESUME
from runtime.prepare import RefusedError, Wanted, Workspace
from runtime.progress import last_line
from specs.base import Spec
from specs.budget import Budget
from specs.files import DocumentError, load, load_any
from specs.guard import INTERNAL, internal_error
from specs.plan import Plan
from specs.run import RunSpec
from specs.words import duration

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A budget, a plan or a run spec.", show_default=False)
]
PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN", help="plans/<name>/plan.target.yaml", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, progress on standard error.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an internal error.")]


def run_command(
    file: File,
    local: Annotated[
        bool, typer.Option("--local", help="As processes of this machine (the default).")
    ] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="As SLURM jobs; the cluster file says how.")] = False,
    until_done: Annotated[
        bool, typer.Option("--until-done", help="Of a budget on SLURM: go on by itself, from job to job.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; start and write nothing.")
    ] = False,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Use at most this many CPU cores or GPUs.", show_default="all")
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Carry out a plan, a run spec, or the whole chain of a budget.

    A budget goes all the way: data, plan, pilots, audit, plan, target, audit.

    Asking twice is free: finished runs are skipped, and a run that was cut off goes on where it was.
    Ctrl-C lets every run save and end; a second Ctrl-C ends them at once.

    With --slurm, what is due is queued, and the command ends: ask again to go on, or say --until-done.
    What is queued or at work is never queued twice.

    Exit codes: 0 finished, or queued (a budget: inside its forecast), 1 outside, 2 bad input, 3 cannot tell yet,
    70 a run failed or internal error, 75 interrupted or busy (run the same command again).
    """
    if slurm and local:
        raise RefusedError("--slurm --local: say one of them")
    if slurm and devices is not None:
        raise RefusedError("--devices: on SLURM the plan's layout says how many; leave it out")
    if until_done and not slurm:
        raise RefusedError(
            "--until-done: on this machine a budget is always run until it is done; leave it out"
        )
    driver = drive.Driver(Workspace(Path()), prepare.this_machine(), devices, Console(stderr=json))
    document = load_any(file)
    if slurm:
        code = _run_slurm(driver, file, document, until_done, dry_run, json)
    elif isinstance(document, Budget):
        code = _run_budget(driver, file, document, dry_run, json)
    elif isinstance(document, Plan):
        code = _run_wanted(
            driver, prepare.from_plan(document, file), dry_run, json, f"audit {shlex.quote(str(file))}"
        )
    elif isinstance(document, RunSpec):
        code = _run_wanted(driver, prepare.from_run(document, file, driver.machine), dry_run, json, "")
    else:
        raise DocumentError(
            file, 1, 1, "this is neither a budget, nor a plan, nor a run spec", "name one of these"
        )
    raise typer.Exit(code)


def _run_slurm(
    driver: drive.Driver, file: Path, document: Spec, until_done: bool, dry_run: bool, json: bool
) -> int:
    from runtime.slurm import desk

    if isinstance(document, Budget):
        if dry_run:
            return desk.preview_budget(driver, file, document, until_done, json)
        return desk.queue_budget(driver, file, until_done, json)
    if not isinstance(document, Plan):
        raise DocumentError(
            file, 1, 1, "SLURM needs to know the cluster, which a plan or a budget names", "name one of these"
        )
    if until_done:
        raise RefusedError(
            f"{file}: only a budget goes on by itself; leave --until-done out, or name its budget"
        )
    if dry_run:
        return desk.preview_plan(driver, file, document, json)
    return desk.queue_plan(driver, file, document, json)


def audit_command(plan: PlanFile, json: AsJson = False, debug: Debug = False) -> None:
    """Compare what was planned with what happened, recounted from the records.

    Writes audit.<phase>.json and audit.html beside the plan.
    Appends accepted runs to the ledger, on which the next plan is fitted.

    Exit codes: 0 inside the forecast's 95 % band, 1 outside, 2 bad input, 3 cannot tell yet.
    """
    driver = drive.Driver(Workspace(Path()), prepare.this_machine(), None, Console(stderr=json))
    load(plan, Plan)
    audited = drive.audit_plan(driver, plan)
    audit.show(audited, plan, driver.console)
    if json:
        _print_json(audited.plain())
    raise typer.Exit(audit.exit_code(audited))


def data_command(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A budget or a plan.", show_default=False)],
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Build the corpus of a budget: its text as tokens under data/, with digests.

    A corpus that is there already is left alone, so asking twice is free.
    """
    driver = drive.Driver(Workspace(Path()), prepare.this_machine(), None, Console(stderr=json))
    document = load_any(spec)
    if not isinstance(document, Budget | Plan):
        raise DocumentError(
            spec, 1, 1, "this is neither a budget nor a plan", "name the budget whose text is wanted"
        )
    built = drive.build_data(driver, spec, document)
    if json:
        _print_json(built.plain())
        return
    folder = driver.workspace.data / built.spec.fingerprint()
    driver.say(
        f"{escape(str(folder))}: {built.train.tokens:,} tokens to train on, {built.held_out.tokens:,} held out, "
        f"{built.bytes_per_token:.3f} bytes per token, digest {built.digest[:16]}",
    )


def init_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write them.")] = Path("budgets"),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write starter budgets to edit: a demo of minutes, an afternoon's study, plans in FLOP, GPU-hours and money."""
    written: dict[str, bool] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in sorted(files("specs").iterdir(), key=lambda entry: entry.name):
            if source.name.endswith(".yaml"):
                written[str(folder / source.name)] = _write_new(folder / source.name, source.read_text())
    except OSError as error:
        raise RefusedError(f"{folder}: {error.strerror}; name a folder that you may write to") from None
    if json:
        _print_json({"budgets": [{"path": path, "written": new} for path, new in written.items()]})
        return
    for path, new in written.items():
        typer.echo(f"wrote  {path}" if new else f"kept   {path}, which is there already")
    typer.echo(f"next: isoplan run {folder / 'demo.yaml'} --dry-run")


def _write_new(path: Path, text: str) -> bool:
    """Write a file that is not there yet; False where it is."""
    try:
        with path.open("x") as file:
            file.write("".join(line for line in text.splitlines(True) if "yaml-language-server" not in line))
    except FileExistsError:
        return False
    return True


def plan_command(context: typer.Context) -> None:
    """Turn a budget into runs with nothing left to derive; see `isoplan plan --help`."""
    _ask_planner("planner.cli", context)


def explain_command(context: typer.Context) -> None:
    """Say where a number of a plan comes from; see `isoplan explain --help`."""
    _ask_planner("planner.ask", context, "explain")


def diff_command(context: typer.Context) -> None:
    """Compare two plans field by field; see `isoplan diff --help`."""
    _ask_planner("planner.ask", context, "diff")


def _ask_planner(module: str, context: typer.Context, *words: str) -> None:
    """The planner's own command, in a process of its own: nothing of it is imported here."""
    argv = [sys.executable, "-P", "-m", module, *words, *context.args]
    raise typer.Exit(subprocess.run(argv, check=False).returncode)


def _run_wanted(driver: drive.Driver, wanted: list[Wanted], dry_run: bool, json: bool, then: str) -> int:
    if dry_run:
        return _preview(driver, wanted, json)
    ran = drive.run_all(driver, wanted)
    if json:
        _print_json({"runs": _states(driver, wanted), "exit_code": ran.exit_code})
    _show_failures(driver, ran)
    if ran.exit_code == drive.OK:
        driver.say("every run is finished" + (f"; next: {escape(then)}" if then else ""))
    return ran.exit_code


def _show_failures(driver: drive.Driver, ran: drive.Ran) -> None:
    """Name the runs that are not finished once more, after everything else has scrolled by."""
    rest = [outcome for outcome in ran.outcomes if outcome.state != "finished"]
    if len(ran.wanted) == 1:
        return  # the line is right above
    if rest:
        driver.say(f"\n{len(rest)} of {len(ran.wanted)} runs are not finished:")
    for outcome in rest:
        line = f"  [bold]{escape(outcome.job.title)}[/] {outcome.state}: {escape(outcome.message)}"
        driver.say(line)


def _run_budget(driver: drive.Driver, path: Path, budget: Budget, dry_run: bool, json: bool) -> int:
    if dry_run:
        return _preview_chain(driver, budget, json)
    study = drive.run_budget(driver, path, lambda plan, audited: audit.show(audited, plan, driver.console))
    if study.audit is None:
        _show_failures(driver, study.ran)
    if json:
        verdict = None if study.audit is None else study.audit.verdict
        _print_json({"plan": str(study.plan), "verdict": verdict, "exit_code": study.exit_code})
    return study.exit_code


def _preview(driver: drive.Driver, wanted: list[Wanted], json: bool) -> int:
    """What `run` would start, and what it would be refused for here."""
    todo = [one for one in wanted if not one.finished(driver.workspace)]
    lacking = prepare.lacking(todo, driver.workspace, driver.machine, driver.limit)
    if json:
        _print_json({"runs": _states(driver, wanted), "lacking": lacking})
        return drive.OK
    table = Table("run", "state", "devices", "steps", "tokens", "FLOP", "planned", box=None, pad_edge=False)
    for one, state in zip(wanted, _states(driver, wanted), strict=True):
        planned = "-" if one.order.seal is None else duration(one.planned_s)
        steps, tokens, flop = one.run.optim.steps, one.run.tokens, one.run.compute_flop
        devices = one.job(Path()).slots
        table.add_row(
            escape(one.title), state["state"], str(devices), str(steps), f"{tokens:,}", f"{flop:.2e}", planned
        )
    driver.console.print(table)
    if lacking:
        driver.say(f"Not to be run here: {escape('; '.join(lacking))}. Nothing was started.")
        return drive.OK
    disk = sum(one.disk_bytes() for one in todo)
    slots = len(driver.machine.slots(on_gpu=wanted[0].on_gpu, limit=driver.limit))
    driver.say(
        f"{len(todo)} of {len(wanted)} runs to do on {slots} {'GPUs' if wanted[0].on_gpu else 'CPU cores'}, "
        f"at most {disk / 1e6:,.0f} MB on disk in {driver.workspace.runs}/. Nothing was started.",
    )
    return drive.OK


def _preview_chain(driver: drive.Driver, budget: Budget, json: bool) -> int:
    """Which steps of a budget's chain are done already."""
    steps = drive.chain(driver.workspace, budget)
    if json:
        _print_json({"steps": [{"step": name, "state": state} for name, state in steps]})
        return drive.OK
    for number, (name, state) in enumerate(steps, 1):
        driver.say(f"{number}. {name:<8}{escape(state)}")
    driver.say("Nothing was started.")
    return drive.OK


def _states(driver: drive.Driver, wanted: list[Wanted]) -> list[dict[str, Any]]:
    """Every run with how far it is."""
    found = []
    for one in wanted:
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
            | {"steps": one.run.optim.steps, "compute_flop": one.run.compute_flop}
        )
    return found


def _print_json(plain: Any) -> None:
    sys.stdout.write(jsonlib.dumps(plain, indent=1) + "\n")


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, every way that it can fail being one line on standard error and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (DocumentError, RefusedError, CorpusError) as error:
            _die(str(error), drive.BAD_INPUT)
        except KeyboardInterrupt:
            _die("interrupted; run the same command again to go on", RESUME)
        except typer.Exit:
            raise
        except Exception as error:
            if options.get("debug"):
                traceback.print_exc()
            _die(internal_error(error), INTERNAL)

    return run


def _die(line: str, code: int) -> None:
    sys.stderr.write(line + "\n")
    raise typer.Exit(code)


def _app(**commands: Callable[..., None]) -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
    for name, command in commands.items():
        app.command(name)(_guarded(command))
    return app


def run_main() -> None:
    """Console script `run`."""
    _app(run=run_command)()


def audit_main() -> None:
    """Console script `audit`."""
    _app(audit=audit_command)()


def main() -> None:
    """Console script `isoplan`: every verb."""
    other = steering.VERBS | verbs.VERBS
    app = _app(run=run_command, audit=audit_command, data=data_command, init=init_command, **other)
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    for name, command in (("plan", plan_command), ("explain", explain_command), ("diff", diff_command)):
        app.command(name, context_settings=passed_on, add_help_option=False)(command)
    app()


if __name__ == "__main__":
    main()
