"""Three axes of ranks: data (dp), pipeline (pp) and tensor parallel (tp), each a size, a coordinate and a group.

`Mesh()` is one process. Ranks are ordered dp slowest, tp fastest, so that tensor-parallel ranks are neighbours on a
node: rank = (dp * PP + pp) * TP + tp.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh as this rank sees it."""

    size: int = 1
    rank: int = 0
    group: Any = None
    """torch.distributed group; None at size 1, where nothing is communicated."""


@dataclass(frozen=True)
class Mesh:
    """This rank's place among all ranks."""

    dp: Axis = field(default_factory=Axis)
    pp: Axis = field(default_factory=Axis)
    tp: Axis = field(default_factory=Axis)


@contextmanager
def connect(
    dp: int, pp: int, tp: int, *, rank: int, rendezvous: str, device: str, timeout_s: float = 600.0
) -> Iterator[Mesh]:
    """This rank's mesh, with process groups while the context is open; one process never touches torch.distributed.

    ValueError for pipeline or tensor parallel sizes above 1, which the engine does not run yet, before any group forms.
    """
    if pp > 1 or tp > 1:
        raise ValueError(f"pp {pp} and tp {tp}: only data parallel runs for now; write pp: 1 and tp: 1")
    if dp == 1:
        yield Mesh()
        return
    import torch.distributed as dist

    dist.init_process_group(
        backend="nccl" if device == "cuda" else "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=dp,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        yield Mesh(dp=Axis(dp, rank, dist.group.WORLD))
    finally:
        dist.destroy_process_group()
