"""What `run` does with a run spec, a plan or a budget: what is due, in order, until something is missing.

Nothing is remembered here between two calls: whether a corpus is built, a plan sealed or a run finished is read
from the files, so a chain that was cut off anywhere goes on where it was.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from runtime.audit import verdict
from runtime.launch.jobs import RunRequest, check_runs, data_of, from_plan, prepare_jobs
from runtime.launch.local import Job, Outcome, launch
from runtime.launch.machine import Machine
from runtime.launch.progress import Board
from runtime.run_folder.workspace import RefusedError, Workspace
from specs.budget import Budget, Pilots
from specs.data import Corpus, DeclaredText
from specs.document.files import load, locate
from specs.exit_codes import BAD_INPUT, CANNOT_TELL, INTERNAL_ERROR, OK, RESUME
from specs.plan import Forecast, Plan
from specs.record import Audit


@dataclass(frozen=True)
class Driver:
    """Where things are done, with what, and who is told."""

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
    """What became of the runs that were asked for."""

    wanted: tuple[RunRequest, ...]
    outcomes: tuple[Outcome, ...]
    """One for each run that was not finished before."""

    @property
    def exit_code(self) -> int:
        """0 when every run is finished; else that of the first failure, or 75 where asking again goes on."""
        failed = [o for o in self.outcomes if o.state == "failed"]
        if failed:
            return BAD_INPUT if all(o.rank_code == BAD_INPUT for o in failed) else INTERNAL_ERROR
        return OK if all(o.state == "finished" for o in self.outcomes) else RESUME


def rank_command(data: Path) -> Callable[[Job], list[str]]:
    """The program of a job's ranks. -P keeps modules in the current folder from being taken for ours."""
    return lambda job: [
        sys.executable,
        "-P",
        "-m",
        "runtime.train.rank",
        str(job.folder),
        "--data",
        str(data),
    ]


def run_all(driver: Driver, wanted: Sequence[RunRequest]) -> RunResults:
    """Run what is not finished. Refuses before anything starts; afterwards failures are outcomes, not exceptions."""
    todo = [one for one in wanted if not one.finished(driver.workspace)]
    check_runs(todo, driver.workspace, driver.machine, driver.limit)
    done = len(wanted) - len(todo)
    if done:
        driver.say(f"{done} of {len(wanted)} runs are finished already")
    begun = sum(any(one.folder(driver.workspace).glob("checkpoints/step-*")) for one in todo)
    if begun:
        driver.say(f"{begun} of {len(wanted)} runs go on from their newest checkpoint")
    if not todo:
        return RunResults(tuple(wanted), ())
    jobs = prepare_jobs(todo, driver.workspace)
    slots = driver.machine.slots(on_gpu=todo[0].on_gpu, limit=driver.limit)
    with Board(driver.console, jobs, len(slots)) as board:
        outcomes = launch(jobs, slots, rank_command(driver.workspace.data.absolute()), board)
    return RunResults(tuple(wanted), tuple(outcomes))


@dataclass(frozen=True)
class StudyResult:
    """How far the chain of a budget came."""

    plan: Plan
    """The last plan."""
    path: Path
    """Where that plan is."""
    ran: RunResults
    """What became of its runs."""
    audit: Audit | None
    """The target's audit; None where the chain did not come so far."""

    @property
    def exit_code(self) -> int:
        """The target's audit's; without one that of the runs that are not finished, or 3."""
        if self.audit is not None:
            return verdict.exit_code(self.audit)
        return self.ran.exit_code or CANNOT_TELL


def run_budget(
    driver: Driver,
    budget: Budget,
    path: Path,
    run_plan: Callable[[Plan, Sequence[RunRequest]], RunResults],
) -> StudyResult:
    """The whole chain of the budget at this path: data, plan, pilots, audit, plan, target, audit.

    `run_plan` runs or queues a plan's runs; the chain ends here where they are not all finished afterwards.
    """
    build_data(driver, path, budget)
    asked = call_planner(driver, path)
    while True:
        plan_path, plan = asked
        driver.say(f"\n[bold]{plan.phase}[/]  {escape(str(plan_path))}, {_plan_summary(plan)}")
        ran = run_plan(plan, from_plan(plan, plan_path))
        if ran.exit_code != OK:
            return StudyResult(plan, plan_path, ran, None)
        audit = verdict.audit_plan(plan, plan_path, driver.workspace.path)
        verdict.show(audit, plan, plan_path, driver.console)
        if plan.phase == "target":
            return StudyResult(plan, plan_path, ran, audit)
        asked = call_planner(driver, path)
        if asked[0] == plan_path:
            driver.say(
                f"the planner asks for the same pilots again: correct what the audit rejected, if anything; "
                f"else {escape(str(plan_path))} is of another version of isoplan, and the budget needs another name"
            )
            return StudyResult(plan, plan_path, ran, None)


def runs_of(plan: Path) -> Sequence[RunRequest]:
    """The runs of a plan."""
    return from_plan(load(plan, Plan), plan)


def chain_steps(
    workspace: Workspace, budget: Budget, runs_of: Callable[[Path], Sequence[RunRequest]] = runs_of
) -> list[tuple[str, str]]:
    """The steps of a budget's chain, each with how far it is."""
    corpus = workspace.data / budget.data.fingerprint() / "manifest.json"
    steps = [("data", f"{corpus.parent} is built" if corpus.exists() else f"{corpus.parent} is to be built")]
    for phase in ("pilots", "target") if isinstance(budget.evidence, Pilots) else ("target",):
        plan = workspace.plan(budget.name, phase)
        if not plan.exists():
            steps += [("plan", f"{plan} is to be made"), (phase, "to be run"), ("audit", "to be done")]
            continue
        wanted = runs_of(plan)
        finished = sum(one.finished(workspace) for one in wanted)
        steps += [("plan", f"{plan} is sealed"), (phase, f"{finished} of {len(wanted)} runs are finished")]
        steps += [("audit", _audit_state(plan.parent / f"audit.{phase}.json"))]
    return steps


def _audit_state(path: Path) -> str:
    """How far an audit is: one that could not tell, as it was asked too early, is to be done again."""
    if not path.exists():
        return "to be done"
    found = load(path, Audit).verdict
    return "to be done again, it cannot tell yet" if found == "cannot tell" else f"done: {found}"


def _plan_summary(plan: Plan) -> str:
    number = len(plan.runs)
    runs = (
        f"{number} run{'s' if number > 1 else ''}, {sum(one.cost.compute_flop for one in plan.runs):.3g} FLOP"
    )
    if not isinstance(plan.forecast, Forecast):
        return runs
    band = plan.forecast.loss
    return f"{runs}; sealed forecast {band.median:.4f} nats per token, 95 % {band.low_95:.4f} to {band.high_95:.4f}"


def build_data(driver: Driver, path: Path, document: Budget | Plan) -> Corpus:
    """The corpus of a budget or plan, built where it is not built yet."""
    from runtime.data import corpus
    from runtime.data.text_sources import NoTextError

    spec, base = data_of(document, path)
    if isinstance(spec.text, DeclaredText):
        what = "the text is only declared: it can be planned for, not trained on"
        raise locate(path, "data.text", what, "write 'source: files' with paths, or 'source: installed'")
    try:
        return corpus.build(spec, base, driver.workspace.data, driver.console)
    except NoTextError as error:
        at = f"{'budget.' if isinstance(document, Plan) else ''}data.text.paths.{error.number}"
        raise locate(
            path, at, f"no file is at {error.path}", "put your text there, or correct the path"
        ) from None


def call_planner(driver: Driver, budget: Path) -> tuple[Path, Plan]:
    """The plan that is due for a budget, from the `plan` command: the planner is another program."""
    argv = [sys.executable, "-P", "-m", "planner.cli", str(budget), "--json"]
    asked = subprocess.run(argv, cwd=driver.workspace.path, capture_output=True, text=True, check=False)
    if asked.returncode == BAD_INPUT:
        raise RefusedError(asked.stderr.strip())
    if asked.returncode != 0:
        raise RuntimeError(f"plan ended with exit code {asked.returncode}: {asked.stderr.strip()}")
    plan = Plan.model_validate_json(asked.stdout)
    return driver.workspace.plan(plan.budget.name, plan.phase), plan
