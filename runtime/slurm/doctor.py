"""`isoplan doctor --slurm`: what would fail after it was queued, found before, and a cluster measured node to node.

First what can be asked from here (runtime/slurm/site.py, sbatch's own trial), then one short job on two nodes whose
tasks look around and measure together (runtime/slurm/probe.py), then what they reported (runtime/slurm/reports.py).
"""

import getpass
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from runtime.doctor import (
    Finding,
    device_rows,
    left_behind,
    link_rows,
    looked_at,
    show_figures,
    show_findings,
)
from runtime.prepare import RefusedError, Workspace
from runtime.slurm import client, queue, reports, site
from runtime.slurm.client import SlurmError
from runtime.slurm.probe import Order, Software, write
from runtime.slurm.queue import Asked
from runtime.slurm.reports import Figures, Reports
from runtime.slurm.script import PROBE_S, Shape, shape_for
from runtime.slurm.site import Site, refused
from specs.cluster import Cluster
from specs.files import DocumentError
from specs.words import duration, several

_OF_A_JOB = re.compile(
    r"SLURM(D?_NODENAME|_(ARRAY|CPU|DISTRIBUTION|GPU|GTIDS|JOB|LAUNCH|LOCALID|MEM|NNODES|NODE|NPROCS|NTASKS|PRIO|PROCID"
    r"|RESTART|SRUN|STEP|SUBMIT|TASK|TOPOLOGY|TRES|UMASK))|CUDA_VISIBLE_DEVICES$"
)
"""Variables that SLURM sets in a job; others, as SLURM_CONF, are for its programs."""
_LOOK_S = 1.0
"""Time between two looks at the queue."""
_CLEAN_S = 10.0
"""For nodes to be done with a job; what its tasks reported is there before."""


@dataclass(frozen=True)
class Examined:
    """What was found, and measured."""

    findings: tuple[Finding, ...]
    figures: Figures | None
    """None where the job did not come to them."""
    cluster: Cluster | None
    """The cluster that the figures went into."""

    @property
    def healthy(self) -> bool:
        """Whether nothing would stop a run."""
        return not any(one.fatal for one in self.findings)

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return {
            "findings": [asdict(one) for one in self.findings],
            "figures": None if self.figures is None else asdict(self.figures),
            "cluster": None if self.cluster is None else self.cluster.plain(),
        }


def examine(asked: Asked, workspace: Workspace, patience_s: float, console: Console) -> Examined:
    """Look at the site from here, then from its nodes; a job that does not start within the patience is cancelled."""
    shape = shape_for(asked.cluster.devices, 1, asked.cluster)
    shape = replace(shape, least_nodes=shape.nodes)
    try:
        found = from_here(asked, workspace, shape)
    except RefusedError as error:  # no SLURM, or none that answers
        return Examined((*looked_at(workspace.path), Finding(False, *_parts(error))), None, None)
    probe = replace(shape, nodes=min(2, shape.nodes), least_nodes=min(2, shape.nodes))
    script = queue.probe_script(workspace, asked, probe)
    try:
        [queued] = queue.submit(workspace, asked, [script])
    except DocumentError as error:
        if not any(one.fatal for one in found):
            found.append(_of(error))
        return Examined(tuple(found), None, None)
    folder = queue.folder_of(workspace, queued.name)
    told = Told(folder, str(queued.job), queued.name, _order(workspace, asked, probe))
    reported, said = _carried_out(told, patience_s, console)
    found += said
    figures = None if reported is None else Figures.of(reported)
    if figures is None:
        return Examined(tuple(found), None, None)
    found.append(figures.saving(site.kill_wait_s(client.settings()), asked.cluster.slurm.warning))
    return Examined(tuple(found), figures, figures.cluster(asked.cluster))


def from_here(asked: Asked, workspace: Workspace, shape: Shape) -> list[Finding]:
    """What can be found without queueing anything; RefusedError where SLURM does not answer."""
    queue.check_path(workspace)
    client.check_controller()
    there = Site.asked()
    found = [
        *looked_at(workspace.path),
        Finding(True, "SLURM's programs are here, and its controller answers"),
        *_variables(),
        *site.findings(asked, shape, there),
        *_accounts(asked, there),
    ]
    return [*found, *_trials(workspace, asked, shape, found)]


def show(examined: Examined, base: Cluster, console: Console) -> None:
    """Print what was found and measured."""
    show_findings(examined.findings, console)
    figures = examined.figures
    if figures is None:
        return
    rows = list(device_rows(figures.device, base))
    if figures.within is not None:
        rows += link_rows("the node's others", base.intra_node, figures.within)
    if figures.between is not None:
        rows += link_rows("other nodes", base.inter_node, figures.between)
    show_figures(rows, base, console)


def _of(error: DocumentError) -> Finding:
    """A refusal as a finding."""
    return Finding(False, f"{error.path}:{error.line}:{error.column}: {error.what}", error.write)


def _parts(error: RefusedError) -> tuple[str, str]:
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


def _accounts(asked: Asked, there: Site) -> Iterator[Finding]:
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
        what = _parts(error)[0]
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
        longest = {
            name: site.seconds_of(most) for name, most in client.accounted("qos", "format=Name,MaxWall")
        }
        if slurm.qos not in longest:
            write = f"write one of {', '.join(longest)}"
            yield refused(
                asked, "slurm.qos", f"there is no qos {slurm.qos} here", write, stops="qos" in enforced
            )
        elif slurm.time_limit > longest[slurm.qos]:
            most = duration(longest[slurm.qos])
            said = f"jobs may take {duration(slurm.time_limit)}, and the qos {slurm.qos} allows {most}"
            yield refused(
                asked, "slurm.time_limit", said, f"write {site.minutes(longest[slurm.qos])} or less"
            )


def _trials(workspace: Workspace, asked: Asked, shape: Shape, found: Sequence[Finding]) -> Iterator[Finding]:
    """What sbatch would say to a run on all devices and to one on a node, where it is not said already."""
    known = any(one.fatal for one in found)
    told: set[str] = set()
    for nodes in sorted({shape.nodes, 1}, reverse=True):
        tried = replace(shape, nodes=nodes, least_nodes=nodes)
        run = f"a run on {several(nodes * shape.tasks_per_node, 'device')} of {several(nodes, 'node')}"
        try:
            start = queue.trial(workspace, asked, tried).partition(" to start at ")[2]
        except DocumentError as error:
            generic = known and "not available" in error.what  # SLURM's word for any of what is named above
            place = f"{error.path}:{error.line}:{error.column}:"
            named = any(one.fatal and one.what.startswith(place) for one in found)
            if not generic and not named and error.what not in told:
                yield _of(error)
            told.add(error.what)
        else:
            when, _, where = start.partition(" ")
            yield Finding(True, f"sbatch would take {run}: at {when}, {where}")


@dataclass(frozen=True)
class Told:
    """The doctor's job, queued."""

    folder: Path
    """Where its tasks report."""
    job: str
    """SLURM's number for it."""
    name: str
    """Its name in the queue."""
    order: Order
    """What its tasks are told."""


def _order(workspace: Workspace, asked: Asked, shape: Shape) -> Order:
    data = workspace.data.absolute()
    return Order(
        token=secrets.token_hex(8),
        device=asked.cluster.device.backend,
        nodes=shape.nodes,
        tasks_per_node=shape.tasks_per_node,
        data=str(data) if data.exists() else None,
    )


def _carried_out(told: Told, patience_s: float, console: Console) -> tuple[Reports | None, list[Finding]]:
    """What the job's tasks reported, once it has ended, and what that means; no reports where it never started."""
    begun = time.time()
    try:
        write(told.folder, "order", told.order)
        waited_for = _awaited(told, patience_s, console)
    except BaseException:
        with suppress(SlurmError):
            client.cancel([told.job])
        raise
    if waited_for is not None:
        client.cancel([told.job])
        said = f"job {told.job} did not start within {duration(patience_s)} (SLURM says {waited_for}); it was cancelled"
        return None, [Finding(False, said, "give more --patience, or try again when less is queued")]
    state, nodes = _end(told.job), client.nodes_of(client.place_of(told.job))
    console.print(f"job {told.job} has ended: {state.lower()}", highlight=False)
    reported = Reports.read(told.folder, told.job, told.order, nodes)
    said_by = list(reports.findings(reported, Software.here(), begun, time.time()))
    if state not in ("COMPLETED", "FAILED"):
        limit = f" (it had {duration(PROBE_S)})" if state == "TIMEOUT" else ""
        said_by.append(Finding(False, f"job {told.job} ended as {state}{limit}", f"see {told.folder}"))
    return reported, said_by


def _end(job: str) -> str:
    """SLURM's word for how a job ended, given some seconds to clean up after it."""
    until_s = time.monotonic() + _CLEAN_S
    while (state := client.state_of(job)) == "COMPLETING" and time.monotonic() < until_s:
        time.sleep(_LOOK_S)
    return state


def _awaited(told: Told, patience_s: float, console: Console) -> str | None:
    """None once the job has ended; what it waits for where it does not start within the patience."""
    deadline_s, shown = time.monotonic() + patience_s, ""
    with console.status("") as status:
        while True:
            live = client.live({told.name}).get(told.job)
            if live is None or live.state == "COMPLETING":
                return None
            if live.waits and time.monotonic() > deadline_s:
                return live.reason or live.state
            said = (
                f"job {told.job} waits: {live.reason or live.state}"
                if live.waits
                else f"job {told.job} is at work on {live.nodes}"
            )
            if said != shown:
                console.print(escape(said), highlight=False)
                status.update(escape(said))
                shown = said
            time.sleep(_LOOK_S)
