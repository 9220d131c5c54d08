"""An array of runs, of which one fails: the others finish, the failure is named, and asking again repeats that one."""

from pathlib import Path

import pytest
from rich.console import Console

from runtime.drive import Driver, Ran
from runtime.prepare import Machine, Wanted, Workspace
from runtime.slurm.queue import Asked
from runtime.slurm.study import carry_out
from specs.cluster import Cluster as ClusterFile
from specs.files import load
from tests.slurm.cluster import Cluster
from tests.slurm.running import cluster_file, paced
from tests.training import corpus, order, tiny_run

pytestmark = pytest.mark.slurm

PILOTS, BROKEN = 5, 2


def test_a_failed_pilot_is_named_and_repeated_alone(
    cluster: Cluster, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "data").symlink_to(home / "data")
    broken = tmp_path / "broken"
    broken.touch()
    lines = (paced(0.01, f"{BROKEN}.0 10 {broken}"), "retries: 0", "pilots_at_once: 2")
    path = cluster_file(tmp_path, *lines)
    runs = [tiny_run(corpus(home), steps=50, seed=seed) for seed in range(PILOTS)]
    wanted = [
        Wanted(path, "", f"pilot {seed}", run, order(run), planned_s=100.0 - seed)
        for seed, run in enumerate(runs)
    ]

    def ask(*, again: bool) -> Ran:
        driver = Driver(Workspace(tmp_path), Machine(1, ()), None, Console(quiet=True))
        return carry_out(driver, wanted, Asked(path, load(path, ClusterFile)), "pilots", again=again)

    assert [one.state for one in ask(again=True).outcomes] == ["queued"] * PILOTS
    [array] = (tmp_path / "slurm").glob("pilots-*")
    job = load_job(array)
    states = cluster.until(lambda: settled(cluster, job), "every pilot has ended", 240)
    assert states == ["COMPLETED"] * BROKEN + ["FAILED"] + ["COMPLETED"] * (PILOTS - BROKEN - 1)

    [failed] = ask(again=False).outcomes
    assert (failed.job.title, failed.state) == (f"pilot {BROKEN}", "failed")
    assert failed.message.startswith(f"job {job}_{BROKEN} ended as FAILED: Killed (rank 0 on node")

    broken.unlink()
    [repeated] = ask(again=True).outcomes
    assert (repeated.job.title, repeated.state) == (f"pilot {BROKEN}", "queued")
    [single] = set((tmp_path / "slurm").glob("pilots-*")) - {array}
    cluster.wait(load_job(single), "COMPLETED", timeout_s=120)
    assert ask(again=True).outcomes == ()


def load_job(submission: Path) -> str:
    """SLURM's number of a submission."""
    from specs.submission import Submission

    return str(load(submission / "submission.json", Submission).job)


def settled(cluster: Cluster, job: str) -> list[str]:
    """The states of an array's jobs by index, once all have ended."""
    lines = cluster.run(
        "squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%K %T"
    ).splitlines()
    states = {int(index): state for index, state in map(str.split, lines)}
    return (
        [states[index] for index in sorted(states)] if set(states.values()) <= {"COMPLETED", "FAILED"} else []
    )
