"""What the doctor finds without queueing anything: SLURM, the site's limits and accounts, sbatch's own trial."""

import getpass
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from runtime.doctor import slurm_limits
from runtime.doctor.local import Finding, left_behind, looked_at
from runtime.doctor.slurm_limits import minutes, refused
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.slurm import client, submit
from runtime.slurm.client import SlurmError
from runtime.slurm.sbatch import JobShape
from runtime.slurm.site import SlurmSite, seconds_of
from runtime.slurm.submit import ClusterFile
from specs.document.files import DocumentError
from specs.humanize import duration, several

_OF_A_JOB = re.compile(
    r"SLURM(D?_NODENAME|_(ARRAY|CPU|DISTRIBUTION|GPU|GTIDS|JOB|LAUNCH|LOCALID|MEM|NNODES|NODE|NPROCS|NTASKS|PRIO|PROCID"
    r"|RESTART|SRUN|STEP|SUBMIT|TASK|TOPOLOGY|TRES|UMASK))|CUDA_VISIBLE_DEVICES$"
)
"""Variables that SLURM sets in a job; others, as SLURM_CONF, are for its programs."""


def from_here(asked: ClusterFile, workspace: Workspace, shape: JobShape) -> list[Finding]:
    """What can be found without queueing anything; RefusedError where SLURM does not answer."""
    submit.check_path(workspace)
    client.check_controller()
    there = SlurmSite.asked()
    found = [
        *looked_at(workspace.path),
        Finding(True, "SLURM's programs are here, and its controller answers"),
        *_variables(),
        *slurm_limits.findings(asked, shape, there),
        *_accounts(asked, there),
    ]
    return [*found, *_trials(workspace, asked, shape, found)]


def finding_of(error: DocumentError) -> Finding:
    """A refusal as a finding."""
    return Finding(False, f"{error.path}:{error.line}:{error.column}: {error.what}", error.write)


def parts_of(error: RefusedError) -> tuple[str, str]:
    """What is wrong, and what to do about it where that is said."""
    what, _, remedy = str(error).partition("; ")
    return what, remedy


def _variables() -> Iterator[Finding]:
    """Of a job, where this is in none; and those that sbatch heeds more than a script."""
    job = os.environ.get("SLURM_JOB_ID")
    inside = False
    if job is not None:
        with suppress(SlurmError):  # a job that nobody knows any more
            inside = client.state_of(job) == "RUNNING"
    if inside:
        yield Finding(True, f"this is inside job {job}, whose variables stay here")
    else:
        yield left_behind(lambda name: _OF_A_JOB.match(name) is not None)
    overruling = sorted(name for name in os.environ if name.startswith("SBATCH_"))
    if overruling:
        said = f"sbatch heeds variables more than the cluster file: {', '.join(overruling)}"
        yield Finding(False, said, "unset them, unless that is meant", stops=False)


def _accounts(asked: ClusterFile, there: SlurmSite) -> Iterator[Finding]:
    """Whether SLURM keeps accounts, and knows whom the cluster file names."""
    slurm = asked.cluster.slurm
    if slurm.reservation is not None:
        names = [one["ReservationName"] for one in client.shown("reservation")]
        if slurm.reservation not in names:
            write = f"write one of {', '.join(names)}" if names else "leave it out"
            yield refused(
                asked, "slurm.reservation", f"there is no reservation {slurm.reservation} now", write
            )
    try:
        client.check_accounts()
    except SlurmError as error:
        what = parts_of(error)[0]
        lost = "a job that ran out of time or lost its node counts as failed, and a study stops there"
        said = f"sacct does not answer ({what}): how jobs ended is not known, so {lost}"
        yield Finding(False, said, "ask the site's people for accounts (slurmdbd)", stops=False)
        return
    yield Finding(True, "sacct answers: how jobs ended is known")
    enforced = there.settings.get("AccountingStorageEnforce", "")
    if slurm.account is not None:
        user = getpass.getuser()
        known = sorted({one for [one] in client.accounted("assoc", f"user={user}", "format=Account")})
        if slurm.account not in known:
            said = f"{user} has no account {slurm.account} here"
            write = f"write one of {', '.join(known)}" if known else "ask the site's people for one"
            yield refused(asked, "slurm.account", said, write, stops="associations" in enforced)
    if slurm.qos is not None:
        longest = {name: seconds_of(most) for name, most in client.accounted("qos", "format=Name,MaxWall")}
        if slurm.qos not in longest:
            write = f"write one of {', '.join(longest)}"
            yield refused(
                asked, "slurm.qos", f"there is no qos {slurm.qos} here", write, stops="qos" in enforced
            )
        elif slurm.time_limit > longest[slurm.qos]:
            most = duration(longest[slurm.qos])
            said = f"jobs may take {duration(slurm.time_limit)}, and the qos {slurm.qos} allows {most}"
            yield refused(asked, "slurm.time_limit", said, f"write {minutes(longest[slurm.qos])} or less")


def _trials(
    workspace: Workspace, asked: ClusterFile, shape: JobShape, found: Sequence[Finding]
) -> Iterator[Finding]:
    """What sbatch would say to a run on all devices and to one on a node, where it is not said already."""
    known = [one.what for one in found if one.fatal]
    told: set[str] = set()
    for nodes in sorted({shape.nodes, 1}, reverse=True):
        tried = replace(shape, nodes=nodes, least_nodes=nodes)
        run = f"a run on {several(nodes * shape.tasks_per_node, 'device')} of {several(nodes, 'node')}"
        try:
            start = submit.try_out(asked, submit.run_script(workspace, asked, tried))
        except DocumentError as error:
            place = f"{error.path}:{error.line}:{error.column}:"
            if error.what not in told and not any(what.startswith(place) for what in known):
                yield finding_of(error)
            told.add(error.what)
            continue
        if start:
            yield Finding(True, f"sbatch would take {run}, {start}")
        elif not known:
            said = f"sbatch has no nodes for {run} now: they are down, or not as it asks for"
            yield Finding(False, said, "it waits until there are some", stops=False)
