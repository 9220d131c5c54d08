"""A site as scontrol shows it: settings, partitions and nodes."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.slurm import client

Fields = Sequence[Mapping[str, str]]
"""The fields of several partitions or nodes, by SLURM's names."""

_UNAVAILABLE = {"DOWN", "DRAIN", "FAIL", "FAILING", "INVALID_REG", "MAINT", "NOT_RESPONDING", "UNKNOWN"}
"""States of nodes that accept no jobs now; a node that is POWERED_DOWN is powered up for a job."""


@dataclass(frozen=True)
class Partition:
    """A partition's limits; infinite where the site sets none."""

    name: str
    default: bool
    """Whether jobs that name no partition go there."""
    state: str
    """UP; in any other state it accepts no jobs or starts none."""
    max_nodes: float
    """Most nodes of one job."""
    max_time_s: float
    """Longest time limit of one job."""
    max_cpus: float
    """Most CPUs of one job on a node."""
    max_memory: float
    """Most bytes of one job on a node."""
    memory_per_cpu: float
    """Bytes that a job gets for each CPU by default; infinite: all of the node's memory."""
    preempt: str
    """What preemption does to its jobs: OFF, REQUEUE, CANCEL, SUSPEND."""
    grace_s: float
    """Time that preempted jobs have to save and exit."""


@dataclass(frozen=True)
class Node:
    """A node's resources."""

    name: str
    partitions: tuple[str, ...]
    accepts_jobs: bool
    """Whether it is up."""
    cpus: int
    memory: float
    """Bytes available to jobs."""
    gres: dict[str, int]
    """Generic resources: `gpu:h100`, or `gpu` where they have no type."""
    features: tuple[str, ...]

    def count(self, gres: str) -> int:
        """Its number of `gpu`s of any type, or of `gpu:<type>`."""
        return sum(
            number for name, number in self.gres.items() if name == gres or name.startswith(f"{gres}:")
        )


@dataclass(frozen=True)
class SlurmSite:
    """A site's settings, partitions and nodes."""

    settings: dict[str, str]
    partitions: tuple[Partition, ...]
    nodes: tuple[Node, ...]

    @staticmethod
    def query() -> "SlurmSite":
        """From SLURM itself; SlurmError where it does not answer."""
        return SlurmSite.of(
            client.settings(), client.scontrol_show("partition"), client.scontrol_show("node")
        )

    @staticmethod
    def of(settings: dict[str, str], partitions: Fields, nodes: Fields) -> "SlurmSite":
        """From scontrol's output."""
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
        max_nodes=_number(fields.get("MaxNodes", "UNLIMITED")),
        max_time_s=seconds_of(fields.get("MaxTime", "UNLIMITED")),
        max_cpus=_number(fields.get("MaxCPUsPerNode", "UNLIMITED")),
        max_memory=_number(fields.get("MaxMemPerNode", "UNLIMITED")) * 2**20,
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
        accepts_jobs=_UNAVAILABLE.isdisjoint(re.findall(r"[A-Z_]+", fields.get("State", ""))),
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
    """Seconds that a cancelled job has to save a checkpoint."""
    return float(settings.get("KillWait", "30").split()[0])


def enforces_memory(settings: Mapping[str, str]) -> bool:
    """Whether the site kills jobs that use more memory than they requested."""
    in_groups = "cgroup" in settings.get("TaskPlugin", "") and settings.get("ConstrainRAMSpace") == "yes"
    return in_groups or "OverMemoryKill" in settings.get("JobAcctGatherParams", "")
