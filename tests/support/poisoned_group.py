"""A process group over gloo whose results are NaN until they are waited for, as on a GPU they may still be anything.

gloo on a CPU forgives what NCCL does not: a tiny transfer is often done before anybody reads its result without
waiting, or writes over its input. Here a collective works on copies. Until its `wait` the result is poisoned; then its
inputs must be what they were and the poison untouched (AssertionError), and the result is copied to its place.

    spawn(2, case, poisoned=True)      # tests.support.spawn: and no collective may be left that nobody waited for
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NAME = "poisoned"

_in_flight: list["PoisonedWork"] = []
"""The collectives of this process that nobody has waited for yet."""


class PoisonedWork:
    """A collective in flight: what dist.all_reduce and the others return."""

    def __init__(
        self, name: str, start: Callable[..., Any], reads: Sequence[Tensor], writes: Sequence[Tensor]
    ) -> None:
        """Start on copies: `start(outputs, inputs)`. Without inputs the outputs are also those."""
        self._name, self._reads, self._writes = name, [x.data for x in reads], [x.data for x in writes]
        self._inputs = [x.clone() for x in self._reads]
        self._outputs = [
            torch.empty_like(x) if reads else x.clone() for x in self._writes
        ]  # without: in place
        self._work = start(self._outputs, self._inputs)
        for x in self._writes:
            x.fill_(_poison(x))
        _in_flight.append(self)

    def wait(self, timeout: Any = None) -> bool:
        """Wait, check the inputs and the poison, and give the result; again, it does nothing."""
        if self not in _in_flight:
            return True
        self._work.wait()
        _in_flight.remove(self)
        for x, sent in zip(self._reads, self._inputs, strict=True):
            if not _same(x, sent):
                raise AssertionError(f"the input of {self._name} was changed before it was waited for")
        for x, result in zip(self._writes, self._outputs, strict=True):
            if not _same(x, torch.full_like(x, _poison(x))):
                raise AssertionError(f"the result of {self._name} was written to before it was waited for")
            x.copy_(result)
        return True


class PoisonedGroup(dist.ProcessGroup):
    """The collectives that the engine uses."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self._gloo: Any = dist.ProcessGroupGloo(store, rank, size, timeout)

    def allreduce(self, tensors: Any, opts: Any = None) -> Any:
        """In place."""
        return PoisonedWork("all_reduce", lambda out, _: self._gloo.allreduce(out, opts), [], tensors)

    def _allgather_base(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        return PoisonedWork(
            "all_gather", lambda out, of: self._gloo._allgather_base(out[0], of[0], opts), [input], [output]
        )

    def _reduce_scatter_base(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        return PoisonedWork(
            "reduce_scatter",
            lambda out, of: self._gloo._reduce_scatter_base(out[0], of[0], opts),
            [input],
            [output],
        )

    all_gather_single, reduce_scatter_single = _allgather_base, _reduce_scatter_base
    """Their names from torch 2.13 on."""

    def send(self, tensors: Any, dst: int, tag: int) -> Any:
        """To a rank of this group."""
        return PoisonedWork("send", lambda _, of: self._gloo.send(of, dst, tag), tensors, [])

    def recv(self, tensors: Any, src: int, tag: int) -> Any:
        """From a rank of this group."""
        return PoisonedWork("receive", lambda out, _: self._gloo.recv(out, src, tag), [], tensors)

    def getBackendName(self) -> str:
        """As it is registered."""
        return NAME


def install() -> None:
    """From now on, every process group of this process is a poisoned one."""
    dist.Backend.register_backend(
        NAME,
        lambda options, _: PoisonedGroup(
            options.store, options.group_rank, options.group_size, options.timeout
        ),
        extended_api=True,
        devices=["cpu"],
    )
    join = dist.init_process_group
    dist.init_process_group = lambda **options: join(**options | {"backend": NAME})


def check_nothing_in_flight() -> None:
    """AssertionError where a collective was never waited for."""
    if _in_flight:
        names = ", ".join(work._name for work in _in_flight)
        raise AssertionError(f"never waited for: {names}")


def _poison(x: Tensor) -> float | int:
    return torch.nan if x.dtype.is_floating_point else torch.iinfo(x.dtype).min


def _same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors have the same bytes: NaN is itself here."""
    return torch.equal(x.contiguous().view(-1).view(torch.uint8), y.contiguous().view(-1).view(torch.uint8))
