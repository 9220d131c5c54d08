"""Runs into SLURM's queue through submitit, each at most once; and where the queued ones are.

    slurm/<name>/submission.json      which runs, and the number that SLURM gave them
                 *_submission.sh      the sbatch script
                 *_submitted.pkl      what a task is handed: a run folder's path
                 *_log.out, *_log.err what the script and its tasks printed before the ranks' own logs

A submission is written down under a name of its own before it is queued and again afterwards, and the name is the
job's: whoever is killed in between leaves enough to find the job by. A job that SLURM has in hand is left to it.
"""

import contextlib
import fcntl
import io
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.folder import RunFolder, found, step_of
from runtime.prepare import RefusedError, Wanted, Workspace
from runtime.slurm import client
from runtime.slurm.client import Live
from runtime.slurm.refusal import refusal
from runtime.slurm.script import Shape, parameters, python, shape_of, study_parameters
from runtime.slurm.task import Continue, Task
from specs.cluster import Cluster
from specs.files import load, write_json
from specs.slurm import Slurm
from specs.submission import Queued, Submission

if TYPE_CHECKING:
    from submitit import SlurmExecutor

_NAME = 50
"""Characters of a budget's name and phase that a submission's name begins with; a Slug has 64."""
_UNSAFE = "%\\\n"
"""What SLURM takes for something else in the names of its logs, however it is quoted."""


@dataclass(frozen=True)
class Asked:
    """The cluster that jobs are for, and the file that says so."""

    path: Path
    cluster: Cluster


@dataclass(frozen=True)
class Script:
    """A submission that is ready: what sbatch is given, and what its tasks do."""

    submission: Submission
    """What is to be written down of it."""
    tasks: tuple[Task, ...] | tuple[Continue]
    """What each job of it does: one for each run, or the next step of a study."""
    executor: "SlurmExecutor"
    """What queues it."""

    @property
    def text(self) -> str:
        """The sbatch script, as submitit will write it."""
        given, number = self.executor.parameters, len(self.tasks)
        self.executor.parameters = given | ({"map_count": number} if number > 1 else {})
        try:
            return str(self.executor._make_submission_file_text(self.executor._submitit_command_str, ""))
        finally:
            self.executor.parameters = given


def folder_of(workspace: Workspace, name: str) -> Path:
    """Folder of a submission."""
    return workspace.path.absolute() / "slurm" / name


@contextlib.contextmanager
def one_at_a_time(workspace: Workspace) -> Iterator[None]:
    """Nobody else looks at the queue and adds to it in this workspace while the block is open."""
    check_path(workspace)
    (workspace.path / "slurm").mkdir(parents=True, exist_ok=True)
    with (workspace.path / "slurm" / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_path(workspace: Workspace) -> None:
    """RefusedError where SLURM could not name its logs here."""
    path = str(workspace.path.absolute())
    bad = next((sign for sign in path if sign in _UNSAFE), None)
    if bad is not None:
        raise RefusedError(
            f"{path}: SLURM takes {bad!r} in a path for something else; work in a folder without it"
        )


def submitted(workspace: Workspace, run: RunFolder) -> tuple[Submission, Queued] | None:
    """The newest submission that a run is of; None where it never was, or was cut off before it was queued."""
    if not run.queued_json.exists():
        return None
    queued = load(run.queued_json, Queued)
    path = folder_of(workspace, queued.submission) / "submission.json"
    return (load(path, Submission), queued) if path.exists() else None


def live(workspace: Workspace, runs: Sequence[RunFolder]) -> dict[str, Live]:
    """Of these runs, by fingerprint, those that SLURM has in hand."""
    known = {run.path.name: said[0] for run in runs if (said := submitted(workspace, run))}
    jobs = client.live({one.name for one in known.values()})
    numbered = {name: _numbered(workspace, name, jobs) for name in {one.name for one in known.values()}}
    where = {run: numbered[one.name].job_of(run) for run, one in known.items()}
    return {run: jobs[job] for run, job in where.items() if job in jobs}


def live_study(workspace: Workspace, name: str) -> Live | None:
    """The job that is to go on with a study, by its submission's name."""
    return next(iter(client.live({name}).values()), None)


def _numbered(workspace: Workspace, name: str, jobs: Mapping[str, Live]) -> Submission:
    """A submission, whose number is written down where whoever queued it was killed before he did."""
    path = folder_of(workspace, name) / "submission.json"
    known = load(path, Submission)
    submission = numbered(known, jobs)
    if submission != known:
        write_json(path, submission)
    return submission


def numbered(submission: Submission, jobs: Mapping[str, Live]) -> Submission:
    """A submission with the number under which SLURM has it in hand, if it has."""
    job = next((job for job, one in jobs.items() if one.name == submission.name), None)
    if submission.job is not None or job is None:
        return submission
    return submission.model_copy(update={"job": int(job.partition("_")[0])})


def scripts(workspace: Workspace, asked: Asked, wanted: Sequence[Wanted], name: str) -> list[Script]:
    """Submissions for these runs: those of one shape share an array, as long as the site allows one to be."""
    shapes: dict[Shape, list[Wanted]] = {}
    for one in sorted(wanted, key=lambda one: -one.planned_s):
        shapes.setdefault(shape_of(one.job(Path()), asked.cluster), []).append(one)
    most = int(client.settings().get("MaxArraySize", "1001"))
    made = []
    for shape, alike in shapes.items():
        for start in range(0, len(alike), most):
            runs = tuple(one.run.fingerprint() for one in alike[start : start + most])
            submission = _new(name, asked).model_copy(update={"runs": runs})
            folder = folder_of(workspace, submission.name)
            values = parameters(asked.cluster.slurm, shape, submission.name, folder)
            tasks = tuple(Task(str(workspace.runs.absolute() / run)) for run in runs)
            made.append(Script(submission, tasks, _executor(asked.cluster.slurm, folder, values)))
    return made


def study_script(workspace: Workspace, asked: Asked, budget: Path, name: str, after: Sequence[int]) -> Script:
    """The submission that goes on with a budget once these jobs have ended."""
    submission = _new(f"{name}-study", asked).model_copy(update={"budget": str(budget)})
    folder = folder_of(workspace, submission.name)
    values = study_parameters(asked.cluster.slurm, submission.name, tuple(after))
    task = Continue(str(workspace.path.absolute()), str(budget), submission.name)
    return Script(submission, (task,), _executor(asked.cluster.slurm, folder, values))


def _new(name: str, asked: Asked) -> Submission:
    """A submission under a name of its own."""
    name = f"{name[:_NAME]}-{secrets.token_hex(3)}"
    return Submission(name=name, time=time.time(), runs=(), retries=asked.cluster.slurm.retries)


def submit(workspace: Workspace, asked: Asked, made: Sequence[Script]) -> list[Submission]:
    """Queue all of these submissions, or none: DocumentError with SLURM's reason where it refuses one."""
    done: list[Submission] = []
    before = {
        run: _bytes(_run(workspace, run).queued_json) for script in made for run in script.submission.runs
    }
    try:
        for script in made:
            done.append(_submit(workspace, asked, script))
    except RefusedError:
        client.cancel([str(one.job) for one in done])
        for script in made:
            shutil.rmtree(folder_of(workspace, script.submission.name), ignore_errors=True)
        for run, content in before.items():
            _restore(_run(workspace, run).queued_json, content)
        raise
    return done


def _submit(workspace: Workspace, asked: Asked, script: Script) -> Submission:
    from submitit.core.utils import FailedJobError, FailedSubmissionError  # half a second

    submission, folder = script.submission, folder_of(workspace, script.submission.name)
    folder.mkdir(parents=True)
    write_json(folder / "submission.json", submission)
    for fingerprint in submission.runs:
        run = _run(workspace, fingerprint)
        step = max(map(step_of, found(run.checkpoints)), default=0)
        write_json(run.queued_json, Queued(submission=submission.name, from_step=step))
    try:
        with _as_from_a_login_node():
            jobs = script.executor.submit_array(script.tasks)
    except (FailedJobError, FailedSubmissionError) as error:
        raise refusal(asked.path, str(error)) from None
    submission = submission.model_copy(update={"job": int(jobs[0].job_id.partition("_")[0])})
    write_json(folder / "submission.json", submission)
    return submission


def _executor(slurm: Slurm, folder: Path, values: dict[str, Any]) -> "SlurmExecutor":
    from submitit import SlurmExecutor

    executor = SlurmExecutor(folder, python=python(slurm))
    executor.update_parameters(**values, wckey=None)
    return executor


@contextlib.contextmanager
def _as_from_a_login_node() -> Iterator[None]:
    """Without what a job around this process says of itself, but with what a person says to sbatch; and in silence."""
    from submitit.helpers import clean_env

    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or name.startswith("SBATCH_")
    }
    with clean_env(), contextlib.redirect_stderr(io.StringIO()):
        os.environ.update(kept)
        yield


def _run(workspace: Workspace, fingerprint: str) -> RunFolder:
    return RunFolder(workspace.runs / fingerprint)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content)
