"""`isoplan doctor`: whether runs can work on this machine, and a cluster file of what it measures here.

The preflight checks what would stop a run later: interpreter and torch, a writable folder, free disk space, two
processes that can communicate, variables that a job has left behind. The rates that a data sheet promises are measured.
"""

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runtime.doctor.benchmark import DeviceRates, LinkRates, device_rates, link_rates
from runtime.launch.machine import Machine
from runtime.run_folder.provenance import processor
from runtime.run_folder.workspace import RefusedError
from specs.cluster import Cluster
from specs.document.files import DocumentError, from_catalog, is_file, load

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Set by torchrun and the like: a launcher overwrites them, but a rank that is started by hand would use them."""
_MEASURED_PREFIX = "measured by isoplan doctor on "
"""The `source` of a measured cluster begins with this; a file without it was not written by the doctor."""
_KEPT_PREFIX = "as before: "
"""Precedes the source of the values that are not measured."""
MIN_FREE_BYTES = 2**30
"""Disk space for a first small run and its checkpoints."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    ok: bool
    message: str
    """What was found."""
    remedy: str = ""
    """What to do if it is not ok."""
    blocking: bool = True
    """Whether a run would fail if it is not ok; otherwise it is a warning."""

    @property
    def fatal(self) -> bool:
        """Whether a run would fail because of it."""
        return self.blocking and not self.ok


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether none of these would stop a run."""
    return not any(one.fatal for one in findings)


@dataclass(frozen=True)
class MeasuredRates:
    """What was measured; of several tasks that measured at the same time, medians."""

    device: DeviceRates
    intra_node: LinkRates | None
    """Between devices of a node; None where there is only one, or they could not communicate."""
    inter_node: LinkRates | None
    """Between nodes; None where only one was measured."""
    write_bytes_per_s: float | None
    """Of all tasks together, into the workspace; None where it was not measured."""
    nodes: tuple[str, ...]
    """Names of the nodes that were measured."""


@dataclass(frozen=True)
class DoctorReport:
    """What the doctor found on this machine, or on a SLURM cluster, and measured there."""

    findings: tuple[Finding, ...]
    rates: MeasuredRates | None
    """None where nothing could be measured."""
    cluster: Cluster | None
    """The cluster with these rates; None without them."""
    load: float | None = None
    """This machine's load average before the measurement, in cores; None of a SLURM cluster."""
    job: str | None = None
    """SLURM's id of the doctor's job; None where none was queued."""
    kept: Path | None = None
    """Folder of the job's output, which is kept where a task failed."""

    @property
    def healthy(self) -> bool:
        """Whether nothing would stop a run."""
        return healthy(self.findings)

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return {
            "findings": [asdict(one) for one in self.findings],
            "rates": None if self.rates is None else asdict(self.rates),
            "cluster": None if self.cluster is None else self.cluster.plain(),
            "load": self.load,
            "job": self.job,
            "kept": None if self.kept is None else str(self.kept),
        }


def examine(base: Cluster, machine: Machine, folder: Path) -> DoctorReport:
    """Check this machine and measure it; measured rates replace those of the base cluster.

    RefusedError where this machine has no devices of the base cluster's kind.
    """
    device = base.device.backend
    if device == "cuda" and not machine.gpus:
        raise RefusedError(
            f"the cluster {base.name} has GPUs and this machine has none; run the doctor on one of its nodes, or name "
            "a cluster of CPUs"
        )
    load = os.getloadavg()[0]
    rates = device_rates(device)
    findings = [*check_machine(folder), check_variables(lambda name: name.startswith("SLURM_"))]
    link, devices = None, len(machine.gpus) if device == "cuda" else machine.cores
    if devices > 1:
        try:
            link = link_rates(device)
            findings.append(Finding(True, "two processes can communicate"))
        except RuntimeError as error:
            findings.append(
                Finding(
                    False,
                    f"two processes cannot communicate: {error}",
                    "check the network setup of this host",
                )
            )
    measured = MeasuredRates(rates, link, None, None, (socket.gethostname(),))
    return DoctorReport(tuple(findings), measured, measured_cluster(base, devices, rates, link), load)


def measured_cluster(base: Cluster, devices: int, rates: DeviceRates, link: LinkRates | None) -> Cluster:
    """The base cluster with the rates measured on this machine in place of the promised ones."""
    found = with_rates(base, rates, socket.gethostname())
    if base.device.backend == "cpu":
        here: dict[str, Any] = {
            "device": found.device.model_copy(update={"memory": float(_memory_bytes() // devices)}),
            "devices": devices,
            "devices_per_node": devices,
        }
        if link is not None:
            here["intra_node"] = three_digits(link.gather_bytes_per_s)
        return found.model_copy(update=here)
    if found.efficiency is None or link is None:
        return found
    shares = {
        "links": _share(link.gather_bytes_per_s, base.intra_node),
        "message": three_digits(link.message_s),
    }
    return found.model_copy(update={"efficiency": found.efficiency.model_copy(update=shares)})


def with_rates(base: Cluster, rates: DeviceRates, where: str) -> Cluster:
    """The base cluster with a device's measured rates in place of its promised ones.

    A CPU has no data sheet for all cores together, so its peaks are the measured ones. A GPU keeps the peaks of its
    data sheet, and its efficiency, the share of them that it reaches, is measured.
    """
    what = processor() if base.device.backend == "cpu" else rates.name
    source = f"{_MEASURED_PREFIX}{where} ({what})"
    if base.device.backend == "cpu":
        peaks = {
            "peak_bf16": three_digits(rates.bf16_flop_per_s),
            "peak_fp32": three_digits(rates.fp32_flop_per_s),
            "memory_bandwidth": three_digits(rates.copy_bytes_per_s),
        }
        device = base.device.model_copy(update=peaks)
        return base.model_copy(update={"device": device, "source": source})
    if base.efficiency is None:
        sheet = f"{source}; the data sheet {_KEPT_PREFIX}{_kept_source(base.source)}"
        return base.model_copy(update={"source": sheet})
    peak = base.device.peak_bf16
    shares = {
        "matmul": _share(rates.bf16_flop_per_s, peak),
        "matmul_half_depth": three_digits(rates.half_depth),
        "attention": _share(rates.attention_flop_per_s, peak),
        "memory": _share(rates.copy_bytes_per_s, base.device.memory_bandwidth),
        "launch": three_digits(rates.launch_s),
        "source": f"{source}; overlap and uptime {_KEPT_PREFIX}{_kept_source(base.efficiency.source)}",
    }
    return base.model_copy(update={"efficiency": base.efficiency.model_copy(update=shares)})


def _kept_source(source: str) -> str:
    """The source of the values that are not measured, also of a cluster that was measured before."""
    return source.rpartition(_KEPT_PREFIX)[2]


def three_digits(figure: float) -> float:
    """Rounded to three digits: a measurement has no more."""
    return float(f"{figure:.3g}")


def _share(reached: float, promised: float) -> float:
    return min(1.0, three_digits(reached / promised))


def base_cluster(named: str | None, machine: Machine) -> Cluster:
    """The cluster to measure, from the catalog or a file; this machine's cores where none is named."""
    if named is None and machine.gpus:
        raise RefusedError(
            "this machine has GPUs, whose data sheet is not known; add --cluster with a name of "
            "specs/catalog/clusters, or a file"
        )
    if named is None:
        return from_catalog(Cluster, "laptop", None).model_copy(update={"name": "this-machine"})
    return load(Path(named), Cluster) if is_file(named) else from_catalog(Cluster, named, None)


def check_output(path: Path) -> None:
    """DocumentError where the doctor would overwrite a file that it did not write."""
    if path.exists() and not _written_by_doctor(path):
        what = "isoplan doctor did not write this file and does not overwrite it"
        raise DocumentError(path, 1, 1, what, "choose another name with --out, or remove the file")


def _written_by_doctor(path: Path) -> bool:
    """Whether a file is a cluster whose source says that the doctor measured it."""
    try:
        there = load(path, Cluster)
    except DocumentError:
        return False
    sources = [there.source, *([] if there.efficiency is None else [there.efficiency.source])]
    return any(source.startswith(_MEASURED_PREFIX) for source in sources)


def check_machine(folder: Path) -> Iterator[Finding]:
    """What every run needs: interpreter, torch, a writable folder, free disk space."""
    import torch

    yield Finding(
        sys.version_info >= (3, 11), f"Python {platform.python_version()}", "install Python 3.11 or newer"
    )
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    yield Finding(version >= (2, 11), f"torch {torch.__version__}", "install torch 2.11 or newer")
    yield Finding(
        os.access(folder, os.W_OK),
        f"{folder.absolute()} is writable",
        "change to a folder that you may write to",
    )
    free = shutil.disk_usage(folder).free
    yield Finding(
        free > MIN_FREE_BYTES,
        f"{free / 2**30:.1f} GiB of disk space are free",
        "free disk space for checkpoints",
    )


def check_variables(is_left: Callable[[str], bool]) -> Finding:
    """Whether variables of a launcher, or those that `is_left` names, are left in this shell."""
    left = sorted(name for name in os.environ if name in _LAUNCHER_VARIABLES or is_left(name))
    message = "no environment variables of a launcher or job are set"
    if left:
        message = f"environment variables of a launcher or job are set: {', '.join(left)}"
    return Finding(not left, message, "start from a fresh shell, or unset them")


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def show(report: DoctorReport, base: Cluster, console: Console) -> None:
    """Print the findings, and the rates beside those of the base cluster."""
    show_findings(report.findings, console)
    if report.load is not None and report.load > 0.5:
        busy = f"other processes used {report.load:.1f} of {os.cpu_count()} cores, so the rates are too low"
        console.print(f"[yellow]load[/]  {busy}", highlight=False, soft_wrap=True)
    show_rates(report, base, console)


def show_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print findings, a line each."""
    for one in findings:
        mark = "[green]ok[/]  " if one.ok else "[red]fail[/]" if one.blocking else "[yellow]warn[/]"
        rest = "" if one.ok or not one.remedy else f"; {one.remedy}"
        console.print(f"{mark} {escape(one.message + rest)}", highlight=False, soft_wrap=True)


def show_rates(report: DoctorReport, base: Cluster, console: Console) -> None:
    """Print the measured rates beside those of the base cluster."""
    rates = report.rates
    if rates is None:
        return
    rows = list(_device_rows(rates.device, base))
    if rates.intra_node is not None:
        rows += _link_rows("a device of the node", base.intra_node, rates.intra_node)
    if rates.inter_node is not None:
        rows += _link_rows("another node", base.inter_node, rates.inter_node)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("one device", base.name, "measured"):
        table.add_column(name, justify="left" if name == "one device" else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _device_rows(rates: DeviceRates, base: Cluster) -> Iterator[tuple[str, str, str]]:
    """A device's rates: name, value of the base cluster, measured value."""
    device = base.device
    for name, promised, found in (
        ("bf16 matrix multiplication", device.peak_bf16, rates.bf16_flop_per_s),
        ("fp32 matrix multiplication", device.peak_fp32, rates.fp32_flop_per_s),
    ):
        yield name, f"{promised / 1e9:,.0f} GFLOP/s", f"{found / 1e9:,.0f} GFLOP/s"
    yield "attention, bf16", "-", f"{rates.attention_flop_per_s / 1e9:,.0f} GFLOP/s"
    yield (
        "memory copy",
        f"{device.memory_bandwidth / 1e9:,.0f} GB/s",
        f"{rates.copy_bytes_per_s / 1e9:,.1f} GB/s",
    )
    if rates.half_depth >= 1:
        yield "matmul inner dimension (K) for half the rate", "-", f"{rates.half_depth:,.0f}"
    yield (
        "kernels",
        "-",
        ", ".join(sorted({text.split(" ")[0].rstrip(",") for text in rates.kernels.values()})),
    )


def _link_rows(to: str, promised_bytes_per_s: float, link: LinkRates) -> Iterator[tuple[str, str, str]]:
    """A link's rates likewise."""
    yield (
        f"all-gather to {to}",
        f"{promised_bytes_per_s / 1e9:,.1f} GB/s",
        f"{link.gather_bytes_per_s / 1e9:,.1f} GB/s",
    )
    yield f"all-reduce latency to {to}", "-", f"{link.message_s * 1e6:,.0f} us"
