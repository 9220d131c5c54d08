"""Where a run is executed: host, interpreter, versions, commit, processor and accelerators, for its Start record."""

import os
import platform
import socket
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from specs.record import Environment

_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers")
"""Those whose versions change numbers, or the files that numbers are kept in."""

_GIT_TIMEOUT_S = 10.0
"""A repository on a file system that hangs must not stop a run; git needs about 0.01 s."""


def environment(devices: Sequence[str]) -> Environment:
    """What this process runs on; `devices` names its accelerators."""
    return Environment(
        host=socket.gethostname(),
        python=platform.python_version(),
        packages=versions(),
        commit=commit(Path(__file__)),
        cpu=processor(),
        devices=tuple(devices),
    )


def slurm_job() -> str | None:
    """SLURM's job around this process, how often it was started before, and its nodes; None outside of one."""
    told = os.environ
    if "SLURM_JOB_ID" not in told:
        return None
    name = told["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in told:
        name = f"{told['SLURM_ARRAY_JOB_ID']}_{told['SLURM_ARRAY_TASK_ID']}"
    return f"{name}, restart {told.get('SLURM_RESTART_COUNT', '0')}, on {told.get('SLURM_JOB_NODELIST', '?')}"


def versions() -> dict[str, str]:
    """Versions of the packages that change numbers or files."""
    return {name: version(name) for name in _PACKAGES}


def commit(source: Path) -> str | None:
    """Commit of the checkout that tracks this source file, `+dirty` where tracked files differ; None outside of one."""
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    head = _git(source.parent, "rev-parse", "HEAD")
    changed = _git(source.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+dirty" if head and changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, without its last line end; None where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n")


def processor() -> str:
    """The processor's name as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
