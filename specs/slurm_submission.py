"""Submissions to SLURM: one sbatch each, with one or more runs; and which submission a run belongs to."""

from typing import Literal

from pydantic import Field

from specs.document.base import Fingerprint, Slug, Spec
from specs.preflight import PreflightOrder


class Submission(Spec):
    """`slurm/<name>/submission.json`: one job, or one job array. Written before it is queued, and after."""

    kind: Literal["submission"] = "submission"
    """Selects this document."""
    name: Slug
    """Its name in SLURM's queue, and that of its folder."""
    time: float
    """Seconds since 1970; crashes before this time do not count as retries."""
    runs: tuple[Fingerprint, ...]
    """The runs, in the array's order; empty for any other job."""
    tasks: tuple[tuple[int, ...], ...] = Field(default=(), exclude_if=lambda tasks: not tasks)
    """Of a pass that curates text: the numbers of datatrove's tasks that each job of the array carries out."""
    budget: str | None = None
    """The study's budget, relative to the workspace; null for any other job."""
    job: int | None = None
    """Number that SLURM gave it; null until it has."""
    retries: int = Field(ge=0)
    """Retries of a crashed run that wrote no new checkpoint since the last start."""
    preflight: PreflightOrder | None = None
    """What its nodes are checked for before every start; null for nothing."""

    @property
    def is_array(self) -> bool:
        """Whether its jobs are those of an array."""
        return max(len(self.runs), len(self.tasks)) > 1

    @property
    def jobs(self) -> tuple[str, ...]:
        """SLURM's names for its jobs: `12`, or `12_0`, `12_1`, ... of an array; none until there is one."""
        if self.job is None:
            return ()
        if not self.is_array:
            return (str(self.job),)
        return tuple(f"{self.job}_{index}" for index in range(max(len(self.runs), len(self.tasks))))

    def job_of(self, run: str) -> str | None:
        """SLURM's name for the job of a run; null until there is one."""
        return None if self.job is None else self.jobs[self.runs.index(run)]


class Queued(Spec):
    """`runs/<fingerprint>/queued.json`: the newest submission of the run."""

    kind: Literal["queued"] = "queued"
    """Selects this document."""
    submission: Slug
    """Its name."""
    from_step: int = Field(ge=0)
    """Step of the run's newest checkpoint at the time."""
    cancelled: bool = False
    """Whether `isoplan cancel` has cancelled its job: SLURM's accounting says so later, and not at every site."""


class StudyState(Spec):
    """`plans/<name>/study.json`: the state of the chain of jobs that runs a budget until it is done."""

    kind: Literal["study"] = "study"
    """Selects this document."""
    state: Literal["waiting", "done", "stopped", "cancelled"]
    """Waiting for runs, done with a verdict, stopped by a problem that a user must fix, or cancelled by a user."""
    message: str
    """Details: the runs that are waited for, the verdict, or the problem."""
    submission: Slug | None = None
    """Submission of the job that continues the study; null where there is none."""
