"""AdamW with ZeRO-1 by rows (arXiv 1910.02054): every data-parallel rank owns a block of rows of every parameter.

A rank holds fp32 masters and moments of its rows only. A step sums the gradients over the axis and hands each rank its
rows (reduce-scatter), updates them, and hands the new rows to all (all-gather). Owned rows are boxes of globally named
tensors, which is how a checkpoint of one layout is read under another. On one rank nothing is copied or sent, and in
fp32 the masters are the parameters themselves.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.collectives import gather_into, scatter_sum, sum_over
from model.init import normal_rows
from model.mesh import Axis
from model.parameters import Local, Piece, local_pieces
from model.transformer import Stage
from specs.optim import OptimSpec

_BUCKET_BYTES = 25 * 2**20
"""Parameters that travel together are copied side by side up to this size (the default of PyTorch's DDP, whose paper,
arXiv 2006.15704, section 5.2, measures it); a larger one travels alone, from where it lies."""


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
        self._locals = list(stage.locals.values())
        owned = stage.gradients.numel() // axis.size
        alone = axis.size == 1
        self._gradient = stage.gradients if alone else stage.gradients.new_zeros(owned)
        shared = alone and stage.weights.dtype == stage.gradients.dtype
        self._master = stage.weights if shared else stage.gradients.new_zeros(owned)
        self._exp_avg, self._exp_avg_sq = stage.gradients.new_zeros(2, owned)
        places = {path: place for place, path in enumerate(local_pieces(stage.spec, stage.mesh.tp))}
        counted = [path for path, local in stage.locals.items() if local.split or stage.mesh.tp.rank == 0]
        self._counted = [self._gradient[self._owned(stage.locals[path])] for path in counted]
        self._places = torch.tensor([places[path] for path in counted], device=self._gradient.device)
        self._parameters = len(places)
        state = (self._master, self._gradient, self._exp_avg, self._exp_avg_sq)
        decayed = sum(self._size(local) for local in self._locals if local.decays)
        self._parts = [
            (tuple(flat[:decayed] for flat in state), spec.weight_decay),
            (tuple(flat[decayed:] for flat in state), 0.0),
        ]

    def start(self, seed: int) -> None:
        """Fresh weights as a function of (seed, name, row), moments at zero, parameters published."""
        self._exp_avg.zero_()
        self._exp_avg_sq.zero_()
        self.steps = 0
        for box in self.boxes():
            _draw(box, seed, self.stage.spec.init_std)
        self.publish()

    def boxes(self) -> list[Box]:
        """This rank's state; over the ranks of the axis, the boxes tile every global tensor once."""
        state = (self._master, self._exp_avg, self._exp_avg_sq)
        return [
            Box(piece, *(flat[at : at + piece.rows * piece.cols].view(_view_shape(piece)) for flat in state))
            for local in self._locals
            for piece, at in self._owned_pieces(local)
        ]

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """One update from the summed gradients, which are zeroed; returns the global norm before clipping.

        Where the norm is not finite, nothing is updated.
        """
        self._reduce()
        norm = self._norm()
        if math.isfinite(norm):
            self._update(lr, max(1.0, norm / self.spec.clip_norm))
            self.publish()
        self.stage.gradients.zero_()
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        """Masters into the parameters of all ranks, rounded to their precision."""
        weights = self.stage.weights
        if self.axis.size == 1:
            if weights is not self._master:
                weights.copy_(self._master)
            return
        for bucket in self._buckets():
            mine = self._master[self._span(bucket)].to(weights.dtype)
            if len(bucket) == 1:
                gather_into(weights[bucket[0].start : bucket[0].stop], mine, self.axis)
                continue
            whole = mine.new_empty(self.axis.size, mine.numel())
            gather_into(whole.view(-1), mine, self.axis)
            parts = whole.split([self._size(local) for local in bucket], dim=1)
            for local, part in zip(bucket, parts, strict=True):
                self._by_rank(weights, local).copy_(part)

    def _reduce(self) -> None:
        """This rank's rows of the gradient, summed over the axis."""
        if self.axis.size == 1:
            return
        waiting = []
        for bucket in self._buckets():
            parts = [self._by_rank(self.stage.gradients, local) for local in bucket]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            mine = self._gradient[self._span(bucket)]
            work = scatter_sum(mine, whole.view(-1), self.axis, async_op=True)
            waiting.append((work, whole))
        for work, _ in waiting:
            work.wait()

    def _norm(self) -> float:
        """Norm over the whole model: each parameter's sum of squares, then their sum in order of depth, in fp64.

        The order is the same for every cut into stages, and so the sum is, to the last bit.
        """
        norms = torch._foreach_norm(self._counted, 2, torch.float64)
        squares = norms[0].new_zeros(self._parameters)
        squares.index_copy_(0, self._places, torch.stack(norms).square_())
        return math.sqrt(float(sum_over(squares, self.stage.mesh.world).sum()))

    def _update(self, lr: float, grad_scale: float) -> None:
        self.steps += 1
        for part, decay in self._parts:
            self.stage.kernels.adamw(
                *part,
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

    def _span(self, bucket: list[Local]) -> slice:
        return slice(self._owned(bucket[0]).start, self._owned(bucket[-1]).stop)

    def _by_rank(self, flat: Tensor, local: Local) -> Tensor:
        """A parameter's elements as (ranks, elements of each)."""
        return flat[local.start : local.stop].view(self.axis.size, -1)

    def _buckets(self) -> Iterator[list[Local]]:
        """Consecutive parameters that travel together."""
        bucket: list[Local] = []
        limit = _BUCKET_BYTES // self._gradient.element_size()
        for local in self._locals:
            if bucket and local.stop - bucket[0].start > limit:
                yield bucket
                bucket = []
            bucket.append(local)
        yield bucket

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
