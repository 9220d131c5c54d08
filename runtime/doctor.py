"""`isoplan doctor`: whether runs can work on this machine, and a cluster file of what it measures here.

What would stop a run after it was queued is looked at before: interpreter and torch, a folder that can be written, room
on the disk, processes that find each other, variables that a job leaves behind. What a data sheet promises is measured.
"""

import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runtime.measure import DeviceRates, LinkRates, device_rates, link_rates
from runtime.prepare import Machine, RefusedError
from runtime.provenance import processor
from specs.cluster import Cluster
from specs.files import DocumentError, from_catalog, is_file, load, write_yaml

_LEFT_BEHIND = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Of torchrun and the like: a launcher sets its own, a rank that is started by hand believes them."""
_LEAST_FREE_BYTES = 2**30
"""Room for a first small run and its checkpoints."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    ok: bool
    what: str
    """What it is."""
    remedy: str = ""
    """What to do where it is not as it should be."""


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
        return all(one.ok for one in self.findings)

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
    findings = list(_looked_at(folder))
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
    """The base cluster with what was measured in place of what was promised.

    A CPU has no data sheet that says what its cores reach together, so its peaks are the measured ones. A GPU keeps
    its data sheet, and the shares of it that it reaches are measured.
    """
    what = processor() if base.device.backend == "cpu" else rates.name
    source = f"measured by isoplan doctor on {socket.gethostname()} ({what})"
    if base.device.backend == "cpu":
        device = base.device.model_copy(
            update={
                "peak_bf16": _short(rates.bf16_flop_per_s),
                "peak_fp32": _short(rates.fp32_flop_per_s),
                "memory": float(_memory_bytes() // devices),
                "memory_bandwidth": _short(rates.copy_bytes_per_s),
            }
        )
        here: dict[str, Any] = {
            "device": device,
            "devices": devices,
            "devices_per_node": devices,
            "source": source,
        }
        return base.model_copy(
            update=here | ({} if link is None else {"intra_node": _short(link.gather_bytes_per_s)})
        )
    if base.efficiency is None:
        return base
    peak = base.device.peak_bf16
    shares: dict[str, Any] = {
        "matmul": _share(rates.bf16_flop_per_s, peak),
        "matmul_half_depth": _short(rates.half_depth),
        "attention": _share(rates.attention_flop_per_s, peak),
        "memory": _share(rates.copy_bytes_per_s, base.device.memory_bandwidth),
        "launch": _short(rates.launch_s),
        "source": f"{source}; overlap and uptime as before: {base.efficiency.source}",
    }
    if link is not None:
        shares |= {
            "links": _share(link.gather_bytes_per_s, base.intra_node),
            "message": _short(link.message_s),
        }
    return base.model_copy(update={"efficiency": base.efficiency.model_copy(update=shares)})


def _short(figure: float) -> float:
    """Three digits: a measurement has no more."""
    return float(f"{figure:.3g}")


def _share(reached: float, promised: float) -> float:
    return min(1.0, _short(reached / promised))


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


def write_cluster(path: Path, cluster: Cluster) -> None:
    """The cluster as a file that a budget can name; another document that is there is left alone."""
    if path.exists() and load(path, Cluster) != cluster:
        raise DocumentError(path, 1, 1, "other figures are there", "give another name as --out, or remove it")
    write_yaml(path, cluster)


def _looked_at(folder: Path) -> Iterator[Finding]:
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
        free > _LEAST_FREE_BYTES, f"{free / 2**30:.1f} GiB are free here", "make room for checkpoints"
    )
    left = [name for name in os.environ if name in _LEFT_BEHIND or name.startswith("SLURM_")]
    said = (
        f"variables of a job are set: {', '.join(sorted(left))}"
        if left
        else "no variables of another job are set"
    )
    yield Finding(not left, said, "start from a fresh shell, or unset them")


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def show(examined: Examined, base: Cluster, console: Console) -> None:
    """Print what was found and measured."""
    for one in examined.findings:
        mark, rest = ("[green]ok[/]", "") if one.ok else ("[red]no[/]", f"; {one.remedy}")
        console.print(f"{mark}  {escape(one.what + rest)}", highlight=False, soft_wrap=True)
    if examined.load > 0.5:
        said = f"other work was at {examined.load:.1f} of {os.cpu_count()} cores: the figures are too low"
        console.print(f"[yellow]load[/]  {said}", highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("one device", f"{base.name} says", "measured here"):
        table.add_column(name, justify="left" if name == "one device" else "right")
    for name, says, found in _rows(examined, base):
        table.add_row(name, says, found)
    console.print(table)


def _rows(examined: Examined, base: Cluster) -> Iterator[tuple[str, str, str]]:
    device, rates, link = base.device, examined.device, examined.link
    for name, says, found in (
        ("bf16 multiplications", device.peak_bf16, rates.bf16_flop_per_s),
        ("fp32 multiplications", device.peak_fp32, rates.fp32_flop_per_s),
    ):
        yield name, f"{says / 1e9:,.0f} GFLOP/s", f"{found / 1e9:,.0f} GFLOP/s"
    yield "attention, bf16", "-", f"{rates.attention_flop_per_s / 1e9:,.0f} GFLOP/s"
    yield "memory", f"{device.memory_bandwidth / 1e9:,.0f} GB/s", f"{rates.copy_bytes_per_s / 1e9:,.1f} GB/s"
    if rates.half_depth >= 1:
        yield "half of the rate is left at", "-", f"{rates.half_depth:,.0f} inner elements"
    if link is not None:
        yield (
            "link to another",
            f"{base.intra_node / 1e9:,.1f} GB/s",
            f"{link.gather_bytes_per_s / 1e9:,.1f} GB/s",
        )
        yield "a message", "-", f"{link.message_s * 1e6:,.0f} us"
    yield (
        "kernels",
        "-",
        ", ".join(sorted({said.split(" ")[0].rstrip(",") for said in rates.kernels.values()})),
    )
