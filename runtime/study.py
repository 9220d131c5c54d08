"""What `run` does with a run spec, a plan or a budget: each step in order, until something is missing.

No state is kept here between two calls: whether a corpus is built, a plan sealed or a run finished is read from the
files, so an interrupted study resumes at the step where it stopped.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from runtime.audit import verdict
from runtime.launch.jobs import RunRequest, check_runs, data_of, from_plan, prepare_jobs
from runtime.launch.local import Job, Outcome, RunningJob, launch
from runtime.launch.machine import Machine
from runtime.launch.progress import ProgressDisplay
from runtime.launch.stop import STOP
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.tracking.local_sync import LocalSync
from specs.budget import Budget, Pilots
from specs.data import DataSpec
from specs.data_inputs import InputFileError
from specs.data_jobs import jobs_path
from specs.document.files import load, locate
from specs.exit_codes import BAD_INPUT, CANNOT_TELL, INTERNAL_ERROR, OK, RESUME
from specs.plan import Forecast, Plan
from specs.plan_file import load_plan
from specs.record import Audit
from specs.sources import Sources, find_sources, is_declared, last_built


@dataclass(frozen=True)
class Driver:
    """The workspace, the machine and the console that a command works with."""

    workspace: Workspace
    machine: Machine
    limit: int | None
    """At most this many devices at once."""
    console: Console

    def say(self, line: str) -> None:
        """Print a line of rich markup, however long it is."""
        self.console.print(line, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class RunResults:
    """The outcomes of requested runs."""

    requests: tuple[RunRequest, ...]
    outcomes: tuple[Outcome, ...]
    """One for each run that was not finished before."""
    stopped: bool = False
    """Whether a stop was requested while they ran: nothing more may start, even if all of them have finished."""

    @property
    def exit_code(self) -> int:
        """0 when every run is finished, 2 or 70 where one failed, and 75 where the same command resumes."""
        failed = [o for o in self.outcomes if o.state == "failed"]
        if failed:
            return BAD_INPUT if all(o.rank_code == BAD_INPUT for o in failed) else INTERNAL_ERROR
        return OK if all(o.state == "finished" for o in self.outcomes) and not self.stopped else RESUME


def rank_command(data: Path) -> Callable[[Job], list[str]]:
    """The command of a job's ranks. -P keeps modules in the current folder from being imported."""
    return lambda job: [
        sys.executable,
        "-P",
        "-m",
        "runtime.train.rank",
        str(job.folder),
        "--data",
        str(data),
    ]


def run_all(driver: Driver, requests: Sequence[RunRequest]) -> RunResults:
    """Run what is not finished. Raises before anything starts; later failures are outcomes, not exceptions."""
    todo = [one for one in requests if not one.finished(driver.workspace)]
    check_runs(todo, driver.workspace, driver.machine, driver.limit)
    done = len(requests) - len(todo)
    if done:
        driver.say(f"{done} of {len(requests)} runs are already finished")
    resumed = sum(any(one.folder(driver.workspace).glob("checkpoints/step-*")) for one in todo)
    if resumed:
        driver.say(f"{resumed} of {len(requests)} runs resume from their latest checkpoint")
    if not todo:
        return RunResults(tuple(requests), ())
    jobs = prepare_jobs(todo, driver.workspace)
    slots = driver.machine.slots(on_gpu=todo[0].on_gpu, limit=driver.limit)
    command = rank_command(driver.workspace.data.absolute())
    syncing = LocalSync(driver.workspace.path, todo[0].tracker, todo[0].study, _warn_with(driver))
    with syncing, ProgressDisplay(driver.console, jobs, len(slots)) as board:

        def watch(active: Sequence[RunningJob], outcomes: Sequence[Outcome]) -> None:
            board(active, outcomes)
            syncing(active, outcomes)

        outcomes = launch(jobs, slots, command, watch)
        syncing.ended(outcomes)
    if STOP.received and all(one.state == "finished" for one in outcomes):
        driver.say("stopped when these runs had finished; rerun the same command to continue")
    return RunResults(tuple(requests), tuple(outcomes), stopped=STOP.received > 0)


def _warn_with(driver: Driver) -> Callable[[str], None]:
    return lambda line: driver.say(f"[yellow]warning[/] {escape(line)}")


@dataclass(frozen=True)
class StudyResult:
    """How far a budget's study came."""

    plan: Plan
    """The last plan."""
    path: Path
    """Where that plan is."""
    results: RunResults
    """The outcomes of its runs."""
    audit: Audit | None
    """The target's audit; None where the study did not come so far."""

    @property
    def exit_code(self) -> int:
        """That of the target's audit; without one that of the unfinished runs, or 3."""
        if self.audit is not None:
            return verdict.exit_code(self.audit)
        return self.results.exit_code or CANNOT_TELL


def run_budget(
    driver: Driver,
    budget: Budget,
    path: Path,
    run_plan: Callable[[Plan, Sequence[RunRequest]], RunResults],
) -> StudyResult:
    """The whole study of the budget at this path: data, plan, pilots, audit, plan, target, audit.

    `run_plan` runs or queues a plan's runs; the study returns where they are not all finished afterwards.
    """
    build_data(driver, path, budget)
    plan_path, plan = call_planner(driver, path)
    while True:
        driver.say(f"\n[bold]{plan.phase}[/]  {escape(str(plan_path))}, {_plan_summary(plan)}")
        results = run_plan(plan, from_plan(plan, plan_path))
        if results.exit_code != OK:
            return StudyResult(plan, plan_path, results, None)
        audit = verdict.audit_plan(plan, plan_path, driver.workspace.path)
        verdict.show(audit, plan, plan_path, driver.console)
        if plan.phase == "target":
            return StudyResult(plan, plan_path, results, audit)
        next_path, next_plan = call_planner(driver, path)
        if next_path == plan_path:
            driver.say(
                "the planner requests the same pilots again: fix what the audit rejected; if it rejected nothing, "
                f"{escape(str(plan_path))} was made by another version of isoplan: give the budget another name"
            )
            return StudyResult(plan, plan_path, results, None)
        plan_path, plan = next_path, next_plan


def runs_of(plan: Path) -> Sequence[RunRequest]:
    """The runs of a plan."""
    return from_plan(load_plan(plan), plan)


def chain_steps(
    workspace: Workspace,
    budget: Budget,
    path: Path,
    runs_of: Callable[[Path], Sequence[RunRequest]] = runs_of,
) -> list[tuple[str, str]]:
    """The steps of the study of the budget at this path, each with its state."""
    built = last_built(budget.data, path.parent, workspace.data)
    corpus = None if built is None else workspace.data / built
    is_built = corpus is not None and (corpus / "manifest.json").exists()
    steps = [("data", f"{corpus} is built" if is_built else "the corpus is not built yet")]
    for phase in ("pilots", "target") if isinstance(budget.evidence, Pilots) else ("target",):
        plan = workspace.plan(budget.name, phase)
        if not plan.exists():
            steps += [
                ("plan", f"{plan} does not exist yet"),
                (phase, "not run yet"),
                ("audit", "not done yet"),
            ]
            continue
        requests = runs_of(plan)
        finished = sum(one.finished(workspace) for one in requests)
        steps += [("plan", f"{plan} is sealed"), (phase, f"{finished} of {len(requests)} runs are finished")]
        steps += [("audit", _audit_state(plan.parent / f"audit.{phase}.json"))]
    return steps


def _audit_state(path: Path) -> str:
    """The state of an audit; one without a verdict, since runs were unfinished, is repeated."""
    if not path.exists():
        return "not done yet"
    found = load(path, Audit).verdict
    return "to be repeated: no verdict yet" if found == "cannot tell" else f"done: {found}"


def _plan_summary(plan: Plan) -> str:
    number = len(plan.runs)
    runs = (
        f"{number} run{'s' if number > 1 else ''}, {sum(one.cost.compute_flop for one in plan.runs):.3g} FLOP"
    )
    if not isinstance(plan.forecast, Forecast):
        return runs
    band = plan.forecast.loss
    return f"{runs}; sealed forecast {band.median:.4f} nats per token, 95 % {band.low_95:.4f} to {band.high_95:.4f}"


def build_data(driver: Driver, path: Path, document: Budget | Plan) -> Sources:
    """The corpora of a budget or plan, built where they are not built yet."""
    from runtime.data.build.mix import build_sources
    from runtime.data.corpus import load_sources

    spec, base = trainable_data(document, path)
    sealed = document.runs[0].run.data.corpus if isinstance(document, Plan) else None
    if sealed is not None and (driver.workspace.data / sealed).exists():
        return load_sources(driver.workspace.data, sealed)
    with located(document, path):
        queued = jobs_path(spec, base, driver.workspace.data).exists()
        if queued and not isinstance(find_sources(spec, base, driver.workspace.data), Sources):
            see = f"isoplan status {shlex.quote(str(path))}"
            raise RefusedError(
                f"{path}: SLURM jobs build its corpus; see: {see} -f; to build it here, cancel them first: "
                f"isoplan cancel {shlex.quote(str(path))}"
            )
        built = build_sources(spec, base, driver.workspace.data, driver.console)
    if sealed not in (None, built.ref.corpus):
        what = f"the plan was sealed on corpus {sealed}, but its text is now corpus {built.ref.corpus}"
        raise locate(
            path, "budget.data", what, "restore the text, or plan the budget again under another name"
        )
    return built


def trainable_data(document: Budget | Plan, path: Path) -> tuple[DataSpec, Path]:
    """The data of a budget or plan, and the folder that its paths are relative to; DocumentError where there is none on
    this machine."""
    spec, base = data_of(document, path)
    if is_declared(spec):
        what = "data.text names no files (source: declared), so this budget can be planned but not trained"
        raise locate(path, "data.text", what, "write source: files with paths, or source: installed")
    return spec, base


@contextmanager
def located(document: Budget | Plan, path: Path) -> Iterator[None]:
    """A problem of an input points at the line of the budget or plan that names it."""
    try:
        yield
    except InputFileError as error:
        at = f"{'budget.' if isinstance(document, Plan) else ''}data.{error.field}"
        raise locate(path, at, f"{error.path}: {error.what}", error.write) from None


def call_planner(driver: Driver, budget: Path) -> tuple[Path, Plan]:
    """The next plan of a budget, from `isoplan plan` in a process of its own: the runtime imports no planner."""
    argv = [sys.executable, "-P", "-m", "isoplan", "plan", str(budget), "--json"]
    done = subprocess.run(argv, cwd=driver.workspace.path, capture_output=True, text=True, check=False)
    if done.returncode == RESUME:  # a Ctrl-C that only it has heard of
        raise KeyboardInterrupt
    if done.returncode == BAD_INPUT:
        raise RefusedError(done.stderr.strip())
    if done.returncode != 0:
        raise RuntimeError(f"plan exited with status {done.returncode}: {done.stderr.strip()}")
    path = driver.workspace.path / json.loads(done.stdout)["path"]
    return path, load_plan(path)
