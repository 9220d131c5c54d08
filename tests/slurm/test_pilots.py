"""An array of runs, of which one fails: the others finish, the failure is named, and asking again repeats that one."""

from pathlib import Path
from typing import Protocol

import pytest
from rich.console import Console

from runtime.launch.jobs import RunRequest
from runtime.launch.machine import Machine
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.workspace import Workspace
from runtime.slurm.study import submit_runs
from runtime.slurm.submit import ClusterFile
from runtime.study import Driver, RunResults
from specs.cluster import Cluster as ClusterSpec
from specs.document.files import load
from specs.record import Incident, Start
from tests.support.slurm.cluster import Cluster
from tests.support.slurm.running import cluster_file, paced
from tests.support.training import corpus, order, tiny_run

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("client")]

PILOTS, BROKEN = 5, 2


class Ask(Protocol):
    """Queues what is not finished, as `run --slurm` does; `retry_failed` also what has failed."""

    def __call__(self, *, retry_failed: bool) -> RunResults: ...


class Pilots(Protocol):
    """So many runs of so many steps in a workspace of their own, with these lines in the cluster file."""

    def __call__(self, number: int, steps: int, *lines: str) -> tuple[Ask, list[RunFolder]]: ...


@pytest.fixture
def pilots(home: Path, tmp_path: Path) -> Pilots:
    """Makes runs, and what queues them."""
    (tmp_path / "data").symlink_to(home / "data")

    def made(number: int, steps: int, *lines: str) -> tuple[Ask, list[RunFolder]]:
        path = cluster_file(tmp_path, *lines)
        runs = [tiny_run(corpus(home), steps=steps, seed=seed) for seed in range(number)]
        wanted = [
            RunRequest(path, "", f"pilot {seed}", run, order(run), planned_s=100.0 - seed)
            for seed, run in enumerate(runs)
        ]

        def ask(*, retry_failed: bool) -> RunResults:
            driver = Driver(Workspace(tmp_path), Machine(1, ()), None, Console(quiet=True))
            return submit_runs(
                driver,
                wanted,
                ClusterFile(path, load(path, ClusterSpec)),
                "pilots",
                retry_failed=retry_failed,
            )

        return ask, [RunFolder(tmp_path / "runs" / run.fingerprint()) for run in runs]

    return made


def test_a_failed_pilot_is_named_and_repeated_alone(cluster: Cluster, tmp_path: Path, pilots: Pilots) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    ask, _ = pilots(PILOTS, 50, paced(0.01, f"{BROKEN}.0 10 {broken}"), "retries: 0", "pilots_at_once: 2")

    assert [one.state for one in ask(retry_failed=True).outcomes] == ["queued"] * PILOTS
    [array] = (tmp_path / "slurm").glob("pilots-*")
    job = load_job(array)
    states = cluster.until(lambda: settled(cluster, job), "every pilot has ended", 240)
    assert states == ["COMPLETED"] * BROKEN + ["FAILED"] + ["COMPLETED"] * (PILOTS - BROKEN - 1)

    [failed] = ask(retry_failed=False).outcomes
    assert (failed.job.title, failed.state) == (f"pilot {BROKEN}", "failed")
    assert failed.message.startswith(f"job {job}_{BROKEN} ended in state FAILED: Killed (rank 0 on node")

    broken.unlink()
    [repeated] = ask(retry_failed=True).outcomes
    assert (repeated.job.title, repeated.state) == (f"pilot {BROKEN}", "queued")
    [single] = set((tmp_path / "slurm").glob("pilots-*")) - {array}
    cluster.wait(load_job(single), "COMPLETED", timeout_s=120)
    assert ask(retry_failed=True).outcomes == ()


def test_each_pilot_goes_on_by_itself(
    cluster: Cluster,
    tmp_path: Path,
    pilots: Pilots,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SLURM gives one task of an array the array's own number; what is said of that is meant for this task alone. And
    what a person has squeue hide is not hidden from us."""
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    ask, folders = pilots(3, 250, paced(0.3))
    assert [one.state for one in ask(retry_failed=True).outcomes] == ["queued"] * 3
    [array] = (tmp_path / "slurm").glob("pilots-*")
    job = load_job(array)
    cluster.until(lambda: all(len(one.metrics()) > 5 for one in folders), "every pilot trains")
    cluster.run("scancel", "--signal=USR2", f"{job}_2")
    cluster.until(lambda: starts(folders[2]) == 2, "the last pilot has come back")
    assert [starts(one) for one in folders] == [1, 1, 2]
    cluster.run("scancel", "--signal=USR2", f"{job}_0", f"{job}_1")
    cluster.until(lambda: settled(cluster, job), "every pilot has ended", 240)
    assert [starts(one) for one in folders] == [2, 2, 2]
    assert ask(retry_failed=True).outcomes == ()


def test_a_run_that_goes_on_where_slurm_has_given_up_is_waited_for(
    cluster: Cluster, tmp_path: Path, pilots: Pilots
) -> None:
    """Its successor would write into the same folder; here it finds the run finished."""
    ask, [folder] = pilots(1, 300, paced(0.2))
    assert [one.state for one in ask(retry_failed=True).outcomes] == ["queued"]
    cluster.until(lambda: len(folder.metrics()) > 5, "the run trains")
    [place] = (tmp_path / "slurm").glob("pilots-*")
    job = load_job(place)
    cluster.orphan_node(cluster.run("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip())
    log = folder.log / "rank-0.txt"
    cluster.until(lambda: f"is using {folder.path}" in log.read_text(), "its successor waits")
    assert folder.end() is None
    cluster.wait(job, "COMPLETED")
    assert folder.end() is not None
    assert starts(folder) == 1
    assert [line for line in folder.records() if isinstance(line, Incident)] == []


def starts(folder: RunFolder) -> int:
    """Segments of a run so far."""
    return sum(isinstance(line, Start) for line in folder.records())


def load_job(submission: Path) -> str:
    """SLURM's number of a submission."""
    from specs.slurm_submission import Submission

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
