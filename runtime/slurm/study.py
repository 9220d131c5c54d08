"""`run --slurm`: what is due of a plan or a budget is queued; with --until-done, so is the job that goes on from there.

A budget's chain is the one of runtime/study.py. Where that would wait for runs, this queues them and ends; another job,
which SLURM starts once all of them have ended, does the same again. So nobody waits, nothing is remembered between
two jobs but files, and a study that was cut off anywhere goes on with the same command.
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

from runtime.data.text_sources import CorpusError
from runtime.launch.failure import ended
from runtime.launch.jobs import RunRequest, check_runs, cluster_of, prepare_jobs
from runtime.launch.local import Job, Outcome
from runtime.launch.machine import this_machine
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.slurm import client, submit
from runtime.slurm.client import EndedJob, LiveJob, NoAnswerError, SlurmError
from runtime.slurm.submit import ClusterFile
from runtime.slurm.task import Task
from runtime.study import Driver, RunResults, StudyResult, run_budget
from specs.budget import Budget
from specs.document.files import DocumentError, load, locate
from specs.document.write import write_json
from specs.exit_codes import BAD_INPUT, OK
from specs.humanize import first_line, several
from specs.plan import Plan
from specs.slurm_submission import StudyState

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

_COMPLETING_TIMEOUT_S, _POLL_S = 180.0, 1.0
"""Longer than most sites let a job end (slurm.conf(5): KillWait 30 s, and UnkillableStepTimeout 60 s)."""
_NO_ANSWER_TIMEOUT_S, _RETRY_S = 3600.0, 30.0
"""Longer than an upgrade of SLURM's controller takes: a study that nobody watches waits so long for an answer."""
_ACCOUNTING_DELAY_S = 30.0
"""How far accounts may be behind; they are asked about jobs that have ended without their runs being finished."""
_SURVIVABLE_ENDS = ("TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED")
"""How jobs end that a run may well survive, if SLURM did not queue them again by itself."""


def submit_runs(
    driver: Driver, wanted: Sequence[RunRequest], asked: ClusterFile, name: str, *, again: bool
) -> RunResults:
    """Queue what is not finished and not in SLURM's hands; `again` also what was queued before and failed."""
    todo = {one.run.fingerprint(): one for one in wanted if not one.finished(driver.workspace)}
    if not todo:
        return RunResults(tuple(wanted), ())
    check_runs(list(todo.values()), driver.workspace, None, None)
    _check_devices(list(todo.values()), asked)
    with submit.submission_lock(driver.workspace):
        live = _live_jobs(driver, list(todo))
        rest = {run: one for run, one in todo.items() if run not in live}
        failed = {} if again else _failed_runs(driver, list(rest))
        due = [one for run, one in rest.items() if run not in failed]
        if due:
            prepare_jobs(due, driver.workspace)
            done = submit.submit(
                driver.workspace, asked, submit.prepare_submissions(driver.workspace, asked, due, name, Task)
            )
            for one in done:
                driver.say(f"queued {several(len(one.runs), 'run')} as {escape(one.name)}, job {one.job}")
    outcomes = [_outcome(driver, one, live.get(run), failed.get(run)) for run, one in todo.items()]
    return RunResults(tuple(wanted), tuple(outcomes))


def _check_devices(wanted: Sequence[RunRequest], asked: ClusterFile) -> None:
    """DocumentError where the cluster file has changed so much since the plan that its runs find no place there."""
    device = asked.cluster.device
    for one in wanted:
        execution = one.order.execution
        again = "bring the file back, or plan again under another name"
        if execution.device != device.backend:
            kinds = {"cpu": "CPU cores", "cuda": "GPUs"}
            planned, has = kinds[execution.device], kinds[device.backend]
            what = f"{one.title} was planned for {planned}, and this cluster has {has}"
            raise locate(asked.path, "device.backend", what, again)
        if execution.layout.devices > asked.cluster.devices:
            what = f"{one.title} was planned for {several(execution.layout.devices, 'device')}"
            raise locate(
                asked.path, "devices", f"{what}, and this cluster has {asked.cluster.devices}", again
            )


def _live_jobs(driver: Driver, runs: Sequence[str]) -> dict[str, LiveJob]:
    """Jobs of these runs in SLURM's hands. Those that are ending are waited for: only then is it known whether they
    come back, or were cancelled."""
    until_s, told = time.monotonic() + _COMPLETING_TIMEOUT_S, False
    while True:
        live = submit.live_runs(driver.workspace, [run_folder(driver, run) for run in runs])
        ending = [one for one in live.values() if one.state == "COMPLETING"]
        if not ending or time.monotonic() > until_s:
            return live
        if not told:
            driver.say(f"waits for {several(len(ending), 'job')} to end")
            told = True
        time.sleep(_POLL_S)


def advance_study(
    driver: Driver, path: Path, *, until_done: bool, again: bool, own: str | None = None
) -> StudyResult:
    """What is due of a budget; with `until_done` also the job that goes on once that has ended.

    `own` is the submission of the job that this is, if it is one.
    """
    budget = load(path, Budget)
    asked = cluster_file_of(path, budget)

    def queue(plan: Plan, wanted: Sequence[RunRequest]) -> RunResults:
        return submit_runs(driver, wanted, asked, f"{plan.budget.name}-{plan.phase}", again=again)

    study = run_budget(driver, budget, path, queue)
    if until_done:
        _submit_next_job(driver, path, budget, asked, study, own)
    return study


def continue_study(path: Path, own: str) -> int:
    """The job that goes on with a study: its exit status, 0 unless the study is stuck."""
    driver = Driver(Workspace(Path()), this_machine(), None, Console(width=120))
    try:
        study = _advance_once_slurm_answers(driver, path, own)
    except NoAnswerError as error:
        print(error)
        budget = load(path, Budget)
        left = _noted_submission(driver.workspace, budget, own)  # SLURM may have heard of it
        _save_state(
            driver.workspace, budget, StudyState(state="stopped", message=str(error), submission=left)
        )
        return BAD_INPUT
    except (DocumentError, RefusedError, CorpusError) as error:
        print(error)
        _save_state(driver.workspace, load(path, Budget), StudyState(state="stopped", message=str(error)))
        return BAD_INPUT
    except Exception as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        _save_state(driver.workspace, load(path, Budget), StudyState(state="stopped", message=said))
        raise
    return OK if study.audit is not None or _is_waiting(study) else study.exit_code


def _advance_once_slurm_answers(driver: Driver, path: Path, own: str) -> StudyResult:
    """What is due, as soon as SLURM answers; what it may have heard before is found by its name."""
    until_s = None
    while True:
        try:
            return advance_study(driver, path, until_done=True, again=False, own=own)
        except NoAnswerError as error:
            until_s = time.monotonic() + _NO_ANSWER_TIMEOUT_S if until_s is None else until_s
            if time.monotonic() >= until_s:
                raise
            driver.say(f"{escape(str(error))}; asks again in {_RETRY_S:.0f} s")
        time.sleep(_RETRY_S)


def _submit_next_job(
    driver: Driver, path: Path, budget: Budget, asked: ClusterFile, study: StudyResult, own: str | None
) -> None:
    workspace = driver.workspace
    if not _is_waiting(study):
        _save_state(workspace, budget, _final_state(study))
        return
    with submit.submission_lock(workspace):
        runs = [run_folder(driver, one.run.fingerprint()) for one in study.ran.wanted]
        after = sorted({int(one.job.partition("_")[0]) for one in submit.live_runs(workspace, runs).values()})
        said = f"waits for {several(len(after), 'job')} of the {study.plan.phase}"
        known = _noted_submission(workspace, budget, own)
        waiting = submit.live_study_job(workspace, known) if known else None
        if waiting is not None and waiting.state != "COMPLETING":
            _save_state(workspace, budget, StudyState(state="waiting", message=said, submission=known))
            driver.say(f"job {waiting.job} goes on from here by itself")
            return
        script = submit.study_submission(workspace, asked, path, budget.name, ContinueStudy, after)
        _save_state(
            workspace, budget, StudyState(state="waiting", message=said, submission=script.submission.name)
        )
        [done] = submit.submit(workspace, asked, [script])
    driver.say(
        f"job {done.job} goes on from here by itself; see: isoplan status {escape(shlex.quote(str(path)))}"
    )


def _noted_submission(workspace: Workspace, budget: Budget, own: str | None) -> str | None:
    """The submission that is noted to go on with a study, unless that is our own; None where there is none."""
    noted = workspace.noted(budget.name)
    return None if noted is None or noted.submission == own else noted.submission


def _save_state(workspace: Workspace, budget: Budget, state: StudyState) -> None:
    write_json(workspace.study(budget.name), state)


def _final_state(study: StudyResult) -> StudyState:
    if study.audit is not None:
        return StudyState(state="done", message=f"{study.audit.verdict}: {study.audit.reason}")
    failed = [one for one in study.ran.outcomes if one.state == "failed"]
    if not failed:
        return StudyState(
            state="stopped", message=f"{study.plan.phase}: the planner asks for the same runs again"
        )
    runs = f"{study.plan.phase}: {len(failed)} of {several(len(study.ran.wanted), 'run')} failed"
    return StudyState(
        state="stopped", message="; ".join([runs, *(f"{o.job.title}: {o.message}" for o in failed)])
    )


def _is_waiting(study: StudyResult) -> bool:
    states = {one.state for one in study.ran.outcomes}
    return study.audit is None and "queued" in states and "failed" not in states


def cluster_file_of(path: Path, budget: Budget) -> ClusterFile:
    """The cluster of the budget in this file."""
    return ClusterFile(*cluster_of(budget, path.parent, path))


def run_folder(driver: Driver, run: str) -> RunFolder:
    """The folder of the run with this fingerprint."""
    return RunFolder(driver.workspace.runs / run)


def _failed_runs(driver: Driver, runs: Sequence[str]) -> dict[str, str]:
    """Of these runs, which SLURM does not have in hand, those that were queued and failed, and why."""
    known = {
        run: said
        for run in runs
        if (said := submit.latest_submission(driver.workspace, run_folder(driver, run)))
    }
    jobs = {run: job for run, (submission, _) in known.items() if (job := submission.job_of(run))}
    ends = _ended_jobs(set(jobs.values()))
    failed = {}
    for run, job in jobs.items():
        end, folder = ends.get(job), run_folder(driver, run)
        if end is not None and end.state in _SURVIVABLE_ENDS and folder.newest_step > known[run][1].from_step:
            continue
        cancelled = known[run][1].cancelled if end is None else end.state.startswith("CANCELLED")
        failed[run] = ended(
            folder, folder.records(), job, None if end is None else end.state, cancelled=cancelled
        )[1]
    return failed


def _ended_jobs(jobs: set[str]) -> Mapping[str, EndedJob]:
    """How these jobs ended, once SLURM's accounts have caught up with them, or as far as they know."""
    until_s = time.monotonic() + _ACCOUNTING_DELAY_S
    try:
        while (ended := client.ended_jobs(jobs)).keys() != jobs and time.monotonic() < until_s:
            time.sleep(_POLL_S)
    except SlurmError:  # there are none
        return {}
    return ended


def _outcome(driver: Driver, one: RunRequest, live: LiveJob | None, failed: str | None) -> Outcome:
    job: Job = one.job(one.folder(driver.workspace))
    if failed is not None:
        return Outcome(job, "failed", failed)
    return Outcome(job, "queued", "just now" if live is None else f"as job {live.job}, {live.state.lower()}")


@dataclass(frozen=True)
class ContinueStudy:
    """The next step of a study."""

    workspace: str
    """The folder that everything is in, an absolute path."""
    budget: str
    """The study's budget, from there."""
    name: str
    """The submission that this is the job of."""

    def __call__(self) -> None:
        """Do what is due; SystemExit with its status where the study is stuck."""
        os.chdir(self.workspace)
        status = continue_study(Path(self.budget), self.name)
        if status:
            sys.exit(status)

    def checkpoint(self) -> "DelayedSubmission":
        """The same again: a study's state is in its files."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)
