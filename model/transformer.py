"""The model: blocks of `x + leave(f(enter(norm(x))))`, twice, and the stage that holds this rank's part of them.

Local parameters are views of one flat buffer, and so are their gradients. What goes through one matrix multiplication
is one local parameter (q, k and v; gate and up), and its `pieces` say which rows of which globally named tensors it holds.
Names are those of Hugging Face's Llama, and blocks keep their global index, so a name never depends on the layout.

    S sequence    B batch    H width    V vocabulary
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.collectives import enter, leave
from model.kernels import Kernels
from model.layers import attention, rope_tables, swiglu
from model.loss import cross_entropy
from model.mesh import Axis, Mesh
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


@dataclass(frozen=True)
class Local:
    """One parameter of this rank: its pieces, stacked by rows."""

    pieces: tuple[Piece, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols), or (rows,) for a vector."""
        rows = sum(piece.rows for piece in self.pieces)
        return (rows,) if len(self.pieces[0].shape) == 1 else (rows, self.pieces[0].cols)

    @property
    def decays(self) -> bool:
        """Matrices are decayed, norms' gains are not."""
        return len(self.pieces[0].shape) == 2


def _rows(name: str, rows: int, cols: int, tp: Axis) -> Piece:
    """This rank's rows of a matrix that is split by output (column-parallel in Megatron's words)."""
    return Piece(name, (rows, cols), tp.rank * rows // tp.size, 0, rows // tp.size, cols)


def _cols(name: str, rows: int, cols: int, tp: Axis) -> Piece:
    """This rank's columns of a matrix that is split by input (row-parallel)."""
    return Piece(name, (rows, cols), 0, tp.rank * cols // tp.size, rows, cols // tp.size)


def _vector(name: str, size: int) -> Piece:
    return Piece(name, (size,), 0, 0, size, 1)


def block_locals(spec: ModelSpec, index: int, tp: Axis) -> dict[str, Local]:
    """Parameters of one block by their attribute's name."""
    at, d, kv = f"model.layers.{index}.", spec.width, spec.kv_heads * spec.head_dim
    return {
        "norm_1": Local((_vector(at + "input_layernorm.weight", d),)),
        "qkv": Local(
            (
                _rows(at + "self_attn.q_proj.weight", d, d, tp),
                _rows(at + "self_attn.k_proj.weight", kv, d, tp),
                _rows(at + "self_attn.v_proj.weight", kv, d, tp),
            )
        ),
        "out": Local((_cols(at + "self_attn.o_proj.weight", d, d, tp),)),
        "norm_2": Local((_vector(at + "post_attention_layernorm.weight", d),)),
        "gate_up": Local(
            (
                _rows(at + "mlp.gate_proj.weight", spec.ffn, d, tp),
                _rows(at + "mlp.up_proj.weight", spec.ffn, d, tp),
            )
        ),
        "down": Local((_cols(at + "mlp.down_proj.weight", d, spec.ffn, tp),)),
    }


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
        self.heads, self.kv_heads = spec.heads // tp.size, spec.kv_heads // tp.size

    def forward(self, x_SBH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x + leave(f(enter(norm(x)))), with f attention, then SwiGLU."""
        norm, tp = self.kernels.rms_norm, self.tp
        x_SBH = x_SBH + leave(self._attend(enter(norm(x_SBH, self.norm_1, self.eps), tp), cos, sin), tp)
        return x_SBH + leave(
            swiglu(enter(norm(x_SBH, self.norm_2, self.eps), tp), self.gate_up, self.down), tp
        )

    def _attend(self, x_SBH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return attention(x_SBH, self.qkv, self.out, cos, sin, self.heads, self.kv_heads, self.kernels)


class Stage(nn.Module):
    """The whole model, or this rank's part of it under the same names. Weights are zero until they are set.

    ValueError for a mesh with pipeline or tensor parallel ranks, which the engine does not run yet.
    """

    embedding: Tensor
    norm: Tensor
    head: Tensor

    def __init__(self, spec: ModelSpec, *, precision: str, mesh: Mesh, kernels: Kernels, device: str) -> None:
        super().__init__()
        if mesh.pp.size > 1 or mesh.tp.size > 1:
            raise ValueError("only data parallel runs for now; write pp: 1 and tp: 1")
        self.spec, self.kernels, self.mesh = spec, kernels, mesh
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.blocks = nn.ModuleList(Block(spec, mesh.tp, kernels) for _ in range(spec.layers))
        cos, sin = rope_tables(spec.context, spec.head_dim, spec.rope_theta)
        self.register_buffer("cos", cos.to(device, self.dtype), persistent=False)
        self.register_buffer("sin", sin.to(device, self.dtype), persistent=False)
        self.locals: dict[str, Local] = {}
        self._place_parameters(device)

    def _place_parameters(self, device: str) -> None:
        """Every local parameter as a view of one flat buffer; gradients accumulate in views of an fp32 one."""
        tp, spec = self.mesh.tp, self.spec
        owners: list[tuple[nn.Module, str, Local]] = [
            (self, "embedding", Local((_rows("model.embed_tokens.weight", spec.vocab, spec.width, tp),)))
        ]
        for index, block in enumerate(self.blocks):
            owners += [(block, name, local) for name, local in block_locals(spec, index, tp).items()]
        owners.append((self, "norm", Local((_vector("model.norm.weight", spec.width),))))
        owners.append((self, "head", Local((_rows("lm_head.weight", spec.vocab, spec.width, tp),))))
        sizes = [math.prod(local.shape) for _, _, local in owners]
        flat = torch.zeros(sum(sizes), dtype=self.dtype, device=device)
        self.flat_gradient = torch.zeros(sum(sizes), dtype=torch.float32, device=device)
        views = zip(flat.split(sizes), self.flat_gradient.split(sizes), strict=True)
        self.gradients: dict[str, Tensor] = {}
        for (owner, name, local), (view, gradient) in zip(owners, views, strict=True):
            parameter = nn.Parameter(view.view(local.shape))
            owner.register_parameter(name, parameter)
            full = local.pieces[0].name
            self.locals[full], self.gradients[full] = local, gradient.view(local.shape)
            _accumulate(parameter, self.gradients[full])

    def parameter_of(self, full: str) -> nn.Parameter:
        """The local parameter whose first piece has this name."""
        return self._by_name()[full]

    def _by_name(self) -> dict[str, nn.Parameter]:
        inside = [p for block in self.blocks for p in block.parameters(recurse=False)]
        ordered = [self.embedding, *inside, self.norm, self.head]
        return dict(zip(self.locals, ordered, strict=True))  # type: ignore[arg-type]

    def loss(self, tokens_BS: Tensor, targets_BS: Tensor, step_tokens: int) -> Tensor:
        """Sum of the tokens' cross-entropies over `step_tokens`, an fp64 scalar in nats, the root of the graph."""
        logits_RV = self.logits(tokens_BS).flatten(0, 1)
        return cross_entropy(logits_RV, targets_BS.t().reshape(-1), step_tokens)

    def logits(self, tokens_BS: Tensor) -> Tensor:
        """Logits of every position, (S, B, V), in the stage's precision."""
        x_SBH = F.embedding(tokens_BS.t(), self.embedding)
        for block in self.blocks:
            x_SBH = block(x_SBH, self.cos, self.sin)
        return F.linear(self.kernels.rms_norm(x_SBH, self.norm, self.spec.norm_eps), self.head)


def _accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Gradients of the parameter add up in the fp32 view: as its own `.grad` where it is fp32, by a hook where not."""
    if parameter.dtype == torch.float32:
        parameter.grad = gradient
        return
    parameter.register_post_accumulate_grad_hook(_adder(gradient))


def _adder(gradient: Tensor) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None  # the hook runs right after it was set
        gradient.add_(parameter.grad)
        parameter.grad = None

    return add
