"""Why a run failed, in one line, from its exit statuses and the logs of its ranks.

When one rank crashes, the others fail after it, with errors that are consequences ("connection closed by peer"). So the
rank to report is the one whose log ended first; a rank that was killed logs no error.
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
"""The last line of a Python traceback, with the prefix that torch.distributed adds."""
State = Literal[
    "finished",
    "running",
    "pending",
    "requeued",
    "held",
    "failed",
    "cancelled",
    "stopped",
    "not started",
    "unknown",
]
"""`requeued` has begun and is pending again; `held` stays pending until it is released; `cancelled` and `stopped`
resume when they are rerun; `failed` may fail again."""
_TAIL_BYTES = 4096
"""More than the last lines of a rank's log."""
_FAILED = ("FAILED", "OUT_OF_MEMORY", "BOOT_FAIL")
"""SLURM's states of jobs that failed because of what they ran."""


@dataclass(frozen=True)
class Log:
    """What a rank printed in this segment: a log file from a byte on."""

    path: Path
    start: int

    @staticmethod
    def to_append(path: Path) -> "Log":
        """What is printed from now on."""
        return Log(path, path.stat().st_size if path.exists() else 0)

    @property
    def lines(self) -> list[str]:
        """Its non-blank lines."""
        text = self.path.read_bytes()[self.start :].decode(errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    @property
    def final_line(self) -> str:
        """Its last line, or a message that there is none."""
        return (self.lines or ["it exited without printing anything"])[-1]

    @property
    def error(self) -> str | None:
        """The error of its last traceback; None where there is none."""
        found = [match.group(1) for match in map(_ERROR_LINE.match, self.lines) if match]
        return found[-1] if found else None


def first_to_fail(failed: Mapping[int, Log]) -> int:
    """The failed rank to report: one whose log has no error (it was killed), else the one whose log ended first."""
    return min(
        failed, key=lambda rank: (failed[rank].error is not None, failed[rank].path.stat().st_mtime_ns)
    )


def failure_reason(log: Log, code: int) -> str:
    """Why a rank ended with this exit status; a negative one is a signal."""
    if log.error is not None or code >= 0:
        return log.error or log.final_line
    if code == -signal.SIGKILL:
        return "killed (signal 9), possibly out of memory"
    return f"{signal.strsignal(-code)} (signal {-code}); last line of its log: {log.final_line}"


def _why_cancelled(job: str, records: Sequence[RecordLine]) -> str:
    """That the job was cancelled, and what was saved. An earlier crash that requeued it is not the reason."""
    last = records[-1] if records else None
    saved = isinstance(last, Incident) and last.what == "interrupted"
    return f"job {job} was cancelled" + (f": {recorded_end(records)}" if saved else "") + "; rerun to resume"


def why_not_running(
    folder: RunFolder,
    records: Sequence[RecordLine],
    job: str,
    end: str | None,
    *,
    cancelled: bool = False,
    script_failure: str = "",
) -> tuple[State, str]:
    """The state of an unfinished run that no process trains, and why it ended.

    `job` is its SLURM job, empty for a local run, `end` SLURM's final state of that job, and `script_failure` what its
    batch script says of a failure; the ranks' own word counts for more.
    """
    if cancelled:
        return "cancelled", _why_cancelled(job, records)
    job_end = f"job {job} ended in state {end}" if end else f"job {job} ended" if job else ""
    last = recorded_end(records)
    if last:
        crashed = isinstance(records[-1], Incident) and records[-1].what == "crashed"
        return ("failed" if crashed else "stopped"), ": ".join(part for part in (job_end, last) if part)
    error = _logged_error(folder.log, records[-1].time if records else 0.0)
    if error or (end is not None and end.startswith(_FAILED)):
        return "failed", ": ".join(part for part in (job_end, error or script_failure) if part)
    if not records and not job:
        return "not started", ""
    step = (last_line(folder.metrics_jsonl) or {}).get("step", 0)
    return "stopped", job_end or f"ended at step {step} without an error message"


def recorded_end(records: Sequence[RecordLine]) -> str:
    """The message of the crash or stop that ended the last segment, if the record has one."""
    last = records[-1] if records else None
    return last.message if isinstance(last, Incident) and last.what in ("crashed", "interrupted") else ""


def _logged_error(logs: Path, since_s: float) -> str:
    """The error that a rank's log ends with, written after this time; empty where none does."""
    failed = {}
    for path in logs.glob("rank-*.txt"):
        log = Log(path, max(0, path.stat().st_size - _TAIL_BYTES))
        if path.stat().st_mtime >= since_s and log.error and log.final_line.endswith(log.error):
            failed[int(path.stem.removeprefix("rank-"))] = log
    if not failed:
        return ""
    rank = first_to_fail(failed)
    return f"{failed[rank].error} (rank {rank}; its log: {failed[rank].path})"
