"""Submits runs to SLURM through submitit, each at most once, and finds their jobs again.

    slurm/<name>/submission.json      which runs, and SLURM's job id
                 *_submission.sh      the sbatch script
                 *_submitted.pkl      what a task is given: a run folder's path
                 *_log.out, *_log.err what the script and its tasks printed before the ranks' own logs

A submission is written down before it is queued and again afterwards, under a unique name that is also the job's name.
So when this process is killed in between, the job is found by its name. A run with a live job is not queued again.
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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.launch.jobs import RunRequest
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.slurm import client
from runtime.slurm.at_once import share
from runtime.slurm.client import LiveJob
from runtime.slurm.sbatch_errors import refusal
from runtime.slurm.sbatch_script import (
    JobShape,
    dependency,
    job_shape,
    needed_memory,
    parameters,
    preflight_order,
    python,
    study_parameters,
)
from specs.cluster import Cluster
from specs.document.files import DocumentError, catalog_path, from_catalog, is_file, load
from specs.document.write import write_json
from specs.slurm_submission import Queued, Submission

NAME_PREFIX_LENGTH = 50
"""A submission's name begins with so many characters of its budget's name and phase; a Slug has 64."""
_UNSAFE_IN_PATHS = "%\\"
"""Characters that SLURM expands in the names of its logs, however they are quoted."""
DEFAULT_MAX_ARRAY_SIZE = 1001
"""Most jobs of an array, plus one, where no site can be queried (slurm.conf(5), MaxArraySize)."""
JobCall = Callable[[], None]
"""What a job does: submitit pickles this object of a few strings, and calls it on the node."""


@dataclass(frozen=True)
class ClusterFile:
    """A cluster, and the file that describes it."""

    path: Path
    cluster: Cluster


def named_cluster_file(name: str) -> ClusterFile:
    """The cluster file at this path, or of this name in the catalog; DocumentError where there is none."""
    if is_file(name):
        return ClusterFile(Path(name), load(Path(name), Cluster))
    return ClusterFile(catalog_path(Cluster, name), from_catalog(Cluster, name, None))


@dataclass(frozen=True)
class PreparedSubmission:
    """A submission that is ready to be queued: sbatch's input, and what its tasks do."""

    submission: Submission
    """Its submission.json."""
    tasks: tuple[JobCall, ...]
    """What each of its jobs does: a run, the next step of a study, or the doctor's measurement."""
    folder: Path
    """The submission's folder."""
    python: str
    """The command of the Python interpreter, quoted for a shell."""
    parameters: Mapping[str, Any]
    """submitit's parameters, without those of an array."""
    after: tuple[str, ...] = ()
    """What has to end before it starts: job ids, and names of submissions that are queued before it."""
    only_after_success: bool = False
    """Whether these have to succeed, too."""

    @property
    def text(self) -> str:
        """The sbatch script, as submitit will write it."""
        from submitit.slurm.slurm import _make_sbatch_string  # half a second

        command = f"{self.python} -u -m submitit.core._submit {shlex.quote(str(self.folder))}"
        number = len(self.tasks) if len(self.tasks) > 1 else None
        return _make_sbatch_string(command, self.folder, map_count=number, **self.parameters)


def submission_folder(workspace: Workspace, name: str) -> Path:
    """Folder of a submission."""
    return workspace.path.absolute() / "slurm" / name


@contextlib.contextmanager
def submission_lock(workspace: Workspace) -> Iterator[None]:
    """No other process submits jobs from this workspace while the block is open."""
    check_path(workspace)
    (workspace.path / "slurm").mkdir(parents=True, exist_ok=True)
    with (workspace.path / "slurm" / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_path(workspace: Workspace) -> None:
    """RefusedError where the workspace's path would break the names of SLURM's logs."""
    path = str(workspace.path.absolute())
    bad = next((sign for sign in path if sign in _UNSAFE_IN_PATHS or not sign.isprintable()), None)
    if bad is not None:
        shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in path)
        raise RefusedError(
            f"{shown}: SLURM misreads {ascii(bad)[1:-1]} in a path; move to a folder without this character"
        )


def latest_submission(workspace: Workspace, run: RunFolder) -> tuple[Submission, Queued] | None:
    """The newest submission of a run; None where there is none, or it was interrupted before the run was queued."""
    if not run.queued_json.exists():
        return None
    queued = load(run.queued_json, Queued)
    submission = submission_of(workspace, queued.submission)
    return None if submission is None else (submission, queued)


def submission_of(workspace: Workspace, name: str) -> Submission | None:
    """The submission of this name; None where it does not exist, or was refused."""
    path = submission_folder(workspace, name) / "submission.json"
    return load(path, Submission) if path.exists() else None


def live_runs(workspace: Workspace, runs: Sequence[RunFolder]) -> dict[str, LiveJob]:
    """The live jobs of these runs, by fingerprint."""
    known = {run.path.name: found[0] for run in runs if (found := latest_submission(workspace, run))}
    jobs = client.live_jobs({one.name for one in known.values()}, job_numbers(known.values()))
    numbered = {
        name: _record_job_number(workspace, name, jobs) for name in {one.name for one in known.values()}
    }
    where = {run: numbered[one.name].job_of(run) for run, one in known.items()}
    return {run: jobs[job] for run, job in where.items() if job in jobs}


def live_study_job(workspace: Workspace, name: str) -> LiveJob | None:
    """The live job that continues a study, by its submission's name."""
    submission = submission_of(workspace, name)
    jobs = client.live_jobs({name}, job_numbers([submission] if submission else []))
    if jobs:
        _record_job_number(workspace, name, jobs)
    return next(iter(jobs.values()), None)


def live_submissions(
    workspace: Workspace, names: Collection[str]
) -> dict[str, tuple[Submission, dict[str, LiveJob]]]:
    """These submissions as far as they were queued, each with its live jobs, by name."""
    known = {name: one for name in names if (one := submission_of(workspace, name)) is not None}
    jobs = client.live_jobs(known.keys(), job_numbers(known.values()))
    numbered = {name: _record_job_number(workspace, name, jobs) for name in known}
    return {
        name: (one, {job: jobs[job] for job in one.jobs if job in jobs}) for name, one in numbered.items()
    }


def _record_job_number(workspace: Workspace, name: str, jobs: Mapping[str, LiveJob]) -> Submission:
    """A submission with its job id, which is written down now if the submitting process was killed before it could."""
    folder = submission_folder(workspace, name)
    known = load(folder / "submission.json", Submission)
    submission = with_job_number(known, jobs)
    if submission != known:
        for index, job in enumerate(submission.jobs):
            _hand_task_to_job(_task_file(folder, index), folder / f"{job}_submitted.pkl")
        write_json(folder / "submission.json", submission)
    return submission


def job_numbers(submissions: Iterable[Submission]) -> dict[int, str]:
    """The names of submissions by SLURM's number, as far as it is known."""
    return {one.job: one.name for one in submissions if one.job is not None}


def with_job_number(submission: Submission, jobs: Mapping[str, LiveJob]) -> Submission:
    """A submission with its job id, if the job is among these live ones."""
    job = next((job for job, one in jobs.items() if one.name == submission.name), None)
    if submission.job is not None or job is None:
        return submission
    return submission.model_copy(update={"job": int(job.partition("_")[0])})


def _task_file(folder: Path, index: int) -> Path:
    """The pickled task of the job with this index, while it has no job id yet."""
    return folder / f"task-{index}.pkl"


def _hand_task_to_job(task: Path, submitted: Path) -> None:
    """Give a job the task file that it waits a minute for, unless it is there already."""
    if not submitted.exists() and task.exists():
        task.rename(submitted)


def prepare_submissions(
    workspace: Workspace,
    cluster_file: ClusterFile,
    requests: Sequence[RunRequest],
    name: str,
    task: Callable[[str], JobCall],
    live: Collection[str],
) -> list[PreparedSubmission]:
    """Submissions for these runs; runs of one shape share an array, up to the site's limit.

    `task` makes what a job does from its run's folder; `live` are jobs of other runs of the plan.
    """
    site = client.settings()
    return submissions_for(
        workspace,
        cluster_file,
        requests,
        name,
        task,
        array_size(site),
        live,
        shares_memory=shares_memory(site),
    )


def array_size(site: Mapping[str, str]) -> int:
    """Most jobs of an array at a site with these settings."""
    return max(1, int(site["MaxArraySize"]))  # 0 where a site allows none


def shares_memory(site: Mapping[str, str]) -> bool:
    """Whether a site with these settings shares out memory: elsewhere nodes may say none, and a request is refused."""
    return "MEMORY" in site.get("SelectTypeParameters", "").upper()


def submissions_for(
    workspace: Workspace,
    cluster_file: ClusterFile,
    requests: Sequence[RunRequest],
    name: str,
    task: Callable[[str], JobCall],
    max_array: int,
    live: Collection[str] = (),
    *,
    shares_memory: bool = True,
) -> list[PreparedSubmission]:
    """Submissions for these runs, with arrays of at most this many jobs, and never more than `pilots_at_once` at work
    together with the live jobs. Where the site shares out memory, jobs request what their runs need."""
    cluster = cluster_file.cluster
    shapes: dict[JobShape, list[RunRequest]] = {}
    for one in sorted(requests, key=lambda one: -one.planned_s):
        shapes.setdefault(job_shape(one.order, cluster), []).append(one)
    arrays = [
        (
            _with_memory(shape, part) if shares_memory else shape,
            tuple(one.run.fingerprint() for one in part),
        )
        for shape, alike in shapes.items()
        for start in range(0, len(alike), max_array)
        if (part := alike[start : start + max_array])
    ]
    left = cluster.slurm.pilots_at_once - len(live)
    shares = share([len(runs) for _, runs in arrays], left if left > 0 else left + len(live))
    found: list[PreparedSubmission] = []
    for (shape, runs), (at_once, after) in zip(arrays, shares, strict=True):
        checks = None if cluster.preflight is None else preflight_order(cluster, shape)
        submission = new_submission(name, cluster_file).model_copy(update={"runs": runs, "preflight": checks})
        folder = submission_folder(workspace, submission.name)
        values = parameters(cluster.slurm, shape, submission.name, folder, at_once, cluster.preflight)
        tasks = tuple(task(str(workspace.runs.absolute() / run)) for run in runs)
        prepared = prepared_submission(workspace, cluster_file, submission, tasks, values)
        ends = () if after is None else (found[after].submission.name,)
        found.append(replace(prepared, after=ends or (() if left > 0 else tuple(sorted(live)))))
    return found


def _with_memory(shape: JobShape, requests: Sequence[RunRequest]) -> JobShape:
    """The shape with the most memory that one of its runs needs; the default where that of one is not known."""
    needed = [needed_memory(one, shape) for one in requests]
    known = [one for one in needed if one is not None]
    return replace(shape, memory_bytes=max(known) if len(known) == len(needed) else None)


def study_submission(
    workspace: Workspace,
    cluster_file: ClusterFile,
    budget: Path,
    name: str,
    task: Callable[[str, str, str], JobCall],
    after: Sequence[int],
) -> PreparedSubmission:
    """The submission that continues a budget's study once these jobs have ended.

    `task` makes what its job does from the workspace, the budget's path from there and the submission's name.
    """
    submission = new_submission(f"{name}-study", cluster_file).model_copy(update={"budget": str(budget)})
    values = study_parameters(cluster_file.cluster.slurm, submission.name, tuple(after))
    tasks = (task(str(workspace.path.absolute()), str(budget), submission.name),)
    return prepared_submission(workspace, cluster_file, submission, tasks, values)


def trial_submission(workspace: Workspace, cluster_file: ClusterFile, shape: JobShape) -> PreparedSubmission:
    """A submission of this shape without a run, for `sbatch --test-only`."""
    submission = new_submission("doctor", cluster_file)
    values = parameters(
        cluster_file.cluster.slurm, shape, submission.name, submission_folder(workspace, submission.name)
    )
    return prepared_submission(workspace, cluster_file, submission, (), values)


def prepared_submission(
    workspace: Workspace,
    cluster_file: ClusterFile,
    submission: Submission,
    tasks: tuple[JobCall, ...],
    values: dict[str, Any],
) -> PreparedSubmission:
    """A submission that is ready to be queued, with submitit's parameters."""
    folder, command = submission_folder(workspace, submission.name), python(cluster_file.cluster.slurm)
    return PreparedSubmission(submission, tasks, folder, command, values | {"wckey": None})


def new_submission(name: str, cluster_file: ClusterFile) -> Submission:
    """A submission with a unique name."""
    name = f"{name[:NAME_PREFIX_LENGTH]}-{secrets.token_hex(3)}"
    return Submission(name=name, time=time.time(), runs=(), retries=cluster_file.cluster.slurm.retries)


def sbatch_test_only(cluster_file: ClusterFile, submission: PreparedSubmission) -> str:
    """When and where sbatch would start this submission; nothing is queued. DocumentError with the reason of a refusal.

    `sbatch --test-only` also fails while all nodes are down or drained; sbatch itself accepts such a job, so this
    passes.
    """
    with _without_job_environment():
        accepted, output = client.sbatch_test_only(submission.text)
    if not accepted and not re.search("node.* not available", output):
        raise refusal(cluster_file.path, cluster_file.cluster.slurm, output)
    return output.partition(" to start ")[2]


def submit(
    workspace: Workspace, cluster_file: ClusterFile, submissions: Sequence[PreparedSubmission]
) -> list[Submission]:
    """Queue all of these submissions, or none: DocumentError with SLURM's reason where it refuses one.

    Where SLURM does not answer, they stay written down, and jobs that were queued all the same are found by name.
    """
    runs = [RunFolder(workspace.runs / run) for one in submissions for run in one.submission.runs]
    before = {run.queued_json: _bytes(run.queued_json) for run in runs}
    try:
        submitted: dict[str, Submission] = {}
        for one in submissions:
            jobs = [str(submitted[end].job) if end in submitted else end for end in one.after]
            submitted[one.submission.name] = _submit(workspace, cluster_file, one, jobs)
        return list(submitted.values())
    except DocumentError:
        client.cancel(sorted(client.live_jobs({one.submission.name for one in submissions})))
        for one in submissions:
            shutil.rmtree(one.folder, ignore_errors=True)
        for path, content in before.items():
            _restore(path, content)
        raise


def _submit(
    workspace: Workspace, cluster_file: ClusterFile, prepared: PreparedSubmission, after: Sequence[str]
) -> Submission:
    """Call sbatch, through submitit: one job or one array, which starts when these jobs have ended."""
    from submitit import SlurmExecutor  # half a second
    from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

    submission, folder = prepared.submission, prepared.folder
    folder.mkdir(parents=True)
    for index, task in enumerate(prepared.tasks):
        DelayedSubmission(task).dump(_task_file(folder, index))
    write_json(folder / "submission.json", submission)
    for fingerprint in submission.runs:
        run = RunFolder(workspace.runs / fingerprint)
        write_json(run.queued_json, Queued(submission=submission.name, from_step=run.newest_step))
    try:
        with _without_job_environment():
            executor = SlurmExecutor(folder, python=prepared.python)
            executor.update_parameters(**prepared.parameters)
            if after:
                ends = dependency(after, on_success=prepared.only_after_success)
                executor.update_parameters(dependency=ends)
            jobs = executor.submit_array(prepared.tasks)
    except (FailedJobError, FailedSubmissionError) as error:
        raise refusal(cluster_file.path, cluster_file.cluster.slurm, str(error)) from None
    submission = submission.model_copy(update={"job": int(jobs[0].job_id.partition("_")[0])})
    write_json(folder / "submission.json", submission)
    for index in range(len(prepared.tasks)):  # submitit has named its own copies by the job ids
        _task_file(folder, index).unlink()
    return submission


@contextlib.contextmanager
def _without_job_environment() -> Iterator[None]:
    """Without the variables of a job around this process and the shell's for sbatch, which would override the cluster
    file; standard error is dropped."""
    from submitit.helpers import clean_env

    kept = {name: value for name, value in os.environ.items() if name == "SLURM_CONF"}
    with clean_env(), contextlib.redirect_stderr(io.StringIO()):
        os.environ.update(kept)
        yield


def ignored_variables() -> str | None:
    """That the shell's variables for sbatch do not apply, as SBATCH_PARTITION; None where it has none."""
    names = sorted(name for name in os.environ if name.startswith("SBATCH_"))
    return f"{', '.join(names)}: not used, since the cluster file decides" if names else None


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content)
