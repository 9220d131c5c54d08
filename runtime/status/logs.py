"""`isoplan logs`: the log of a rank of a run; before it has printed anything, the output of its SLURM job."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lookup import find_run
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.status.collect import StatusCollector
from runtime.status.display import REFRESH_S, SlurmPoller, is_settled
from runtime.status.run_status import RunStatus
from specs.record import Incident

_BLOCK_BYTES = 65536
"""Read from a file's end at first; usually enough for the requested lines."""
_FINGERPRINT_SHOWN = 8
"""Characters of a fingerprint that messages show."""
_POLL_S = 0.3
"""Time between two reads with --follow."""


def check_rank(folder: RunFolder, rank: int) -> None:
    """RefusedError where the run has no such rank."""
    printed = {int(path.stem.removeprefix("rank-")) for path in folder.log.glob("rank-*.txt")}
    ranks = sorted(printed | set(range(folder.order().execution.layout.devices)))
    if rank in ranks:
        return
    existing = f"a rank from 0 to {ranks[-1]}" if len(ranks) > 1 else "--rank 0, the only one"
    raise RefusedError(f"{folder.path}: this run has no rank {rank}; choose {existing}")


def run_to_show(target: Path, workspace: Workspace) -> RunFolder:
    """The target run; RefusedError with the runs to choose from where a plan or budget has several."""
    if not target.is_file():
        return find_run(target, workspace)
    groups = StatusCollector(workspace, target).groups()
    begun = {
        folder.path.name: (one.title, folder)
        for group in groups
        for one, folder in group.requests
        if folder.run_json.exists()
    }
    if len(begun) == 1:
        return next(folder for _, folder in begun.values())
    if not begun:
        raise RefusedError(
            f"{target}: none of its runs has a folder yet; see: isoplan status {quote(str(target))}"
        )
    named = ", ".join(f"{run[:_FINGERPRINT_SHOWN]} ({title})" for run, (title, _) in begun.items())
    raise RefusedError(f"{target}: this has several runs; name one of {named}")


def recorded_crash(folder: RunFolder) -> str:
    """The crash that a run's record ends with; empty where it does not."""
    last = next(reversed(folder.records()), None)
    return last.message if isinstance(last, Incident) and last.what == "crashed" else ""


class RunOutput:
    """The output of a rank, from its last lines on."""

    def __init__(self, folder: RunFolder, workspace: Workspace, rank: int) -> None:
        self._folder, self._workspace, self._rank = folder, workspace, rank
        self._read: dict[Path, int] = {}
        self._heading: Path | None = None

    def show(self, lines: int) -> bool:
        """Print the last lines; False where there is no output yet."""
        for path in self._paths():
            text, self._read[path] = last_lines(path, lines)
            self._write(path, text)
        return bool(self._read)

    def plain(self, lines: int) -> list[dict[str, Any]]:
        """The last lines of each file, for programs."""
        return [
            {
                "file": str(path),
                "lines": last_lines(path, lines)[0].decode(errors="replace").splitlines(),
            }
            for path in self._paths()
        ]

    def more(self) -> None:
        """Print the output since the last call. A rank's log that has begun meanwhile is printed from its start."""
        for path in self._paths():
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
            self._read[path] = self._read.get(path, 0) + len(text)
            self._write(path, text)

    def _paths(self) -> list[Path]:
        """The rank's log; before it has one, the output of the batch script and srun."""
        log = self._folder.log / f"rank-{self._rank}.txt"
        return [log] if _has_text(log) else [path for path in self._job() if _has_text(path)]

    def _job(self) -> list[Path]:
        from runtime.slurm.submit import (  # takes a second; runs without SLURM jobs do without
            latest_submission,
            submission_folder,
        )

        found = (
            latest_submission(self._workspace, self._folder) if self._folder.queued_json.exists() else None
        )
        job = found[0].job_of(self._folder.path.name) if found else None
        if found is None or job is None:
            return []
        folder = submission_folder(self._workspace, found[0].name)
        return [folder / f"{job}_0_log.{end}" for end in ("out", "err")]

    def _write(self, path: Path, text: bytes) -> None:
        """To standard output; where it comes from, unless that is the rank's own log, to standard error."""
        if not text.strip():
            return
        if path != self._heading and (path.parent != self._folder.log or self._heading is not None):
            sys.stdout.flush()
            print(f"==> {path}", file=sys.stderr, flush=True)
        self._heading = path
        sys.stdout.buffer.write(text)
        sys.stdout.flush()


def follow(output: RunOutput, collector: StatusCollector) -> RunStatus | None:
    """Print new output until the run ends, also when its job is requeued; how it ended, None after Ctrl-C."""
    poller, still, collected_s, settled = SlurmPoller(), 0, 0.0, False
    try:
        while True:
            if time.monotonic() - collected_s >= REFRESH_S:
                snapshot = collector.collect(poller)
                [run] = snapshot.runs
                collected_s = time.monotonic()
                still = 0 if run.in_progress or run.state == "unknown" else still + 1
                settled = is_settled(replace(snapshot, studies=()), still)
            output.more()
            if settled:
                return run
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        return None


def last_lines(path: Path, lines: int) -> tuple[bytes, int]:
    """The last lines of a file, and its size."""
    with path.open("rb") as file:
        size, block = file.seek(0, 2), _BLOCK_BYTES
        while True:
            file.seek(max(0, size - block))
            text = file.read(min(block, size))
            if text.count(b"\n") > lines or block >= size:
                return b"".join(text.splitlines(keepends=True)[-lines:]), size
            block *= 4


def _has_text(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
