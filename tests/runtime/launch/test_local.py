import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from runtime.launch.failure import Log
from runtime.launch.local import Job, Outcome, RunningJob, launch
from runtime.launch.progress import ProgressDisplay, RunProgress, remaining_s
from runtime.run_folder.lock import LockAttempt, recorded_owner
from runtime.run_folder.tail import last_line
from tests.support.paths import ROOT


def make_job(folder: Path, title: str, **changes: object) -> Job:
    (folder / title).mkdir(parents=True, exist_ok=True)
    plain = {
        "folder": folder / title,
        "title": title,
        "ranks": 1,
        "threads_per_rank": 1,
        "on_gpu": False,
        "steps": 10,
        "step_tokens": 100,
        "compute_flop": 1e9,
        "planned_s": 1.0,
    }
    return Job(**(plain | changes))  # type: ignore[arg-type]


def python(code: str) -> Callable[[Job], list[str]]:
    """A program for ranks: `code` in a new Python, with the rank, the world's size and the folder at hand."""
    head = "import os, sys, time, signal, pathlib\nrank = int(os.environ['RANK'])\n"
    return lambda job: [sys.executable, "-P", "-c", head + code, str(job.folder)]


def ignore(active: Sequence[RunningJob], outcomes: Sequence[Outcome]) -> None:
    pass


class Gauge:
    """Notes what was in progress together, and in which order runs began."""

    def __init__(self) -> None:
        self.most_slots = 0
        self.begun: list[str] = []

    def __call__(self, active: Sequence[RunningJob], outcomes: Sequence[Outcome]) -> None:
        self.most_slots = max(self.most_slots, sum(run.job.slots for run in active))
        self.begun += [run.job.title for run in active if run.job.title not in self.begun]


@pytest.mark.slow
def test_slots_are_filled_longest_first_and_never_overfilled(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, f"run{i}", planned_s=float(i)) for i in range(4)]
    wide = make_job(tmp_path, "wide", ranks=2, planned_s=10.0)
    threads = make_job(tmp_path, "threads", threads_per_rank=2, planned_s=0.5)
    gauge = Gauge()
    outcomes = launch([*jobs, wide, threads], ["0", "1"], python("time.sleep(.3)"), gauge)
    assert [o.state for o in outcomes] == ["finished"] * 6
    assert gauge.most_slots == 2
    assert gauge.begun == ["wide", "run3", "run2", "run1", "threads", "run0"] or gauge.begun == [
        "wide",
        "run3",
        "run2",
        "run1",
        "run0",
        "threads",
    ]


def test_ranks_know_their_place_their_peers_and_their_threads(tmp_path: Path) -> None:
    names = (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "OMP_NUM_THREADS",
        "PYTHONSAFEPATH",
    )
    job = make_job(tmp_path, "run", ranks=2, threads_per_rank=3)
    launch([job], list("012345"), python(f"print(*(os.environ[n] for n in {names}))"), ignore)
    first, second = (job.log(rank).read_text().split() for rank in range(2))
    assert first[:4] == ["0", "0", "2", "127.0.0.1"]
    assert second[:4] == ["1", "1", "2", "127.0.0.1"]
    assert first[4] == second[4]
    assert int(first[4]) > 1023
    assert first[5:] == second[5:] == ["3", "1"]


@pytest.mark.slow
def test_two_runs_on_gpus_get_different_ones(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, name, on_gpu=True, ranks=2, threads_per_rank=8) for name in ("one", "two")]
    launch(
        jobs,
        ["0", "1", "2", "3"],
        python("print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(.5)"),
        ignore,
    )
    assert sorted(job.log(1).read_text().strip() for job in jobs) == ["0,1", "2,3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "rank_code", "says"),
    [
        ("sys.exit('RuntimeError: no such luck')", 1, "RuntimeError: no such luck"),
        ("raise ValueError('of what')", 1, "ValueError: of what"),
        ("print('a line'); sys.exit(2)", 2, "a line"),
        ("os._exit(9)", 9, "it exited without printing anything"),
        ("os.kill(os.getpid(), 9)", -9, "killed (signal 9), possibly out of memory"),
        (
            "print('at the edge', flush=True); os.kill(os.getpid(), 11)",
            -11,
            "Segmentation fault (signal 11); last line of its log: at the edge",
        ),
        ("print('[rank1]: ValueError: of what', flush=True); os.abort()", -6, "ValueError: of what (rank"),
    ],
)
def test_a_dead_rank_ends_its_run_within_seconds_and_is_named(
    tmp_path: Path, code: str, rank_code: int, says: str
) -> None:
    job = make_job(tmp_path, "bad", ranks=2)
    begun_s = time.monotonic()
    outcomes = launch([job], ["0", "1"], python(f"if rank == 1:\n    {code}\ntime.sleep(60)"), ignore)
    assert time.monotonic() - begun_s < 5
    assert [(o.state, o.rank_code) for o in outcomes] == [("failed", rank_code)]
    assert says in outcomes[0].message
    assert "rank 1 of 2" in outcomes[0].message
    assert str(job.log(1)) in outcomes[0].message


@pytest.mark.slow
def test_a_run_that_hung_starts_again_until_it_hangs_too_often_at_the_same_step(tmp_path: Path) -> None:
    """It hangs three times, saves a checkpoint with the third start, and would hang forever."""
    code = """
folder = pathlib.Path(sys.argv[1])
starts = len(list(folder.glob("start-*")))
(folder / f"start-{starts}").touch()
if starts == 2:
    (folder / "checkpoints" / "step-00000010").mkdir(parents=True)
print("HangError: rank 7 does not answer")
os._exit(69 if sys.argv[1].endswith("forever") or starts < 3 else 0)
"""
    jobs = [make_job(tmp_path, "thrice"), make_job(tmp_path, "forever")]
    thrice, forever = sorted(
        launch(jobs, ["0", "1"], python(code), ignore), key=lambda one: one.state != "finished"
    )
    assert (thrice.state, len(list(thrice.job.folder.glob("start-*")))) == ("finished", 4)
    assert (forever.state, len(list(forever.job.folder.glob("start-*")))) == ("failed", 6)
    assert forever.message.startswith("HangError: rank 7 does not answer (rank 0 of 1; its log: ")


@pytest.mark.slow
def test_other_runs_go_on_when_one_fails(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, name) for name in ("bad", "good", "late")]
    code = "if sys.argv[1].endswith('bad'):\n    sys.exit(1)\ntime.sleep(.3)"
    outcomes = launch(jobs, ["0", "1"], python(code), ignore)
    assert {o.job.title: o.state for o in outcomes} == {
        "bad": "failed",
        "good": "finished",
        "late": "finished",
    }


FOLLOWS = """
def await_(path):
    while not (path.exists() and path.stat().st_size):
        time.sleep(.01)
folder = pathlib.Path(sys.argv[1])
if rank == 0:
    await_(folder / 'log' / 'rank-1.txt')
    time.sleep(.05)
print('RuntimeError: of rank', rank, flush=True)
if rank == 1:
    await_(folder / 'log' / 'rank-0.txt')
    time.sleep(.3)
sys.exit(1)
"""


def test_the_first_rank_to_fail_is_blamed_not_those_that_followed(tmp_path: Path) -> None:
    job = make_job(tmp_path, "run", ranks=2)
    outcomes = launch([job], ["0", "1"], python(FOLLOWS), ignore)
    assert "RuntimeError: of rank 1 (" in outcomes[0].message


def test_a_rank_that_asks_to_be_resumed_is_interrupted_not_failed(tmp_path: Path) -> None:
    outcomes = launch([make_job(tmp_path, "run", ranks=2)], ["0", "1"], python("sys.exit(75)"), ignore)
    assert [o.state for o in outcomes] == ["interrupted"]


def test_the_last_error_of_this_segment_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("ValueError: of the last segment\n")
    log = Log.to_append(path)
    assert (log.error, log.final_line) == (None, "it exited without printing anything")
    with path.open("a") as file:
        file.write(
            "Traceback (most recent call last):\n  File x\ntorch.OutOfMemoryError: 3 GiB\n[W] a late warning\n"
        )
    assert (log.error, log.final_line) == ("torch.OutOfMemoryError: 3 GiB", "[W] a late warning")


SAVES = """
def stop(number, frame):
    pathlib.Path(sys.argv[1], f'saved{rank}').touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, lambda *a: sys.exit('ranks must not see the terminal'))
pathlib.Path(sys.argv[1], f'ready{rank}').touch()
time.sleep(60)
"""


@contextlib.contextmanager
def signals_when(ready: Callable[[], bool], *numbers: signal.Signals) -> Iterator[None]:
    """Send signals to this process, one as soon as it is ready, the others a second apart."""

    def send() -> None:
        while not ready():
            time.sleep(0.05)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(1)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_ranks_save(tmp_path: Path, number: signal.Signals) -> None:
    job, later = make_job(tmp_path, "run", ranks=2, planned_s=2.0), make_job(tmp_path, "later")
    before = signal.getsignal(number)
    with signals_when(lambda: len(list(job.folder.glob("ready*"))) == 2, number):
        outcomes = launch([job, later], ["0", "1"], python(SAVES), ignore)
    assert {o.job.title: o.state for o in outcomes} == {"run": "interrupted", "later": "not started"}
    assert len(list(job.folder.glob("saved*"))) == 2
    assert signal.getsignal(number) == before


@pytest.mark.slow
def test_a_second_signal_kills(tmp_path: Path) -> None:
    job = make_job(tmp_path, "run")
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\npathlib.Path(sys.argv[1], 'ready').touch()\ntime.sleep(60)"
    begun_s = time.monotonic()
    with signals_when((job.folder / "ready").exists, signal.SIGINT, signal.SIGINT):
        outcomes = launch([job], ["0"], python(code), ignore)
    assert time.monotonic() - begun_s < 10
    assert [o.state for o in outcomes] == ["interrupted"]


def test_an_error_in_the_launcher_leaves_no_process_behind(tmp_path: Path) -> None:
    job = make_job(tmp_path, "run")

    def fail(active: Sequence[RunningJob], outcomes: Sequence[Outcome]) -> None:
        if (job.folder / "pid").exists():
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        launch([job], ["0"], python("pathlib.Path(sys.argv[1], 'pid').write_text('x'); time.sleep(60)"), fail)
    lock = LockAttempt(job.folder).acquire()
    assert lock is not None
    lock.release()


LAUNCHER = """
import sys
from pathlib import Path
from tests.runtime.launch.test_local import ignore, make_job
from runtime.launch.failure import Log
from runtime.launch.local import launch
folder = Path(sys.argv[1])
rank = "from runtime.train.rank import watch_launcher; watch_launcher(); " * int(sys.argv[2])
rank += "import time, os, sys; f = open(sys.argv[1] + '/writes' + os.environ['RANK'], 'w')\\n"
rank += "while True: f.write('x'); f.flush(); time.sleep(.02)"
launch([make_job(folder, "run", ranks=2)], ["0", "1"],
       lambda job: [sys.executable, "-P", "-c", rank, str(job.folder)], ignore)
"""


@pytest.fixture
def killed_launcher(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The run folder of a launcher that was killed outright while its two ranks were writing."""
    argv = [sys.executable, "-c", LAUNCHER, str(tmp_path), str(int(request.param))]
    with subprocess.Popen(argv, env=os.environ | {"PYTHONPATH": str(ROOT)}) as launcher:
        writes = [tmp_path / "run" / f"writes{rank}" for rank in range(2)]
        while not all(path.exists() and path.stat().st_size for path in writes):
            assert launcher.poll() is None
            time.sleep(0.05)
        launcher.kill()
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("killed_launcher", [True], indirect=True)
def test_ranks_die_with_a_launcher_that_was_killed(killed_launcher: Path) -> None:
    time.sleep(1)
    writes = killed_launcher / "run" / "writes1"
    size = writes.stat().st_size
    time.sleep(0.3)
    assert writes.stat().st_size == size
    lock = LockAttempt(killed_launcher / "run").acquire()
    assert lock is not None
    lock.release()


@pytest.mark.slow
@pytest.mark.parametrize("killed_launcher", [False], indirect=True)
def test_ranks_that_outlive_their_launcher_keep_the_folder(killed_launcher: Path) -> None:
    job = make_job(killed_launcher, "run")
    owner = str(recorded_owner(job.folder))
    outcomes = launch([job], ["0"], python(""), ignore, busy_patience_s=0.5)
    assert [o.state for o in outcomes] == ["busy"]
    assert owner.startswith("process ")
    assert owner in outcomes[0].message
    for pid in orphans(killed_launcher):
        os.kill(pid, signal.SIGKILL)
    assert [o.state for o in launch([job], ["0"], python(""), ignore)] == ["finished"]


def orphans(folder: Path) -> list[int]:
    """Processes whose command line names this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in entry.read_bytes() and int(entry.parent.name) != os.getpid():
                found.append(int(entry.parent.name))
    return found


TAKES_THE_PORT = """
import errno, socket
address, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
thief = socket.socket()
thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    thief.bind((address, port))
except OSError as error:
    sys.exit(error.errno != errno.EADDRINUSE)
sys.exit('RuntimeError: the port was free')
"""


def test_nobody_takes_the_port_where_the_ranks_are_to_meet(tmp_path: Path) -> None:
    outcomes = launch([make_job(tmp_path, "run")], ["0"], python(TAKES_THE_PORT), ignore)
    assert [(o.state, o.message) for o in outcomes] == [("finished", "")]


MEETS = """
import socket
port = int(os.environ['MASTER_PORT'])
if rank == 0:
    elsewhere = socket.create_server(('127.0.0.2', port))
import torch
import torch.distributed as dist
from model.mesh import connect
with connect(2, 1, 1, rank=rank, rendezvous='env://', device='cpu', timeout_s=60) as mesh:
    total = torch.ones(1)
    dist.all_reduce(total, group=mesh.dp.group)
    assert total.item() == 2
"""


@pytest.mark.slow
def test_ranks_meet_at_a_port_that_another_address_of_the_machine_uses_too(tmp_path: Path) -> None:
    outcomes = launch([make_job(tmp_path, "run", ranks=2)], ["0", "1"], python(MEETS), ignore)
    assert [(o.state, o.message) for o in outcomes] == [("finished", "")]


LEAVES = """
import socket
if rank == 0:
    sys.exit()
address, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
for attempt in range(2000):
    try:
        with socket.create_connection((address, port), timeout=1) as meeting:
            meeting.recv(1)
    except ConnectionRefusedError:
        sys.exit()
    except ConnectionResetError:  # it was closed meanwhile
        pass
    time.sleep(.01)
sys.exit('RuntimeError: somebody still listens')
"""


def test_a_rank_finds_nobody_where_rank_0_has_left(tmp_path: Path) -> None:
    """Neither the launcher nor another rank keeps the socket open."""
    outcomes = launch([make_job(tmp_path, "run", ranks=2)], ["0", "1"], python(LEAVES), ignore)
    assert [(o.state, o.message) for o in outcomes] == [("finished", "")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ('{"step": 1', None),
        ('{"step": 1}\n{"st', {"step": 1}),
        ('{"step": 1}\n{"step": 2}\n', {"step": 2}),
        ("x" * 10_000 + '\n{"step": 3}\n', {"step": 3}),
        ("x" * 10_000 + "\n", None),
    ],
)
def test_the_last_whole_line_is_read_from_the_end(tmp_path: Path, text: str, expected: object) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    assert last_line(path) == expected
    assert last_line(tmp_path / "absent") is None


def test_a_pace_counts_from_the_first_new_step_of_a_segment(tmp_path: Path) -> None:
    job = make_job(tmp_path, "run", steps=100)
    metrics = job.folder / "metrics.jsonl"

    def at(step: int, now_s: float) -> RunProgress:
        metrics.write_text(f'{{"step": {step}, "loss": 2.5}}\n')
        pace.update(now_s)
        return pace

    pace = RunProgress(job)
    pace.update(0.0)
    assert (pace.step, pace.loss, pace.steps_per_s, pace.remaining_s) == (0, None, None, None)
    assert at(40, 1.0).steps_per_s is None  # where the last segment ended
    assert at(30, 5.0).steps_per_s is None  # cut back to its checkpoint
    assert at(31, 8.0).steps_per_s is None  # the first step, after all the imports
    assert at(51, 18.0).steps_per_s == pytest.approx(2.0)
    assert pace.remaining_s == pytest.approx(24.5)
    assert pace.new_flop == pytest.approx(1e9 * 21 / 100)


RECORDS = """
import json
folder = pathlib.Path(sys.argv[1])
time.sleep(.3)
with open(folder / 'record.jsonl', 'a') as record, open(folder / 'metrics.jsonl', 'a') as metrics:
    for what, message in ('outside_band', 'loss 3 is above [2, 2.5]'), ('interrupted', 'saved'):
        record.write(json.dumps({'event': 'incident', 'what': what, 'message': message}) + '\\n')
    for step in range(1, 11):
        metrics.write(json.dumps({'step': step, 'loss': 10 / step}) + '\\n')
        metrics.flush()
        time.sleep(.1)
    if folder.name == 'bad':
        sys.exit('ValueError: of [what]')
    record.write(json.dumps({'event': 'end', 'loss': 2.0}) + '\\n')
"""


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False])
def test_a_launch_is_told_as_it_goes(tmp_path: Path, terminal: bool) -> None:
    jobs = [make_job(tmp_path, name, planned_s=s) for name, s in (("good", 3.0), ("bad", 2.0), ("held", 1.0))]
    lock = LockAttempt(jobs[2].folder).acquire()
    assert lock is not None
    old = '{"event": "incident", "what": "outside_band", "message": "of an earlier segment"}\n'
    (jobs[0].folder / "record.jsonl").write_text(old)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    with ProgressDisplay(console, jobs, 1) as board:
        launch(jobs, ["0"], python(RECORDS), board, busy_patience_s=0.2)
    assert lock is not None
    lock.release()
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert said.count("alarm good: loss 3 is above [2, 2.5]") == 1
    assert "saved" not in said
    assert "earlier segment" not in said
    assert "finished good in " in said
    assert "held-out loss 2.0000 nats per token" in said
    assert "failed bad: ValueError: of [what] (rank 0 of 1" in said
    assert f"busy held: process {os.getpid()} on " in said
    assert ("tokens/s" in said) == terminal


def test_the_time_left_is_bound_by_the_slots_and_by_the_slowest(tmp_path: Path) -> None:
    job = make_job(tmp_path, "run", steps=100)
    pace = RunProgress(job)
    for step, now_s in ((1, 0.0), (2, 1.0), (3, 2.0)):
        (job.folder / "metrics.jsonl").write_text(f'{{"step": {step}, "loss": 1.0}}\n')
        pace.update(now_s)
    assert remaining_s([pace], [], None, 2) == pytest.approx(97.0)
    assert remaining_s([pace], [make_job(tmp_path, "next")], None, 2) is None
    wide = make_job(tmp_path, "wide", ranks=2)
    assert remaining_s([pace], [wide] * 3, 1e7, 2) == pytest.approx((97 + 3 * 2 * 50) / 2)
