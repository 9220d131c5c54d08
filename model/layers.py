"""The layers' maths: tensors in, tensors out. Nothing here knows of ranks or groups.

Each layer's backward is written out, since that is where a step spends its time and memory: it says which activations
are saved, reuses buffers, and adds each weight's gradient straight to `weight.grad` (gradient accumulation over
micro-batches). That buffer must be there before backward, and may be of higher precision than the weight; autograd
itself carries activations only. Its check that no weight changes between forward and backward does not apply: weights
are views of one buffer, into whose other parts an all-gather may still be writing.

A sub-layer is `row_parallel(f(column_parallel(norm(x))))`. Its f has no weights and is a pair of functions, as in
model/kernels; the linear maps are those of model/tensor_parallel.py, which do all communication. An `AsyncTensor` is
waited for after the weights' gradients, which are multiplied meanwhile.

Activation recomputation (activation checkpointing): `SAVED_ACTIVATIONS` says what a block saves for backward; all else
is computed again there.

B batch    s sequence, or this rank's shard of it    R rows    H width    T query heads    G key and value heads
K head size    V vocabulary
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels import Heads, Kernels, Positions
from model.kernels.interfaces import ForwardBackward
from model.tensor_parallel import ParallelLinears


class SubLayerWeights(NamedTuple):
    """A sub-layer's parameters."""

    gain: Tensor
    """Of the norm, (H,)."""
    into: Tensor
    """Column-parallel, (F, H): q, k and v, or gate and up."""
    out: Tensor
    """Row-parallel, (H, F'): o, or down."""


def attention(kernels: Kernels, heads: Heads, at: Positions) -> ForwardBackward:
    """Causal grouped-query attention with rotary positions, from a fused projection ((T + 2 G) K) to (T K), as an f."""

    def forward(qkv_RF: Tensor) -> tuple[Tensor, Any]:
        attended_RF, saved = kernels.attention.forward(qkv_RF, heads, at)
        return attended_RF, (attended_RF, saved)

    def backward(dattended_RF: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        attended_RF, inner_saved = saved
        return kernels.attention.backward(dattended_RF, inner_saved, heads, at), attended_RF

    return ForwardBackward(forward, backward)


def recomputed(f: ForwardBackward) -> ForwardBackward:
    """The same f with activation recomputation (checkpointing): only its input is saved."""

    def forward(projected_RF: Tensor) -> tuple[Tensor, Any]:
        return f.forward(projected_RF.clone())[0], projected_RF  # a clone, since f may overwrite its input

    def backward(dinner_RF: Tensor, projected_RF: Any) -> tuple[Tensor, Tensor]:
        return f.backward(dinner_RF, f.forward(projected_RF)[1])

    return ForwardBackward(forward, backward)


@dataclass(frozen=True)
class SubLayer:
    """row_parallel(f(column_parallel(norm(x + delta)))) and its gradient."""

    f: ForwardBackward
    linears: ParallelLinears
    kernels: Kernels
    eps: float
    recompute_norm: bool
    """Save the norm's input instead of its output, and compute the output again."""

    def forward(
        self, x_BsH: Tensor, delta_BsH: Tensor | None, w: SubLayerWeights
    ) -> tuple[Tensor, Tensor, Any]:
        """x + delta; the sub-layer's result, which is the next delta; what is saved for backward."""
        delta_RH = None if delta_BsH is None else delta_BsH.view(-1, len(w.gain))
        sum_RH, y_RH, saved = self.kernels.norm.forward(
            x_BsH.view(-1, len(w.gain)), delta_RH, w.gain, self.eps
        )
        projected_RF = self.linears.column_parallel(y_RH.view(x_BsH.shape), w.into, self.kernels.linear)
        inner_RF, inner_saved = self.f.forward(projected_RF)
        result_BsH = self.linears.row_parallel(inner_RF, w.out, len(x_BsH))
        normed = (sum_RH, None) if self.recompute_norm else (y_RH, saved)
        return sum_RH.view(x_BsH.shape), result_BsH, (normed, inner_saved)

    def backward(self, dsum_BsH: Tensor, dresult_BsH: Tensor, saved: Any, w: SubLayerWeights) -> Tensor:
        """The gradient of x, which is delta's too."""
        shape, batch, ((y_RH, normed), inner_saved) = dsum_BsH.shape, len(dsum_BsH), saved
        if self.recompute_norm:
            _, y_RH, normed = self.kernels.norm.forward(y_RH, None, w.gain, self.eps)
        dinner_RF, dresult_RH = self.linears.row_parallel_backward(dresult_BsH, w.out)
        dprojected_RF, inner_RF = self.f.backward(dinner_RF, inner_saved)
        whole_input = self.linears.regather(y_RH.view(shape))
        dy = self.linears.column_parallel_backward(dprojected_RF, w.into, batch)
        self.kernels.accumulate(_buffer(w.out), dresult_RH, inner_RF)
        self.kernels.accumulate(_buffer(w.into), dprojected_RF, whole_input.wait().reshape(-1, len(w.gain)))
        dy_RH, dsum_RH = (one.view(-1, len(w.gain)) for one in (dy.wait(), dsum_BsH))
        return self.kernels.norm.backward(dy_RH, dsum_RH, normed, w.gain, _buffer(w.gain)).view(shape)


def _buffer(weight: Tensor) -> Tensor:
    """Where a weight's gradients are accumulated."""
    assert weight.grad is not None
    return weight.grad


class SavedActivations(NamedTuple):
    """What a block saves for its backward pass. The rest is recomputed bitwise (activation checkpointing)."""

    sub_layers: bool
    """The activations of both sub-layers; else the block's input alone."""
    norms: bool
    """The norms' outputs; else their inputs."""
    attention: bool
    """Attention's own activations; else its input, the projection, alone."""


SAVED_ACTIVATIONS = {
    "none": SavedActivations(sub_layers=True, norms=True, attention=True),
    "selective": SavedActivations(sub_layers=True, norms=False, attention=False),
    "full": SavedActivations(sub_layers=False, norms=True, attention=True),
}
"""By `Layout.recompute`, the kind of activation recomputation."""


def embedding(row_BS: Tensor, weight_VH: Tensor) -> Tensor:
    """Rows of the weight, (B, S, H)."""
    return _Embedding.apply(row_BS, weight_VH)  # type: ignore[no-untyped-call,no-any-return]


def block(
    x_BsH: Tensor,
    layers: tuple[SubLayer, SubLayer],
    weights: tuple[SubLayerWeights, SubLayerWeights],
    save_sub_layers: bool,
) -> Tensor:
    """x + row_parallel(f(column_parallel(norm(x)))), twice. Without `save_sub_layers` only x is saved."""
    return _Block.apply(x_BsH, layers, weights, save_sub_layers)  # type: ignore[no-untyped-call,no-any-return]


def head(
    x_BsH: Tensor, gain_H: Tensor, weight_VH: Tensor, eps: float, linears: ParallelLinears, kernels: Kernels
) -> Tensor:
    """column_parallel(norm(x)): logits of every position, (B, S, V), row by row in memory."""
    return _Head.apply(x_BsH, gain_H, weight_VH, eps, linears, kernels)  # type: ignore[no-untyped-call,no-any-return]


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, row_BS: Tensor, weight: Tensor) -> Tensor:
        row_R = row_BS.reshape(-1)
        ctx.row_R, ctx.weight = row_R, weight
        return weight.index_select(0, row_R).view(*row_BS.shape, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        dy_RH = grads[0].reshape(len(ctx.row_R), -1)
        ctx.weight.grad.index_add_(0, ctx.row_R, dy_RH.to(ctx.weight.grad.dtype))
        return None, None


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layers: tuple[SubLayer, SubLayer],
        weights: tuple[SubLayerWeights, SubLayerWeights],
        save_sub_layers: bool,
    ) -> Tensor:
        ctx.layers, ctx.weights = layers, weights
        y, saved = _block_forward(x, layers, weights)
        ctx.x, ctx.saved = (None, saved) if save_sub_layers else (x, None)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (attend, feed), (attend_w, feed_w) = ctx.layers, ctx.weights
        saved = ctx.saved or _block_forward(ctx.x, ctx.layers, ctx.weights)[1]
        ctx.x = ctx.saved = None
        dy = grads[0].contiguous()
        dx = feed.backward(dy, dy, saved.pop(), feed_w)
        return attend.backward(dx, dx, saved.pop(), attend_w), None, None, None


def _block_forward(
    x: Tensor, layers: tuple[SubLayer, SubLayer], weights: tuple[SubLayerWeights, SubLayerWeights]
) -> tuple[Tensor, list[Any]]:
    """A block's result, and what each sub-layer saves for backward."""
    (attend, feed), (attend_w, feed_w) = layers, weights
    x, delta, attended = attend.forward(x, None, attend_w)
    x, delta, fed = feed.forward(x, delta, feed_w)
    return x + delta, [attended, fed]


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        weight: Tensor,
        eps: float,
        linears: ParallelLinears,
        kernels: Kernels,
    ) -> Tensor:
        ctx.linears, ctx.kernels = linears, kernels
        _, y_RH, ctx.saved = kernels.norm.forward(x.view(-1, len(gain)), None, gain, eps)
        ctx.y_BsH, ctx.gain, ctx.weight = y_RH.view(x.shape), gain, weight
        logits_RV = linears.column_parallel(y_RH.view(x.shape), weight, F.linear, even=False)
        return logits_RV.view(len(x), -1, len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gain, weight = ctx.gain, ctx.weight
        (y_BsH, saved), ctx.y_BsH, ctx.saved = (ctx.y_BsH, ctx.saved), None, None
        dlogits_RV = grads[0].view(-1, len(weight))
        whole_input = ctx.linears.regather(y_BsH)
        dy = ctx.linears.column_parallel_backward(dlogits_RV, weight, len(y_BsH))
        ctx.kernels.accumulate(weight.grad, dlogits_RV, whole_input.wait().reshape(-1, len(gain)))
        dy_RH = dy.wait().view(-1, len(gain))
        dx_RH = ctx.kernels.norm.backward(dy_RH, None, saved, gain, gain.grad)
        return dx_RH.view(y_BsH.shape), None, None, None, None, None
