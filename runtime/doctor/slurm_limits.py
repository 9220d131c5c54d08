"""Compares a cluster file with the site's limits: what sbatch would refuse, or leave pending for ever.

Nothing is queried here. Each finding names the site's value, and the line of the cluster file that differs from it.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence

from runtime.doctor.local import Finding
from runtime.slurm.sbatch_script import JobShape
from runtime.slurm.site import Node, Partition, SlurmSite, enforces_memory, kill_wait_s
from runtime.slurm.submit import ClusterFile
from specs.cluster import Cluster
from specs.document.files import locate
from specs.document.parse import nearest
from specs.humanize import duration, gigabytes, several

_UNSET_MEMORY = 2**20
"""A node's memory where the site does not say it (slurm.conf(5), RealMemory)."""


def refused_field(
    cluster_file: ClusterFile, field: str, what: str, write: str, blocking: bool = True
) -> Finding:
    """A finding that points at the line of the cluster file."""
    error = locate(cluster_file.path, field, what, write)
    return Finding(False, f"{error.path}:{error.line}:{error.column}: {error.what}", error.write, blocking)


def limit_findings(cluster_file: ClusterFile, shape: JobShape, site: SlurmSite) -> list[Finding]:
    """The cluster file's requests for jobs of this shape, compared with what the site has."""
    slurm = cluster_file.cluster.slurm
    partition = site.partition(slurm.partition)
    found = list(_partitions(cluster_file, site))
    if partition is not None:
        found += _limits(cluster_file, shape, partition)
        found += _nodes(cluster_file, shape, partition, site)
        found.append(_preempted(partition))
    return [*found, *_settings(cluster_file, site)]


def _partitions(cluster_file: ClusterFile, site: SlurmSite) -> Iterator[Finding]:
    names, slurm = [one.name for one in site.partitions], cluster_file.cluster.slurm
    fields = {"partition": slurm.partition}
    if slurm.planning_partition is not None:
        fields["planning_partition"] = slurm.planning_partition
    for field, name in fields.items():
        there = site.partition(name)
        if there is None:
            what = (
                "the site has no default partition" if name is None else f"the site has no partition {name}"
            )
            meant = nearest(name or "", names)
            write = (
                f"write slurm.{field}: {meant}"
                if meant
                else f"set slurm.{field} to one of {', '.join(names)}"
            )
            yield refused_field(cluster_file, f"slurm.{field}", what, write)
        elif there.state != "UP":
            what = f"the partition {there.name} is {there.state}: it accepts no jobs, or starts none"
            remedy = f"set slurm.{field} to another partition, or ask the cluster's administrators"
            yield refused_field(cluster_file, f"slurm.{field}", what, remedy)


def _limits(cluster_file: ClusterFile, shape: JobShape, partition: Partition) -> Iterator[Finding]:
    slurm = cluster_file.cluster.slurm
    if slurm.time_limit > partition.max_time_s:
        most = duration(partition.max_time_s)
        what = f"jobs request {duration(slurm.time_limit)}, but the partition {partition.name} allows only {most}"
        write = (
            f"write slurm.time_limit: {in_minutes(partition.max_time_s)} or less; runs resume from job to job"
        )
        yield refused_field(cluster_file, "slurm.time_limit", what, write)
    else:
        most = (
            "sets no limit"
            if partition.max_time_s == math.inf
            else f"allows {duration(partition.max_time_s)}"
        )
        message = f"jobs of {duration(slurm.time_limit)}: the partition {partition.name} {most}"
        yield Finding(True, message)
    if shape.nodes > partition.max_nodes:
        most = f"{partition.max_nodes:.0f}"
        what = f"{several(cluster_file.cluster.devices, 'device')} need {several(shape.nodes, 'node')}"
        what += f", but the partition {partition.name} allows only {most} per job"
        yield refused_field(
            cluster_file,
            "devices",
            what,
            f"write devices: {int(partition.max_nodes) * shape.tasks_per_node} or less",
        )


def _nodes(
    cluster_file: ClusterFile, shape: JobShape, partition: Partition, site: SlurmSite
) -> Iterator[Finding]:
    """Whether enough of the partition's nodes have what each must have."""
    nodes = [node for node in site.nodes if partition.name in node.partitions]
    if shape.nodes > len(nodes):
        what = f"{several(cluster_file.cluster.devices, 'device')} need {several(shape.nodes, 'node')} with "
        what += f"{shape.tasks_per_node} each, but the partition {partition.name} has {several(len(nodes), 'node')}"
        yield refused_field(
            cluster_file, "devices", what, f"write devices: {len(nodes) * shape.tasks_per_node} or less"
        )
        return
    enough, insufficient = list(nodes), False
    for field, required, most, fits in _requirements(cluster_file, shape, partition, nodes):
        fitting = [node for node in nodes if fits(node)]
        enough = [node for node in enough if fits(node)]
        if len(fitting) < shape.nodes:
            have = f"{len(fitting)} of the {several(len(nodes), 'node')} of {partition.name} have that"
            what = (
                f"jobs request {required} on each of {several(shape.nodes, 'node')}, but only {have} ({most})"
            )
            yield refused_field(
                cluster_file,
                field,
                what,
                f"change {field} to what the nodes have, or set slurm.partition to another partition",
            )
            insufficient = True
    if insufficient:
        return
    if len(enough) < shape.nodes:
        what = f"{len(enough)} of the {several(len(nodes), 'node')} of {partition.name} have everything requested"
        yield refused_field(
            cluster_file, "devices", f"{what}, and {shape.nodes} are needed", "request less per node"
        )
        return
    up = [node for node in enough if node.accepts_jobs]
    message = (
        f"{len(enough)} of the {several(len(nodes), 'node')} of {partition.name} have everything requested"
    )
    down = ", ".join(node.name for node in enough if not node.accepts_jobs)
    yield Finding(
        len(up) >= shape.nodes,
        f"{message}, {several(shape.nodes, 'node')} needed" + (f"; down or drained: {down}" if down else ""),
        "jobs stay pending until they are up again",
        blocking=False,
    )
    room = sorted(min(node.memory, partition.max_memory) for node in enough)[-shape.nodes]
    yield from _memory(cluster_file, shape, room, enforces_memory(site.settings))


def _requirements(
    cluster_file: ClusterFile, shape: JobShape, partition: Partition, nodes: Sequence[Node]
) -> Iterator[tuple[str, str, str, Callable[[Node], bool]]]:
    """What each node must have: the field, the requirement, what the site has, and whether a node meets it."""
    slurm = cluster_file.cluster.slurm
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
    cpus = (shape.cpus_per_task or 1) * shape.tasks_per_node
    max_cpus = min(partition.max_cpus, max(node.cpus for node in nodes))
    yield (
        _cpus_field(cluster_file, shape),
        several(cpus, "CPU"),
        f"at most {max_cpus:.0f}",
        lambda node: min(node.cpus, partition.max_cpus) >= cpus,
    )
    memory = slurm.memory
    if memory is not None:
        max_memory = min(partition.max_memory, max(node.memory for node in nodes))
        yield (
            "slurm.memory",
            gigabytes(memory),
            f"at most {gigabytes(max_memory)}",
            lambda node: min(node.memory, partition.max_memory) >= memory,
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


def _cpus_field(cluster_file: ClusterFile, shape: JobShape) -> str:
    """The field that the number of requested CPUs comes from."""
    if not shape.on_gpu or shape.cpus_per_task is None:
        return "devices_per_node"
    return "cpus_per_node" if cluster_file.cluster.slurm.cpus_per_device is None else "slurm.cpus_per_device"


def _memory(cluster_file: ClusterFile, shape: JobShape, room: float, enforced: bool) -> Iterator[Finding]:
    """The memory of a job whose cluster file names none; `room` is the most it can have on each node, in bytes."""
    cluster = cluster_file.cluster
    if cluster.slurm.memory is not None:
        return
    known = cluster.memory_per_node
    if known is not None and known > room:
        what = f"plans count on {gigabytes(known)} of a node, but its jobs can have only {gigabytes(room)}"
        yield refused_field(
            cluster_file, "memory_per_node", what, f"write memory_per_node: {_gigabytes_below(room)}"
        )
        return
    counted = 0.0 if shape.on_gpu else cluster.device.memory * shape.tasks_per_node
    message = f"each run requests the memory that its plan needs, and a node gives at most {gigabytes(room)}"
    if counted <= room:
        yield Finding(True, message)
        return
    kills = "this site kills jobs that use more" if enforced else "a plan may need more than that"
    yield refused_field(
        cluster_file,
        "device.memory",
        f"{message}, but {several(shape.tasks_per_node, 'device')} of {gigabytes(cluster.device.memory)} are "
        f"{gigabytes(counted)}; {kills}",
        f"write device.memory: {_gigabytes_below(room / shape.tasks_per_node)}",
        blocking=False,
    )


def with_node_sizes(cluster: Cluster, site: SlurmSite) -> Cluster:
    """The cluster with the CPUs and the memory of its nodes, where it does not say them: those of the smallest node of
    its partition that has its devices."""
    partition, on_gpu = site.partition(cluster.slurm.partition), cluster.device.backend == "cuda"
    if partition is None:
        return cluster
    gres = cluster.slurm.gres or "gpu"
    nodes = [node for node in site.nodes if partition.name in node.partitions]
    nodes = [node for node in nodes if not on_gpu or node.count(gres) >= cluster.devices_per_node]
    found: dict[str, float] = {}
    if nodes and on_gpu and cluster.cpus_per_node is None:
        found["cpus_per_node"] = int(min(partition.max_cpus, *(node.cpus for node in nodes)))
    room = min([partition.max_memory, *(node.memory for node in nodes)])
    if nodes and cluster.memory_per_node is None and room > _UNSET_MEMORY:
        found["memory_per_node"] = room
    return cluster.model_copy(update=found)


def _preempted(partition: Partition) -> Finding:
    """What preemption does to runs."""
    name, grace = partition.name, duration(partition.grace_s)
    mode = partition.preempt.rpartition(",")[2]
    if mode == "OFF":
        return Finding(True, f"jobs of the partition {name} are not preempted (PreemptMode OFF)")
    if mode == "REQUEUE":
        message = f"preempted jobs of the partition {name} have {grace} to save, and are requeued"
        return Finding(True, f"{message} (PreemptMode REQUEUE)")
    message = f"preempted jobs of the partition {name} have {grace} to save (PreemptMode {partition.preempt})"
    remedies = {
        "CANCEL": "rerun the runs of preempted jobs; they resume from the latest checkpoints",
        "SUSPEND": "use another partition: peers of suspended ranks time out",
    }
    remedy = remedies.get(mode, "ask the cluster's administrators what happens to them")
    return Finding(False, message, remedy, blocking=False)


def _settings(cluster_file: ClusterFile, site: SlurmSite) -> Iterator[Finding]:
    most, pilots = int(site.settings.get("MaxArraySize", "1001")), cluster_file.cluster.slurm.pilots_at_once
    yield Finding(
        most > 0,
        f"up to {several(max(1, most), 'pilot')} share an array (MaxArraySize), {pilots} of them running at once",
        "the site allows no job arrays: ask the cluster's administrators",
    )
    requeue = (
        "is allowed" if site.settings.get("JobRequeue") == "1" else "is requested by each job (--requeue)"
    )
    yield Finding(True, f"requeueing a job {requeue} (JobRequeue {site.settings.get('JobRequeue', '?')})")
    wait = duration(kill_wait_s(site.settings))
    yield Finding(True, f"a cancelled job has {wait} to save (KillWait)")


def in_minutes(time_s: float) -> str:
    """A time in a cluster file's notation."""
    return f"{time_s / 60:g} min"


def _gigabytes_below(size: float) -> str:
    """An amount of memory rounded down, in a cluster file's notation."""
    return f"{math.floor(size / 1e7) / 100:g} GB"
