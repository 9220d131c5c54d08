"""`run --slurm` as a person meets it: what was queued, what is left to SLURM, and what --dry-run would queue."""

import json as jsonlib
import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from runtime.launch.jobs import RunRequest, budget_folder, cluster_of, from_plan, missing_resources
from runtime.run_folder.folder import RunFolder
from runtime.slurm import client, submit
from runtime.slurm.client import SlurmError
from runtime.slurm.study import ContinueStudy, advance_study, cluster_file_of, submit_runs, run_folder
from runtime.slurm.submit import ClusterFile, PreparedSubmission
from runtime.slurm.task import Task
from runtime.study import Driver, RunResults, chain_steps
from specs.budget import Budget
from specs.document.files import DocumentError, load
from specs.exit_codes import OK, RESUME
from specs.humanize import several
from specs.plan import Plan

_STATE_TEXT = {"pending": "queued", "running": "at work"}
"""SLURM's words as `isoplan status` says them."""

JobsByRun = Mapping[str, tuple[str, str]]
"""By fingerprint: SLURM's name for a run's job, and its word for how that stands now."""


def queue_plan(driver: Driver, path: Path, plan: Plan, json: bool) -> int:
    """Queue a plan's runs that are not finished or with SLURM already."""
    _check_slurm(driver)
    ran = submit_runs(driver, from_plan(plan, path), _cluster_file(plan, path), _name(plan), again=True)
    jobs = _jobs_of(driver, ran)
    if json:
        _print({"runs": _states(ran, jobs), "exit_code": _exit_code(ran.exit_code)})
    _show_runs(driver, ran, jobs)
    if ran.exit_code == OK:
        driver.say(f"every run is finished; next: audit {escape(shlex.quote(str(path)))}")
    else:
        driver.say(f"see: isoplan status {escape(shlex.quote(str(path)))}")
    return _exit_code(ran.exit_code)


def queue_budget(driver: Driver, path: Path, until_done: bool, json: bool) -> int:
    """Do what is due of a budget now; with `until_done` the rest follows by itself."""
    _check_slurm(driver)
    if until_done:  # before anything is queued that it would go on with
        budget = load(path, Budget)
        submit.sbatch_test_only(cluster_file_of(path, budget), _study_submission(driver, path, budget))
    done = advance_study(driver, path, until_done=until_done, again=True)
    jobs = _jobs_of(driver, done.ran)
    if done.audit is None:
        _show_runs(driver, done.ran, jobs)
    if json:
        verdict = None if done.audit is None else done.audit.verdict
        runs = _states(done.ran, jobs)
        _print(
            {
                "plan": str(done.path),
                "runs": runs,
                "verdict": verdict,
                "exit_code": _exit_code(done.exit_code),
            }
        )
    return _exit_code(done.exit_code)


def preview_plan(driver: Driver, path: Path, plan: Plan, json: bool) -> int:
    """The sbatch scripts of what is not finished, and what each of their jobs runs. Nothing is queued."""
    submit.check_path(driver.workspace)
    _preview(driver, [], _due(driver, path, plan), json)
    return OK


def preview_budget(driver: Driver, path: Path, budget: Budget, until_done: bool, json: bool) -> int:
    """How far a budget's chain is, and the scripts of what is due of it. Nothing is queued."""
    submit.check_path(driver.workspace)
    steps = chain_steps(driver.workspace, budget)
    sealed = [driver.workspace.plan(budget.name, phase) for phase in ("target", "pilots")]
    plan = next((plan for plan in sealed if plan.exists()), None)
    due = DueSubmissions([], {}, []) if plan is None else _due(driver, plan, load(plan, Plan))
    if not due.made and not sealed[0].exists():
        due.notes.append("What is to be run next is known once it is planned.")
    if until_done:
        due.made.append(_study_submission(driver, path, budget))
        due.notes.extend(_refusals(cluster_file_of(path, budget), due.made[-1:]))
        due.notes.append(
            "The study's job waits for all others (--dependency, with the numbers that they get)."
        )
    _preview(driver, steps, due, json)
    return OK


def _check_slurm(driver: Driver) -> None:
    """RefusedError where nothing could be queued, before anything is built or written."""
    submit.check_path(driver.workspace)
    client.check_controller()


@dataclass(frozen=True)
class DueSubmissions:
    """What would be queued."""

    made: list[PreparedSubmission]
    """The submissions."""
    titles: Mapping[str, str]
    """What their runs are called."""
    notes: list[str]
    """How things stand, a line each."""


def _due(driver: Driver, path: Path, plan: Plan) -> DueSubmissions:
    """What would be queued of a plan."""
    planned = from_plan(plan, path)
    todo = {one.run.fingerprint(): one for one in planned if not one.finished(driver.workspace)}
    notes = [
        f"This would be refused: {lack}."
        for lack in missing_resources(list(todo.values()), driver.workspace, None, None)
    ]
    live, most = {}, submit.DEFAULT_MAX_ARRAY_SIZE
    if client.is_installed():
        most = submit.max_array_size()
        live = submit.live_runs(driver.workspace, [run_folder(driver, run) for run in todo])
    else:
        notes.append(
            f"There is no SLURM here: what it has in hand is not known, and arrays are cut at its default, {most} jobs."
        )
    due = [one for run, one in todo.items() if run not in live]
    notes.append(
        f"{several(len(due), 'run')} to queue, {len(live)} with SLURM already, {_finished_text(planned, todo)}."
    )
    titles, asked = {run: one.title for run, one in todo.items()}, _cluster_file(plan, path)
    made = submit.submissions_for(driver.workspace, asked, due, _name(plan), Task, most)
    return DueSubmissions(made, titles, notes + _refusals(asked, made))


def _refusals(asked: ClusterFile, made: Sequence[PreparedSubmission]) -> list[str]:
    """What SLURM would refuse of these submissions, where it can be asked, each once."""
    found: dict[str, None] = {}
    for script in made if client.is_installed() else ():
        try:
            submit.sbatch_test_only(asked, script)
        except DocumentError as error:
            found[f"This would be refused: {error}"] = None
    return list(found)


def _finished_text(planned: Sequence[RunRequest], todo: Collection[str]) -> str:
    return f"{sum(one.run.fingerprint() not in todo for one in planned)} finished"


def _study_submission(driver: Driver, path: Path, budget: Budget) -> PreparedSubmission:
    """The job that goes on with a budget, were there nothing to wait for."""
    return submit.study_submission(
        driver.workspace, cluster_file_of(path, budget), path, budget.name, ContinueStudy, ()
    )


def _preview(driver: Driver, steps: Sequence[tuple[str, str]], due: DueSubmissions, json: bool) -> None:
    if json:
        plain: dict[str, Any] = {"scripts": [_plain(one, due.titles) for one in due.made], "notes": due.notes}
        if steps:
            plain["steps"] = [{"step": name, "state": state} for name, state in steps]
        _print(plain)
        return
    for number, (name, state) in enumerate(steps, 1):
        driver.say(f"{number}. {name:<8}{escape(state)}")
    for one in due.made:
        driver.say(f"\n[bold]{escape(one.submission.name)}[/], {several(len(one.tasks), 'job')}:\n")
        driver.console.out(one.text, highlight=False)
        driver.say("\nEach task of a job calls what it is handed:")
        for job in _plain(one, due.titles)["jobs"]:
            driver.say(f"  {escape(job['what'])}: {escape(job['calls'])}")
    driver.say("\n".join(["", *map(escape, due.notes), "Nothing was queued."]))


def _plain(script: PreparedSubmission, titles: Mapping[str, str]) -> dict[str, Any]:
    """A submission for programs; its jobs in the array's order."""
    whats = [titles[run] for run in script.submission.runs] or ["the study's next step"]
    jobs = [{"what": what, "calls": repr(task)} for what, task in zip(whats, script.tasks, strict=True)]
    return {"name": script.submission.name, "text": script.text, "jobs": jobs}


def _show_runs(driver: Driver, ran: RunResults, jobs: JobsByRun) -> None:
    """How far the runs are, in a few lines."""
    for one in ran.outcomes:
        job, word = jobs.get(one.job.folder.name, ("", ""))
        said = f"{_STATE_TEXT.get(word, word)}, job {job}" if job else f"{one.state}, {one.message}"
        driver.say(f"  {escape(one.job.title)}: {escape(said)}")
    finished = len(ran.wanted) - len(ran.outcomes)
    if finished:
        driver.say(f"  {finished} of {several(len(ran.wanted), 'run')} are finished")


def _states(ran: RunResults, jobs: JobsByRun) -> list[dict[str, Any]]:
    """Every run with how far it is, in SLURM's word where that has it, and its job's name."""
    open_ = {one.job.folder.name: one for one in ran.outcomes}
    found = []
    for one in ran.wanted:
        run = one.run.fingerprint()
        plain: dict[str, Any] = {"run": run, "title": one.title}
        if run in jobs:
            job, word = jobs[run]
            plain |= {"state": word, "job": job, "said": open_[run].message}
        elif run in open_:
            plain |= {"state": open_[run].state, "said": open_[run].message}
        else:
            plain |= {"state": "finished"}
        found.append(plain)
    return found


def _jobs_of(driver: Driver, ran: RunResults) -> JobsByRun:
    """What is queued of these runs."""
    folders = [RunFolder(one.job.folder) for one in ran.outcomes if one.state == "queued"]
    if not folders:
        return {}
    try:
        live = submit.live_runs(driver.workspace, folders)
    except SlurmError:  # it has answered just before: the numbers are written down
        live = {}
    found = {run: (one.job, "held" if one.held else one.state.lower()) for run, one in live.items()}
    for folder in folders:
        said = submit.latest_submission(driver.workspace, folder)
        job = said[0].job_of(folder.path.name) if said else None
        if job is not None:
            found.setdefault(folder.path.name, (job, "queued"))
    return found


def _cluster_file(plan: Plan, path: Path) -> ClusterFile:
    folder = Path(os.path.relpath(budget_folder(plan, path).resolve()))  # as a person would write it
    return ClusterFile(*cluster_of(plan.budget, folder, path))


def _name(plan: Plan) -> str:
    return f"{plan.budget.name}-{plan.phase}"


def _exit_code(code: int) -> int:
    """Queued is as good as done for whoever asked."""
    return OK if code == RESUME else code


def _print(plain: Any) -> None:
    sys.stdout.write(jsonlib.dumps(plain, indent=1) + "\n")
