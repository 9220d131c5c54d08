"""How far the jobs of `isoplan data --slurm` are: what datatrove has noted as done, and which jobs SLURM still has."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from runtime.data.build.curation import finished_tasks
from runtime.run_folder.workspace import Workspace
from runtime.slurm import client, submit
from runtime.slurm.client import EndedJob, LiveJob, SlurmError
from runtime.slurm.job_log import ended_jobs, last_error, script_failure
from specs.data import DataSpec
from specs.data_jobs import DataJobs, PassJobs, jobs_path
from specs.document.files import load
from specs.humanize import several
from specs.slurm_submission import Submission

_NEVER = "DependencyNeverSatisfied"
"""SLURM's reason for a job that stays pending since one before it has failed; many sites cancel it."""
_SHOWN_FAILURES = 3
Submissions = Mapping[str, tuple[Submission, Mapping[str, LiveJob]]]
"""Submissions, each with its live jobs, by name."""


@dataclass(frozen=True)
class PassState:
    """How far a pass is."""

    jobs: PassJobs
    """What was queued for it."""
    done: Collection[int]
    """Tasks that are done."""
    live: Mapping[int, LiveJob]
    """The live jobs of tasks, also of those that are done: a job ends some moments later."""

    @property
    def missing(self) -> list[int]:
        """Tasks that are neither done nor in a live job."""
        return [one for one in self.not_done if one not in self.live]

    @property
    def not_done(self) -> list[int]:
        """Tasks that are not done."""
        return [one for one in range(self.jobs.tasks) if one not in self.done]

    @property
    def live_jobs(self) -> list[str]:
        """Its live jobs."""
        return list(dict.fromkeys(one.job for one in self.live.values()))

    @property
    def counts(self) -> dict[str, int]:
        """How many tasks are done, running and pending."""
        live = [one for task, one in self.live.items() if task not in self.done]
        pending = sum(one.pending for one in live)
        return {"done": len(self.done), "running": len(live) - pending, "pending": pending}

    @property
    def message(self) -> str:
        """Its state in words."""
        others = [f"{self.counts[state]} {state}" for state in ("running", "pending") if self.counts[state]]
        arrays = arrays_of(self.live_jobs)
        text = f"{self.jobs.title}: {len(self.done)} of {several(self.jobs.tasks, 'task')} done"
        return ", ".join([text, *others]) + (f" (job {', '.join(arrays)})" if arrays else "")


@dataclass(frozen=True)
class DataState:
    """How far the jobs are that build a corpus."""

    passes: Sequence[PassState]
    """The passes, those of a source in order."""
    build: LiveJob | None
    """The live job that builds the corpus."""
    failures: Sequence[str]
    """Jobs that failed and have no successor: what they were to do, why, and their logs."""
    problem: str = ""
    """Why SLURM did not answer; empty where it did."""

    @property
    def in_progress(self) -> bool:
        """Whether jobs will still do something by themselves; so it is taken to be where SLURM does not answer."""
        if self.problem or (self.build is not None and not self.build.pending):
            return True
        for _, passes in groupby(self.passes, lambda one: one.jobs.source):
            for one in passes:
                if any(not job.held for job in one.live.values()):
                    return True
                if one.not_done:  # what comes after it will not start
                    break
        building = self.build is not None and not self.build.held
        return building and not any(one.not_done for one in self.passes)

    @property
    def _held(self) -> list[str]:
        """Jobs and arrays that are held."""
        live = [job for one in self.passes for job in one.live.values()]
        live += [] if self.build is None else [self.build]
        return arrays_of(job.job for job in live if job.held)

    def message(self, command: str) -> str:
        """The state in one line; `command` queues what is missing."""
        done = sum(not one.not_done for one in self.passes)
        if self.build is not None and not self.build.pending:
            return f"a job builds the corpus from what the steps left (job {self.build.job})"
        parts = [f"{done} of {len(self.passes)} passes of curation done"] if self.passes else []
        if self.problem:
            return "; ".join(["SLURM jobs build the corpus", *parts, self.problem])
        for _, passes in groupby(self.passes, lambda one: one.jobs.source):
            parts += [one.message for one in passes if one.not_done][:1]
        if self.build is not None and all(not one.not_done for one in self.passes):
            parts.append(f"the build of the corpus is pending (job {self.build.job})")
        if held := self._held:
            parts.append(f"check why jobs are held, then: scontrol release {','.join(held)}")
        parts += self.failures[:_SHOWN_FAILURES]
        if len(self.failures) > _SHOWN_FAILURES:
            parts.append(f"{several(len(self.failures) - _SHOWN_FAILURES, 'other job')} failed")
        if not self.in_progress and not held:
            parts.append(f"continue with: {command}")
        return "; ".join(parts)

    def plain(self) -> dict[str, Any]:
        """For programs."""
        passes = [
            {"source": one.jobs.source, "step": one.jobs.step, "pass": one.jobs.name, "tasks": one.jobs.tasks}
            | one.counts
            | {"jobs": one.live_jobs}
            for one in self.passes
        ]
        build = None if self.build is None else {"job": self.build.job, "state": self.build.state.lower()}
        return {"passes": passes, "build": build, "failures": list(self.failures)}


def arrays_of(jobs: Iterable[str]) -> list[str]:
    """The arrays of jobs, each once, and the jobs that are in none."""
    return list(dict.fromkeys(job.partition("_")[0] for job in jobs))


def noted_jobs(workspace: Workspace, spec: DataSpec, base: Path) -> DataJobs | None:
    """The jobs that are noted to build this DataSpec; None where there are none."""
    path = jobs_path(spec, base, workspace.data)
    return load(path, DataJobs) if path.exists() else None


def data_state(workspace: Workspace, jobs: DataJobs) -> DataState:
    """How far these jobs are. SLURM is asked once for all that are live, and once for those that ended too early."""
    try:
        return state_of(workspace, jobs, submit.live_submissions(workspace, jobs.submissions))
    except SlurmError as error:
        passes = [PassState(one, finished_tasks(workspace.path / one.folder), {}) for one in jobs.passes]
        return DataState(passes, None, (), str(error))


def cancel_data(workspace: Workspace, jobs: DataJobs | None) -> list[str] | None:
    """Cancel these jobs and forget them; which of them were live, None where there are none. What they have finished is
    kept."""
    if jobs is None:
        return None
    with submit.submission_lock(workspace):  # nothing is queued meanwhile
        now = noted_jobs(workspace, jobs.spec, Path(jobs.folder)) or jobs
        live = submit.live_submissions(workspace, now.submissions)
        found = [job for _, its in live.values() for job in its]
        client.cancel(found)
        jobs_path(jobs.spec, Path(jobs.folder), workspace.data).unlink(missing_ok=True)
    return found


def state_of(workspace: Workspace, jobs: DataJobs, submissions: Submissions) -> DataState:
    """How far these jobs are, with all their submissions."""
    passes = [_pass_state(workspace, one, submissions) for one in jobs.passes]
    of_build = [job for name in jobs.builds if name in submissions for job in submissions[name][1].values()]
    build = next((job for job in of_build if not never_starts(job)), None)
    failures = [line for one in passes for line in _failures(workspace, one, submissions)]
    if build is None and jobs.builds and jobs.builds[-1] in submissions:
        last = submissions[jobs.builds[-1]][0]
        reasons = _why_failed(workspace, dict.fromkeys(last.jobs, last.name))
        failures += [f"the build: {why}" for why in reasons.values()]
    return DataState(passes, build, failures)


def never_starts(job: LiveJob) -> bool:
    """Whether a job waits for one that has failed."""
    return job.reason == _NEVER


def _pass_state(workspace: Workspace, one: PassJobs, submissions: Submissions) -> PassState:
    done = finished_tasks(workspace.path / one.folder)
    live = {
        task: found[job]
        for submission, found in _of(one, submissions)
        for job, tasks in zip(submission.jobs, submission.tasks, strict=False)
        if job in found and not never_starts(found[job])
        for task in tasks
    }
    return PassState(one, done, live)


def _failures(workspace: Workspace, state: PassState, submissions: Submissions) -> list[str]:
    """Why the last jobs of tasks failed that are neither done nor in a live job."""
    missing = set(state.missing)
    last = {
        task: (job, submission.name)
        for submission, _ in _of(state.jobs, submissions)
        for job, tasks in zip(submission.jobs, submission.tasks, strict=False)
        for task in missing.intersection(tasks)
    }
    return [f"{state.jobs.title}: {why}" for why in _why_failed(workspace, dict(last.values())).values()]


def _of(one: PassJobs, submissions: Submissions) -> list[tuple[Submission, Mapping[str, LiveJob]]]:
    return [submissions[name] for name in one.submissions if name in submissions]


def _why_failed(workspace: Workspace, jobs: Mapping[str, str]) -> dict[str, str]:
    """Why jobs failed, by job, of jobs with their submissions' names: the last line of a log, and its path. Nothing for
    those that never started."""
    folders = {job: submit.submission_folder(workspace, name) for job, name in jobs.items()}
    try:
        ends: Mapping[str, EndedJob] = ended_jobs(folders)
    except SlurmError:  # no SLURM accounting, or it does not answer now
        ends = {}
    found = {}
    for job, folder in folders.items():
        end, printed = ends.get(job), last_error(folder, job)
        if end is not None and end.state == "FAILED":
            found[job] = f"job {job} failed: {script_failure(folder, job, end)}"
        elif printed is not None:
            state = "failed" if end is None else f"ended in state {end.state}"
            found[job] = f"job {job} {state}: {printed}"
        elif end is not None and not end.state.startswith(("CANCELLED", "COMPLETED")):
            found[job] = f"job {job} ended in state {end.state}"
    return found
