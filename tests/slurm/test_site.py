"""What a cluster file asks for beside what scontrol shows: lines of SLURM 22.05, and no SLURM needed."""

import math
from io import StringIO
from pathlib import Path

import pytest
import typer
from rich.console import Console

from runtime.commands.tools import doctor_command
from runtime.doctor import cluster
from runtime.doctor.cluster import examine
from runtime.doctor.local import Finding
from runtime.doctor.slurm_limits import limit_findings, with_node_sizes
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.slurm.client import parse_fields
from runtime.slurm.sbatch_script import full_shape
from runtime.slurm.site import SlurmSite, seconds_of
from runtime.slurm.submit import ClusterFile
from specs.cluster import Cluster
from specs.document.files import DocumentError, load

PARTITION = (
    "PartitionName=short AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A "
    "DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=2 MaxTime=1-00:10:00 "
    "MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=node[1-4] PriorityJobFactor=1 PriorityTier=10 RootOnly=NO "
    "ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF State=UP TotalCPUs=16 TotalNodes=4 "
    "SelectTypeParameters=NONE JobDefaults=(null) DefMemPerCPU=100 MaxMemPerNode=UNLIMITED "
    "TRES=cpu=16,mem=16000M,node=4,billing=16,gres/gpu=8"
)
NODE = (
    "NodeName=node1 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 CPUEfctv=4 CPUTot=4 CPULoad=4.13 "
    "AvailableFeatures=a100,ib ActiveFeatures=a100,ib Gres=gpu:2 NodeAddr=127.0.1.1 NodeHostName=node1 Port=10130 "
    "Version=22.05.8 OS=Linux 6.18.44-fc-v669 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=4000 AllocMem=0 FreeMem=20683 "
    "Sockets=4 Boards=1 State=IDLE ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=short,low  "
    "BootTime=2026-11-28T06:59:58 SlurmdStartTime=2026-11-28T10:48:31 CfgTRES=cpu=4,mem=4000M,billing=4,gres/gpu=2 "
    "AllocTRES= CapWatts=n/a Reason=Not responding [slurm@2026-11-28T10:48:31]"
)
SETTINGS = {"MaxArraySize": "8", "JobRequeue": "1", "KillWait": "5 sec"}

CLUSTER = """\
kind: cluster
name: ours
source: a test
device:
  {name: core, backend: cpu, peak_bf16: 1 TFLOP/s, peak_fp32: 1 TFLOP/s, memory: 1 GB, memory_bandwidth: 9 GB/s}
devices: 4
devices_per_node: 2
intra_node: 1 GB/s
inter_node: 1 GB/s
model_flop_utilisation: 0.4
model_flop_utilisation_source: a test
checkpoint_interval: 10 s
slurm:
  memory: 2 GB
"""


def site(partition: str = PARTITION, *nodes: str, **settings: str) -> SlurmSite:
    lines = nodes or [NODE.replace("node1", f"node{place}") for place in range(1, 5)]
    return SlurmSite.of(
        SETTINGS | settings, [parse_fields(partition)], [parse_fields(line) for line in lines]
    )


def asked(folder: Path, text: str) -> ClusterFile:
    path = folder / "ours.yaml"
    path.write_text(text)
    return ClusterFile(path, load(path, Cluster))


def found(folder: Path, text: str, there: SlurmSite) -> list[Finding]:
    one = asked(folder, text)
    return limit_findings(one, full_shape(one.cluster.devices, 1, False, one.cluster), there)


def wrong(folder: Path, text: str, there: SlurmSite) -> list[str]:
    return [f"{one.message}; {one.remedy}" for one in found(folder, text, there) if not one.ok]


def test_times_of_slurm_are_read() -> None:
    assert [seconds_of(text) for text in ("10:00", "01:00:00", "1-00:10:00", "2-01")] == [
        600.0,
        3600.0,
        87000.0,
        172801.0,
    ]
    assert seconds_of("UNLIMITED") == seconds_of("") == math.inf


def test_nodes_are_read() -> None:
    gpus = NODE.replace("Gres=gpu:2", "Gres=gpu:h100:8(S:0-1),gpu:a100:2(S:0,1),nvme:1").replace(
        "IDLE", "IDLE+DRAIN"
    )
    [node] = site(PARTITION, gpus).nodes
    assert node.gres == {"gpu:h100": 8, "gpu:a100": 2, "nvme": 1}
    assert [node.count(name) for name in ("gpu", "gpu:h100", "gpu:b200", "nvme")] == [10, 8, 0, 1]
    assert (node.cpus, node.memory, node.features, node.partitions) == (
        4,
        4000 * 2**20,
        ("a100", "ib"),
        ("short", "low"),
    )
    assert not node.accepts_jobs
    asleep, lost = site(
        PARTITION, *(NODE.replace("IDLE", state) for state in ("IDLE+POWERED_DOWN", "DOWN*"))
    ).nodes
    assert (asleep.accepts_jobs, lost.accepts_jobs) == (True, False)


def test_a_site_that_has_it_all_has_nothing_wrong(tmp_path: Path) -> None:
    assert wrong(tmp_path, CLUSTER, site()) == []


@pytest.mark.parametrize(
    ("was", "becomes", "line", "says"),
    [
        (
            "memory: 2 GB",
            "partition: shrt",
            14,
            "the site has no partition shrt; write slurm.partition: short",
        ),
        (
            "memory: 2 GB",
            "planning_partition: cpu",
            14,
            "the site has no partition cpu; set slurm.planning_partition to one of short",
        ),
        (
            "memory: 2 GB",
            "time_limit: 25 h",
            14,
            "but the partition short allows only 1 d 0 h; write slurm.time_limit: 1450 min or less",
        ),
        (
            "memory: 2 GB",
            "memory: 9 GB",
            14,
            "but only 0 of the 4 nodes of short have that (at most 4.19 GB)",
        ),
        ("memory: 2 GB", "constraint: h100", 14, "jobs request the feature h100 on each of 2 nodes"),
        ("memory: 2 GB", "gres: gpu:h100", 14, "0 of the 4 nodes of short have that (they have gpu:2)"),
        (
            "devices: 4",
            "devices: 6",
            6,
            "6 devices need 3 nodes, but the partition short allows only 2 per job; write devices: 4",
        ),
        ("devices: 4\ndevices_per_node: 2", "devices: 8\ndevices_per_node: 8", 7, "8 CPUs on each of 1 node"),
    ],
)
def test_what_the_site_has_not_is_named_with_its_line(
    tmp_path: Path, was: str, becomes: str, line: int, says: str
) -> None:
    text = CLUSTER.replace(was, becomes).replace(
        "devices: 4", "devices: 8" if "8" in becomes else "devices: 4"
    )
    said = wrong(tmp_path, text, site())
    assert any(one.startswith(f"{tmp_path}/ours.yaml:{line}:") and says in one for one in said), said


def test_more_nodes_than_there_are(tmp_path: Path) -> None:
    few = site(PARTITION.replace("MaxNodes=2", "MaxNodes=UNLIMITED"), NODE)
    [said] = wrong(tmp_path, CLUSTER, few)
    assert (
        "4 devices need 2 nodes with 2 each, but the partition short has 1 node; write devices: 2 or less"
        in said
    )


def test_nodes_that_are_down_are_no_refusal(tmp_path: Path) -> None:
    down = [NODE.replace("node1", f"node{place}").replace("State=IDLE", "State=DOWN*") for place in (1, 2)]
    [one] = [one for one in found(tmp_path, CLUSTER, site(PARTITION, *down)) if not one.ok]
    assert one.message.endswith("down or drained: node1, node2")
    assert not one.fatal


SILENT = CLUSTER.replace("memory: 2 GB", "retries: 3")
"""It leaves the memory to the plan."""


def test_memory_that_plans_count_on_is_compared_with_what_nodes_give(tmp_path: Path) -> None:
    assert wrong(tmp_path, SILENT, site()) == []
    larger = SILENT.replace("memory: 1 GB", "memory: 4 GB")
    [one] = [one for one in found(tmp_path, larger, site()) if not one.ok]
    assert "a node gives at most 4.19 GB, but 2 devices of 4 GB are 8 GB" in one.message
    assert one.remedy == "write device.memory: 2.09 GB"
    assert not one.fatal
    assert wrong(tmp_path, CLUSTER.replace("memory: 2 GB", "memory: 4.19 GB"), site()) == []
    uneven = [NODE.replace("RealMemory=4000", f"RealMemory={size}") for size in (4000, 9000, 2500, 9000)]
    assert wrong(tmp_path, larger, site(PARTITION, *uneven)) == []
    [said] = wrong(tmp_path, SILENT.replace("slurm:", "memory_per_node: 9 GB\nslurm:"), site())
    assert "plans count on 9 GB of a node, but its jobs can have only 4.19 GB; write memory_per_node" in said


def test_the_doctor_writes_the_sizes_of_the_smallest_node_with_the_devices(tmp_path: Path) -> None:
    gpus = asked(tmp_path, SILENT.replace("backend: cpu", "backend: cuda")).cluster
    small = NODE.replace("CPUTot=4", "CPUTot=3").replace("CPUEfctv=4", "CPUEfctv=3")
    bare = small.replace("Gres=gpu:2", "Gres=(null)").replace("CPUEfctv=3", "CPUEfctv=1")
    sized = with_node_sizes(gpus, site(PARTITION, NODE, small, bare))
    assert (sized.cpus_per_node, sized.memory_per_node) == (3, 4000 * 2**20)
    assert sized.cpus_per_device == 1
    unset = NODE.replace("RealMemory=4000", "RealMemory=1")
    assert with_node_sizes(gpus, site(PARTITION, unset)).memory_per_node is None
    own = gpus.model_copy(update={"cpus_per_node": 64, "memory_per_node": 1e12})
    assert with_node_sizes(own, site()) == own
    assert with_node_sizes(asked(tmp_path, SILENT).cluster, site()).cpus_per_node is None


@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        ({}, False),
        ({"TaskPlugin": "task/affinity", "ConstrainRAMSpace": "yes"}, False),
        ({"TaskPlugin": "task/cgroup,task/affinity", "ConstrainRAMSpace": "no"}, False),
        ({"TaskPlugin": "task/cgroup,task/affinity", "ConstrainRAMSpace": "yes"}, True),
        ({"JobAcctGatherParams": "UsePss,OverMemoryKill"}, True),
    ],
)
def test_whether_a_site_holds_runs_to_their_memory(
    tmp_path: Path, settings: dict[str, str], kills: bool
) -> None:
    [said] = wrong(tmp_path, SILENT.replace("memory: 1 GB", "memory: 4 GB"), site(**settings))
    assert ("this site kills jobs that use more" in said) is kills


def test_what_becomes_of_jobs_that_give_way(tmp_path: Path) -> None:
    cancelled = site(PARTITION.replace("PreemptMode=OFF", "PreemptMode=GANG,CANCEL"))
    [one] = [one for one in found(tmp_path, CLUSTER, cancelled) if not one.ok]
    assert one.remedy == "rerun the runs of preempted jobs; they resume from the latest checkpoints"
    queued = site(PARTITION.replace("PreemptMode=OFF", "PreemptMode=REQUEUE").replace("Grace", "Was"))
    assert wrong(tmp_path, CLUSTER, queued) == []


def test_a_partition_that_is_closed_and_a_site_without_arrays(tmp_path: Path) -> None:
    said = wrong(tmp_path, CLUSTER, site(PARTITION.replace("State=UP", "State=DRAIN"), MaxArraySize="0"))
    assert ["DRAIN" in said[0], "no job arrays" in said[1]] == [True, True]


def test_without_slurm_or_where_it_cannot_name_its_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = asked(tmp_path, CLUSTER)
    monkeypatch.setenv("PATH", str(tmp_path))
    for place, says in (
        (tmp_path, "scontrol is not installed here"),
        (tmp_path / "50%", "SLURM misreads % in a path"),
    ):
        place.mkdir(exist_ok=True)
        console = Console(file=StringIO(), width=200)
        report = examine(one, Workspace(place), 1.0, console)
        assert not report.healthy
        assert says in report.findings[-1].message
        assert says in console.file.getvalue()  # type: ignore[attr-defined]


def test_nothing_is_queued_where_a_run_would_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def submitted(*_: object) -> None:
        raise AssertionError("a job was queued")

    one, out = asked(tmp_path, CLUSTER.replace("memory: 2 GB", "partition: shrt")), tmp_path / "out.yaml"
    monkeypatch.setattr(cluster, "preflight", lambda asked, _, shape: limit_findings(asked, shape, site()))
    monkeypatch.setattr(cluster.submit, "submit", submitted)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(typer.Exit) as ended:
        doctor_command(slurm=True, cluster=str(one.path), out=out)
    assert ended.value.exit_code == 1
    *_, last = said = capsys.readouterr().out.splitlines()
    assert sum("the site has no partition shrt; write slurm.partition: short" in line for line in said) == 1
    assert (
        last
        == "no job was queued and no cluster file was written, since the failures above would prevent a run"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.yaml"]


def test_bad_input(tmp_path: Path) -> None:
    path = asked(tmp_path, CLUSTER).path
    with pytest.raises(RefusedError, match="--slurm: the cluster is not known; add --cluster"):
        doctor_command(slurm=True)
    for named in ("none", str(tmp_path / "none.yaml")):
        with pytest.raises(DocumentError):
            doctor_command(slurm=True, cluster=named)
    with pytest.raises(
        DocumentError, match="did not write this file and does not overwrite it; choose another name"
    ):
        doctor_command(slurm=True, cluster=str(path), out=path)
