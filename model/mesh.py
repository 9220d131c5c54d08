"""Three axes of ranks: data (dp), pipeline (pp) and tensor parallel (tp), each a size, a coordinate and a group.

`Mesh()` is one process. Ranks are ordered dp slowest, tp fastest, so that tensor-parallel ranks are neighbours on a
node: rank = (dp * PP + pp) * TP + tp.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

START_TIMEOUT_S = 600.0
"""How long a rank waits for the others until its first step is done: rank 0 may have to wait for a lock, and the
slowest node starts Python and compiles kernels. NCCL's default in torch."""


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh as this rank sees it."""

    size: int = 1
    rank: int = 0
    group: Any = None
    """torch.distributed group; None at size 1, where nothing is communicated."""
    name: str = ""
    """dp, pp, tp, or world for all ranks: what a rank that waits on it is said to wait on."""


@dataclass(frozen=True)
class Mesh:
    """This rank's place among all ranks."""

    dp: Axis = field(default_factory=Axis)
    pp: Axis = field(default_factory=Axis)
    tp: Axis = field(default_factory=Axis)
    world: Axis = field(default_factory=Axis)
    """All ranks."""


@contextmanager
def connect(
    dp: int, pp: int, tp: int, *, rank: int, rendezvous: str, device: str, timeout_s: float = START_TIMEOUT_S
) -> Iterator[Mesh]:
    """Join the process group; this rank's mesh. One process never touches torch.distributed.

    A rank that waits longer than `timeout_s` in a collective, as when another rank hangs, fails with an error
    (`set_timeout` changes that). On GPUs each rank has set its device.

    ValueError, before any group forms, for a rank that the sizes have no place for; OSError for a GPU that another rank
    has. After an error the groups stay open
    until the process exits: the other ranks fail when they close, and by then this one has printed its error.
    """
    ranks = dp * pp * tp
    if min(dp, pp, tp) < 1 or not 0 <= rank < ranks:
        raise ValueError(f"dp {dp} x pp {pp} x tp {tp} has no rank {rank}; set a rank from 0 to {ranks - 1}")
    if ranks == 1:
        yield Mesh()
        return
    import torch.distributed as dist

    timeout = timedelta(seconds=timeout_s)
    store = _store(rendezvous, rank, ranks, timeout)
    if device == "cuda":
        claim_device(store, rank, _this_gpu())
    dist.init_process_group(
        backend="nccl" if device == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=timeout,
    )
    mesh = mesh_of(dp, pp, tp, timeout)
    _connect_groups(mesh, device)
    yield mesh
    dist.destroy_process_group()


def set_timeout(mesh: Mesh, timeout_s: float) -> None:
    """From now on a rank that waits longer than this in a collective of any group fails with an error."""
    from torch.distributed.distributed_c10d import _set_pg_timeout  # torch has no public name for it

    for group in _groups(mesh.world, mesh.dp, mesh.pp, mesh.tp):
        _set_pg_timeout(timedelta(seconds=timeout_s), group)


def claim_device(store: Any, rank: int, device: str) -> None:
    """Note in the store that this rank has a device; OSError where another rank has it, which NCCL would hang on."""
    owner = int(store.compare_set(f"device {device}", "", str(rank)))
    if owner != rank:
        raise OSError(
            f"ranks {owner} and {rank} both have {device}; start as many ranks on a node as it has GPUs, "
            "or give each its own"
        )


def _this_gpu() -> str:
    import torch

    index = torch.cuda.current_device()
    return f"GPU {torch.cuda.get_device_properties(index).uuid} of {socket.gethostname()}"


def _groups(*axes: Axis) -> list[Any]:
    """The axes' groups, each once."""
    groups = {id(axis.group): axis.group for axis in axes if axis.group is not None}
    return list(groups.values())


def _connect_groups(mesh: Mesh, device: str) -> None:
    """One all-reduce in every group that has collectives, in the same order on all ranks: NCCL connects them now, where
    a node that cannot be reached shows at once. Pipelines connect pairs (model/pipeline_parallel.py)."""
    import torch
    import torch.distributed as dist

    for group in _groups(mesh.world, mesh.dp, mesh.tp):
        element = torch.zeros(1, device=device)
        dist.all_reduce(element, group=group)
        element.item()


def _store(rendezvous: str, rank: int, ranks: int, timeout: timedelta) -> Any:
    """Where the ranks meet. A launcher that listens at MASTER_PORT leaves rank 0 the socket in MASTER_LISTEN_FD."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous as meet

    listener = os.environ.get("MASTER_LISTEN_FD")
    if rendezvous == "env://" and rank == 0 and listener:
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            ranks,
            is_master=True,
            timeout=timeout,
            master_listen_fd=int(listener),
        )
    store, _, _ = next(meet(rendezvous, rank, ranks, timeout=timeout))
    store.set_timeout(timeout)
    return store


def mesh_of(dp: int, pp: int, tp: int, timeout: timedelta | None = None) -> Mesh:
    """This rank's mesh over torch.distributed's ranks, which have joined already. Every rank creates all groups, whose
    timeout is torch's default where none is given."""
    import torch.distributed as dist

    rank, ranks = dist.get_rank(), dist.get_world_size()
    if dp * pp * tp != ranks:
        raise ValueError(
            f"the process group has {ranks} ranks, but dp {dp} x pp {pp} x tp {tp} is {dp * pp * tp}"
        )
    strides = {"dp": (dp, pp * tp), "pp": (pp, tp), "tp": (tp, 1)}
    axes = {name: _axis(name, rank, ranks, size, stride, timeout) for name, (size, stride) in strides.items()}
    return Mesh(**axes, world=Axis(ranks, rank, dist.group.WORLD, "world"))


def _axis(name: str, rank: int, ranks: int, size: int, stride: int, timeout: timedelta | None) -> Axis:
    """The axis along which neighbours are `stride` ranks apart, with this rank's group of it."""
    import torch.distributed as dist

    place = rank // stride % size
    if size in (1, ranks):
        return Axis(size, place, None if size == 1 else dist.group.WORLD, name)
    mine = None
    for first in (one for one in range(ranks) if one // stride % size == 0):
        group = dist.new_group(list(range(first, first + size * stride, stride)), timeout=timeout)
        if first == rank - place * stride:
            mine = group
    return Axis(size, place, mine, name)
