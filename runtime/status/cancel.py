"""`isoplan cancel`: cancels the SLURM jobs of runs, and the study that would continue with them."""

import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lock import busy_message
from runtime.run_folder.workspace import Workspace
from runtime.slurm import client, submit
from runtime.slurm.client import LiveJob
from runtime.slurm.data_state import cancel_data
from runtime.status.collect import StatusCollector
from specs.document.base import Spec
from specs.document.files import DocumentError, load
from specs.document.write import print_json, write_json
from specs.humanize import several
from specs.plan_file import load_plan
from specs.slurm_submission import Queued, StudyState


@dataclass(frozen=True)
class Cancelled:
    """The jobs that were cancelled, in their states just before."""

    runs: dict[str, LiveJob]
    """Jobs of runs, by fingerprint."""
    study: LiveJob | None
    """The job that would have continued the study."""
    awaited: dict[str, str]
    """Runs whose jobs were left, as another study waits for them: its name, by their fingerprint."""
    problem: DocumentError | None
    """What could not be written down of it; the jobs are cancelled all the same."""


def cancel(
    workspace: Workspace,
    runs: Callable[[], Sequence[RunFolder]],
    study: str,
    shared_with: Callable[[str], bool],
) -> Cancelled:
    """Cancel the jobs of runs and the study of this name; an empty name is no study.

    The study's job is cancelled first: the end of its runs would start it, and it could queue more of them. Runs are
    left if a study waits for them with which they are `shared_with`, by its name. SLURM is not queried where none of
    these was ever queued.
    """
    noted = _active_study(workspace, study) if study else None
    if noted is None and not _queued_runs(runs()):
        return Cancelled({}, None, {}, None)
    problems: list[DocumentError] = []
    with submit.submission_lock(workspace):  # nothing is queued meanwhile
        ended = _end_study(workspace, study, problems) if study else None
        queued = _queued_runs(runs())
        live = submit.live_runs(workspace, queued)
        awaited = _awaited_runs(workspace, live.keys(), shared_with)
        live = {run: job for run, job in live.items() if run not in awaited}
        for run in queued:  # before scancel: at a time limit, the requeue step reads this file
            if run.path.name in live:
                noted_run = load(run.queued_json, Queued)
                _write(run.queued_json, noted_run.model_copy(update={"cancelled": True}), problems)
        client.cancel([one.job for one in live.values()])
    return Cancelled(live, ended, awaited, next(iter(problems), None))


def _end_study(workspace: Workspace, name: str, problems: list[DocumentError]) -> LiveJob | None:
    noted = _active_study(workspace, name)
    if noted is None:
        return None
    job = submit.live_study_job(workspace, str(noted.submission))
    if job is not None:
        client.cancel_and_wait(job)
    if noted.state == "waiting":
        state = StudyState(state="cancelled", message=f"cancelled while {noted.message}")
        _write(workspace.study(name), state, problems)
    return job


def _write(path: Path, spec: Spec, problems: list[DocumentError]) -> None:
    """Write a document; a full disk keeps no job from being cancelled."""
    try:
        write_json(path, spec)
    except DocumentError as problem:
        problems.append(problem)


def _awaited_runs(
    workspace: Workspace, runs: Collection[str], shared_with: Callable[[str], bool]
) -> dict[str, str]:
    """Which of these runs such a study waits for, and its name."""
    found: dict[str, str] = {}
    for path in sorted(workspace.path.glob("plans/*/study.json")) if runs else ():
        name = path.parent.name
        if not shared_with(name) or load(path, StudyState).state != "waiting":
            continue
        plans = [workspace.plan(name, phase) for phase in ("pilots", "target")]
        for plan in (load_plan(one) for one in plans if one.exists()):
            planned = {one.run.fingerprint() for one in plan.runs}
            found |= {run: name for run in runs if run in planned}
    return found


def _active_study(workspace: Workspace, name: str) -> StudyState | None:
    """The noted state of a study that has a next job, or may have one; None where it has none."""
    noted = workspace.study_state(name)
    return noted if noted is not None and noted.submission is not None else None


def _queued_runs(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Those whose job has work left: the job of a finished run is ending by itself."""
    return [run for run in runs if run.queued_json.exists() and run.end() is None]


def cancel_and_report(collector: StatusCollector, console: Console, json: bool) -> None:
    """Cancel the target's jobs and print which jobs those were, and which runs are still running."""

    def runs() -> list[RunFolder]:
        return [folder for group in collector.groups() for _, folder in group.requests]

    own = {collector.budget, *(group.name for group in collector.groups())}
    cancelled = cancel(
        collector.workspace,
        runs,
        collector.budget,
        lambda name: name not in own and not collector.is_single_run,
    )
    of_data = cancel_data(collector.workspace, collector.data_jobs())
    folders = {folder.path.name: folder for folder in runs()}
    snapshot = collector.collect()
    titles = {run.run: run.title for run in snapshot.runs}
    others = cancelled.runs.keys() | cancelled.awaited.keys()
    local = [run for run in snapshot.runs if run.state == "running" and run.run not in others]
    if json:
        jobs = [
            {"job": one.job, "run": run, "title": titles[run], "state": one.state}
            for run, one in cancelled.runs.items()
        ]
        study = None if cancelled.study is None else cancelled.study.job
        still = [*cancelled.awaited, *(run.run for run in local)]
        print_json({"jobs": jobs, "study": study, "data": of_data, "not_cancelled": still})
        if cancelled.problem is not None:
            raise cancelled.problem
        return

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    if cancelled.study is not None:
        say(f"cancelled job {cancelled.study.job}, which would have continued the study {collector.budget}")
    if of_data is not None:
        say(
            f"cancelled {several(len(of_data), 'job')} that would have built the corpus; what they finished is kept"
        )
        say(f"to go on: isoplan data {shlex.quote(str(collector.target))}, also with --slurm")
    for run, one in cancelled.runs.items():
        say(f"cancelled job {one.job} ({one.state.lower()}): {titles[run]}")
    for run, waiting in cancelled.awaited.items():
        say(f"not cancelled: {titles[run]}, which the study {waiting} waits for")
    for left in local:
        say(
            f"not cancelled: {busy_message(folders[left.run].path)}; press Ctrl-C where it was started to save and stop"
        )
    if cancelled.problem is not None:
        raise cancelled.problem
    if not cancelled.runs and not cancelled.awaited and cancelled.study is None and of_data is None:
        say(snapshot.other_workspace or "nothing to cancel: none of these runs is queued or running in SLURM")
        return
    if not cancelled.runs and cancelled.study is None:
        return
    if any(not one.pending for one in cancelled.runs.values()):
        say(
            f"running jobs have {client.settings().get('KillWait', 'some time')} to save a checkpoint (KillWait)"
        )
    say(f"to resume from the latest checkpoints: {_resume_command(collector, cancelled)}")
    for other in snapshot.studies:
        if other.in_progress:
            say(f"the study {other.name} {other.message}; to cancel it too: isoplan cancel BUDGET")


def _resume_command(collector: StatusCollector, cancelled: Cancelled) -> str:
    """The command that queues the same runs again."""
    plan = next((group.plan for group in collector.groups() if group.plan is not None), None)
    document = collector.target if collector.target is not None and collector.target.is_file() else plan
    file = "PLAN" if document is None else shlex.quote(str(document))
    return f"run {file} --slurm{' --until-done' if cancelled.study is not None else ''}"
