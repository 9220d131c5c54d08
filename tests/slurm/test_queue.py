"""What is queued: each run once, in the shape of its layout, by the very script that a dry run shows."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.slurm.task import Task
from specs.data import CorpusRef
from specs.document.write import write_yaml
from specs.record import End
from specs.run import Execution, RunSpec
from tests.support import samples
from tests.support.slurm.cluster import Cluster
from tests.support.slurm.desk import HELD, Desk, execution
from tests.support.slurm.running import paced
from tests.support.training import corpus, tiny_run

pytestmark = pytest.mark.slurm

AWKWARD = """a $HOME of 'one' "own"; touch x # `touch y` $(touch z) & ü*"""
"""What a shell or sbatch would take for something else, if it were not quoted."""
UNTIL_SBATCH = """
import os, signal, sys
from submitit import SlurmExecutor

def killed(said):
    os.kill(os.getpid(), signal.SIGKILL)

SlurmExecutor._get_job_id_from_submission_command = staticmethod(killed)
from isoplan.cli import run_main
sys.argv = ["run", *sys.argv[1:]]
run_main()
"""
"""The command, killed when sbatch has queued a job and its number is not written down."""


@pytest.fixture(scope="module")
def data(home: Path) -> CorpusRef:
    return corpus(home)


def runs(data: CorpusRef, number: int, steps: int = 20) -> list[RunSpec]:
    return [tiny_run(data, steps=steps, seed=seed) for seed in range(number)]


def command(desk: Desk, *words: str) -> "subprocess.Popen[str]":
    """`run` in a process of its own."""
    argv = [sys.executable, "-P", "-c", "from isoplan.cli import run_main; run_main()", *words]
    return subprocess.Popen(argv, cwd=desk.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# --- each run once ---


def test_asking_again_and_at_the_same_time_queues_nothing_twice(
    desk: Desk, data: CorpusRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the shell has for sbatch, and whatever a person calls the jobs meanwhile."""
    for name, value in {"JOB_NAME": "mine", "PARTITION": "nope", "TIMELIMIT": "1", "ACCOUNT": "nope"}.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    desk.says(HELD)
    path = desk.plan(*runs(data, 3))
    both = [command(desk, path, "--slurm") for _ in range(2)]
    for one in both:
        said, errors = one.communicate(timeout=120)
        assert one.returncode == 0, said + errors
        assert errors == ""
        assert "SBATCH_PARTITION, SBATCH_TIMELIMIT: not used, since the cluster file decides\n" in said
    [submission] = desk.submissions()
    assert {name for _, name in desk.queued("JobArrayID", "Name")} == {submission.name}
    desk.cluster.run("scontrol", "update", f"JobId={submission.job}", "JobName=renamed")
    jobs = desk.queued("JobArrayID", "Name")
    assert [name for _, name in jobs] == ["renamed"] * 3
    for _ in range(3):
        again = desk.run(path, "--slurm")
        assert again.code == 0, again.err
        assert "queued 3 runs" not in again.out
        assert again.out.count(": held, job ") == 3
    said = json.loads(desk.run(path, "--slurm", "--json").out)["runs"]
    assert sorted([one["job"], one["state"]] for one in said) == [[job, "held"] for job, _ in jobs]
    assert desk.queued("JobArrayID", "Name") == jobs
    assert len(desk.submissions()) == 1


def test_what_ended_unfinished_is_queued_again_and_alone(desk: Desk, data: CorpusRef) -> None:
    desk.says(HELD)
    first, second = runs(data, 2)
    path = desk.plan(first, second)
    assert desk.run(path, "--slurm").code == 0
    desk.cluster.run("scancel", desk.queued()[0][0])
    assert desk.run(path, "--slurm").code == 0
    one, other = desk.submissions()
    assert desk.queued() == [[f"{one.job}_1"], [f"{other.job}"]]
    assert (desk.submission_of(first), desk.submission_of(second)) == (other.name, one.name)


def test_a_finished_run_is_not_queued(desk: Desk, data: CorpusRef) -> None:
    desk.says(HELD)
    first, second = runs(data, 2)
    path = desk.plan(first, second)
    end = End(event="end", time=0.0, step=20, loss=5.0, weights_sha256="0" * 64)
    desk.run_folder(first).path.mkdir(parents=True)
    desk.run_folder(first).record_jsonl.write_text(json.dumps(end.plain()) + "\n")
    done = desk.run(path, "--slurm")
    assert done.code == 0, done.err
    assert "1 of 2 runs are finished" in done.out
    [submission] = desk.submissions()
    assert submission.runs == (second.fingerprint(),)
    desk.run_folder(second).record_jsonl.write_text(json.dumps(end.plain()) + "\n")
    desk.cluster.run("scancel", str(submission.job))
    done = desk.run(path, "--slurm")
    assert (done.code, desk.queued()) == (0, [])
    assert f"every run is finished; next: audit {path}" in done.out


@pytest.mark.parametrize("number", [1, 2])
def test_a_submitter_that_is_killed_behind_sbatch_leaves_its_job_to_be_found(
    desk: Desk, data: CorpusRef, number: int
) -> None:
    desk.says(HELD)
    wanted = runs(data, number)
    path = desk.plan(*wanted)
    argv = [sys.executable, "-P", "-c", UNTIL_SBATCH, path, "--slurm"]
    killed = subprocess.run(argv, cwd=desk.folder, capture_output=True, text=True, check=False, timeout=120)
    assert killed.returncode == -9, killed.stdout + killed.stderr
    [unknown] = desk.submissions()
    assert unknown.job is None
    jobs = desk.queued()
    assert len(jobs) == number
    assert desk.run(path, "--slurm").code == 0
    assert desk.queued() == jobs
    [found] = desk.submissions()
    assert [found.job_of(run.fingerprint()) for run in wanted] == [job for [job] in jobs]
    for [job], run in zip(jobs, wanted, strict=True):
        pickled = desk.folder / "slurm" / found.name / f"{job}_submitted.pkl"
        assert pickle.loads(pickled.read_bytes()).function == Task(str(desk.run_folder(run).path))


# --- in its shape ---


@pytest.mark.parametrize(("at_once", "shares"), [(3, "21"), (1, "11")])
def test_a_ladder_longer_than_an_array_may_be(desk: Desk, data: CorpusRef, at_once: int, shares: str) -> None:
    """The tests' cluster has MaxArraySize=8; the limit is that of both arrays together."""
    desk.says(HELD, f"pilots_at_once: {at_once}")
    wanted = runs(data, 10)
    assert desk.run(desk.plan(*wanted), "--slurm").code == 0
    long, short = desk.submissions()
    assert [len(long.runs), len(short.runs)] == [8, 2]
    assert {*long.runs, *short.runs} == {run.fingerprint() for run in wanted}
    assert len(desk.queued()) == 10
    jobs = [desk.job(f"{long.job}_7"), desk.job(f"{short.job}_0")]
    assert [job["ArrayTaskThrottle"] for job in jobs] == list(shares)
    waits = f"afterany:{long.job}_*(unfulfilled)" if at_once == 1 else "(null)"
    assert [job["Dependency"] for job in jobs] == ["(null)", waits]


CPU_SHAPES = {
    execution(): ("1-1", "1", "1:0:*:*", "1", None),
    execution(dp=4, pp=2): ("4-4", "8", "2:0:*:*", "1", None),
    execution(threads=2): ("1-1", "1", "1:0:*:*", "2", None),
}
GPU_SHAPES = {
    execution("cuda", dp=2): ("1-1", "2", "2:0:*:*", "2", "gres/gpu:2"),
    execution("cuda", dp=4, micro_batch_sequences=2): ("2-2", "4", "2:0:*:*", "2", "gres/gpu:2"),
}
"""What is asked for by each: nodes, tasks, tasks of a node, CPUs of a task, GPUs of a node."""


@pytest.mark.parametrize(("backend", "shapes"), [("cpu", CPU_SHAPES), ("cuda", GPU_SHAPES)])
def test_runs_of_one_shape_share_a_submission(
    desk: Desk, data: CorpusRef, backend: str, shapes: dict[Execution, tuple[str | None, ...]]
) -> None:
    wide, executions = samples.optim(batch_sequences=64), (*shapes, next(iter(shapes)))
    wanted = [tiny_run(data, seed=seed, optim=wide) for seed in range(len(executions))]
    desk.says(
        HELD,
        "cpus_per_device: 2",
        "memory: 700 MiB",
        "time_limit: 90 min",
        "warning: 45 s",
        "exclusive: true",
        backend=backend,
    )
    assert desk.run(desk.plan(*wanted, executions=executions), "--slurm").code == 0
    made = [desk.submission_of(run) for run in wanted]
    assert made[0] == made[-1]
    assert len(set(made)) == len(shapes)
    numbers = {one.name: one.job_of(one.runs[0]) for one in desk.submissions()}
    for name, asked in zip(made, shapes.values(), strict=False):
        job = desk.job(numbers[name])
        fields = ("NumNodes", "NumTasks", "NtasksPerN:B:S:C", "CPUs/Task", "TresPerNode")
        assert tuple(job.get(field) for field in fields) == asked
        assert job["MinMemoryNode"] == "700M"
        assert job["TimeLimit"] == "01:30:00"
        assert job["OverSubscribe"] == "NO"
        assert job["Requeue"] == "1"
        script = Path(job["Command"]).read_text()
        assert "#SBATCH --signal=USR2@45\n" in script


def test_what_the_cluster_file_says_is_asked_for(desk: Desk, data: CorpusRef) -> None:
    desk.cluster.run(
        "scontrol", "create", "reservation=mine", "starttime=now", "duration=5", "users=root", "nodes=node4"
    )
    try:
        desk.says(
            "partition: low",
            "account: root",
            "qos: normal",
            "reservation: mine",
            "gres: gpu",
            "min_nodes: 1",
            "extra: {hold: true, nodelist: node4, nice: 7, comment: ''}".replace("''", json.dumps(AWKWARD)),
            devices_per_node=1,
        )
        path = desk.plan(*runs(data, 1), executions=(execution(dp=2),))
        done = desk.run(path, "--slurm")
        assert done.code == 0, done.err
        [[number]] = desk.queued()
        job = desk.job(number)
        assert [job[key] for key in ("Partition", "Account", "QOS", "Reservation", "ReqNodeList")] == [
            "low",
            "root",
            "normal",
            "mine",
            "node4",
        ]
        assert (job["NumNodes"], job["TresPerNode"], job["NtasksPerN:B:S:C"]) == (
            "2-2",
            "gres/gpu:1",
            "1:0:*:*",
        )
        assert job["Comment"] == AWKWARD
    finally:
        desk.cluster.call("scancel", "--user=root")
        desk.cluster.call("scontrol", "delete", "reservation=mine")


# --- as it is shown ---


def test_a_dry_run_shows_the_very_scripts_and_queues_nothing(desk: Desk, data: CorpusRef) -> None:
    desk.says(
        HELD,
        "modules: [cuda/12, 'a b']",
        "prologue: ['echo :warning: [red]$HOME']",
        "container: [env, 'A=b c']",
    )
    path = desk.plan(*runs(data, 9), executions=(execution(dp=2), *[execution()] * 8))
    before = sorted(desk.folder.rglob("*"))
    shown, plain = desk.run(path, "--slurm", "--dry-run"), desk.run(path, "--slurm", "--dry-run", "--json")
    assert (shown.code, plain.code) == (0, 0), shown.err + plain.err
    assert (sorted(desk.folder.rglob("*")), desk.queued()) == (before, [])
    assert "9 runs to queue, 0 already pending or running, 0 finished." in shown.out
    assert "Nothing was queued." in shown.out
    assert desk.run(path, "--slurm").code == 0
    scripts = json.loads(plain.out)["scripts"]
    assert [len(script["jobs"]) for script in scripts] == [1, 8]
    for script, made in zip(scripts, desk.submissions(), strict=True):
        folder = desk.folder / "slurm" / made.name
        assert (folder / f"{made.job}_submission.sh").read_text() == script["text"].replace(
            script["name"], made.name
        )
        for job, run in zip(script["jobs"], made.runs, strict=True):
            handed = pickle.loads((folder / f"{made.job_of(run)}_submitted.pkl").read_bytes())
            assert job["calls"] == repr(handed.function)
            assert f"  {job['title']}: {job['calls']}\n" in shown.out
    names = [
        line.partition(",")[0] for line in shown.out.splitlines() if ", 1 job:" in line or ", 8 jobs:" in line
    ]
    for name, made in zip(names, desk.submissions(), strict=True):
        script = (desk.folder / "slurm" / made.name / f"{made.job}_submission.sh").read_text()
        assert script.replace(made.name, name) in shown.out
    again = desk.run(path, "--slurm", "--dry-run")
    assert "#!/bin/bash" not in again.out
    assert "0 runs to queue, 9 already pending or running, 0 finished." in again.out


def test_a_dry_run_of_a_budget(desk: Desk) -> None:
    desk.says(HELD)
    first = desk.run("budget.yaml", "--slurm", "--dry-run", "--until-done")
    assert first.code == 0, first.err
    assert "The next runs are known once the budget is planned." in first.out
    assert "runtime.slurm.requeue" not in first.out
    assert not (desk.folder / "plans").exists()
    assert desk.run("budget.yaml", "--slurm").code == 0
    desk.cluster.run("scancel", "--user=root")
    before = sorted(desk.folder.rglob("*"))
    plain = desk.run("budget.yaml", "--slurm", "--dry-run", "--until-done", "--json")
    assert (sorted(desk.folder.rglob("*")), desk.queued()) == (before, [])
    runs, study = json.loads(plain.out)["scripts"]
    assert desk.run("budget.yaml", "--slurm", "--until-done").code == 0
    made = {one.name: one for one in desk.submissions()[1:]}
    assert len(made) == 2
    for name, one in made.items():
        script = runs if one.runs else study
        written = (desk.folder / "slurm" / name / f"{one.job}_submission.sh").read_text()
        pending = [line for line in written.splitlines(True) if "--dependency" in line]
        assert written.replace("".join(pending), "") == script["text"].replace(script["name"], name)
        assert len(pending) == (0 if one.runs else 1)


# --- as it is carried out ---


def test_nothing_in_a_path_or_a_comment_is_interpreted(
    cluster: Cluster, desk: Desk, data: CorpusRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = desk.folder / AWKWARD
    folder.mkdir()
    (folder / "data").symlink_to(desk.folder / "data")
    monkeypatch.chdir(folder)
    there = Desk(folder, cluster, desk.captured)
    comment = AWKWARD + r" \ % \n"
    there.says("memory: 800 MB", f"extra: {{comment: {json.dumps(comment)}}}")
    run = tiny_run(data)
    done = there.run(there.plan(run), "--slurm")
    assert done.code == 0, done.err
    [submission] = there.submissions()
    number = str(submission.job)
    assert there.job(number)["Comment"] == comment
    assert (
        cluster.run("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%k")
        == f"{comment}\n"
    )
    cluster.wait(number, "COMPLETED", timeout_s=180)
    assert there.run_folder(run).end() is not None
    assert sorted(path.name for path in folder.iterdir()) == ["data", "lab.yaml", "plans", "runs", "slurm"]
    assert sorted(path.name for path in desk.folder.iterdir()) == sorted(
        [AWKWARD, "budget.yaml", "data", "lab.yaml", "text.jsonl"]
    )


def test_what_was_just_cancelled_is_queued_again(desk: Desk, data: CorpusRef) -> None:
    """Also while its ranks still save: a job that is ending is waited for, since it will not train any more."""
    desk.says("partition: main", paced(0.2))
    path = desk.plan(*runs(data, 1, steps=300))
    assert desk.run(path, "--slurm").code == 0
    [[number]] = desk.queued()
    desk.cluster.task(number, 0, "submitit")
    desk.cluster.run("scancel", number)
    again = desk.run(path, "--slurm")
    assert again.code == 0, again.err
    [[newer]] = desk.queued()
    assert newer != number


def test_a_cluster_file_that_has_changed_too_much_is_refused(desk: Desk, data: CorpusRef) -> None:
    desk.says("partition: main")
    path = desk.plan(*runs(data, 1), executions=(execution(dp=4),))
    desk.says("partition: main", devices=2)
    refused = desk.run(path, "--slurm")
    assert refused.code == 2
    assert "was planned for 4 devices, but this cluster has 2; restore the file" in refused.err
    assert desk.queued() == []


def test_a_run_spec_is_queued_once_on_the_cluster_that_is_named(desk: Desk, data: CorpusRef) -> None:
    desk.says(HELD)
    run = tiny_run(data)
    write_yaml(desk.folder / "run.yaml", run)
    for _ in range(2):
        done = desk.run("run.yaml", "--slurm", "--cluster", "lab.yaml", "--json")
        assert done.code == 0, done.err
        [told] = json.loads(done.out)["runs"]
        [[job, name]] = desk.queued("JobArrayID", "Name")
        assert (told["job"], told["state"]) == (job, "held")
    assert name == desk.submission_of(run)
    assert name.startswith(f"run-{run.fingerprint()}-")
