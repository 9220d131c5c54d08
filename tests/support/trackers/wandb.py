"""Stands in for wandb offline: a folder with a file for each start of a run. A step that goes back is an error."""

import json
from pathlib import Path
from typing import Any


class Settings(dict[str, Any]):
    """Any settings."""


class Run:
    """A started run."""

    def __init__(self, folder: Path, **head: Any) -> None:
        self.step, self.summary, self._folder = 0, {}, folder
        self._content: dict[str, Any] = {"head": head, "points": []}

    def log(self, values: dict[str, float], step: int) -> None:
        """Buffer the values of a step."""
        assert step >= self.step, "wandb drops it"
        self._content["points"].append([step, values])
        self.step = step + 1

    def finish(self) -> None:
        """Write the file."""
        self._folder.mkdir(parents=True)
        (self._folder / "run.json").write_text(json.dumps(self._content | {"summary": self.summary}))


def init(*, mode: str, dir: str, settings: Settings, **head: Any) -> Run:
    """A run whose file is written when it is finished."""
    assert mode == "offline"
    assert head["resume"] == "allow"
    number = len(list((Path(dir) / "wandb").glob("*")))
    return Run(Path(dir) / "wandb" / f"offline-run-{number}-{head['id']}", **head)
