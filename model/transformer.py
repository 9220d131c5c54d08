"""The model: blocks of `x + leave(f(enter(norm(x))))`, twice, and the stage that holds this rank's part of them.

Parameters are views of one flat buffer, and so are their gradients. What goes through one matrix multiplication is one
parameter (q, k and v; gate and up), and its `pieces` say which rows of which globally named tensors it holds. Names are
those of Hugging Face's Llama, and blocks keep their global index, so a name never depends on the layout.

B batch    S sequence    R = B S rows    H width    V vocabulary
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.collectives import enter, leave
from model.kernels import Kernels, Positions, positions
from model.layers import attention, embedding, linear, rms_norm, swiglu
from model.loss import cross_entropy
from model.mesh import Axis, Mesh
from specs.model import ModelSpec

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
"""Parameters and activations. fp64 is not for training: it tells rounding from mistakes in tests of many steps."""


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


@dataclass(frozen=True)
class Local:
    """One parameter of this rank: its pieces, stacked by rows, at a place in the flat buffers."""

    pieces: tuple[Piece, ...]
    start: int
    """Where its first element lies."""
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
        """Where its last element ends, padding included."""
        return self.start + self.padded_rows * self.cols

    @property
    def decays(self) -> bool:
        """Matrices are decayed, norms' gains are not."""
        return len(self.pieces[0].shape) == 2

    def of(self, flat: Tensor) -> Tensor:
        """Its view of a flat buffer, without padding."""
        return flat[self.start : self.start + math.prod(self.shape)].view(self.shape)


def local_pieces(spec: ModelSpec, tp: Axis) -> dict[str, tuple[Piece, ...]]:
    """What the parameters of this rank hold, by the path of their attribute."""
    found: dict[str, tuple[Piece, ...]] = {}
    found["embedding"] = (_rows("model.embed_tokens.weight", spec.vocab, spec.width, tp),)
    for index in range(spec.layers):
        found |= {f"blocks.{index}.{name}": held for name, held in _block_pieces(spec, index, tp).items()}
    found["norm"] = (_vector("model.norm.weight", spec.width),)
    found["head"] = (_rows("lm_head.weight", spec.vocab, spec.width, tp),)
    return found


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


def _rows(name: str, rows: int, cols: int, tp: Axis) -> Piece:
    """This rank's rows of a matrix that is split by output (column-parallel in Megatron's words)."""
    return Piece(name, (rows, cols), tp.rank * rows // tp.size, 0, rows // tp.size, cols)


def _cols(name: str, rows: int, cols: int, tp: Axis) -> Piece:
    """This rank's columns of a matrix that is split by input (row-parallel)."""
    return Piece(name, (rows, cols), 0, tp.rank * cols // tp.size, rows, cols // tp.size)


def _vector(name: str, size: int) -> Piece:
    return Piece(name, (size,), 0, 0, size, 1)


def place(held: dict[str, tuple[Piece, ...]], dp: int) -> dict[str, Local]:
    """The parameters one after another: those that decay first, each part by the names of their first pieces.

    Rows are padded to a multiple of `dp`, so that each data-parallel rank owns as many.
    """
    locals_, start = {}, 0
    for path, pieces in sorted(held.items(), key=lambda item: (-len(item[1][0].shape), item[1][0].name)):
        rows = sum(piece.rows for piece in pieces)
        locals_[path] = Local(pieces, start, math.ceil(rows / dp) * dp)
        start = locals_[path].stop
    return locals_


class Block(nn.Module):
    """One transformer block on its tensor-parallel axis."""

    norm_1: Tensor
    qkv: Tensor
    out: Tensor
    norm_2: Tensor
    gate_up: Tensor
    down: Tensor

    def __init__(self, spec: ModelSpec, tp: Axis, kernels: Kernels) -> None:
        super().__init__()
        self.eps, self.tp, self.kernels = spec.norm_eps, tp, kernels
        self.heads = (spec.heads // tp.size, spec.kv_heads // tp.size, spec.head_dim)

    def forward(self, x_BSH: Tensor, at: Positions) -> Tensor:
        """x + leave(f(enter(norm(x)))), with f attention, then SwiGLU."""
        x, tp, eps = x_BSH, self.tp, self.eps
        x = x + leave(self._attend(enter(rms_norm(x, self.norm_1, eps), tp), at), tp)
        return x + leave(self._feed(enter(rms_norm(x, self.norm_2, eps), tp)), tp)

    def _attend(self, x_BSH: Tensor, at: Positions) -> Tensor:
        return attention(x_BSH, self.qkv, self.out, self.heads, at, self.kernels)

    def _feed(self, x_BSH: Tensor) -> Tensor:
        return swiglu(x_BSH, self.gate_up, self.down, self.kernels)


class Stage(nn.Module):
    """The whole model, or this rank's part of it under the same names.

    Weights are NaN until they are set, by the optimizer. Gradients are summed in fp32 (fp64 in fp64) into the
    parameters' `grad`, which lie in `gradients` as the parameters lie in `weights`. ValueError for a mesh with pipeline
    or tensor parallel ranks, which the engine does not run yet.
    """

    embedding: Tensor
    norm: Tensor
    head: Tensor

    def __init__(self, spec: ModelSpec, *, precision: str, mesh: Mesh, kernels: Kernels, device: str) -> None:
        super().__init__()
        if mesh.pp.size > 1 or mesh.tp.size > 1:
            raise ValueError("only data parallel runs for now; write pp: 1 and tp: 1")
        dtype = DTYPES[precision]
        self.spec, self.mesh = spec, mesh
        self.locals = place(local_pieces(spec, mesh.tp), mesh.dp.size)
        elements = max(local.stop for local in self.locals.values())
        self.weights = torch.full((elements,), torch.nan, dtype=dtype, device=device)
        self.gradients = torch.zeros(elements, dtype=torch.promote_types(dtype, torch.float32), device=device)
        self.blocks = nn.ModuleDict({str(i): Block(spec, mesh.tp, kernels) for i in range(spec.layers)})
        for path, local in self.locals.items():
            self._register(path, local)
        self._positions = positions(spec.head_dim, spec.context, spec.rope_theta, dtype, device)

    def _register(self, path: str, local: Local) -> None:
        owner, _, name = path.rpartition(".")
        parameter = nn.Parameter(local.of(self.weights))
        parameter.grad_dtype = self.gradients.dtype
        parameter.grad = local.of(self.gradients)
        self.get_submodule(owner).register_parameter(name, parameter)

    def loss(self, tokens_BS: Tensor, targets_BS: Tensor, step_tokens: int) -> Tensor:
        """Sum of the tokens' cross-entropies over `step_tokens`, an fp64 scalar in nats, the root of the graph."""
        logits_RV = self.logits(tokens_BS).flatten(0, 1)
        return cross_entropy(logits_RV, targets_BS.reshape(-1), step_tokens, self.mesh.tp)

    def logits(self, tokens_BS: Tensor) -> Tensor:
        """Logits of every position, (B, S, V), in the stage's precision. Sequences may be shorter than the context."""
        at = self._positions.first(tokens_BS.shape[1])
        x_BSH = embedding(tokens_BS, self.embedding)
        for block in self.blocks.values():
            x_BSH = block(x_BSH, at)
        return linear(rms_norm(x_BSH, self.norm, self.spec.norm_eps), self.head)
