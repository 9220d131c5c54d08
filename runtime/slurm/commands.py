"""`run --slurm`: queues runs and shows their states; with --dry-run, shows the sbatch scripts that would be queued."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from runtime.launch.jobs import (
    RunRequest,
    budget_folder,
    cluster_of,
    from_plan,
    from_run,
    missing_resources,
)
from runtime.launch.machine import Machine
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.workspace import RefusedError
from runtime.slurm import client, submit
from runtime.slurm.client import SlurmError
from runtime.slurm.study import ContinueStudy, advance_study, cluster_file_of, run_folder, submit_runs
from runtime.slurm.submit import ClusterFile, PreparedSubmission
from runtime.slurm.task import Task
from runtime.study import Driver, RunResults, chain_steps, located, trainable_data
from specs.budget import Budget
from specs.document.files import DocumentError
from specs.document.write import print_json
from specs.exit_codes import OK, RESUME
from specs.humanize import several
from specs.plan import Plan
from specs.plan_file import load_plan
from specs.run import RunSpec
from specs.sources import Sources

if TYPE_CHECKING:
    from runtime.slurm.data_state import DataState

JobsByRun = Mapping[str, tuple[str, str]]
"""Job id and state of each run's live job, by fingerprint."""


@dataclass(frozen=True)
class Queue:
    """Runs to be queued."""

    requests: Sequence[RunRequest]
    """The runs."""
    cluster_file: ClusterFile
    """Where."""
    name: str
    """How the names of their submissions begin."""
    then: str
    """The command that follows once all of them are finished; empty for none."""

    @property
    def document(self) -> Path:
        """The document that requests them."""
        return self.requests[0].document


def queue_of_plan(plan: Plan, path: Path) -> Queue:
    """The runs of the plan at this path, on its own cluster."""
    requests, name = from_plan(plan, path), f"{plan.budget.name}-{plan.phase}"
    return Queue(requests, _cluster_file(plan, path), name, f"audit {shlex.quote(str(path))}")


def queue_of_run(run: RunSpec, path: Path, cluster: str | None, limit: int | None) -> Queue:
    """A bare run spec on this cluster, with at most `limit` devices: on CPUs a node's cores, or one GPU."""
    if cluster is None:
        raise RefusedError("--slurm: a run spec names no cluster; add --cluster with its file, or its name")
    cluster_file = submit.named_cluster_file(cluster)
    devices = cluster_file.cluster
    gpus = range(devices.devices) if devices.device.backend == "cuda" else range(0)
    nodes = Machine(devices.devices_per_node, tuple(map(str, gpus)))
    return Queue(from_run(run, path, nodes, limit), cluster_file, f"run-{run.fingerprint()}", "")


def submit_queue(driver: Driver, queue: Queue, json: bool) -> int:
    """Queue the runs that are not finished and have no live job."""
    _check_slurm(driver)
    results = submit_runs(driver, queue.requests, queue.cluster_file, queue.name, retry_failed=True)
    jobs = _jobs_of(driver, results)
    if json:
        print_json({"runs": _states(results, jobs), "exit_code": _exit_code(results.exit_code)})
    _show_runs(driver, results, jobs)
    if results.exit_code == OK:
        driver.say("every run is finished" + (f"; next: {escape(queue.then)}" if queue.then else ""))
    else:
        driver.say(f"see: isoplan status {escape(shlex.quote(str(queue.document)))}")
        _say_who_sends(driver, queue.cluster_file, queue.document)
    return _exit_code(results.exit_code)


def queue_budget(driver: Driver, budget: Budget, path: Path, until_done: bool, json: bool) -> int:
    """Do what is due of the budget at this path; with `until_done` its study continues automatically."""
    _check_slurm(driver)
    if until_done:  # a refusal of the study's own job must come before any run is queued
        submit.sbatch_test_only(cluster_file_of(budget, path), _study_submission(driver, budget, path))
    study = advance_study(driver, budget, path, until_done=until_done, retry_failed=True)
    jobs, exit_code = _jobs_of(driver, study.results), _exit_code(study.exit_code)
    if study.audit is None:
        _show_runs(driver, study.results, jobs)
        _say_who_sends(driver, cluster_file_of(budget, path), path)
    if json:
        verdict = None if study.audit is None else study.audit.verdict
        runs = _states(study.results, jobs)
        print_json({"plan": str(study.path), "runs": runs, "verdict": verdict, "exit_code": exit_code})
    return exit_code


def queue_corpus(
    driver: Driver, document: Budget | Plan, path: Path, cluster: str | None
) -> "DataState | Sources":
    """Queue what is due of the corpus of the document at this path, on this cluster or its own; the corpora where they
    are built."""
    from runtime.slurm.data_jobs import queue_data

    spec, base = trainable_data(document, path)
    budget = document.budget if isinstance(document, Plan) else document
    if cluster is None:
        cluster_file = (
            _cluster_file(document, path) if isinstance(document, Plan) else cluster_file_of(budget, path)
        )
    else:
        cluster_file = submit.named_cluster_file(cluster)
    _check_slurm(driver)
    with located(document, path):
        return queue_data(driver, spec, base, cluster_file, budget.name)


def _say_who_sends(driver: Driver, cluster_file: ClusterFile, document: Path) -> None:
    """That jobs send nothing to the cluster file's tracker, and what does."""
    if cluster_file.cluster.tracker is not None:
        follow = f"isoplan sync {shlex.quote(str(document))} --follow"
        driver.say(f"jobs send nothing; to send their curves, run here: {escape(follow)}")


def preview(driver: Driver, queue: Queue, json: bool) -> int:
    """Show the sbatch scripts of the runs that are not finished, and what each job runs. Nothing is queued."""
    submit.check_path(driver.workspace)
    _preview(driver, [], _due(driver, queue), json)
    return OK


def preview_budget(driver: Driver, budget: Budget, path: Path, until_done: bool, json: bool) -> int:
    """Show the state of a budget's steps, and the sbatch scripts of those that are due. Nothing is queued."""
    submit.check_path(driver.workspace)
    steps = chain_steps(driver.workspace, budget, path)
    sealed = [driver.workspace.plan(budget.name, phase) for phase in ("target", "pilots")]
    plan = next((plan for plan in sealed if plan.exists()), None)
    due = DueSubmissions([], {}, [])
    if plan is not None:
        due = _due(driver, queue_of_plan(load_plan(plan), plan))
    if not due.submissions and not sealed[0].exists():
        due.notes.append("The next runs are known once the budget is planned.")
    if until_done:
        due.submissions.append(_study_submission(driver, budget, path))
        due.notes.extend(_refusals(cluster_file_of(budget, path), due.submissions[-1:]))
        due.notes.append("The study's job starts after all others (--dependency, with their job ids).")
    _preview(driver, steps, due, json)
    return OK


def _check_slurm(driver: Driver) -> None:
    """RefusedError where nothing could be queued, before anything is built or written."""
    submit.check_path(driver.workspace)
    client.check_controller()
    if ignored := submit.ignored_variables():
        driver.say(ignored)


@dataclass(frozen=True)
class DueSubmissions:
    """What would be queued."""

    submissions: list[PreparedSubmission]
    titles: Mapping[str, str]
    """Titles of their runs, by fingerprint."""
    notes: list[str]
    """What the user should know, a line each."""


def _due(driver: Driver, queue: Queue) -> DueSubmissions:
    """What would be queued of these runs."""
    requests = queue.requests
    todo = {one.run.fingerprint(): one for one in requests if not one.finished(driver.workspace)}
    notes = [
        f"These runs could not start: {missing}."
        for missing in missing_resources(list(todo.values()), driver.workspace, None, None)
    ]
    live, max_array, shares_memory = {}, submit.DEFAULT_MAX_ARRAY_SIZE, True
    if client.is_installed():
        site = client.settings()
        max_array, shares_memory = submit.array_size(site), submit.shares_memory(site)
        live = submit.live_runs(driver.workspace, [run_folder(driver, run) for run in todo])
    else:
        notes.append(
            "SLURM is not installed here: pending and running jobs are unknown, and arrays have at most "
            f"{max_array} jobs, SLURM's default."
        )
    due = [one for run, one in todo.items() if run not in live]
    finished = len(requests) - len(todo)
    if ignored := submit.ignored_variables():
        notes.append(f"{ignored}.")
    notes.append(
        f"{several(len(due), 'run')} to queue, {len(live)} already pending or running, {finished} finished."
    )
    titles, cluster_file = {run: one.title for run, one in todo.items()}, queue.cluster_file
    submissions = submit.submissions_for(
        driver.workspace,
        cluster_file,
        due,
        queue.name,
        Task,
        max_array,
        [one.job for one in live.values()],
        shares_memory=shares_memory,
    )
    if any(one.after for one in submissions):
        notes.append(
            "Beyond slurm.pilots_at_once, an array starts once an earlier one has ended (--dependency)."
        )
    return DueSubmissions(submissions, titles, notes + _refusals(cluster_file, submissions))


def _refusals(cluster_file: ClusterFile, submissions: Sequence[PreparedSubmission]) -> list[str]:
    """Why sbatch would refuse these submissions, each reason once; empty where SLURM is not installed."""
    found: dict[str, None] = {}
    for one in submissions if client.is_installed() else ():
        try:
            submit.sbatch_test_only(cluster_file, one)
        except DocumentError as error:
            found[f"SLURM would refuse a job: {error}"] = None
    return list(found)


def _study_submission(driver: Driver, budget: Budget, path: Path) -> PreparedSubmission:
    """The job that continues a budget's study, without its dependency on other jobs."""
    cluster_file = cluster_file_of(budget, path)
    return submit.study_submission(driver.workspace, cluster_file, path, budget.name, ContinueStudy, ())


def _preview(driver: Driver, steps: Sequence[tuple[str, str]], due: DueSubmissions, json: bool) -> None:
    if json:
        scripts = [_plain(one, due.titles) for one in due.submissions]
        plain: dict[str, Any] = {"scripts": scripts, "notes": due.notes}
        if steps:
            plain["steps"] = [{"step": name, "state": state} for name, state in steps]
        print_json(plain)
        return
    for number, (name, state) in enumerate(steps, 1):
        driver.say(f"{number}. {name:<8}{escape(state)}")
    for one in due.submissions:
        driver.say(f"\n[bold]{escape(one.submission.name)}[/], {several(len(one.tasks), 'job')}:\n")
        driver.console.out(one.text, highlight=False)
        driver.say("\nEach task of a job calls:")
        for job in _plain(one, due.titles)["jobs"]:
            driver.say(f"  {escape(job['title'])}: {escape(job['calls'])}")
    driver.say("\n".join(["", *map(escape, due.notes), "Nothing was queued."]))


def _plain(prepared: PreparedSubmission, titles: Mapping[str, str]) -> dict[str, Any]:
    """A submission for programs; its jobs in the array's order."""
    named = [titles[run] for run in prepared.submission.runs] or ["the study's next step"]
    jobs = [{"title": title, "calls": repr(task)} for title, task in zip(named, prepared.tasks, strict=True)]
    return {"name": prepared.submission.name, "text": prepared.text, "jobs": jobs}


def _show_runs(driver: Driver, results: RunResults, jobs: JobsByRun) -> None:
    """The states of the runs that are not finished, a line each, and the number of finished ones."""
    for one in results.outcomes:
        job, state = jobs.get(one.job.folder.name, ("", ""))
        line = f"{state}, job {job}" if job else f"{one.state}, {one.message}"
        driver.say(f"  {escape(one.job.title)}: {escape(line)}")
    finished = len(results.requests) - len(results.outcomes)
    if finished:
        driver.say(f"  {finished} of {several(len(results.requests), 'run')} are finished")


def _states(results: RunResults, jobs: JobsByRun) -> list[dict[str, Any]]:
    """The state of every run, with its job id where it has a live job."""
    unfinished = {one.job.folder.name: one for one in results.outcomes}
    found = []
    for one in results.requests:
        run = one.run.fingerprint()
        plain: dict[str, Any] = {"run": run, "title": one.title} | one.run.counts()
        if run in jobs:
            job, state = jobs[run]
            plain |= {"state": state, "job": job, "message": unfinished[run].message}
        elif run in unfinished:
            plain |= {"state": unfinished[run].state, "message": unfinished[run].message}
        else:
            plain |= {"state": "finished"}
        found.append(plain)
    return found


def _jobs_of(driver: Driver, results: RunResults) -> JobsByRun:
    """The live jobs of the runs that are queued."""
    folders = [RunFolder(one.job.folder) for one in results.outcomes if one.state == "queued"]
    if not folders:
        return {}
    try:
        live = submit.live_runs(driver.workspace, folders)
    except SlurmError:  # it answered a moment ago, so the job ids are written down
        live = {}
    found = {run: (one.job, "held" if one.held else one.state.lower()) for run, one in live.items()}
    for folder in folders:
        submitted = submit.latest_submission(driver.workspace, folder)
        job = submitted[0].job_of(folder.path.name) if submitted else None
        if job is not None:
            found.setdefault(folder.path.name, (job, "pending"))
    return found


def _cluster_file(plan: Plan, path: Path) -> ClusterFile:
    folder = Path(os.path.relpath(budget_folder(plan, path).resolve()))  # relative, as a user would write it
    return ClusterFile(*cluster_of(plan.budget, folder, path))


def _exit_code(code: int) -> int:
    """0 also where runs are queued: the command has done its part."""
    return OK if code == RESUME else code
