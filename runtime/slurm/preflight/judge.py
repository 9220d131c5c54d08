"""Whether the nodes of a job are fit to train on; its batch script calls, after the tasks of the preflight have ended,

    python -m runtime.slurm.preflight.judge FOLDER NODES STATE

FOLDER has the tasks' reports (runtime/slurm/preflight/probe.py) and nodes.txt, what `scontrol show node --oneliner`
prints. NODES are the job's, a line each, and STATE is SLURM's state of the job.

Exit status 0: start the ranks; 3: the nodes that are printed failed and are to be excluded, and the job requeued; 4:
stop, for a reason that another start would not change. Whatever fails is recorded as an incident of the run.
FOLDER.json remembers, over the starts of a job, which nodes were excluded and which links were bad.
"""

import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.tail import last_step, truncate_partial_line
from runtime.slurm.client import parse_fields
from runtime.slurm.preflight.report import LinkReport, NodeReport, exclusion, read_reports
from runtime.slurm.site import SlurmSite
from specs.document.files import load
from specs.document.write import append_line, write_text
from specs.humanize import count, duration, gigabytes, several
from specs.preflight import PreflightOrder
from specs.record import Incident, IncidentKind
from specs.slurm_submission import Submission

GO, EXCLUDE, STOP = 0, 3, 4
_MIN_PAIRS = 3
"""Fewer have no meaningful median."""
_FREE_SHARE = 0.9
"""Of a GPU's memory: CUDA's context and the driver keep some of it; another process's model keeps more. And of the
host's, of which its system keeps some."""


@dataclass(frozen=True)
class Failure:
    """Why a node is not fit."""

    node: str
    message: str
    """What was measured, and what it should have been."""


@dataclass(frozen=True)
class Memory:
    """What earlier starts of the job found."""

    excluded: Mapping[str, str] = field(default_factory=dict)
    """Why each node was excluded."""
    bad_pairs: Sequence[tuple[str, str]] = ()
    """Pairs of nodes whose link or clocks failed."""


@dataclass(frozen=True)
class Verdict:
    """What follows the check."""

    failures: tuple[Failure, ...] = ()
    """The nodes to be excluded."""
    problem: str = ""
    """Why the run cannot start whatever the nodes; empty where there is no such reason."""
    warnings: tuple[str, ...] = ()
    """What a reader of the run must know, and starts all the same."""
    bad_pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of nodes whose link or clocks failed in this start."""


@dataclass(frozen=True)
class Reports:
    """The reports of one start, by rank."""

    order: PreflightOrder
    nodes: Sequence[str]
    """The job's nodes, in the order of its ranks."""
    of_nodes: Mapping[int, NodeReport]
    links: Sequence[LinkReport]

    def node(self, rank: int) -> str:
        """The node of a rank."""
        return self.nodes[rank // self.order.tasks_per_node]

    @property
    def complete(self) -> dict[int, NodeReport]:
        """The reports of ranks that measured."""
        return {rank: one for rank, one in self.of_nodes.items() if not one.error}


def judge(reports: Reports, memory: Memory) -> Verdict:
    """Which nodes fail. Where no task has reported, the check itself failed, and nothing is known of the nodes."""
    if not reports.of_nodes:
        return Verdict(warnings=("the preflight could not start; the run starts without it",))
    lost = sorted(set(reports.nodes) & set(memory.excluded))
    if lost:
        return Verdict(
            problem=f"SLURM started the job on {', '.join(lost)} again, which it had been told to exclude"
        )
    failures = list(_missing(reports))
    for check in (_devices, _memory, _temporary_disk):
        failures += _by_node(reports, check)
    folder = _by_node(reports, _disk)
    if folder and {one.node for one in folder} == {reports.node(rank) for rank in reports.complete}:
        return Verdict(problem=f"{folder[0].message}; free disk space")
    failures += folder
    slow, warnings = _slow(reports)
    failures += slow
    failures += _inner_links(reports)
    known = {one.node for one in failures}
    pairs = {pair: message for pair, message in _bad_pairs(reports).items() if known.isdisjoint(pair)}
    failures += _ends_of(pairs, memory.bad_pairs)
    first: dict[str, Failure] = {}
    for one in failures:
        first.setdefault(one.node, one)
    return Verdict(tuple(first.values()), "", warnings, tuple(pairs))


def _missing(reports: Reports) -> Iterator[Failure]:
    for rank in range(len(reports.nodes) * reports.order.tasks_per_node):
        found = reports.of_nodes.get(rank)
        if found is None:
            limit = duration(reports.order.limits.timeout)
            yield Failure(reports.node(rank), f"rank {rank} did not report within {limit}")
        elif found.error:
            yield Failure(reports.node(rank), f"rank {rank}: {found.error}")


def _by_node(reports: Reports, check: Callable[[PreflightOrder, NodeReport], str]) -> list[Failure]:
    found = [(rank, check(reports.order, one)) for rank, one in reports.complete.items()]
    return [Failure(reports.node(rank), message) for rank, message in found if message]


def _devices(order: PreflightOrder, one: NodeReport) -> str:
    kind, needed = ("GPU", order.tasks_per_node) if order.device == "cuda" else ("CPU core", order.threads)
    if order.device == "cuda" and one.bound:
        needed = 1
    return "" if one.devices >= needed else f"has {several(one.devices, kind)}, {needed} needed"


def _memory(order: PreflightOrder, one: NodeReport) -> str:
    device, host = order.device_memory_bytes, order.host_memory_bytes
    if (
        device is not None
        and one.device_free_bytes is not None
        and one.device_free_bytes < _FREE_SHARE * device
    ):
        return (
            f"{gigabytes(one.device_free_bytes)} of a GPU's {gigabytes(device)} are free (another process?)"
        )
    if host is not None and one.host_free_bytes < _FREE_SHARE * host:
        return f"{gigabytes(one.host_free_bytes)} of host memory are available, {gigabytes(host)} requested"
    return ""


def _disk(order: PreflightOrder, one: NodeReport) -> str:
    return _space(order, one.folder_free_bytes, "the run's folder")


def _temporary_disk(order: PreflightOrder, one: NodeReport) -> str:
    return _space(order, one.temporary_free_bytes, one.temporary)


def _space(order: PreflightOrder, free: float, where: str) -> str:
    least = order.limits.disk
    return "" if free >= least else f"{gigabytes(free)} are free in {where}, {gigabytes(least)} needed"


def _slow(reports: Reports) -> tuple[list[Failure], tuple[str, ...]]:
    """Nodes with a device that multiplies slowly, and a warning where none of several reaches the file's figure."""
    order, rates = reports.order, {rank: one.flop_per_s for rank, one in reports.complete.items()}
    if not rates:
        return [], ()
    median = statistics.median(rates.values())
    failed = [
        Failure(reports.node(rank), f"rank {rank} multiplies at {_rate(rate)}, the median is {_rate(median)}")
        for rank, rate in rates.items()
        if rate < order.limits.rate * median
    ]
    promised = order.flop_per_s
    if promised is None:
        return failed, ()
    below = [rank for rank, rate in rates.items() if rate < order.limits.rate_of_file * promised]
    slow = {reports.node(rank) for rank in below}
    if len(reports.nodes) > 1 and slow == {reports.node(rank) for rank in rates}:
        text = (
            f"no node multiplies at {order.limits.rate_of_file:.0%} of the cluster file's {_rate(promised)}"
        )
        return failed, (f"{text}: the median is {_rate(median)}; measure it with isoplan doctor",)
    failed += [
        Failure(
            reports.node(rank),
            f"rank {rank} multiplies at {_rate(rates[rank])}, the cluster file promises {_rate(promised)}",
        )
        for rank in below
    ]
    return failed, ()


def _faults(links: Sequence[LinkReport], least_share: float) -> Iterator[tuple[LinkReport, str]]:
    """The links of one kind that failed, or are slow beside the median of three or more."""
    good = [one for one in links if not one.error]
    compared = len(good) >= _MIN_PAIRS
    rate = statistics.median(one.bytes_per_s for one in good) if compared else 0.0
    message_s = statistics.median(one.message_s for one in good) if compared else 0.0
    for one in links:
        if one.error:
            yield one, one.error
        elif one.bytes_per_s < least_share * rate:
            yield one, f"{gigabytes(one.bytes_per_s)}/s, the median is {gigabytes(rate)}/s"
        elif compared and one.message_s * least_share > message_s:
            text = f"{1 / one.message_s:,.0f} messages a second"
            yield one, f"{text}, the median is {1 / message_s:,.0f}"


def _inner_links(reports: Reports) -> list[Failure]:
    inner = [one for one in reports.links if reports.node(one.rank) == reports.node(one.peer)]
    return [
        Failure(reports.node(one.rank), f"the link of ranks {one.rank} and {one.peer}: {fault}")
        for one, fault in _faults(inner, reports.order.limits.links)
    ]


def _bad_pairs(reports: Reports) -> dict[tuple[str, str], str]:
    """Pairs of nodes with a bad link, or with clocks that differ, and what is wrong."""
    outer = [one for one in reports.links if reports.node(one.rank) != reports.node(one.peer)]
    limits, found = reports.order.limits, dict[tuple[str, str], str]()
    for one, fault in _faults(outer, limits.links):
        pair = (reports.node(one.rank), reports.node(one.peer))
        found.setdefault(
            pair, f"the link of {pair[0]} and {pair[1]} (ranks {one.rank} and {one.peer}): {fault}"
        )
    for one in outer:
        pair = (reports.node(one.rank), reports.node(one.peer))
        if not one.error and abs(one.clock_s) > limits.clock:
            found.setdefault(
                pair, f"the clocks of {pair[0]} and {pair[1]} differ by {duration(abs(one.clock_s))}"
            )
    return found


def _ends_of(pairs: Mapping[tuple[str, str], str], earlier: Sequence[tuple[str, str]]) -> list[Failure]:
    """The fewest nodes that explain all bad pairs: those of the most first, counting the pairs of earlier starts; of
    two equals, which one start cannot tell apart, the later in the job's order."""
    found, left = list[Failure](), dict(pairs)
    while left:
        now = Counter(node for pair in left for node in pair)
        ever = Counter(node for pair in (*left, *earlier) for node in pair)
        order = {
            node: place for place, node in enumerate(dict.fromkeys(node for pair in left for node in pair))
        }
        worst = max(now, key=lambda node: (ever[node], now[node], order[node]))
        message = next(message for pair, message in left.items() if worst in pair)
        found.append(Failure(worst, message))
        left = {pair: message for pair, message in left.items() if worst not in pair}
    return found


def _rate(flop_per_s: float) -> str:
    return f"{count(flop_per_s)}FLOP/s"


def candidates(order: PreflightOrder, partition: str, shown: str) -> list[str]:
    """Names of the partition's nodes that have the devices, up or down, from `scontrol show node --oneliner`."""
    fields = [one for line in shown.splitlines() if (one := parse_fields(line)) and "NodeName" in one]
    nodes = SlurmSite.of({}, [], fields).nodes
    on_gpu = order.gres is not None
    return [
        node.name
        for node in nodes
        if partition in node.partitions
        and (node.count(order.gres or "") >= order.tasks_per_node if on_gpu else node.cpus >= order.threads)
    ]


def main(arguments: Sequence[str]) -> int:
    """Judge the nodes of the job that this process runs in."""
    place, nodes, state = Path(arguments[0]), arguments[1].split(), arguments[2]
    if state != "RUNNING":
        print("SLURM is ending this job", file=sys.stderr)
        return STOP
    submission = load(place.parent / "submission.json", Submission)
    order = submission.preflight
    assert order is not None  # the script that calls this has a preflight
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))
    run = RunFolder(place.parents[2] / "runs" / submission.runs[index])
    notes = place.with_suffix(".json")
    memory = TypeAdapter(Memory).validate_json(notes.read_bytes()) if notes.exists() else Memory()
    verdict = judge(Reports(order, nodes, *read_reports(place)), memory)
    for warning in verdict.warnings:
        _record(run, "failed_preflight", warning)
    if verdict.problem:
        _record(run, "crashed", f"preflight: {verdict.problem}")
        return STOP
    if not verdict.failures:
        return GO
    for one in verdict.failures:
        _record(run, "failed_preflight", exclusion(one.node, job_of(place), one.message))
    excluded = dict(memory.excluded) | {one.node: one.message for one in verdict.failures}
    pairs = [*memory.bad_pairs, *verdict.bad_pairs]
    write_text(notes, json.dumps({"excluded": excluded, "bad_pairs": pairs}))
    partition = os.environ["SLURM_JOB_PARTITION"]
    there = candidates(order, partition, (place / "nodes.txt").read_text())
    left = [node for node in there if node not in excluded]
    if len(left) < order.min_nodes:
        have = f"{several(len(left), 'node')} of {partition} {'is' if len(left) == 1 else 'are'} left"
        names = ", ".join(sorted(excluded))
        _record(
            run,
            "crashed",
            f"preflight: {have} without {names}, {order.min_nodes} needed; repair them, and rerun",
        )
        return STOP
    print(",".join(sorted(one.node for one in verdict.failures)))
    return EXCLUDE


def job_of(place: Path) -> str:
    """The job that a folder of reports is of."""
    return place.name.removeprefix("preflight-")


def _record(run: RunFolder, what: IncidentKind, message: str) -> None:
    truncate_partial_line(run.record_jsonl)
    step = last_step(run.metrics_jsonl)
    append_line(run.record_jsonl, Incident(time=time.time(), step=step, what=what, message=message))
    print(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
