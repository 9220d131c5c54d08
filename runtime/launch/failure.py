"""Why a run failed, from its exit statuses and what its ranks printed: one line for a person.

When one rank fails the others follow, and what they say is about the first ("connection closed by peer"). So the
rank to believe is the one that fell silent first; a rank that was killed says nothing at all.
"""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.tail import last_line
from specs.record import Incident, RecordLine

_ERROR_LINE = re.compile(r"(?:\[rank\d+\]: )?([A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b.*)")
"""The line of a Python traceback that says what happened, with the mark that torch.distributed puts before it."""
State = Literal[
    "finished", "at work", "queued", "requeued", "failed", "cancelled", "stopped", "not started", "unknown"
]
"""`requeued` has begun and waits; `cancelled` and `stopped` go on when they are run again; `failed` may fail again."""
_TAIL_BYTES = 4096
"""More than the last words of a rank."""
_FAILED = ("FAILED", "OUT_OF_MEMORY", "BOOT_FAIL")
"""How SLURM says that a job did not survive what it ran."""


@dataclass(frozen=True)
class Log:
    """What a rank printed in this segment: a file, from a byte on."""

    path: Path
    start: int

    @staticmethod
    def to_append(path: Path) -> "Log":
        """What will be printed from now on."""
        return Log(path, path.stat().st_size if path.exists() else 0)

    @property
    def lines(self) -> list[str]:
        """Its lines that are not blank."""
        text = self.path.read_bytes()[self.start :].decode(errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    @property
    def last_words(self) -> str:
        """Its last line."""
        return (self.lines or ["it ended without a word"])[-1]

    @property
    def error(self) -> str | None:
        """What its last traceback ends with; None where there is none."""
        found = [match.group(1) for match in map(_ERROR_LINE.match, self.lines) if match]
        return found[-1] if found else None


def first_to_fail(failed: Mapping[int, Log]) -> int:
    """Of the failed ranks one whose log names no error (it was killed), else the one that fell silent first."""
    return min(
        failed, key=lambda rank: (failed[rank].error is not None, failed[rank].path.stat().st_mtime_ns)
    )


def why(log: Log, code: int) -> str:
    """What ended a rank with this exit status; a negative one is a signal."""
    if log.error is not None or code >= 0:
        return log.error or log.last_words
    if code == -signal.SIGKILL:
        return "killed (signal 9), perhaps for want of memory"
    return f"{signal.strsignal(-code)} (signal {-code}); before it: {log.last_words}"


def _why_cancelled(job: str, records: Sequence[RecordLine]) -> str:
    """That it was, and what was saved; a crash before, after which it was queued again, is none of its end."""
    last = records[-1] if records else None
    saved = isinstance(last, Incident) and last.what == "interrupted"
    return (
        f"job {job} was cancelled"
        + (f": {recorded_end(records)}" if saved else "")
        + "; goes on when run again"
    )


def ended(
    folder: RunFolder, records: Sequence[RecordLine], job: str, end: str | None, *, cancelled: bool = False
) -> tuple[State, str]:
    """Why no process trains an unfinished run; `end` is SLURM's state of its job, and without a job it was a local
    one."""
    if cancelled:
        return "cancelled", _why_cancelled(job, records)
    said = f"job {job} ended as {end}" if end else f"job {job} ended" if job else ""
    last = recorded_end(records)
    if last:
        crashed = isinstance(records[-1], Incident) and records[-1].what == "crashed"
        return ("failed" if crashed else "stopped"), ": ".join(part for part in (said, last) if part)
    error = _last_words(folder.log, records[-1].time if records else 0.0)
    if error or (end is not None and end.startswith(_FAILED)):
        return "failed", ": ".join(part for part in (said, error) if part)
    if not records and not job:
        return "not started", ""
    step = (last_line(folder.metrics_jsonl) or {}).get("step", 0)
    return "stopped", said or f"cut off at step {step} without a word"


def recorded_end(records: Sequence[RecordLine]) -> str:
    """What ended the last segment, if the record says so."""
    last = records[-1] if records else None
    return last.message if isinstance(last, Incident) and last.what in ("crashed", "interrupted") else ""


def _last_words(logs: Path, since_s: float) -> str:
    """The error that a rank ended with after this time; empty where none did."""
    failed = {}
    for path in logs.glob("rank-*.txt"):
        log = Log(path, max(0, path.stat().st_size - _TAIL_BYTES))
        if path.stat().st_mtime >= since_s and log.error and log.last_words.endswith(log.error):
            failed[int(path.stem.removeprefix("rank-"))] = log
    if not failed:
        return ""
    rank = first_to_fail(failed)
    return f"{failed[rank].error} (rank {rank}; its log: {failed[rank].path})"
