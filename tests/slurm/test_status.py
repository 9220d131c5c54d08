"""`isoplan status`, `logs` and `cancel` on a real SLURM: a run that waits, trains, crashes and goes on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.run_folder.folder import RunFolder, list_checkpoints, step_of
from specs.document.files import load
from specs.document.write import write_json, write_yaml
from specs.optim import Milestone
from specs.plan import Plan
from specs.run import Evaluation, Execution
from specs.slurm_submission import StudyState, Submission
from tests.runtime.commands.test_run_cli import isoplan, tiny_plan
from tests.support import samples, training
from tests.support.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm

STEPS = 1000


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A workspace with a plan of one run of some seconds."""
    return planned(tmp_path, STEPS)


def planned(home: Path, steps: int) -> Path:
    optim = samples.optim(
        steps=steps,
        batch_sequences=4,
        peak_lr=0.01,
        warmup_steps=2,
        milestones=(Milestone(step=steps * 9 // 10, factor=0.3),),
    )
    evaluation = Evaluation(every_steps=100, sequences=6, final_sequences=9)
    run = training.tiny_run(training.corpus(home), steps=steps, optim=optim, evaluation=evaluation)
    layout = samples.layout(dp=1, micro_batch_sequences=2)
    execution = Execution(
        device="cpu", layout=layout, checkpoint_interval_s=60.0, checkpoint_interval_steps=50
    )
    tiny_plan(home, run, execution=execution)
    return home


PLAN = Path("plans", "mini", "plan.pilots.yaml")


class Workplace:
    """A workspace whose commands reach the cluster."""

    def __init__(self, home: Path, cluster: Cluster) -> None:
        self.home, self.cluster = home, cluster
        [planned] = load(home / PLAN, Plan).runs
        self.folder = RunFolder(home / "runs" / planned.run.fingerprint())

    def isoplan(self, *words: object) -> str:
        done = isoplan(self.home, *words, **self.cluster.environment())
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        [plan] = json.loads(self.isoplan("status", PLAN, "--json"))["plans"]
        run: dict[str, Any] = plan["runs"][0]
        return run

    def queue(self) -> str:
        """Queue the run; SLURM's name for its job."""
        self.isoplan("run", PLAN, "--slurm")
        return str(self.status()["job"])

    def begun(self) -> None:
        """Wait until the run has a checkpoint."""
        self.cluster.until(lambda: list_checkpoints(self.folder.checkpoints), "there is a checkpoint", 120)

    @contextlib.contextmanager
    def started(self, *words: object) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on meanwhile."""
        argv = [sys.executable, "-P", "-m", "isoplan", *map(str, words)]
        with subprocess.Popen(
            argv,
            cwd=self.home,
            env=os.environ | self.cluster.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def in_cluster(cluster: Cluster, code: str) -> subprocess.CompletedProcess[str]:
    """A line of Python whose SLURM is the cluster's."""
    argv = [sys.executable, "-c", code]
    return subprocess.run(
        argv, env=os.environ | cluster.environment(), capture_output=True, text=True, check=False, timeout=90
    )


@pytest.fixture
def place(home: Path, cluster: Cluster) -> Workplace:
    return Workplace(home, cluster)


def test_a_run_waits_trains_crashes_and_goes_on(place: Workplace) -> None:
    """The states in which it is seen, and its log, which is followed from the queue to the end."""
    cluster, run = place.cluster, place.folder.path.name
    full = cluster.submit("-N4", "--exclusive", "--time=60", "--wrap", "sleep 600")
    cluster.wait(full, "RUNNING")
    job = place.queue()
    waiting = place.status()
    assert (waiting["state"], waiting["pending_reason"], waiting["job"]) == ("pending", "Resources", job)
    with place.started("logs", run, "-f") as log:
        cluster.run("scancel", full)
        place.begun()
        busy = place.status()
        assert (busy["state"], busy["restarts"]) == ("running", 0)
        assert busy["nodes"] in cluster.nodes
        # One that lets go of the folder: another node would have to wait for the lock of one that was killed.
        os.kill(cluster.task(job, 0, "python").pid, signal.SIGINT)
        cluster.wait(job, "PENDING")
        again = place.status()
        assert (again["state"], again["restarts"]) == ("requeued", 1)
        assert again["end_reason"].startswith(f"Interrupt (rank 0 on {busy['nodes']}; its log: ")
        cluster.until(place.folder.end, "the run is finished", 120)
        printed, said = log.communicate(timeout=60)
    assert printed.count("pilot 0: from step ") == 2
    assert "finished: held-out loss " in printed
    assert f"finished at step {STEPS} of {STEPS}" in said
    done = place.status()
    assert (done["state"], done["restarts"], done["step"]) == ("finished", 1, STEPS)
    assert "nothing to cancel" in place.isoplan("cancel", PLAN)


def test_cancelling_saves_what_is_at_work_and_leaves_nothing_queued(cluster: Cluster, tmp_path: Path) -> None:
    place = Workplace(planned(tmp_path, 1_000_000), cluster)
    job = place.queue()
    place.begun()
    said = place.isoplan("cancel", place.folder.path.name[:8])
    assert f"cancelled job {job} (running): pilot 0" in said
    assert "running jobs have 5 sec to save a checkpoint (KillWait)" in said
    assert f"to resume from the latest checkpoints: run {PLAN} --slurm" in said
    cluster.wait(job, "CANCELLED")
    cluster.until(lambda: not cluster.run("squeue", "--noheader"), "nothing is queued")
    stopped = place.status()  # at once, whether or not the accounts know
    assert stopped["state"] == "cancelled"
    assert stopped["end_reason"].startswith(f"job {job} was cancelled: saved at step {stopped['step']} of ")
    assert step_of(list_checkpoints(place.folder.checkpoints)[0]) == stopped["step"]


def test_a_budgets_cancel_ends_its_study_too(place: Workplace) -> None:
    """A study's job that waits for the runs is gone before they are, and the study says why it stopped."""
    cluster = place.cluster
    full = cluster.submit("-N4", "--exclusive", "--wrap", "sleep 600")
    cluster.wait(full, "RUNNING")
    job = place.queue()
    budget = load(place.home / PLAN, Plan).budget
    write_yaml(place.home / "small.yaml", budget)
    (place.home / "plans" / "mini").rename(place.home / "plans" / budget.name)
    study = cluster.submit("--job-name=small-study-0a0b0c", f"--dependency=afterany:{job}", "--wrap", "true")
    reason = ("squeue", "--noheader", f"--jobs={study}", "--format=%r")
    cluster.until(lambda: cluster.run(*reason).strip() == "Dependency", "SLURM has looked why it waits")
    pending = StudyState(
        state="waiting", message="waiting for 1 job of the pilots", submission="small-study-0a0b0c"
    )
    write_json(place.home / "plans" / budget.name / "study.json", pending)
    submission = Submission(
        name=str(pending.submission), time=1.0, runs=(), budget="small.yaml", job=int(study), retries=3
    )
    write_json(place.home / "slurm" / submission.name / "submission.json", submission)
    plain = json.loads(place.isoplan("status", "small.yaml", "--json"))
    assert plain["studies"][0]["message"] == (
        f"continues automatically, waiting for 1 job of the pilots (job {study}, pending, Dependency)"
    )
    told = json.loads(place.isoplan("cancel", "small.yaml", "--json"))
    assert ([one["job"] for one in told["jobs"]], told["study"]) == ([job], study)
    assert cluster.run("squeue", "--noheader", "--format=%i").split() == [full]
    [after] = json.loads(place.isoplan("status", "small.yaml", "--json"))["studies"]
    assert (after["state"], after["message"]) == (
        "cancelled",
        "cancelled; continue with: run small.yaml --slurm --until-done",
    )


def test_a_study_at_work_is_ended_at_once(cluster: Cluster) -> None:
    """It need not save, and may not queue anything more."""
    job = cluster.submit(
        "--job-name=a-study", "--requeue", "--wrap", "trap : TERM; sleep 600 & wait; sleep 600"
    )
    cluster.wait(job, "RUNNING")
    code = (
        f"from runtime.slurm import client; client.cancel_and_wait(client.live_jobs({{'a-study'}})[{job!r}])"
    )
    done = in_cluster(cluster, code)
    assert done.returncode == 0, done.stderr
    assert cluster.states(job) == ["CANCELLED"]


def test_without_a_controller_the_files_speak(place: Workplace) -> None:
    full = place.cluster.submit("-N4", "--exclusive", "--wrap", "sleep 600")
    place.cluster.wait(full, "RUNNING")
    job = place.queue()
    place.cluster.stop_controller()
    began_s = time.monotonic()
    plain = json.loads(place.isoplan("status", PLAN, "--json"))
    assert time.monotonic() - began_s < 60
    assert plain["slurm_problem"].startswith("SLURM does not answer: ")
    [run] = plain["plans"][0]["runs"]
    assert (run["state"], run["end_reason"]) == (
        "unknown",
        f"its last job was {job}, whose state is unknown while SLURM does not answer",
    )
