"""The linear maps at a sub-layer's two edges, which is where tensor-parallel ranks meet.

    enter   y = gather(x) weight'     the weight's rows are split: column-parallel in Megatron-LM (arXiv 1909.08053)
    leave   y = sum(x weight')        the weight's columns are split: row-parallel

Without sequence parallelism `gather` is nothing and `sum` an all-reduce; with it (arXiv 2205.05198) an all-gather of
the sequence and a reduce-scatter. Their gradients are each other's mirror. Communication hides behind multiplications:

* where a gathered tensor is multiplied at once, it comes in pieces, and one is multiplied while the next is on its way;
* the gradient that goes back through `enter` is a `AsyncTensor`: it is summed while weights' gradients are multiplied;
* of what was gathered only this rank's stretch is kept; it is gathered again behind backward's multiplications.

One process is the case of size 1, where nothing is communicated or copied.

B batch    s this rank's stretch of the sequence, or all of it    R rows of the whole sequence    H width
F this rank's part of the inner width
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.collectives import AsyncTensor, gather, reduce, scatter
from model.mesh import Axis

Multiply = Callable[[Tensor, Tensor], Tensor]
"""(x (R, in), weight (out, in)) -> x weight' (R, out), in whatever order of memory."""

PIECES = 4
"""Of a sequence that is multiplied while it comes: three quarters of the communication can hide. Cut no further, since
multiplications of few rows lose more than is hidden (arXiv 2406.06858, section 2, measures that loss)."""
PIECE_BYTES = 2**20
"""Of this rank's stretch, at least: below, sending takes as long as its latency and cutting hides nothing."""


@dataclass(frozen=True)
class Linears:
    """Linear maps on an axis of tensor-parallel ranks."""

    tp: Axis
    sequence_parallel: bool
    multiply: Multiply
    """How to multiply where the result's order of memory is the kernels' choice."""

    def enter(self, x_BsH: Tensor, weight_FH: Tensor, multiply: Multiply) -> Tensor:
        """gather(x) weight', (R, F)."""
        if not self.sequence_parallel:
            return multiply(x_BsH.view(-1, x_BsH.shape[-1]), weight_FH)
        return _gathered_product(x_BsH, weight_FH, self.tp, multiply)[0]

    def leave(self, x_RF: Tensor, weight_HF: Tensor, batch: int) -> Tensor:
        """The ranks' sum of x weight', (B, s, H)."""
        y_BSH = torch.mm(x_RF, weight_HF.t()).view(batch, -1, len(weight_HF))
        return (scatter if self.sequence_parallel else reduce)(y_BSH, self.tp).wait()

    def back_through_leave(self, dy_BsH: Tensor, weight_HF: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of x, (R, F), and the gathered gradient of y, (R, H)."""
        if not self.sequence_parallel:
            dy_RH = dy_BsH.view(-1, dy_BsH.shape[-1])
            return self.multiply(dy_RH, weight_HF.t()), dy_RH
        return _gathered_product(dy_BsH, weight_HF.t(), self.tp, self.multiply)

    def back_through_enter(self, dy_RF: Tensor, weight_FH: Tensor, batch: int) -> AsyncTensor:
        """The gradient of x, (B, s, H)."""
        dx_BSH = torch.mm(dy_RF, weight_FH).view(batch, -1, weight_FH.shape[1])
        return (scatter if self.sequence_parallel else reduce)(dx_BSH, self.tp)

    def again(self, x_BsH: Tensor) -> AsyncTensor:
        """What `enter` multiplied, (B, S, H): once more from all ranks, if it was gathered."""
        return gather(x_BsH, self.tp if self.sequence_parallel else Axis())


def _gathered_product(x_BsH: Tensor, weight: Tensor, tp: Axis, multiply: Multiply) -> tuple[Tensor, Tensor]:
    """gather(x) weight', (R, out), and gather(x), (R, in): a piece is multiplied while the next is on its way."""
    B, s, H = x_BsH.shape
    coming = [(stretch, gather(x_BsH[:, stretch], tp)) for stretch in _pieces(x_BsH)]
    if len(coming) == 1:
        whole_RH = coming[0][1].wait().reshape(-1, H)
        return multiply(whole_RH, weight), whole_RH
    whole_RH = x_BsH.new_empty(B * tp.size * s, H)
    product_RF = torch.empty(())
    for stretch, piece in coming:
        piece_RH = piece.wait().reshape(-1, H)
        part_RF = multiply(piece_RH, weight)
        if stretch.start == 0:
            product_RF = _rows_like(part_RF, len(whole_RH))
        for whole, part in ((whole_RH, piece_RH), (product_RF, part_RF)):
            by_rank = part.unflatten(0, (B, tp.size, stretch.stop - stretch.start))
            whole.unflatten(0, (B, tp.size, s))[:, :, stretch] = by_rank
    return product_RF, whole_RH


def _pieces(x_BsH: Tensor) -> list[slice]:
    """The stretches of the sequence that travel one after another."""
    s = x_BsH.shape[1]
    pieces = max(1, min(PIECES, s, x_BsH.nbytes // PIECE_BYTES))
    return [slice(i * s // pieces, (i + 1) * s // pieces) for i in range(pieces)]


def _rows_like(part_RF: Tensor, rows: int) -> Tensor:
    """An empty matrix of so many rows, in the part's order of memory."""
    columns = part_RF.shape[1]
    if part_RF.stride(0) == 1:
        return part_RF.new_empty(columns, rows).t()
    return part_RF.new_empty(rows, columns)
