"""What the doctor tells the tasks of its job. No torch: a node without a working one reports before it is loaded."""

from dataclasses import dataclass

RENDEZVOUS_TIMEOUT_S = 60.0
"""For peers to report, and then to rendezvous."""


@dataclass(frozen=True)
class ProbeOrder:
    """The instructions for the doctor's tasks."""

    token: str
    """Repeated in each report, which proves that the task sees the caller's folder."""
    device: str
    """`cpu` or `cuda`."""
    nodes: int
    """Nodes of the job."""
    tasks_per_node: int
    """Tasks on each."""
    data: str | None
    """The data folder, which must be readable; None where it does not exist yet."""
