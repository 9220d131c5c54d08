"""`isoplan cancel`: which jobs it cancels, on a full disk too; SLURM's answers are given."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from runtime.run_folder.folder import RunFolder, open_folder
from runtime.run_folder.workspace import Workspace
from runtime.slurm import client, submit
from runtime.slurm.client import LiveJob
from runtime.slurm.job_states import JobStates
from runtime.status import cancel, collect
from runtime.status.cancel import cancel_and_report
from runtime.status.collect import StatusCollector
from specs.document.base import Spec
from specs.document.files import DocumentError, load
from specs.document.write import write_json, write_yaml
from specs.plan import Plan
from specs.slurm_submission import Queued, StudyState
from tests.support import samples

PLAN = Path("plans/small/plan.target.yaml")


@pytest.fixture
def cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that scancel was called for; the only run of a plan in the current folder is job 12."""
    monkeypatch.chdir(tmp_path)
    write_yaml(PLAN, samples.sealed(samples.plan(), ledger="../../ledger.jsonl"))
    [group] = StatusCollector(Workspace(Path()), None).groups()
    [(request, _)] = group.requests
    folder = open_folder(Path("runs"), request.run, request.order)
    write_json(folder.queued_json, Queued(submission="small-target-0a0b0c", from_step=0))
    found: list[str] = []

    def live(_: Workspace, runs: Sequence[RunFolder]) -> dict[str, LiveJob]:
        return {run.path.name: LiveJob("12", "small-target-0a0b0c", "PENDING", "", "", 0, "") for run in runs}

    monkeypatch.setattr(submit, "live_runs", live)
    monkeypatch.setattr(client, "cancel", found.extend)
    monkeypatch.setattr(collect, "job_states", lambda *_: JobStates())
    monkeypatch.setattr(StatusCollector.collect, "__defaults__", (lambda *_: JobStates(),))
    return found


def report(target: Path) -> None:
    cancel_and_report(StatusCollector(Workspace(Path()), target), Console(width=200), json=False)


def test_a_full_disk_is_said_once_the_jobs_are_cancelled(
    cancelled: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, spec: Spec) -> None:
        raise DocumentError(path, 1, 1, os.strerror(errno.ENOSPC), "choose a writable folder")

    monkeypatch.setattr(cancel, "write_json", full)
    with pytest.raises(DocumentError, match=r"queued.json:1:1: No space left on device"):
        report(PLAN)
    assert cancelled == ["12"]
    assert "cancelled job 12 (pending)" in capsys.readouterr().out


def test_what_another_study_waits_for_is_left_unless_it_is_named(
    cancelled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run belongs to every plan with the same run spec."""
    plan = load(PLAN, Plan)
    write_yaml(Path("plans/other/plan.target.yaml"), plan)
    waiting = StudyState(state="waiting", message="waiting", submission="other-study-0a0b0c")
    write_json(Path("plans/other/study.json"), waiting)
    report(PLAN)
    assert cancelled == []
    assert "not cancelled: target, which the study other waits for" in capsys.readouterr().out
    [planned] = plan.runs
    report(Path("runs") / planned.run.fingerprint())
    assert cancelled == ["12"]
