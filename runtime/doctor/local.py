"""`isoplan doctor`: whether runs can work on this machine, and a cluster file of what it measures here.

What would stop a run after it was queued is looked at before: interpreter and torch, a folder that can be written, room
on the disk, processes that find each other, variables that a job leaves behind. What a data sheet promises is measured.
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

_LEFT_BEHIND = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Of torchrun and the like: a launcher sets its own, a rank that is started by hand believes them."""
_MEASURED = "measured by isoplan doctor on "
"""How the source of what is measured begins, by which a file of the doctor's is known."""
_BEFORE = "as before: "
"""What comes before the source of the figures that are not measured."""
LEAST_FREE_BYTES = 2**30
"""Room for a first small run and its checkpoints."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    ok: bool
    what: str
    """What it is."""
    remedy: str = ""
    """What to do where it is not as it should be."""
    stops: bool = True
    """Whether a run would fail where it is not; else it only loses something."""

    @property
    def fatal(self) -> bool:
        """Whether a run would fail of it."""
        return self.stops and not self.ok


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing of these would stop a run."""
    return not any(one.fatal for one in findings)


@dataclass(frozen=True)
class Examined:
    """What was found, and measured."""

    findings: tuple[Finding, ...]
    device: DeviceRates
    link: LinkRates | None
    """None where there is one device, or two did not meet."""
    cluster: Cluster
    """The cluster that the figures went into."""
    load: float
    """Cores' worth of other work before the measurement."""

    @property
    def healthy(self) -> bool:
        """Whether nothing would stop a run."""
        return healthy(self.findings)

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return {
            "findings": [asdict(one) for one in self.findings],
            "device": asdict(self.device),
            "link": None if self.link is None else asdict(self.link),
            "cluster": self.cluster.plain(),
            "load": self.load,
        }


def examine(base: Cluster, machine: Machine, folder: Path) -> Examined:
    """Look at this machine and measure it; the base cluster's figures that are measured here give way.

    RefusedError where the base's devices are of a kind that is not here.
    """
    device = base.device.backend
    if device == "cuda" and not machine.gpus:
        raise RefusedError(
            f"the cluster {base.name} has GPUs and this machine shows none; run this on one of its nodes, or name a "
            "cluster of CPUs"
        )
    load = os.getloadavg()[0]
    rates = device_rates(device)
    findings = [*looked_at(folder), left_behind(lambda name: name.startswith("SLURM_"))]
    link, devices = None, len(machine.gpus) if device == "cuda" else machine.cores
    if devices > 1:
        try:
            link = link_rates(device)
            findings.append(Finding(True, "two processes find each other and talk"))
        except RuntimeError as error:
            findings.append(
                Finding(
                    False, f"two processes do not find each other: {error}", "see what torch.distributed says"
                )
            )
    return Examined(tuple(findings), rates, link, measured(base, devices, rates, link), load)


def measured(base: Cluster, devices: int, rates: DeviceRates, link: LinkRates | None) -> Cluster:
    """The base cluster with what was measured on this machine in place of what was promised."""
    found = with_rates(base, rates, socket.gethostname())
    if base.device.backend == "cpu":
        here: dict[str, Any] = {
            "device": found.device.model_copy(update={"memory": float(_memory_bytes() // devices)}),
            "devices": devices,
            "devices_per_node": devices,
        }
        if link is not None:
            here["intra_node"] = short(link.gather_bytes_per_s)
        return found.model_copy(update=here)
    if found.efficiency is None or link is None:
        return found
    shares = {
        "links": _share(link.gather_bytes_per_s, base.intra_node),
        "message": short(link.message_s),
    }
    return found.model_copy(update={"efficiency": found.efficiency.model_copy(update=shares)})


def with_rates(base: Cluster, rates: DeviceRates, where: str) -> Cluster:
    """The base cluster with a device's measured rates in place of its promised ones.

    A CPU has no data sheet that says what its cores reach together, so its peaks are the measured ones. A GPU keeps
    its data sheet, and the shares of it that it reaches are measured.
    """
    what = processor() if base.device.backend == "cpu" else rates.name
    source = f"{_MEASURED}{where} ({what})"
    if base.device.backend == "cpu":
        peaks = {
            "peak_bf16": short(rates.bf16_flop_per_s),
            "peak_fp32": short(rates.fp32_flop_per_s),
            "memory_bandwidth": short(rates.copy_bytes_per_s),
        }
        device = base.device.model_copy(update=peaks)
        return base.model_copy(update={"device": device, "source": source})
    if base.efficiency is None:
        sheet = f"{source}; the data sheet {_BEFORE}{_unmeasured(base.source)}"
        return base.model_copy(update={"source": sheet})
    peak = base.device.peak_bf16
    shares = {
        "matmul": _share(rates.bf16_flop_per_s, peak),
        "matmul_half_depth": short(rates.half_depth),
        "attention": _share(rates.attention_flop_per_s, peak),
        "memory": _share(rates.copy_bytes_per_s, base.device.memory_bandwidth),
        "launch": short(rates.launch_s),
        "source": f"{source}; overlap and uptime {_BEFORE}{_unmeasured(base.efficiency.source)}",
    }
    return base.model_copy(update={"efficiency": base.efficiency.model_copy(update=shares)})


def _unmeasured(source: str) -> str:
    """The source of what is not measured, however often the rest was."""
    return source.rpartition(_BEFORE)[2]


def short(figure: float) -> float:
    """Three digits: a measurement has no more."""
    return float(f"{figure:.3g}")


def _share(reached: float, promised: float) -> float:
    return min(1.0, short(reached / promised))


def base_cluster(named: str | None, machine: Machine) -> Cluster:
    """The cluster that is measured: of the catalog or a file; this machine's cores where none is named."""
    if named is None and machine.gpus:
        raise RefusedError(
            "this machine has GPUs: say whose data sheet and links they have, with --cluster and a name of "
            "specs/catalog/clusters or a file"
        )
    if named is None:
        return from_catalog(Cluster, "laptop", None).model_copy(update={"name": "this-machine"})
    return load(Path(named), Cluster) if is_file(named) else from_catalog(Cluster, named, None)


def check_place(path: Path) -> None:
    """DocumentError where a file stands that the doctor did not write: only its own may give way to new figures."""
    if path.exists() and not _is_measured(path):
        what = "isoplan doctor did not write what is there"
        raise DocumentError(path, 1, 1, what, "give another name as --out, or remove it")


def _is_measured(path: Path) -> bool:
    """Whether a file is a cluster whose source says that the doctor measured it."""
    try:
        there = load(path, Cluster)
    except DocumentError:
        return False
    sources = [there.source, *([] if there.efficiency is None else [there.efficiency.source])]
    return any(source.startswith(_MEASURED) for source in sources)


def looked_at(folder: Path) -> Iterator[Finding]:
    """What a run needs wherever it is started: interpreter, torch, a folder to write to."""
    import torch

    yield Finding(
        sys.version_info >= (3, 11), f"Python {platform.python_version()}", "install Python 3.11 or newer"
    )
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    yield Finding(version >= (2, 11), f"torch {torch.__version__}", "install torch 2.11 or newer")
    yield Finding(
        os.access(folder, os.W_OK), f"{folder.absolute()} can be written", "run in a folder of your own"
    )
    free = shutil.disk_usage(folder).free
    yield Finding(
        free > LEAST_FREE_BYTES, f"{free / 2**30:.1f} GiB are free here", "make room for checkpoints"
    )


def left_behind(is_left: Callable[[str], bool]) -> Finding:
    """Whether variables are set that a launcher, or what `is_left` knows, has left behind."""
    left = sorted(name for name in os.environ if name in _LEFT_BEHIND or is_left(name))
    said = f"variables of a job are set: {', '.join(left)}" if left else "no variables of another job are set"
    return Finding(not left, said, "start from a fresh shell, or unset them")


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def show(examined: Examined, base: Cluster, console: Console) -> None:
    """Print what was found and measured."""
    show_findings(examined.findings, console)
    if examined.load > 0.5:
        said = f"other work was at {examined.load:.1f} of {os.cpu_count()} cores: the figures are too low"
        console.print(f"[yellow]load[/]  {said}", highlight=False, soft_wrap=True)
    link = () if examined.link is None else link_rows("another", base.intra_node, examined.link)
    show_figures([*device_rows(examined.device, base), *link], base, console)


def show_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print what was looked at, a line each."""
    for one in findings:
        mark = "[green]ok[/]" if one.ok else "[red]no[/]" if one.stops else "[yellow]but[/]"
        rest = "" if one.ok or not one.remedy else f"; {one.remedy}"
        pad = " " * (1 if one.stops or one.ok else 0)
        console.print(f"{mark}{pad} {escape(one.what + rest)}", highlight=False, soft_wrap=True)


def show_figures(rows: Iterable[tuple[str, str, str]], base: Cluster, console: Console) -> None:
    """Print what was measured, beside what the base cluster says."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("one device", f"{base.name} says", "measured here"):
        table.add_column(name, justify="left" if name == "one device" else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def device_rows(rates: DeviceRates, base: Cluster) -> Iterator[tuple[str, str, str]]:
    """A device's figures: what each is, what the base cluster says, what was measured."""
    device = base.device
    for name, says, found in (
        ("bf16 multiplications", device.peak_bf16, rates.bf16_flop_per_s),
        ("fp32 multiplications", device.peak_fp32, rates.fp32_flop_per_s),
    ):
        yield name, f"{says / 1e9:,.0f} GFLOP/s", f"{found / 1e9:,.0f} GFLOP/s"
    yield "attention, bf16", "-", f"{rates.attention_flop_per_s / 1e9:,.0f} GFLOP/s"
    yield "memory", f"{device.memory_bandwidth / 1e9:,.0f} GB/s", f"{rates.copy_bytes_per_s / 1e9:,.1f} GB/s"
    if rates.half_depth >= 1:
        yield "half of the rate is left at", "-", f"{rates.half_depth:,.0f} inner elements"
    yield (
        "kernels",
        "-",
        ", ".join(sorted({said.split(" ")[0].rstrip(",") for said in rates.kernels.values()})),
    )


def link_rows(to: str, says_bytes_per_s: float, link: LinkRates) -> Iterator[tuple[str, str, str]]:
    """A link's figures likewise."""
    yield (
        f"link to {to}",
        f"{says_bytes_per_s / 1e9:,.1f} GB/s",
        f"{link.gather_bytes_per_s / 1e9:,.1f} GB/s",
    )
    yield f"a message to {to}", "-", f"{link.message_s * 1e6:,.0f} us"
