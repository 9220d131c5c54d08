"""What SLURM says of its jobs, asked of its own programs.

What is queued or at work is known to squeue, at once; what has ended to sacct, a few seconds later, where a site keeps
accounts at all. A job's end is no verdict on its run: that is finished when its record says so, and a job that lost a
node is queued again under the same number. So these words only say where a job is.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from runtime.run_folder.workspace import RefusedError

_PATIENCE_S = 60.0
"""A controller that restarts answers within seconds; squeue itself gives up after a minute or so (slurm.conf(5),
MessageTimeout)."""
_LOOK_S = 0.5
"""Between two looks at a job that is to end."""
_SETTINGS = re.compile(r"(SQUEUE|SACCT|SCANCEL|SCONTROL)_|SLURM_(TIME_FORMAT|CLUSTERS)$")
"""A person's settings for SLURM's programs (squeue(1), Environment Variables), which hide jobs or print otherwise."""
_QUEUED = ("JobArrayID", "State", "Reason", "NodeList", "Name", "RestartCnt", "StartTime")
_ENDED = ("JobID", "State", "ExitCode", "NodeList")
_OVER = (
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
"""SLURM's words for a job that has ended (squeue(1)); its accounts may be some seconds behind."""


class SlurmError(RefusedError):
    """SLURM is not here, or does not answer: what it said."""


class NoAnswerError(SlurmError):
    """SLURM is here and does not answer now; later it may."""


@dataclass(frozen=True)
class LiveJob:
    """A job that is queued, at work or ending."""

    job: str
    """SLURM's name for it: `12`, or `12_3` in an array."""
    name: str
    """Name of its submission."""
    state: str
    """SLURM's word: PENDING, RUNNING, COMPLETING, ..."""
    reason: str
    """Why it waits; empty while it does not."""
    nodes: str
    """Its nodes, as SLURM folds them: `n[1-4]`; empty while it has none."""
    restarts: int
    """How often it was queued again."""
    starts: str
    """When it started, or is expected to; empty where nobody knows."""

    @property
    def waits(self) -> bool:
        """Whether it has yet to start."""
        return self.state not in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED")

    @property
    def held(self) -> bool:
        """Whether it waits for a person to release it: somebody holds it, or a node's prolog failed."""
        held = re.search("held|JobHold", self.reason, re.IGNORECASE) is not None
        return self.waits and (held or self.state in ("REQUEUE_HOLD", "SPECIAL_EXIT"))


@dataclass(frozen=True)
class EndedJob:
    """A job that SLURM is done with."""

    state: str
    """SLURM's word: COMPLETED, FAILED, TIMEOUT, NODE_FAIL, ..."""
    code: str
    """Exit status and signal: `1:0`."""
    nodes: str
    """The nodes it had."""


def is_here() -> bool:
    """Whether SLURM's programs are."""
    return shutil.which("sbatch") is not None


def live(names: Collection[str]) -> dict[str, LiveJob]:
    """Jobs of these submissions that SLURM still has in hand, by SLURM's name for each."""
    if not names:
        return {}
    fields = ",".join(f"{field}:|" for field in _QUEUED)
    found = {}
    for line in _ask("squeue", "-h", "-r", f"--name={','.join(sorted(names))}", "-O", fields).splitlines():
        job, state, reason, nodes, name, restarts, starts = line.split("|")[: len(_QUEUED)]
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


def ended(jobs: Iterable[str]) -> dict[str, EndedJob]:
    """How jobs ended, the last time each did, as far as SLURM's accounts have it; SlurmError where it keeps none."""
    asked = sorted(jobs)
    if not asked:
        return {}
    said = _ask("sacct", "-X", "-n", "-P", "-D", "-o", ",".join(_ENDED), "-j", ",".join(asked))
    last = {job: EndedJob(*rest) for job, *rest in (line.split("|") for line in said.splitlines())}
    return {job: end for job, end in last.items() if end.state.startswith(_OVER)}


def state_of(job: str) -> str:
    """SLURM's word for a job's state now."""
    return _ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()


def place_of(job: str) -> str:
    """The nodes of a job that is at work or has ended within minutes, as SLURM folds them."""
    return _ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%N").strip()


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs: what is at work is told to save, and ends within the site's KillWait."""
    if jobs:
        _ask("scancel", *jobs)


def end(job: LiveJob) -> None:
    """Cancel a job that need not save, and wait until SLURM is through with it; what it had started ends at once."""
    if not job.waits:
        _ask("scancel", "--full", "--signal=KILL", job.job)
    _ask("scancel", job.job)
    until_s = time.monotonic() + _PATIENCE_S
    while job.job in live({job.name}) and time.monotonic() < until_s:
        time.sleep(_LOOK_S)


def try_out(script: str) -> tuple[bool, str]:
    """Whether sbatch would take a script, and what it says of it; nothing is queued."""
    done = _call("sbatch", "--test-only", script=script)
    return done.returncode == 0, done.stderr.strip()


def settings() -> dict[str, str]:
    """The site's configuration: MaxArraySize, KillWait, JobRequeue, ..."""
    pairs = (line.partition("=") for line in _ask("scontrol", "show", "config").splitlines())
    return {name.strip(): value.strip() for name, sign, value in pairs if sign}


def check_controller() -> None:
    """SlurmError where SLURM's programs are not here, or no controller is up."""
    done = _call("scontrol", "ping")
    if " is UP" not in done.stdout:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("**")]
        said = ", ".join(line for line in lines if line.strip())
        raise NoAnswerError(
            f"SLURM's controller does not answer ({said}); try again later, or see SLURM_CONF"
        )


def shown(what: str) -> list[dict[str, str]]:
    """What scontrol shows of all `partition`s, `node`s or `reservation`s, by SLURM's name for each figure."""
    lines = _ask("scontrol", "show", what, "--oneliner").splitlines()
    return [fields for line in lines if (fields := fields_of(line))]


def fields_of(line: str) -> dict[str, str]:
    """`Name=value` pairs of a line; a value may have blanks in it."""
    parts = re.split(r"(?:^|\s)([A-Z][\w:/]*)=", line.strip())
    return {name: value.strip() for name, value in zip(parts[1::2], parts[2::2], strict=True)}


def accounted(*words: str) -> list[list[str]]:
    """What sacctmgr shows, a list a line; SlurmError where SLURM keeps no accounts now."""
    return [line.split("|") for line in _ask("sacctmgr", "-n", "-P", "show", *words).splitlines()]


def check_accounts() -> None:
    """SlurmError where sacct does not answer."""
    _ask("sacct", "-X", "-n", "-P", "-S", "now", "-o", "JobID")


def nodes_of(folded: str) -> list[str]:
    """Names of nodes that SLURM has folded: `n[1-2]` is n1 and n2."""
    return _ask("scontrol", "show", "hostnames", folded).split()


def _ask(program: str, *arguments: str) -> str:
    """What a program of SLURM prints; SlurmError with its own words where it fails."""
    done = _call(program, *arguments)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise NoAnswerError(
            f"SLURM does not answer: {said[-1] if said else f'{program} failed'}; try again later"
        )
    return done.stdout


def _call(program: str, *arguments: str, script: str = "") -> "subprocess.CompletedProcess[str]":
    """How a program of SLURM ended; SlurmError where there is none, or it never does."""
    if shutil.which(program) is None:
        raise SlurmError(f"there is no {program} here; SLURM's programs are on the cluster's login nodes")
    try:
        return subprocess.run(
            [program, *arguments],
            input=script,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            env={name: value for name, value in os.environ.items() if not _SETTINGS.match(name)},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"SLURM does not answer: {program} said nothing for {_PATIENCE_S:g} s; try again later"
        ) from None
