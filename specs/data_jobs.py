"""The SLURM jobs that curate a text and build its corpus: passes over all documents, then the build."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from specs.data import DataSpec
from specs.data_inputs import index_path
from specs.document.base import Slug, Spec


class PassJobs(Spec):
    """A pass of a step over the documents of a source."""

    source: Slug | None
    """The source; null where the text is no mix."""
    step: str
    """The step: its place among the steps of the source, and its name."""
    name: str
    """Which of the step's passes."""
    tasks: int = Field(ge=1)
    """Number of datatrove's tasks."""
    folder: str
    """Where datatrove notes which tasks are done, relative to the workspace."""
    submissions: tuple[Slug, ...]
    """What was queued for it, the newest last."""

    @property
    def title(self) -> str:
        """The pass in words."""
        where = "" if self.source is None else f"{self.source}: "
        return f"{where}step {self.step}, {self.name}"


class DataJobs(Spec):
    """`data/.index/<key>.jobs.json`: jobs that are building a corpus, until it is built."""

    kind: Literal["data_jobs"] = "data_jobs"
    """Selects this document."""
    spec: DataSpec
    """What is built."""
    folder: str
    """Folder that paths in it are relative to, an absolute path."""
    passes: tuple[PassJobs, ...]
    """Passes over the documents, those of a source in order."""
    builds: tuple[Slug, ...]
    """Submissions of the job that builds the corpus from what the passes left, the newest last."""

    @property
    def submissions(self) -> list[str]:
        """All that was queued."""
        return [*(name for one in self.passes for name in one.submissions), *self.builds]


def jobs_path(spec: DataSpec, base: Path, data: Path) -> Path:
    """Where the jobs are noted that build a DataSpec in this folder."""
    return index_path(spec, base, data).with_suffix(".jobs.json")
