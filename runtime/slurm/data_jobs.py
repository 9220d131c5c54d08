"""`isoplan data --slurm`: an array for each pass of curation, one after the other, and a job that builds the corpus.

A repeated command queues only tasks that are neither done nor in a live job, and again what was queued behind them,
since that would never start. (datatrove's own SLURM executor keeps no job ids, and would queue everything again.)
"""

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from rich.markup import escape

from runtime.data.build.mix import prepare_curations
from runtime.run_folder.workspace import Workspace
from runtime.slurm import client, submit
from runtime.slurm.data_state import DataState, PassState, Submissions, arrays_of, noted_jobs, state_of
from runtime.slurm.data_task import BuildTask, CurateTask
from runtime.slurm.sbatch_script import data_parameters, node_cpus
from runtime.slurm.submit import ClusterFile, JobCall, PreparedSubmission
from runtime.study import Driver
from specs.data import DataSpec
from specs.data_jobs import DataJobs, PassJobs, jobs_path
from specs.document.files import DocumentError
from specs.document.write import write_json
from specs.humanize import several
from specs.sources import Sources, find_sources

_COMPLETING_TIMEOUT_S, _POLL_S = 180.0, 0.5
"""Longer than a job completes at most sites (slurm.conf(5): KillWait 30 s, and UnkillableStepTimeout 60 s)."""


def queue_data(
    driver: Driver, spec: DataSpec, base: Path, cluster_file: ClusterFile, name: str
) -> DataState | Sources:
    """Queue what is neither done nor in a live job of this DataSpec's passes and build; print what failed before.

    `base` is the folder that paths in it are relative to; `name` begins the names of the jobs. CorpusError or
    DocumentError where a text is missing or cannot be curated, or SLURM refuses a job: then nothing is queued.
    """
    workspace = driver.workspace
    with submit.submission_lock(workspace):
        before, submissions = _noted(driver, spec, base)
        if (final := _final(workspace, before, submissions, spec, base)) is not None:
            return final
    passes = _passes(driver, spec, base)  # which hashes the files
    with submit.submission_lock(workspace):
        before, submissions = _noted(driver, spec, base)
        if (final := _final(workspace, before, submissions, spec, base)) is not None:
            return final
        known = {} if before is None else {one.folder: one.submissions for one in before.passes}
        jobs = DataJobs(
            spec=spec,
            folder=os.path.abspath(base),
            passes=tuple(one.model_copy(update={"submissions": known.get(one.folder, ())}) for one in passes),
            builds=() if before is None else before.builds,
        )
        state = state_of(workspace, jobs, submissions)
        for line in state.failures:
            driver.say(escape(line))
        path = jobs_path(spec, base, workspace.data)
        queue = Queue(workspace, cluster_file, f"{name}-data", os.path.relpath(path, workspace.path))
        jobs = queue.fill(jobs, state, max_array=submit.array_size(client.settings()))
        client.cancel(_outdated(submissions, queue.kept))
        if queue.prepared:
            _submit(driver, path, jobs, before, queue)
        return state_of(workspace, jobs, submit.live_submissions(workspace, jobs.submissions))


def _passes(driver: Driver, spec: DataSpec, base: Path) -> list[PassJobs]:
    """The passes of all sources, those of a source in order, with nothing queued for them."""
    curations = prepare_curations(spec, base, driver.workspace.data, driver.console)
    return [
        PassJobs(
            source=source or None,
            step=f"{number} {one.step.step}",
            name=one.name,
            tasks=one.tasks,
            folder=os.path.relpath(one.log, driver.workspace.path),
            submissions=(),
        )
        for source, curation in curations.items()
        for number, step in enumerate(curation.steps(), 1)
        for one in step
    ]


def _noted(driver: Driver, spec: DataSpec, base: Path) -> tuple[DataJobs | None, Submissions]:
    """The jobs that are noted, and their submissions. Jobs that are ending are waited for: only then is it known what
    they have done."""
    jobs = noted_jobs(driver.workspace, spec, base)
    names = [] if jobs is None else jobs.submissions
    until_s, printed = time.monotonic() + _COMPLETING_TIMEOUT_S, False
    while True:
        found = submit.live_submissions(driver.workspace, names)
        ending = [job for _, live in found.values() for job in live.values() if job.state == "COMPLETING"]
        if not ending or time.monotonic() > until_s:
            return jobs, found
        if not printed:
            driver.say(f"waiting for {several(len(ending), 'job')} to complete")
            printed = True
        time.sleep(_POLL_S)


def _final(
    workspace: Workspace, jobs: DataJobs | None, submissions: Submissions, spec: DataSpec, base: Path
) -> DataState | Sources | None:
    """The corpora where they are built, the state of the jobs where they are being built; None where something may be
    due."""
    built = find_sources(spec, base, workspace.data)
    if isinstance(built, Sources):
        return built
    state = None if jobs is None else state_of(workspace, jobs, submissions)
    return state if state is not None and state.build is not None and not state.build.pending else None


@dataclass
class Queue:
    """What is to be queued, and which live jobs stay."""

    workspace: Workspace
    cluster_file: ClusterFile
    name: str
    """How the names of submissions begin."""
    path: str
    """Where the jobs are noted, relative to the workspace."""
    prepared: list[PreparedSubmission] = field(default_factory=list)
    """Submissions, each after those that it waits for."""
    titles: list[str] = field(default_factory=list)
    """What each of them does."""
    kept: set[str] = field(default_factory=set)
    """Live jobs that stay as they are."""

    def fill(self, jobs: DataJobs, state: DataState, max_array: int) -> DataJobs:
        """Prepare what is missing in `state`, in arrays of at most this many jobs; the jobs with what is queued now."""
        passes: list[PassJobs] = []
        ends: list[str] = []
        for _, of_source in groupby(state.passes, lambda one: one.jobs.source):
            some, last = self._source(list(of_source), max_array)
            passes += some
            ends += last
        builds = jobs.builds
        if state.build is not None and not self.prepared:
            self.kept.add(state.build.job)
        else:
            cpus = node_cpus(self.cluster_file.cluster)
            task = BuildTask(self._home, self.path, cpus)
            builds += (self._add("the build of the corpus", [task], [()], cpus, 1.0, ends),)
        return jobs.model_copy(update={"passes": tuple(passes), "builds": builds})

    def _source(self, states: Sequence[PassState], max_array: int) -> tuple[list[PassJobs], list[str]]:
        """Prepare the passes of a source; these, and what its end waits for."""
        passes: list[PassJobs] = []
        after: list[str] = []
        fresh = False
        for state in states:
            one, live = state.jobs, [] if fresh else state.live_jobs
            due = state.not_done if fresh else state.missing
            ends = _ends(one, live)
            if due:
                submission = self._array(one, due, max_array, after)
                one = one.model_copy(update={"submissions": (*one.submissions, submission)})
                ends = [*live, submission]
                fresh = True
            passes.append(one)
            after = ends or after
            self.kept.update(live)
        return passes, after

    def _array(self, one: PassJobs, due: Sequence[int], max_array: int, after: Sequence[str]) -> str:
        """Prepare an array for these tasks of a pass, some for each of its jobs; its name. The only task of a pass has
        the memory of a whole node."""
        jobs = min(len(due), max_array)
        tasks = [tuple(due[index::jobs]) for index in range(jobs)]
        calls = [CurateTask(self._home, self.path, one.folder, some) for some in tasks]
        share = 1.0 if one.tasks == 1 else 1 / node_cpus(self.cluster_file.cluster)
        return self._add(f"{several(len(due), 'task')} of {one.title}", calls, tasks, 1, share, after)

    def _add(
        self,
        title: str,
        calls: Sequence[JobCall],
        tasks: Sequence[tuple[int, ...]],
        cpus: int,
        node_share: float,
        after: Sequence[str],
    ) -> str:
        submission = submit.new_submission(self.name, self.cluster_file).model_copy(
            update={"tasks": tuple(tasks)}
        )
        slurm = self.cluster_file.cluster.slurm
        values = data_parameters(slurm, submission.name, cpus, node_share, len(calls))
        made = submit.prepared_submission(self.workspace, self.cluster_file, submission, tuple(calls), values)
        self.prepared.append(replace(made, after=tuple(after), only_after_success=True))
        self.titles.append(title)
        return submission.name

    @property
    def _home(self) -> str:
        return str(self.workspace.path.absolute())


def _ends(one: PassJobs, live: Sequence[str]) -> list[str]:
    """What to wait for until these live jobs of a pass have ended: its array, where no job of it can have failed."""
    return arrays_of(live) if len(one.submissions) == 1 else list(live)


def _outdated(submissions: Submissions, kept: Collection[str]) -> list[str]:
    """Live jobs that would never start, or work on what has changed."""
    return [job for _, live in submissions.values() for job in live if job not in kept]


def _submit(driver: Driver, path: Path, jobs: DataJobs, before: DataJobs | None, queue: Queue) -> None:
    """Note the jobs, then queue them; where SLURM refuses one, note what was noted before."""
    write_json(path, jobs)
    try:
        submitted = submit.submit(driver.workspace, queue.cluster_file, queue.prepared)
    except DocumentError:
        if before is None:
            path.unlink()
        else:
            write_json(path, before)
        raise
    for title, one in zip(queue.titles, submitted, strict=True):
        driver.say(f"queued {escape(title)} as {escape(one.name)}, job {one.job}")
