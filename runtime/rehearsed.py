"""A rehearsal as a person or a program reads it, beside what its plan says.

Memory is that of tensors. The planner counts what passes keep, the logits and its workspace apart; a rank that goes
through its passes shows their peak, which is compared with the sum of the three.
"""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from runtime.rehearse import Rank, Rehearsal, Volume
from specs.plan import Plan

_GIB = 2**30
_STATE = ("parameters", "gradients", "optimizer")
"""Parts of memory that the planner and the rehearsal both count by these names; all others are of the passes."""


def planned_memory(plan: Plan) -> dict[str, float] | None:
    """The planner's bytes of the fullest device, by the parts that a rehearsal has; None where it gave none."""
    if plan.layouts is None:
        return None
    parts = plan.layouts.ranked[0].memory
    state = {part: parts[part] for part in _STATE}
    return state | {"passes": sum(parts.values()) - sum(state.values())}


def plain(rehearsal: Rehearsal, plan: Plan) -> dict[str, Any]:
    """Everything, as JSON types."""
    return {
        "layout": rehearsal.layout.plain(),
        "micro_batches": rehearsal.micro_batches,
        "rehearsed_micro_batches": rehearsal.rehearsed,
        "kernels": dict(rehearsal.kernels),
        "mismatch": rehearsal.mismatch,
        "fullest_rank": rehearsal.fullest.rank,
        "planned_memory_bytes": planned_memory(plan),
        "ranks": [_plain_rank(rank, rehearsal.volumes(rank)) for rank in rehearsal.ranks],
    }


def _plain_rank(rank: Rank, volumes: list[Volume]) -> dict[str, Any]:
    places = {"rank": rank.rank, "dp": rank.dp, "pp": rank.pp, "tp": rank.tp}
    memory = {"memory_bytes": dict(rank.memory)}
    return places | memory | {"communication": [asdict(volume) for volume in volumes]}


def show(rehearsal: Rehearsal, plan: Plan, console: Console) -> None:
    """Tables of the ranks' memory, and of the fullest one's memory and communication."""
    layout, fullest = rehearsal.layout, rehearsal.fullest
    axes = f"dp {layout.dp} x pp {layout.pp} x tp {layout.tp}"
    console.print(f"rehearsed {len(rehearsal.ranks)} of {layout.devices} ranks ({axes})")
    console.print(
        f"{rehearsal.rehearsed} of {rehearsal.micro_batches} micro-batches; norms by {rehearsal.kernels['norm']}\n"
    )
    console.print(_memory(rehearsal))
    console.print(f"\nrank {fullest.rank}, the fullest, in GiB beside the plan")
    console.print(_beside(fullest, planned_memory(plan)))
    console.print(f"\nrank {fullest.rank} communicates in a step, in MB")
    console.print(_communication(rehearsal.volumes(fullest)))
    if rehearsal.mismatch:
        console.print(f"\n[red]ranks do not meet:[/] {rehearsal.mismatch}")
    elif len(rehearsal.ranks) > 1:
        console.print("\nevery communication meets its partners, in one order and of one size")


def _memory(rehearsal: Rehearsal) -> Table:
    table = _table("rank", "dp", "pp", "tp", *rehearsal.fullest.memory, "GiB in all")
    for rank in rehearsal.ranks:
        sizes = (*rank.memory.values(), rank.memory_bytes)
        places = (rank.rank, rank.dp, rank.pp, rank.tp)
        table.add_row(*map(str, places), *(f"{size / _GIB:.2f}" for size in sizes))
    return table


def _beside(rank: Rank, planned: dict[str, float] | None) -> Table:
    table = _table("part", "rehearsed", "planned", "ratio")
    for part, size in (*rank.memory.items(), ("all", rank.memory_bytes)):
        told = None if planned is None else sum(planned.values()) if part == "all" else planned[part]
        beside = (f"{told / _GIB:.2f}", f"{size / told:.3f}") if told else ("-", "-")
        table.add_row(part, f"{size / _GIB:.2f}", *beside)
    return table


def _communication(volumes: list[Volume]) -> Table:
    table = _table("what", "axis", "calls", "tensors", "sent")
    for volume in volumes:
        sizes = (f"{size / 1e6:,.1f}" for size in (volume.size_bytes, volume.sent_bytes))
        table.add_row(volume.what, volume.axis, f"{volume.calls:,}", *sizes)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
