"""`isoplan doctor --slurm` on a real SLURM: what is wrong is named before anything waits for it."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from runtime.doctor.cluster import examine
from runtime.doctor.slurm_preflight import preflight
from runtime.run_folder.workspace import Workspace
from runtime.slurm.client import SlurmError
from runtime.slurm.sbatch_script import full_shape
from runtime.slurm.submit import ClusterFile
from specs.cluster import Cluster as ClusterSpec
from specs.document.files import load
from tests.runtime.commands.test_run_cli import isoplan
from tests.slurm.test_site import CLUSTER
from tests.support.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm

BUDGET = """\
kind: budget
name: small
compute: 1e13 FLOP
evidence: {kind: published, law: tiny}
family: tiny
cluster: ours.measured.yaml
data:
  text: {source: declared, describe: a text, unique: 1T tokens}
  tokenizer: {kind: bytes}
"""


def asked(folder: Path, text: str) -> ClusterFile:
    path = folder / "ours.yaml"
    path.write_text(text)
    return ClusterFile(path, load(path, ClusterSpec))


def wrong(folder: Path, text: str) -> list[str]:
    """What is found from here to be wrong with a cluster file, the file's name left out."""
    one = asked(folder, text)
    shape = full_shape(one.cluster.devices, 1, False, one.cluster)
    found = [one for one in preflight(one, Workspace(folder), shape) if not one.ok]
    return [f"{each.message}; {each.remedy}".removeprefix(f"{one.path}:") for each in found]


def found_by_a_job(folder: Path, text: str, patience_s: float = 60) -> list[str]:
    """What a job finds to be wrong with a cluster that has nothing wrong from here."""
    report = examine(asked(folder, text), Workspace(folder), patience_s, Console(quiet=True))
    assert (report.healthy, report.cluster) == (False, None)
    return [one.message for one in report.findings if one.fatal]


def test_a_healthy_cluster_is_measured_and_planned_with(client: Cluster, tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(CLUSTER)
    (tmp_path / "data").mkdir()
    before = f"{CLUSTER.replace('source: a test', 'source: measured by isoplan doctor on node7', 1)}"
    (tmp_path / "ours.measured.yaml").write_text(before)
    done = isoplan(tmp_path, "doctor", "--slurm", "--cluster", "ours.yaml", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"job \d+ has ended: completed", done.stderr)
    assert list(tmp_path.glob("slurm/doctor-*")) == []
    told = json.loads(done.stdout)
    assert [one for one in told["findings"] if not one["ok"] and one["blocking"]] == []
    said = "\n".join(one["message"] for one in told["findings"])
    assert "4 of the 4 nodes of main have everything requested, 2 nodes needed" in said
    assert "sbatch would accept a run on 4 devices of 2 nodes" in said
    assert "node1, node2: the folder is shared" in said
    assert f"{tmp_path}/data is readable" in said
    assert "4 tasks on 2 nodes can communicate" in said
    assert "parameters after a cancel (5 s, KillWait)" in said
    assert (told["file"], told["kept"]) == ("ours.measured.yaml", None)
    measured = load(tmp_path / told["file"], ClusterSpec)
    assert measured.source.startswith("measured by isoplan doctor on node1, node2 (")
    assert (measured.devices, measured.devices_per_node) == (4, 2)
    for link in ("intra_node", "inter_node"):
        assert getattr(measured, link) == pytest.approx(told["rates"][link]["gather_bytes_per_s"], rel=0.01)
    (tmp_path / "budget.yaml").write_text(BUDGET)
    planned = isoplan(tmp_path, "plan", "budget.yaml", "--json")
    assert planned.returncode == 0, planned.stderr


def test_a_name_that_does_not_resolve_is_found_on_the_nodes(client: Cluster, tmp_path: Path) -> None:
    hosts = client.folder / "hosts"
    lines = hosts.read_text()
    hosts.write_text("".join(line for line in lines.splitlines(True) if "node1" not in line))
    try:
        text = CLUSTER.replace("devices_per_node: 2", "devices_per_node: 1").replace(
            "devices: 4", "devices: 2"
        )
        said = found_by_a_job(tmp_path, text)
    finally:
        hosts.write_text(lines)
    assert said[0].startswith("on node1, node2 the name node1 does not resolve")
    assert sorted(one.partition(": ")[0][:68] for one in said[1:]) == [
        "rank 0 on node1 failed in the rendezvous (timeout 60 s) or benchmark",
        "rank 1 on node2 failed in the rendezvous (timeout 60 s) or benchmark",
    ]
    assert all("OSError: the first node's name, node1, does not resolve" in one for one in said[1:])


def test_tasks_that_cannot_start_are_named_with_what_they_printed(client: Cluster, tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(f"{CLUSTER}  prologue: [export PYTHONHOME=/none]\n")
    done = isoplan(tmp_path, "doctor", "--slurm", "--cluster", "ours.yaml")
    assert done.returncode == 1, done.stderr
    *_, stays, last = said = done.stdout.splitlines()
    [kept] = tmp_path.glob("slurm/doctor-*")
    assert re.fullmatch(rf"the output of the tasks of job \d+ is kept in {kept}", stays)
    assert re.fullmatch(r"job \d+ measured nothing, so no cluster file was written", last)
    assert not (tmp_path / "ours.measured.yaml").exists()
    for node in ("node1", "node2"):
        assert any(
            re.match(rf"fail rank \d on {node} did not report; error: ModuleNotFoundError:", one)
            for one in said
        )


def test_what_cannot_run_is_named_with_its_line(client: Cluster, tmp_path: Path) -> None:
    assert wrong(tmp_path, CLUSTER) == []
    for was, becomes, says in (
        (
            "memory: 2 GB",
            "partition: mian",
            "14:14: the site has no partition mian; write slurm.partition: main",
        ),
        (
            "memory: 2 GB",
            "gres: gpu:h100",
            "14:9: jobs request gpu:h100:2 on each of 2 nodes, but only 0 of the 4 nodes",
        ),
        (
            "memory: 2 GB",
            "{partition: short, time_limit: 20 min}",
            "the partition short allows only 10 min 0 s",
        ),
        ("memory: 2 GB", "qos: none", "14:8: the site has no qos none; set slurm.qos to one of normal"),
        (
            "memory: 2 GB",
            "account: none",
            "14:12: the user root has no account none at this site; set slurm.account to one of root",
        ),
        (
            "memory: 2 GB",
            "reservation: none",
            "14:16: the site has no reservation none; remove slurm.reservation",
        ),
        ("memory: 2 GB", "extra: {nice-not: 3}", "SLURM refuses the job: "),
        ("memory: 2 GB", "constraint: a&b", "14:15: SLURM refuses the job: Invalid feature specification"),
        (
            "devices: 4",
            "devices: 12",
            "6:10: 12 devices need 6 nodes with 2 each, but the partition main has 4 nodes; write devices: 8",
        ),
    ):
        text = (
            CLUSTER.replace(f"\n  {was}", f" {becomes}")
            if becomes[0] == "{"
            else CLUSTER.replace(was, becomes)
        )
        said = wrong(tmp_path, text)
        assert any(says in one for one in said), (becomes, said)


def test_what_cannot_run_is_not_queued(client: Cluster, tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(CLUSTER.replace("memory: 2 GB", "qos: none"))
    done = isoplan(tmp_path, "doctor", "--slurm", "--cluster", "ours.yaml")
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("14:8: the site has no qos none; set slurm.qos to one of normal") == 1
    assert done.stdout.splitlines()[-1].startswith("no job was queued and no cluster file was written, ")
    assert [path.name for path in tmp_path.iterdir()] == ["ours.yaml"]
    assert client.run("squeue", "--noheader") == ""


def test_what_is_lost_without_accounts(client: Cluster, tmp_path: Path) -> None:
    client.stop_accounting()
    [said] = wrong(tmp_path, CLUSTER)
    assert said.startswith("sacct does not answer")
    assert "stops its study" in said


def test_no_controller(client: Cluster, tmp_path: Path) -> None:
    client.stop_controller()
    with pytest.raises(SlurmError, match="controller does not answer"):
        wrong(tmp_path, CLUSTER)


def test_variables_that_a_job_left_behind(
    client: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "SLURM_TIME_FORMAT", "SBATCH_PARTITION"):
        monkeypatch.setenv(name, "7")
    said = wrong(tmp_path, CLUSTER)
    assert (
        "environment variables of a launcher or job are set: CUDA_VISIBLE_DEVICES, RANK, SLURM_JOB_ID; start"
        in said[0]
    )
    assert said[1].startswith("SBATCH_PARTITION: not used, since the cluster file decides;")
    monkeypatch.delenv("SBATCH_PARTITION")
    job = client.submit("--wrap", "srun sleep 600")
    client.wait(job, "RUNNING")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    assert wrong(tmp_path, CLUSTER) == []


def test_who_waits_too_long_or_is_interrupted_leaves_no_job(client: Cluster, tmp_path: Path) -> None:
    [said] = found_by_a_job(tmp_path, f"{CLUSTER}  extra: {{begin: now+1hour}}\n", patience_s=0.5)
    assert re.match(r"job \d+ was cancelled, since it was still pending after 0.5 s \(reason: \w+\)", said)
    assert list(tmp_path.glob("slurm/doctor-*")) == []
    words = ("doctor", "--slurm", "--cluster", "ours.yaml")
    argv = [sys.executable, "-P", "-m", "isoplan", *words]
    with subprocess.Popen(
        argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stdout is not None
        assert any("is pending" in line for line in asking.stdout)
        asking.send_signal(signal.SIGINT)
        assert asking.wait(timeout=60) == 75
    client.until(lambda: not client.run("squeue", "--noheader"), "no job is left", timeout_s=10)
    assert list(tmp_path.glob("slurm/doctor-*")) == []
