"""The job states of a workspace's runs and studies: SLURM is queried once for all of them, and nothing is written."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from runtime.run_folder.workspace import Workspace
from runtime.slurm import client
from runtime.slurm.client import EndedJob, LiveJob, SlurmError


@dataclass(frozen=True)
class JobStates:
    """What SLURM reports; empty where nothing was ever queued."""

    jobs: Mapping[str, str] = field(default_factory=dict)
    """Job id of each run's newest job, by fingerprint; the job may have ended."""
    live: Mapping[str, LiveJob] = field(default_factory=dict)
    """Jobs that are pending, running or completing, by fingerprint."""
    ended: Mapping[str, EndedJob] = field(default_factory=dict)
    """How the others ended, as far as SLURM accounting knows; studies' jobs by the names of their submissions."""
    studies: Mapping[str, LiveJob] = field(default_factory=dict)
    """Jobs that continue studies, by the names of their submissions."""
    script_failures: Mapping[str, str] = field(default_factory=dict)
    """What the batch scripts of failed jobs say, by fingerprint."""
    cancelled: Collection[str] = frozenset()
    """Which of them were cancelled: runs by fingerprint, and studies by the names of their submissions."""
    problem: str = ""
    """Why SLURM did not answer; empty where it did, or was not asked."""

    @property
    def reliable(self) -> bool:
        """Whether a job that is not live has ended."""
        return not self.problem


def job_states(workspace: Workspace, runs: Sequence[str], studies: Sequence[str]) -> JobStates:
    """The job states of these unfinished runs, by fingerprint, and of these submissions, which continue studies."""
    from runtime.run_folder.folder import RunFolder
    from runtime.slurm import submit  # takes a second; a workspace without SLURM jobs does without
    from runtime.slurm.job_log import ended_jobs, script_failure

    submitted = {
        run: found
        for run in runs
        if (found := submit.latest_submission(workspace, RunFolder(workspace.runs / run)))
    }
    submissions = {run: submission for run, (submission, _) in submitted.items()}
    of_studies = {name: one for name in studies if (one := submit.submission_of(workspace, name))}
    numbers = submit.job_numbers([*submissions.values(), *of_studies.values()])
    problem = ""
    by_id: dict[str, LiveJob] = {}
    try:
        by_id = client.live_jobs({one.name for one in submissions.values()} | set(studies), numbers)
    except SlurmError as error:
        problem = str(error)
    jobs = {
        run: job
        for run, one in submissions.items()
        if (job := submit.with_job_number(one, by_id).job_of(run))
    }
    live = {run: by_id[job] for run, job in jobs.items() if job in by_id}
    gone = {} if problem else {run: job for run, job in jobs.items() if run not in live}
    live_studies = {one.name: one for one in by_id.values() if one.name in studies}
    if not problem:
        gone |= {
            name: str(one.job)
            for name, one in of_studies.items()
            if one.job is not None and name not in live_studies
        }
    names = {job: submissions[one].name if one in submissions else one for one, job in gone.items()}
    try:
        by_job = ended_jobs({job: submit.submission_folder(workspace, name) for job, name in names.items()})
    except SlurmError:  # no SLURM accounting, or it does not answer now
        by_job = {}
    ended = {one: by_job[job] for one, job in gone.items() if job in by_job}
    cancelled = {one for one, end in ended.items() if end.state.startswith("CANCELLED")}
    cancelled |= {
        run for run in gone if run not in ended and run in submitted and submitted[run][1].cancelled
    }
    failures = {
        run: script_failure(submit.submission_folder(workspace, submissions[run].name), jobs[run], end)
        for run, end in ended.items()
        if run in submissions and end.state == "FAILED"
    }
    return JobStates(jobs, live, ended, live_studies, failures, cancelled, problem)
