"""One rank's model, optimizer and data: gradient accumulation over its rows of a step, evaluation, collectives.

B rows of a forward pass    S tokens of a sequence    T = S + 1, the last one being only a target
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.collectives import all_gather, all_reduce
from model.kernels import choose
from model.mesh import Axis, Mesh, connect, set_timeout
from model.pipeline_parallel import Pipeline, ReadMicroBatch
from model.transformer import Stage
from model.waiting import WAITING
from model.zero import AdamW
from runtime.data.batches import HeldOutPart, RunData
from runtime.train.environment import gpu_index
from specs.record import SkippedRange
from specs.run import Execution, RunSpec

_EVALUATION_TOKENS = 4096
"""Tokens of one forward pass of an evaluation: on a CPU 2048 to 4096 are fastest from width 16 to 128, fp32 and bf16;
four times as many cost up to 60 % more (our measurement)."""

ReadRows = Callable[[int, int], NDArray[np.int64]]
"""Reads this rank's rows of a step or an evaluation: the first one's number, and how many; (B, T)."""


_HOST_BYTES = 64
"""Longest host name (Linux's HOST_NAME_MAX, hostname(7))."""


class HeldOutLoss(NamedTuple):
    """An evaluation, nats per token."""

    loss: float
    """The mean; of a mix, that of its sources' means, weighted by their shares."""
    sources: dict[str, float]
    """The mean of each source of a mix; empty without one."""


class RankWorker:
    """One rank's part of the model, its optimizer and its data."""

    def __init__(self, run: RunSpec, execution: Execution, mesh: Mesh, data: RunData) -> None:
        kernels = choose(execution.kernels, execution.device, run.precision)
        self.kernels = kernels.describe()
        self._run = run
        self.layout = execution.layout
        self._mesh = mesh
        self._device = torch.device(execution.device)
        self._data = data
        self._stage = Stage(
            run.model,
            precision=run.precision,
            mesh=mesh,
            kernels=kernels,
            device=execution.device,
            layout=execution.layout,
            end_of_document=data.end_of_document,
        )
        self._pipeline = Pipeline(self._stage)
        self.optimizer = AdamW(self._stage, mesh.dp, run.optim)
        self.hosts = _host_names(mesh.world, self._device)
        """Each rank's host."""
        self._signs = 0

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which decides for all ranks and writes the records."""
        return self._mesh.world.rank == 0

    @property
    def world(self) -> Axis:
        """All ranks."""
        return self._mesh.world

    @property
    def writes_vectors(self) -> bool:
        """Whether this rank saves the norms' gains, of which all tensor-parallel ranks hold the same copy."""
        return self._mesh.tp.rank == 0

    @property
    def is_first_of_stage(self) -> bool:
        """Whether this is the first rank of its pipeline stage."""
        return self._mesh.dp.rank == self._mesh.tp.rank == 0

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU."""
        return self._device.type == "cuda"

    @property
    def signs_of_life(self) -> int:
        """How often rows were read, ranks met, and waits for other ranks ended: a rank that hangs adds none."""
        return self._signs + WAITING.ended

    @property
    def devices(self) -> list[str]:
        """Names of all ranks' accelerators, which are of one kind; empty on CPUs."""
        if self._device.type != "cuda":
            return []
        return [torch.cuda.get_device_name()] * self._mesh.world.size

    def accumulate_gradients(self, step: int, skipped: Sequence[SkippedRange]) -> Tensor:
        """Gradient accumulation: forward and backward over the step's micro-batches, whose gradients are summed.

        Returns this rank's share of the step's mean loss (fp64, nats per token): the sum over all ranks is the loss.
        """
        batch, context = self._run.optim.batch_sequences, self._run.model.context
        rows, at_once = batch // self._mesh.dp.size, self.layout.micro_batch_sequences
        first = self._mesh.dp.rank * rows

        def read(place: int, count: int) -> NDArray[np.int64]:
            return self._data.training_rows(step, skipped, first + place, count)

        sizes = [at_once] * (rows // at_once)
        self.optimizer.start_accumulation(len(sizes))
        micro_batch, step_tokens = self._micro_batches(sizes, read, batch * context)
        return self._once(self._pipeline.train(sizes, micro_batch, step_tokens))

    def _micro_batches(
        self, sizes: Sequence[int], read: ReadRows, all_tokens: int
    ) -> tuple[ReadMicroBatch, int]:
        """What gives the micro-batches of these sizes, and how many tokens of the step or evaluation count, over all
        data-parallel ranks: `all_tokens`, or where documents are masked those whose next token is of the same one.
        These are found in the rows, which therefore are read at once."""
        starts = [0, *accumulate(sizes)]
        if self._data.end_of_document is None:
            return lambda number: self._on_device(read(starts[number], sizes[number])), all_tokens
        rows_BT = read(0, starts[-1]) if sizes else np.empty((0, self._run.model.context + 1), np.int64)
        counted = int((rows_BT[:, :-1] != self._data.end_of_document).sum())
        step_tokens = int(all_reduce(torch.tensor(counted, device=self._device), self._mesh.dp))
        return lambda number: self._on_device(rows_BT[starts[number] : starts[number + 1]]), step_tokens

    def set_timeout(self, timeout_s: float) -> None:
        """From now on this rank fails where it waits longer than this for another."""
        if self._mesh.world.size > 1:
            set_timeout(self._mesh, timeout_s)

    def all_reduce_sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """A few scalars, each summed over all ranks, in one all-reduce."""
        self._signs += 1
        scalars = [float(value) for value in values]
        if self._mesh.world.size == 1:
            return scalars
        vector = torch.tensor(scalars, dtype=torch.float64, device=self._device)
        return [float(value) for value in all_reduce(vector, self._mesh.world).tolist()]

    def all_gather(self, values: Sequence[float]) -> list[list[float]]:
        """Each rank's values, in rank order; all ranks pass as many."""
        vector = torch.tensor(values, dtype=torch.float64, device=self._device)
        return all_gather(vector, self._mesh.world).tolist() if self.world.size > 1 else [list(values)]

    def broadcast(self, numbers: Sequence[float]) -> list[float]:
        """Rank 0's numbers, on every rank; what the other ranks pass is ignored."""
        size = int(self.all_reduce_sum([len(numbers) if self.is_rank_zero else 0])[0])
        return self.all_reduce_sum(list(numbers) if self.is_rank_zero else [0.0] * size)

    def evaluate(self, sequences: int) -> HeldOutLoss:
        """The loss over this many held-out sequences; each data-parallel rank takes some of each source's."""
        parts = self._data.held_out_parts(sequences)
        losses = self.all_reduce_sum([self._once(self._evaluate(part)) for part in parts])
        if self._run.mix is None:
            return HeldOutLoss(losses[0], {})
        mean = sum(part.share * loss for part, loss in zip(parts, losses, strict=True))
        return HeldOutLoss(mean, {part.source: loss for part, loss in zip(parts, losses, strict=True)})

    def _evaluate(self, part: HeldOutPart) -> Tensor:
        """This rank's share of the mean loss over a source's held-out sequences."""
        context, dp, sequences = self._run.model.context, self._mesh.dp, part.sequences
        at_once = max(1, _EVALUATION_TOKENS // context)
        start, stop = dp.rank * sequences // dp.size, (dp.rank + 1) * sequences // dp.size
        sizes = [min(at_once, stop - first) for first in range(start, stop, at_once)]

        def read(place: int, count: int) -> NDArray[np.int64]:
            return self._data.held_out_rows(part.source, start + place, count)

        micro_batch, step_tokens = self._micro_batches(sizes, read, sequences * context)
        return self._pipeline.evaluate(sizes, micro_batch, step_tokens)

    def _on_device(self, rows_BT: NDArray[np.int64]) -> Tensor:
        self._signs += 1
        return torch.from_numpy(rows_BT).to(self._device)

    def _once(self, loss: Tensor) -> Tensor:
        """The loss share on the first tensor-parallel rank, zero on the others, which have the same one."""
        return loss if self._mesh.tp.rank == 0 else torch.zeros_like(loss)


def _host_names(world: Axis, device: torch.device) -> list[str]:
    """The host of each rank, as that rank names it."""
    name = socket.gethostname()
    if world.size == 1:
        return [name]
    padded = name.encode()[:_HOST_BYTES].ljust(_HOST_BYTES, b"\0")
    names = all_gather(torch.tensor(list(padded), dtype=torch.uint8, device=device), world)
    return [bytes(one).rstrip(b"\0").decode(errors="replace") for one in names.tolist()]


@contextmanager
def join_process_group(
    run: RunSpec,
    execution: Execution,
    rank: int,
    local_rank: int,
    data: RunData,
) -> Iterator[RankWorker]:
    """Join the process group, by rendezvous at MASTER_ADDR and MASTER_PORT, while the block is open."""
    _make_deterministic(execution, local_rank)
    layout = execution.layout
    with connect(
        layout.dp, layout.pp, layout.tp, rank=rank, rendezvous="env://", device=execution.device
    ) as mesh:
        worker = RankWorker(run, execution, mesh, data)
        yield worker
        worker.optimizer.wait_for_parameters()  # after a stop, those of the last step are still in flight


def gpu_count() -> int:
    """GPUs that torch finds on this node."""
    return torch.cuda.device_count()


def _make_deterministic(execution: Execution, local_rank: int) -> None:
    """Deterministic sums: a fixed number of threads, and only algorithms that give the same bits every time."""
    if execution.device == "cuda":
        torch.cuda.set_device(gpu_index(local_rank, torch.cuda.device_count()))
    torch.set_num_threads(execution.threads_per_rank)
    # As torch.use_deterministic_algorithms(True), but for compiled code too, whose import costs a second.
    torch.set_deterministic_debug_mode("error")
    # PyTorch else fills every new tensor, which finds bugs and costs a pass over it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
