"""Tensor parallelism: the column-parallel and row-parallel linear maps of a sub-layer (ColumnParallel, RowParallel).

    column_parallel     y = gather(x) weight'    the weight's rows are split over the ranks (arXiv 1909.08053)
    row_parallel        y = sum(x weight')       the weight's columns are split

Without sequence parallelism `gather` does nothing and `sum` is an all-reduce; with it (arXiv 2205.05198) they are an
all-gather of the sequence and a reduce-scatter. Each one's gradient is the mirror of the other. Communication overlaps
with multiplications:

* a gathered tensor that is multiplied at once is gathered in pieces: one is multiplied while the next is gathered;
* the gradient of a column-parallel input is an `AsyncTensor`: it is reduced while weights' gradients are multiplied;
* of a gathered tensor only this rank's shard is saved; backward gathers it again while it multiplies.

One process is the case of size 1, where nothing is communicated or copied.

B batch    s this rank's shard of the sequence, or all of it    R rows of the whole sequence    H width
F this rank's part of the inner width
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.collectives import (
    AsyncTensor,
    all_reduce_async,
    gather_from_sp_region,
    reduce_scatter_to_sp_region,
)
from model.mesh import Axis

Multiply = Callable[[Tensor, Tensor], Tensor]
"""(x (R, in), weight (out, in)) -> x weight' (R, out), in whatever order of memory."""

PIECES = 4
"""Most pieces of a sequence that is multiplied while it is gathered: three quarters of the communication can overlap.
More would lose: multiplications of few rows are slow (arXiv 2406.06858, section 2, measures that loss)."""
TILE = (128, 256)
"""Rows and columns of a product that one processor of a GPU computes at a time: cuBLAS' largest and most efficient tile
(NVIDIA, Matrix Multiplication Background User's Guide, sections 3 and 4)."""
PIECE_BYTES = 2**20
"""Least size of a piece of this rank's shard: a smaller one takes as long as its latency, so cutting hides nothing."""


@dataclass(frozen=True)
class ParallelLinears:
    """ColumnParallel and RowParallel linear maps over an axis of tensor-parallel ranks."""

    tp: Axis
    sequence_parallel: bool
    multiply: Multiply
    """How to multiply where the result's order of memory is the kernels' choice."""
    processors: int | None = None
    """Of each rank's GPU, the same number on all; None on a CPU, where work does not come in waves of tiles."""

    def column_parallel(
        self, x_BsH: Tensor, weight_FH: Tensor, multiply: Multiply, even: bool = True
    ) -> Tensor:
        """ColumnParallel: gather(x) weight', (R, F). `even` says whether F is the same on all ranks."""
        if not self.sequence_parallel:
            return multiply(x_BsH.view(-1, x_BsH.shape[-1]), weight_FH)
        pieces = self._pieces(x_BsH, len(weight_FH) if even else None)
        return _gathered_product(x_BsH, weight_FH, self.tp, multiply, pieces, keep=False)[0]

    def row_parallel(self, x_RF: Tensor, weight_HF: Tensor, batch: int) -> Tensor:
        """RowParallel: the ranks' sum of x weight', (B, s, H)."""
        y_BSH = torch.mm(x_RF, weight_HF.t()).view(batch, -1, len(weight_HF))
        return self._reduced(y_BSH).wait()

    def row_parallel_backward(self, dy_BsH: Tensor, weight_HF: Tensor) -> tuple[Tensor, Tensor]:
        """RowParallel backward: the gradient of x, (R, F), and the gathered gradient of y, (R, H)."""
        if not self.sequence_parallel:
            dy_RH = dy_BsH.view(-1, dy_BsH.shape[-1])
            return self.multiply(dy_RH, weight_HF.t()), dy_RH
        pieces = self._pieces(dy_BsH, weight_HF.shape[1])
        return _gathered_product(dy_BsH, weight_HF.t(), self.tp, self.multiply, pieces, keep=True)

    def column_parallel_backward(self, dy_RF: Tensor, weight_FH: Tensor, batch: int) -> AsyncTensor:
        """ColumnParallel backward: the gradient of x, (B, s, H)."""
        dx_BSH = torch.mm(dy_RF, weight_FH).view(batch, -1, weight_FH.shape[1])
        return self._reduced(dx_BSH)

    def regather(self, x_BsH: Tensor) -> AsyncTensor:
        """The whole input of a column-parallel map, (B, S, H), for its weight's gradient: all-gathered once more."""
        return gather_from_sp_region(x_BsH, self.tp if self.sequence_parallel else Axis())

    def _pieces(self, x_BsH: Tensor, columns: int | None) -> list[slice]:
        """Slices of the sequence that are gathered and multiplied one after another; None: whatever the columns."""
        B, s, _ = x_BsH.shape
        most = max(1, min(PIECES, s, x_BsH.nbytes // PIECE_BYTES))
        if columns is not None and self.processors is not None:
            most = whole_waves(B * self.tp.size, s, columns, self.processors, most)
        return _cut(s, most)

    def _reduced(self, x_BSH: Tensor) -> AsyncTensor:
        return (reduce_scatter_to_sp_region if self.sequence_parallel else all_reduce_async)(x_BSH, self.tp)


def whole_waves(repeats: int, rows: int, columns: int, processors: int, most: int) -> int:
    """The most pieces, up to `most`, into which `rows` can be cut without more waves of tiles than uncut.

    Each piece is multiplied by itself, `repeats` times its rows by so many columns. A GPU computes a product in waves
    of as many tiles as it has processors, and the last wave takes as long as a full one: small pieces leave some idle.
    """

    def waves(pieces: int) -> int:
        sizes = (at.stop - at.start for at in _cut(rows, pieces))
        tiles = (math.ceil(repeats * size / TILE[0]) * math.ceil(columns / TILE[1]) for size in sizes)
        return sum(math.ceil(each / processors) for each in tiles)

    return max(pieces for pieces in range(1, most + 1) if pieces == 1 or waves(pieces) <= waves(1))


def _cut(size: int, pieces: int) -> list[slice]:
    return [slice(i * size // pieces, (i + 1) * size // pieces) for i in range(pieces)]


def _gathered_product(
    x_BsH: Tensor,
    weight: Tensor,
    tp: Axis,
    multiply: Multiply,
    pieces: list[slice],
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """gather(x) weight', (R, out): a piece is multiplied while the next is gathered. And gather(x), (R, in), to `keep`;
    empty where nobody wants it."""
    B, s, H = x_BsH.shape
    gathers = [(at, gather_from_sp_region(x_BsH[:, at], tp)) for at in pieces]
    if len(gathers) == 1:
        whole_RH = gathers[0][1].wait().reshape(-1, H)
        return multiply(whole_RH, weight), whole_RH
    whole_RH = x_BsH.new_empty(B * tp.size * s if keep else 0, H)
    product_RF = torch.empty(())
    for at, piece in gathers:
        piece_RH = piece.wait().reshape(-1, H)
        part_RF = multiply(piece_RH, weight)
        if at.start == 0:
            product_RF = _rows_like(part_RF, B * tp.size * s)
        for whole, part in (
            ((whole_RH, piece_RH), (product_RF, part_RF)) if keep else ((product_RF, part_RF),)
        ):
            by_rank = part.unflatten(0, (B, tp.size, at.stop - at.start))
            whole.unflatten(0, (B, tp.size, s))[:, :, at] = by_rank
    return product_RF, whole_RH


def _rows_like(part_RF: Tensor, rows: int) -> Tensor:
    """An empty matrix of so many rows, in the part's order of memory."""
    columns = part_RF.shape[1]
    if part_RF.stride(0) == 1:
        return part_RF.new_empty(columns, rows).t()
    return part_RF.new_empty(rows, columns)
