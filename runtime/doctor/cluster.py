"""`isoplan doctor --slurm`: finds what would stop queued runs, and measures a cluster between two nodes.

First the preflight, which queues nothing (runtime/doctor/slurm_preflight.py). If it finds nothing that stops a run, one
short job on two nodes, whose tasks check their nodes and measure together (runtime/doctor/node_probe.py). Their reports
become findings and rates (runtime/doctor/findings.py)."""

import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from runtime.doctor import findings
from runtime.doctor.findings import Reports
from runtime.doctor.local import DoctorReport, Finding, check_machine, healthy, show_findings, show_rates
from runtime.doctor.node_probe import Probe, Software, write_report
from runtime.doctor.probe_order import ProbeOrder
from runtime.doctor.slurm_limits import with_node_sizes
from runtime.doctor.slurm_preflight import finding_of, message_and_remedy, preflight
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.slurm import client, submit
from runtime.slurm.client import SlurmError
from runtime.slurm.sbatch_script import (
    PROBE_TIME_LIMIT_S,
    JobShape,
    full_shape,
    probe_parameters,
)
from runtime.slurm.site import SlurmSite, kill_wait_s
from runtime.slurm.submit import (
    ClusterFile,
    PreparedSubmission,
    new_submission,
    prepared_submission,
    submission_folder,
)
from specs.cluster import Cluster
from specs.document.files import DocumentError
from specs.host_memory import MARGIN, PROCESS_BYTES
from specs.humanize import duration

_POLL_S = 1.0
"""Time between two queries of the queue."""
_COMPLETING_TIMEOUT_S = 10.0
"""For a job to complete after its tasks have reported."""


def examine(
    cluster_file: ClusterFile, workspace: Workspace, patience_s: float, console: Console
) -> DoctorReport:
    """Check the site from here, then from two of its nodes; findings are printed at once.

    No job is queued where something would stop a run; a job that is pending for longer than `patience_s` is cancelled.
    """
    cluster = cluster_file.cluster
    shape = full_shape(cluster.devices, 1, cluster.device.backend == "cuda", cluster)
    try:
        found = preflight(cluster_file, workspace, shape)
    except RefusedError as error:  # SLURM is not installed, or does not answer
        found = [*check_machine(workspace.path), Finding(False, *message_and_remedy(error))]
    show_findings(found, console)
    report = DoctorReport(tuple(found), None, None)
    if not report.healthy:
        return report
    probe_shape = replace(shape, nodes=min(2, shape.nodes), min_nodes=min(2, shape.nodes))
    if shape.on_gpu and shape.memory_bytes is None and submit.shares_memory(client.settings()):
        each = MARGIN * PROCESS_BYTES["cuda"]
        probe_shape = replace(probe_shape, memory_bytes=shape.tasks_per_node * each)
    prepared = probe_submission(workspace, cluster_file, probe_shape)
    try:
        [submission] = submit.submit(workspace, cluster_file, [prepared])
    except DocumentError as error:
        return _with_findings(report, [finding_of(error)], console)
    folder = submit.submission_folder(workspace, submission.name)
    order = _probe_order(workspace, cluster_file, probe_shape)
    probe_job = ProbeJob(folder, str(submission.job), submission.name, order)
    reports, probe_findings = _run_probe(probe_job, patience_s, console)
    report = replace(report, job=probe_job.job, kept=folder if folder.exists() else None)
    rates = None if reports is None else findings.measured_rates(reports)
    if rates is None:
        return _with_findings(report, probe_findings, console)
    kill_wait = kill_wait_s(client.settings())
    probe_findings.append(findings.time_to_save(rates, kill_wait, cluster_file.cluster.slurm.warning))
    measured = with_node_sizes(findings.measured_cluster(cluster_file.cluster, rates), SlurmSite.query())
    return _with_findings(replace(report, rates=rates, cluster=measured), probe_findings, console)


def _with_findings(report: DoctorReport, more: list[Finding], console: Console) -> DoctorReport:
    """The report with further findings, which are printed."""
    show_findings(more, console)
    return replace(report, findings=(*report.findings, *more))


def show(report: DoctorReport, base: Cluster, console: Console) -> None:
    """Print the measured rates, or why there are none; the findings are printed already."""
    if report.kept is not None:
        line = f"the output of the tasks of job {report.job} is kept in {report.kept}"
        console.print(escape(line), highlight=False, soft_wrap=True)
    if report.rates is not None:
        show_rates(report, base, console)
        return
    line = f"job {report.job} measured nothing, so no cluster file was written"
    if report.job is None:
        line = (
            "no job was queued and no cluster file was written, since the failures above would prevent a run"
        )
    console.print(line, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class ProbeJob:
    """The doctor's job, queued."""

    folder: Path
    """Folder of its tasks' reports."""
    job: str
    """SLURM's job id."""
    name: str
    """Its name in the queue."""
    order: ProbeOrder
    """Its tasks' instructions."""


def _probe_order(workspace: Workspace, cluster_file: ClusterFile, shape: JobShape) -> ProbeOrder:
    data = workspace.data.absolute()
    return ProbeOrder(
        token=secrets.token_hex(8),
        device=cluster_file.cluster.device.backend,
        nodes=shape.nodes,
        tasks_per_node=shape.tasks_per_node,
        data=str(data) if data.exists() else None,
    )


def _run_probe(
    probe_job: ProbeJob, patience_s: float, console: Console
) -> tuple[Reports | None, list[Finding]]:
    """The reports of the job's tasks after its end, and the findings; no reports where it did not start in time.

    Its folder is deleted where no task failed.
    """
    begun = time.time()
    try:
        write_report(probe_job.folder, "order", probe_job.order)
        pending_reason = _wait_for_end(probe_job, patience_s, console)
    except BaseException:
        with suppress(SlurmError):
            client.cancel([probe_job.job])
            shutil.rmtree(probe_job.folder, ignore_errors=True)
        raise
    if pending_reason is not None:
        client.cancel([probe_job.job])
        shutil.rmtree(probe_job.folder, ignore_errors=True)
        message = (
            f"job {probe_job.job} was cancelled, since it was still pending after {duration(patience_s)}"
        )
        remedy = "increase --patience, or rerun when the queue is shorter"
        return None, [Finding(False, f"{message} (reason: {pending_reason})", remedy)]
    state, nodes = _final_state(probe_job.job), client.expand_nodes(client.job_nodes(probe_job.job))
    console.print(f"job {probe_job.job} has ended: {state.lower()}", highlight=False)
    reports = Reports.read(probe_job.folder, probe_job.job, probe_job.order, nodes)
    found = list(findings.findings(reports, Software.here(), begun, time.time()))
    if state not in ("COMPLETED", "FAILED"):
        limit = f" after {duration(PROBE_TIME_LIMIT_S)}" if state == "TIMEOUT" else ""
        found.append(
            Finding(
                False,
                f"job {probe_job.job} ended in state {state}{limit}",
                f"see its logs in {probe_job.folder}",
            )
        )
    if state == "COMPLETED" and healthy(found):
        shutil.rmtree(probe_job.folder, ignore_errors=True)
    return reports, found


def _final_state(job: str) -> str:
    """The state in which a job ended, which may take some seconds to complete."""
    until_s = time.monotonic() + _COMPLETING_TIMEOUT_S
    while (state := client.job_state(job)) == "COMPLETING" and time.monotonic() < until_s:
        time.sleep(_POLL_S)
    return state


def _wait_for_end(probe_job: ProbeJob, patience_s: float, console: Console) -> str | None:
    """None once the job has ended; SLURM's reason if it is still pending after `patience_s`."""
    deadline_s, shown = time.monotonic() + patience_s, ""
    with console.status("") as status:
        while True:
            live = client.live_jobs({probe_job.name}).get(probe_job.job)
            if live is None or live.state == "COMPLETING":
                return None
            if live.pending and time.monotonic() > deadline_s:
                return live.reason or live.state
            line = (
                f"job {probe_job.job} is pending: {live.reason or live.state}"
                if live.pending
                else f"job {probe_job.job} is running on {live.nodes}"
            )
            if line != shown:
                console.print(escape(line), highlight=False)
                status.update(escape(line))
                shown = line
            time.sleep(_POLL_S)


def probe_submission(workspace: Workspace, cluster_file: ClusterFile, shape: JobShape) -> PreparedSubmission:
    """The submission of the doctor's job."""
    submission = new_submission("doctor", cluster_file)
    folder = submission_folder(workspace, submission.name)
    values = probe_parameters(cluster_file.cluster.slurm, shape, submission.name, folder)
    return prepared_submission(workspace, cluster_file, submission, (Probe(str(folder)),), values)
