"""The doctor's preflight, which queues nothing: SLURM, the site's limits, accounting, and `sbatch --test-only`."""

import getpass
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from runtime.doctor import slurm_limits
from runtime.doctor.local import Finding, check_machine, check_variables
from runtime.doctor.slurm_limits import in_minutes, refused_field
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.slurm import client, submit
from runtime.slurm.client import SlurmError
from runtime.slurm.sbatch_script import JobShape
from runtime.slurm.site import SlurmSite, seconds_of
from runtime.slurm.submit import ClusterFile, ignored_variables
from specs.document.files import DocumentError
from specs.humanize import duration, several

_JOB_VARIABLES = re.compile(
    r"SLURM(D?_NODENAME|_(ARRAY|CPU|DISTRIBUTION|GPU|GTIDS|JOB|LAUNCH|LOCALID|MEM|NNODES|NODE|NPROCS|NTASKS|PRIO|PROCID"
    r"|RESTART|SRUN|STEP|SUBMIT|TASK|TOPOLOGY|TRES|UMASK))|CUDA_VISIBLE_DEVICES$"
)
"""Variables that SLURM sets in a job; others, like SLURM_CONF, are settings of its programs."""


def preflight(cluster_file: ClusterFile, workspace: Workspace, shape: JobShape) -> list[Finding]:
    """All findings that need no job; RefusedError where SLURM does not answer."""
    submit.check_path(workspace)
    client.check_controller()
    site = SlurmSite.query()
    found = [
        *check_machine(workspace.path),
        Finding(True, "SLURM is installed, and its controller answers"),
        *_variables(),
        *slurm_limits.limit_findings(cluster_file, shape, site),
        *_accounting(cluster_file, site),
        *_srun_options(cluster_file),
    ]
    return [*found, *_sbatch_trials(workspace, cluster_file, shape, found)]


def finding_of(error: DocumentError) -> Finding:
    """A refusal as a finding."""
    return Finding(False, f"{error.path}:{error.line}:{error.column}: {error.what}", error.write)


def message_and_remedy(error: RefusedError) -> tuple[str, str]:
    """What is wrong, and the remedy, which may be empty."""
    what, _, remedy = str(error).partition("; ")
    return what, remedy


def _variables() -> Iterator[Finding]:
    """Variables of a job that this shell is not in, and those for sbatch, which are not used."""
    job = os.environ.get("SLURM_JOB_ID")
    inside = False
    if job is not None:
        with suppress(SlurmError):  # SLURM no longer knows the job
            inside = client.job_state(job) == "RUNNING"
    if inside:
        yield Finding(True, f"this shell is inside job {job}; its variables are not passed on")
    else:
        yield check_variables(lambda name: _JOB_VARIABLES.match(name) is not None)
    ignored = ignored_variables()
    if ignored:
        yield Finding(False, ignored, "write what they set into its slurm section", blocking=False)


def _srun_options(cluster_file: ClusterFile) -> Iterator[Finding]:
    """Options of srun that it does not know here; those of a plugin may be known on the nodes only."""
    for name in cluster_file.cluster.slurm.srun:
        if not client.srun_knows(name):
            what = f"srun does not know --{name} here"
            write = "correct it, or check that the plugin which brings it is installed on the nodes"
            yield refused_field(cluster_file, f"slurm.srun.{name}", what, write, blocking=False)


def _accounting(cluster_file: ClusterFile, site: SlurmSite) -> Iterator[Finding]:
    """Whether SLURM accounting answers, and knows the account, QOS and reservation of the cluster file."""
    slurm = cluster_file.cluster.slurm
    if slurm.reservation is not None:
        names = [one["ReservationName"] for one in client.scontrol_show("reservation")]
        if slurm.reservation not in names:
            write = (
                f"set slurm.reservation to one of {', '.join(names)}" if names else "remove slurm.reservation"
            )
            yield refused_field(
                cluster_file, "slurm.reservation", f"the site has no reservation {slurm.reservation}", write
            )
    try:
        client.check_accounting()
    except SlurmError as error:
        what = message_and_remedy(error)[0]
        lost = "a job that reached its time limit or lost its node counts as failed and stops its study"
        message = f"sacct does not answer ({what}): how jobs ended is unknown, so {lost}"
        yield Finding(
            False, message, "ask the cluster's administrators for accounting (slurmdbd)", blocking=False
        )
        return
    yield Finding(True, "sacct answers, so how jobs ended is known")
    enforced = site.settings.get("AccountingStorageEnforce", "")
    if slurm.account is not None:
        user = getpass.getuser()
        known = sorted({one for [one] in client.sacctmgr_show("assoc", f"user={user}", "format=Account")})
        if slurm.account not in known:
            message = f"the user {user} has no account {slurm.account} at this site"
            write = (
                f"set slurm.account to one of {', '.join(known)}"
                if known
                else "ask the cluster's administrators for one"
            )
            yield refused_field(
                cluster_file, "slurm.account", message, write, blocking="associations" in enforced
            )
    if slurm.qos is not None:
        longest = {
            name: seconds_of(most) for name, most in client.sacctmgr_show("qos", "format=Name,MaxWall")
        }
        if slurm.qos not in longest:
            write = f"set slurm.qos to one of {', '.join(longest)}"
            yield refused_field(
                cluster_file,
                "slurm.qos",
                f"the site has no qos {slurm.qos}",
                write,
                blocking="qos" in enforced,
            )
        elif slurm.time_limit > longest[slurm.qos]:
            most = duration(longest[slurm.qos])
            what = f"jobs request {duration(slurm.time_limit)}, but the qos {slurm.qos} allows only {most}"
            write = f"write slurm.time_limit: {in_minutes(longest[slurm.qos])} or less"
            yield refused_field(cluster_file, "slurm.time_limit", what, write)


def _sbatch_trials(
    workspace: Workspace, cluster_file: ClusterFile, shape: JobShape, found: Sequence[Finding]
) -> Iterator[Finding]:
    """Whether sbatch would accept a run on all devices and one on a node; skips what is in `found` already."""
    known = [one.message for one in found if one.fatal]
    refusals: set[str] = set()
    for nodes in sorted({shape.nodes, 1}, reverse=True):
        tried = replace(shape, nodes=nodes, min_nodes=nodes)
        run = f"a run on {several(nodes * shape.tasks_per_node, 'device')} of {several(nodes, 'node')}"
        try:
            start = submit.sbatch_test_only(
                cluster_file, submit.trial_submission(workspace, cluster_file, tried)
            )
        except DocumentError as error:
            place = f"{error.path}:{error.line}:{error.column}:"
            if error.what not in refusals and not any(message.startswith(place) for message in known):
                yield finding_of(error)
            refusals.add(error.what)
            continue
        if start:
            yield Finding(True, f"sbatch would accept {run}, starting {start}")
        elif not known:
            message = f"no nodes are available for {run} now: they are down, or lack what it requests"
            yield Finding(False, message, "runs stay pending until there are some", blocking=False)
