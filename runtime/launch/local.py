"""Runs as processes of this machine: what fits the free devices is started, watched, and ended together.

A run takes as many slots as it has ranks (on a CPU: ranks x threads). The longest run starts first, the next ones
fill what is left. Nothing here knows what a rank computes: its exit status says how it ended (0 finished, 75 saved and
to be resumed, anything else failed), and its output lies in the run's `log/rank-N.txt`.

Two things keep a run folder to one owner. The launcher holds the folder's lock and every rank inherits it (see
lock.py). And every rank's standard input is a pipe whose other end only the launcher has (see rank.py).
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from runtime.launch.failure import Log, first_to_fail, why
from runtime.run_folder.lock import Claim, Hold, at_work
from specs.exit_codes import RESUME

_TICK_S = 0.1
"""Time between looks at the processes: far below the second in which a failure should show."""

_GRACE_S = 1.0
"""Time that ranks have to follow one that failed: long enough to tell who was first, and to say in a log why."""

State = Literal["finished", "interrupted", "failed", "busy", "not started", "queued"]


@dataclass(frozen=True)
class Job:
    """A run that is to be started."""

    folder: Path
    """Its run folder, which exists."""
    title: str
    """One line for tables."""
    ranks: int
    """Processes."""
    threads_per_rank: int
    """CPU threads of each."""
    on_gpu: bool
    """Whether each rank has a GPU of its own."""
    steps: int
    """Steps of the whole run."""
    step_tokens: int
    """Tokens of a step."""
    compute_flop: float
    """C = M D."""
    planned_s: float
    """Seconds it should take, which orders the queue."""

    @property
    def slots(self) -> int:
        """Devices it occupies: GPUs, or CPU cores."""
        return self.ranks if self.on_gpu else self.ranks * self.threads_per_rank

    def log(self, rank: int) -> Path:
        """What a rank prints."""
        return self.folder / "log" / f"rank-{rank}.txt"


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    job: Job
    state: State
    """`busy` is somebody else's run; `not started` had to wait until the launcher was stopped; `queued` is SLURM's."""
    message: str = ""
    """What happened, in one line; empty for a finished run."""
    rank_code: int = 0
    """Exit status of the rank that is to blame for a failure."""
    seconds: float = 0.0
    """Wall time of this segment."""


@dataclass
class Active:
    """A run in progress: its processes, and what they hold."""

    job: Job
    ranks: list[subprocess.Popen[bytes]]
    slots: tuple[str, ...]
    lock: Hold
    logs: list[Log]
    started_s: float = field(default_factory=time.monotonic)
    failed_s: float | None = None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every rank that lives, and to what it has started."""
        for rank in self.ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, number)

    def end(self) -> None:
        """Kill what still lives, wait for it, and release the folder."""
        self.send(signal.SIGKILL)
        for rank in self.ranks:
            rank.wait()
        self.lock.close()


class Stop:
    """How often the launcher was asked to stop: once is a request to save, twice is an order to end."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.asked += 1


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Count SIGINT, SIGTERM and SIGHUP instead of dying of them, until the block ends; what nohup ignores stays so."""
    stop = Stop()
    numbers = [
        n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def lifeline() -> Iterator[int]:
    """The read end of a pipe that nobody writes to: it ends when this process does."""
    read, write = os.pipe()
    try:
        yield read
    finally:
        os.close(read)
        os.close(write)


Watch = Callable[[Sequence[Active], Sequence[Outcome]], None]
"""Called at every look at the processes with the runs in progress and the outcomes so far."""


def launch(
    jobs: Sequence[Job],
    slots: Sequence[str],
    command: Callable[[Job], list[str]],
    watch: Watch,
    *,
    busy_patience_s: float = 10.0,
) -> list[Outcome]:
    """Run the jobs, each in its own processes, as many at a time as there are slots; one outcome per job.

    `slots` names the devices (for GPUs: as CUDA_VISIBLE_DEVICES does), `command` gives the program of a job's
    ranks. A failed run does not stop the others. SIGINT, SIGTERM or SIGHUP are passed on as SIGTERM, upon which
    ranks save and end; a second signal kills them. A folder that somebody else holds is tried again for
    `busy_patience_s`: ranks of a launcher that was just killed need a moment to notice. One whose owner was on another
    host and did not let go is waited for until that owner shows that it lives, or has not for a while.
    """
    with stop_signals() as stop, lifeline() as life:
        floor = _Floor(list(jobs), list(slots), command, life, busy_patience_s)
        try:
            while floor.active or (floor.queue and not stop.asked):
                if stop.asked:
                    floor.stop(signal.SIGTERM if stop.asked == 1 else signal.SIGKILL)
                else:
                    floor.start_what_fits()
                floor.reap()
                watch(floor.active, floor.outcomes)
                time.sleep(_TICK_S)
        finally:
            for run in floor.active:
                run.end()
    return floor.outcomes + [Outcome(job, "not started", "stopped before it began") for job in floor.queue]


class _Floor:
    """The queue, the free slots, the runs in progress and the outcomes of one launch."""

    def __init__(
        self,
        jobs: list[Job],
        slots: list[str],
        command: Callable[[Job], list[str]],
        life: int,
        patience_s: float,
    ) -> None:
        self.queue = sorted(jobs, key=lambda job: -job.planned_s)
        self.free = slots
        self.command = command
        self.life = life
        self.patience_s = patience_s
        self.active: list[Active] = []
        self.outcomes: list[Outcome] = []
        self.told: signal.Signals | None = None
        self.claims: dict[Path, Claim] = {}

    def start_what_fits(self) -> None:
        """Start queued jobs, longest first, while there are slots for them."""
        for job in list(self.queue):
            if job.slots > len(self.free):
                continue
            claim = self.claims.setdefault(job.folder, Claim(job.folder, patience_s=self.patience_s))
            lock = claim.take()
            if lock is None:
                if claim.hopeless:
                    self._busy(job)
                continue
            self.queue.remove(job)
            taken, self.free = tuple(self.free[: job.slots]), self.free[job.slots :]
            self.active.append(_start(job, self.command(job), taken, lock, self.life))

    def _busy(self, job: Job) -> None:
        self.queue.remove(job)
        message = f"{at_work(job.folder)}; wait for it or stop it, then run again"
        self.outcomes.append(Outcome(job, "busy", message))

    def reap(self) -> None:
        """Move the runs that ended from `active` to `outcomes`; a dead rank ends its run's others."""
        for run in list(self.active):
            outcome = _outcome(run, stopped=self.told is not None)
            if outcome is None:
                continue
            run.end()
            self.active.remove(run)
            self.free = sorted([*self.free, *run.slots])
            self.outcomes.append(outcome)

    def stop(self, number: signal.Signals) -> None:
        """Tell every rank to end, once per signal."""
        if self.told != number:
            self.told = number
            for run in self.active:
                run.send(number)


def _start(job: Job, argv: list[str], slots: tuple[str, ...], lock: Hold, life: int) -> Active:
    """Start a job's ranks, which write to its log and inherit its lock."""
    (job.folder / "log").mkdir(exist_ok=True)
    run = Active(job, [], slots, lock, [Log.to_append(job.log(rank)) for rank in range(job.ranks)])
    port = free_port()
    try:
        for rank, log in enumerate(run.logs):
            with log.path.open("ab") as output:
                run.ranks.append(
                    subprocess.Popen(
                        argv,
                        stdin=life,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=_environment(job, rank, port, slots),
                        pass_fds=(lock.descriptor,),
                        process_group=0,
                    )
                )
    except BaseException:
        run.end()
        raise
    return run


def _environment(job: Job, rank: int, port: int, slots: tuple[str, ...]) -> dict[str, str]:
    """The environment of a rank: its peers, threads and GPUs, and no modules from the current folder."""
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(job.threads_per_rank),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if job.on_gpu:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(slots)
    if Path("/sys/class/net/lo").exists():
        own["GLOO_SOCKET_IFNAME"] = (
            "lo"  # gloo else resolves the host's own name, which laptops and containers may lack
        )
    return os.environ | own


def _outcome(run: Active, *, stopped: bool) -> Outcome | None:
    """How a run ended, or None while it goes on."""
    now_s = time.monotonic()
    seconds = now_s - run.started_s
    codes = [rank.poll() for rank in run.ranks]
    bad = [rank for rank, code in enumerate(codes) if code not in (None, 0, RESUME)]
    if bad and not stopped:
        run.failed_s = run.failed_s or now_s
        if None in codes and now_s < run.failed_s + _GRACE_S:
            return None
        first = first_to_fail({rank: run.logs[rank] for rank in bad})
        code, log = codes[first] or 0, run.logs[first]
        message = f"{why(log, code)} (rank {first} of {run.job.ranks}; its log: {log.path})"
        return Outcome(run.job, "failed", message, code, seconds)
    if None in codes:
        return None
    if not any(codes):
        return Outcome(run.job, "finished", seconds=seconds)
    return Outcome(run.job, "interrupted", "stopped; run the same command again to go on", seconds=seconds)


def free_port() -> int:
    """A TCP port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
