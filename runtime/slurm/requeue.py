"""Whether a job is requeued after its ranks have ended; its batch script calls

    python -m runtime.slurm.requeue SUBMISSION_FOLDER STATUS STATE WARNING_S

STATUS is srun's exit status, STATE is SLURM's view of the job now (squeue(1), "%T %L %r"), and WARNING_S is how long
before the time limit the ranks are signalled to stop.

Exit status 0: requeue the job; 3: do not requeue it; any other: this process itself failed. A run that stopped after a
signal (time limit, preemption) is requeued and resumes. So is a run that crashed, or whose time was up before its
first checkpoint, unless this has happened `retries` times since its newest checkpoint. A job that SLURM is already
cancelling or preempting is left to SLURM; a job that reached its time limit is not, since SLURM never requeues it.
"""

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.launch.failure import Log
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lock import OwnerWatch, busy_message
from runtime.run_folder.provenance import slurm_job
from runtime.run_folder.tail import last_step, truncate_partial_line
from runtime.slurm.site import seconds_of
from specs.document.files import load
from specs.document.write import append_line
from specs.exit_codes import NO_RETRY
from specs.humanize import several
from specs.record import Incident, RecordLine, Start
from specs.slurm_submission import Queued, Submission

REQUEUE, DO_NOT_REQUEUE = 0, 3
_SIGNAL_EARLY_S = 60.0
"""How much earlier than requested SLURM may send its signal (sbatch(1), --signal)."""
_STOP_SIGNALS = ("User defined signal", "Terminated")
"""What srun prints for a task that got the stop signal before it had installed its handlers."""
_TASK_FAILED = re.compile(r"srun: error: ([\w.-]+): tasks? ([\d,-]+): (.+)")
"""srun's lines about failed tasks, the first failure first."""
START_MARK = "isoplan: start"
"""Printed by the script before the ranks start, so that the output of earlier attempts is told apart."""


def main(arguments: Sequence[str]) -> int:
    """Decide for the job that this process runs in."""
    submission_folder, status, warning_s = Path(arguments[0]), int(arguments[1]), float(arguments[3])
    state, left, reason = (*arguments[2].split(" ", 2), "", "", "")[:3]
    submission = load(submission_folder / "submission.json", Submission)
    index = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ["SLURM_JOB_ID"]
    errors = f"{job}_0_log.err" if index is None else f"{os.environ['SLURM_ARRAY_JOB_ID']}_{index}_0_log.err"
    folder = RunFolder(submission_folder.parents[1] / "runs" / submission.runs[int(index or 0)])
    if folder.end() is not None:
        return DO_NOT_REQUEUE
    if state != "RUNNING" and (state, reason) != ("COMPLETING", "TimeLimit"):
        print("SLURM is ending this job and decides whether it is requeued")
        return DO_NOT_REQUEUE
    queued = load(folder.queued_json, Queued)
    if queued.cancelled and queued.submission == submission.name:
        print("the job was cancelled")
        return DO_NOT_REQUEUE
    if OwnerWatch().owners([folder.path]):
        print(f"{busy_message(folder.path)}; this job is requeued")
        return REQUEUE
    failure = (
        TaskFailure.of(submission_folder / errors, status)
        if status
        else TaskFailure("the job's time limit was reached")
    )
    out_of_time = reason == "TimeLimit" or seconds_of(left) <= warning_s + _SIGNAL_EARLY_S
    if (status == 0 or failure.stop_requested) and (_has_saved_since_start(folder) or not out_of_time):
        print("the run stopped after a signal; this job is requeued and the run resumes")
        return REQUEUE
    return _after_failure(folder, failure, submission)


@dataclass(frozen=True)
class TaskFailure:
    """How the first failed task of a job ended."""

    message: str
    """srun's message, or the last line of its output where it printed none."""
    node: str = ""
    """The task's node."""
    rank: int | None = None
    """The task's rank; None where srun itself failed."""

    @staticmethod
    def of(errors: Path, status: int) -> "TaskFailure":
        """From the standard error of the batch script and srun since the job's last start."""
        text = errors.read_text(errors="replace").rpartition(START_MARK)[2] if errors.exists() else ""
        first = _TASK_FAILED.search(text)
        if first:
            return TaskFailure(first[3].strip(), first[1], int(re.split("[,-]", first[2])[0]))
        lines = [line for line in text.splitlines()[1:] if line.strip()]
        return TaskFailure(lines[-1] if lines else f"srun exited with status {status}")

    @property
    def stop_requested(self) -> bool:
        """Whether a stop signal ended it before it had installed its handlers."""
        return self.message.startswith(_STOP_SIGNALS)

    @property
    def permanent(self) -> bool:
        """Whether another start would fail in the same way."""
        code = re.search(r"exit code (\d+)", self.message)
        return code is not None and int(code[1]) == NO_RETRY

    def summary(self, folder: RunFolder) -> str:
        """What happened, in one line."""
        if self.rank is None:
            return self.message
        log = Log(folder.log / f"rank-{self.rank}.txt", 0)
        error = log.error if log.path.exists() and "exit code" in self.message else None
        return f"{error or self.message} (rank {self.rank} on {self.node}; its log: {log.path})"


def srun_error_of(errors: Path, rank: int) -> str | None:
    """srun's message about a failed task; None where it printed none."""
    for failed in _TASK_FAILED.finditer(errors.read_text(errors="replace") if errors.exists() else ""):
        spans = (part.partition("-") for part in failed[2].split(","))
        if any(int(first) <= rank <= int(last or first) for first, _, last in spans):
            return failed[3].strip()
    return None


def _has_saved_since_start(folder: RunFolder) -> bool:
    """Whether the newest checkpoint changed since this start of the job, in which the run may have rolled back."""
    job = slurm_job()
    start = next((line for line in folder.records() if isinstance(line, Start) and line.job == job), None)
    return start is not None and start.newest_step != folder.newest_step


def _after_failure(folder: RunFolder, failure: TaskFailure, submission: Submission) -> int:
    truncate_partial_line(folder.record_jsonl)
    checkpoint = folder.newest_step
    failures = 1 + failures_since(folder.records(), checkpoint, submission.time)
    requeue = not failure.permanent and failures <= submission.retries
    if requeue:
        decision = f"retry {failures} of {submission.retries}, from step {checkpoint}"
    elif failure.permanent:
        decision = "not retried, since it would fail in the same way"
    else:
        decision = (
            f"not retried, after {several(failures, 'failure')} and no new checkpoint since step {checkpoint}"
        )
    message = f"{failure.summary(folder)}: {decision}"
    step = last_step(folder.metrics_jsonl)
    append_line(folder.record_jsonl, Incident(time=time.time(), step=step, what="crashed", message=message))
    print(message)
    return REQUEUE if requeue else DO_NOT_REQUEUE


def failures_since(records: Sequence[RecordLine], newest_step: int, time_s: float) -> int:
    """Crashes after this time and since the run's newest checkpoint was saved.

    A damaged checkpoint that starts skip does not count as progress for as long as it is the newest.
    """
    failures = 0
    for line in reversed(records):
        if isinstance(line, Start) and line.newest_step != newest_step:
            break
        failures += isinstance(line, Incident) and line.what == "crashed" and line.time > time_s
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
