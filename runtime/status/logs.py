"""`isoplan logs`: what a rank of a run printed; before it has, what its SLURM job printed on the way to it."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lookup import run_named
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.status.collect import StatusCollector
from runtime.status.display import LOOK_S, Asker, is_over
from runtime.status.run_status import RunStatus
from specs.record import Incident

_BLOCK_BYTES = 65536
"""Read from a file's end at first: more than the lines that a person asks for, as a rule."""
_SHOWN = 8
"""Characters of a fingerprint that name a run."""
_TICK_S = 0.3
"""Between two looks for more: a person watches."""


def check_rank(folder: RunFolder, rank: int) -> None:
    """RefusedError, with the ranks that there are, where this is none."""
    printed = {int(path.stem.removeprefix("rank-")) for path in folder.log.glob("rank-*.txt")}
    ranks = sorted(printed | set(range(folder.order().execution.layout.devices)))
    if rank in ranks:
        return
    there = f"its ranks are 0 to {ranks[-1]}" if len(ranks) > 1 else "it has only rank 0"
    raise RefusedError(f"{folder.path}: there is no rank {rank}; {there}")


def run_asked(asked: Path, workspace: Workspace) -> RunFolder:
    """The run that is meant; RefusedError, with the runs to choose from, where it is a plan or a budget."""
    if not asked.is_file():
        return run_named(asked, workspace)
    groups = StatusCollector(workspace, asked).groups()
    begun = {
        folder.path.name: (one.title, folder)
        for group in groups
        for one, folder in group.wanted
        if folder.run_json.exists()
    }
    if len(begun) == 1:
        return next(folder for _, folder in begun.values())
    if not begun:
        raise RefusedError(
            f"{asked}: none of its runs has a folder yet; see: isoplan status {quote(str(asked))}"
        )
    named = ", ".join(f"{run[:_SHOWN]} ({title})" for run, (title, _) in begun.items())
    raise RefusedError(f"{asked}: a run has logs; name one of {named}")


def last_crash(folder: RunFolder) -> str:
    """How a run crashed, where that is its record's last word; empty elsewhere."""
    last = next(reversed(folder.records()), None)
    return last.message if isinstance(last, Incident) and last.what == "crashed" else ""


class Printed:
    """What was printed of a run, from the last lines on."""

    def __init__(self, folder: RunFolder, workspace: Workspace, rank: int) -> None:
        self._folder, self._workspace, self._rank = folder, workspace, rank
        self._read: dict[Path, int] = {}
        self._heading: Path | None = None

    def show(self, lines: int) -> bool:
        """Write the last lines; False where nothing was printed yet."""
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
        """Write what came since. A rank's log that has begun is shown from its beginning."""
        for path in self._paths():
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
            self._read[path] = self._read.get(path, 0) + len(text)
            self._write(path, text)

    def _paths(self) -> list[Path]:
        """The rank's log; before there is one, what the batch script and srun printed."""
        log = self._folder.log / f"rank-{self._rank}.txt"
        return [log] if _filled(log) else [path for path in self._job() if _filled(path)]

    def _job(self) -> list[Path]:
        from runtime.slurm.submit import (  # a second, for who has nothing to do with SLURM
            folder_of,
            submitted,
        )

        said = submitted(self._workspace, self._folder) if self._folder.queued_json.exists() else None
        job = said[0].job_of(self._folder.path.name) if said else None
        if said is None or job is None:
            return []
        place = folder_of(self._workspace, said[0].name)
        return [place / f"{job}_0_log.{end}" for end in ("out", "err")]

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


def follow(printed: Printed, looked: StatusCollector) -> RunStatus | None:
    """Show what is printed until the run ends, however often its job is queued again; how it ended, None at Ctrl-C."""
    ask, still, looked_s, over = Asker(), 0, 0.0, False
    try:
        while True:
            if time.monotonic() - looked_s >= LOOK_S:
                picture = looked.look(ask)
                [run] = picture.runs
                looked_s, still = time.monotonic(), 0 if run.moves or run.state == "unknown" else still + 1
                over = is_over(replace(picture, studies=()), still)
            printed.more()
            if over:
                return run
            time.sleep(_TICK_S)
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


def _filled(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
