"""The layers' maths: tensors in, tensors out. Nothing here knows of ranks or groups.

Each layer is a function whose gradient is written out, since that is where a step spends its time and memory: it says
what is kept, reuses what is spent, and adds each weight's gradient straight to `weight.grad`. That buffer must be
there before backward, and may be of higher precision than the weight; autograd itself carries activations only.

B batch    S sequence    R = B S rows    H width    T query heads    G key and value heads    K head size
F rows of a weight that stacks several    V vocabulary
"""

from typing import Any

import torch
from torch import Tensor

from model.kernels import Heads, Kernels, Positions


def embedding(tokens_BS: Tensor, weight_VH: Tensor) -> Tensor:
    """The tokens' rows of the weight, (B, S, H)."""
    return _Embedding.apply(tokens_BS, weight_VH)  # type: ignore[no-untyped-call,no-any-return]


def rms_norm(x_BSH: Tensor, gain_H: Tensor, eps: float, kernels: Kernels) -> Tensor:
    """x / sqrt(mean(x^2) + eps) times the gain, over the width (arXiv 1910.07467, Eq. 4; LLaMA adds eps)."""
    return _RmsNorm.apply(x_BSH, gain_H, eps, kernels)  # type: ignore[no-untyped-call,no-any-return]


def attention(
    x_BSH: Tensor, qkv: Tensor, out: Tensor, heads: tuple[int, int, int], at: Positions, kernels: Kernels
) -> Tensor:
    """Causal grouped-query attention with rotary positions, (B, S, H).

    `qkv` is ((T + 2 G) K, H), `out` is (H, T K), `heads` is (T, G, K).
    """
    return _Attention.apply(x_BSH, qkv, out, heads, at, kernels)  # type: ignore[no-untyped-call,no-any-return]


def swiglu(x_BSH: Tensor, gate_up: Tensor, down: Tensor, kernels: Kernels) -> Tensor:
    """down(silu(gate x) * up x) (arXiv 2002.05202), (B, S, H). `gate_up` is (2 F, H), gate first; `down` is (H, F)."""
    return _SwiGlu.apply(x_BSH, gate_up, down, kernels)  # type: ignore[no-untyped-call,no-any-return]


def linear(x_BSH: Tensor, weight_VH: Tensor, kernels: Kernels) -> Tensor:
    """x weight', (B, S, V)."""
    return _Linear.apply(x_BSH, weight_VH, kernels)  # type: ignore[no-untyped-call,no-any-return]


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_BS: Tensor, weight: Tensor) -> Tensor:
        tokens_R = tokens_BS.reshape(-1)
        ctx.save_for_backward(tokens_R, weight)
        return weight.index_select(0, tokens_R).view(*tokens_BS.shape, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        tokens_R, weight = ctx.saved_tensors
        dy_RH = grads[0].view(len(tokens_R), -1)
        weight.grad.index_add_(0, tokens_R, dy_RH.to(weight.grad.dtype))
        return None, None


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, kernels: Kernels) -> Tensor:
        _, y_RH, ctx.kept = kernels.norm.forward(x.view(-1, x.shape[-1]), None, gain, eps)
        ctx.save_for_backward(gain)
        ctx.kernels = kernels
        return y_RH.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gain,) = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None
        dy_RH = grads[0].view(-1, len(gain))
        dx_RH = ctx.kernels.norm.backward(dy_RH, None, kept, gain, gain.grad)
        return dx_RH.view(grads[0].shape), None, None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        qkv: Tensor,
        out: Tensor,
        heads: tuple[int, int, int],
        at: Positions,
        kernels: Kernels,
    ) -> Tensor:
        B, S, H = x.shape
        x_RH = x.view(-1, H)
        ctx.heads, ctx.at, ctx.kernels = Heads(B, S, *heads), at, kernels
        mixed_RF, ctx.kept = kernels.attention.forward(kernels.linear(x_RH, qkv), ctx.heads, at)
        ctx.save_for_backward(x_RH, qkv, out, mixed_RF)
        return torch.mm(mixed_RF, out.t()).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_RH, qkv, out, mixed_RF = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None
        dy_RH = grads[0].view(x_RH.shape)
        dmixed_RF = ctx.kernels.linear(dy_RH, out.t())
        dqkv_RF = ctx.kernels.attention.backward(dmixed_RF, kept, ctx.heads, ctx.at)
        dx = torch.mm(dqkv_RF, qkv).view(grads[0].shape)
        ctx.kernels.accumulate(out.grad, dy_RH, mixed_RF)
        ctx.kernels.accumulate(qkv.grad, dqkv_RF, x_RH)
        return dx, None, None, None, None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, kernels: Kernels) -> Tensor:
        x_RH = x.view(-1, x.shape[-1])
        inner_RF, ctx.kept = kernels.gate.forward(kernels.linear(x_RH, gate_up))
        ctx.save_for_backward(x_RH, gate_up, down)
        ctx.kernels = kernels
        return torch.mm(inner_RF, down.t()).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_RH, gate_up, down = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None
        dy_RH = grads[0].view(x_RH.shape)
        dprojected_RF, inner_RF = ctx.kernels.gate.backward(ctx.kernels.linear(dy_RH, down.t()), kept)
        dx = torch.mm(dprojected_RF, gate_up).view(grads[0].shape)
        ctx.kernels.accumulate(down.grad, dy_RH, inner_RF)
        ctx.kernels.accumulate(gate_up.grad, dprojected_RF, x_RH)
        return dx, None, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kernels: Kernels) -> Tensor:
        x_RH = x.view(-1, x.shape[-1])
        ctx.save_for_backward(x_RH, weight)
        ctx.kernels = kernels
        return torch.mm(x_RH, weight.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x_RH, weight = ctx.saved_tensors
        dy_RV = grads[0].view(len(x_RH), -1)
        ctx.kernels.accumulate(weight.grad, dy_RV, x_RH)
        return torch.mm(dy_RV, weight).view(*grads[0].shape[:-1], -1), None, None
