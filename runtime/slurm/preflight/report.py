"""What a task of the preflight reports: files that it writes, and the batch script's judge reads. No torch here."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from specs.document.write import write_text
from specs.record import Incident, RecordLine


@dataclass(frozen=True)
class NodeReport:
    """What a rank finds on its node."""

    devices: int
    """GPUs that it sees, or CPU cores that it may use."""
    bound: bool
    """Whether SLURM has bound it to a GPU of its own, so that it sees one."""
    device_free_bytes: float | None
    """Free memory of its GPU; None on a CPU."""
    host_free_bytes: float
    """Host memory that is available."""
    folder_free_bytes: float
    """Free disk space of the run's folder."""
    temporary: str
    """The node's folder for temporary files."""
    temporary_free_bytes: float
    """Free disk space there."""
    flop_per_s: float
    """Rate of a matrix multiplication."""
    error: str = ""
    """Why the rest could not be measured; empty where it could."""


@dataclass(frozen=True)
class LinkReport:
    """The link of two neighbours, as the first of them measured it."""

    rank: int
    peer: int
    bytes_per_s: float
    """What each receives in an all-gather."""
    message_s: float
    """Time of an all-reduce of one number."""
    clock_s: float
    """The peer's clock minus this rank's."""
    error: str = ""
    """Why it could not be measured; empty where it could."""


def write_report(folder: Path, name: str, report: NodeReport | LinkReport) -> None:
    """Write a report, atomically."""
    write_text(folder / f"{name}.json", json.dumps(asdict(report)))


def read_reports(folder: Path) -> tuple[dict[int, NodeReport], list[LinkReport]]:
    """The reports of nodes by rank, and those of links."""
    nodes, links = TypeAdapter(NodeReport), TypeAdapter(LinkReport)
    of_nodes = {
        int(path.stem[5:]): nodes.validate_json(path.read_bytes()) for path in folder.glob("node-*.json")
    }
    of_links = [links.validate_json(path.read_bytes()) for path in sorted(folder.glob("link-*.json"))]
    return dict(sorted(of_nodes.items())), of_links


def exclusion(node: str, job: str, message: str) -> str:
    """The incident of a node that failed."""
    return f"{node} is excluded from job {job}: {message}"


def exclusions(records: Sequence[RecordLine], job: str) -> tuple[str, ...]:
    """The incidents of the nodes that are excluded from a run's job."""
    return tuple(
        line.message
        for line in records
        if isinstance(line, Incident)
        and line.what == "failed_preflight"
        and f" is excluded from job {job}: " in line.message
    )
