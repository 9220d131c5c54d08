"""Print a rehearsal beside the numbers of its plan, as tables or JSON.

Memory is that of tensors. The planner estimates activations, logits and workspace separately; a rehearsed rank has only
the peak of the forward and backward passes, which is compared with the sum of the three. A plan whose layout was chosen
without step times has only the total, and no traffic.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from runtime.rehearse.step import Rehearsal, RehearsedRank, Volume
from specs.plan import Plan, PlannedRun

_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_STATE = ("parameters", "gradients", "optimizer")
"""Parts of memory that the planner and the rehearsal both have; the planner's others are of forward and backward."""
_ALL = "all"


def planned_memory(plan: Plan, run: PlannedRun) -> dict[str, float]:
    """The planner's bytes of the fullest device: the total, and where the plan has them, the parts of a rehearsal."""
    if plan.layouts is None:
        return {_ALL: run.cost.memory_bytes}
    parts = plan.layouts.ranked[0].memory
    state = {part: parts[part] for part in _STATE}
    activations = sum(parts.values()) - sum(state.values())
    return state | {"activations": activations, _ALL: sum(parts.values())}


def planned_traffic(plan: Plan, rank: RehearsedRank) -> Mapping[str, float]:
    """The planner's communication of a rank's step in bytes, by `Volume.kind`; empty where the plan has none."""
    traffic = () if plan.layouts is None else plan.layouts.traffic
    return traffic[rank.pp] if traffic else {}


def plain(rehearsal: Rehearsal, plan: Plan, run: PlannedRun) -> dict[str, Any]:
    """As JSON types."""
    return {
        "layout": rehearsal.layout.plain(),
        "micro_batches": rehearsal.micro_batches,
        "rehearsed_micro_batches": rehearsal.rehearsed,
        "kernels": dict(rehearsal.kernels),
        "mismatch": rehearsal.mismatch,
        "fullest_rank": rehearsal.fullest.rank,
        "planned_memory_bytes": planned_memory(plan, run),
        "ranks": [
            _plain_rank(rank, rehearsal.volumes(rank), planned_traffic(plan, rank))
            for rank in rehearsal.ranks
        ],
    }


def _plain_rank(rank: RehearsedRank, volumes: list[Volume], planned: Mapping[str, float]) -> dict[str, Any]:
    places = {"rank": rank.rank, "dp": rank.dp, "pp": rank.pp, "tp": rank.tp}
    communication = [asdict(volume) | {"planned_bytes": planned.get(volume.kind)} for volume in volumes]
    return places | {"memory_bytes": dict(rank.memory), "communication": communication}


def show(rehearsal: Rehearsal, plan: Plan, run: PlannedRun, console: Console) -> None:
    """Tables of the ranks' memory, and of the fullest one's memory and communication beside the plan's."""
    layout, fullest = rehearsal.layout, rehearsal.fullest
    axes = f"dp {layout.dp} x pp {layout.pp} x tp {layout.tp}"
    console.print(f"rehearsed {len(rehearsal.ranks)} of {layout.devices} ranks ({axes})")
    console.print(
        f"{rehearsal.rehearsed} of {rehearsal.micro_batches} micro-batches; norm kernel: {rehearsal.kernels['norm']}\n"
    )
    console.print(_memory(rehearsal))
    console.print(f"\n{_compared(rehearsal)}, in {_unit(fullest.memory_bytes)}")
    console.print(_beside(fullest, planned_memory(plan, run)))
    volumes, traffic = rehearsal.volumes(fullest), planned_traffic(plan, fullest)
    if volumes:
        compared = ", compared with the plan's estimate" if traffic else ""
        console.print(f"\ncommunication of rank {fullest.rank} in a step{compared}")
        console.print(_communication(volumes, traffic))
    if rehearsal.mismatch:
        console.print(f"\n[red]communication mismatch:[/] {rehearsal.mismatch}")
    elif len(rehearsal.ranks) > 1:
        console.print("\nthe communication of all rehearsed ranks matches, in order and size")


def _compared(rehearsal: Rehearsal) -> str:
    """The heading of the memory comparison; the plan's memory is of the device that the planner finds fullest."""
    rank, devices = rehearsal.fullest.rank, rehearsal.layout.devices
    if devices == 1:
        return "memory, with the plan's estimate"
    if len(rehearsal.ranks) == 1:
        return f"memory of rank {rank} and of the plan's fullest device, maybe another rank"
    return f"memory of rank {rank}, the fullest, and of the plan's fullest device"


def _unit(size_bytes: float) -> str:
    """The largest unit that so many bytes are at least one of."""
    return next((name for name, unit in _UNITS.items() if size_bytes >= unit), "KiB")


def _memory(rehearsal: Rehearsal) -> Table:
    unit = _unit(rehearsal.fullest.memory_bytes)
    table = _table("rank", "dp", "pp", "tp", *rehearsal.fullest.memory, f"total, {unit}")
    for rank in rehearsal.ranks:
        sizes = (*rank.memory.values(), rank.memory_bytes)
        places = (rank.rank, rank.dp, rank.pp, rank.tp)
        table.add_row(*map(str, places), *(_number(size, unit) for size in sizes))
    return table


def _beside(rank: RehearsedRank, planned: Mapping[str, float]) -> Table:
    table, unit = _table("part", "rehearsed", "planned", "ratio"), _unit(rank.memory_bytes)
    for part, size in (*rank.memory.items(), (_ALL, rank.memory_bytes)):
        table.add_row(part, _number(size, unit), *_planned_and_ratio(size, planned.get(part), unit))
    return table


def _communication(volumes: list[Volume], planned: Mapping[str, float]) -> Table:
    table = _table("collective", "axis", "calls", "rehearsed", "planned", "", "ratio")
    for volume in volumes:
        size, unit = volume.moved_bytes, _unit(volume.moved_bytes)
        plan_text, ratio = _planned_and_ratio(size, planned.get(volume.kind), unit)
        table.add_row(
            volume.what, volume.axis, f"{volume.calls:,}", _number(size, unit), plan_text, unit, ratio
        )
    return table


def _planned_and_ratio(size_bytes: float, planned_bytes: float | None, unit: str) -> tuple[str, str]:
    """The planned size, and the ratio to it; dashes where nothing was planned."""
    if not planned_bytes:
        return "-", "-"
    return _number(planned_bytes, unit), f"{size_bytes / planned_bytes:.3f}"


def _number(size_bytes: float, unit: str) -> str:
    return f"{size_bytes / _UNITS[unit]:,.2f}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
