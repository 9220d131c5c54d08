import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from runtime.tracking import local_sync
from runtime.tracking import sync as sending
from runtime.tracking.delivery import events_of
from runtime.tracking.local_sync import LocalSync
from specs.plan_file import save_plan
from specs.tracker import Tracker
from tests.support import samples
from tests.support.commands import isoplan
from tests.support.paths import ROOT
from tests.support.tracked_run import STEPS, Tracked, TrackedRun, expected, stand_in_tracked, tracked

TRACKERS = ("wandb", "mlflow", "trackio")
STAND_INS = ROOT / "tests" / "support" / "trackers"


class Killed(BaseException):
    """Stands for a SIGKILL."""


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """During the test, the trackers' packages are the stand-ins, in this process and in those that it starts."""

    def forget() -> None:
        for name in list(sys.modules):
            if name.partition(".")[0] in (*TRACKERS, "sqlalchemy"):
                del sys.modules[name]

    monkeypatch.syspath_prepend(STAND_INS)
    forget()
    with mock.patch.dict(os.environ, PYTHONPATH=f"{STAND_INS}:{ROOT}"):
        yield
    forget()


def stand_in_pass(to: str, run: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A sync to the stand-in. With a number, it is killed before it writes its note for that time."""
    write = sending.write_json

    def sync(killed_at: int) -> None:
        written = 0

        def note(*arguments: object) -> None:
            nonlocal written
            written += 1
            if written == killed_at:
                raise Killed
            write(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(sending, "write_json", note)
        sending.sync(run.folder, Tracker(to=to), "a study", run.home)  # type: ignore[arg-type]

    return sync


REAL = """
import os, sys
from pathlib import Path
from runtime.run_folder.folder import RunFolder
from runtime.tracking import local_sync
from runtime.tracking import sync as sending
from specs.tracker import Tracker
write, killed_at = sending.write_json, int(sys.argv[3])
def note(*arguments):
    global killed_at
    killed_at -= 1
    if killed_at == 0:
        os._exit(9)
    write(*arguments)
sending.write_json = note
folder = Path(sys.argv[2])
sending.sync(RunFolder(folder), Tracker(to=sys.argv[1]), "a study", folder.parents[1])
"""


def real_pass(to: str, run: TrackedRun) -> Callable[[int], None]:
    """The same with the real package, in a process of its own."""

    def sync(killed_at: int) -> None:
        argv = [sys.executable, "-P", "-c", REAL, to, str(run.folder.path), str(killed_at)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            argv, env=environment, cwd=run.home, capture_output=True, text=True, check=False
        )
        if done.returncode == 9:
            raise Killed
        assert (done.returncode, done.stdout) == (0, ""), done.stderr

    return sync


def live(run: TrackedRun, sync: Callable[[int], None], killed_at: int) -> None:
    """A run with a kill, a stop amid rejected steps and a rollback; syncs in between, some of them killed."""

    def twice() -> None:
        if killed_at:
            with pytest.raises(Killed):
                sync(killed_at)
        sync(0)

    run.start(0)
    run.train(1, 8)
    run.save(6)
    twice()
    run.start(6)
    run.train(7, 12)
    run.save(10)
    run.incident(12)
    twice()
    run.start(10)
    run.train(11, 14)
    run.save(14, rejected=3)
    sync(0)
    run.roll_back(14, 10)
    run.train(11, STEPS, batch=9)
    run.end()
    sync(0)
    sync(0)


def check(found: Tracked, run: TrackedRun) -> None:
    assert found.runs == 1
    assert found.points == expected(run.folder)
    assert len(found.configs) == 1
    assert sorted(found.text.splitlines()) == sorted(event.text for event in events_of(run.folder))


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(("to", "killed_at"), [*((to, at) for to in TRACKERS for at in (0, 1)), ("wandb", 2)])
def test_a_tracker_has_each_step_once_over_restarts(
    to: str, killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the tracker, killed before its note or, where files are moved after it, between the two."""
    run = TrackedRun(tmp_path)
    live(run, stand_in_pass(to, run, monkeypatch), killed_at)
    check(stand_in_tracked(to, tmp_path / "trackers"), run)


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [0, 1])
@pytest.mark.parametrize("to", TRACKERS)
def test_the_real_tracker_has_each_step_once_over_restarts(to: str, killed_at: int, tmp_path: Path) -> None:
    if importlib.util.find_spec(to) is None:
        pytest.skip(f"{to} is not installed")
    run = TrackedRun(tmp_path)
    live(run, real_pass(to, run), killed_at)
    check(tracked(to, tmp_path / "trackers"), run)


# --- the command ---


def saved_run(home: Path) -> TrackedRun:
    """A run with a checkpoint of step 6 and two steps after it."""
    run = TrackedRun(home)
    run.start(0)
    run.train(1, 8)
    run.save(6)
    return run


@pytest.mark.usefixtures("stand_ins")
def test_sync_sends_a_run_and_says_how_to_look_at_it(tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    first, again = (isoplan(tmp_path, "sync", run.folder.path.name[:6], "--to", "mlflow") for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == (
        "a run sent steps 1 to 6\nnext: mlflow ui --backend-store-uri sqlite:///trackers/mlflow.db\n"
    )
    assert again.stdout.startswith("a run nothing new after step 6\n")
    answer = json.loads(isoplan(tmp_path, "sync", run.folder.path.name, "--to", "mlflow", "--json").stdout)
    assert (answer["exit_code"], answer["runs"][0]["step"]) == (0, 6)


@pytest.mark.usefixtures("stand_ins")
def test_the_cluster_file_says_where_a_plans_runs_are_sent(tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    laptop = (ROOT / "specs" / "catalog" / "clusters" / "laptop.yaml").read_text()
    (tmp_path / "cluster.yaml").write_text(f"{laptop}tracker: {{to: mlflow, project: ours}}\n")
    plan, spec = samples.plan(), run.folder.run()
    budget = plan.budget.model_copy(update={"cluster": "cluster.yaml"})
    runs = (plan.runs[0].model_copy(update={"run": spec}),)
    path = tmp_path / "plans" / "plan.target.yaml"
    save_plan(path, samples.sealed(plan, budget=budget, runs=runs))
    assert "sent steps 1 to 6" in isoplan(tmp_path, "sync", path).stdout
    content = json.loads((tmp_path / "trackers" / "mlflow.db").read_text())
    assert (content["experiment"], content["tags"]["isoplan.study"]) == ("ours", "small")


@pytest.mark.usefixtures("stand_ins")
def test_the_commands_of_the_guide_work(tmp_path: Path) -> None:
    """Those that send to files."""
    run = saved_run(tmp_path).folder.path.name
    page = (ROOT / "docs" / "guides" / "trackers.md").read_text()
    lines = re.findall(r"^isoplan (sync RUN(?: --(?:to|project) \w+)*)$", page, flags=re.MULTILINE)
    assert len(lines) == len(TRACKERS)
    for line in lines:
        done = isoplan(tmp_path, *line.replace("RUN", run).split())
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.partition("next: ")[2].strip() in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no tracker is named; add --to wandb, mlflow or trackio, or write tracker: in the cluster file"),
        (("--to", "mlflow"), "sync to mlflow needs mlflow, sqlalchemy, which are not installed; "
         "run: pip install 'isoplan[mlflow]'"),
        (("--to", "wandb", "--project", "a/b/c"), "--project 'a/b/c' cannot be used"),
        (("--to", "mlflow", "--project", "a/b"), "has a team, which only wandb knows"),
        (("--to", "trackio", "--server", "x"), "write https://HOST, or a Space, user/space"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused_in_one_line(
    options: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specs.extras._is_installed", lambda name: False)
    done = isoplan(tmp_path, "sync", saved_run(tmp_path).folder.path.name, *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


@pytest.mark.usefixtures("stand_ins")
def test_a_tracker_that_fails_is_one_line_and_nothing_is_noted(tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "mlflow.db").write_text("damaged")
    done = isoplan(tmp_path, "sync", run.folder.path.name, "--to", "mlflow")
    assert (done.returncode, done.stdout.count("\n")) == (75, 1)
    assert done.stdout.startswith("mlflow did not accept a run: ")
    assert not (run.folder.path / "trackers").exists()


# --- beside the runs of a launch ---


def launched(run: TrackedRun) -> list[str]:
    """The warnings of a launch that trains this run to its end."""
    job: Any = SimpleNamespace(job=SimpleNamespace(folder=run.folder.path))
    ended: Any = SimpleNamespace(job=job.job, state="finished")
    warnings: list[str] = []
    with LocalSync(run.home, Tracker(to="mlflow"), "a study", warnings.append) as syncing:
        run.start(0)
        for step in (0, 6, 12):
            if step:
                run.train(step - 5, step)
                run.save(step)
            syncing([job], [])
        run.train(13, STEPS)
        run.end()
        syncing.ended([ended])
    return warnings


@pytest.mark.slow
@pytest.mark.usefixtures("stand_ins")
def test_a_launch_syncs_beside_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_sync, "_LOOK_S", 0.0)
    run = TrackedRun(tmp_path)
    assert launched(run) == []
    check(stand_in_tracked("mlflow", tmp_path / "trackers"), run)


@pytest.mark.slow
@pytest.mark.usefixtures("stand_ins")
def test_a_launch_warns_once_of_a_tracker_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_sync, "_LOOK_S", 0.0)
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "mlflow.db").write_text("damaged")
    [warning] = launched(TrackedRun(tmp_path))
    assert warning.startswith("the tracker has not everything: mlflow did not accept a run: ")


def test_a_launch_warns_once_of_an_absent_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specs.extras._is_installed", lambda name: False)
    [warning] = launched(TrackedRun(tmp_path))
    assert "pip install 'isoplan[mlflow]'" in warning
