"""The layers' maths: tensors in, tensors out. Nothing here knows of ranks or groups.

Each layer is a function whose gradient is written out, since that is where a step spends its time and memory: it says
what is kept, reuses what is spent, and adds each weight's gradient straight to `weight.grad`. That buffer must be
there before backward, and may be of higher precision than the weight; autograd itself carries activations only.

B batch    S sequence    R = B S rows    H width    T query heads    G key and value heads    K head size
F rows of a weight that stacks several    V vocabulary
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import Heads, Kernels, Positions, accumulate


def embedding(tokens_BS: Tensor, weight_VH: Tensor) -> Tensor:
    """The tokens' rows of the weight, (B, S, H)."""
    return _Embedding.apply(tokens_BS, weight_VH)  # type: ignore[no-untyped-call,no-any-return]


def rms_norm(x_BSH: Tensor, gain_H: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) times the gain, over the width (arXiv 1910.07467, Eq. 4; LLaMA adds eps)."""
    return _RmsNorm.apply(x_BSH, gain_H, eps)  # type: ignore[no-untyped-call,no-any-return]


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


def linear(x_BSH: Tensor, weight_VH: Tensor) -> Tensor:
    """x weight', (B, S, V)."""
    return _Linear.apply(x_BSH, weight_VH)  # type: ignore[no-untyped-call,no-any-return]


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
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
        inverse = length.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        unit: Tensor = (x * inverse).to(x.dtype)
        ctx.save_for_backward(unit, inverse, gain)
        return unit * gain

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """dx = (g - unit mean(g unit)) inverse, with g = dy gain; dgain = the sum of dy unit over rows."""
        unit, inverse, gain = ctx.saved_tensors
        width = unit.shape[-1]
        product_RH = (grads[0] * unit).view(-1, width)
        gain.grad.add_(product_RH.sum(0, dtype=gain.grad.dtype))
        mean = torch.mv(product_RH, gain).view(inverse.shape)
        dx = (grads[0] * gain).addcmul_(unit, mean, value=-1 / width)
        return dx.mul_(inverse), None, None


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
        accumulate(out.grad, dy_RH, mixed_RF)
        accumulate(qkv.grad, dqkv_RF, x_RH)
        return dx, None, None, None, None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, kernels: Kernels) -> Tensor:
        x_RH = x.view(-1, x.shape[-1])
        projected_RF = kernels.linear(x_RH, gate_up)
        gate_RF, up_RF = projected_RF.chunk(2, dim=1)
        opened_RF = F.silu(gate_RF)
        inner_RF = opened_RF * up_RF
        ctx.save_for_backward(x_RH, gate_up, down, projected_RF, opened_RF, inner_RF)
        ctx.kernels = kernels
        return torch.mm(inner_RF, down.t()).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_RH, gate_up, down, projected_RF, opened_RF, inner_RF = ctx.saved_tensors
        dy_RH = grads[0].view(x_RH.shape)
        dinner_RF = ctx.kernels.linear(dy_RH, down.t())
        gate_RF, up_RF = projected_RF.chunk(2, dim=1)
        dprojected_RF = torch.empty_like(projected_RF)
        dgate_RF, dup_RF = dprojected_RF.chunk(2, dim=1)
        torch.mul(dinner_RF, opened_RF, out=dup_RF)
        dinner_RF.mul_(up_RF)
        torch.ops.aten.silu_backward.grad_input(dinner_RF, gate_RF, grad_input=dgate_RF)
        dx = torch.mm(dprojected_RF, gate_up).view(grads[0].shape)
        accumulate(down.grad, dy_RH, inner_RF)
        accumulate(gate_up.grad, dprojected_RF, x_RH)
        return dx, None, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x_RH = x.view(-1, x.shape[-1])
        ctx.save_for_backward(x_RH, weight)
        return torch.mm(x_RH, weight.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x_RH, weight = ctx.saved_tensors
        dy_RV = grads[0].view(len(x_RH), -1)
        accumulate(weight.grad, dy_RV, x_RH)
        return torch.mm(dy_RV, weight).view(*grads[0].shape[:-1], -1), None
