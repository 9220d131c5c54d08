"""What one rank computes: its part of the model on its rows of each step, and the update of its weights.

B rows of a forward pass    S tokens of a sequence    T = S + 1, the last one being only a target
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.collectives import sum_over
from model.kernels import choose
from model.mesh import Axis, Mesh, connect
from model.pipeline_parallel import Pipeline
from model.transformer import Stage
from model.zero import AdamW
from runtime.data.batches import first_sample, held_out_rows, training_rows
from specs.record import SkippedRange
from specs.run import Execution, RunSpec

_EVALUATION_TOKENS = 4096
"""Tokens of one forward pass of an evaluation: on a CPU 2048 to 4096 are fastest from width 16 to 128, fp32 and bf16;
four times as many cost up to 60 % more (our measurement)."""


class RankWorker:
    """One rank's part of the model, its optimizer and its data."""

    def __init__(
        self, run: RunSpec, execution: Execution, mesh: Mesh, train: NDArray[Any], held_out: NDArray[Any]
    ) -> None:
        kernels = choose(execution.kernels, execution.device, run.precision)
        self.kernels = kernels.describe()
        self._run = run
        self.layout = execution.layout
        self._mesh = mesh
        self._device = torch.device(execution.device)
        self._train = train
        self._held_out = held_out
        self._stage = Stage(
            run.model,
            precision=run.precision,
            mesh=mesh,
            kernels=kernels,
            device=execution.device,
            layout=execution.layout,
        )
        self._pipeline = Pipeline(self._stage)
        self.optimizer = AdamW(self._stage, mesh.dp, run.optim)

    @property
    def leads(self) -> bool:
        """Whether this is the one rank that decides where the others follow."""
        return self._mesh.world.rank == 0

    @property
    def world(self) -> Axis:
        """All ranks."""
        return self._mesh.world

    @property
    def writes_vectors(self) -> bool:
        """Whether this is the one of the tensor-parallel ranks, all of which have the norms' gains, that saves them."""
        return self._mesh.tp.rank == 0

    @property
    def devices(self) -> list[str]:
        """Names of the accelerators of all ranks; they are of one kind."""
        if self._device.type != "cuda":
            return []
        return [torch.cuda.get_device_name()] * self._mesh.world.size

    def accumulate(self, step: int, skipped: Sequence[SkippedRange]) -> Tensor:
        """Add up the gradients of a step; this rank's share of the step's mean loss (fp64, nats)."""
        batch, context = self._run.optim.batch_sequences, self._run.model.context
        rows, at_once = batch // self._mesh.dp.size, self.layout.micro_batch_sequences
        first = first_sample(step, batch, skipped) + self._mesh.dp.rank * rows

        def read(micro_batch: int) -> Tensor:
            at = first + micro_batch * at_once
            return self._on_device(training_rows(self._train, context, self._run.seed, at, at_once))

        sizes = [at_once] * (rows // at_once)
        self.optimizer.expect(len(sizes))
        return self._once(self._pipeline.train(sizes, read, batch * context))

    def summed(self, values: Sequence[float | Tensor]) -> list[float]:
        """A few scalars, each summed over the ranks in one collective."""
        scalars = [float(value) for value in values]
        if self._mesh.world.size == 1:
            return scalars
        together = torch.tensor(scalars, dtype=torch.float64, device=self._device)
        return [float(value) for value in sum_over(together, self._mesh.world).tolist()]

    def told(self, numbers: Sequence[float]) -> list[float]:
        """The first rank's numbers, on every rank; the others' own are not looked at."""
        size = int(self.summed([len(numbers) if self.leads else 0])[0])
        return self.summed(list(numbers) if self.leads else [0.0] * size)

    def evaluate(self, sequences: int) -> float:
        """Mean loss over this many held-out sequences, nats per token; each replica takes a stretch of them."""
        context, dp = self._run.model.context, self._mesh.dp
        at_once = max(1, _EVALUATION_TOKENS // context)
        start, stop = dp.rank * sequences // dp.size, (dp.rank + 1) * sequences // dp.size
        firsts = range(start, stop, at_once)
        sizes = [min(at_once, stop - first) for first in firsts]

        def read(micro_batch: int) -> Tensor:
            first, count = firsts[micro_batch], sizes[micro_batch]
            return self._on_device(held_out_rows(self._held_out, context, first, count))

        return self.summed([self._once(self._pipeline.evaluate(sizes, read, sequences * context))])[0]

    def _on_device(self, rows_BT: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows_BT).to(self._device)

    def _once(self, loss: Tensor) -> Tensor:
        """A share of a loss that all tensor-parallel ranks have, for a sum over all ranks: the first one's counts."""
        return loss if self._mesh.tp.rank == 0 else torch.zeros_like(loss)


@contextmanager
def join_process_group(
    run: RunSpec,
    execution: Execution,
    rank: int,
    local_rank: int,
    train: NDArray[Any],
    held_out: NDArray[Any],
) -> Iterator[RankWorker]:
    """This rank's replica, connected to the others while the block is open."""
    _make_deterministic(execution, local_rank)
    layout = execution.layout
    with connect(
        layout.dp, layout.pp, layout.tp, rank=rank, rendezvous="env://", device=execution.device
    ) as mesh:
        yield RankWorker(run, execution, mesh, train, held_out)


def gpus() -> int:
    """GPUs that torch sees here."""
    return torch.cuda.device_count()


def _make_deterministic(execution: Execution, local_rank: int) -> None:
    """Sums in one order: a fixed number of threads, and of several algorithms the one that repeats itself."""
    if execution.device == "cuda":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = (
            ":4096:8"  # else cuBLAS may choose by what is free (its manual, 2.1.4)
        )
        torch.cuda.set_device(local_rank)
    torch.set_num_threads(execution.threads_per_rank)
    # As torch.use_deterministic_algorithms(True), but for compiled code too, whose import costs a second.
    torch.set_deterministic_debug_mode("error")
    # PyTorch else fills every new tensor, which finds bugs and costs a pass over it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
