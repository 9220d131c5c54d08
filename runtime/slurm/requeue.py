"""What follows the ranks of a job, decided in its script once they have ended:

    python -m runtime.slurm.requeue SUBMISSION_FOLDER STATUS STATE WARNING_S

STATUS is srun's, STATE what SLURM says of the job now (squeue(1), "%T %L %r"), and WARNING_S how long before its limit
the ranks are told to leave.

Exit status 0: queue the job again; 3: leave it; any other: this process itself failed. A run that left as it was told
to goes on. So does one that crashed, or whose time was up before it had saved anything, unless that has happened so
often since its newest checkpoint that it would happen again. A job that SLURM itself has in hand (cancelled,
preempted) is left to SLURM; one that has used up its time is not, for SLURM never queues such a one again.
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
from runtime.run_folder.lock import at_work, keeper
from runtime.run_folder.provenance import slurm_job
from runtime.run_folder.tail import cut_line, reached
from runtime.slurm.site import seconds_of
from specs.document.files import load
from specs.document.write import append_line
from specs.exit_codes import NO_RETRY
from specs.humanize import several
from specs.record import Incident, RecordLine, Start
from specs.slurm_submission import Queued, Submission

AGAIN, LEAVE_IT = 0, 3
_EARLY_S = 60.0
"""How much earlier than it was asked to SLURM may warn a job (sbatch(1), --signal)."""
_ASKED = ("User defined signal", "Terminated")
"""How srun calls the end of a task that was told to leave before it could listen."""
_TASKS = re.compile(r"srun: error: ([\w.-]+): tasks? ([\d,-]+): (.+)")
"""What srun says of tasks that did not end well, the first one first."""
MARK = "isoplan: start"
"""What the script prints before the ranks, so that what is from an earlier start is told apart."""


def main(arguments: Sequence[str]) -> int:
    """Decide for the job that this process is in."""
    place, status, warning_s = Path(arguments[0]), int(arguments[1]), float(arguments[3])
    state, left, reason = (*arguments[2].split(" ", 2), "", "", "")[:3]
    submission = load(place / "submission.json", Submission)
    index = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ["SLURM_JOB_ID"]
    printed = f"{job}_0_log.err" if index is None else f"{os.environ['SLURM_ARRAY_JOB_ID']}_{index}_0_log.err"
    folder = RunFolder(place.parents[1] / "runs" / submission.runs[int(index or 0)])
    if folder.end() is not None:
        return LEAVE_IT
    if state != "RUNNING" and (state, reason) != ("COMPLETING", "TimeLimit"):
        print("the job is ending: SLURM decides what becomes of it")
        return LEAVE_IT
    queued = load(folder.queued_json, Queued)
    if queued.cancelled and queued.submission == submission.name:
        print("the job was cancelled")
        return LEAVE_IT
    if keeper(folder.path):
        print(f"{at_work(folder.path)}; the job is queued again")
        return AGAIN
    fall = TaskFailure.of(place / printed, status) if status else TaskFailure("its time was up")
    out_of_time = reason == "TimeLimit" or seconds_of(left) <= warning_s + _EARLY_S
    if (status == 0 or fall.asked) and (_has_saved(folder) or not out_of_time):
        print("it left as it was told to; the job is queued again")
        return AGAIN
    return _after_fall(folder, fall, submission)


@dataclass(frozen=True)
class TaskFailure:
    """How the first of a job's tasks ended that did not end well."""

    said: str
    """In srun's words, or in its own where it printed none."""
    node: str = ""
    """Where."""
    rank: int | None = None
    """Which; None where srun itself failed."""

    @staticmethod
    def of(printed: Path, status: int) -> "TaskFailure":
        """From what the batch script and srun printed since the job's start."""
        text = printed.read_text(errors="replace").rpartition(MARK)[2] if printed.exists() else ""
        first = _TASKS.search(text)
        if first:
            return TaskFailure(first[3].strip(), first[1], int(re.split("[,-]", first[2])[0]))
        lines = [line for line in text.splitlines()[1:] if line.strip()]
        return TaskFailure(lines[-1] if lines else f"srun ended with status {status}")

    @property
    def asked(self) -> bool:
        """Whether it was told to leave, before it could listen."""
        return self.said.startswith(_ASKED)

    @property
    def hopeless(self) -> bool:
        """Whether another start would end the same way."""
        code = re.search(r"exit code (\d+)", self.said)
        return code is not None and int(code[1]) == NO_RETRY

    def words(self, folder: RunFolder) -> str:
        """What happened, in one line."""
        if self.rank is None:
            return self.said
        log = Log(folder.log / f"rank-{self.rank}.txt", 0)
        error = log.error if log.path.exists() and "exit code" in self.said else None
        return f"{error or self.said} (rank {self.rank} on {self.node}; its log: {log.path})"


def fate(printed: Path, rank: int) -> str | None:
    """What srun says of a task that did not end well; None where it says nothing."""
    for fallen in _TASKS.finditer(printed.read_text(errors="replace") if printed.exists() else ""):
        spans = (part.partition("-") for part in fallen[2].split(","))
        if any(int(first) <= rank <= int(last or first) for first, _, last in spans):
            return fallen[3].strip()
    return None


def _has_saved(folder: RunFolder) -> bool:
    """Whether it has come to a checkpoint since this start of the job, in which it may have gone back by itself."""
    job = slurm_job()
    start = next((line for line in folder.records() if isinstance(line, Start) and line.job == job), None)
    return start is not None and start.newest_step != folder.newest_step


def _after_fall(folder: RunFolder, fall: TaskFailure, submission: Submission) -> int:
    cut_line(folder.record_jsonl)
    checkpoint = folder.newest_step
    falls = 1 + falls_since(folder.records(), checkpoint, submission.time)
    again = not fall.hopeless and falls <= submission.retries
    if again:
        then = f"retry {falls} of {submission.retries}, from step {checkpoint}"
    elif fall.hopeless:
        then = "it would end the same way again"
    else:
        then = (
            f"given up, {several(falls, 'time')} it came no further than the checkpoint of step {checkpoint}"
        )
    said = f"{fall.words(folder)}: {then}"
    step = reached(folder.metrics_jsonl)
    append_line(folder.record_jsonl, Incident(time=time.time(), step=step, what="crashed", message=said))
    print(said)
    return AGAIN if again else LEAVE_IT


def falls_since(records: Sequence[RecordLine], newest_step: int, time_s: float) -> int:
    """Crashes after this time, back to the start since which the run's newest checkpoint has become another one.

    A damaged one that starts pass over does not count as headway for as long as it is the newest.
    """
    falls = 0
    for line in reversed(records):
        if isinstance(line, Start) and line.newest_step != newest_step:
            break
        falls += isinstance(line, Incident) and line.what == "crashed" and line.time > time_s
    return falls


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
