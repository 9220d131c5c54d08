"""What a site has, as scontrol shows it: its settings, partitions and nodes."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.slurm import client

Fields = Sequence[Mapping[str, str]]
"""Figures by SLURM's names for them, of several things."""

_GONE = {"DOWN", "DRAIN", "FAIL", "FAILING", "INVALID_REG", "MAINT", "NOT_RESPONDING", "UNKNOWN"}
"""Words in the states of nodes that take no jobs now; one that is POWERED_DOWN is switched on for a job."""


@dataclass(frozen=True)
class Partition:
    """A partition's limits; infinite where the site sets none."""

    name: str
    default: bool
    """Whether it is that of jobs which name none."""
    state: str
    """UP, or else it takes no jobs or starts none."""
    most_nodes: float
    """Nodes that one job may have."""
    longest_s: float
    """Time that one job may take."""
    most_cpus: float
    """CPUs of a node that one job may have."""
    most_memory: float
    """Bytes of a node that one job may have."""
    memory_per_cpu: float
    """Bytes that a job gets for each CPU where it says nothing; infinite: all of the node."""
    preempt: str
    """What becomes of jobs that give way: OFF, REQUEUE, CANCEL, SUSPEND."""
    grace_s: float
    """Time that they have to leave."""


@dataclass(frozen=True)
class Node:
    """What a node has."""

    name: str
    partitions: tuple[str, ...]
    takes_jobs: bool
    """Whether it is up."""
    cpus: int
    memory: float
    """Bytes that jobs may have."""
    gres: dict[str, int]
    """Generic resources: `gpu:h100`, or `gpu` where they have no type."""
    features: tuple[str, ...]

    def count(self, gres: str) -> int:
        """How many it has of `gpu`, whatever their type, or of `gpu:<type>`."""
        return sum(
            number for name, number in self.gres.items() if name == gres or name.startswith(f"{gres}:")
        )


@dataclass(frozen=True)
class SlurmSite:
    """What scontrol shows of a site."""

    settings: dict[str, str]
    partitions: tuple[Partition, ...]
    nodes: tuple[Node, ...]

    @staticmethod
    def asked() -> "SlurmSite":
        """Ask SLURM."""
        return SlurmSite.of(client.settings(), client.shown("partition"), client.shown("node"))

    @staticmethod
    def of(settings: dict[str, str], partitions: Fields, nodes: Fields) -> "SlurmSite":
        """From what scontrol shows."""
        return SlurmSite(settings, tuple(map(_partition, partitions)), tuple(map(_node, nodes)))

    def partition(self, name: str | None) -> Partition | None:
        """The partition of this name, or the default one; None where there is none."""
        return next(
            (one for one in self.partitions if one.name == name or (name is None and one.default)), None
        )


def _partition(fields: Mapping[str, str]) -> Partition:
    return Partition(
        name=fields["PartitionName"],
        default=fields.get("Default") == "YES",
        state=fields.get("State", "UP"),
        most_nodes=_number(fields.get("MaxNodes", "UNLIMITED")),
        longest_s=seconds_of(fields.get("MaxTime", "UNLIMITED")),
        most_cpus=_number(fields.get("MaxCPUsPerNode", "UNLIMITED")),
        most_memory=_number(fields.get("MaxMemPerNode", "UNLIMITED")) * 2**20,
        memory_per_cpu=_number(fields.get("DefMemPerCPU", "UNLIMITED")) * 2**20,
        preempt=fields.get("PreemptMode", "OFF"),
        grace_s=float(fields.get("GraceTime", 0)),
    )


def _node(fields: Mapping[str, str]) -> Node:
    gres: dict[str, int] = {}
    for entry in re.findall(r"[^,(]+(?:\([^)]*\))?", fields.get("Gres", "")):
        name, _, number = entry.partition("(")[0].rpartition(":")
        if number.isdigit():
            gres[name] = gres.get(name, 0) + int(number)
    features = fields.get("AvailableFeatures", "(null)")
    return Node(
        name=fields["NodeName"],
        partitions=tuple(fields.get("Partitions", "").split(",")),
        takes_jobs=_GONE.isdisjoint(re.findall(r"[A-Z_]+", fields.get("State", ""))),
        cpus=int(fields.get("CPUEfctv", fields.get("CPUTot", 0))),
        memory=(int(fields.get("RealMemory", 0)) - int(fields.get("MemSpecLimit", 0))) * 2.0**20,
        gres=gres,
        features=() if features == "(null)" else tuple(features.split(",")),
    )


def seconds_of(time: str) -> float:
    """Seconds of SLURM's `1-00:00:00` or `10:00`; infinite where it sets no limit."""
    if not re.fullmatch(r"[\d:-]+", time):
        return math.inf
    days, _, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, seconds = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def _number(text: str) -> float:
    return float(text) if text.isdigit() else math.inf


def kill_wait_s(settings: Mapping[str, str]) -> float:
    """Time that a cancelled job has to save."""
    return float(settings.get("KillWait", "30").split()[0])


def holds_to_memory(settings: Mapping[str, str]) -> bool:
    """Whether the site's settings say that jobs are killed which take more memory than they have asked for."""
    in_groups = "cgroup" in settings.get("TaskPlugin", "") and settings.get("ConstrainRAMSpace") == "yes"
    return in_groups or "OverMemoryKill" in settings.get("JobAcctGatherParams", "")
