"""How jobs ended, and what their batch scripts printed: why one failed whose ranks never started and logged nothing."""

from collections.abc import Mapping
from pathlib import Path

from runtime.slurm import client
from runtime.slurm.client import NEVER_STARTED, EndedJob
from runtime.slurm.requeue import START_MARK

_NOISE = (START_MARK, "srun: ")
"""Beginnings of lines that are about the ranks, or say only that something failed."""
_NO_LOG = "0:53"
"""SLURM's exit code where it could not open the job's log, and so never ran the script (slurmstepd, io.c). Newer ones
make the log's folder where it is absent, on the node alone if the real one is not mounted there (seen with 24.11)."""


def ended_jobs(submissions: Mapping[str, Path]) -> dict[str, EndedJob]:
    """As `client.ended_jobs`, for jobs with their submissions' folders. One whose script has printed something did
    start, though accounting has not heard of it yet."""
    ends = client.ended_jobs(submissions)
    return {
        job: end
        for job, end in ends.items()
        if end is not NEVER_STARTED or not _errors(submissions[job], job).exists()
    }


def _errors(submission: Path, job: str) -> Path:
    """What a job's script and srun print to standard error."""
    return submission / f"{job}_0_log.err"


def script_failure(submission: Path, job: str, end: EndedJob) -> str:
    """Why a job's script failed, in one line: the last error that it printed, or its exit code in words.

    `submission` is the submission's folder.
    """
    log = _errors(submission, job)
    if end.exit_code == _NO_LOG or (end.state == "FAILED" and not log.exists()):
        node = end.nodes or "its node"
        return f"it left no log; check that {submission} is mounted on {node} and has space"
    printed = last_error(submission, job)
    if printed is not None:
        return printed
    status, _, signal = end.exit_code.partition(":")
    code = f"signal {signal}" if signal not in ("", "0") else f"exit code {status}"
    return f"{code} (its log: {log})"


def last_error(submission: Path, job: str) -> str | None:
    """The last error that a job's script printed since its last start, and its log; None where it printed none."""
    log = _errors(submission, job)
    text = log.read_text(errors="replace").rpartition(START_MARK)[2] if log.exists() else ""
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip() and not line.startswith(_NOISE)]
    return f"{lines[-1]} (its log: {log})" if lines else None
