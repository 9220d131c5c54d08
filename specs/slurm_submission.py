"""What was handed to SLURM: one sbatch, one or more runs; and of which of these a run is."""

from typing import Literal

from pydantic import Field

from specs.document.base import Fingerprint, Slug, Spec


class Submission(Spec):
    """`slurm/<name>/submission.json`: one job, or an array of jobs alike. Written before it is queued, and after."""

    kind: Literal["submission"] = "submission"
    """Selects this document."""
    name: Slug
    """Its name in SLURM's queue, and that of its folder."""
    time: float
    """When, in seconds since 1970: crashes before count no more."""
    runs: tuple[Fingerprint, ...]
    """The runs, in the array's order; empty for the job that goes on with a study, and the doctor's."""
    budget: str | None = None
    """That study's budget, from the workspace."""
    job: int | None = None
    """Number that SLURM gave it; null until it has."""
    retries: int = Field(ge=0)
    """Times that a crashed run is started again without having come to another checkpoint."""

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
    """`runs/<fingerprint>/queued.json`: the newest submission that the run is of."""

    kind: Literal["queued"] = "queued"
    """Selects this document."""
    submission: Slug
    """Its name."""
    from_step: int = Field(ge=0)
    """Step of the run's newest checkpoint at the time."""
    cancelled: bool = False
    """Whether `isoplan cancel` has ended its job: accounts say so later, and not at every site."""


class StudyState(Spec):
    """`plans/<name>/study.json`: how far the chain of jobs is that carries out a budget until it is done."""

    kind: Literal["study"] = "study"
    """Selects this document."""
    state: Literal["waiting", "done", "stopped", "cancelled"]
    """Waiting for runs, done with a verdict, stopped by something that a person must look at, or by a person."""
    message: str
    """For which runs, which verdict, or by what."""
    submission: Slug | None = None
    """The job that goes on; null when there is none any more."""
