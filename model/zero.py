"""AdamW with ZeRO-1 by rows (arXiv 1910.02054): every data-parallel rank owns a block of rows of every parameter.

A rank holds fp32 masters and moments of its rows only. A step sums the gradients over the axis and hands each rank
its rows (reduce-scatter), updates them, and hands the new rows to all (all-gather): one collective each, over all
parameters at once. Rows are padded to a multiple of the axis, so each rank's share has one size. Owned rows are boxes of
globally named tensors, which is how a checkpoint of one layout is read under another.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from model.collectives import sum_over
from model.init import normal_rows
from model.mesh import Axis
from model.transformer import Local, Piece, Stage
from specs.optim import OptimSpec


@dataclass(frozen=True)
class Box:
    """State of one box of a global tensor: fp32 views, (rows, cols), or (rows,) for a vector."""

    piece: Piece
    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True)
class _Share:
    """The rows of one local parameter that this rank owns, and where they lie in the rank's flat state."""

    name: str
    local: Local
    rows: range
    """Rows of the local parameter, without padding."""
    start: int
    padded: int
    """Elements of a rank's share, padding included."""

    @property
    def cols(self) -> int:
        return self.local.pieces[0].cols

    @property
    def size(self) -> int:
        return len(self.rows) * self.cols


class AdamW:
    """The optimizer of one rank's stage. Decays matrices only (LLaMA's practice; norms' gains are left alone)."""

    def __init__(self, stage: Stage, axis: Axis, spec: OptimSpec) -> None:
        self.stage, self.axis, self.spec = stage, axis, spec
        self.steps = 0
        self._shares = _shares(stage, axis)
        device = stage.flat_gradient.device
        total = sum(share.padded for share in self._shares)
        self._state = torch.zeros(3, total, dtype=torch.float32, device=device)
        self._count = torch.zeros((), dtype=torch.float32, device=device)
        self._decayed = sum(share.padded for share in self._shares if share.local.decays)
        self._parameters = [stage.parameter_of(share.name) for share in self._shares]
        self._gradients = [stage.gradients[share.name] for share in self._shares]

    def start(self, seed: int) -> None:
        """Fresh weights as a function of (seed, name, row), moments at zero, parameters published."""
        self._state.zero_()
        self.steps = 0
        for box in self.boxes():
            _draw(box, seed, self.stage.spec.init_std)
        self.publish()

    def boxes(self) -> list[Box]:
        """This rank's state; over the ranks of the axis, the boxes tile every global tensor once."""
        return [
            Box(
                piece,
                *(
                    row[start : start + piece.rows * piece.cols].view(_view_shape(piece))
                    for row in self._state
                ),
            )
            for share in self._shares
            for piece, start in _owned_pieces(share)
        ]

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """One update from the accumulated gradients, which are zeroed; returns the global norm before clipping."""
        gradient = self._reduce()
        norm = self._norm(gradient)
        self.steps += 1
        self._count.fill_(self.steps)
        scale = torch.tensor(
            max(1.0, norm / self.spec.clip_norm), dtype=torch.float32, device=gradient.device
        )
        for part, decay in (
            (slice(0, self._decayed), self.spec.weight_decay),
            (slice(self._decayed, None), 0.0),
        ):
            master, exp_avg, exp_avg_sq = (row[part] for row in self._state)
            self.stage.kernels.adamw(
                [master],
                [gradient[part]],
                [exp_avg],
                [exp_avg_sq],
                step=self._count,
                lr=lr,
                betas=self.spec.betas,
                weight_decay=decay,
                eps=self.spec.eps,
                grad_scale=scale,
            )
        self.publish()
        self.stage.flat_gradient.zero_()
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        """Masters into the parameters of all ranks, rounded to their precision."""
        mine = self._state[0].to(self.stage.dtype)
        if self.axis.size > 1:
            whole = mine.new_empty(self.axis.size, mine.numel())
            dist.all_gather_into_tensor(whole.view(-1), mine, group=self.axis.group)
        else:
            whole = mine.unsqueeze(0)
        for parameter, share in zip(self._parameters, self._shares, strict=True):
            rows = whole[:, share.start : share.start + share.padded].reshape(-1)
            parameter.view(-1).copy_(rows[: parameter.numel()])

    def _reduce(self) -> Tensor:
        """The rank's share of the summed gradient, laid out as its state."""
        by_rank = torch.cat(
            [
                _padded(gradient, self.axis.size * share.padded).view(self.axis.size, share.padded)
                for gradient, share in zip(self._gradients, self._shares, strict=True)
            ],
            dim=1,
        )
        if self.axis.size == 1:
            return by_rank[0]
        mine = by_rank.new_empty(by_rank.shape[1])
        dist.reduce_scatter_tensor(mine, by_rank.view(-1), group=self.axis.group)
        return mine

    def _norm(self, gradient: Tensor) -> float:
        """Norm over all parameters: each one's sum of squares, then their sum in name order in fp64."""
        parts = gradient.split([share.padded for share in self._shares])
        squares = torch.stack(torch._foreach_norm(list(parts))).double().square()
        return math.sqrt(float(sum_over(squares, self.axis).sum()))


def _shares(stage: Stage, axis: Axis) -> list[_Share]:
    """Every parameter's share of this rank: matrices first, so that what is decayed is one slice; then name order."""
    found: list[_Share] = []
    start = 0
    for name, local in sorted(stage.locals.items(), key=lambda item: (not item[1].decays, item[0])):
        total = local.shape[0]
        each = math.ceil(total / axis.size)
        rows = range(min(axis.rank * each, total), min((axis.rank + 1) * each, total))
        found.append(_Share(name, local, rows, start, each * local.pieces[0].cols))
        start += found[-1].padded
    return found


def _owned_pieces(share: _Share) -> list[tuple[Piece, int]]:
    """The owned rows as boxes of global tensors, each with its start in the rank's flat state."""
    found = []
    first = 0
    for piece in share.local.pieces:
        low, high = max(share.rows.start, first), min(share.rows.stop, first + piece.rows)
        if low < high:
            box = replace(piece, row=piece.row + low - first, rows=high - low)
            found.append((box, share.start + (low - share.rows.start) * share.cols))
        first += piece.rows
    return found


def _view_shape(piece: Piece) -> tuple[int, ...]:
    return (piece.rows,) if len(piece.shape) == 1 else (piece.rows, piece.cols)


def _padded(gradient: Tensor, size: int) -> Tensor:
    flat = gradient.reshape(-1)
    return flat if flat.numel() == size else torch.cat([flat, flat.new_zeros(size - flat.numel())])


def _draw(box: Box, seed: int, std: float) -> None:
    piece = box.piece
    if len(piece.shape) == 1:
        box.master.fill_(1.0)
        return
    rows = range(piece.row, piece.row + piece.rows)
    drawn = normal_rows(seed, piece.name, rows, piece.shape[1], std)[:, piece.col : piece.col + piece.cols]
    box.master.copy_(torch.from_numpy(drawn))
