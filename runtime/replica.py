"""What one rank computes: its rows of each step, the update of its weights, its share of an evaluation, its state.

B rows of a forward pass    S tokens of a sequence    T = S + 1, the last one being only a target
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.collectives import sum_over
from model.kernels import choose
from model.mesh import Mesh, connect
from model.transformer import Stage
from model.zero import AdamW
from runtime.batches import held_out_rows, training_rows
from runtime.checkpoint import load_checkpoint, newest_whole, save_checkpoint, step_of, weights_sha256
from runtime.origin import start_from
from specs.run import Execution, RunSpec

_EVALUATION_TOKENS = 4096
"""Tokens of one forward pass of an evaluation: on a CPU 2048 to 4096 are fastest from width 16 to 128, fp32 and bf16;
four times as many cost up to 60 % more (our measurement)."""


class Replica:
    """One data-parallel rank's model, optimizer and data."""

    def __init__(
        self, run: RunSpec, execution: Execution, mesh: Mesh, train: NDArray[Any], held_out: NDArray[Any]
    ) -> None:
        kernels = choose(execution.kernels, execution.device)
        self.kernels = kernels.describe()
        self._run = run
        self._layout = execution.layout
        self._axis = mesh.dp
        self._device = torch.device(execution.device)
        self._train = train
        self._held_out = held_out
        self._stage = Stage(
            run.model, precision=run.precision, mesh=mesh, kernels=kernels, device=execution.device
        )
        self._optimizer = AdamW(self._stage, mesh.dp, run.optim)

    @property
    def leads(self) -> bool:
        """Whether this is the one rank that decides where the others follow."""
        return self._axis.rank == 0

    @property
    def devices(self) -> list[str]:
        """Names of the accelerators of all ranks; they are of one kind."""
        return [torch.cuda.get_device_name()] * self._axis.size if self._device.type == "cuda" else []

    def restore(self, folder: Path, data: Path) -> tuple[int, list[str]]:
        """Take the newest whole checkpoint, or the first weights: finished steps, and what was wrong with newer ones.

        Rank 0 looks and tells the others, so that all agree; only it knows the problems.
        """
        problems: list[str] = []
        step = 0
        if self.leads:
            path, problems = newest_whole(folder, self._run.fingerprint())
            step = step_of(path) if path else 0
        step = int(self.summed([step])[0])
        if step == 0 and self._run.parent is None:
            self._optimizer.start(self._run.seed)
            return step, problems
        boxes = self._optimizer.boxes()
        if step == 0:
            start_from(self._run, data, boxes)
        else:
            load_checkpoint(folder, step, boxes)
        self._optimizer.steps = step
        self._optimizer.publish()
        return step, problems

    def save(self, folder: Path, step: int) -> None:
        """Write a checkpoint of this state, together with the other ranks."""
        boxes, run = self._optimizer.boxes(), self._run.fingerprint()
        save_checkpoint(folder, run, step, self._layout, boxes, self._axis, self._device)

    def accumulate(self, step: int) -> Tensor:
        """Add up the gradients of this rank's rows of a step; its share of the step's mean loss (fp64, nats)."""
        batch, context = self._run.optim.batch_sequences, self._run.model.context
        rows, at_once = batch // self._axis.size, self._layout.micro_batch_sequences
        first = (step - 1) * batch + self._axis.rank * rows
        rows_BT = training_rows(self._train, context, self._run.seed, first, rows)
        share = torch.zeros((), dtype=torch.float64, device=self._device)
        for start in range(0, rows, at_once):
            loss = self._loss(rows_BT[start : start + at_once], batch * context)
            loss.backward()
            share += loss.detach()
        return share

    def update(self, lr: float) -> float:
        """Apply the gradients; their global norm before clipping."""
        return self._optimizer.step(lr)

    def summed(self, values: Sequence[float | Tensor]) -> list[float]:
        """A few scalars, each summed over the ranks in one collective."""
        scalars = [float(value) for value in values]
        if self._axis.size == 1:
            return scalars
        together = torch.tensor(scalars, dtype=torch.float64, device=self._device)
        return [float(value) for value in sum_over(together, self._axis).tolist()]

    def evaluate(self, sequences: int) -> float:
        """Mean loss over this many held-out sequences, nats per token; each rank takes a stretch of them."""
        context, axis = self._run.model.context, self._axis
        at_once = max(1, _EVALUATION_TOKENS // context)
        start, stop = axis.rank * sequences // axis.size, (axis.rank + 1) * sequences // axis.size
        share = torch.zeros((), dtype=torch.float64, device=self._device)
        with torch.no_grad():
            for first in range(start, stop, at_once):
                rows_BT = held_out_rows(self._held_out, context, first, min(at_once, stop - first))
                share += self._loss(rows_BT, sequences * context)
        return self.summed([share])[0]

    def weights_sha256(self, folder: Path, step: int) -> str:
        """Digest of the weights that were saved after `step` steps; rank 0 has it, the others nothing."""
        return weights_sha256(folder, step) if self.leads else ""

    def _loss(self, rows_BT: NDArray[np.int64], step_tokens: int) -> Tensor:
        tokens_BT = torch.from_numpy(rows_BT).to(self._device)
        return self._stage.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], step_tokens)


@contextmanager
def joined(
    run: RunSpec,
    execution: Execution,
    rank: int,
    local_rank: int,
    train: NDArray[Any],
    held_out: NDArray[Any],
) -> Iterator[Replica]:
    """This rank's replica, connected to the others while the block is open."""
    _make_deterministic(execution, local_rank)
    layout = execution.layout
    with connect(
        layout.dp, layout.pp, layout.tp, rank=rank, rendezvous="env://", device=execution.device
    ) as mesh:
        yield Replica(run, execution, mesh, train, held_out)


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
