"""What SLURM refuses is one line that points at what the cluster file says, and leaves nothing behind."""

import json
import os
import shutil
from pathlib import Path

import pytest

from specs.data import CorpusRef
from specs.run import Execution, RunSpec
from tests.runtime.commands.test_run_cli import isoplan
from tests.support import samples
from tests.support.slurm.desk import HELD, Desk, Typed, execution
from tests.support.training import corpus, tiny_run

pytestmark = pytest.mark.slurm

WIDE = samples.optim(batch_sequences=64)
"""Of a run that 64 ranks can share."""
GPUS = execution("cuda")

# name: (lines under `slurm:`, how the run is carried out, what it points at behind a bar, SLURM's reason, the remedy)
WRONG: dict[str, tuple[tuple[str, ...], Execution, str, str, str]] = {
    "partition": (
        ("partition: nope",),
        execution(),
        "partition: |nope",
        "invalid partition specified: nope",
        "correct slurm.partition in this file, or ask the cluster's administrators",
    ),
    "account": (
        ("partition: main", "account: nope"),
        execution(),
        "account: |nope",
        "Invalid account",
        "slurm.account",
    ),
    "qos": (("qos: nope",), execution(), "qos: |nope", "Invalid qos specification", "slurm.qos"),
    "constraint": (
        ("constraint: a100",),
        execution(),
        "constraint: |a100",
        "Invalid feature",
        "slurm.constraint",
    ),
    "reservation": (
        ("reservation: nope",),
        execution(),
        "reservation: |nope",
        "Requested reservation is invalid",
        "slurm.reservation",
    ),
    "time limit": (
        ("partition: short", "time_limit: 20 min"),
        execution(),
        "time_limit: |20 min",
        "time limit is invalid",
        "slurm.time_limit",
    ),
    "time limit, not said": (
        ("partition: short",),
        execution(),
        "slurm:\n  |partition",
        "time limit is invalid",
        "slurm.time_limit",
    ),
    "memory": (("memory: 100 GB",), execution(), "memory: |100 GB", "Memory specification", "slurm.memory"),
    "nodes": (
        (),
        execution(dp=16),
        "devices: |16",
        "Node count",
        "correct devices in this file and plan the budget again",
    ),
    "CPUs": ((), execution(threads=9), "devices_per_node: |2", "CPU count per node", "devices_per_node"),
    "CPUs for a GPU": (
        ("cpus_per_device: 64",),
        GPUS,
        "cpus_per_device: |64",
        "More processors requested",
        "slurm.cpus_per_device",
    ),
    "GPUs": (
        ("memory: 1 GB",),
        execution("cuda", dp=4),
        "devices_per_node: |4",
        "Requested node configuration is not available",
        "devices_per_node",
    ),
    "gres": (("gres: tpu",), execution(), "gres: |tpu", "generic resource (gres)", "slurm.gres"),
    "type of gres": (
        ("gres: gpu:h100", "memory: 1 GB"),
        GPUS,
        "gres: |gpu",
        "configuration is not available",
        "slurm.gres",
    ),
    "unknown option": (
        ("extra: {nonsense: 1}",),
        execution(),
        "nonsense: |1",
        "unrecognized option '--nonsense=1'",
        "slurm.extra.nonsense",
    ),
    "option's value": (
        ("extra: {mail-type: SOMETIMES}",),
        execution(),
        "mail-type: |SOMETIMES",
        "Invalid --mail-type",
        "slurm.extra.mail-type",
    ),
    "nodes by name": (
        ("extra: {nodelist: node9}",),
        execution(),
        "nodelist: |node9",
        "node name",
        "slurm.extra.nodelist",
    ),
    "option of an option": (
        (
            "extra: {parsab: true, hold: true}",
        ),  # sbatch takes what begins an option for it, and then says no number
        execution(),
        "slurm:\n  |extra",
        "Could not make sense of sbatch output",
        "slurm",
    ),
}


@pytest.fixture(scope="module")
def data(home: Path) -> CorpusRef:
    return corpus(home)


@pytest.fixture
def run(data: CorpusRef) -> RunSpec:
    return tiny_run(data, optim=WIDE)


def refused(done: Typed, place: str, *parts: str) -> None:
    """It was refused, in one line that begins with this place and has these parts."""
    assert done.code == 2, done.out + done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith(f"{place}: "), done.err
    for part in parts:
        assert part in done.err, done.err


def place_of(text: str, points_at: str) -> str:
    """Line and column of what follows the bar, in the only place where the text has this."""
    before, _, after = points_at.partition("|")
    assert text.count(before + after) == 1
    lines = text[: text.index(before + after) + len(before)].split("\n")
    return f"{len(lines)}:{1 + len(lines[-1])}"


@pytest.mark.parametrize(("lines", "how", "points_at", "reason", "remedy"), WRONG.values(), ids=WRONG.keys())
def test_what_slurm_refuses_of_a_plan(
    desk: Desk,
    run: RunSpec,
    lines: tuple[str, ...],
    how: Execution,
    points_at: str,
    reason: str,
    remedy: str,
) -> None:
    text = desk.says(
        *lines,
        devices_per_node=4 if how.layout.dp == 4 else 2,
        devices=max(8, how.layout.devices),
        backend=how.device,
    )
    path = desk.plan(run, executions=(how,))
    place = f"lab.yaml:{place_of(text, points_at)}"
    refused(desk.run(path, "--slurm"), place, "SLURM refuses the job: ", reason, "; correct ", remedy)
    assert desk.queued() == []
    assert desk.written() == {}


def test_what_slurm_refuses_of_a_budget(desk: Desk) -> None:
    text = desk.says("partition: nope")
    place = f"lab.yaml:{place_of(text, 'partition: |nope')}"
    refused(desk.run("budget.yaml", "--slurm"), place, "invalid partition specified: nope", "slurm.partition")
    assert (desk.queued(), desk.written()) == ([], {})
    desk.says(HELD)
    assert desk.run("budget.yaml", "--slurm").code == 0
    assert len(desk.queued()) == 1


@pytest.mark.parametrize("field", ["partition", "planning_partition"])
def test_a_study_that_could_not_go_on_by_itself_does_not_begin(desk: Desk, field: str) -> None:
    text = desk.says(f"{field}: nope")
    place = f"lab.yaml:{place_of(text, f'{field}: |nope')}"
    done = desk.run("budget.yaml", "--slurm", "--until-done")
    refused(done, place, "invalid partition specified: nope", f"correct slurm.{field} in this file")
    assert (desk.queued(), desk.written()) == ([], {})
    assert not (desk.folder / "plans").exists()


def test_a_study_begins_while_all_nodes_are_down(desk: Desk) -> None:
    """sbatch --test-only would refuse its job, sbatch does not."""
    desk.says(HELD)
    nodes = f"NodeName={','.join(desk.cluster.nodes)}"
    desk.cluster.run("scontrol", "update", nodes, "State=DRAIN", "Reason=test")
    done = desk.run("budget.yaml", "--slurm", "--until-done")
    assert done.code == 0, done.err
    assert len(desk.queued()) == 2


def test_a_submission_of_two_is_refused_as_a_whole(desk: Desk, data: CorpusRef, run: RunSpec) -> None:
    """The first is queued, then the second is refused, for want of so many CPUs."""
    other = tiny_run(data, optim=WIDE, seed=1)
    path = desk.plan(run, other, executions=(execution(), execution(dp=64)))
    text = desk.says(HELD, devices=64)
    before = int(desk.cluster.run("sbatch", "--parsable", "--hold", "--wrap", "true"))
    refused(desk.run(path, "--slurm"), f"lab.yaml:{place_of(text, 'devices: |64')}", "More processors")
    assert desk.queued() == [[str(before)]]
    assert desk.cluster.states(str(before + 1)) == ["CANCELLED"]
    assert desk.written() == {}


def test_what_was_queued_before_is_as_it_was(desk: Desk, run: RunSpec) -> None:
    path = desk.plan(run)
    desk.says(HELD)
    assert desk.run(path, "--slurm").code == 0
    [[job]] = desk.queued()
    desk.cluster.run("scancel", job)
    before = desk.written()
    text = desk.says("qos: nope")
    refused(desk.run(path, "--slurm"), f"lab.yaml:{place_of(text, 'qos: |nope')}", "Invalid qos")
    assert (desk.queued(), desk.written()) == ([], before)


def test_a_cluster_of_the_catalog_is_to_be_copied(desk: Desk) -> None:
    """Its file is nobody's to correct."""
    text = (desk.folder / "budget.yaml").read_text()
    (desk.folder / "budget.yaml").write_text(text.replace("lab.yaml", "laptop"))
    desk.cluster.run("scontrol", "update", "PartitionName=main", "MaxTime=10")
    try:
        done = desk.run("budget.yaml", "--slurm", "--until-done")
    finally:
        desk.cluster.run("scontrol", "update", "PartitionName=main", "MaxTime=UNLIMITED")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "clusters/laptop.yaml:1:1: SLURM refuses the job: Requested time limit is invalid" in done.err
    assert (
        "name a copy of this file in the budget and correct slurm.time_limit in the copy, or ask" in done.err
    )


def test_a_controller_that_does_not_answer(desk: Desk, data: CorpusRef, run: RunSpec) -> None:
    path = desk.plan(run, tiny_run(data, optim=WIDE, seed=1))
    desk.says(HELD)
    desk.cluster.stop_controller()
    done = desk.run(path, "--slurm")
    assert (done.code, done.err.count("\n")) == (2, 1)
    said = "Slurmctld(primary) at head is DOWN"
    assert done.err == f"SLURM's controller does not answer ({said}); try again later, or check SLURM_CONF\n"
    assert desk.written() == {}
    desk.cluster.start_controller()
    assert desk.run(path, "--slurm").code == 0
    assert len(desk.queued()) == 2
    assert desk.run(path, "--slurm").code == 0
    assert len(desk.queued()) == 2


def test_a_controller_that_vanishes_just_before_sbatch(
    desk: Desk, run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what became of the submission, so it stays written down; nothing is queued twice."""
    path = desk.plan(run)
    desk.says(HELD)
    lost = tmp_path / "bin" / "sbatch"
    lost.parent.mkdir()
    lost.write_text(
        f'#!/bin/sh\n{shutil.which("sbatch")} "$@" >/dev/null\n'
        'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2\nexit 1\n'
    )
    lost.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{lost.parent}{os.pathsep}{os.environ['PATH']}")
        done = desk.run(path, "--slurm")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("SLURM does not answer: Socket timed out")
    [[job]] = desk.queued()
    assert desk.run(path, "--slurm").code == 0
    assert desk.queued() == [[job]]
    [submission] = desk.submissions()
    assert str(submission.job) == job
    assert (desk.folder / "slurm" / submission.name / f"{job}_submitted.pkl").exists()


def test_a_job_whose_ranks_never_start_says_why(desk: Desk, data: CorpusRef) -> None:
    """Its script failed, or SLURM could not even write its log; and one that a person cancelled did not fail."""
    runs = [tiny_run(data, seed=seed) for seed in range(3)]
    path = desk.plan(*runs)
    desk.says(HELD, 'prologue: ["echo module not found >&2; exit 3"]')
    assert desk.run(path, "--slurm").code == 0
    [submission] = desk.submissions()
    script, no_log, by_hand = (submission.job_of(run.fingerprint()) for run in runs)
    folder = desk.folder / "slurm" / submission.name
    desk.cluster.run("scancel", str(by_hand))
    desk.cluster.run("scontrol", "release", str(script))
    desk.cluster.until(lambda: desk.cluster.history(str(script)) == ["FAILED"], "it has failed")
    hidden = folder.rename(folder.with_name("hidden"))
    desk.cluster.run("scontrol", "release", str(no_log))
    desk.cluster.until(lambda: desk.cluster.history(str(no_log)) == ["FAILED"], "it has failed")
    shutil.rmtree(folder, ignore_errors=True)  # SLURM 24.11 makes it, as on a node where it is not mounted
    hidden.rename(folder)
    done = isoplan(desk.folder, "status", path, "--json", **desk.cluster.environment())
    states = [(run["state"], run["end_reason"]) for run in json.loads(done.stdout)["plans"][0]["runs"]]
    log = folder / f"{script}_0_log.err"
    mounted = f"it left no log; check that {folder} is mounted on node1 and has space"
    assert states == [
        ("failed", f"job {script} ended in state FAILED: module not found (its log: {log})"),
        ("failed", f"job {no_log} ended in state FAILED: {mounted}"),
        ("cancelled", f"job {by_hand} was cancelled; rerun to resume"),
    ]
