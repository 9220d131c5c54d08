"""`isoplan cancel`: takes runs out of SLURM's hands, and ends the study that would go on with them."""

import json as jsonlib
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lock import busy_message
from runtime.run_folder.workspace import Workspace
from runtime.slurm import client, submit
from runtime.slurm.client import LiveJob
from runtime.status.collect import StatusCollector
from specs.document.files import load
from specs.document.write import write_json
from specs.slurm_submission import Queued, StudyState


@dataclass(frozen=True)
class Cancelled:
    """What was cancelled, as it stood just before."""

    runs: dict[str, LiveJob]
    """Jobs of runs, by fingerprint."""
    study: LiveJob | None
    """The job that was to go on with the study."""


def cancel(workspace: Workspace, runs: Callable[[], Sequence[RunFolder]], study: str) -> Cancelled:
    """Cancel the jobs of runs and the study of this name, which comes first: the end of its runs would start it, and
    until its end it may plan and queue more of them.

    An empty name is no study. Nothing is asked of SLURM where nothing of this was ever handed to it.
    """
    noted = _active_study(workspace, study) if study else None
    if noted is None and not _queued_runs(runs()):
        return Cancelled({}, None)
    with submit.submission_lock(workspace):  # nobody queues anything meanwhile
        ended = _end_study(workspace, study) if study else None
        queued = _queued_runs(runs())
        live = submit.live_runs(workspace, queued)
        for run in queued:  # first: a job whose time is up asks here whether it is to be queued again
            if run.path.name in live:
                noted_run = load(run.queued_json, Queued)
                write_json(run.queued_json, noted_run.model_copy(update={"cancelled": True}))
        client.cancel([one.job for one in live.values()])
    return Cancelled(live, ended)


def _end_study(workspace: Workspace, name: str) -> LiveJob | None:
    noted = _active_study(workspace, name)
    if noted is None:
        return None
    job = submit.live_study_job(workspace, str(noted.submission))
    if job is not None:
        client.cancel_and_wait(job)
    if noted.state == "waiting":
        write_json(workspace.study(name), StudyState(state="cancelled", message=f"while it {noted.message}"))
    return job


def _active_study(workspace: Workspace, name: str) -> StudyState | None:
    """How far a study is that has a job to go on with, or may have one; None where none does."""
    noted = workspace.noted(name)
    return noted if noted is not None and noted.submission is not None else None


def _queued_runs(runs: Sequence[RunFolder]) -> list[RunFolder]:
    return [run for run in runs if run.queued_json.exists()]


def cancel_and_report(asked: StatusCollector, console: Console, json: bool) -> None:
    """Cancel what was asked for and say which jobs that were, and what was left alone."""

    def runs() -> list[RunFolder]:
        return [folder for group in asked.groups() for _, folder in group.wanted]

    done = cancel(asked.workspace, runs, asked.budget)
    folders = {folder.path.name: folder for folder in runs()}
    snapshot = asked.collect()
    titles = {run.run: run.title for run in snapshot.runs}
    here = [run for run in snapshot.runs if run.state == "at work" and run.run not in done.runs]
    if json:
        jobs = [
            {"job": one.job, "run": run, "title": titles[run], "state": one.state}
            for run, one in done.runs.items()
        ]
        ended = None if done.study is None else done.study.job
        said = {"jobs": jobs, "study": ended, "left_alone": [run.run for run in here]}
        sys.stdout.write(jsonlib.dumps(said, indent=1) + "\n")
        return

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    if done.study is not None:
        say(f"cancelled job {done.study.job}, which was to go on with {asked.budget}")
    for run, one in done.runs.items():
        say(f"cancelled job {one.job}, {one.state.lower()}: {titles[run]}")
    for left in here:
        say(f"left alone: {busy_message(folders[left.run].path)}; Ctrl-C where it was started saves and ends it")
    if not done.runs and done.study is None:
        say(snapshot.elsewhere or "nothing to cancel: SLURM has nothing of this in hand")
        return
    if any(not one.pending for one in done.runs.values()):
        say(f"what is at work has {client.settings().get('KillWait', 'its time')} to save (KillWait)")
    say(f"to go on from the newest checkpoints: {_resume_command(asked, done)}")
    for study in snapshot.studies:
        if study.in_progress:
            say(f"{study.name} {study.said}; isoplan cancel with its budget ends that as well")


def _resume_command(asked: StatusCollector, done: Cancelled) -> str:
    """The command that queues the same again."""
    plan = next((group.plan for group in asked.groups() if group.plan is not None), None)
    named = asked.asked if asked.asked is not None and asked.asked.is_file() else plan
    file = "PLAN" if named is None else shlex.quote(str(named))
    return f"run {file} --slurm{' --until-done' if done.study is not None else ''}"
