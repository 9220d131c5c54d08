"""A rehearsal as a person or a program reads it, beside what its plan says.

Memory is that of tensors. The planner counts what passes keep, the logits and its workspace apart; a rank that goes
through its passes shows their peak, which is compared with the sum of the three. A plan whose layout was chosen without
seconds has the sum of all only, and no traffic.
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
"""Parts of memory that the planner and the rehearsal both count by these names; all others are of the passes."""
_ALL = "all"


def planned_memory(plan: Plan, run: PlannedRun) -> dict[str, float]:
    """The planner's bytes of the fullest device: all, and where it gave them the parts that a rehearsal has."""
    if plan.layouts is None:
        return {_ALL: run.cost.memory_bytes}
    parts = plan.layouts.ranked[0].memory
    state = {part: parts[part] for part in _STATE}
    passes = sum(parts.values()) - sum(state.values())
    return state | {"passes": passes, _ALL: sum(parts.values())}


def planned_traffic(plan: Plan, rank: RehearsedRank) -> Mapping[str, float]:
    """The planner's bytes of a step of a rank, by `Volume.kind`; empty where it gave none."""
    traffic = () if plan.layouts is None else plan.layouts.traffic
    return traffic[rank.pp] if traffic else {}


def plain(rehearsal: Rehearsal, plan: Plan, run: PlannedRun) -> dict[str, Any]:
    """Everything, as JSON types."""
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
    told = [asdict(volume) | {"planned_bytes": planned.get(volume.kind)} for volume in volumes]
    return places | {"memory_bytes": dict(rank.memory), "communication": told}


def show(rehearsal: Rehearsal, plan: Plan, run: PlannedRun, console: Console) -> None:
    """Tables of the ranks' memory, and of the fullest one's memory and communication beside the plan's."""
    layout, fullest = rehearsal.layout, rehearsal.fullest
    axes = f"dp {layout.dp} x pp {layout.pp} x tp {layout.tp}"
    console.print(f"rehearsed {len(rehearsal.ranks)} of {layout.devices} ranks ({axes})")
    console.print(
        f"{rehearsal.rehearsed} of {rehearsal.micro_batches} micro-batches; norms by {rehearsal.kernels['norm']}\n"
    )
    console.print(_memory(rehearsal))
    console.print(f"\n{_compared(rehearsal)}, in {_unit(fullest.memory_bytes)}")
    console.print(_beside(fullest, planned_memory(plan, run)))
    volumes, traffic = rehearsal.volumes(fullest), planned_traffic(plan, fullest)
    if volumes:
        beside = ", beside the plan's" if traffic else ""
        console.print(f"\nwhat rank {fullest.rank} sends in a step, and what it receives of stages{beside}")
        console.print(_communication(volumes, traffic))
    if rehearsal.mismatch:
        console.print(f"\n[red]ranks do not meet:[/] {rehearsal.mismatch}")
    elif len(rehearsal.ranks) > 1:
        console.print("\nevery communication meets its partners, in one order and of one size")


def _compared(rehearsal: Rehearsal) -> str:
    """Whose memory stands beside the plan's, which is of the device that the planner finds fullest."""
    rank, devices = rehearsal.fullest.rank, rehearsal.layout.devices
    if devices == 1:
        return "memory beside the plan's"
    if len(rehearsal.ranks) == 1:
        return f"rank {rank} beside the plan's fullest device, which may be another rank"
    return f"rank {rank}, the fullest, beside the plan's fullest device"


def _unit(size_bytes: float) -> str:
    """The largest unit that so many bytes are at least one of."""
    return next((name for name, unit in _UNITS.items() if size_bytes >= unit), "KiB")


def _memory(rehearsal: Rehearsal) -> Table:
    unit = _unit(rehearsal.fullest.memory_bytes)
    table = _table("rank", "dp", "pp", "tp", *rehearsal.fullest.memory, f"{unit} in all")
    for rank in rehearsal.ranks:
        sizes = (*rank.memory.values(), rank.memory_bytes)
        places = (rank.rank, rank.dp, rank.pp, rank.tp)
        table.add_row(*map(str, places), *(_number(size, unit) for size in sizes))
    return table


def _beside(rank: RehearsedRank, planned: Mapping[str, float]) -> Table:
    table, unit = _table("part", "rehearsed", "planned", "ratio"), _unit(rank.memory_bytes)
    for part, size in (*rank.memory.items(), (_ALL, rank.memory_bytes)):
        table.add_row(part, _number(size, unit), *_told(size, planned.get(part), unit))
    return table


def _communication(volumes: list[Volume], planned: Mapping[str, float]) -> Table:
    table = _table("what", "axis", "calls", "rehearsed", "planned", "", "ratio")
    for volume in volumes:
        size, unit = volume.moved_bytes, _unit(volume.moved_bytes)
        told, ratio = _told(size, planned.get(volume.kind), unit)
        table.add_row(volume.what, volume.axis, f"{volume.calls:,}", _number(size, unit), told, unit, ratio)
    return table


def _told(size_bytes: float, planned_bytes: float | None, unit: str) -> tuple[str, str]:
    """What was planned, and the ratio to it; dashes where nothing was."""
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
