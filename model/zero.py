"""AdamW with ZeRO-1 by rows (arXiv 1910.02054): every data-parallel rank owns a block of rows of every parameter.

A rank holds fp32 masters and moments of its rows only. A step sums the gradients over the axis and hands each rank its
rows, updates them, and hands the new rows to all; model/buckets.py hides that behind the passes. Owned rows are boxes
of globally named tensors, which is how a checkpoint of one layout is read under another. On one rank nothing is copied
or sent, and in fp32 the masters are the parameters themselves.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.buckets import Exchange, owned
from model.collectives import sum_over
from model.init import normal_rows
from model.mesh import Axis
from model.parameters import Local, Piece, local_pieces
from model.transformer import Stage
from specs.optim import OptimSpec


@dataclass(frozen=True)
class Box:
    """State of one box of a global tensor: fp32 views, (rows, cols), or (rows,) for a vector."""

    piece: Piece
    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class AdamW:
    """The optimizer of one rank's stage. Decays matrices only (LLaMA's practice; norms' gains are left alone)."""

    def __init__(self, stage: Stage, axis: Axis, spec: OptimSpec) -> None:
        self.stage, self.axis, self.spec = stage, axis, spec
        self.steps = 0
        self._exchange = Exchange(stage, axis)
        self._gradient = self._exchange.mine
        size, alone = owned(stage, axis), axis.size == 1
        same = stage.weights.dtype == stage.gradients.dtype
        self._master = stage.weights if alone and same else stage.gradients.new_zeros(size)
        self._exp_avg, self._exp_avg_sq = stage.gradients.new_zeros(2, size)
        self._rounded = self._master if same else stage.weights if alone else stage.weights.new_empty(size)
        self._norm = GradientNorm(stage, self._gradient, self._owned)
        decayed = sum(self._size(local) for local in stage.locals.values() if local.decays)
        self._parts = [(slice(decayed), spec.weight_decay), (slice(decayed, size), 0.0)]

    def start(self, seed: int) -> None:
        """Fresh weights as a function of (seed, name, row), moments at zero, parameters published."""
        self.forget()
        for box in self.boxes():
            _draw(box, seed, self.stage.spec.init_std)
        self.publish()

    def forget(self) -> None:
        """Moments at zero, no step taken; the weights stay."""
        self._exp_avg.zero_()
        self._exp_avg_sq.zero_()
        self.steps = 0

    @property
    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's masters and moments, flat; `boxes` says what lies where."""
        return self._master, self._exp_avg, self._exp_avg_sq

    def boxes(self, copy: tuple[Tensor, Tensor, Tensor] | None = None) -> list[Box]:
        """This rank's state, or what a copy of it holds, as boxes.

        Boxes of all ranks tile every matrix once, every vector once per tensor-parallel rank.
        """
        state = copy or self.state
        return [
            Box(piece, *(flat[at : at + piece.rows * piece.cols].view(_view_shape(piece)) for flat in state))
            for local in self.stage.locals.values()
            for piece, at in self._owned_pieces(local)
        ]

    def expect(self, micro_batches: int) -> None:
        """The next step sums the gradients of so many micro-batches: they are sent from within the last one's backward.

        Without this they are sent by `step`.
        """
        self._exchange.expect(micro_batches)

    def step(self, lr: float) -> float:
        """One update from the summed gradients, which are zeroed; returns the global norm before clipping.

        Where the norm is not finite, nothing is updated.
        """
        norm = self.reduce()
        if math.isfinite(norm):
            self.apply(lr, norm)
        else:
            self.drop()
        return norm

    @torch.no_grad()
    def reduce(self) -> float:
        """Sum the gradients over the ranks; their global norm. `apply` or `drop` them next."""
        self._exchange.settle()
        self._exchange.reduce()
        return self._norm.value()

    @torch.no_grad()
    def apply(self, lr: float, norm: float) -> None:
        """Update the weights by the summed gradients, clipped by their norm, and zero these."""
        self._update(lr, max(1.0, norm / self.spec.clip_norm))
        self._exchange.publish(self._rounded)
        self.stage.gradients.zero_()

    def drop(self) -> None:
        """Zero the summed gradients: the weights stay as they are."""
        self.stage.gradients.zero_()

    @torch.no_grad()
    def publish(self) -> None:
        """Masters into the parameters of all ranks, rounded to their precision."""
        if self._rounded is not self._master:
            self._rounded.copy_(self._master)
        self._exchange.publish(self._rounded)
        self._exchange.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Return when the parameters of all ranks are here. A forward pass waits for each by itself."""
        self._exchange.settle()

    def _update(self, lr: float, grad_scale: float) -> None:
        self.steps += 1
        for part, decay in self._parts:
            self.stage.kernels.adamw(
                self._master[part],
                self._gradient[part],
                self._exp_avg[part],
                self._exp_avg_sq[part],
                None if self._rounded is self._master else self._rounded[part],
                step=self.steps,
                lr=lr,
                betas=self.spec.betas,
                weight_decay=decay,
                eps=self.spec.eps,
                grad_scale=grad_scale,
            )

    def _size(self, local: Local) -> int:
        """Elements of a parameter that each rank owns, padding included."""
        return (local.stop - local.start) // self.axis.size

    def _owned(self, local: Local) -> slice:
        """Where they lie in this rank's state: parameters follow each other there as they do in the stage."""
        return slice(local.start // self.axis.size, local.stop // self.axis.size)

    def _owned_pieces(self, local: Local) -> Iterator[tuple[Piece, int]]:
        """The owned rows as boxes of global tensors, each with its start in this rank's state."""
        each = local.padded_rows // self.axis.size
        first = -self.axis.rank * each  # of the piece, counted from this rank's first row
        for piece in local.pieces:
            low, high = max(first, 0), min(first + piece.rows, each)
            if low < high:
                box = replace(piece, row=piece.row + low - first, rows=high - low)
                yield box, self._owned(local).start + low * local.cols
            first += piece.rows


class GradientNorm:
    """The norm of the whole model's gradient: each parameter's squares summed, then these in order of depth, in fp64.

    A parameter that several ranks have counts once. The order is the same for every cut into stages, and so the sum
    is, to the last bit.
    """

    def __init__(self, stage: Stage, gradient: Tensor, owned: Callable[[Local], slice]) -> None:
        tp = stage.mesh.tp
        places = {path: place for place, path in enumerate(local_pieces(stage.spec, tp))}
        counted = {path: local for path, local in stage.locals.items() if local.split or tp.rank == 0}
        self._world, self._parameters = stage.mesh.world, len(places)
        self._counted = [gradient[owned(local)] for local in counted.values()]
        self._places = torch.tensor([places[path] for path in counted], device=gradient.device)

    def value(self) -> float:
        """The norm; every rank calls this at the same time."""
        norms = torch._foreach_norm(self._counted, 2, torch.float64)
        squares = norms[0].new_zeros(self._parameters)
        squares.index_copy_(0, self._places, torch.stack(norms).square_())
        return math.sqrt(float(sum_over(squares, self._world).sum()))


def _view_shape(piece: Piece) -> tuple[int, ...]:
    return (piece.rows,) if len(piece.shape) == 1 else (piece.rows, piece.cols)


def _draw(box: Box, seed: int, std: float) -> None:
    piece = box.piece
    if len(piece.shape) == 1:
        box.master.fill_(1.0)
        return
    rows = range(piece.row, piece.row + piece.rows)
    drawn = normal_rows(seed, piece.name, rows, piece.shape[1], std)[:, piece.col : piece.col + piece.cols]
    box.master.copy_(torch.from_numpy(drawn))
