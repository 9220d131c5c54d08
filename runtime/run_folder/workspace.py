"""The workspace, which is the current folder: where runs, corpora, plans and studies are; and why it is refused."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from specs.document.files import load
from specs.slurm_submission import StudyState


class RefusedError(ValueError):
    """Why this machine or workspace cannot do what was asked, and what to do about it, in one line."""


@dataclass(frozen=True)
class Workspace:
    """The folder that everything is in: the current one."""

    path: Path

    @property
    def runs(self) -> Path:
        """Folder of run folders."""
        return self.path / "runs"

    @property
    def data(self) -> Path:
        """Folder of built corpora."""
        return self.path / "data"

    def plan(self, name: str, phase: str) -> Path:
        """The plan of a budget of this name."""
        return self.path / "plans" / name / f"plan.{phase}.yaml"

    def study(self, name: str) -> Path:
        """Where it is noted how far the chain of jobs of a budget of this name is."""
        return self.path / "plans" / name / "study.json"

    def noted(self, name: str) -> StudyState | None:
        """How far that chain is; None where there never was one."""
        path = self.study(name)
        return load(path, StudyState) if path.exists() else None

    def check_writable(self) -> None:
        """RefusedError where no run folder could be made."""
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.runs):
                pass
        except OSError as error:
            raise RefusedError(
                f"{self.runs}: run folders cannot be made here ({error.strerror}); "
                "change to a folder that you may write to"
            ) from None
