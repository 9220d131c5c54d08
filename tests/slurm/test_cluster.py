"""The tests' own cluster is what it claims to be: nodes, accounts, preemption, and nothing left of it at the end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm


def marked(folder: Path) -> list[str]:
    """The command lines on this machine that name a folder, or were started with it in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
        except OSError:  # gone, or not ours to read
            continue
        if os.fsencode(folder) in command + environment:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def test_nodes_have_names_and_devices_of_their_own(cluster: Cluster) -> None:
    say = 'echo "$(hostname) $SLURM_LOCALID $CUDA_VISIBLE_DEVICES $(getent hosts node2)"'
    said = cluster.run("srun", "-N2", "--ntasks-per-node=2", "--gpus-per-task=1", "bash", "-c", say)
    assert sorted(" ".join(line.split()) for line in said.splitlines()) == [
        f"{node} {place} {place} 127.0.1.2 node2" for node in ("node1", "node2") for place in (0, 1)
    ]


def test_a_task_is_found_by_job_and_rank(cluster: Cluster) -> None:
    job = cluster.submit("-N2", "--wrap", "srun --kill-on-bad-exit=1 sleep 600")
    task = cluster.task(job, 1, "sleep")
    assert task.command.endswith("sleep 600")
    assert task.environment["SLURMD_NODENAME"] == "node2"
    assert cluster.in_node("node2", "cat", f"/proc/{task.inner_pid}/comm") == "sleep\n"
    os.kill(task.pid, signal.SIGKILL)
    cluster.wait(job, "FAILED")


def test_a_node_without_power_fails_its_job_which_starts_anew(cluster: Cluster) -> None:
    job = cluster.submit(
        "--nodelist=node3", "--requeue", "--wrap", 'test "$SLURM_RESTART_COUNT" || sleep 600'
    )
    cluster.wait(job, "RUNNING")
    cluster.wait_for_history(job, ["RUNNING"])
    cluster.fail_node("node3")
    cluster.wait(job, "PENDING")
    cluster.start_node("node3")
    cluster.wait(job, "COMPLETED")
    cluster.wait_for_history(job, ["NODE_FAIL", "COMPLETED"])


def test_a_higher_partition_takes_the_nodes(cluster: Cluster) -> None:
    script = 'test "$SLURM_RESTART_COUNT" || sleep 600'
    lower = cluster.submit("--partition=low0", "-N4", "--exclusive", "--requeue", "--wrap", script)
    cluster.wait(lower, "RUNNING")
    cluster.wait_for_history(lower, ["RUNNING"])
    higher = cluster.submit("--partition=high", "-N1", "--exclusive", "--wrap", "true")
    cluster.wait(higher, "COMPLETED")
    cluster.wait(lower, "COMPLETED")
    cluster.wait_for_history(lower, ["PREEMPTED", "COMPLETED"])


def test_what_cannot_run_is_refused_at_once(cluster: Cluster) -> None:
    for option, complaint in {
        "--partition=short --time=11": "time limit",
        "--partition=short --nodes=3": "Node count",
        "--nodes=5": "Node count",
        "--array=0-8": "Invalid job array specification",
        "--qos=none": "Invalid qos",
        "--account=none": "Invalid account",
        "--gpus-per-node=3": "configuration is not available",
    }.items():
        refused = cluster.call("sbatch", *option.split(), "--wrap", "true")
        assert refused.returncode != 0
        assert complaint in refused.stderr


def test_an_array_is_waited_for_as_a_whole(cluster: Cluster) -> None:
    job = cluster.submit("--array=0-7%4", "--wrap", "true")
    cluster.wait(job, "COMPLETED")
    assert cluster.states(job) == ["COMPLETED"] * 8


def test_waiting_for_what_cannot_come_says_how_things_stand(cluster: Cluster) -> None:
    job = cluster.submit("--job-name=hopeless", "--wrap", "exit 3")
    with pytest.raises(
        AssertionError, match=r"is FAILED, never COMPLETED(.|\n)*hopeless(.|\n)*slurmctld.log ends with"
    ):
        cluster.wait(job, "COMPLETED")
    with pytest.raises(AssertionError, match="after 0 s it is not so that there is peace"):
        cluster.until(lambda: False, "there is peace", timeout_s=0)


def test_jobs_outlive_the_controller_and_the_accounts(cluster: Cluster) -> None:
    job = cluster.submit("--wrap", "srun sleep 600")
    task = cluster.task(job, 0)
    cluster.stop_accounting()
    assert cluster.call("sacct").returncode != 0
    late = cluster.submit("--wrap", "true")
    cluster.wait(late, "COMPLETED")
    cluster.stop_controller()
    cluster.start_controller()
    cluster.start_accounting()
    assert cluster.states(job) == ["RUNNING"]
    assert cluster.task(job, 0) == task
    cluster.wait_for_history(late, ["COMPLETED"])


def test_two_clusters_side_by_side(cluster: Cluster) -> None:
    with Cluster(nodes=1, cpus=2) as other:
        folder = other.folder
        assert folder != cluster.folder
        assert other.run("srun", "-n2", "hostname") == "node1\nnode1\n"
        assert cluster.run("srun", "-n2", "hostname") == "node1\nnode1\n"
        other.task(other.submit("--wrap", "srun sleep 600"), 0, "sleep")
        assert marked(folder)
        assert "node1" not in Path("/etc/hosts").read_text()
    assert marked(folder) == []
    assert not folder.exists()


def test_a_killed_process_leaves_no_cluster_behind() -> None:
    program = """
import time
from tests.support.slurm.cluster import Cluster
cluster = Cluster(nodes=1)
cluster.up()
cluster.task(cluster.submit("--wrap", "srun sleep 600"), 0)
print(cluster.folder, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        owner.kill()
    assert folder.is_dir()
    deadline = time.monotonic() + 20
    while left := marked(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    with Cluster(nodes=1) as heir:
        assert heir.run("srun", "hostname") == "node1\n"
