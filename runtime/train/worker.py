"""One rank's model, optimizer and data: gradient accumulation over its rows of a step, evaluation, collectives.

B rows of a forward pass    S tokens of a sequence    T = S + 1, the last one being only a target
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.collectives import all_gather, all_reduce
from model.documents import document_ends
from model.kernels import choose, shape_of
from model.mesh import Axis, Mesh, connect, set_timeout
from model.pipeline_parallel import Pipeline, ReadMicroBatch
from model.transformer import Stage
from model.waiting import WAITING
from model.zero import AdamW
from runtime.data.batches import HeldOutPart, RunData
from runtime.train.environment import gpu_index
from specs.layout import Layout
from specs.record import SkippedRange
from specs.run import Execution, RunSpec

_EVALUATION_TOKENS = {"cpu": 4096, "cuda": 2**15}
"""Tokens of one forward pass of an evaluation. On a CPU 2048 to 4096 are fastest from width 16 to 128, fp32 and bf16;
four times as many cost up to 60 % more (our measurement). On a GPU, 32k hide the time to launch kernels."""

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
        shape = shape_of(run.model, execution.layout.tp, run.documents == "masked")
        kernels = choose(
            execution.kernels,
            execution.device,
            run.precision,
            shape,
            sum_over_ranks=partial(_sum_over_ranks, mesh.world, execution.device),
        )
        self.kernels = kernels.describe()
        if mesh.world.rank > 0:  # rank 0's are in the run's record
            for line in kernels.failed_here:
                print(f"rank {mesh.world.rank}: {line}", flush=True)
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
        return self._once(self._pipeline.train(sizes, *self._micro_batches(sizes, read, batch * context)))

    def _micro_batches(
        self, sizes: Sequence[int], read: ReadRows, all_tokens: int
    ) -> tuple[ReadMicroBatch, int, ReadMicroBatch | None]:
        """What gives the rows of micro-batches of these sizes; how many tokens of the step or evaluation count, over
        all data-parallel ranks: `all_tokens`, or where documents are masked those whose next token is of the same one;
        and what gives the ends of documents, where attention asks for them. A stage that asks reads the rows once, and
        copies them once."""
        starts = [0, *accumulate(sizes)]

        @cache
        def on_host() -> NDArray[np.int64]:
            return read(0, starts[-1]) if sizes else np.empty((0, self._run.model.context + 1), np.int64)

        @cache
        def on_device() -> Tensor:
            return self._on_device(on_host())

        @cache
        def ends_on_device() -> tuple[Tensor, ...]:
            return self._document_ends(np.split(on_host(), starts[1:-1]))

        def rows(number: int) -> Tensor:
            self._signs += 1
            return on_device()[starts[number] : starts[number + 1]]

        def ends(number: int) -> Tensor:
            return ends_on_device()[number]

        if self._data.end_of_document is None:
            return rows, all_tokens, None
        counted = int((on_host()[:, :-1] != self._data.end_of_document).sum())
        if self._mesh.dp.size > 1:
            counted = int(all_reduce(self._on_device(np.array(counted)), self._mesh.dp))
        return (
            rows,
            counted,
            ends if self._device.type != "cpu" else None,
        )  # a CPU's goes by where documents begin

    def set_timeout(self, timeout_s: float) -> None:
        """From now on this rank fails where it waits longer than this for another."""
        if self._mesh.world.size > 1:
            set_timeout(self._mesh, timeout_s)

    def all_reduce_sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """A few scalars, each summed over all ranks, in one all-reduce. A device is waited for once."""
        self._signs += 1
        if self._mesh.world.size == 1:
            return [float(value) for value in values]
        on_host = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
        vector = self._on_device(np.array(on_host))
        for place, value in enumerate(values):
            if isinstance(value, Tensor):
                vector[place] = value
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
        at_once = evaluated_at_once(self._run, self.layout, self._device.type)
        start, stop = dp.rank * sequences // dp.size, (dp.rank + 1) * sequences // dp.size
        sizes = [min(at_once, stop - first) for first in range(start, stop, at_once)]

        def read(place: int, count: int) -> NDArray[np.int64]:
            return self._data.held_out_rows(part.source, start + place, count)

        return self._pipeline.evaluate(sizes, *self._micro_batches(sizes, read, sequences * context))

    def _document_ends(self, micro_batches: Sequence[NDArray[np.int64]]) -> tuple[Tensor, ...]:
        """Where the documents of each of these rows end, in one copy (see model.kernels.Positions)."""
        assert self._data.end_of_document is not None
        ends = [document_ends(rows_BT[:, :-1], self._data.end_of_document) for rows_BT in micro_batches]
        found: tuple[Tensor, ...] = self._on_device(np.concatenate(ends)).split([len(one) for one in ends])
        return found

    def _on_device(self, numbers: NDArray[Any]) -> Tensor:
        """A copy on the device, which nobody waits for: of pageable memory it would drain the GPU."""
        on_host = torch.from_numpy(numbers)
        if self._device.type == "cuda":
            on_host = on_host.pin_memory()
        return on_host.to(self._device, non_blocking=True)

    def _once(self, loss: Tensor) -> Tensor:
        """The loss share on the first tensor-parallel rank, zero on the others, which have the same one."""
        return loss if self._mesh.tp.rank == 0 else torch.zeros_like(loss)


def evaluated_at_once(run: RunSpec, layout: Layout, device: str) -> int:
    """Sequences of one forward pass of an evaluation: as many as are fast, and need no more memory than training does.

    A training step holds the logits of a micro-batch and what its blocks save; an evaluation holds logits and one
    block's activations. The same on all ranks, and after every restart.
    """
    model, micro_batch = run.model, layout.micro_batch_sequences
    fast = max(1, _EVALUATION_TOKENS.get(device, 0) // model.context)
    if device == "cpu":
        return fast
    logits, width, ffn = model.vocab / layout.tp, model.width, model.ffn
    saved = {"none": 3 * width + 2 * ffn, "selective": 2 * width + 2 * ffn, "full": width}[layout.recompute]
    blocks = min(map(len, layout.blocks(model.layers)))
    trained = logits + saved / layout.tp * blocks  # at least, in elements a token; see SAVED_ACTIVATIONS
    fits = int(micro_batch * trained / (logits + 7 * width + 3 * ffn))  # at most
    return max(1, micro_batch, min(fast, fits))


def _sum_over_ranks(world: Axis, device: str, numbers: list[int]) -> list[int]:
    return [int(one) for one in all_reduce(torch.tensor(numbers, device=device), world).tolist()]


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
