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
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.launch.jobs import RunRequest
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.slurm import client
from runtime.slurm.client import LiveJob
from runtime.slurm.sbatch import JobShape, parameters, python, shape_of, study_parameters
from runtime.slurm.sbatch_errors import refusal
from specs.cluster import Cluster
from specs.document.files import DocumentError, load
from specs.document.write import write_json
from specs.slurm_submission import Queued, Submission

_NAME = 50
"""Characters of a budget's name and phase that a submission's name begins with; a Slug has 64."""
_UNSAFE = "%\\"
"""What SLURM takes for something else in the names of its logs, however it is quoted."""
DEFAULT_ARRAY = 1001
"""Most jobs of an array where no site can be asked (slurm.conf(5), MaxArraySize)."""
JobCall = Callable[[], None]
"""What a job does, as submitit pickles it: an object of few strings that is called on the node."""


@dataclass(frozen=True)
class ClusterFile:
    """The cluster that jobs are for, and the file that says so."""

    path: Path
    cluster: Cluster


@dataclass(frozen=True)
class PreparedSubmission:
    """A submission that is ready: what sbatch is given, and what its tasks do."""

    submission: Submission
    """What is to be written down of it."""
    tasks: tuple[JobCall, ...]
    """What each job of it does: one for each run, the next step of a study, or what the doctor wants to know."""
    folder: Path
    """Where it is written down."""
    python: str
    """What starts Python, as a shell reads it."""
    parameters: Mapping[str, Any]
    """submitit's, without those of an array."""

    @property
    def text(self) -> str:
        """The sbatch script, as submitit will write it."""
        from submitit.slurm.slurm import _make_sbatch_string  # half a second

        command = f"{self.python} -u -m submitit.core._submit {shlex.quote(str(self.folder))}"
        number = len(self.tasks) if len(self.tasks) > 1 else None
        return _make_sbatch_string(command, self.folder, map_count=number, **self.parameters)


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
    bad = next((sign for sign in path if sign in _UNSAFE or not sign.isprintable()), None)
    if bad is not None:
        shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in path)
        raise RefusedError(
            f"{shown}: SLURM takes {ascii(bad)[1:-1]} in a path for something else; work in a folder without it"
        )


def submitted(workspace: Workspace, run: RunFolder) -> tuple[Submission, Queued] | None:
    """The newest submission that a run is of; None where it never was, or was cut off before it was queued."""
    if not run.queued_json.exists():
        return None
    queued = load(run.queued_json, Queued)
    submission = submission_of(workspace, queued.submission)
    return None if submission is None else (submission, queued)


def submission_of(workspace: Workspace, name: str) -> Submission | None:
    """The submission of this name; None where it was never written down, or was refused."""
    path = folder_of(workspace, name) / "submission.json"
    return load(path, Submission) if path.exists() else None


def live(workspace: Workspace, runs: Sequence[RunFolder]) -> dict[str, LiveJob]:
    """Of these runs, by fingerprint, those that SLURM has in hand."""
    known = {run.path.name: said[0] for run in runs if (said := submitted(workspace, run))}
    jobs = client.live({one.name for one in known.values()})
    numbered = {name: _numbered(workspace, name, jobs) for name in {one.name for one in known.values()}}
    where = {run: numbered[one.name].job_of(run) for run, one in known.items()}
    return {run: jobs[job] for run, job in where.items() if job in jobs}


def live_study(workspace: Workspace, name: str) -> LiveJob | None:
    """The job that is to go on with a study, by its submission's name."""
    jobs = client.live({name})
    if jobs:
        _numbered(workspace, name, jobs)
    return next(iter(jobs.values()), None)


def _numbered(workspace: Workspace, name: str, jobs: Mapping[str, LiveJob]) -> Submission:
    """A submission, made whole where whoever queued it was killed before that was written down."""
    folder = folder_of(workspace, name)
    known = load(folder / "submission.json", Submission)
    submission = numbered(known, jobs)
    if submission != known:
        number = str(submission.job)
        jobs_of = [submission.job_of(run) or number for run in submission.runs] or [number]
        for index, job in enumerate(jobs_of):
            _hand_over(_task_file(folder, index), folder / f"{job}_submitted.pkl")
        write_json(folder / "submission.json", submission)
    return submission


def numbered(submission: Submission, jobs: Mapping[str, LiveJob]) -> Submission:
    """A submission with the number under which SLURM has it in hand, if it has."""
    job = next((job for job, one in jobs.items() if one.name == submission.name), None)
    if submission.job is not None or job is None:
        return submission
    return submission.model_copy(update={"job": int(job.partition("_")[0])})


def _task_file(folder: Path, index: int) -> Path:
    """What the job of this index is to do, while it has no number yet."""
    return folder / f"task-{index}.pkl"


def _hand_over(task: Path, submitted: Path) -> None:
    """What a job reads to know its task, where it is not there yet: it waits a minute for it."""
    if not submitted.exists() and task.exists():
        task.rename(submitted)


def scripts(
    workspace: Workspace,
    asked: ClusterFile,
    wanted: Sequence[RunRequest],
    name: str,
    task: Callable[[str], JobCall],
) -> list[PreparedSubmission]:
    """Submissions for these runs: those of one shape share an array, as long as the site allows one to be.

    `task` makes what a job does from its run's folder.
    """
    return drafts(workspace, asked, wanted, name, task, longest_array())


def longest_array() -> int:
    """Most jobs that an array may have at this site; SlurmError where SLURM does not answer."""
    return max(1, int(client.settings()["MaxArraySize"]))  # 0 where a site allows none


def drafts(
    workspace: Workspace,
    asked: ClusterFile,
    wanted: Sequence[RunRequest],
    name: str,
    task: Callable[[str], JobCall],
    most: int,
) -> list[PreparedSubmission]:
    """Submissions for these runs, arrays of at most so many jobs."""
    shapes: dict[JobShape, list[str]] = {}
    for one in sorted(wanted, key=lambda one: -one.planned_s):
        shapes.setdefault(shape_of(one.order, asked.cluster), []).append(one.run.fingerprint())
    made = []
    for shape, alike in shapes.items():
        for start in range(0, len(alike), most):
            runs = tuple(alike[start : start + most])
            submission = new_submission(name, asked).model_copy(update={"runs": runs})
            folder = folder_of(workspace, submission.name)
            values = parameters(asked.cluster.slurm, shape, submission.name, folder)
            tasks = tuple(task(str(workspace.runs.absolute() / run)) for run in runs)
            made.append(script_of(workspace, asked, submission, tasks, values))
    return made


def study_script(
    workspace: Workspace,
    asked: ClusterFile,
    budget: Path,
    name: str,
    task: Callable[[str, str, str], JobCall],
    after: Sequence[int],
) -> PreparedSubmission:
    """The submission that continues a budget's study once these jobs have ended.

    `task` makes what its job does from the workspace, the budget's path from there and the submission's name.
    """
    submission = new_submission(f"{name}-study", asked).model_copy(update={"budget": str(budget)})
    values = study_parameters(asked.cluster.slurm, submission.name, tuple(after))
    tasks = (task(str(workspace.path.absolute()), str(budget), submission.name),)
    return script_of(workspace, asked, submission, tasks, values)


def run_script(workspace: Workspace, asked: ClusterFile, shape: JobShape) -> PreparedSubmission:
    """A submission of this shape that is of no run, to be tried out."""
    submission = new_submission("doctor", asked)
    values = parameters(asked.cluster.slurm, shape, submission.name, folder_of(workspace, submission.name))
    return script_of(workspace, asked, submission, (), values)


def script_of(
    workspace: Workspace,
    asked: ClusterFile,
    submission: Submission,
    tasks: tuple[JobCall, ...],
    values: dict[str, Any],
) -> PreparedSubmission:
    """A submission that is ready, with submitit's parameters."""
    folder, command = folder_of(workspace, submission.name), python(asked.cluster.slurm)
    return PreparedSubmission(submission, tasks, folder, command, values | {"wckey": None})


def new_submission(name: str, asked: ClusterFile) -> Submission:
    """A submission under a name of its own."""
    name = f"{name[:_NAME]}-{secrets.token_hex(3)}"
    return Submission(name=name, time=time.time(), runs=(), retries=asked.cluster.slurm.retries)


def try_out(asked: ClusterFile, script: PreparedSubmission) -> str:
    """When and where sbatch would start this submission; nothing is queued. DocumentError with its reason to refuse.

    A trial also fails where all nodes are down or drained just now, for which sbatch refuses nothing: that passes.
    """
    with _as_from_a_login_node():
        taken, said = client.try_out(script.text)
    if not taken and not re.search("node.* not available", said):
        raise refusal(asked.path, asked.cluster.slurm, said)
    return said.partition(" to start ")[2]


def submit(workspace: Workspace, asked: ClusterFile, made: Sequence[PreparedSubmission]) -> list[Submission]:
    """Queue all of these submissions, or none: DocumentError with SLURM's reason where it refuses one.

    Where SLURM does not answer, they stay written down: whether it has one is found out by its name.
    """
    runs = [RunFolder(workspace.runs / run) for script in made for run in script.submission.runs]
    before = {run.queued_json: _bytes(run.queued_json) for run in runs}
    try:
        return [_submit(workspace, asked, script) for script in made]
    except DocumentError:
        client.cancel(sorted(client.live({script.submission.name for script in made})))
        for script in made:
            shutil.rmtree(script.folder, ignore_errors=True)
        for path, content in before.items():
            _restore(path, content)
        raise


def _submit(workspace: Workspace, asked: ClusterFile, script: PreparedSubmission) -> Submission:
    from submitit import SlurmExecutor  # half a second
    from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

    submission, folder = script.submission, script.folder
    folder.mkdir(parents=True)
    for index, task in enumerate(script.tasks):
        DelayedSubmission(task).dump(_task_file(folder, index))
    write_json(folder / "submission.json", submission)
    for fingerprint in submission.runs:
        run = RunFolder(workspace.runs / fingerprint)
        write_json(run.queued_json, Queued(submission=submission.name, from_step=run.newest_step))
    try:
        with _as_from_a_login_node():
            executor = SlurmExecutor(folder, python=script.python)
            executor.update_parameters(**script.parameters)
            jobs = executor.submit_array(script.tasks)
    except (FailedJobError, FailedSubmissionError) as error:
        raise refusal(asked.path, asked.cluster.slurm, str(error)) from None
    submission = submission.model_copy(update={"job": int(jobs[0].job_id.partition("_")[0])})
    write_json(folder / "submission.json", submission)
    for index in range(len(script.tasks)):  # submitit has named its own copies by the jobs' numbers
        _task_file(folder, index).unlink()
    return submission


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


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content)
