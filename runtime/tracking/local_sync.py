"""Syncing beside the runs of this machine: after each new checkpoint and at the end, in a process outside of the ranks.

Nothing here can slow or fail a run: the launcher only looks at the names of checkpoints, and what goes wrong is one
line. What was not sent then is sent by the next start, or by `isoplan sync`.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from runtime.launch.local import Outcome, RunningJob
from runtime.launch.stop import STOP
from runtime.run_folder.folder import RunFolder
from runtime.tracking.delivery import check_installed
from specs.exit_codes import InputError
from specs.tracker import Tracker

_LOOK_S = 1.0
"""Time between two looks at the checkpoints."""
_SPACING_S = 30.0
"""Shortest time between the starts of two processes while runs train: our choice; each takes seconds of a CPU."""
_END_S, _STOPPED_S = 60.0, 10.0
"""How long a launch waits for its last sync at its end, and after a request to stop: our choice."""
_TAIL_BYTES = 4096
"""More than the line of an error."""


class LocalSync:
    """Syncs the runs of a launch; pass it to `launch` as part of its watch, inside a `with` block.

    Without a tracker, and where its package is missing, it does nothing.
    """

    def __init__(
        self, workspace: Path, tracker: Tracker | None, study: str, warn: Callable[[str], None]
    ) -> None:
        self._workspace, self._study, self._warn = workspace, study, warn
        self._tracker = tracker
        self._due: set[Path] = set()
        self._newest: dict[Path, int] = {}
        self._ended = 0
        self._looked_s = 0.0
        self._started_s = -_SPACING_S
        self._process: subprocess.Popen[bytes] | None = None
        self._log = workspace / "trackers" / "log.txt"
        self._warned = False

    def __enter__(self) -> "LocalSync":
        if self._tracker is not None:
            try:
                check_installed(self._tracker)
            except InputError as error:
                self._tracker = None
                self._warn(f"nothing is sent while these runs train: {error}; later: isoplan sync PLAN")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            until_s = time.monotonic() + (_STOPPED_S if STOP.received else _END_S)
            self._started_s = -_SPACING_S
            while kind is None and self._busy() and time.monotonic() < until_s:
                time.sleep(0.05)
        finally:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                if kind is None:
                    self._warn_once("it takes too long")

    def __call__(self, active: Sequence[RunningJob], outcomes: Sequence[Outcome]) -> None:
        """Look at the checkpoints, where that is due, and sync the runs that have new ones or have ended."""
        if self._tracker is None or time.monotonic() - self._looked_s < _LOOK_S:
            return
        self._looked_s = time.monotonic()
        if self._tracker.shown_while_running:
            for run in active:
                newest = RunFolder(run.job.folder).newest_step
                if newest != self._newest.setdefault(run.job.folder, newest):
                    self._newest[run.job.folder] = newest
                    self._due.add(run.job.folder)
        self.ended(outcomes)
        self._busy()

    def ended(self, outcomes: Sequence[Outcome]) -> None:
        """Note the runs that have ended since the last call."""
        if self._tracker is not None:
            self._due |= {
                one.job.folder for one in outcomes[self._ended :] if one.state not in ("busy", "not started")
            }
            self._ended = len(outcomes)

    def _busy(self) -> bool:
        """Whether a process is at work, or has just been started for what is due."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return True
            self._process = None
            if code:
                self._warn_once(self._last_line())
        if not self._due or self._tracker is None or time.monotonic() - self._started_s < _SPACING_S:
            return False
        self._started_s = time.monotonic()
        folders, self._due = sorted(self._due), set()
        self._log.parent.mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "runtime.tracking.process", str(self._workspace)),
                    *map(str, folders),
                    *("--tracker", self._tracker.canonical_json(), "--study", self._study),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        return True

    def _last_line(self) -> str:
        with suppress(OSError), self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else "it ended without an error message"
        return "its log cannot be read"

    def _warn_once(self, why: str) -> None:
        """The one warning of a launch; the next checkpoint tries again in silence."""
        if not self._warned:
            self._warned = True
            self._warn(
                f"the tracker has not everything: {why}; the runs go on, and isoplan sync sends the rest"
            )
