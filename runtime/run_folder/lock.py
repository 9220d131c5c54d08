"""One owner per run folder: a lock that lasts until the last process that writes there is gone.

The kernel keeps an flock for as long as any process has the descriptor open, however the others ended. So whoever
starts a run takes the lock once and lets its ranks inherit the descriptor: an orphan keeps the folder, a crash
frees it. Network file systems may keep flocks of one host from another's sight. So the owner also writes who it is
and renews the file while it lives; an owner on another host that has not done so for a while is taken for dead.
"""

import fcntl
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

RENEW_S = 5.0
"""Seconds between signs of life: our choice. Network file systems show them to others after up to a minute (nfs(5),
acregmax)."""
DEAD_S = 90.0
"""An owner on another host that gives no sign for so long is dead: that minute, and a few signs that were late."""


@dataclass(frozen=True)
class Owner:
    """Who holds a run folder, as its lock file says."""

    host: str
    """Name of its host."""
    process: int
    """Number of its process there."""

    @staticmethod
    def me() -> "Owner":
        """This process."""
        return Owner(socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class Hold:
    """A folder that is held; `close` it, or let the process end."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        """The lock: pass it to the processes that write in the folder."""
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)
        self._renewer.start()

    def close(self) -> None:
        """Let go of the folder, unless other processes that were passed the lock still live."""
        self._ended.set()
        self._renewer.join()
        os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            os.utime(self.descriptor)


class Claim:
    """An attempt to hold a run folder, to be repeated until it succeeds or is hopeless."""

    def __init__(self, folder: Path, *, patience_s: float = 0.0, dead_s: float = DEAD_S) -> None:
        """`patience_s`: for an owner on this host, whose processes may need a moment to end."""
        self._folder, self._patience_s, self._dead_s = folder, patience_s, dead_s
        self._since_s = time.monotonic()
        self._seen: tuple[int, float] | None = None
        self._lives = False

    def take(self) -> Hold | None:
        """Hold the folder for this process and those it passes the lock to; None where somebody has it, or may."""
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
        os.pwrite(descriptor, json.dumps(asdict(Owner.me())).encode() + b"\n", 0)
        return Hold(descriptor)

    @property
    def hopeless(self) -> bool:
        """Whether the owner lives, as far as can be told."""
        if self._seen is not None:
            return self._lives
        return time.monotonic() - self._since_s > self._patience_s

    def _held_elsewhere(self, descriptor: int) -> bool:
        """Whether an owner on another host may live. It renews the file; only our own clock says for how long it has
        not, since those of hosts differ."""
        last = owner_of(self._folder)
        if last is None or last.host == socket.gethostname():
            return False
        renewed, now_s = os.fstat(descriptor).st_mtime_ns, time.monotonic()
        self._seen = self._seen or (renewed, now_s)
        self._lives = self._lives or renewed != self._seen[0]
        return self._lives or now_s - self._seen[1] < self._dead_s


def at_work(folder: Path) -> str:
    """That somebody holds the folder, and who, in words."""
    return f"{owner_of(folder) or 'another process'} is at work in {folder}"


def keeper(folder: Path) -> Owner | None:
    """Who holds the folder, as far as its lock file shows to somebody who only reads; None where nobody does."""
    owner = owner_of(folder)
    if owner is None or time.time() - (folder / "lock").stat().st_mtime > DEAD_S:
        return None
    return owner if owner.host != socket.gethostname() or _lives(owner.process) else None


def _lives(process: int) -> bool:
    """Whether this host has a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def owner_of(folder: Path) -> Owner | None:
    """Who holds the folder, or held it when it was cut off; None where the last owner let go."""
    try:
        return Owner(**json.loads((folder / "lock").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
