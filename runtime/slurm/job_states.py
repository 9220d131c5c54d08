"""Where SLURM has the runs and studies of a workspace, asked once for all of them, and without writing anything."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from runtime.run_folder.workspace import Workspace
from runtime.slurm import client
from runtime.slurm.client import EndedJob, LiveJob, SlurmError


@dataclass(frozen=True)
class JobStates:
    """What SLURM says; empty where nothing was ever handed to it."""

    jobs: Mapping[str, str] = field(default_factory=dict)
    """The newest job of each run that was queued, by fingerprint; SLURM may be done with it."""
    live: Mapping[str, LiveJob] = field(default_factory=dict)
    """Jobs in SLURM's hands, by fingerprint."""
    ended: Mapping[str, EndedJob] = field(default_factory=dict)
    """How the others ended, as far as SLURM's accounts know; and studies' jobs, by their submissions' names."""
    studies: Mapping[str, LiveJob] = field(default_factory=dict)
    """Jobs that go on with studies, by their submissions' names."""
    cancelled: Collection[str] = frozenset()
    """Which of them somebody has cancelled: runs by fingerprint, and studies by their submissions' names."""
    problem: str = ""
    """Why SLURM could not be asked; empty where it was, or had not to be."""

    @property
    def reliable(self) -> bool:
        """Whether a job that is not live has ended."""
        return not self.problem


def job_states(workspace: Workspace, runs: Sequence[str], studies: Sequence[str]) -> JobStates:
    """Where these unfinished runs are, by fingerprint, and the jobs of these submissions that go on with studies."""
    from runtime.run_folder.folder import RunFolder
    from runtime.slurm import submit  # a second, for who has nothing to do with SLURM

    noted = {
        run: said for run in runs if (said := submit.submitted(workspace, RunFolder(workspace.runs / run)))
    }
    known = {run: said[0] for run, said in noted.items()}
    problem = ""
    here: dict[str, LiveJob] = {}
    try:
        here = client.live({one.name for one in known.values()} | set(studies))
    except SlurmError as error:
        problem = str(error)
    jobs = {run: job for run, one in known.items() if (job := submit.numbered(one, here).job_of(run))}
    live = {run: here[job] for run, job in jobs.items() if job in here}
    gone = {} if problem else {run: job for run, job in jobs.items() if run not in live}
    waiting = {one.name: one for one in here.values() if one.name in studies}
    if not problem:
        for name in set(studies) - set(waiting):
            one = submit.submission_of(workspace, name)
            if one is not None and one.job is not None:
                gone[name] = str(one.job)
    try:
        told = client.ended(gone.values())
    except SlurmError:  # it keeps no accounts, or not now
        told = {}
    ended = {one: told[job] for one, job in gone.items() if job in told}
    cancelled = {one for one, end in ended.items() if end.state.startswith("CANCELLED")}
    cancelled |= {run for run in gone if run not in ended and run in noted and noted[run][1].cancelled}
    return JobStates(jobs, live, ended, waiting, cancelled, problem)
