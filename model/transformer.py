"""The model: blocks of `x + leave(f(enter(norm(x))))`, twice, and the stage that holds this rank's part of them.

A `Stage` is what one rank holds: its parameters, views of one flat buffer, and its `chunks`, one for each virtual
stage. Chunk c of pipeline rank r is virtual stage c * pp + r and holds the blocks `layout.blocks(layers)[c * pp + r]`;
the first virtual stage holds the embedding too, the last one the final norm and the head. A chunk is called:

    x = chunk(tokens)                            in the first virtual stage
    x = chunk(x)                                 in those between
    loss = chunk(x, targets, step_tokens)        in the last: the root of the graph, an fp64 scalar in nats
    torch.autograd.backward(x, gradient)         adds to `stage.gradients`; the input's own gradient goes to the stage before

Activations between stages have `stage.boundary(sequences, tokens)` as their shape and `stage.dtype`. With one virtual
stage `stage.loss` does all of it.

B batch    S sequence    R = B S rows    H width    V vocabulary
"""

import torch
from torch import Tensor, nn

from model.collectives import enter, leave
from model.kernels import Kernels, Positions, positions
from model.layers import attention, embedding, linear, rms_norm, swiglu
from model.loss import cross_entropy
from model.mesh import Axis, Mesh
from model.parameters import Local, held_by, local_pieces, place
from specs.layout import Layout
from specs.model import ModelSpec

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
"""Parameters and activations. fp64 is not for training: it tells rounding from mistakes in tests of many steps."""
WHOLE = Layout(dp=1, pp=1, tp=1, sequence_parallel=False, micro_batch_sequences=1, recompute="none")
"""Nothing is cut, nothing is computed twice."""


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
        x = x + leave(self._attend(enter(rms_norm(x, self.norm_1, eps, self.kernels), tp), at), tp)
        return x + leave(self._feed(enter(rms_norm(x, self.norm_2, eps, self.kernels), tp)), tp)

    def _attend(self, x_BSH: Tensor, at: Positions) -> Tensor:
        return attention(x_BSH, self.qkv, self.out, self.heads, at, self.kernels)

    def _feed(self, x_BSH: Tensor) -> Tensor:
        return swiglu(x_BSH, self.gate_up, self.down, self.kernels)


class Stage(nn.Module):
    """The whole model, or this rank's part of it under the same names.

    Weights are NaN until they are set, by the optimizer. Gradients are summed in fp32 (fp64 in fp64) into the
    parameters' `grad`, which lie in `gradients` as the parameters lie in `weights`. ValueError for a layout that the
    model cannot be cut by, or that is not the mesh's.
    """

    embedding: Tensor
    norm: Tensor
    head: Tensor

    def __init__(
        self,
        spec: ModelSpec,
        *,
        precision: str,
        mesh: Mesh,
        kernels: Kernels,
        device: str,
        layout: Layout = WHOLE,
    ) -> None:
        super().__init__()
        _check(spec, layout, mesh)
        self.spec, self.mesh, self.layout, self.kernels = spec, mesh, layout, kernels
        self.dtype = DTYPES[precision]
        cuts = layout.blocks(spec.layers)[mesh.pp.rank :: mesh.pp.size]
        self.blocks = nn.ModuleDict({str(i): Block(spec, mesh.tp, kernels) for cut in cuts for i in cut})
        self.chunks = [Chunk(self, blocks) for blocks in cuts]
        owners = [owner for chunk in self.chunks for owner in chunk.owners]
        self.locals = place(held_by(local_pieces(spec, mesh.tp), owners), mesh.dp.size)
        elements = max(local.stop for local in self.locals.values())
        self.weights = torch.full((elements,), torch.nan, dtype=self.dtype, device=device)
        summed = torch.promote_types(self.dtype, torch.float32)
        self.gradients = torch.zeros(elements, dtype=summed, device=device)
        for path, local in self.locals.items():
            self._register(path, local)
        self.positions = positions(spec.head_dim, spec.context, spec.rope_theta, self.dtype, device)

    def _register(self, path: str, local: Local) -> None:
        owner, _, name = path.rpartition(".")
        parameter = nn.Parameter(local.of(self.weights))
        parameter.grad_dtype = self.gradients.dtype
        parameter.grad = local.of(self.gradients)
        self.get_submodule(owner).register_parameter(name, parameter)

    def boundary(self, sequences: int, tokens: int) -> tuple[int, int, int]:
        """Shape of the activations between stages, for sequences of so many tokens."""
        cut = self.mesh.tp.size if self.layout.sequence_parallel else 1
        return sequences, tokens // cut, self.spec.width

    def loss(self, tokens_BS: Tensor, targets_BS: Tensor, step_tokens: int) -> Tensor:
        """Sum of the tokens' cross-entropies over `step_tokens`, an fp64 scalar in nats, the root of the graph.

        For a stage that is the whole depth of the model.
        """
        (chunk,) = self.chunks
        return chunk(tokens_BS, targets_BS, step_tokens)

    def logits(self, tokens_BS: Tensor) -> Tensor:
        """Logits of every position in this rank's part of the vocabulary, (B, S, V), in the stage's precision.

        For a stage that is the whole depth of the model. Sequences may be shorter than the context.
        """
        (chunk,) = self.chunks
        return chunk.logits(chunk.activations(tokens_BS))


class Chunk:
    """One virtual stage: blocks that follow each other, and what stands before the first and behind the last."""

    def __init__(self, stage: Stage, blocks: range) -> None:
        self._stage = stage
        self.blocks = blocks
        self.first, self.last = blocks.start == 0, blocks.stop == stage.spec.layers

    @property
    def owners(self) -> list[str]:
        """What it holds, in order of depth (see `model.parameters.owner`)."""
        within = [f"blocks.{index}" for index in self.blocks]
        return ["embedding"] * self.first + within + ["head"] * self.last

    def __call__(self, x: Tensor, targets_BS: Tensor | None = None, step_tokens: int = 1) -> Tensor:
        """Activations from tokens (B, S) or the activations before; in the last chunk the loss, given its targets."""
        x = self.activations(x)
        if not self.last:
            return x
        if targets_BS is None:
            raise ValueError("the last stage computes the loss; give its targets")
        logits_RV = self.logits(x).flatten(0, 1)
        stage = self._stage
        return cross_entropy(logits_RV, targets_BS.reshape(-1), step_tokens, stage.mesh.tp, stage.kernels)

    def activations(self, x: Tensor) -> Tensor:
        """What the blocks make of tokens (in the first chunk) or of the activations before, (B, S, H)."""
        stage = self._stage
        at = stage.positions.first(x.shape[1])
        if self.first:
            x = embedding(x, stage.embedding)
        for index in self.blocks:
            x = stage.blocks[str(index)](x, at)
        return x

    def logits(self, x_BSH: Tensor) -> Tensor:
        """Logits of the last activations."""
        stage = self._stage
        normed_BSH = rms_norm(x_BSH, stage.norm, stage.spec.norm_eps, stage.kernels)
        return linear(normed_BSH, stage.head, stage.kernels)


def _check(spec: ModelSpec, layout: Layout, mesh: Mesh) -> None:
    problems = layout.problems_of_shape(spec)
    if (mesh.pp.size, mesh.tp.size) != (layout.pp, layout.tp):
        problems.append(
            f"the mesh has pp {mesh.pp.size} and tp {mesh.tp.size}, not pp {layout.pp} and tp {layout.tp}"
        )
    if mesh.tp.size > 1:
        problems.append("tensor parallel does not run yet; write tp: 1")
    if problems:
        raise ValueError(problems[0])
