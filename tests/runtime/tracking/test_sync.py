import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.tracking import sync as sending
from runtime.tracking.delivery import events_of
from specs.tracker import Tracker
from tests.support.paths import ROOT
from tests.support.tracked_run import STEPS, Tracked, TrackedRun, expected, stand_in_tracked, tracked

TRACKERS = ("wandb", "mlflow", "trackio")
STAND_INS = ROOT / "tests" / "support" / "trackers"


class Killed(BaseException):
    """Stands for a SIGKILL."""


def stand_in_pass(to: str, run: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A sync to the stand-in. With a number, it is killed before it writes that note for the first time."""
    for name in list(sys.modules):
        if name.partition(".")[0] in (*TRACKERS, "sqlalchemy"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(STAND_INS)
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
    """A run with a kill, a stop amid rejected steps and a rollback; a sync after each, some killed before they are done."""

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


@pytest.mark.parametrize("killed_at", [0, 1, 2])
@pytest.mark.parametrize("to", TRACKERS)
def test_a_tracker_has_each_step_once_over_restarts(
    to: str, killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the tracker, killed before its note or, where files are moved after it, between the two."""
    if killed_at == 2 and to != "wandb":
        pytest.skip("only files of W&B are moved after the note")
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
