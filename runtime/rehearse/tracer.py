"""Traces one rank's step on tensors without values: its memory, and its communication with other ranks.

Tensors are on torch's meta device, which has shapes and no storage, and fake process groups return at once without
sending. So one core runs the engine's own code for a rank of any world size, and counts the bytes that are allocated
and freed. The counts are exact for tensors; memory of libraries and of the allocator is not included.
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
    """One communication of a rank."""

    what: str
    """all_reduce, all_gather, reduce_scatter, send or receive."""
    axis: str
    """dp, pp, tp or world."""
    peer: int
    """The other rank of a send or receive, on this axis; -1 for a collective."""
    elements: int
    """Elements of the full tensor: after a gather, before a reduction or scatter."""
    element_bytes: int
    """Bytes of an element."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the full tensor."""
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
"""torch's operation -> its name here, and which argument is the full tensor."""
_PEER = 2
"""Which argument of a send or receive is the other rank."""


class StepTracer(TorchDispatchMode):
    """Records every communication, and counts the bytes of all tensors, while the block is open."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.messages: list[Message] = []
        self.live_bytes = 0
        self.peak_bytes = 0
        self._axes = _axes(mesh)
        self._stored: dict[int, weakref.ref[Any]] = {}

    def reset(self) -> None:
        """Drop the messages, and restart the peak at the bytes in use."""
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
            raise ValueError(f"the rehearsal does not support the collective {name}")
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

        def freed(_: Any) -> None:
            del self._stored[key]
            self.live_bytes -= size

        self._stored[key] = weakref.ref(storage, freed)


class FlashAttentionOnMeta(TorchFunctionMode):
    """Attention on meta tensors with flash attention's memory; torch would allocate the full score matrix."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention.default(*args[:3], 0.0, True)[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_mesh(layout: Layout, rank: int) -> Iterator[Mesh]:
    """The mesh of one rank of a layout without its other ranks; communication with them returns at once."""
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
    """Process group names -> axes. Where an axis has all ranks, its group is the world's."""
    axes = (("world", mesh.world), ("dp", mesh.dp), ("pp", mesh.pp), ("tp", mesh.tp))
    return {axis.group.group_name: name for name, axis in axes if axis.group is not None}


def _group(argument: Any) -> Any:
    """The argument as a process group; None where it is something else."""
    if not isinstance(argument, torch.ScriptObject):
        return None
    try:
        return dist.ProcessGroup.unbox(argument)
    except RuntimeError:  # a reduction operator is a C++ object too
        return None
