"""Launch runs as processes of this machine: start what fits the free devices, watch it, stop it.

A run takes as many slots as it has ranks (on a CPU: ranks x threads). The longest run starts first, the next ones fill
the remaining slots. A rank's exit status says how it ended (0 finished, 75 saved and to be resumed, else failed); its
output is in the run's `log/rank-N.txt`.

Two things give a run folder one owner. The launcher holds the folder's lock and every rank inherits it
(runtime/run_folder/lock.py). And every rank's standard input is a pipe whose other end only the launcher holds
(runtime/train/rank.py).
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
from typing import Literal

from runtime.launch.failure import Log, failure_reason, first_to_fail
from runtime.launch.stop import STOP
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lock import FolderLock, LockAttempt, busy_message
from specs.exit_codes import HUNG, RESUME

_TICK_S = 0.1
"""Seconds between polls of the processes: far below the second in which a failure should show."""

_GRACE_S = 1.0
"""Seconds that the other ranks may run after one fails: enough to log their errors and to tell which failed first."""

_RESTARTS_AFTER_HANGS = 3
"""Restarts of a run that hangs again and again without a new checkpoint: our choice."""

State = Literal["finished", "interrupted", "failed", "busy", "not started", "queued", "cancelled"]


@dataclass(frozen=True)
class Job:
    """A run to start."""

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
    """Planned seconds, which order the queue."""

    @property
    def slots(self) -> int:
        """Devices it occupies: GPUs, or CPU cores."""
        return self.ranks if self.on_gpu else self.ranks * self.threads_per_rank

    def log(self, rank: int) -> Path:
        """The log file of a rank."""
        return self.folder / "log" / f"rank-{rank}.txt"


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    job: Job
    state: State
    """`busy`: another process holds the run folder; `not started`: the launcher stopped before; `queued`: on SLURM;
    `cancelled`: its SLURM job was."""
    message: str = ""
    """Why, in one line; empty for a finished run."""
    rank_code: int = 0
    """Exit status of the rank that failed first."""
    seconds: float = 0.0
    """Wall time of this segment."""


@dataclass
class RunningJob:
    """A run in progress: its processes, devices, lock and logs."""

    job: Job
    ranks: list[subprocess.Popen[bytes]]
    slots: tuple[str, ...]
    lock: FolderLock
    logs: list[Log]
    started_s: float = field(default_factory=time.monotonic)
    failed_s: float | None = None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process group of every rank that is running."""
        for rank in self.ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, number)

    def end(self) -> None:
        """Kill the ranks that are still running, wait for them, and release the folder."""
        self.send(signal.SIGKILL)
        for rank in self.ranks:
            rank.wait()
        self.lock.release()


@contextmanager
def launcher_pipe() -> Iterator[int]:
    """The read end of a pipe that carries no data and closes when this process ends."""
    read, write = os.pipe()
    try:
        yield read
    finally:
        os.close(read)
        os.close(write)


Watch = Callable[[Sequence[RunningJob], Sequence[Outcome]], None]
"""Called at every poll with the runs in progress and the outcomes so far."""


def launch(
    jobs: Sequence[Job],
    slots: Sequence[str],
    command: Callable[[Job], list[str]],
    watch: Watch,
    *,
    busy_patience_s: float = 10.0,
) -> list[Outcome]:
    """Run the jobs, each in its own processes, as many at a time as the slots allow; one outcome per job.

    `slots` names the devices (GPUs as in CUDA_VISIBLE_DEVICES), `command` gives the program of a job's ranks. A failed
    run does not stop the others. One that hung, and was ended by its watchdog (runtime/train/watchdog.py), starts
    again. A stop signal is a graceful shutdown: the ranks get SIGTERM, save and exit; a second one kills them;
    `STOP.received` says afterwards whether there was one. A folder that another process holds is retried for
    `busy_patience_s`, since the ranks of a launcher that was just killed take a moment to exit. An owner on another
    host that crashed is waited for until its heartbeat proves that it is alive, or has been missing for long enough.
    """
    with STOP.count(), launcher_pipe() as pipe:
        launcher = _Launcher(list(jobs), list(slots), command, pipe, busy_patience_s)
        try:
            while launcher.active or (launcher.queue and not STOP.received):
                if STOP.received:
                    launcher.stop(signal.SIGTERM if STOP.received == 1 else signal.SIGKILL)
                else:
                    launcher.start_what_fits()
                launcher.reap()
                watch(launcher.active, launcher.outcomes)
                time.sleep(_TICK_S)
        finally:
            for run in launcher.active:
                run.end()
    return launcher.outcomes + [
        Outcome(job, "not started", "the launcher stopped before this run started") for job in launcher.queue
    ]


class _Launcher:
    """The queue, the free slots, the runs in progress and the outcomes of one launch."""

    def __init__(
        self,
        jobs: list[Job],
        slots: list[str],
        command: Callable[[Job], list[str]],
        pipe: int,
        patience_s: float,
    ) -> None:
        self.queue = sorted(jobs, key=lambda job: -job.planned_s)
        self.free = slots
        self.command = command
        self.pipe = pipe
        self.patience_s = patience_s
        self.active: list[RunningJob] = []
        self.outcomes: list[Outcome] = []
        self.stop_signal: signal.Signals | None = None
        self.lock_attempts: dict[Path, LockAttempt] = {}
        self.hangs: dict[Path, tuple[int, int]] = {}
        """By run folder: its newest checkpoint's step when it last hung, and how often it has hung since that one."""

    def start_what_fits(self) -> None:
        """Start queued jobs, longest first, while there are slots for them."""
        for job in list(self.queue):
            if job.slots > len(self.free):
                continue
            attempt = self.lock_attempts.setdefault(
                job.folder, LockAttempt(job.folder, patience_s=self.patience_s)
            )
            lock = attempt.acquire()
            if lock is None:
                if attempt.owner_is_alive:
                    self._give_up_busy(job)
                continue
            self.queue.remove(job)
            taken, self.free = tuple(self.free[: job.slots]), self.free[job.slots :]
            self.active.append(_start(job, self.command(job), taken, lock, self.pipe))

    def _give_up_busy(self, job: Job) -> None:
        self.queue.remove(job)
        message = f"{busy_message(job.folder)}; wait for it or stop it, then rerun"
        self.outcomes.append(Outcome(job, "busy", message))

    def reap(self) -> None:
        """Move ended runs from `active` to `outcomes`; when a rank has failed, kill its run's other ranks."""
        for run in list(self.active):
            outcome = _outcome(run, stopped=self.stop_signal is not None)
            if outcome is None:
                continue
            run.end()
            self.active.remove(run)
            self.free = sorted([*self.free, *run.slots])
            if outcome.rank_code == HUNG and self._starts_again(run.job):
                self.queue.insert(0, run.job)
            else:
                self.outcomes.append(outcome)

    def _starts_again(self, job: Job) -> bool:
        """Whether a run that hung has not done so too often since its newest checkpoint."""
        newest = RunFolder(job.folder).newest_step
        step, hangs = self.hangs.get(job.folder, (newest, 0))
        hangs = hangs + 1 if step == newest else 1
        self.hangs[job.folder] = newest, hangs
        self.lock_attempts.pop(job.folder, None)
        return hangs <= _RESTARTS_AFTER_HANGS and not STOP.received

    def stop(self, number: signal.Signals) -> None:
        """Send every rank this signal, once."""
        if self.stop_signal != number:
            self.stop_signal = number
            for run in self.active:
                run.send(number)


def _start(job: Job, argv: list[str], slots: tuple[str, ...], lock: FolderLock, pipe: int) -> RunningJob:
    """Start a job's ranks, which write to its logs and inherit its lock."""
    (job.folder / "log").mkdir(exist_ok=True)
    run = RunningJob(job, [], slots, lock, [Log.to_append(job.log(rank)) for rank in range(job.ranks)])
    try:
        with rendezvous_socket() as listener:
            for rank, log in enumerate(run.logs):
                with log.path.open("ab") as output:
                    run.ranks.append(
                        subprocess.Popen(
                            argv,
                            stdin=pipe,
                            stdout=output,
                            stderr=subprocess.STDOUT,
                            env=_environment(job, rank, slots) | rendezvous_environment(rank, listener),
                            pass_fds=(lock.descriptor, *([] if rank else [listener.fileno()])),
                            process_group=0,
                        )
                    )
    except BaseException:
        run.end()
        raise
    return run


def _environment(job: Job, rank: int, slots: tuple[str, ...]) -> dict[str, str]:
    """The environment of a rank: its place, threads, GPUs, and no imports from the current folder."""
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.ranks),
        "OMP_NUM_THREADS": str(job.threads_per_rank),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if job.on_gpu:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(slots)
    if Path("/sys/class/net/lo").exists():
        own["GLOO_SOCKET_IFNAME"] = (
            "lo"  # otherwise gloo resolves the host's name, which fails on some laptops and in containers
        )
    return os.environ | own


def _outcome(run: RunningJob, *, stopped: bool) -> Outcome | None:
    """How a run ended; None while it is running."""
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
        message = f"{failure_reason(log, code)} (rank {first} of {run.job.ranks}; its log: {log.path})"
        return Outcome(run.job, "failed", message, code, seconds)
    if None in codes:
        return None
    if not any(codes):
        return Outcome(run.job, "finished", seconds=seconds)
    return Outcome(run.job, "interrupted", "stopped; rerun the same command to resume", seconds=seconds)


def rendezvous_socket() -> socket.socket:
    """A socket that listens where the ranks of a run meet; rank 0 inherits it.

    A port that is only found to be free can be taken before rank 0 binds it: that takes a process longer than another
    needs to open a connection.
    """
    return socket.create_server(("127.0.0.1", 0), backlog=socket.SOMAXCONN)


def rendezvous_environment(rank: int, listener: socket.socket) -> dict[str, str]:
    """Where this rank meets the others."""
    address, port = listener.getsockname()
    where = {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    return where if rank else where | {"MASTER_LISTEN_FD": str(listener.fileno())}
