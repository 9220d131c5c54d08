"""`isoplan doctor --slurm`: what would fail after it was queued, found before, and a cluster measured node to node.

First what can be asked from here (runtime/doctor/slurm_preflight.py). Where that would stop no run, one short job on
two nodes whose tasks look around and measure together (runtime/doctor/node_probe.py), then what they reported
(runtime/doctor/findings.py)."""

import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from runtime.doctor import findings
from runtime.doctor.findings import Figures, Reports
from runtime.doctor.local import (
    Finding,
    device_rows,
    healthy,
    link_rows,
    looked_at,
    show_figures,
    show_findings,
)
from runtime.doctor.node_benchmark import ProbeOrder
from runtime.doctor.node_probe import Probe, Software, write
from runtime.doctor.slurm_preflight import finding_of, from_here, parts_of
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.slurm import client, submit
from runtime.slurm.client import SlurmError
from runtime.slurm.sbatch import (
    PROBE_S,
    JobShape,
    probe_parameters,
    whole_shape,
)
from runtime.slurm.site import kill_wait_s
from runtime.slurm.submit import ClusterFile, PreparedSubmission, folder_of, new_submission, script_of
from specs.cluster import Cluster
from specs.document.files import DocumentError
from specs.humanize import duration

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
    job: str | None = None
    """SLURM's number for the job; None where none was queued."""
    kept: Path | None = None
    """Folder of what its tasks wrote, where not all was well with them."""

    @property
    def healthy(self) -> bool:
        """Whether nothing would stop a run."""
        return healthy(self.findings)

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return {
            "findings": [asdict(one) for one in self.findings],
            "figures": None if self.figures is None else asdict(self.figures),
            "cluster": None if self.cluster is None else self.cluster.plain(),
            "job": self.job,
            "kept": None if self.kept is None else str(self.kept),
        }


def examine(asked: ClusterFile, workspace: Workspace, patience_s: float, console: Console) -> Examined:
    """Look at the site from here, then from its nodes, and print each finding as soon as it is one.

    Nothing is queued where something would stop a run; a job that does not start within the patience is cancelled.
    """
    cluster = asked.cluster
    shape = whole_shape(cluster.devices, 1, cluster.device.backend == "cuda", cluster)
    try:
        found = from_here(asked, workspace, shape)
    except RefusedError as error:  # no SLURM, or none that answers
        found = [*looked_at(workspace.path), Finding(False, *parts_of(error))]
    show_findings(found, console)
    examined = Examined(tuple(found), None, None)
    if not examined.healthy:
        return examined
    probe = replace(shape, nodes=min(2, shape.nodes), least_nodes=min(2, shape.nodes))
    script = probe_script(workspace, asked, probe)
    try:
        [queued] = submit.submit(workspace, asked, [script])
    except DocumentError as error:
        return _with(examined, [finding_of(error)], console)
    folder = submit.folder_of(workspace, queued.name)
    told = ProbeJob(folder, str(queued.job), queued.name, _order(workspace, asked, probe))
    reported, said = _carried_out(told, patience_s, console)
    examined = replace(examined, job=told.job, kept=folder if folder.exists() else None)
    figures = None if reported is None else Figures.of(reported)
    if figures is None:
        return _with(examined, said, console)
    said.append(figures.saving(kill_wait_s(client.settings()), asked.cluster.slurm.warning))
    measured = replace(examined, figures=figures, cluster=figures.cluster(asked.cluster))
    return _with(measured, said, console)


def _with(examined: Examined, findings: list[Finding], console: Console) -> Examined:
    """With further findings, which are printed."""
    show_findings(findings, console)
    return replace(examined, findings=(*examined.findings, *findings))


def show(examined: Examined, base: Cluster, console: Console) -> None:
    """Print what was measured, or why nothing was; the findings are printed already."""
    if examined.kept is not None:
        said = f"what the tasks of job {examined.job} wrote stays in {examined.kept}"
        console.print(escape(said), highlight=False, soft_wrap=True)
    figures = examined.figures
    if figures is None:
        said = f"nothing was measured or written: job {examined.job} came to no figures"
        if examined.job is None:
            said = "nothing was queued, measured or written: what is found above would stop a run"
        console.print(said, highlight=False, soft_wrap=True)
        return
    rows = list(device_rows(figures.device, base))
    if figures.within is not None:
        rows += link_rows("the node's others", base.intra_node, figures.within)
    if figures.between is not None:
        rows += link_rows("other nodes", base.inter_node, figures.between)
    show_figures(rows, base, console)


@dataclass(frozen=True)
class ProbeJob:
    """The doctor's job, queued."""

    folder: Path
    """Where its tasks report."""
    job: str
    """SLURM's number for it."""
    name: str
    """Its name in the queue."""
    order: ProbeOrder
    """What its tasks are told."""


def _order(workspace: Workspace, asked: ClusterFile, shape: JobShape) -> ProbeOrder:
    data = workspace.data.absolute()
    return ProbeOrder(
        token=secrets.token_hex(8),
        device=asked.cluster.device.backend,
        nodes=shape.nodes,
        tasks_per_node=shape.tasks_per_node,
        data=str(data) if data.exists() else None,
    )


def _carried_out(told: ProbeJob, patience_s: float, console: Console) -> tuple[Reports | None, list[Finding]]:
    """What the job's tasks reported, once it has ended, and what that means; no reports where it never started.

    Its folder goes where nothing is left in it to look into.
    """
    begun = time.time()
    try:
        write(told.folder, "order", told.order)
        waited_for = _awaited(told, patience_s, console)
    except BaseException:
        with suppress(SlurmError):
            client.cancel([told.job])
            shutil.rmtree(told.folder, ignore_errors=True)
        raise
    if waited_for is not None:
        client.cancel([told.job])
        shutil.rmtree(told.folder, ignore_errors=True)
        said = f"job {told.job} did not start within {duration(patience_s)} (SLURM says {waited_for}); it was cancelled"
        return None, [Finding(False, said, "give more --patience, or try again when less is queued")]
    state, nodes = _end(told.job), client.nodes_of(client.place_of(told.job))
    console.print(f"job {told.job} has ended: {state.lower()}", highlight=False)
    reported = Reports.read(told.folder, told.job, told.order, nodes)
    said_by = list(findings.findings(reported, Software.here(), begun, time.time()))
    if state not in ("COMPLETED", "FAILED"):
        limit = f" (it had {duration(PROBE_S)})" if state == "TIMEOUT" else ""
        said_by.append(Finding(False, f"job {told.job} ended as {state}{limit}", f"see {told.folder}"))
    if state == "COMPLETED" and healthy(said_by):
        shutil.rmtree(told.folder, ignore_errors=True)
    return reported, said_by


def _end(job: str) -> str:
    """SLURM's word for how a job ended, given some seconds to clean up after it."""
    until_s = time.monotonic() + _CLEAN_S
    while (state := client.state_of(job)) == "COMPLETING" and time.monotonic() < until_s:
        time.sleep(_LOOK_S)
    return state


def _awaited(told: ProbeJob, patience_s: float, console: Console) -> str | None:
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


def probe_script(workspace: Workspace, asked: ClusterFile, shape: JobShape) -> PreparedSubmission:
    """The submission of the doctor's job."""
    submission = new_submission("doctor", asked)
    folder = folder_of(workspace, submission.name)
    values = probe_parameters(asked.cluster.slurm, shape, submission.name, folder)
    return script_of(workspace, asked, submission, (Probe(str(folder)),), values)
