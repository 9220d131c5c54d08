"""Find the run that a user names: by its folder, its fingerprint, or the first characters of that."""

from pathlib import Path

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.workspace import Workspace
from specs.document.files import DocumentError

_SHOWN = 4
"""Runs that an error names."""


def find_run(named: Path, workspace: Workspace) -> RunFolder:
    """The run with this path, fingerprint or unique prefix of one; DocumentError where none or several match."""
    for path in (named, workspace.runs / named):
        if (path / "run.json").exists():
            return RunFolder(path if path.name else path.absolute())
    matches = sorted(
        path.parent for path in workspace.runs.glob("*/run.json") if _has_prefix(path.parent, named)
    )
    if not matches:
        raise DocumentError(named, 1, 1, "no run has this path or fingerprint", "name a folder under runs/")
    if len(matches) > 1:
        shown = ", ".join(path.name for path in matches[:_SHOWN]) + (", ..." if len(matches) > _SHOWN else "")
        raise DocumentError(
            named, 1, 1, f"{len(matches)} fingerprints start with this: {shown}", "write more characters"
        )
    return RunFolder(matches[0])


def workspace_of(run: RunFolder, here: Workspace) -> Workspace:
    """The workspace of a run: `here`, unless the run was named by a path into another workspace."""
    return here if run.path.parent == here.runs else Workspace(run.path.absolute().parents[1])


def _has_prefix(folder: Path, named: Path) -> bool:
    return len(named.parts) == 1 and folder.name.startswith(named.name)
