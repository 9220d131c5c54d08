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
    """The runs, in the array's order; empty for the job that continues a study, and for the doctor's."""
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
        """Whether its runs are tasks of an array."""
        return len(self.runs) > 1

    def job_of(self, run: str) -> str | None:
        """SLURM's name for the job of a run: `12`, or `12_3` in an array; null until there is one."""
        if self.job is None:
            return None
        return f"{self.job}_{self.runs.index(run)}" if self.is_array else str(self.job)


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
