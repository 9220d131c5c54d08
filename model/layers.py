"""The layers' maths: tensors in, tensors out. Nothing here knows of ranks or groups.

Each layer's gradient is written out, since that is where a step spends its time and memory: it says what is kept,
reuses what is spent, and adds each weight's gradient straight to `weight.grad`. That buffer must be there before
backward, and may be of higher precision than the weight; autograd itself carries activations only. Its check that no
weight changes between forward and backward is gone round: weights lie in one buffer, whose other parts may be arriving.

A sub-layer is `leave(f(enter(norm(x))))`. Its f has no weights and is a pair, as in model/kernels; `enter` and `leave`
are the linear maps of model/tensor_parallel.py, which are handed in and do what communication there is. A result that
is still on its way is waited for after the weights' gradients, which can be multiplied meanwhile.

B batch    s sequence, or this rank's stretch of it    R rows    H width    T query heads    G key and value heads
K head size    V vocabulary
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels import Heads, Kernels, Positions
from model.kernels.interfaces import Gate
from model.tensor_parallel import Linears


class SubLayerWeights(NamedTuple):
    """A sub-layer's parameters."""

    gain: Tensor
    """Of the norm, (H,)."""
    into: Tensor
    """(F, H): q, k and v, or gate and up."""
    out: Tensor
    """(H, F'): o, or down."""


def attention(kernels: Kernels, heads: Heads, at: Positions) -> Gate:
    """Causal grouped-query attention with rotary positions, from a fused projection ((T + 2 G) K) to (T K), as an f."""

    def forward(qkv_RF: Tensor) -> tuple[Tensor, Any]:
        mixed_RF, kept = kernels.attention.forward(qkv_RF, heads, at)
        return mixed_RF, (mixed_RF, kept)

    def backward(dmixed_RF: Tensor, kept: Any) -> tuple[Tensor, Tensor]:
        mixed_RF, within = kept
        return kernels.attention.backward(dmixed_RF, within, heads, at), mixed_RF

    return Gate(forward, backward)


def recomputed(f: Gate) -> Gate:
    """The same f, which keeps its input only and computes all else again."""

    def forward(projected_RF: Tensor) -> tuple[Tensor, Any]:
        return f.forward(projected_RF.clone())[0], projected_RF  # a clone, since f may use its input up

    def backward(dinner_RF: Tensor, projected_RF: Any) -> tuple[Tensor, Tensor]:
        return f.backward(dinner_RF, f.forward(projected_RF)[1])

    return Gate(forward, backward)


@dataclass(frozen=True)
class SubLayer:
    """leave(f(enter(norm(x + delta)))) and its gradient."""

    f: Gate
    linears: Linears
    kernels: Kernels
    eps: float
    recompute_norm: bool
    """SavedActivations the sum instead of what the norm makes of it."""

    def forward(
        self, x_BsH: Tensor, delta_BsH: Tensor | None, w: SubLayerWeights
    ) -> tuple[Tensor, Tensor, Any]:
        """x + delta; the sub-layer's result, which is the next delta; what backward wants."""
        delta_RH = None if delta_BsH is None else delta_BsH.view(-1, len(w.gain))
        sum_RH, y_RH, kept = self.kernels.norm.forward(
            x_BsH.view(-1, len(w.gain)), delta_RH, w.gain, self.eps
        )
        projected_RF = self.linears.enter(y_RH.view(x_BsH.shape), w.into, self.kernels.linear)
        inner_RF, within = self.f.forward(projected_RF)
        result_BsH = self.linears.leave(inner_RF, w.out, len(x_BsH))
        normed = (sum_RH, None) if self.recompute_norm else (y_RH, kept)
        return sum_RH.view(x_BsH.shape), result_BsH, (normed, within)

    def backward(self, dsum_BsH: Tensor, dresult_BsH: Tensor, kept: Any, w: SubLayerWeights) -> Tensor:
        """The gradient of x, which is delta's too."""
        shape, batch, ((y_RH, normed), within) = dsum_BsH.shape, len(dsum_BsH), kept
        if self.recompute_norm:
            _, y_RH, normed = self.kernels.norm.forward(y_RH, None, w.gain, self.eps)
        dinner_RF, dresult_RH = self.linears.back_through_leave(dresult_BsH, w.out)
        dprojected_RF, inner_RF = self.f.backward(dinner_RF, within)
        entered = self.linears.again(y_RH.view(shape))
        dy = self.linears.back_through_enter(dprojected_RF, w.into, batch)
        self.kernels.accumulate(_buffer(w.out), dresult_RH, inner_RF)
        self.kernels.accumulate(_buffer(w.into), dprojected_RF, entered.wait().reshape(-1, len(w.gain)))
        dy_RH, dsum_RH = (one.view(-1, len(w.gain)) for one in (dy.wait(), dsum_BsH))
        return self.kernels.norm.backward(dy_RH, dsum_RH, normed, w.gain, _buffer(w.gain)).view(shape)


def _buffer(weight: Tensor) -> Tensor:
    """Where a weight's gradients are summed."""
    assert weight.grad is not None
    return weight.grad


class SavedActivations(NamedTuple):
    """What a block keeps for its backward pass; what it does not, it computes again, bit for bit."""

    within: bool
    """What is between a block's input and its output."""
    normed: bool
    """What norms give; else their inputs."""
    attention: bool
    """What attention makes of its projection; else the projection alone."""


KEEP = {
    "none": SavedActivations(within=True, normed=True, attention=True),
    "selective": SavedActivations(within=True, normed=False, attention=False),
    "full": SavedActivations(within=False, normed=True, attention=True),
}
"""By `Layout.recompute`."""


def embedding(row_BS: Tensor, weight_VH: Tensor) -> Tensor:
    """Rows of the weight, (B, S, H)."""
    return _Embedding.apply(row_BS, weight_VH)  # type: ignore[no-untyped-call,no-any-return]


def block(
    x_BsH: Tensor,
    layers: tuple[SubLayer, SubLayer],
    weights: tuple[SubLayerWeights, SubLayerWeights],
    whole: bool,
) -> Tensor:
    """x + leave(f(enter(norm(x)))), twice. `whole` keeps what is within, else only x is kept."""
    return _Block.apply(x_BsH, layers, weights, whole)  # type: ignore[no-untyped-call,no-any-return]


def head(
    x_BsH: Tensor, gain_H: Tensor, weight_VH: Tensor, eps: float, linears: Linears, kernels: Kernels
) -> Tensor:
    """enter(norm(x)): logits of every position, (B, S, V), row by row in memory."""
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
        whole: bool,
    ) -> Tensor:
        ctx.layers, ctx.weights = layers, weights
        y, kept = _through(x, layers, weights)
        ctx.x, ctx.kept = (None, kept) if whole else (x, None)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (attend, feed), (attend_w, feed_w) = ctx.layers, ctx.weights
        within = ctx.kept or _through(ctx.x, ctx.layers, ctx.weights)[1]
        ctx.x = ctx.kept = None
        dy = grads[0].contiguous()
        dx = feed.backward(dy, dy, within.pop(), feed_w)
        return attend.backward(dx, dx, within.pop(), attend_w), None, None, None


def _through(
    x: Tensor, layers: tuple[SubLayer, SubLayer], weights: tuple[SubLayerWeights, SubLayerWeights]
) -> tuple[Tensor, list[Any]]:
    """A block's result, and what each sub-layer wants for its gradient."""
    (attend, feed), (attend_w, feed_w) = layers, weights
    x, delta, attended = attend.forward(x, None, attend_w)
    x, delta, fed = feed.forward(x, delta, feed_w)
    return x + delta, [attended, fed]


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, weight: Tensor, eps: float, linears: Linears, kernels: Kernels
    ) -> Tensor:
        ctx.linears, ctx.kernels = linears, kernels
        _, y_RH, ctx.kept = kernels.norm.forward(x.view(-1, len(gain)), None, gain, eps)
        ctx.y_BsH, ctx.gain, ctx.weight = y_RH.view(x.shape), gain, weight
        return linears.enter(y_RH.view(x.shape), weight, F.linear).view(len(x), -1, len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gain, weight = ctx.gain, ctx.weight
        (y_BsH, kept), ctx.y_BsH, ctx.kept = (ctx.y_BsH, ctx.kept), None, None
        dlogits_RV = grads[0].view(-1, len(weight))
        entered = ctx.linears.again(y_BsH)
        dy = ctx.linears.back_through_enter(dlogits_RV, weight, len(y_BsH))
        ctx.kernels.accumulate(weight.grad, dlogits_RV, entered.wait().reshape(-1, len(gain)))
        dy_RH = dy.wait().view(-1, len(gain))
        dx_RH = ctx.kernels.norm.backward(dy_RH, None, kept, gain, gain.grad)
        return dx_RH.view(y_BsH.shape), None, None, None, None, None
