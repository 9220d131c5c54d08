"""`run --slurm`: queues what is due of a plan or a budget; with --until-done also the job that continues from there.

A budget's steps are those of runtime/study.py. Where a step needs unfinished runs, this queues them and exits. Another
job, which SLURM starts once all of them have ended, does the same again. So no process waits, all state is in files,
and an interrupted study is continued by the same command.
"""

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from runtime.data.errors import CorpusError
from runtime.launch.failure import State, why_not_running
from runtime.launch.jobs import RunRequest, check_runs, cluster_of, prepare_jobs
from runtime.launch.local import Job, Outcome
from runtime.launch.machine import this_machine
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.slurm import submit
from runtime.slurm.client import EndedJob, LiveJob, NoAnswerError, SlurmError
from runtime.slurm.job_log import ended_jobs, script_failure
from runtime.slurm.submit import ClusterFile
from runtime.slurm.task import Task
from runtime.study import Driver, RunResults, StudyResult, located, run_budget
from specs.budget import Budget
from specs.data_jobs import jobs_path
from specs.document.files import DocumentError, load, locate
from specs.document.write import write_json
from specs.exit_codes import BAD_INPUT, OK
from specs.humanize import first_line, several
from specs.plan import Plan
from specs.slurm_submission import StudyState
from specs.sources import find_sources, is_curated

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

_COMPLETING_TIMEOUT_S, _POLL_S = 180.0, 1.0
"""Longer than a job completes at most sites (slurm.conf(5): KillWait 30 s, and UnkillableStepTimeout 60 s)."""
_NO_ANSWER_TIMEOUT_S, _RETRY_S = 3600.0, 30.0
"""Longer than an upgrade of SLURM's controller takes: an unattended study retries for so long."""
_ACCOUNTING_DELAY_S = 30.0
"""How far SLURM accounting may lag. It is queried about jobs that ended before their runs were finished."""
_SURVIVABLE_ENDS = ("TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED")
"""How jobs end that were not their run's fault; SLURM may not have requeued them."""


def submit_runs(
    driver: Driver,
    requests: Sequence[RunRequest],
    cluster_file: ClusterFile,
    name: str,
    *,
    retry_failed: bool,
) -> RunResults:
    """Queue the runs that are not finished and have no live job; with `retry_failed` also those whose job failed."""
    todo = {one.run.fingerprint(): one for one in requests if not one.finished(driver.workspace)}
    if not todo:
        return RunResults(tuple(requests), ())
    check_runs(list(todo.values()), driver.workspace, None, None)
    _check_devices(list(todo.values()), cluster_file)
    with submit.submission_lock(driver.workspace):
        live = _live_jobs(driver, list(todo))
        rest = {run: one for run, one in todo.items() if run not in live}
        failed = {} if retry_failed else _failed_runs(driver, list(rest))
        due = [one for run, one in rest.items() if run not in failed]
        if due:
            prepare_jobs(due, driver.workspace)
            prepared = submit.prepare_submissions(
                driver.workspace, cluster_file, due, name, Task, [one.job for one in live.values()]
            )
            for one in submit.submit(driver.workspace, cluster_file, prepared):
                driver.say(f"queued {several(len(one.runs), 'run')} as {escape(one.name)}, job {one.job}")
    outcomes = [_outcome(driver, one, live.get(run), failed.get(run)) for run, one in todo.items()]
    return RunResults(tuple(requests), tuple(outcomes))


def _check_devices(requests: Sequence[RunRequest], cluster_file: ClusterFile) -> None:
    """DocumentError where the cluster file has changed since the plan so that the runs no longer fit it."""
    device = cluster_file.cluster.device
    for one in requests:
        execution = one.order.execution
        remedy = "restore the file, or plan the budget again under another name"
        if execution.device != device.backend:
            kinds = {"cpu": "CPU cores", "cuda": "GPUs"}
            planned, has = kinds[execution.device], kinds[device.backend]
            what = f"{one.title} was planned for {planned}, but this cluster has {has}"
            raise locate(cluster_file.path, "device.backend", what, remedy)
        if execution.layout.devices > cluster_file.cluster.devices:
            what = f"{one.title} was planned for {several(execution.layout.devices, 'device')}"
            what += f", but this cluster has {cluster_file.cluster.devices}"
            raise locate(cluster_file.path, "devices", what, remedy)


def _live_jobs(driver: Driver, runs: Sequence[str]) -> dict[str, LiveJob]:
    """Live jobs of these runs. Completing jobs are waited for: only then is it known whether they are requeued, or were
    cancelled."""
    until_s, printed = time.monotonic() + _COMPLETING_TIMEOUT_S, False
    while True:
        live = submit.live_runs(driver.workspace, [run_folder(driver, run) for run in runs])
        completing = [one for one in live.values() if one.state == "COMPLETING"]
        if not completing or time.monotonic() > until_s:
            return live
        if not printed:
            driver.say(f"waiting for {several(len(completing), 'job')} to complete")
            printed = True
        time.sleep(_POLL_S)


def advance_study(
    driver: Driver,
    budget: Budget,
    path: Path,
    *,
    until_done: bool,
    retry_failed: bool,
    own: str | None = None,
) -> StudyResult:
    """Do what is due of the budget at this path; with `until_done` also queue the job that continues the study.

    `own` is the submission of the job that this process runs in, if it is one of the study's.
    """
    cluster_file = cluster_file_of(budget, path)
    _check_curated(driver, budget, path)

    def queue(plan: Plan, requests: Sequence[RunRequest]) -> RunResults:
        name = f"{plan.budget.name}-{plan.phase}"
        return submit_runs(driver, requests, cluster_file, name, retry_failed=retry_failed)

    study = run_budget(driver, budget, path, queue)
    if until_done:
        _submit_next_job(driver, budget, path, cluster_file, study, own)
    return study


def _check_curated(driver: Driver, budget: Budget, path: Path) -> None:
    """DocumentError where the text would be curated here, on a login node, and nobody has asked for that."""
    base, data = path.parent, driver.workspace.data
    if not is_curated(budget.data) or jobs_path(budget.data, base, data).exists():
        return  # jobs are at it, as is said where the corpus is needed
    with located(budget, path):
        found = find_sources(budget.data, base, data)
    if isinstance(found, str):
        command = f"isoplan data {shlex.quote(str(path))}"
        what = f"{found}; curation is asked for by a command of its own"
        raise locate(path, "data", what, f"run: {command} --slurm, or on this machine: {command}")


def continue_study(path: Path, own: str) -> int:
    """What the job of the submission `own` does for the budget at this path: its exit status, 0 unless the study stops.

    Why a study stopped is printed and noted, where `isoplan status` finds it.
    """
    driver = Driver(Workspace(Path()), this_machine(), None, Console(width=120))
    try:
        budget = load(path, Budget)
    except DocumentError as error:  # its name is then known only from what was noted about its study
        print(error)
        name = _study_continued_by(driver.workspace, own)
        if name is not None:
            _save_state(driver.workspace, name, StudyState(state="stopped", message=str(error)))
        return BAD_INPUT
    try:
        study = _advance_once_slurm_answers(driver, budget, path, own)
    except NoAnswerError as error:
        print(error)
        queued = _noted_submission(
            driver.workspace, budget.name, own
        )  # sbatch may have queued it all the same
        state = StudyState(state="stopped", message=str(error), submission=queued)
        _save_state(driver.workspace, budget.name, state)
        return BAD_INPUT
    except (DocumentError, RefusedError, CorpusError) as error:
        print(error)
        _save_state(driver.workspace, budget.name, StudyState(state="stopped", message=str(error)))
        return BAD_INPUT
    except Exception as error:
        message = f"{type(error).__name__}: {first_line(error)}"
        _save_state(driver.workspace, budget.name, StudyState(state="stopped", message=message))
        raise
    return OK if study.audit is not None or _is_waiting(study) else study.exit_code


def _advance_once_slurm_answers(driver: Driver, budget: Budget, path: Path, own: str) -> StudyResult:
    """Do what is due, retrying while SLURM does not answer; jobs that it queued meanwhile are found by name."""
    until_s = None
    while True:
        try:
            return advance_study(driver, budget, path, until_done=True, retry_failed=False, own=own)
        except NoAnswerError as error:
            until_s = time.monotonic() + _NO_ANSWER_TIMEOUT_S if until_s is None else until_s
            if time.monotonic() >= until_s:
                raise
            driver.say(f"{escape(str(error))}; retrying in {_RETRY_S:.0f} s")
        time.sleep(_RETRY_S)


def _submit_next_job(
    driver: Driver,
    budget: Budget,
    path: Path,
    cluster_file: ClusterFile,
    study: StudyResult,
    own: str | None,
) -> None:
    """Queue the job that continues a study, unless it is queued already or the study has ended; note which."""
    workspace, name = driver.workspace, budget.name
    if not _is_waiting(study):
        _save_state(workspace, name, _final_state(study))
        return
    with submit.submission_lock(workspace):
        runs = [run_folder(driver, one.run.fingerprint()) for one in study.results.requests]
        after = sorted({int(one.job.partition("_")[0]) for one in submit.live_runs(workspace, runs).values()})
        message = f"waiting for {several(len(after), 'job')} of the {study.plan.phase}"
        noted = _noted_submission(workspace, name, own)
        job = submit.live_study_job(workspace, noted) if noted else None
        if job is not None and job.state != "COMPLETING":
            _save_state(workspace, name, StudyState(state="waiting", message=message, submission=noted))
            driver.say(f"job {job.job} continues the study automatically")
            return
        prepared = submit.study_submission(workspace, cluster_file, path, name, ContinueStudy, after)
        state = StudyState(state="waiting", message=message, submission=prepared.submission.name)
        _save_state(workspace, name, state)
        [submission] = submit.submit(workspace, cluster_file, [prepared])
    see = f"see: isoplan status {escape(shlex.quote(str(path)))}"
    driver.say(f"job {submission.job} continues the study automatically; {see}")


def _study_continued_by(workspace: Workspace, submission: str) -> str | None:
    """The name of the study whose next job is of this submission; None where none is noted."""
    paths = workspace.path.glob("plans/*/study.json")
    return next((path.parent.name for path in paths if load(path, StudyState).submission == submission), None)


def _noted_submission(workspace: Workspace, name: str, own: str | None) -> str | None:
    """The submission that is noted to continue a study, unless it is `own`; None where there is none."""
    noted = workspace.study_state(name)
    return None if noted is None or noted.submission == own else noted.submission


def _save_state(workspace: Workspace, name: str, state: StudyState) -> None:
    write_json(workspace.study(name), state)


def _final_state(study: StudyResult) -> StudyState:
    if study.audit is not None:
        return StudyState(state="done", message=f"{study.audit.verdict}: {study.audit.reason}")
    phase, all_runs = study.plan.phase, several(len(study.results.requests), "run")
    failed = [one for one in study.results.outcomes if one.state == "failed"]
    cancelled = [one for one in study.results.outcomes if one.state == "cancelled"]
    if cancelled and not failed:
        return StudyState(state="cancelled", message=f"{phase}: {len(cancelled)} of {all_runs} cancelled")
    if not failed:
        return StudyState(
            state="stopped",
            message=f"{phase}: the planner requests the same runs again; see what the audit rejected",
        )
    runs = f"{phase}: {len(failed)} of {all_runs} failed"
    return StudyState(
        state="stopped", message="; ".join([runs, *(f"{o.job.title}: {o.message}" for o in failed)])
    )


def _is_waiting(study: StudyResult) -> bool:
    states = {one.state for one in study.results.outcomes}
    return study.audit is None and "queued" in states and not states & {"failed", "cancelled"}


def cluster_file_of(budget: Budget, path: Path) -> ClusterFile:
    """The cluster file of the budget at this path."""
    return ClusterFile(*cluster_of(budget, path.parent, path))


def run_folder(driver: Driver, run: str) -> RunFolder:
    """The folder of the run with this fingerprint."""
    return RunFolder(driver.workspace.runs / run)


def _failed_runs(driver: Driver, runs: Sequence[str]) -> dict[str, tuple[State, str]]:
    """Of these runs without a live job, those whose last job failed or was cancelled, each with the reason."""
    known = {
        run: found
        for run in runs
        if (found := submit.latest_submission(driver.workspace, run_folder(driver, run)))
    }
    jobs = {run: job for run, (submission, _) in known.items() if (job := submission.job_of(run))}
    folders = {
        run: submit.submission_folder(driver.workspace, submission.name)
        for run, (submission, _) in known.items()
    }
    ends = _ended_jobs({job: folders[run] for run, job in jobs.items()})
    failed = {}
    for run, job in jobs.items():
        end, folder = ends.get(job), run_folder(driver, run)
        if end is not None and end.state in _SURVIVABLE_ENDS and folder.newest_step > known[run][1].from_step:
            continue
        cancelled = known[run][1].cancelled if end is None else end.state.startswith("CANCELLED")
        failed[run] = why_not_running(
            folder,
            folder.records(),
            job,
            None if end is None else end.state,
            cancelled=cancelled,
            script_failure="" if end is None else script_failure(folders[run], job, end),
        )
    return failed


def _ended_jobs(jobs: Mapping[str, Path]) -> Mapping[str, EndedJob]:
    """How these jobs of submissions in these folders ended, as far as SLURM accounting knows after some seconds."""
    until_s = time.monotonic() + _ACCOUNTING_DELAY_S
    try:
        while (ended := ended_jobs(jobs)).keys() != jobs.keys() and time.monotonic() < until_s:
            time.sleep(_POLL_S)
    except SlurmError:  # no SLURM accounting
        return {}
    return ended


def _outcome(
    driver: Driver, one: RunRequest, live: LiveJob | None, failed: tuple[State, str] | None
) -> Outcome:
    job: Job = one.job(one.folder(driver.workspace))
    if failed is not None:
        state, message = failed
        return Outcome(job, "cancelled" if state == "cancelled" else "failed", message)
    return Outcome(job, "queued", "just now" if live is None else f"as job {live.job}, {live.state.lower()}")


@dataclass(frozen=True)
class ContinueStudy:
    """The next step of a study."""

    workspace: str
    """The workspace, an absolute path."""
    budget: str
    """The study's budget, relative to the workspace."""
    name: str
    """The name of the submission that this job belongs to."""

    def __call__(self) -> None:
        """Do what is due; SystemExit with its status where the study stops."""
        os.chdir(self.workspace)
        status = continue_study(Path(self.budget), self.name)
        if status:
            sys.exit(status)

    def checkpoint(self) -> "DelayedSubmission":
        """The same task, since all state is in files."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)
