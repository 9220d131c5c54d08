"""What a cluster file asks for, beside what the site has: what sbatch would refuse, or let wait for ever.

Nobody is asked here: each finding says the site's figure, and the line of the cluster file that asks for another.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence

from runtime.doctor.local import Finding
from runtime.slurm.sbatch import JobShape
from runtime.slurm.site import Node, Partition, SlurmSite, holds_to_memory, kill_wait_s
from runtime.slurm.submit import ClusterFile
from specs.document.files import locate
from specs.document.parse import nearest
from specs.humanize import duration, several


def refused(asked: ClusterFile, field: str, what: str, write: str, stops: bool = True) -> Finding:
    """A finding that points at the line of the cluster file."""
    error = locate(asked.path, field, what, write)
    return Finding(False, f"{error.path}:{error.line}:{error.column}: {error.what}", error.write, stops)


def findings(asked: ClusterFile, shape: JobShape, site: SlurmSite) -> list[Finding]:
    """What the cluster file asks for in jobs of this shape, beside what the site has."""
    slurm = asked.cluster.slurm
    partition = site.partition(slurm.partition)
    found = list(_partitions(asked, site))
    if partition is not None:
        found += _limits(asked, shape, partition)
        found += _nodes(asked, shape, partition, site)
        found.append(_preempted(partition))
    return [*found, *_settings(asked, site)]


def _partitions(asked: ClusterFile, site: SlurmSite) -> Iterator[Finding]:
    names, slurm = [one.name for one in site.partitions], asked.cluster.slurm
    fields = {"partition": slurm.partition}
    if slurm.planning_partition is not None:
        fields["planning_partition"] = slurm.planning_partition
    for field, name in fields.items():
        there = site.partition(name)
        if there is None:
            what = (
                "the site has no default partition" if name is None else f"there is no partition {name} here"
            )
            meant = nearest(name or "", names)
            write = f"write {meant}" if meant else f"write one of {', '.join(names)}"
            yield refused(asked, f"slurm.{field}", what, write)
        elif there.state != "UP":
            what = f"the partition {there.name} is {there.state}: it takes no jobs, or starts none"
            yield refused(asked, f"slurm.{field}", what, "name another, or ask the site's people")


def _limits(asked: ClusterFile, shape: JobShape, partition: Partition) -> Iterator[Finding]:
    slurm = asked.cluster.slurm
    if slurm.time_limit > partition.longest_s:
        most = duration(partition.longest_s)
        what = f"jobs may take {duration(slurm.time_limit)}, and the partition {partition.name} allows {most}"
        write = f"write {minutes(partition.longest_s)} or less; runs go on from job to job"
        yield refused(asked, "slurm.time_limit", what, write)
    else:
        most = (
            "sets no limit" if partition.longest_s == math.inf else f"allows {duration(partition.longest_s)}"
        )
        said = f"jobs of {duration(slurm.time_limit)}: the partition {partition.name} {most}"
        yield Finding(True, said)
    if shape.nodes > partition.most_nodes:
        most = f"{partition.most_nodes:.0f}"
        what = f"{several(asked.cluster.devices, 'device')} are {several(shape.nodes, 'node')}"
        what += f", and the partition {partition.name} allows {most} to a job"
        yield refused(
            asked, "devices", what, f"write {int(partition.most_nodes) * shape.tasks_per_node} or less"
        )


def _nodes(asked: ClusterFile, shape: JobShape, partition: Partition, site: SlurmSite) -> Iterator[Finding]:
    """Whether enough of the partition's nodes have what each must have."""
    nodes = [node for node in site.nodes if partition.name in node.partitions]
    if shape.nodes > len(nodes):
        what = f"{several(asked.cluster.devices, 'device')} are {several(shape.nodes, 'node')} of "
        what += f"{shape.tasks_per_node}, and the partition {partition.name} has {len(nodes)}"
        yield refused(asked, "devices", what, f"write {len(nodes) * shape.tasks_per_node} or less")
        return
    enough, lacking = list(nodes), False
    for field, wanted, most, fits in _wants(asked, shape, partition, nodes):
        fitting = [node for node in nodes if fits(node)]
        enough = [node for node in enough if fits(node)]
        if len(fitting) < shape.nodes:
            have = f"{len(fitting)} of the {several(len(nodes), 'node')} of {partition.name} have that"
            what = f"{wanted} on each of {several(shape.nodes, 'node')} are asked for, and {have} ({most})"
            yield refused(asked, field, what, "write what they have, or name another partition")
            lacking = True
    if lacking:
        return
    if len(enough) < shape.nodes:
        what = f"{len(enough)} of the {several(len(nodes), 'node')} of {partition.name} have all that is asked for"
        yield refused(asked, "devices", f"{what}, and {shape.nodes} are needed", "ask for less of each")
        return
    up = [node for node in enough if node.takes_jobs]
    said = f"{len(enough)} of the {several(len(nodes), 'node')} of {partition.name} have what is asked for"
    down = ", ".join(node.name for node in enough if not node.takes_jobs)
    yield Finding(
        len(up) >= shape.nodes,
        f"{said}, {several(shape.nodes, 'node')} needed" + (f"; down or drained: {down}" if down else ""),
        "jobs wait until they are back",
        stops=False,
    )
    room = sorted(min(node.memory, partition.most_memory) for node in enough)[-shape.nodes]
    yield from _memory(asked, shape, partition, room, holds_to_memory(site.settings))


def _wants(
    asked: ClusterFile, shape: JobShape, partition: Partition, nodes: Sequence[Node]
) -> Iterator[tuple[str, str, str, Callable[[Node], bool]]]:
    """What each node must have: the field that says it, in words, what the site has, and whether a node has it."""
    slurm = asked.cluster.slurm
    if shape.on_gpu or slurm.gres:
        gres = slurm.gres or "gpu"
        kinds = sorted({f"{name}:{number}" for node in nodes for name, number in node.gres.items()})
        has = f"they have {', '.join(kinds)}" if kinds else "they have no generic resources"
        yield (
            "slurm.gres" if slurm.gres else "devices_per_node",
            f"{gres}:{shape.tasks_per_node}",
            has,
            lambda node: node.count(gres) >= shape.tasks_per_node,
        )
    each = (slurm.cpus_per_device or 1) if shape.on_gpu else shape.threads
    cpus = each * shape.tasks_per_node
    most_cpus = min(partition.most_cpus, max(node.cpus for node in nodes))
    yield (
        "slurm.cpus_per_device" if shape.on_gpu and slurm.cpus_per_device else "devices_per_node",
        several(cpus, "CPU"),
        f"at most {most_cpus:.0f}",
        lambda node: min(node.cpus, partition.most_cpus) >= cpus,
    )
    memory = slurm.memory
    if memory is not None:
        most_memory = min(partition.most_memory, max(node.memory for node in nodes))
        yield (
            "slurm.memory",
            _size(memory),
            f"at most {_size(most_memory)}",
            lambda node: min(node.memory, partition.most_memory) >= memory,
        )
    feature = slurm.constraint
    if feature is not None and re.fullmatch(r"[\w.-]+", feature):  # sbatch judges expressions of several
        known = sorted({one for node in nodes for one in node.features})
        yield (
            "slurm.constraint",
            f"the feature {feature}",
            f"they have {', '.join(known)}" if known else "they have no features",
            lambda node: feature in node.features,
        )


def _memory(
    asked: ClusterFile, shape: JobShape, partition: Partition, room: float, enforced: bool
) -> Iterator[Finding]:
    """What a job gets that does not say how much memory it needs; `room` is what it may have of each node, in bytes."""
    if asked.cluster.slurm.memory is not None or partition.memory_per_cpu == math.inf:
        return
    each = (asked.cluster.slurm.cpus_per_device or 1) if shape.on_gpu else shape.threads
    given = partition.memory_per_cpu * each * shape.tasks_per_node
    counted = 0.0 if shape.on_gpu else asked.cluster.device.memory * shape.tasks_per_node
    said = f"slurm.memory is not said: the partition {partition.name} gives {_size(given)} of each node"
    if given >= counted > 0:
        yield Finding(True, said)
        return
    if counted:
        said += f", and the plan counts on {_size(counted)}"
        amount = _size_below(min(counted, room))
        write = f"{amount}, which is all that a node gives" if room < counted else amount
    else:
        write = f"what each node's ranks need beside their GPUs, {_size_below(room)} at most"
    said += (
        "; this site kills runs that take more than they are given"
        if enforced
        else "; that matters where runs are killed for taking more, which no setting of this site says"
    )
    yield refused(asked, "slurm", said, f"write slurm.memory: {write}", stops=False)


def _preempted(partition: Partition) -> Finding:
    """What becomes of runs that must give way."""
    name, grace = partition.name, duration(partition.grace_s)
    mode = partition.preempt.rpartition(",")[2]
    if mode == "OFF":
        return Finding(True, f"jobs of the partition {name} give way to none (PreemptMode OFF)")
    if mode == "REQUEUE":
        said = f"jobs of the partition {name} give way, with {grace} to save, and are queued again"
        return Finding(True, f"{said} (PreemptMode REQUEUE)")
    said = f"jobs of the partition {name} give way, with {grace} to save (PreemptMode {partition.preempt})"
    then = {"CANCEL": "run again what was cancelled", "SUSPEND": "peers of suspended ranks time out"}
    return Finding(False, said, then.get(mode, "ask the site's people what becomes of them"), stops=False)


def _settings(asked: ClusterFile, site: SlurmSite) -> Iterator[Finding]:
    most, pilots = int(site.settings.get("MaxArraySize", "1001")), asked.cluster.slurm.pilots_at_once
    yield Finding(
        most > 0,
        f"up to {several(max(1, most), 'pilot')} share an array (MaxArraySize), {pilots} of them at work at once",
        "the site allows no arrays: ask its people for them",
    )
    requeue = (
        "is allowed" if site.settings.get("JobRequeue") == "1" else "is asked for by each job (--requeue)"
    )
    yield Finding(True, f"queuing a job again {requeue} (JobRequeue {site.settings.get('JobRequeue', '?')})")
    wait = duration(kill_wait_s(site.settings))
    yield Finding(True, f"a job that is cancelled has {wait} to save (KillWait)")


def minutes(time_s: float) -> str:
    """A time as a cluster file says it."""
    return f"{time_s / 60:g} min"


def _size(size: float) -> str:
    return f"{size / 1e9:,.3g} GB"


def _size_below(size: float) -> str:
    """An amount that is not more than this one, as a cluster file says it."""
    return f"{math.floor(size / 1e7) / 100:g} GB"
