"""A run folder that a process on another host holds."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.run_folder.lock import Owner

OWNER = Owner("elsewhere", 7)


@contextmanager
def held_elsewhere(folder: Path, clock_s: float = 0.0) -> Iterator[None]:
    """Ten heartbeats a second until the block ends, by a clock that goes so many seconds ahead of ours; then its owner
    is dead."""
    file, ended = folder / "lock", threading.Event()
    file.write_text(json.dumps({"host": OWNER.host, "process": OWNER.process}))

    def beat() -> None:
        while not ended.wait(0.1):
            os.utime(file, (time.time() + clock_s,) * 2)

    heartbeat = threading.Thread(target=beat)
    heartbeat.start()
    try:
        yield
    finally:
        ended.set()
        heartbeat.join()
