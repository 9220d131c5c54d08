"""What follows a job's ranks: whether it is queued again, decided from the run's own files."""

import time
from pathlib import Path

import pytest

from runtime.run_folder.folder import RunFolder, checkpoint_name
from runtime.slurm import requeue
from runtime.slurm.requeue import DO_NOT_REQUEUE, REQUEUE
from specs.document.write import append_line, write_json
from specs.record import End, Environment, Incident, Start
from specs.slurm_submission import Queued, Submission
from tests.support import samples
from tests.support.heartbeat import held_elsewhere

RUN = "0123456789abcdef"
BEGAN_S = 1000.0


class Place:
    """A run of one job, as its script finds it."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path / "runs" / RUN)
        self.folder.log.mkdir(parents=True)
        self.slurm = path / "slurm" / "small-0a0b0c"
        self.slurm.mkdir(parents=True)
        submission = Submission(name=self.slurm.name, time=BEGAN_S, runs=(RUN,), job=12, retries=2)
        write_json(self.slurm / "submission.json", submission)
        write_json(self.folder.queued_json, Queued(submission=submission.name, from_step=0))
        self.starts = 0

    def starts_at(self, step: int) -> None:
        """A segment begins."""
        line = Start(
            time=time.time(),
            run=RUN,
            seal=None,
            from_step=step,
            newest_step=self.folder.newest_step,
            execution=samples.execution(),
            kernels={},
            environment=Environment(host="n1", python="3", packages={}, commit=None, cpu="a", devices=()),
            job=f"12, restart {self.starts}, on n1",
        )
        append_line(self.folder.record_jsonl, line)

    def saves(self, step: int) -> None:
        """A checkpoint is committed."""
        (self.folder.checkpoints / checkpoint_name(step)).mkdir(parents=True)

    def decides(self, status: int, printed: str = "", state: str = "RUNNING 0:20 None") -> int:
        """What follows when srun has ended with this status, by default as time is nearly up; then another start."""
        mark = f"{requeue.START_MARK} {self.starts}\n"
        (self.slurm / "12_0_log.err").write_text(mark + printed)
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("SLURM_JOB_ID", "12")
            patched.setenv("SLURM_RESTART_COUNT", str(self.starts))
            patched.setenv("SLURM_JOB_NODELIST", "n1")
            decided = requeue.main([str(self.slurm), str(status), state, "30"])
        self.starts += 1
        return decided

    @property
    def said(self) -> list[str]:
        """What the record says of crashes."""
        records = self.folder.records()
        return [line.message for line in records if isinstance(line, Incident) and line.what == "crashed"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def task(word: str) -> str:
    return f"srun: error: n1: task 0: {word}\n"


def test_a_run_that_was_saved_goes_on_however_often(place: Place) -> None:
    for step in range(0, 100, 10):
        place.starts_at(step)
        place.saves(step + 10)
        assert place.decides(0) == REQUEUE
    assert place.said == []


def test_a_finished_run_is_left_alone(place: Place) -> None:
    place.starts_at(0)
    append_line(place.folder.record_jsonl, End(time=1.0, step=100, loss=2.0, weights_sha256="0" * 64))
    assert place.decides(140, task("User defined signal 2")) == DO_NOT_REQUEUE


@pytest.mark.parametrize("printed", ["", task("User defined signal 2"), task("Terminated")])
@pytest.mark.parametrize("begun", [True, False])
def test_a_run_that_stops_without_a_checkpoint_is_not_retried_for_ever(
    place: Place, printed: str, begun: bool
) -> None:
    """Its start takes longer than its time, say: before the first step, or before there is a line of it."""
    place.starts_at(0)
    place.saves(50)
    assert place.decides(0) == REQUEUE
    decided = []
    for _ in range(3):
        if begun:
            place.starts_at(50)
        decided.append(place.decides(140 if printed else 0, printed))
    assert decided == [REQUEUE, REQUEUE, DO_NOT_REQUEUE]
    assert place.said[0].endswith("retry 1 of 2, from step 50")
    assert place.said[-1].endswith("not retried, after 3 failures and no new checkpoint since step 50")


def test_crashes_are_counted_since_the_newest_checkpoint(place: Place) -> None:
    killed = task("Killed")
    for step in (0, 50):
        place.starts_at(step)
        assert place.decides(137, killed) == REQUEUE
        place.starts_at(step)
        place.saves(step + 50)
        assert place.decides(137, killed) == REQUEUE
    assert [said.rpartition(": ")[2] for said in place.said] == [
        "retry 1 of 2, from step 0",
        "retry 1 of 2, from step 50",
        "retry 2 of 2, from step 50",
        "retry 1 of 2, from step 100",
    ]
    for _ in range(2):
        place.starts_at(100)
        last = place.decides(137, killed)
    assert last == DO_NOT_REQUEUE


def test_a_damaged_checkpoint_is_no_headway(place: Place) -> None:
    """Starts pass it over and go on from the one before; it stays until the next one is saved."""
    place.starts_at(0)
    place.saves(50)
    place.saves(100)
    assert place.decides(137, task("Killed")) == REQUEUE
    for expected in (REQUEUE, DO_NOT_REQUEUE):
        place.starts_at(50)
        assert place.decides(137, task("Killed")) == expected


def test_crashes_before_it_was_queued_count_no_more(place: Place) -> None:
    for _ in range(5):
        append_line(
            place.folder.record_jsonl, Incident(time=BEGAN_S - 1, step=0, what="crashed", message="-")
        )
    assert place.decides(137, task("Killed")) == REQUEUE
    assert place.said[-1].endswith("retry 1 of 2, from step 0")


@pytest.mark.parametrize(
    ("word", "decided"),
    [
        ("Exited with exit code 65", DO_NOT_REQUEUE),  # it would fail in the same way
        ("Exited with exit code 1", REQUEUE),
        ("Exited with exit code 2", REQUEUE),  # what SLURM says for a node on which there is no such program
    ],
)
def test_what_another_start_would_not_change(place: Place, word: str, decided: int) -> None:
    place.starts_at(0)
    assert place.decides(1, task(word)) == decided


@pytest.mark.parametrize(
    ("state", "decided"),
    [
        ("RUNNING 1-00:00:00 None", REQUEUE),
        ("COMPLETING INVALID TimeLimit", REQUEUE),  # which SLURM never queues again
        ("COMPLETING 10:00 None", DO_NOT_REQUEUE),  # cancelled, preempted or requeued
        ("", DO_NOT_REQUEUE),
    ],
)
def test_what_slurm_has_in_hand_is_left_to_it(place: Place, state: str, decided: int) -> None:
    place.starts_at(0)
    place.saves(50)
    assert place.decides(0, state=state) == decided


def test_who_is_preempted_while_it_starts_goes_on_however_often(place: Place) -> None:
    """It has the grace to leave; and there is time left, so that it is no start that takes too long."""
    for _ in range(5):
        place.starts_at(0)
        assert place.decides(143, task("Terminated"), "RUNNING 1:00:00 None") == REQUEUE
    assert place.said == []


def test_what_was_saved_before_the_guard_went_back_counts(place: Place) -> None:
    place.starts_at(0)
    place.saves(50)
    place.starts_at(50)  # in the same job
    assert place.decides(0) == REQUEUE
    assert place.said == []


def test_a_run_that_somebody_else_trains_is_waited_for(place: Place) -> None:
    """On a node that SLURM has given up; it is no fault of the run's, and it may take long."""
    with held_elsewhere(place.folder.path):
        for _ in range(5):
            assert place.decides(1, task("Exited with exit code 1")) == REQUEUE
    assert place.said == []


@pytest.mark.parametrize("state", ["RUNNING 1:00:00 None", "COMPLETING INVALID TimeLimit"])
def test_a_cancelled_run_is_left_alone(place: Place, state: str) -> None:
    """SLURM takes no notice of one who cancels a job whose time is up."""
    place.starts_at(0)
    place.saves(50)
    queued = Queued(submission=place.slurm.name, from_step=0, cancelled=True)
    write_json(place.folder.queued_json, queued)
    assert place.decides(0, state=state) == DO_NOT_REQUEUE
    write_json(place.folder.queued_json, queued.model_copy(update={"submission": "an-earlier-one"}))
    assert place.decides(0, state=state) == REQUEUE
