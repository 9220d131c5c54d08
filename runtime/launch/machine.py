"""The devices of this machine that runs may occupy."""

import os
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """The devices of a machine."""

    cores: int
    gpus: tuple[str, ...]

    def slots(self, *, on_gpu: bool, limit: int | None) -> list[str]:
        """The devices that runs may occupy, at most `limit` of them."""
        names = list(self.gpus) if on_gpu else [str(core) for core in range(self.cores)]
        return names[:limit]


def this_machine() -> Machine:
    """The CPU cores that this process may use, and the GPUs by the names that CUDA_VISIBLE_DEVICES takes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return Machine(cores, tuple(name for name in visible.split(",") if name.strip() not in ("", "-1")))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Machine(cores, ())
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False).stdout
    return Machine(cores, tuple(str(index) for index in range(listed.count("GPU "))))
