"""What SLURM's programs report about jobs, nodes and settings.

squeue knows pending and running jobs at once; sacct knows jobs that have ended some seconds later, if the site runs
SLURM accounting at all. A job's end says nothing about its run: a run is finished when its record says so, and a job
that lost a node is requeued under the same number.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from runtime.run_folder.workspace import RefusedError

_TIMEOUT_S = 60.0
"""A restarting controller answers within seconds; squeue itself gives up after about a minute (slurm.conf(5),
MessageTimeout)."""
_POLL_S = 0.5
"""Between two queries for a job that is being cancelled."""
_USER_SETTINGS = re.compile(r"(SQUEUE|SACCT|SCANCEL|SCONTROL)_|SLURM_(TIME_FORMAT|CLUSTERS)$")
"""A user's settings for SLURM's programs (squeue(1), Environment Variables), which hide jobs or change the output."""
_SQUEUE_FIELDS = ("JobArrayID", "State", "Reason", "NodeList", "Name", "RestartCnt", "StartTime")
_SACCT_FIELDS = ("JobID", "State", "ExitCode", "NodeList")
_END_STATES = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
"""States of a job that has ended (squeue(1)); SLURM accounting may lag by some seconds."""


class SlurmError(RefusedError):
    """SLURM is not installed here, or does not answer."""


class NoAnswerError(SlurmError):
    """SLURM is installed but does not answer now; a later attempt may succeed."""


@dataclass(frozen=True)
class LiveJob:
    """A job that is pending, running or completing."""

    job: str
    """SLURM's job id: `12`, or `12_3` in an array."""
    name: str
    """Name of its submission."""
    state: str
    """SLURM's state: PENDING, RUNNING, COMPLETING, ..."""
    reason: str
    """SLURM's reason why it is pending; empty once it has started."""
    nodes: str
    """Its nodes in SLURM's short form, `n[1-4]`; empty before it starts."""
    restarts: int
    """How often it was requeued."""
    start_time: str
    """When it started, or is expected to; empty where SLURM does not know."""

    @property
    def pending(self) -> bool:
        """Whether it has not started yet."""
        return self.state not in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED")

    @property
    def held(self) -> bool:
        """Whether it stays pending until a user releases it: a user or an administrator holds it, or a node's prolog
        failed."""
        held = re.search("held|JobHold", self.reason, re.IGNORECASE) is not None
        return self.pending and (held or self.state in ("REQUEUE_HOLD", "SPECIAL_EXIT"))


@dataclass(frozen=True)
class EndedJob:
    """A job that has ended."""

    state: str
    """SLURM's state: COMPLETED, FAILED, TIMEOUT, NODE_FAIL, ..."""
    exit_code: str
    """Exit status and signal: `1:0`."""
    nodes: str
    """The nodes it ran on."""


def is_installed() -> bool:
    """Whether sbatch is on the PATH."""
    return shutil.which("sbatch") is not None


def live_jobs(
    names: Collection[str], numbers: Mapping[int, str] = MappingProxyType({})
) -> dict[str, LiveJob]:
    """Pending, running and completing jobs of the submissions with these names, by job id.

    `numbers` are submissions' names by their job's number, as far as it is known: those jobs are found under any name.
    """
    found = _queued(f"--name={','.join(sorted(names))}") if names else {}
    missed = numbers.keys() - {_number(job) for job in found}
    if missed:  # they have ended, or were renamed
        renamed = _queued(f"--jobs={','.join(map(str, sorted(missed)))}")
        found |= {job: replace(one, name=numbers[_number(job)]) for job, one in renamed.items()}
    return found


def _number(job: str) -> int:
    """The number of a job, or of its array."""
    return int(job.partition("_")[0])


def _queued(which: str) -> dict[str, LiveJob]:
    """The jobs that squeue lists, by job id."""
    fields = ",".join(f"{field}:|" for field in _SQUEUE_FIELDS)
    done = _run("squeue", "-h", "-r", which, "-O", fields)
    if "Invalid job id" in done.stderr:  # of a single job that ended some minutes ago
        return {}
    found = {}
    for line in _checked("squeue", done).splitlines():
        job, state, reason, nodes, name, restarts, starts = line.split("|")[: len(_SQUEUE_FIELDS)]
        found[job] = LiveJob(
            job,
            name,
            state,
            "" if reason == "None" else reason,
            nodes,
            int(restarts or 0),
            "" if starts == "N/A" else starts,
        )
    return found


NEVER_STARTED = EndedJob("CANCELLED", "0:0", "")
"""The end of an array's job that was cancelled before it started: SLURM accounting has no line of its own for it, so it
is known by being neither in the queue nor among the array's lines (seen with SLURM 22.05)."""


def ended_jobs(jobs: Iterable[str]) -> dict[str, EndedJob]:
    """How jobs that have left the queue ended, each at its last attempt, as far as SLURM accounting knows; SlurmError
    where there is none."""
    ids = sorted(jobs)
    if not ids:
        return {}
    numbers = ",".join(sorted({str(_number(job)) for job in ids}))
    output = _output_of("sacct", "-X", "-n", "-P", "-D", "-o", ",".join(_SACCT_FIELDS), "-j", numbers)
    last: dict[str, EndedJob] = {}
    for line in output.splitlines():
        named, *rest = line.split("|")
        last |= dict.fromkeys(_elements(named), EndedJob(*rest))
    known = {_number(job) for job in last}
    found = {job: last.get(job, NEVER_STARTED) for job in ids if _number(job) in known}
    return {job: end for job, end in found.items() if end.state.startswith(_END_STATES)}


def _elements(job: str) -> list[str]:
    """The jobs of a line of sacct: itself, or those of an array that have not started, `12_[0-2,5%3]`."""
    array, bracket, elements = job.partition("_[")
    if not bracket:
        return [job]
    spans = (span.partition("-") for span in elements.rstrip("]").partition("%")[0].split(","))
    return [f"{array}_{one}" for first, _, last in spans for one in range(int(first), int(last or first) + 1)]


def job_state(job: str) -> str:
    """SLURM's state of a job."""
    return _output_of("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()


def job_nodes(job: str) -> str:
    """The nodes of a job that is running or ended minutes ago, in SLURM's short form."""
    return _output_of("squeue", "-h", "-t", "all", "-j", job, "-o", "%N").strip()


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs: running ones are signalled to save a checkpoint, and end within the site's KillWait."""
    if jobs:
        _output_of("scancel", *jobs)


def cancel_and_wait(job: LiveJob) -> None:
    """Cancel a job that need not save, and wait until it is gone from the queue; its processes are killed."""
    if not job.pending:
        _output_of("scancel", "--full", "--signal=KILL", job.job)
    _output_of("scancel", job.job)
    until_s = time.monotonic() + _TIMEOUT_S
    while job.job in live_jobs({job.name}) and time.monotonic() < until_s:
        time.sleep(_POLL_S)


def sbatch_test_only(script: str) -> tuple[bool, str]:
    """Whether sbatch would accept a script, and what it prints; nothing is queued."""
    done = _run("sbatch", "--test-only", script=script)
    return done.returncode == 0, done.stderr.strip()


def srun_knows(option: str) -> bool:
    """Whether srun has an option of this long name, its plugins' included."""
    return re.search(rf"--{re.escape(option)}\b(?![\w-])", _output_of("srun", "--help")) is not None


def settings() -> dict[str, str]:
    """The site's configuration: MaxArraySize, KillWait, JobRequeue, ..."""
    pairs = (line.partition("=") for line in _output_of("scontrol", "show", "config").splitlines())
    return {name.strip(): value.strip() for name, sign, value in pairs if sign}


def check_controller() -> None:
    """SlurmError where SLURM is not installed, or no controller is up."""
    done = _run("scontrol", "ping")
    if " is UP" not in done.stdout:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("**")]
        output = ", ".join(line for line in lines if line.strip())
        raise NoAnswerError(
            f"SLURM's controller does not answer ({output}); try again later, or check SLURM_CONF"
        )


def scontrol_show(what: str) -> list[dict[str, str]]:
    """All `partition`s, `node`s or `reservation`s as scontrol shows them, each with SLURM's field names."""
    lines = _output_of("scontrol", "show", what, "--oneliner").splitlines()
    return [fields for line in lines if (fields := parse_fields(line))]


def parse_fields(line: str) -> dict[str, str]:
    """`Name=value` pairs of a line; a value may contain blanks."""
    parts = re.split(r"(?:^|\s)([A-Z][\w:/]*)=", line.strip())
    return {name: value.strip() for name, value in zip(parts[1::2], parts[2::2], strict=True)}


def sacctmgr_show(*arguments: str) -> list[list[str]]:
    """What sacctmgr shows, a list per line; SlurmError where SLURM accounting does not answer."""
    return [line.split("|") for line in _output_of("sacctmgr", "-n", "-P", "show", *arguments).splitlines()]


def check_accounting() -> None:
    """SlurmError where sacct does not answer."""
    _output_of("sacct", "-X", "-n", "-P", "-S", "now", "-o", "JobID")


def expand_nodes(short: str) -> list[str]:
    """Names of the nodes in SLURM's short form: `n[1-2]` is n1 and n2."""
    return _output_of("scontrol", "show", "hostnames", short).split()


def _output_of(program: str, *arguments: str) -> str:
    """What one of SLURM's programs prints; SlurmError with its last error line where it fails."""
    return _checked(program, _run(program, *arguments))


def _checked(program: str, done: "subprocess.CompletedProcess[str]") -> str:
    if done.returncode != 0:
        errors = done.stderr.strip().splitlines()
        reason = errors[-1] if errors else f"{program} failed"
        raise NoAnswerError(f"SLURM does not answer: {reason}; try again later")
    return done.stdout


def _run(program: str, *arguments: str, script: str = "") -> "subprocess.CompletedProcess[str]":
    """Run one of SLURM's programs; SlurmError where it is not installed or does not end in time."""
    if shutil.which(program) is None:
        raise SlurmError(f"{program} is not installed here; run this on one of the cluster's login nodes")
    try:
        return subprocess.run(
            [program, *arguments],
            input=script,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env={name: value for name, value in os.environ.items() if not _USER_SETTINGS.match(name)},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"SLURM does not answer: {program} did not return within {_TIMEOUT_S:g} s; try again later"
        ) from None
