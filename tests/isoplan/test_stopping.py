"""A request to stop is never lost: at any moment of a command it ends with 75, and nothing new starts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.launch.stop import STOP, STOP_SIGNALS

AT_AN_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Finder())
from isoplan.cli import run_main
sys.argv = ["run", "budget.yaml"]
run_main()
"""


@pytest.mark.parametrize("module", ["isoplan.verbs", "pydantic", "runtime.study"])
def test_a_stop_while_it_starts_is_no_traceback(tmp_path: Path, module: str) -> None:
    argv = [sys.executable, "-P", "-c", AT_AN_IMPORT.format(module=module, number=int(signal.SIGINT))]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (75, "interrupted; rerun the same command to resume\n")


AT_THE_END = """
import atexit, os, signal

atexit.register(lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])  # called after ours
"""


def test_a_second_stop_while_it_ends_changes_nothing(tmp_path: Path) -> None:
    code = AT_THE_END + AT_AN_IMPORT.format(module="runtime.study", number=int(signal.SIGINT))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (75, "interrupted; rerun the same command to resume\n")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_stop_signal_interrupts_or_is_counted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with STOP.listen():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        with STOP.count():
            os.kill(os.getpid(), number)
        assert STOP.received == 2
    assert signal.getsignal(number) == before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with STOP.listen():
            os.kill(os.getpid(), signal.SIGHUP)
            assert STOP.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)
