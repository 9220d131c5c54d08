"""Which run a person means: its folder, its fingerprint, or how that begins."""

from pathlib import Path

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.workspace import Workspace
from specs.document.files import DocumentError

_SHOWN = 4
"""Runs that a refusal names."""


def run_named(named: Path, workspace: Workspace) -> RunFolder:
    """The run of this path, fingerprint or unique beginning of one; DocumentError where it is none, or several."""
    for path in (named, workspace.runs / named):
        if (path / "run.json").exists():
            return RunFolder(path if path.name else path.absolute())
    begin = sorted(path.parent for path in workspace.runs.glob("*/run.json") if _begins(path.parent, named))
    if not begin:
        raise DocumentError(named, 1, 1, "this is no run folder", "name one of runs/")
    if len(begin) > 1:
        shown = ", ".join(path.name for path in begin[:_SHOWN]) + (", ..." if len(begin) > _SHOWN else "")
        raise DocumentError(named, 1, 1, f"{len(begin)} runs begin so: {shown}", "write more of the name")
    return RunFolder(begin[0])


def workspace_of(run: RunFolder, here: Workspace) -> Workspace:
    """The workspace that a run is in: `here`, unless it was named by a path to another."""
    return here if run.path.parent == here.runs else Workspace(run.path.absolute().parents[1])


def _begins(folder: Path, named: Path) -> bool:
    return len(named.parts) == 1 and folder.name.startswith(named.name)
