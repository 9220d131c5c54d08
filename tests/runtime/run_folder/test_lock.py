"""One owner per run folder, on this host and among several."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.run_folder import lock
from runtime.run_folder.lock import LockAttempt, Owner, recorded_owner


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    held = LockAttempt(tmp_path).acquire()
    assert held is not None
    second = LockAttempt(tmp_path, patience_s=0.05)
    assert second.acquire() is None
    assert not second.owner_is_alive
    time.sleep(0.06)
    assert second.owner_is_alive
    assert recorded_owner(tmp_path) == Owner.this_process()
    assert str(recorded_owner(tmp_path)).startswith(f"process {os.getpid()} on ")
    held.release()
    assert recorded_owner(tmp_path) is None
    again = second.acquire()
    assert again is not None
    again.release()


def left_by_another_host(folder: Path) -> None:
    """The lock of a host that was cut off, or that lives and whose flock is not seen here."""
    there = {"host": "another-host", "process": 7}
    (folder / "lock").write_text(json.dumps(there) + "\n")


@contextmanager
def renewed(folder: Path) -> Iterator[None]:
    """While the block is open, the owner gives signs of life; its clock is a day behind ours."""
    ended = threading.Event()

    def renew() -> None:
        beats = iter(range(10**9))
        while not ended.wait(0.02):
            then_s = time.time() - 86400 + next(beats) / 1000
            os.utime(folder / "lock", (then_s, then_s))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_dead_owner_on_another_host_is_taken_over_after_a_while(tmp_path: Path) -> None:
    left_by_another_host(tmp_path)
    claim = LockAttempt(tmp_path, dead_s=0.2)
    assert claim.acquire() is None
    assert not claim.owner_is_alive
    assert str(recorded_owner(tmp_path)) == "process 7 on another-host"
    time.sleep(0.21)
    held = claim.acquire()
    assert held is not None
    assert recorded_owner(tmp_path) == Owner.this_process()
    held.release()


@pytest.mark.slow
def test_a_living_owner_on_another_host_keeps_the_folder(tmp_path: Path) -> None:
    left_by_another_host(tmp_path)
    claim = LockAttempt(tmp_path, dead_s=0.3)
    with renewed(tmp_path):
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:
            assert claim.acquire() is None
            time.sleep(0.01)
    assert claim.owner_is_alive
    assert str(recorded_owner(tmp_path)) == "process 7 on another-host"


def test_an_owner_renews_its_lock_until_it_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    held = LockAttempt(tmp_path).acquire()
    assert held is not None
    os.utime(tmp_path / "lock", (0, 0))
    until_s = time.monotonic() + 5
    while (tmp_path / "lock").stat().st_mtime == 0:
        assert time.monotonic() < until_s
        time.sleep(0.01)
    held.release()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"host": "h"}', b"process 7 on a-host"])
def test_a_lock_file_that_says_nothing_holds_nobody_up(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert recorded_owner(tmp_path) is None
    held = LockAttempt(tmp_path).acquire()
    assert held is not None
    held.release()
