"""The environment variables of a rank on a GPU, which torch, NCCL and CUDA read when they are loaded or initialized.

A run's ranks set them before torch is imported, and the doctor's before they measure. A variable that the user has set
keeps its value; a line in the rank's log says so, and what a run had is in its record.
"""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from specs.layout import Layout

_BLACKWELL = (10, 0)
"""Compute capability from which on communication overlaps without a single hardware queue (Megatron-LM asserts
CUDA_DEVICE_MAX_CONNECTIONS=1 for tensor parallelism before it)."""
_RECORDED_EVENTS = "2000"
"""Events that the flight recorder keeps (torch's own default): some steps of a rank."""
_SMI_TIMEOUT_S = 60.0
"""nvidia-smi takes up to seconds where the driver is not kept loaded; one that hangs must not keep a run from starting.
"""
_ALIASES = {"PYTORCH_ALLOC_CONF": "PYTORCH_CUDA_ALLOC_CONF"}
"""A variable, and its older name, which torch reads too."""


def rank_variables(layout: Layout, folder: Path, cache: Path, before_blackwell: bool) -> dict[str, str]:
    """What a rank of a run on GPUs sets; `cache` is a folder of this node's own."""
    variables = {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # else cuBLAS may choose by what is free (its manual, 2.1.4)
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # blocks of many sizes leave no holes
        "TRITON_CACHE_DIR": str(cache / "triton"),  # ranks race in one on NFS (triton issue 11512)
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }
    if layout.devices == 1:
        return variables
    return (
        variables
        | communication_variables(layout.tp, before_blackwell)
        | {
            "TORCH_FR_BUFFER_SIZE": _RECORDED_EVENTS,
            "TORCH_FR_DUMP_TEMP_FILE": str(
                folder / "log" / "flight-recorder-rank-"
            ),  # torch appends the rank
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        }
    )


def communication_variables(tp: int, before_blackwell: bool) -> dict[str, str]:
    """How NCCL communicates: the same bits every time, and beside multiplications instead of after them."""
    variables = {
        "NCCL_ALGO": "Ring",  # sums in the order of the ring; Tree and NVLS need not (Megatron-LM, deterministic mode)
        "TORCH_NCCL_HIGH_PRIORITY": "1",  # else a multiplication that has all SMs makes a transfer wait for its end
    }
    if tp > 1 and before_blackwell:  # else a multiplication may start before the transfer that it should hide
        variables["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    return variables


def set_variables(variables: Mapping[str, str], environment: MutableMapping[str, str]) -> list[str]:
    """Set what the user has not set; a line for each variable with another value."""
    kept = []
    for name, value in variables.items():
        theirs = next((one for one in (name, _ALIASES.get(name, name)) if one in environment), None)
        if theirs is None:
            environment[name] = value
        elif environment[theirs] != value:
            kept.append(f"{theirs} is {environment[theirs]}, as set by you; isoplan would set {name}={value}")
    return kept


def prepare_gpu_rank(layout: Layout, folder: Path) -> None:
    """Set this rank's variables, before torch is imported."""
    cache = node_cache(folder.name, Path(tempfile.gettempdir()))
    variables = rank_variables(layout, folder, cache, layout.tp > 1 and is_before_blackwell())
    for line in set_variables(variables, os.environ):
        print(line, flush=True)


def gpu_index(local_rank: int, visible: int) -> int:
    """The GPU of a rank among those that it sees: a site may show all of a node's to each rank, or each its own."""
    return local_rank % visible


def node_cache(run: str, temporary: Path) -> Path:
    """A folder of this node and this run for compiled kernels, which nobody else may write: what is in it is executed.

    Ranks and later starts of the run share it; where another user has taken its name, a new one is made.
    """
    path = temporary / f"isoplan-{os.getuid()}" / run
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        status = path.parent.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            path.mkdir(exist_ok=True)
            return path
    except FileExistsError:  # a file, or a link that leads nowhere
        pass
    return Path(tempfile.mkdtemp(prefix="isoplan-", dir=temporary))


def is_before_blackwell() -> bool:
    """Whether this node has a GPU before Blackwell, by nvidia-smi: torch would initialize CUDA to say so."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    query = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        listed = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=_SMI_TIMEOUT_S
        ).stdout
        capabilities = [tuple(map(int, line.split("."))) for line in listed.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
    return min(capabilities, default=_BLACKWELL) < _BLACKWELL
