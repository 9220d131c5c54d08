"""One owner per run folder: a lock that lasts until the last process that writes there has ended.

The kernel holds an flock as long as any process has its descriptor open. So the process that starts a run takes the
lock once and its ranks inherit the descriptor: an orphaned rank keeps the folder locked, a crash of all unlocks it. On
network file systems a host may not see another host's flocks. So the owner also writes its host and process id into the
file and touches it as a heartbeat; an owner on another host without a heartbeat for some time counts as dead.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HEARTBEAT_S = 5.0
"""Seconds between heartbeats: our choice. Network file systems show them to other hosts after up to a minute (nfs(5),
acregmax)."""
_LATE, _LOOK_S = 1.5, 0.1
"""How much later than due a heartbeat may be, and how often it is looked for."""
STALE_S = 90.0
"""An owner on another host without a heartbeat for so long counts as dead: that minute, and a few late heartbeats."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a run folder, as its lock file says."""

    host: str
    """Host name."""
    process: int
    """Process id on that host."""

    @staticmethod
    def this_process() -> "Owner":
        """This process."""
        return Owner(socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class FolderLock:
    """The lock of a run folder, held until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        """The lock: pass it to the processes that write in the folder."""
        self._ended = threading.Event()
        self._heartbeat = threading.Thread(target=self._send_heartbeats, daemon=True)
        self._heartbeat.start()

    def release(self) -> None:
        """Unlock the folder, unless a process that inherited the lock is still running."""
        self._ended.set()
        self._heartbeat.join()
        os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)

    def _send_heartbeats(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            os.utime(self.descriptor)


class LockAttempt:
    """An attempt to lock a run folder, to be repeated until it succeeds or the owner proves to be alive."""

    def __init__(self, folder: Path, *, patience_s: float = 0.0, dead_s: float = STALE_S) -> None:
        """`patience_s`: how long to wait for an owner on this host, whose processes may be about to end."""
        self._folder, self._patience_s, self._dead_s = folder, patience_s, dead_s
        self._since_s = time.monotonic()
        self._first_seen: tuple[int, float] | None = None
        self._owner_lives = False

    def acquire(self) -> FolderLock | None:
        """Lock the folder for this process and those that inherit it; None where another process may hold it."""
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if self._held_elsewhere(descriptor):
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(Owner.this_process())).encode() + b"\n", 0)
        return FolderLock(descriptor)

    @property
    def owner_is_alive(self) -> bool:
        """Whether the owner is alive, as far as can be told by now."""
        if self._first_seen is not None:
            return self._owner_lives
        return time.monotonic() - self._since_s > self._patience_s

    def _held_elsewhere(self, descriptor: int) -> bool:
        """Whether an owner on another host may be alive: whether it touched the file within `dead_s` of this host's
        clock (the clocks of hosts differ)."""
        last = recorded_owner(self._folder)
        if last is None or last.host == socket.gethostname():
            return False
        touched, now_s = os.fstat(descriptor).st_mtime_ns, time.monotonic()
        self._first_seen = self._first_seen or (touched, now_s)
        self._owner_lives = self._owner_lives or touched != self._first_seen[0]
        return self._owner_lives or now_s - self._first_seen[1] < self._dead_s


def busy_message(folder: Path) -> str:
    """A message that another process holds the folder, and which one."""
    return f"{recorded_owner(folder) or 'another process'} is using {folder}"


class OwnerWatch:
    """Who holds run folders, for those who only look. Clocks of hosts and file servers differ, so no time of a file is
    compared with a clock: an owner on another host is alive if a heartbeat of it is seen."""

    def __init__(self) -> None:
        self._dead: dict[Path, int] = {}

    def owners(self, folders: Sequence[Path]) -> dict[Path, Owner]:
        """The live owners, by folder. Of owners on other hosts one heartbeat is waited for, once."""
        known = {folder: owner for folder in folders if (owner := recorded_owner(folder)) is not None}
        here = socket.gethostname()
        live = {folder: one for folder, one in known.items() if one.host == here and _is_locked(folder)}
        seen = {folder: _touched_ns(folder) for folder, one in known.items() if one.host != here}
        waiting = {folder for folder, touched_ns in seen.items() if self._dead.get(folder) != touched_ns}
        until_s = time.monotonic() + HEARTBEAT_S * _LATE
        while waiting and time.monotonic() < until_s:
            time.sleep(_LOOK_S)
            heard = {folder for folder in waiting if _touched_ns(folder) != seen[folder]}
            live |= {folder: known[folder] for folder in heard}
            waiting -= heard
        self._dead |= {folder: seen[folder] for folder in waiting}
        return live


def _is_locked(folder: Path) -> bool:
    """Whether a process of this host holds the lock."""
    try:
        with open(folder / "lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it was released just now
        return False
    return False


def _touched_ns(folder: Path) -> int:
    """When the lock file was touched, by whichever clock; read through a new handle, for which NFS asks its server."""
    try:
        with open(folder / "lock", "rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def recorded_owner(folder: Path) -> Owner | None:
    """The owner that the lock file names, which may have crashed; None where the last owner released the lock."""
    try:
        return Owner(**json.loads((folder / "lock").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
