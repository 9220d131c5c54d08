"""The environment of a run, for its Start record: host, Python, package versions, commit, processor, accelerators."""

import os
import platform
import socket
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from specs.record import Environment

_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers")
"""Packages whose version can change the numbers, or the files that hold them."""

_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_NCCL_HIGH_PRIORITY",
)
"""Environment variables that change a GPU's numbers or speed (runtime/train/environment.py sets most of them)."""

_GIT_TIMEOUT_S = 10.0
"""A hanging file system must not keep a run from starting; git needs about 0.01 s."""


def environment(devices: Sequence[str]) -> Environment:
    """The environment of this process; `devices` are the names of its accelerators."""
    return Environment(
        host=socket.gethostname(),
        python=platform.python_version(),
        packages=versions(),
        commit=commit(Path(__file__)),
        cpu=processor(),
        devices=tuple(devices),
        variables={name: os.environ[name] for name in _VARIABLES if devices and name in os.environ},
    )


def slurm_job() -> str | None:
    """The SLURM job of this process, its restart count and its nodes; None outside of SLURM."""
    env = os.environ
    if "SLURM_JOB_ID" not in env:
        return None
    name = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:
        name = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return f"{name}, restart {env.get('SLURM_RESTART_COUNT', '0')}, on {env.get('SLURM_JOB_NODELIST', '?')}"


def versions() -> dict[str, str]:
    """Versions of these packages."""
    return {name: version(name) for name in _PACKAGES}


def commit(source: Path) -> str | None:
    """Commit of the checkout that tracks this source file, `+dirty` where tracked files differ; None outside of one."""
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    head = _git(source.parent, "rev-parse", "HEAD")
    changed = _git(source.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+dirty" if head and changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    """Git's output without the final newline; None where git fails or is not installed."""
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
