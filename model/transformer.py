"""The model: transformer blocks, and the stage that holds this rank's part of them.

A block is `x + row_parallel(f(column_parallel(norm(x))))`, twice: f is attention, then SwiGLU.

A `Stage` is what one rank holds: its parameters, views of one flat buffer, and its `chunks`, one for each virtual
stage. Chunk c of pipeline rank r is virtual stage c * pp + r and holds the blocks `layout.blocks(layers)[c * pp + r]`;
the first virtual stage holds the embedding too, the last one the final norm and the head. A chunk is called:

    x = chunk(tokens)                            in the first virtual stage
    x = chunk(x)                                 in those between
    loss = chunk(x, targets, step_tokens)        in the last: the root of the graph, an fp64 scalar in nats
    torch.autograd.backward(x, gradient)         adds to `stage.gradients`; the input's gradient is for the stage before

Activations between stages have `stage.boundary(sequences, tokens)` as their shape and `stage.dtype`. With one virtual
stage `stage.loss` does all of it.

B batch    S sequence    s this rank's shard of it, or all    R = B S rows    H width    V this rank's vocabulary
"""

from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from model.collectives import all_gather, reduce_from_tp_region
from model.documents import document_starts, loss_weights
from model.kernels import Heads, Kernels, Positions, positions
from model.layers import (
    SAVED_ACTIVATIONS,
    SavedActivations,
    SubLayer,
    SubLayerWeights,
    attention,
    block,
    embedding,
    head,
    recomputed,
)
from model.loss import cross_entropy
from model.mesh import Axis, Mesh
from model.parameters import LocalParameter, flat_layout, local_pieces, of_modules, shard_range
from model.tensor_parallel import ParallelLinears
from specs.layout import Layout
from specs.model import ModelSpec

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
"""Parameters and activations. fp64 is not for training: it tells rounding from mistakes in tests of many steps."""
WHOLE = Layout(dp=1, pp=1, tp=1, sequence_parallel=False, micro_batch_sequences=1, recompute="none")
"""One device, no activation recomputation."""


class Block(nn.Module):
    """One transformer block on its tensor-parallel axis."""

    norm_1: Tensor
    qkv: Tensor
    out: Tensor
    norm_2: Tensor
    gate_up: Tensor
    down: Tensor

    def __init__(
        self, spec: ModelSpec, tp: int, linears: ParallelLinears, kernels: Kernels, saved: SavedActivations
    ) -> None:
        super().__init__()
        self._saved, self._kernels = saved, kernels
        self._layer = partial(
            SubLayer, linears=linears, kernels=kernels, eps=spec.norm_eps, recompute_norm=not saved.norms
        )
        self._heads = (spec.heads // tp, spec.kv_heads // tp, spec.head_dim)
        self._feed = self._layer(kernels.gate)

    def forward(self, x_BsH: Tensor, at: Positions) -> Tensor:
        """x + row_parallel(f(column_parallel(norm(x)))), with f attention, then SwiGLU."""
        heads = Heads(len(x_BsH), at.cos_KS.shape[1], *self._heads)
        attend = attention(self._kernels, heads, at)
        if not self._saved.attention:
            attend = recomputed(attend)
        weights = (
            SubLayerWeights(self.norm_1, self.qkv, self.out),
            SubLayerWeights(self.norm_2, self.gate_up, self.down),
        )
        return block(x_BsH, (self._layer(attend), self._feed), weights, self._saved.sub_layers)


class StageHooks(Protocol):
    """What is called around a stage's passes. A module is one of `model.parameters.module_of`."""

    def before_forward(self, module: str) -> None:
        """Before a forward pass through a module: returns when its weights are there."""

    def after_backward(self, module: str) -> None:
        """After a backward pass through a module, except the embedding: its weights' gradients are accumulated."""


class Stage(nn.Module):
    """The whole model, or this rank's part of it under the same names.

    Weights are NaN until they are set, by the optimizer. Gradients are accumulated in fp32 (fp64 in fp64) in the
    parameters' `grad`, which are views of `gradients` as the parameters are views of `weights`. ValueError for a
    layout that the model cannot be cut by, or that is not the mesh's."""

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
        end_of_document: int | None = None,
    ) -> None:
        """`end_of_document`: the token id behind which another document begins, of which attention sees nothing before
        its beginning; None joins documents."""
        super().__init__()
        _check(spec, layout, mesh)
        self.spec, self.mesh, self.layout, self.kernels = spec, mesh, layout, kernels
        self.end_of_document = end_of_document
        self.dtype = DTYPES[precision]
        self.vocab = shard_range(spec.vocab, mesh.tp)
        self.linears = ParallelLinears(
            mesh.tp, layout.sequence_parallel, kernels.linear, _processors(device, mesh.tp)
        )
        cuts = layout.blocks(spec.layers)[mesh.pp.rank :: mesh.pp.size]
        made = partial(Block, spec, mesh.tp.size, self.linears, kernels, SAVED_ACTIVATIONS[layout.recompute])
        self.blocks = nn.ModuleDict({str(index): made() for cut in cuts for index in cut})
        self.chunks = [Chunk(self, blocks) for blocks in cuts]
        modules = [module for chunk in self.chunks for module in chunk.modules]
        self.local_parameters = flat_layout(of_modules(local_pieces(spec, mesh.tp), modules), mesh.dp.size)
        elements = max(local.stop for local in self.local_parameters.values())
        self.weights = torch.full((elements,), torch.nan, dtype=self.dtype, device=device)
        summed = torch.promote_types(self.dtype, torch.float32)
        self.gradients = torch.zeros(elements, dtype=summed, device=device)
        for path, local in self.local_parameters.items():
            self._register(path, local)
        self.hooks: StageHooks | None = None
        self.positions = positions(spec.head_dim, spec.context, spec.rope_theta, self.dtype, device)

    def _register(self, path: str, local: LocalParameter) -> None:
        owner, _, name = path.rpartition(".")
        parameter = nn.Parameter(local.of(self.weights))
        parameter.grad_dtype = self.gradients.dtype
        parameter.grad = local.of(self.gradients)
        self.get_submodule(owner).register_parameter(name, parameter)

    def boundary(self, sequences: int, tokens: int) -> tuple[int, int, int]:
        """Shape of the activations between stages, for sequences of so many tokens."""
        cut = self.mesh.tp.size if self.layout.sequence_parallel else 1
        return sequences, tokens // cut, self.spec.width

    def loss(self, tokens_BS: Tensor, targets_BS: Tensor, step_tokens: float) -> Tensor:
        """Sum of the tokens' cross-entropies over `step_tokens`, an fp64 scalar in nats, the root of the graph.

        For a stage that is the whole depth of the model.
        """
        (chunk,) = self.chunks
        return chunk(tokens_BS, targets_BS, step_tokens, tokens_BS)

    def logits(self, tokens_BS: Tensor) -> Tensor:
        """Logits of every position in this rank's part of the vocabulary, (B, S, V), in the stage's precision.

        For a stage that is the whole depth of the model. Sequences may be shorter than the context.
        """
        (chunk,) = self.chunks
        return chunk.logits(chunk.activations(tokens_BS, tokens_BS))


class Chunk:
    """One virtual stage: blocks that follow each other, with embedding and head where it has them."""

    def __init__(self, stage: Stage, blocks: range) -> None:
        self._stage = stage
        self.blocks = blocks
        self.first, self.last = blocks.start == 0, blocks.stop == stage.spec.layers

    @property
    def modules(self) -> list[str]:
        """What it holds, in order of depth (see `model.parameters.module_of`)."""
        within = [f"blocks.{index}" for index in self.blocks]
        return ["embedding"] * self.first + within + ["head"] * self.last

    def __call__(
        self,
        x: Tensor,
        targets_BS: Tensor | None = None,
        step_tokens: float = 1,
        tokens_BS: Tensor | None = None,
        ends_N: Tensor | None = None,
    ) -> Tensor:
        """Activations from tokens (B, S) or the activations before; in the last chunk the loss, given its targets.

        Where attention stays within documents, every chunk needs `tokens_BS`, which say where these end. With `ends_N`,
        `Positions.ends_N` of these tokens, a GPU need not be waited for."""
        x = self.activations(x, tokens_BS, ends_N)
        if not self.last:
            return x
        if targets_BS is None:
            raise ValueError("the last stage computes the loss and needs targets")
        stage, logits_RV = self._stage, self.logits(x).flatten(0, 1)
        column_R = targets_BS.reshape(-1) - stage.vocab.start
        weight_R = None
        if stage.end_of_document is not None and tokens_BS is not None:
            weight_R = loss_weights(tokens_BS, stage.end_of_document).flatten().to(stage.gradients.dtype)
        return cross_entropy(logits_RV, column_R, step_tokens, stage.mesh.tp, stage.kernels, weight_R)

    def activations(self, x: Tensor, tokens_BS: Tensor | None = None, ends_N: Tensor | None = None) -> Tensor:
        """What the blocks make of tokens (in the first chunk) or of the activations before, (B, s, H)."""
        stage = self._stage
        cut = stage.mesh.tp.size if stage.layout.sequence_parallel and not self.first else 1
        at = stage.positions.first(x.shape[1] * cut)
        if stage.end_of_document is not None:
            if tokens_BS is None:
                raise ValueError("attention within documents needs the tokens, which say where these end")
            at = at._replace(start_BS=document_starts(tokens_BS, stage.end_of_document), ends_N=ends_N)
        if self.first:
            x = self._embedded(x)
        for index in self.blocks:
            x = stage.blocks[str(index)](self._with_hooks(f"blocks.{index}", x), at)
        return x

    def _with_hooks(self, module: str, x: Tensor) -> Tensor:
        """The input of a module. It has its gradient when backward through that module is done."""
        hooks = self._stage.hooks
        if hooks is not None:
            hooks.before_forward(module)
            if x.requires_grad:
                x.register_hook(lambda _: hooks.after_backward(module))
        return x

    def _embedded(self, tokens_BS: Tensor) -> Tensor:
        """The tokens' rows of the embedding, of which each tensor-parallel rank holds a shard."""
        stage, tp = self._stage, self._stage.mesh.tp
        self._with_hooks("embedding", tokens_BS)
        if tp.size == 1:
            return embedding(tokens_BS, stage.embedding)
        row_BS, held_BS = local_rows(tokens_BS, stage.vocab)
        x_BSH = embedding(row_BS, stage.embedding) * held_BS.unsqueeze(2)
        return reduce_from_tp_region(x_BSH, tp, stage.layout.sequence_parallel)

    def logits(self, x_BsH: Tensor) -> Tensor:
        """Logits of the last activations in this rank's part of the vocabulary, (B, S, V)."""
        stage, x_BsH = self._stage, self._with_hooks("head", x_BsH)
        return head(x_BsH, stage.norm, stage.head, stage.spec.norm_eps, stage.linears, stage.kernels)


def local_rows(tokens_BS: Tensor, vocab: range) -> tuple[Tensor, Tensor]:
    """The tokens' rows in this rank's part of the vocabulary, and which of them it holds.

    Tokens of other ranks are spread over all rows, to whose gradients they add zeros: if they shared one, its gradient,
    which is summed one by one where sums are deterministic, would take longer than all others.
    """
    row_BS = tokens_BS - vocab.start
    return row_BS % len(vocab), (row_BS >= 0) & (row_BS < len(vocab))


def _processors(device: str, tp: Axis) -> int | None:
    """Of a GPU, the fewest of the ranks', so that all cut a multiplication alike; None on a CPU."""
    if torch.device(device).type != "cuda":
        return None
    mine = torch.tensor(torch.cuda.get_device_properties(device).multi_processor_count, device=device)
    return int(all_gather(mine, tp).min()) if tp.size > 1 else int(mine)


def _check(spec: ModelSpec, layout: Layout, mesh: Mesh) -> None:
    problems = layout.problems_of_shape(spec)
    if (mesh.pp.size, mesh.tp.size) != (layout.pp, layout.tp):
        problems.append(
            f"the mesh has pp {mesh.pp.size} and tp {mesh.tp.size}, not pp {layout.pp} and tp {layout.tp}"
        )
    if mesh.tp.size > spec.vocab:
        problems.append(f"a vocabulary of {spec.vocab} cannot be cut for tp {mesh.tp.size}")
    if problems:
        raise ValueError(problems[0])
