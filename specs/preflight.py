"""The preflight: what the nodes of a SLURM job are checked for before its ranks start."""

from typing import Literal

from pydantic import Field

from specs.document.base import Spec
from specs.document.quantity import Bytes, Seconds


class Preflight(Spec):
    """Limits of the check before every start of a job. A node that fails is excluded, and the job is requeued."""

    rate: float = Field(default=0.8, ge=0, le=1)
    """Least share of the median rate of a matrix multiplication over the job's devices."""
    rate_of_file: float = Field(default=0.5, ge=0, le=1)
    """Least share of the rate that this file promises; where all of several nodes miss it, the file is wrong."""
    links: float = Field(default=0.5, ge=0, le=1)
    """Least share of the median bandwidth between neighbours, within nodes and between them, and of the median number
    of messages a second. Fewer than three pairs are not compared."""
    disk: Bytes = 1e9
    """Least free disk space, of the run's folder and of the node's folder for temporary files."""
    clock: Seconds = 1.0
    """Most that the clocks of neighbouring nodes may differ by."""
    timeout: Seconds = 60.0
    """Time of the whole check, with the start of Python and torch; a node that has not reported by then fails."""


class PreflightOrder(Spec):
    """What the tasks of the preflight measure, and what is expected of them."""

    limits: Preflight
    """The cluster file's."""
    device: Literal["cpu", "cuda"]
    """Which torch device."""
    min_nodes: int
    """Fewest nodes that the job can start on."""
    tasks_per_node: int
    """Ranks of each node."""
    threads: int
    """CPU threads of each."""
    gres: str | None
    """Generic resource of a device; null on CPUs."""
    flop_per_s: float | None
    """Rate of a large multiplication that the cluster file promises a rank; null where it promises none."""
    device_memory_bytes: float | None
    """Memory that must be free on a device, within a tenth; null on CPUs."""
    host_memory_bytes: float | None
    """Host memory that the job requests on a node; null where none is."""
