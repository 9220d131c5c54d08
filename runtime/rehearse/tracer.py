"""Watches one rank go through tensors without values: what it keeps in memory, and what it says to other ranks.

Tensors are on torch's meta device, which has shapes and no storage, and the process groups answer at once without
sending. So a rank of any world size runs the engine's own code on one core, and its bytes are counted as they come and
go. The record is exact for tensors; what libraries and the allocator take besides is not in it.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from model.mesh import Mesh, mesh_of
from specs.layout import Layout


class Message(NamedTuple):
    """One communication as a rank sees it."""

    what: str
    """all_reduce, all_gather, reduce_scatter, send or receive."""
    axis: str
    """dp, pp, tp or world: with whom."""
    peer: int
    """Rank on the axis that a transfer goes to or comes from; -1 for a collective."""
    elements: int
    """Of the whole tensor: what is gathered, or what is reduced before it is scattered."""
    element_bytes: int
    """Of one element."""

    @property
    def size_bytes(self) -> int:
        """Of the whole tensor."""
        return self.elements * self.element_bytes


_WHOLE: dict[str, tuple[str, int]] = {
    "allreduce_": ("all_reduce", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "send": ("send", 0),
    "recv_": ("receive", 0),
}
"""torch's operation -> our word, and which argument is the whole tensor."""
_PEER = 2
"""Which argument of a transfer is the other rank."""


class Recorder(TorchDispatchMode):
    """While it is entered: every communication, and the bytes of all tensors made."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.messages: list[Message] = []
        self.live_bytes = 0
        self.peak_bytes = 0
        self._axes = _axes(mesh)
        self._stored: dict[int, weakref.ref[Any]] = {}

    def forget(self) -> None:
        """Begin anew: no messages, and no peak but what is there now."""
        self.messages, self.peak_bytes = [], self.live_bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self.messages.append(self._message(func, args))
        elif func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0  # there are no values; 1 is a gradient norm that neither clips nor diverges
        elif func is torch.ops.aten._assert_async.msg and args[0].is_meta:
            return None
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else (made,):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return made

    def _message(self, func: Any, args: tuple[Any, ...]) -> Message:
        name = func._opname
        if name not in _WHOLE:
            raise ValueError(f"the rehearsal does not know the communication {name}")
        what, place = _WHOLE[name]
        whole = args[place] if isinstance(args[place], list) else [args[place]]
        group = next(group for arg in args if (group := _group(arg)) is not None)
        peer = args[_PEER] if what in ("send", "receive") else -1
        elements = sum(tensor.numel() for tensor in whole)
        return Message(what, self._axes[group.group_name], peer, elements, whole[0].element_size())

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._stored:
            return
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

        def gone(_: Any) -> None:
            del self._stored[key]
            self.live_bytes -= size

        self._stored[key] = weakref.ref(storage, gone)


class AsOnGpu(TorchFunctionMode):
    """Attention on meta tensors as CUDA's flash attention, where torch would take the whole square."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention.default(*args[:3], 0.0, True)[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def pretended(layout: Layout, rank: int) -> Iterator[Mesh]:
    """The mesh of one rank of a layout whose other ranks are not there; what is sent to them is taken as received."""
    if layout.devices == 1:
        yield Mesh()
        return
    from torch.testing._internal.distributed import fake_pg

    if "rehearsal" not in dist.Backend.backend_list:
        # torch registers its own fake ranks for CPU and GPU tensors only
        dist.Backend.register_backend(
            "rehearsal", fake_pg._create_fake_pg, extended_api=True, devices=["cpu", "meta"]
        )
    store = fake_pg.FakeStore()
    dist.init_process_group("rehearsal", store=store, rank=rank, world_size=layout.devices)
    try:
        yield mesh_of(layout.dp, layout.pp, layout.tp)
    finally:
        dist.destroy_process_group()


def _axes(mesh: Mesh) -> dict[str, str]:
    """Names of the groups -> axes. Where an axis is all ranks, the group of all ranks is that axis'."""
    axes = (("world", mesh.world), ("dp", mesh.dp), ("pp", mesh.pp), ("tp", mesh.tp))
    return {axis.group.group_name: name for name, axis in axes if axis.group is not None}


def _group(argument: Any) -> Any:
    """The process group that an operation was handed; None for any other argument."""
    if not isinstance(argument, torch.ScriptObject):
        return None
    try:
        return dist.ProcessGroup.unbox(argument)
    except RuntimeError:  # a reduction's kind, also an object of C++
        return None
