"""A study goes on by itself: also past a controller that is away, and no more once somebody has cancelled it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.workspace import Workspace
from runtime.slurm import study
from runtime.status.cancel import cancel
from specs.document.files import load
from specs.document.write import write_json
from specs.slurm_submission import StudyState
from tests.support.slurm.desk import HELD, Desk
from tests.support.training import corpus, tiny_run

pytestmark = pytest.mark.slurm


def test_a_study_waits_for_a_controller_that_is_away(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that nobody watches asks again; given up, it leaves behind what `isoplan cancel` finds its job by."""
    asked, advance = [], study.advance_study

    def counted(*told: Any, **more: Any) -> Any:
        asked.append(told)
        return advance(*told, **more)

    monkeypatch.setattr(study, "advance_study", counted)
    monkeypatch.setattr(study, "_RETRY_S", 0.5)
    desk.says(HELD)
    budget = Path("budget.yaml")
    assert desk.run(str(budget), "--slurm", "--until-done").code == 0
    first = noted(desk)
    asked.clear()
    desk.cluster.stop_controller()
    with ThreadPoolExecutor() as pool:
        job = pool.submit(study.continue_study, budget, str(first.submission))
        desk.cluster.until(lambda: len(asked) >= 2 or job.done(), "it has asked in vain")
        desk.cluster.start_controller()
        assert job.result(timeout=60) == 0
    second = noted(desk)
    assert second.state == "waiting"
    assert second.submission != first.submission
    assert len(desk.queued()) == 3

    desk.cluster.stop_controller()
    monkeypatch.setattr(study, "_NO_ANSWER_TIMEOUT_S", 0.0)
    assert study.continue_study(budget, str(first.submission)) == 2
    desk.cluster.start_controller()
    assert noted(desk).state == "stopped"
    assert desk.run(str(budget), "--slurm", "--until-done").code == 0
    assert noted(desk).state == "waiting"
    assert len(desk.queued()) == 3, "the study's job was there already"
    cancel(Workspace(desk.folder), list, "mini", shared_with=lambda _: False)
    assert [name for [name] in desk.queued("Name") if name == second.submission] == []


def test_what_a_study_queues_while_it_is_being_cancelled_is_cancelled_too(desk: Desk, home: Path) -> None:
    desk.says(HELD)
    run = tiny_run(corpus(home))
    assert desk.run(desk.plan(run), "--slurm").code == 0
    pending = StudyState(
        state="waiting", message="waiting for 8 jobs of the pilots", submission="mini-study-0a0b0c"
    )
    write_json(desk.folder / "plans" / "mini" / "study.json", pending)

    def planned() -> list[RunFolder]:
        """Until it is ended, the study may plan more."""
        return [desk.run_folder(run)] if noted(desk).state == "cancelled" else []

    cancelled = cancel(Workspace(desk.folder), planned, "mini", shared_with=lambda _: False)
    assert list(cancelled.runs) == [run.fingerprint()]
    assert desk.queued() == []
    assert noted(desk).state == "cancelled"


def noted(desk: Desk) -> StudyState:
    """How far the desk's study is."""
    return load(desk.folder / "plans" / "mini" / "study.json", StudyState)
