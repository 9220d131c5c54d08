"""The parameters of a rank: which rows and columns of which globally named tensors, and their place in the buffers.

What goes through one matrix multiplication is one parameter (q, k and v; gate and up), and its `pieces` say which rows
of which tensors it holds. Names are those of Hugging Face's Llama, and blocks keep their global index, so a name never
depends on the layout. Tensor-parallel ranks hold shards of the heads, of the feed-forward's inner width and of the
vocabulary. The vocabulary may be any: shards differ by one row where it does not divide, and nothing is padded.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from model.mesh import Axis
from specs.model import ModelSpec


@dataclass(frozen=True)
class Piece:
    """A box of a globally named tensor: rows [row, row + rows), columns [col, col + cols). A vector has one column."""

    name: str
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    row: int
    col: int
    rows: int
    cols: int

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where it begins, by dimension."""
        return (self.row, self.col)[: len(self.shape)]


@dataclass(frozen=True)
class LocalParameter:
    """One parameter of this rank: its pieces, stacked by rows, at a place in the flat buffers."""

    pieces: tuple[Piece, ...]
    start: int
    """Index of its first element."""
    padded_rows: int
    """Its rows and those that fill up to a multiple of the data-parallel ranks."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols), or (rows,) for a vector; without padding."""
        rows = sum(piece.rows for piece in self.pieces)
        return (rows,) if len(self.pieces[0].shape) == 1 else (rows, self.cols)

    @property
    def cols(self) -> int:
        """Elements of a row."""
        return self.pieces[0].cols

    @property
    def stop(self) -> int:
        """Where the next parameter starts."""
        return self.start + self.padded_rows * self.cols

    @property
    def decays(self) -> bool:
        """Matrices are decayed, norms' gains are not."""
        return len(self.pieces[0].shape) == 2

    @property
    def split(self) -> bool:
        """Matrices are split over tensor-parallel ranks, norms' gains are on all of them."""
        return self.decays

    def of(self, flat: Tensor) -> Tensor:
        """Its view of a flat buffer, without padding."""
        return flat[self.start : self.start + math.prod(self.shape)].view(self.shape)


def local_pieces(spec: ModelSpec, tp: Axis) -> dict[str, tuple[Piece, ...]]:
    """The pieces of every parameter of a whole model on this rank, by the path of its attribute, in order of depth."""
    found: dict[str, tuple[Piece, ...]] = {}
    found["embedding"] = (_rows("model.embed_tokens.weight", spec.vocab, spec.width, tp),)
    for index in range(spec.layers):
        found |= {f"blocks.{index}.{name}": held for name, held in _block_pieces(spec, index, tp).items()}
    found["norm"] = (_vector("model.norm.weight", spec.width),)
    found["head"] = (_rows("lm_head.weight", spec.vocab, spec.width, tp),)
    return found


def module_of(path: str) -> str:
    """The module that a parameter belongs to: `embedding`, `blocks.<index>`, or `head`, which has the last norm too."""
    return path.rpartition(".")[0] or ("head" if path == "norm" else path)


def flat_layout(held: dict[str, tuple[Piece, ...]], dp: int) -> dict[str, LocalParameter]:
    """The parameters one after another: those that decay first, each part in order of depth.

    Rows are padded to a multiple of `dp`, so that each data-parallel rank owns as many.
    """
    locals_, start = {}, 0
    for path, pieces in sorted(held.items(), key=lambda item: -len(item[1][0].shape)):
        rows = sum(piece.rows for piece in pieces)
        locals_[path] = LocalParameter(pieces, start, math.ceil(rows / dp) * dp)
        start = locals_[path].stop
    return locals_


def of_modules(pieces: dict[str, tuple[Piece, ...]], modules: Iterable[str]) -> dict[str, tuple[Piece, ...]]:
    """The parameters of these modules (see `module_of`)."""
    chosen = set(modules)
    return {path: held for path, held in pieces.items() if module_of(path) in chosen}


def _block_pieces(spec: ModelSpec, index: int, tp: Axis) -> dict[str, tuple[Piece, ...]]:
    attend, feed = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
    d, kv, ffn = spec.width, spec.kv_heads * spec.head_dim, spec.ffn
    return {
        "norm_1": (_vector(f"model.layers.{index}.input_layernorm.weight", d),),
        "qkv": tuple(
            _rows(f"{attend}{x}_proj.weight", rows, d, tp) for x, rows in (("q", d), ("k", kv), ("v", kv))
        ),
        "out": (_cols(attend + "o_proj.weight", d, d, tp),),
        "norm_2": (_vector(f"model.layers.{index}.post_attention_layernorm.weight", d),),
        "gate_up": tuple(_rows(f"{feed}{x}_proj.weight", ffn, d, tp) for x in ("gate", "up")),
        "down": (_cols(feed + "down_proj.weight", d, ffn, tp),),
    }


def shard_range(size: int, axis: Axis) -> range:
    """This rank's shard of `size` items, as even as possible."""
    return range(axis.rank * size // axis.size, (axis.rank + 1) * size // axis.size)


def _rows(name: str, rows: int, cols: int, tp: Axis) -> Piece:
    """This rank's rows of a ColumnParallel matrix, which is split by output."""
    mine = shard_range(rows, tp)
    return Piece(name, (rows, cols), mine.start, 0, len(mine), cols)


def _cols(name: str, rows: int, cols: int, tp: Axis) -> Piece:
    """This rank's columns of a RowParallel matrix, which is split by input."""
    mine = shard_range(cols, tp)
    return Piece(name, (rows, cols), 0, mine.start, rows, len(mine))


def _vector(name: str, size: int) -> Piece:
    return Piece(name, (size,), 0, 0, size, 1)
