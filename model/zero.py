"""AdamW with ZeRO-1 by rows (arXiv 1910.02054): every data-parallel rank owns a block of rows of every parameter.

A rank holds fp32 masters and moments of its rows only. A step reduce-scatters the gradients, so that each rank has the
sum for its rows, updates these, and all-gathers the new rows; model/buckets.py overlaps that with the passes. Owned
rows are boxes of globally named tensors, which is how a checkpoint of one layout is read under another. On one rank
nothing is copied or sent, and in fp32 the masters are the parameters themselves."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from model.buckets import GradAndParamBuckets, owned
from model.collectives import all_gather, all_reduce
from model.init import normal_rows
from model.mesh import Axis
from model.parameters import LocalParameter, Piece, local_pieces
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
        self._buckets = GradAndParamBuckets(stage, axis)
        self._gradient = self._buckets.owned_gradients
        size, alone = owned(stage, axis), axis.size == 1
        same = stage.weights.dtype == stage.gradients.dtype
        self._master = stage.weights if alone and same else stage.gradients.new_zeros(size)
        self._exp_avg, self._exp_avg_sq = stage.gradients.new_zeros(2, size)
        self._rounded = self._master if same else stage.weights if alone else stage.weights.new_empty(size)
        self._norm = GradientNorm(stage, self._gradient, self._owned)
        decayed = sum(self._size(local) for local in stage.local_parameters.values() if local.decays)
        self._parts = [(slice(decayed), spec.weight_decay), (slice(decayed, size), 0.0)]

    def initialize(self, seed: int) -> None:
        """Initial weights as a function of (seed, name, row), moments at zero, parameters of all ranks set."""
        self.reset_moments()
        for box in self.boxes():
            _draw(box, seed, self.stage.spec.init_std, self.stage.mesh.tp)
        self.sync_parameters()

    def reset_moments(self) -> None:
        """Set the moments and the count of steps to zero; the weights stay."""
        self._exp_avg.zero_()
        self._exp_avg_sq.zero_()
        self.steps = 0

    @property
    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's masters and moments, flat; `boxes` says what is where."""
        return self._master, self._exp_avg, self._exp_avg_sq

    def boxes(self, copy: tuple[Tensor, Tensor, Tensor] | None = None) -> list[Box]:
        """This rank's state, or what a copy of it holds, as boxes.

        Boxes of all ranks tile every matrix once, every vector once per tensor-parallel rank.
        """
        state = copy or self.state
        return [
            Box(piece, *(flat[at : at + piece.rows * piece.cols].view(_view_shape(piece)) for flat in state))
            for local in self.stage.local_parameters.values()
            for piece, at in self._owned_pieces(local)
        ]

    def start_accumulation(self, micro_batches: int) -> None:
        """Announce gradient accumulation over micro-batches: the last one's backward starts the reduce-scatters.

        Without this `step` starts them.
        """
        self._buckets.start_accumulation(micro_batches)

    def step(self, lr: float) -> float:
        """One update from the summed gradients, which are zeroed; returns the global norm before clipping.

        Rehearsals and tests call it; the training loop calls its parts, between which the spike guard may reject.

        Where the norm is not finite, nothing is updated.
        """
        norm = self.reduce_gradients()
        if math.isfinite(norm):
            self.apply(lr, norm)
        else:
            self.reject()
        return norm

    @torch.no_grad()
    def reduce_gradients(self) -> float:
        """Sum the gradients over the ranks; their global norm. Call `apply` or `skip` next."""
        self._buckets.wait_for_parameters()
        self._buckets.reduce_scatter_gradients()
        return self._norm.value()

    @torch.no_grad()
    def apply(self, lr: float, norm: float) -> None:
        """Update the weights by the summed gradients, clipped by their norm, and zero the gradients."""
        self._update(lr, max(1.0, norm / self.spec.clip_norm))
        self._buckets.all_gather_parameters(self._rounded)
        self.stage.gradients.zero_()

    def reject(self) -> None:
        """Reject the step: zero the gradients; the weights stay."""
        self.stage.gradients.zero_()

    @torch.no_grad()
    def sync_parameters(self) -> None:
        """Copy the masters into the parameters of all ranks, rounded to their precision."""
        if self._rounded is not self._master:
            self._rounded.copy_(self._master)
        self._buckets.all_gather_parameters(self._rounded)
        self._buckets.wait_for_parameters()

    @torch.no_grad()
    def wait_for_parameters(self) -> None:
        """Wait for the all-gathers of parameters. A forward pass waits for those that it needs."""
        self._buckets.wait_for_parameters()

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

    def _size(self, local: LocalParameter) -> int:
        """Elements of a parameter that each rank owns, padding included."""
        return (local.stop - local.start) // self.axis.size

    def _owned(self, local: LocalParameter) -> slice:
        """Where they are in this rank's state, which has the parameters in the stage's order."""
        return slice(local.start // self.axis.size, local.stop // self.axis.size)

    def _owned_pieces(self, local: LocalParameter) -> Iterator[tuple[Piece, int]]:
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

    def __init__(self, stage: Stage, gradient: Tensor, owned: Callable[[LocalParameter], slice]) -> None:
        tp = stage.mesh.tp
        places = {path: place for place, path in enumerate(local_pieces(stage.spec, tp))}
        counted = {
            path: local for path, local in stage.local_parameters.items() if local.split or tp.rank == 0
        }
        self._world, self._parameters = stage.mesh.world, len(places)
        self._counted = [gradient[owned(local)] for local in counted.values()]
        self._places = torch.tensor([places[path] for path in counted], device=gradient.device)

    def value(self) -> float:
        """The norm; every rank calls this at the same time."""
        norms = torch._foreach_norm(self._counted, 2, torch.float64)
        squares = norms[0].new_zeros(self._parameters)
        squares.index_copy_(0, self._places, torch.stack(norms).square_())
        return math.sqrt(float(all_reduce(squares, self._world).sum()))


def _view_shape(piece: Piece) -> tuple[int, ...]:
    return (piece.rows,) if len(piece.shape) == 1 else (piece.rows, piece.cols)


_DRAWN_AT_ONCE = 2**26
"""Weights of whole rows that tensor-parallel ranks exchange at a time: 256 MiB."""


def _draw(box: Box, seed: int, std: float, tp: Axis) -> None:
    """Initial weights. Of a matrix whose columns are split every rank draws some rows, and gathers the others'."""
    piece = box.piece
    if len(piece.shape) == 1:
        box.master.fill_(1.0)
        return
    whole, drawn = (
        piece.shape[1],
        partial(normal_rows, seed, piece.name, cols=piece.shape[1], std=std, threads=torch.get_num_threads()),
    )
    if piece.cols == whole:
        box.master.copy_(torch.from_numpy(drawn(range(piece.row, piece.row + piece.rows))))
        return
    step = max(1, _DRAWN_AT_ONCE // whole)
    for first in range(0, piece.rows, step):
        rows = range(piece.row + first, piece.row + min(first + step, piece.rows))
        each = math.ceil(len(rows) / tp.size)
        mine_RH = box.master.new_zeros(each, whole)
        own = rows[tp.rank * each : (tp.rank + 1) * each]
        mine_RH[: len(own)] = torch.from_numpy(drawn(own))
        rows_RH = all_gather(mine_RH, tp).flatten(0, 1)[: len(rows)]
        box.master[first : first + len(rows)] = rows_RH[:, piece.col : piece.col + piece.cols]
