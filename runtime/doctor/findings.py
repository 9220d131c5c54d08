"""The reports of the doctor's tasks, combined: findings, and the rates of a device and of each kind of link."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from runtime.doctor.benchmark import DeviceRates, LinkRates
from runtime.doctor.local import MIN_FREE_BYTES, Finding, MeasuredRates, three_digits, with_rates
from runtime.doctor.node_benchmark import NodeRates
from runtime.doctor.node_probe import NameCheck, NodeFacts, Software, read_report, task_log
from runtime.doctor.probe_order import RENDEZVOUS_TIMEOUT_S, ProbeOrder
from runtime.launch.failure import Log
from runtime.launch.jobs import STATE_BYTES
from runtime.slurm.requeue import srun_error_of
from specs.cluster import Cluster
from specs.humanize import count, duration, several

R = TypeVar("R", DeviceRates, LinkRates)

MAX_CLOCK_DIFFERENCE_S = 1.0
"""With a larger difference, the records of a run on several nodes are in the wrong order."""
_MIN_SHM_BYTES = 2**28
"""Containers have 64 MB of /dev/shm by default, too little for NCCL's buffers (its manual, Shared memory)."""
_MAX_OTHER_LOAD = 0.5
"""Load of other processes, in cores, above which measured rates are too low."""
_STRAGGLER_RATE = 0.8
"""A device below this share of the median rate is a straggler; repeated measurements differ by less."""


@dataclass(frozen=True)
class Reports:
    """The tasks' reports, by rank."""

    order: ProbeOrder
    """Their instructions."""
    nodes: Sequence[str]
    """Names of the job's nodes, in the order of its ranks."""
    facts: Mapping[int, NodeFacts]
    names: Mapping[int, NameCheck]
    rates: Mapping[int, NodeRates]
    failures: Mapping[int, str]
    """How the tasks without rates failed, in one line each; the first to fail comes first."""

    @staticmethod
    def read(folder: Path, job: str, order: ProbeOrder, nodes: Sequence[str]) -> "Reports":
        """Read all reports that exist now."""
        ranks = range(order.nodes * order.tasks_per_node)
        facts, names, rates = (
            {
                rank: found
                for rank in ranks
                if (found := read_report(folder, f"{name}-{rank}", kind)) is not None
            }
            for name, kind in (("facts", NodeFacts), ("names", NameCheck), ("rates", NodeRates))
        )
        failed = [rank for rank in ranks if rank not in rates]
        failed.sort(key=lambda rank: _failure_order(folder, job, rank))
        failures = {rank: _failure_text(folder, job, rank) for rank in failed}
        return Reports(order, nodes, facts, names, rates, failures)  # type: ignore[arg-type]

    def node(self, rank: int) -> str:
        """The node that a task ran on, or should have run on."""
        if rank in self.facts:
            return self.facts[rank].node
        place = rank // self.order.tasks_per_node
        return self.nodes[place] if place < len(self.nodes) else "an unknown node"

    def first_of(self, ranks: Sequence[int]) -> dict[str, int]:
        """The first of these tasks on each node, by the node's name."""
        first: dict[str, int] = {}
        for rank in ranks:
            first.setdefault(self.node(rank), rank)
        return first


def _log(folder: Path, job: str, rank: int) -> Log | None:
    """A task's output: its own log, or submitit's."""
    logs = (Log(path, 0) for path in (task_log(folder, rank), folder / f"{job}_{rank}_log.err"))
    return next((log for log in logs if log.path.exists() and log.lines), None)


def _failure_order(folder: Path, job: str, rank: int) -> tuple[bool, float]:
    """Sort key: tasks without an error in their log first, then by their last output (as runtime/launch/failure.py)."""
    log = _log(folder, job, rank)
    return (False, math.inf) if log is None else (log.error is not None, log.path.stat().st_mtime)


def _failure_text(folder: Path, job: str, rank: int) -> str:
    """How a task failed: its own error, srun's message, or its last line."""
    log, script = _log(folder, job, rank), folder / f"{job}_0_log.err"
    if log is not None and log.error is not None:
        return f"error: {log.error} (its log: {log.path})"
    message = srun_error_of(script, rank)
    if message is not None:
        return f"srun: {message}" + ("" if log is None else f" (its log: {log.path})")
    return "no output" if log is None else f"last output: {log.final_line} (its log: {log.path})"


def findings(reports: Reports, here: Software, begun: float, ended: float) -> Iterator[Finding]:
    """What the tasks found; `begun` and `ended` are the caller's clock before and after the job."""
    missing = reports.first_of([rank for rank in reports.failures if rank not in reports.facts])
    for node, rank in missing.items():
        message = f"rank {rank} on {node} did not report; {reports.failures[rank]}"
        yield Finding(False, message, "check that the node has this folder and this Python")
    if reports.facts:
        yield from _software(reports, here)
        yield from _nodes(reports, begun, ended)
        yield from _names(reports)
    unconnected = reports.first_of([rank for rank in reports.failures if rank in reports.facts])
    for node, rank in unconnected.items():
        message = f"rank {rank} on {node} failed in the rendezvous (timeout {RENDEZVOUS_TIMEOUT_S:.0f} s) or benchmark"
        remedy = (
            "on nodes with several networks, set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME in slurm.prologue"
        )
        yield Finding(False, f"{message}; {reports.failures[rank]}", remedy)
    if len(reports.rates) > 1 and not reports.failures:
        yield Finding(
            True, f"{len(reports.rates)} tasks on {several(len(reports.nodes), 'node')} can communicate"
        )
        yield from _clocks(reports)
        yield from _stragglers(reports)


def _facts_by_node(reports: Reports) -> dict[str, NodeFacts]:
    return {one.node: one for one in reports.facts.values()}


def _busy_nodes(reports: Reports) -> list[str]:
    """Nodes whose CPUs other processes used during the measurement."""
    on_cpu = reports.order.device == "cpu"
    return [
        node for node, facts in _facts_by_node(reports).items() if on_cpu and facts.load > _MAX_OTHER_LOAD
    ]


def _software(reports: Reports, here: Software) -> Iterator[Finding]:
    other = False
    for node, facts in _facts_by_node(reports).items():
        there = facts.software
        differ = [f"Python {there.python}, here {here.python}"] if there.python != here.python else []
        differ += [
            f"{name} {there.packages.get(name, 'is not installed')}, here {version}"
            for name, version in here.packages.items()
            if there.packages.get(name) != version
        ]
        if there.commit is not None and here.commit is not None and there.commit != here.commit:
            differ.append(f"commit {_short(there.commit)}, here {_short(here.commit)}")
        if differ:
            other = True
            yield Finding(False, f"{node} has {'; '.join(differ)}", "install the same versions on all nodes")
    if not other:
        yield Finding(
            True, f"the nodes have the same Python {here.python} and torch {here.packages['torch']}"
        )


def _short(commit: str) -> str:
    """The first digits of a commit, and whether files differ from it."""
    head, mark, dirty = commit.partition("+")
    return head[:12] + mark + dirty


def _nodes(reports: Reports, begun: float, ended: float) -> Iterator[Finding]:
    nodes = _facts_by_node(reports)
    for node, facts in nodes.items():
        if facts.token != reports.order.token:
            yield Finding(
                False, f"{node} has another folder at this path", "work in a folder that all nodes share"
            )
        if not facts.data:
            yield Finding(False, f"{node} cannot read {reports.order.data}", "make it readable on this node")
        if facts.shm_bytes < _MIN_SHM_BYTES:
            message = f"/dev/shm of {node} has {facts.shm_bytes / 2**20:.0f} MiB"
            remedy = f"give the container at least {_MIN_SHM_BYTES / 2**20:.0f} MiB"
            yield Finding(False, message, remedy, blocking=reports.order.device == "cuda")
        late = max(begun - facts.time, facts.time - ended)
        if late > MAX_CLOCK_DIFFERENCE_S:
            message = f"the clock of {node} differs by at least {duration(late)} from the one here"
            yield Finding(False, message, "ask the cluster's administrators to set it", blocking=False)
    without = [node for node, facts in nodes.items() if not facts.sbatch]
    if without:
        message = f"there is no sbatch on {', '.join(without)}, so studies cannot continue automatically (--until-done)"
        yield Finding(False, message, "install it on the nodes, or in the container", blocking=False)
    busy = _busy_nodes(reports)
    if busy:
        cores = max(nodes[node].load for node in busy)
        message = (
            f"other processes used {cores:.1f} cores of {', '.join(busy)}: the measured rates may be too low"
        )
        yield Finding(False, message, "write slurm.exclusive: true and rerun", blocking=False)
    free = min(facts.free_bytes for facts in nodes.values())
    shm = min(facts.shm_bytes for facts in nodes.values())
    message = f"{', '.join(nodes)}: the folder is shared, {free / 2**30:.1f} GiB of disk space are free, /dev/shm has "
    data = "" if reports.order.data is None else f", {reports.order.data} is readable"
    if all(facts.token == reports.order.token and facts.data for facts in nodes.values()):
        enough = free > MIN_FREE_BYTES
        yield Finding(enough, f"{message}{shm / 2**30:.1f} GiB{data}", "free disk space for checkpoints")


def _names(reports: Reports) -> Iterator[Finding]:
    wrong: dict[str, list[str]] = {}
    for one in reports.names.values():
        for name, why in one.wrong.items():
            wrong.setdefault(f"the name {name} {why}", []).append(one.node)
    for message, where in wrong.items():
        remedy = "ask the cluster's administrators to add the name to the DNS, or to /etc/hosts of every node"
        yield Finding(False, f"on {', '.join(where)} {message}", remedy)
    if reports.names and not wrong:
        yield Finding(True, f"the names {', '.join(reports.nodes)} resolve to nodes that answer")


def _clocks(reports: Reports) -> Iterator[Finding]:
    clocks = [one.clock_s for one in reports.rates.values()]
    apart = max(clocks) - min(clocks)
    message = f"the nodes' clocks differ by {apart * 1e3:.1f} ms at a barrier"
    remedy = "ask the cluster's administrators to set them"
    yield Finding(apart < MAX_CLOCK_DIFFERENCE_S, message, remedy, blocking=False)


def _stragglers(reports: Reports) -> Iterator[Finding]:
    """Ranks whose device is slow beside the median, in the doctor's measurement."""
    if _busy_nodes(reports):
        return
    rates = {rank: one.device.bf16_flop_per_s for rank, one in reports.rates.items()}
    median = statistics.median(rates.values())
    for rank, rate in rates.items():
        if rate < _STRAGGLER_RATE * median:
            message = f"straggler: rank {rank} on {reports.node(rank)} reaches {rate / median:.0%} of the median rate"
            yield Finding(False, message, "exclude that node, since every step waits for it", blocking=False)


def measured_rates(reports: Reports) -> MeasuredRates | None:
    """Medians over the tasks, which measured at the same time; None where a task failed."""
    if reports.failures:
        return None
    rates = list(reports.rates.values())
    return MeasuredRates(
        device=_median([one.device for one in rates]),
        intra_node=_median_link([one.intra_node for one in rates]),
        inter_node=_median_link([one.inter_node for one in rates]),
        write_bytes_per_s=min(one.write_bytes_per_s for one in rates) * len(rates),
        nodes=tuple(_facts_by_node(reports)),
    )


def measured_cluster(base: Cluster, rates: MeasuredRates) -> Cluster:
    """The base cluster with these rates; its numbers of devices and nodes stay as they are."""
    found = with_rates(base, rates.device, ", ".join(rates.nodes))
    share = 1.0 if base.efficiency is None else base.efficiency.links
    links = {
        name: three_digits(promised * share if link is None else link.gather_bytes_per_s)
        for name, promised, link in (
            ("intra_node", base.intra_node, rates.intra_node),
            ("inter_node", base.inter_node, rates.inter_node),
        )
    }
    found = found.model_copy(update=links)
    slowest = rates.inter_node or rates.intra_node
    if found.efficiency is None or slowest is None:
        return found
    reached = {"links": 1.0, "message": three_digits(slowest.message_s)}
    return found.model_copy(update={"efficiency": found.efficiency.model_copy(update=reached)})


def time_to_save(rates: MeasuredRates, kill_wait_s: float, warning_s: float) -> Finding:
    """How large a model can be to be saved in the time between a signal and the kill."""
    assert rates.write_bytes_per_s is not None  # every task has measured it
    cancelled, warned = (
        count(rates.write_bytes_per_s * seconds / STATE_BYTES) for seconds in (kill_wait_s, warning_s)
    )
    rate = f"{', '.join(rates.nodes)} write {rates.write_bytes_per_s / 1e9:.2f} GB/s"
    limits = f"{cancelled} parameters after a cancel ({kill_wait_s:g} s, KillWait), and {warned} before the time limit"
    return Finding(True, f"{rate}, enough to save models of up to {limits} ({warning_s:g} s)")


def _median(rates: Sequence[R]) -> R:
    """The median of every float field, and the first one's other fields."""
    first = rates[0]
    found: dict[str, Any] = {
        field.name: statistics.median(getattr(one, field.name) for one in rates)
        for field in fields(first)
        if isinstance(getattr(first, field.name), float)
    }
    return replace(first, **found)


def _median_link(rates: Sequence[LinkRates | None]) -> LinkRates | None:
    measured = [one for one in rates if one is not None]
    return _median(measured) if measured else None
