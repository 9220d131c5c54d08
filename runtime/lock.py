"""One owner per run folder: a lock that lasts until the last process that writes there is gone.

The kernel keeps an flock for as long as any process has the descriptor open, however the others ended. So whoever
starts a run takes the lock once and lets its ranks inherit the descriptor: an orphan keeps the folder, a crash
frees it.
"""

import fcntl
import os
import socket
from pathlib import Path


def hold(folder: Path) -> int | None:
    """Lock a run folder for this process and those it passes the descriptor to; None where somebody has it."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return lock


def owner_of(folder: Path) -> str:
    """Who wrote the folder's lock last."""
    return (folder / "lock").read_text().strip() or "another process"
