"""`isoplan status`, on run folders as runs leave them, and with SLURM's answers as it gives them."""

import io
import json
import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from runtime.run_folder import lock
from runtime.run_folder.folder import RunFolder, open_folder
from runtime.run_folder.lock import LockAttempt, Owner, OwnerWatch
from runtime.run_folder.lookup import find_run, workspace_of
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.slurm import client
from runtime.slurm.client import EndedJob, LiveJob
from runtime.slurm.job_states import JobStates, job_states
from runtime.slurm.preflight.report import exclusion
from runtime.status import display
from runtime.status.collect import QueryJobs, StatusCollector, StudyStatus
from runtime.status.logs import RunOutput, last_lines, run_to_show
from runtime.status.run_status import RunStatus, StepForecast
from specs.document.base import Spec
from specs.document.files import DocumentError, load
from specs.document.write import append_line, write_json, write_yaml
from specs.plan import Plan
from specs.record import End, Environment, EvalLine, Incident, IncidentKind, Start, StepLine, TimingLine
from specs.run import Execution
from specs.slurm_submission import Queued, StudyState, Submission
from tests.runtime.commands.test_run_cli import one_line
from tests.support import samples
from tests.support.commands import isoplan
from tests.support.heartbeat import OWNER, held_elsewhere
from tests.support.slurm.desk import CLUSTER

TOKENS = samples.run().batch_tokens


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A workspace with a plan of one target, which is evaluated at steps 50 and 100."""
    plan = samples.sealed(samples.plan(), bytes_per_token=1.0, ledger="../../ledger.jsonl")
    write_yaml(tmp_path / "plans" / "small" / "plan.target.yaml", plan)
    return tmp_path


def target(home: Path) -> RunFolder:
    """The target's folder, made as a launch makes it."""
    [group] = StatusCollector(Workspace(home), None).groups()
    [(wanted, _)] = group.requests
    return open_folder(home / "runs", wanted.run, wanted.order)


def looked(home: Path, where: JobStates | None = None, asked: Path | None = None) -> RunStatus:
    """How the only run stands."""
    [run] = StatusCollector(Workspace(home), asked).collect(answer(where or JobStates())).runs
    return run


def answer(where: JobStates) -> QueryJobs:
    def locate(workspace: Workspace, runs: Sequence[str], studies: Sequence[str]) -> JobStates:
        return where

    return locate


def started(
    folder: RunFolder, from_step: int = 0, job: str | None = None, execution: Execution | None = None
) -> None:
    environment = Environment(host="laptop", python="3", packages={}, commit=None, cpu="a", devices=())
    line = Start(
        time=time.time(),
        run=folder.path.name,
        seal=None,
        from_step=from_step,
        execution=execution or samples.execution(),
        kernels={},
        environment=environment,
        job=job,
    )
    append_line(folder.record_jsonl, line)


def stepped(folder: RunFolder, step: int, seconds: float = 2.0) -> None:
    """A step's lines, as of 10 steps that took so long."""
    tokens, rate = step * TOKENS, 10 * TOKENS / seconds
    lines: list[tuple[Path, Spec]] = [
        (folder.metrics_jsonl, StepLine(step=step, tokens=tokens, loss=2.5, grad_norm=1.0, lr=0.1)),
        (folder.timing_jsonl, TimingLine(step=step, seconds=seconds, tokens_per_s=rate, mfu=0.25)),
    ]
    for path, line in lines:
        append_line(path, line)


def evaluated(folder: RunFolder, step: int, loss: float) -> None:
    append_line(folder.evals_jsonl, EvalLine(step=step, tokens=step * TOKENS, loss=loss, sequences=4))


def said(folder: RunFolder, what: IncidentKind, message: str) -> None:
    append_line(folder.record_jsonl, Incident(time=time.time(), step=10, what=what, message=message))


def live(state: str, reason: str = "", restarts: int = 0, starts: str = "", nodes: str = "") -> LiveJob:
    return LiveJob("12", "small-target-0a0b0c", state, reason, nodes, restarts, starts)


def with_slurm(folder: RunFolder, job: LiveJob | None = None, ended: EndedJob | None = None) -> JobStates:
    run = folder.path.name
    return JobStates({run: "12"}, {run: job} if job else {}, {run: ended} if ended else {})


def test_the_slowest_rank_of_a_running_run_is_named(home: Path) -> None:
    folder = target(home)
    held = LockAttempt(folder.path).acquire()
    assert held is not None
    started(folder, execution=samples.execution().model_copy(update={"layout": samples.layout(dp=4)}))
    append_line(folder.ranks_jsonl, samples.rank_line(10, [1.0, 1.0, 1.5, 3.0], [2.0, 2.0, 1.5, 0.0]))
    run = looked(home)
    assert run.straggler == "rank 3 on n1 computes 3 times as long as its peers"
    started(folder, from_step=20)  # no line of this segment yet
    assert looked(home).straggler == ""
    held.release()


def test_a_run_of_this_machine_from_nothing_to_its_end(home: Path) -> None:
    assert looked(home).state == "not started"
    folder = target(home)
    assert looked(home).state == "not started"
    held = LockAttempt(folder.path).acquire()
    assert held is not None
    started(folder)
    for step in (10, 20, 30, 40, 50):
        stepped(folder, step)
    evaluated(folder, 50, 3.1)
    run = looked(home)
    assert (run.state, run.step, run.steps, run.nodes) == ("running", 50, 100, socket.gethostname())
    assert run.tokens_per_s == pytest.approx(5 * TOKENS)
    assert run.remaining_s == pytest.approx(10.0)
    assert run.mfu == pytest.approx(0.25)
    assert run.forecast is not None
    assert (run.loss, run.forecast.median, run.forecast.compare(3.1)) == (3.1, 3.0, "inside")
    assert (run.forecast.compare(3.6), run.forecast.compare(2.4)) == ("above", "below")
    held.release()
    said(folder, "interrupted", "saved at step 50 of 100 after a signal to leave")
    run = looked(home)
    assert (run.state, run.end_reason, run.remaining_s) == (
        "stopped",
        "saved at step 50 of 100 after a signal to leave",
        None,
    )
    started(folder, 50)
    append_line(folder.record_jsonl, End(time=time.time(), step=100, loss=2.0, weights_sha256="0" * 64))
    run = looked(home)
    assert (run.state, run.restarts, run.nodes) == ("finished", 1, "laptop")


def test_a_segment_has_a_pace_of_its_own(home: Path) -> None:
    folder = target(home)
    started(folder)
    for step in (10, 20, 30):
        stepped(folder, step, seconds=20.0)
    started(folder, 20)
    assert looked(home).tokens_per_s is None or looked(home).step == 30
    for step in (30, 40):
        stepped(folder, step, seconds=1.0)
    assert looked(home).tokens_per_s == pytest.approx(10 * TOKENS)


def test_a_run_that_starts_again_shows_nothing_of_the_attempt_that_died(home: Path) -> None:
    folder = target(home)
    started(folder, job="12, restart 0, on node1")
    for step in (10, 20, 30):
        stepped(folder, step)
    evaluated(folder, 30, 3.1)
    busy = live("RUNNING", nodes="node1")
    run = looked(home, with_slurm(folder, busy))
    assert (run.step, run.restarts, run.loss) == (30, 0, 3.1)
    assert run.remaining_s == pytest.approx(14.0)
    (folder.checkpoints / "step-00000020").mkdir(parents=True)
    for again in (
        live("RUNNING", restarts=1),
        LiveJob("13", "small-target-0a0b0d", "RUNNING", "", "", 0, ""),
    ):
        run = looked(
            home, with_slurm(folder, again)
        )  # before its Start line, under the same job or a new one
        assert (run.state, run.step, run.restarts, run.loss, run.remaining_s) == (
            "running",
            20,
            1,
            None,
            None,
        )
    for path, until in ((folder.metrics_jsonl, 2), (folder.evals_jsonl, 0)):  # as a start cuts them
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:until]))
    started(folder, 20, job="12, restart 1, on node1")
    run = looked(home, with_slurm(folder, live("RUNNING", restarts=1)))
    assert (run.step, run.restarts, run.tokens_per_s, run.remaining_s) == (20, 1, None, None)
    stepped(folder, 30, seconds=1.0)
    assert looked(home, with_slurm(folder, live("RUNNING", restarts=1))).remaining_s == pytest.approx(7.0)


def test_what_a_rank_ended_with_is_told_but_not_what_it_survived(home: Path) -> None:
    folder = target(home)
    started(folder)
    log = folder.log / "rank-0.txt"
    log.write_text(
        "Traceback (most recent call last):\n  x\nOSError: [Errno 28] No space left on device: 'a'\n"
    )
    run = looked(home)
    assert run.state == "failed"
    assert run.end_reason.startswith("OSError: [Errno 28] No space left on device: 'a' (rank 0; its log: ")
    with log.open("a") as file:
        file.write("a tiny run: from step 0 of 100\n")
    assert looked(home).end_reason == "ended at step 0 without an error message"
    assert looked(home).state == "stopped"


def test_a_run_in_the_queue(home: Path) -> None:
    folder = target(home)
    run = looked(home, with_slurm(folder, live("PENDING", "Resources", starts="2030-01-02T03:04:05")))
    assert (run.state, run.pending_reason, run.job, run.expected_start) == (
        "pending",
        "Resources",
        "12",
        "2030-01-02T03:04:05",
    )
    run = looked(home, with_slurm(folder, live("RUNNING", nodes="node[1-2]")))
    assert (run.state, run.nodes, run.pending_reason, run.expected_start) == ("running", "node[1-2]", "", "")
    started(folder, job="12, restart 0, on node[1-2]")
    stepped(folder, 10)
    said(folder, "crashed", "Killed (rank 1 on node2): retry 1 of 3, from step 8")
    run = looked(home, with_slurm(folder, live("PENDING", "BeginTime", restarts=1)))
    assert (run.state, run.pending_reason, run.restarts) == ("requeued", "BeginTime", 1)
    assert "retry 1 of 3" in run.end_reason
    assert run.in_progress
    for held in ("JobHeldUser", "launch failed requeued held", "JobHoldMaxRequeue"):
        run = looked(home, with_slurm(folder, live("PENDING", held, restarts=1)))
        assert (run.state, run.pending_reason, run.in_progress) == ("held", held, False)
        snapshot = StatusCollector(Workspace(home), None).collect(
            answer(with_slurm(folder, live("PENDING", held)))
        )
        assert not snapshot.in_progress
        [(group, runs)] = snapshot.groups
        assert snapshot.next_of(group, runs).endswith("scontrol release 12")


def test_nodes_that_the_jobs_preflight_excluded_are_shown(home: Path) -> None:
    folder = target(home)
    said(folder, "failed_preflight", exclusion("node7", "11", "its link"))
    said(folder, "failed_preflight", exclusion("node2", "12", "0 GB are free in /tmp, 1 GB needed"))
    where = with_slurm(folder, live("PENDING", "BeginTime", restarts=1))
    assert looked(home, where).excluded == (
        "node2 is excluded from job 12: 0 GB are free in /tmp, 1 GB needed",
    )
    snapshot = StatusCollector(Workspace(home), None).collect(answer(where))
    printed = io.StringIO()
    display.show(snapshot, Console(file=printed, width=120))
    assert "node2 is excluded from job 12: 0 GB are free" in printed.getvalue()
    assert "node7" not in printed.getvalue()


def test_a_job_that_ended_before_its_run(home: Path) -> None:
    folder = target(home)
    run = looked(home, with_slurm(folder, ended=EndedJob("TIMEOUT", "0:0", "")))
    assert (run.state, run.end_reason) == ("stopped", "job 12 ended in state TIMEOUT")
    started(folder, job="12, restart 0, on node1")
    run = looked(home, with_slurm(folder, ended=EndedJob("FAILED", "1:0", "node1")))
    assert (run.state, run.end_reason) == ("failed", "job 12 ended in state FAILED")
    said(folder, "crashed", "given up")
    assert looked(home, with_slurm(folder)).end_reason == "job 12 ended: given up"
    # Where accounts know nothing, and the lock of a killed rank looks fresh, SLURM's word still stands.
    (folder.path / "lock").write_text('{"host": "node1", "process": 7}\n')
    assert looked(home, with_slurm(folder)).state == "failed"
    with held_elsewhere(folder.path):
        assert looked(home, JobStates({folder.path.name: "12"}, problem="no answer")).state == "running"
    (folder.path / "lock").unlink()
    run = looked(home, JobStates({folder.path.name: "12"}, problem="no answer"))
    assert (run.state, run.end_reason) == (
        "unknown",
        "its last job was 12, whose state is unknown while SLURM does not answer",
    )


def test_a_cancelled_run_is_no_failed_one(home: Path) -> None:
    """Whether it waited or was at work, and whatever had happened to it before."""
    folder = target(home)
    run = folder.path.name
    where = JobStates({run: "12"}, cancelled={run})
    told = looked(home, where)
    assert (told.state, told.end_reason, told.in_progress) == (
        "cancelled",
        "job 12 was cancelled; rerun to resume",
        False,
    )
    started(folder, job="12, restart 0, on node1")
    said(folder, "crashed", "Killed (rank 0 on node1): retry 1 of 3, from step 0")
    told = looked(home, where)
    assert (told.state, told.end_reason) == ("cancelled", "job 12 was cancelled; rerun to resume")
    said(folder, "interrupted", "saved at step 50 of 100 after a signal to leave")
    assert looked(home, where).end_reason == (
        "job 12 was cancelled: saved at step 50 of 100 after a signal to leave; rerun to resume"
    )
    started(folder, 50)  # taken up by this machine since
    assert looked(home, where).end_reason == "ended at step 0 without an error message"


def test_what_was_cancelled_is_known_by_slurm_or_where_it_was_written_down(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = target(home)
    run, ours, study = folder.path.name, "small-target-0a0b0c", "small-study-0a0b0c"
    for name, runs, job in ((ours, (run,), 12), (study, (), 13)):
        submission = Submission(name=name, time=1.0, runs=runs, job=job, retries=3)
        write_json(home / "slurm" / name / "submission.json", submission)
    told: dict[str, EndedJob] = {}
    monkeypatch.setattr(client, "live_jobs", lambda names, numbers: {})
    monkeypatch.setattr(client, "ended_jobs", lambda jobs: {job: told[job] for job in jobs if job in told})

    def cancelled(by_us: bool) -> set[str]:
        write_json(folder.queued_json, Queued(submission=ours, from_step=0, cancelled=by_us))
        return set(job_states(Workspace(home), [run], [study]).cancelled)

    assert cancelled(by_us=False) == set()
    assert cancelled(by_us=True) == {run}  # before the accounts know, or where there are none
    told |= {"12": EndedJob("CANCELLED by 0", "0:0", ""), "13": EndedJob("CANCELLED by 0", "0:0", "")}
    assert cancelled(by_us=False) == {run, study}
    told["12"] = EndedJob("FAILED", "1:0", "node1")
    assert cancelled(by_us=True) == {study}


def owner(folder: Path) -> Owner | None:
    return OwnerWatch().owners([folder]).get(folder)


def test_who_only_reads_sees_who_holds_a_folder(tmp_path: Path) -> None:
    assert owner(tmp_path) is None
    held = LockAttempt(tmp_path).acquire()
    assert held is not None
    assert owner(tmp_path) is not None
    held.release()
    assert owner(tmp_path) is None
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
    assert owner(tmp_path) is None  # it was killed, and another process has its number


@pytest.mark.parametrize("clock_s", [0.0, -120.0, 3600.0])
def test_an_owner_on_another_host_is_known_by_its_heartbeat_whatever_the_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock_s: float
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.2)
    watch = OwnerWatch()
    with held_elsewhere(tmp_path, clock_s):
        assert watch.owners([tmp_path]) == {tmp_path: OWNER}
    assert watch.owners([tmp_path]) == {}
    began_s = time.monotonic()
    assert watch.owners([tmp_path]) == {}, "it is not waited for again"
    assert time.monotonic() - began_s < 0.2


STUDY = StudyState(
    state="waiting", message="waiting for 1 job of the target", submission="small-study-0a0b0c"
)


@pytest.mark.parametrize(
    ("noted", "where", "state", "parts"),
    [
        (STUDY, JobStates(studies={"small-study-0a0b0c": live("PENDING", "Dependency")}), "waiting",
         ("continues automatically, waiting for 1 job", "job 12, pending, Dependency")),
        (STUDY, JobStates(studies={"small-study-0a0b0c": live("PENDING", "JobHeldUser")}), "held",
         ("its job is held (JobHeldUser)", "scontrol release 12")),
        (STUDY, JobStates(), "lost", ("SLURM no longer has its job", "run BUDGET --slurm --until-done")),
        (STUDY, JobStates(cancelled={"small-study-0a0b0c"}), "cancelled",
         ("cancelled; continue with: run BUDGET --slurm --until-done",)),
        (StudyState(state="cancelled", message="cancelled while waiting"), JobStates(), "cancelled",
         ("cancelled; continue with: run BUDGET --slurm --until-done",)),
        (STUDY, JobStates(problem="no answer"), "waiting", ("as of the last answer from SLURM",)),
        (StudyState(state="stopped", message="target: 1 run failed"), JobStates(), "stopped",
         ("target: 1 run failed", "run BUDGET --slurm --until-done")),
        (StudyState(state="done", message="inside: 1.2"), JobStates(), "done", ("plans/small/audit.html",)),
    ],
)  # fmt: skip
def test_a_study_says_what_to_do_next(
    home: Path, noted: StudyState, where: JobStates, state: str, parts: tuple[str, ...]
) -> None:
    write_json(home / "plans" / "small" / "study.json", noted)
    snapshot = StatusCollector(Workspace(home), None).collect(answer(where))
    [study] = snapshot.studies
    assert study.state == state
    for part in parts:
        assert part in study.message
    assert [plan["next"] for plan in snapshot.plain()["plans"]] == [""]  # only the study says what comes next


def test_a_study_names_its_budgets_file(home: Path) -> None:
    plan = load(home / "plans" / "small" / "plan.target.yaml", Plan)
    write_yaml(home / "our study.yaml", plan.budget)
    write_json(home / "plans" / "small" / "study.json", StudyState(state="stopped", message="1 run failed"))
    again = "continue with: run {} --slurm --until-done"

    def said_of(asked: Path | None) -> str:
        [study] = StatusCollector(Workspace(home), asked).collect(answer(JobStates())).studies
        return study.message

    assert said_of(None).endswith(again.format("BUDGET"))
    assert said_of(home / "our study.yaml").endswith(again.format(f"'{home}/our study.yaml'"))
    for name, time_s, budget in (("0a0b0c", 1.0, "old.yaml"), ("0a0b0d", 2.0, "our study.yaml")):
        submission = Submission(name=f"small-study-{name}", time=time_s, runs=(), budget=budget, retries=3)
        write_json(home / "slurm" / submission.name / "submission.json", submission)
    assert said_of(None).endswith(again.format("'our study.yaml'"))


def test_what_was_never_queued_goes_where_its_cluster_says(home: Path) -> None:
    path = home / "plans" / "small" / "plan.target.yaml"

    def then() -> str:
        [plan] = StatusCollector(Workspace(home), None).collect(answer(JobStates())).plain()["plans"]
        return str(plan["next"])

    assert then() == f"next: run {path}"
    (home / "lab.yaml").write_text(CLUSTER + "slurm: {partition: main}\n")
    budget = load(path, Plan).budget.model_copy(update={"cluster": "lab.yaml"})
    write_yaml(path, samples.sealed(load(path, Plan), budget=budget))
    assert then() == f"next: run {path} --slurm"
    started(target(home))  # on this machine, although it may have SLURM
    assert then() == f"next: run {path}"


def test_a_study_of_another_folder_is_not_looked_for_here(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plan = load(home / "plans" / "small" / "plan.target.yaml", Plan)
    write_yaml(home / "small.yaml", plan.budget)
    other = tmp_path_factory.mktemp("other")
    line = f"the runs of small are in {home}, not in {other}; change to that folder: cd {home}"
    for asked in ("small.yaml", "plans/small/plan.target.yaml"):
        shown = isoplan(other, "status", home / asked)
        assert line in shown.stdout.splitlines()
        assert json.loads(isoplan(home, "status", asked, "--json").stdout)["other_workspace"] == ""
    assert isoplan(other, "cancel", home / "small.yaml", PATH="/nowhere").stdout.splitlines() == [line]


def test_accounts_may_be_behind_when_nothing_seems_to_go_on(home: Path) -> None:
    folder = target(home)
    stopped = StatusCollector(Workspace(home), None).collect(answer(with_slurm(folder)))
    assert [display.is_settled(stopped, still) for still in (0, 2, 4, 5)] == [False, False, False, True]
    cancelled = JobStates({folder.path.name: "12"}, cancelled={folder.path.name})
    known = StatusCollector(Workspace(home), None).collect(answer(cancelled))
    assert [display.is_settled(known, still) for still in (0, 1, 2)] == [False, False, True]


def test_the_table_fits_a_hundred_columns(home: Path) -> None:
    folder = target(home)
    started(folder, job="12, restart 0, on node1")
    stepped(folder, 50)
    evaluated(folder, 50, 3.6)
    said(folder, "crashed", "Killed (rank 1 on node2): retry 1 of 3, from step 8")
    where = with_slurm(folder, live("PENDING", "Resources", 1, "2030-01-02T03:04:05"))
    printed = io.StringIO()
    display.show(
        StatusCollector(Workspace(home), None).collect(answer(where)), Console(file=printed, width=100)
    )
    _, *table, end_reason = printed.getvalue().splitlines()
    assert all(len(line) <= 100 for line in table)
    text = printed.getvalue()
    for part in ("requeued", "50/100", "above", "bits/byte", "MFU", "Resources,", "2030-01-02"):
        assert part in text
    assert end_reason == "requeued target: Killed (rank 1 on node2): retry 1 of 3, from step 8"


def test_no_title_is_wrapped_at_a_hundred_columns(home: Path) -> None:
    title = "3.2e+10 FLOP, width 20"
    snapshot = StatusCollector(Workspace(home), None).collect(answer(JobStates()))
    [(group, [run])] = snapshot.groups
    busy = replace(
        run, title=title, state="running", step=1234, steps=12345, loss=3.1, mfu=0.25, tokens_per_s=123456.0,
        remaining_s=200.0, nodes="node[1-12,14-20]", forecast=StepForecast(3.0, 2.5, 3.5),
    )  # fmt: skip
    pending = replace(
        busy,
        state="requeued",
        remaining_s=None,
        pending_reason="Priority",
        expected_start="2030-01-02T03:04:05",
    )
    printed = io.StringIO()
    display.show(replace(snapshot, groups=((group, (busy, pending)),)), Console(file=printed, width=100))
    assert printed.getvalue().count(title) == 2
    for part in ("3m20s", "node[1-12,14-", "0]", "Priority,", "2030-01-02"):
        assert part in printed.getvalue()
    assert all(len(line) <= 100 for line in printed.getvalue().splitlines()[1:])
    printed = io.StringIO()
    display.show(replace(snapshot, groups=((group, (busy, pending)),)), Console(file=printed, width=80))
    assert all(len(line) <= 80 for line in printed.getvalue().splitlines()[1:])
    assert "3m20s" in printed.getvalue()  # on what is narrower the titles give way as well


def test_a_finished_studys_loss_is_said_as_the_table_has_it(home: Path) -> None:
    folder = target(home)
    started(folder)
    evaluated(folder, 100, 3.0)
    append_line(folder.record_jsonl, End(time=time.time(), step=100, loss=3.0, weights_sha256="0" * 64))
    write_json(
        home / "plans" / "small" / "study.json", StudyState(state="done", message="inside: 3.0 nats/token")
    )
    [study] = StatusCollector(Workspace(home), None).collect(answer(JobStates())).studies
    assert study.message.startswith("done, inside: 3.0 nats/token (4.328 bits per byte, forecast ")


def test_following_ends_when_nothing_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = target(home)
    started(folder)
    stepped(folder, 10)
    monkeypatch.setattr(display, "REFRESH_S", 0.01)
    for terminal in (True, False):
        printed = io.StringIO()
        console = Console(file=printed, width=100, force_terminal=terminal)
        display.follow(StatusCollector(Workspace(home), None), console, json=False)
        assert "ended at step 10 without an error message" in printed.getvalue()
        assert (
            f"next: run {home}/plans/small/plan.target.yaml, which resumes from the latest checkpoints"
            in printed.getvalue()
        )


def test_what_a_terminal_has_no_room_for_is_counted(home: Path) -> None:
    snapshot = StatusCollector(Workspace(home), None).collect(answer(JobStates()))
    assert any(not isinstance(part, str) for part in display.rendered(snapshot, 20, 100))
    folded = display.rendered(snapshot, 5, 100)
    assert all(isinstance(part, str) for part in folded)
    assert "1 not started" in str(folded[0])


def test_what_is_at_work_and_what_to_do_show_however_many_are_queued_or_failed(home: Path) -> None:
    snapshot = StatusCollector(Workspace(home), None).collect(answer(JobStates()))
    [(group, [run])] = snapshot.groups
    states = [*["failed"] * 9, *["pending"] * 30, *["running"] * 2]
    runs = tuple(
        replace(
            run, title=f"pilot {one}", state=state, end_reason=f"job {one} ended" if state == "failed" else ""
        )
        for one, state in enumerate(states)
    )
    study = StudyStatus("small", "waiting", "continues automatically")
    many = replace(snapshot, groups=((group, runs),), studies=(study,))
    console = Console(file=io.StringIO(), width=100, height=24)
    with console.capture() as captured:
        for part in display.rendered(many, 24, 100):
            console.print(part)
    printed = captured.get()
    assert len(printed.splitlines()) <= 24
    assert "2 running, 30 pending, 9 failed" in " ".join(printed.split())
    assert all(text in printed for text in ("pilot 39", "pilot 40", "job 0 ended", "continues automatically"))


def test_the_command(home: Path) -> None:
    folder = target(home)
    shown = isoplan(home, "status")
    assert shown.returncode == 0, shown.stderr
    assert "not started" in shown.stdout
    assert "next: run plans/small/plan.target.yaml\n" in shown.stdout
    plain = json.loads(isoplan(home, "status", folder.path.name[:6], "--json").stdout)
    assert [run["run"] for run in plain["plans"][0]["runs"]] == [folder.path.name]
    one_line(isoplan(home, "status", "nonsense"), "no run has this path or fingerprint")


def test_what_may_be_asked_for(home: Path) -> None:
    folder = target(home)
    run_json = folder.run_json
    for asked in (folder.path, run_json, home / "plans" / "small" / "plan.target.yaml"):
        assert looked(home, asked=asked).run == folder.path.name
    with pytest.raises(DocumentError, match="there is no such file"):
        StatusCollector(Workspace(home), Path("nonsense.yaml"))
    with pytest.raises(DocumentError, match="this is not a budget, a plan or a run spec"):
        StatusCollector(Workspace(home), folder.order_json)
    printed = io.StringIO()
    display.show(StatusCollector(Workspace(home / "empty"), None).collect(), Console(file=printed))
    assert "next: plan BUDGET" in printed.getvalue()


def test_of_a_budget_the_chain(home: Path) -> None:
    plan = load(home / "plans" / "small" / "plan.target.yaml", Plan)
    write_yaml(home / "small.yaml", plan.budget)
    plain = StatusCollector(Workspace(home), home / "small.yaml").collect().plain()
    assert [step["step"] for step in plain["chain"]] == [
        "data",
        "plan",
        "pilots",
        "audit",
        "plan",
        "target",
        "audit",
    ]
    assert plain["chain"][-2]["state"] == "0 of 1 runs are finished"


def test_a_plan_that_cannot_be_read_hides_no_other(home: Path) -> None:
    broken = home / "plans" / "broken" / "plan.target.yaml"
    broken.parent.mkdir()
    broken.write_text("kind: plan\n")
    snapshot = StatusCollector(Workspace(home), None).collect()
    assert [run.state for run in snapshot.runs] == ["not started"]
    assert f"{broken}:1:1: " in snapshot.unreadable[0]


def test_without_slurms_programs_the_files_speak(home: Path) -> None:
    folder = target(home)
    write_json(folder.queued_json, Queued(submission="small-target-0a0b0c", from_step=0))
    submission = Submission(name="small-target-0a0b0c", time=1.0, runs=(folder.path.name,), job=12, retries=3)
    write_json(home / "slurm" / submission.name / "submission.json", submission)
    shown = isoplan(home, "status", PATH="/nowhere")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("squeue is not installed here; ")
    assert "its last job was 12, whose state is unknown" in shown.stdout
    one_line(isoplan(home, "cancel", folder.path.name, PATH="/nowhere"), "squeue is not installed here")


def test_a_run_is_named_by_how_it_begins_if_only_one_does(home: Path) -> None:
    for name in ("ab01", "ab02"):
        (home / "runs" / name).mkdir(parents=True)
        (home / "runs" / name / "run.json").write_text("{}")
    here = Workspace(home)
    with pytest.raises(
        DocumentError, match="2 fingerprints start with this: ab01, ab02; write more characters"
    ):
        find_run(Path("ab"), here)
    for nothing in ("abc", "runs/ab", "ab01/log"):
        with pytest.raises(DocumentError, match="no run has this path or fingerprint"):
            find_run(Path(nothing), here)
    for named in (Path("ab02"), home / "runs" / "ab02"):
        assert find_run(named, here).path == home / "runs" / "ab02"
    assert workspace_of(RunFolder(home / "runs" / "ab02"), Workspace(Path())) == here


def test_nothing_to_cancel(home: Path) -> None:
    folder = target(home)
    done = isoplan(home, "cancel", "plans/small/plan.target.yaml", PATH="/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nothing to cancel: none of these runs is queued or running in SLURM\n"
    assert not (home / "slurm").exists()
    held = LockAttempt(folder.path).acquire()
    assert held is not None
    started(folder)
    done = isoplan(home, "cancel", folder.path.name)
    held.release()
    assert f"not cancelled: process {os.getpid()} on {socket.gethostname()} is using " in done.stdout
    assert "press Ctrl-C where it was started" in done.stdout


def test_a_finished_run_is_not_cancelled_though_its_job_has_not_ended(home: Path) -> None:
    folder = target(home)
    write_json(folder.queued_json, Queued(submission="small-target-0a0b0c", from_step=0))
    started(folder)
    append_line(folder.record_jsonl, End(time=time.time(), step=100, loss=2.0, weights_sha256="0" * 64))
    done = isoplan(home, "cancel", folder.path.name, PATH="/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nothing to cancel: none of these runs is queued or running in SLURM\n"


def test_of_a_plan_logs_names_its_runs(home: Path) -> None:
    path = home / "plans" / "small" / "plan.target.yaml"
    with pytest.raises(RefusedError, match="none of its runs has a folder yet; see: isoplan status "):
        run_to_show(path, Workspace(home))
    folder = target(home)
    assert run_to_show(path, Workspace(home)).path == folder.path
    plan = load(path, Plan)
    other = plan.runs[0].run.model_copy(update={"seed": 7})
    runs = (*plan.runs, plan.runs[0].model_copy(update={"title": "twin", "run": other}))
    write_yaml(path, samples.sealed(plan, runs=runs))
    twin = home / "runs" / other.fingerprint()
    twin.mkdir()
    (twin / "run.json").write_text("{}")
    expected = f"this has several runs; name one of {folder.path.name[:8]} (target), {twin.name[:8]} (twin)"
    with pytest.raises(RefusedError, match=re.escape(expected)):
        run_to_show(path, Workspace(home))


def test_a_heading_has_something_under_it(home: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    printed = RunOutput(target(home), Workspace(home), 0)
    printed._write(home / "12_0_log.err", b"\n")
    printed._write(home / "12_0_log.out", b"")
    printed._write(home / "12_0_log.err", b"srun: no\n")
    out, err = capsysbinary.readouterr()
    assert (out, err) == (b"srun: no\n", f"==> {home}/12_0_log.err\n".encode())


@pytest.mark.slow
def test_logs_of_a_rank(home: Path) -> None:
    folder = target(home)
    run = folder.path.name
    nothing = isoplan(home, "logs", run)
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert nothing.stderr == f"rank 0 has printed nothing yet; see: isoplan status {run}\n"
    (folder.log / "rank-0.txt").write_text("".join(f"line {number}\n" for number in range(60)))
    shown = isoplan(home, "logs", run[:5])
    assert shown.stdout.splitlines() == [f"line {number}" for number in range(20, 60)]
    assert last_lines(folder.log / "rank-0.txt", 2)[0] == b"line 58\nline 59\n"
    [told] = json.loads(isoplan(home, "logs", run, "--lines", "1", "--json").stdout)
    assert told == {"file": f"runs/{run}/log/rank-0.txt", "lines": ["line 59"]}
    one_line(isoplan(home, "logs", run, "--json", "-f"), "drop one of them")
    one_line(isoplan(home, "logs", run, "--rank", "7"), "this run has no rank 7; choose a rank from 0 to 1")
    assert isoplan(home, "logs", "plans/small/plan.target.yaml", "--lines", "1").stdout == "line 59\n"
    said(folder, "crashed", "Killed (rank 1 on node2): given up")
    crashed = isoplan(home, "logs", run, "--lines", "1")
    assert (crashed.stdout, crashed.stderr) == ("line 59\n", "crashed: Killed (rank 1 on node2): given up\n")
    folder.record_jsonl.unlink()
    followed = isoplan(home, "logs", run, "--lines", "1", "-f")
    assert followed.stdout == "line 59\n"
    assert "not started at step 0 of 100" in followed.stderr
