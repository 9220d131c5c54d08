"""What the doctor's tasks reported, put together: findings, and the figures of a device and of each kind of link."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from runtime.doctor.benchmark import DeviceRates, LinkRates
from runtime.doctor.local import LEAST_FREE_BYTES, Finding, short, with_rates
from runtime.doctor.node_benchmark import MEET_S, NodeRates, ProbeOrder
from runtime.doctor.node_probe import Facts, Names, Software, log_of, read
from runtime.launch.failure import Log
from runtime.launch.jobs import STATE_BYTES
from runtime.slurm.requeue import fate
from specs.cluster import Cluster
from specs.humanize import count, duration

R = TypeVar("R", DeviceRates, LinkRates)

CLOCKS_S = 1.0
"""Clocks that differ by more put a run's records, which are of several nodes, in the wrong order."""
_LEAST_SHM_BYTES = 2**28
"""What containers leave of /dev/shm by default is 64 MB, too little for NCCL's buffers (its manual, Shared memory)."""
_BUSY = 0.5
"""Cores' worth of other work that makes figures too low."""
_SLOW = 0.8
"""Share of the others' rate below which a device holds all back; beyond what measurements differ by."""


@dataclass(frozen=True)
class Reports:
    """Everything that the tasks wrote down, by rank."""

    order: ProbeOrder
    """What they were told."""
    nodes: Sequence[str]
    """Names of the job's nodes, in the order of its ranks."""
    facts: Mapping[int, Facts]
    names: Mapping[int, Names]
    rates: Mapping[int, NodeRates]
    printed: Mapping[int, str]
    """The line that tells most, of those who came to no rates; who fell silent first comes first."""

    @staticmethod
    def read(folder: Path, job: str, order: ProbeOrder, nodes: Sequence[str]) -> "Reports":
        """What is there now."""
        ranks = range(order.nodes * order.tasks_per_node)
        facts, names, rates = (
            {rank: found for rank in ranks if (found := read(folder, f"{name}-{rank}", kind)) is not None}
            for name, kind in (("facts", Facts), ("names", Names), ("rates", NodeRates))
        )
        fallen = sorted((rank for rank in ranks if rank not in rates), key=lambda r: _silence(folder, job, r))
        printed = {rank: _printed(folder, job, rank) for rank in fallen}
        return Reports(order, nodes, facts, names, rates, printed)  # type: ignore[arg-type]

    def node(self, rank: int) -> str:
        """Where a task was, or should have been."""
        if rank in self.facts:
            return self.facts[rank].node
        place = rank // self.order.tasks_per_node
        return self.nodes[place] if place < len(self.nodes) else "a node that SLURM does not name"

    def first_of(self, ranks: Sequence[int]) -> dict[str, int]:
        """The nodes of these tasks, and the first task of each."""
        first: dict[str, int] = {}
        for rank in ranks:
            first.setdefault(self.node(rank), rank)
        return first


def _log(folder: Path, job: str, rank: int) -> Log | None:
    """What a task printed: its own log, or submitit's of it."""
    logs = (Log(path, 0) for path in (log_of(folder, rank), folder / f"{job}_{rank}_log.err"))
    return next((log for log in logs if log.path.exists() and log.lines), None)


def _silence(folder: Path, job: str, rank: int) -> tuple[bool, float]:
    """Whether a task could say what happened, and when it fell silent: as runtime/launch/failure.py orders who is to
    blame."""
    log = _log(folder, job, rank)
    return (False, math.inf) if log is None else (log.error is not None, log.path.stat().st_mtime)


def _printed(folder: Path, job: str, rank: int) -> str:
    """How a task ended: its own error, or what srun says of it, or its last words."""
    log, script = _log(folder, job, rank), folder / f"{job}_0_log.err"
    if log is not None and log.error is not None:
        return f"it printed: {log.error} (its log: {log.path})"
    said = fate(script, rank)
    if said is not None:
        return f"srun says: {said}" + ("" if log is None else f" (its log: {log.path})")
    return "it printed nothing" if log is None else f"it printed: {log.last_words} (its log: {log.path})"


def findings(reports: Reports, here: Software, begun: float, ended: float) -> Iterator[Finding]:
    """What the tasks saw; `begun` and `ended` are the caller's clock before and after."""
    silent = reports.first_of([rank for rank in reports.printed if rank not in reports.facts])
    for node, rank in silent.items():
        said = f"rank {rank} on {node} did not report; {reports.printed[rank]}"
        yield Finding(False, said, "see whether the node has this folder and this Python")
    if reports.facts:
        yield from _software(reports, here)
        yield from _nodes(reports, begun, ended)
        yield from _names(reports)
    alone = reports.first_of([rank for rank in reports.printed if rank in reports.facts])
    for node, rank in alone.items():
        said = f"rank {rank} on {node} did not find its peers within {MEET_S:.0f} s, or not measure with them"
        remedy = (
            "see what it says; nodes with several networks may need GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME"
        )
        yield Finding(False, f"{said}; {reports.printed[rank]}", f"{remedy} in slurm.prologue")
    if len(reports.rates) > 1 and not reports.printed:
        yield Finding(True, f"{len(reports.rates)} tasks found each other and talked")
        yield from _clocks(reports)
        yield from _slow(reports)


def _by_node(reports: Reports) -> dict[str, Facts]:
    return {one.node: one for one in reports.facts.values()}


def _busy(reports: Reports) -> list[str]:
    """Nodes whose cores had other work to do when theirs were to be measured."""
    on_cpu = reports.order.device == "cpu"
    return [node for node, facts in _by_node(reports).items() if on_cpu and facts.load > _BUSY]


def _software(reports: Reports, here: Software) -> Iterator[Finding]:
    other = False
    for node, facts in _by_node(reports).items():
        there = facts.software
        differ = [f"Python {there.python}, here {here.python}"] if there.python != here.python else []
        differ += [
            f"{name} {there.packages.get(name, 'is absent')}, here {wanted}"
            for name, wanted in here.packages.items()
            if there.packages.get(name) != wanted
        ]
        if there.commit is not None and here.commit is not None and there.commit != here.commit:
            differ.append(f"sources of {there.commit[:12]}, here {here.commit[:12]}")
        if differ:
            other = True
            yield Finding(False, f"{node} runs {'; '.join(differ)}", "install the same on all nodes")
    if not other:
        yield Finding(True, f"the nodes run the same: Python {here.python}, torch {here.packages['torch']}")


def _nodes(reports: Reports, begun: float, ended: float) -> Iterator[Finding]:
    nodes = _by_node(reports)
    for node, facts in nodes.items():
        if facts.token != reports.order.token:
            yield Finding(
                False, f"{node} reads another folder at this path", "work in a folder that all share"
            )
        if not facts.data:
            yield Finding(False, f"{node} cannot read {reports.order.data}", "make it readable there")
        if facts.shm_bytes < _LEAST_SHM_BYTES:
            said = f"/dev/shm of {node} has {facts.shm_bytes / 2**20:.0f} MiB"
            yield Finding(False, said, "give the container more", stops=reports.order.device == "cuda")
        late = max(begun - facts.time, facts.time - ended)
        if late > CLOCKS_S:
            said = f"the clock of {node} is at least {duration(late)} from the one here"
            yield Finding(False, said, "have the site's people set it", stops=False)
    without = [node for node, facts in nodes.items() if not facts.sbatch]
    if without:
        said = f"there is no sbatch on {', '.join(without)}, so no study goes on by itself (--until-done)"
        yield Finding(False, said, "have it there, or in the container", stops=False)
    busy = _busy(reports)
    if busy:
        cores = max(nodes[node].load for node in busy)
        said = f"other work was at {cores:.1f} cores of {', '.join(busy)}: the figures may be too low"
        yield Finding(False, said, "measure again with exclusive: true in slurm", stops=False)
    free = min(facts.free_bytes for facts in nodes.values())
    shm = min(facts.shm_bytes for facts in nodes.values())
    said = f"{', '.join(nodes)}: the folder is shared, {free / 2**30:.1f} GiB are free, /dev/shm has "
    data = "" if reports.order.data is None else f", {reports.order.data} can be read"
    if all(facts.token == reports.order.token and facts.data for facts in nodes.values()):
        enough = free > LEAST_FREE_BYTES
        yield Finding(enough, f"{said}{shm / 2**30:.1f} GiB{data}", "make room for checkpoints")


def _names(reports: Reports) -> Iterator[Finding]:
    wrong: dict[str, list[str]] = {}
    for one in reports.names.values():
        for name, why in one.wrong.items():
            wrong.setdefault(f"the name {name} {why}", []).append(one.node)
    for said, where in wrong.items():
        remedy = "have the site's people put the name into its DNS, or /etc/hosts of every node"
        yield Finding(False, f"on {', '.join(where)} {said}", remedy)
    if reports.names and not wrong:
        yield Finding(True, f"the names of {', '.join(reports.nodes)} lead to nodes that answer")


def _clocks(reports: Reports) -> Iterator[Finding]:
    clocks = [one.clock_s for one in reports.rates.values()]
    apart = max(clocks) - min(clocks)
    said = f"the tasks' clocks are {apart * 1e3:.1f} ms apart at a barrier"
    yield Finding(apart < CLOCKS_S, said, "have the site's people set them", stops=False)


def _slow(reports: Reports) -> Iterator[Finding]:
    if _busy(reports):
        return
    rates = {rank: one.device.bf16_flop_per_s for rank, one in reports.rates.items()}
    usual = statistics.median(rates.values())
    for rank, rate in rates.items():
        if rate < _SLOW * usual:
            said = (
                f"the device of rank {rank} on {reports.node(rank)} reaches {rate / usual:.0%} of the others'"
            )
            yield Finding(False, said, "every step waits for it: leave that node out", stops=False)


@dataclass(frozen=True)
class Figures:
    """What a cluster file promises, as the tasks measured it all at once: medians over them."""

    device: DeviceRates
    within: LinkRates | None
    """To a node's others; None where nodes have one device."""
    between: LinkRates | None
    """To other nodes; None where one was measured."""
    write_bytes_per_s: float
    """Of all tasks together, into the workspace."""
    nodes: tuple[str, ...]
    """Where."""

    @staticmethod
    def of(reports: Reports) -> "Figures | None":
        """The figures; None where not every task measured."""
        if reports.printed:
            return None
        rates = list(reports.rates.values())
        return Figures(
            device=_median([one.device for one in rates]),
            within=_median_link([one.within for one in rates]),
            between=_median_link([one.between for one in rates]),
            write_bytes_per_s=min(one.write_bytes_per_s for one in rates) * len(rates),
            nodes=tuple(_by_node(reports)),
        )

    def cluster(self, base: Cluster) -> Cluster:
        """The base cluster with these; its devices and nodes stay as many as they are."""
        found = with_rates(base, self.device, ", ".join(self.nodes))
        share = 1.0 if base.efficiency is None else base.efficiency.links
        links = {
            name: short(promised * share if link is None else link.gather_bytes_per_s)
            for name, promised, link in (
                ("intra_node", base.intra_node, self.within),
                ("inter_node", base.inter_node, self.between),
            )
        }
        found = found.model_copy(update=links)
        slowest = self.between or self.within
        if found.efficiency is None or slowest is None:
            return found
        reached = {"links": 1.0, "message": short(slowest.message_s)}
        return found.model_copy(update={"efficiency": found.efficiency.model_copy(update=reached)})

    def saving(self, kill_wait_s: float, warning_s: float) -> Finding:
        """How large a run may be to be saved in the time that it has."""
        most, warned = (count(self.write_bytes_per_s * s / STATE_BYTES) for s in (kill_wait_s, warning_s))
        rate = f"{self.write_bytes_per_s / 1e9:.2f} GB/s are written from {', '.join(self.nodes)}"
        said = f"{rate}: a cancelled run of up to {most}"
        rest = f"parameters is saved in {kill_wait_s:g} s (KillWait), a warned one of up to {warned} in {warning_s:g} s"
        return Finding(True, f"{said} {rest}")


def _median(several: Sequence[R]) -> R:
    """Every figure's median, and of what is no figure the first."""
    first = several[0]
    found: dict[str, Any] = {
        field.name: statistics.median(getattr(one, field.name) for one in several)
        for field in fields(first)
        if isinstance(getattr(first, field.name), float)
    }
    return replace(first, **found)


def _median_link(several: Sequence[LinkRates | None]) -> LinkRates | None:
    measured = [one for one in several if one is not None]
    return _median(measured) if measured else None
