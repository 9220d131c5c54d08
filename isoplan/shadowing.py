"""Whether a file of the user's has the name of one of our packages, and would be imported in its place."""

import importlib.util
import sys
from pathlib import Path

OURS = ("specs", "planner", "model", "runtime")
"""Our packages beside this one; names that a user's own module may well have."""


def shadowing() -> str | None:
    """The file that would be imported in place of one of ours, and what to do, in one line; None where there is none.

    Nothing of it is imported.
    """
    home = Path(__file__).resolve().parents[1]
    for name in OURS:
        found = _file(name)
        if found is not None and found.resolve() != home / name / "__init__.py":
            return (
                f"{found}: this file hides isoplan's own package {name!r}; rename it, or keep it off Python's import "
                "path (unset PYTHONPATH; with python -m isoplan, write python -P -m isoplan)"
            )
    return None


def _file(name: str) -> Path | None:
    """The file that `import name` executes, or executed; None where it is a folder of no package, or nothing."""
    if name in sys.modules:
        file = sys.modules[name].__file__
    else:
        spec = importlib.util.find_spec(name)
        file = None if spec is None else spec.origin
    return None if file is None else Path(file)
