"""The workspace: the folder with runs, corpora, plans and studies; and the error of a refused command."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from specs.document.files import load
from specs.exit_codes import InputError
from specs.slurm_submission import StudyState


class RefusedError(InputError):
    """Why this machine or workspace cannot carry out a command, and what to do about it, in one line."""


@dataclass(frozen=True)
class Workspace:
    """The folder with all runs, corpora and plans: the current one."""

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
        """The file with the state of this budget's study."""
        return self.path / "plans" / name / "study.json"

    def study_state(self, name: str) -> StudyState | None:
        """The state of this budget's study; None where none was started."""
        path = self.study(name)
        return load(path, StudyState) if path.exists() else None

    def check_writable(self) -> None:
        """RefusedError where no run folder can be created."""
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.runs):
                pass
        except OSError as error:
            raise RefusedError(
                f"{self.runs}: run folders cannot be created here ({error.strerror}); "
                "change to a folder that you can write to"
            ) from None
