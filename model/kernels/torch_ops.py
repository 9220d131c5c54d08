"""Every operation in torch alone: what runs on any device, and what the other back ends are measured against.

B batch    S sequence    R = B S rows    H width    T query heads    G key and value heads    K head size
F = (T + 2 G) K    V this rank's vocabulary
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.interfaces import Measured, Positions

_WORTH_HALVES = 2**16
"""Elements from which on a CPU turns two halves in less time than it copies them exchanged: a third less at 2^18, but
40 % more at 2^15 (our measurement)."""


def rotate(x_KS: Tensor, at: Positions, sign: int, out_KS: Tensor) -> None:
    """x (..., K, S) turned by its positions into another tensor, whatever their strides; sign -1 turns back."""
    torch.mul(x_KS, at.cos_KS, out=out_KS)
    half = x_KS.shape[-2] // 2
    if x_KS.numel() < _WORTH_HALVES:
        out_KS.addcmul_(x_KS.roll(half, -2), at.sin_KS, value=sign)
        return
    (low, high), (out_low, out_high), (minus, plus) = (
        one.split(half, -2) for one in (x_KS, out_KS, at.sin_KS)
    )
    out_low.addcmul_(high, minus, value=sign)
    out_high.addcmul_(low, plus, value=sign)


def rotate_heads(x_BSNK: Tensor, at: Positions, sign: int, out_BSNK: Tensor) -> None:
    """The same for N heads a row; `out` may be x."""
    x_BNKS = x_BSNK.permute(0, 2, 3, 1)
    exchanged_BNKS = x_BNKS.roll(x_BNKS.shape[-2] // 2, -2)
    out_BNKS = out_BSNK.permute(0, 2, 3, 1)
    torch.mul(x_BNKS, at.cos_KS, out=out_BNKS).addcmul_(exchanged_BNKS, at.sin_KS, value=sign)


def core_attention(
    q_BSTK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    start_BS: Tensor | None = None,
    ends_N: Tensor | None = None,
) -> Tensor:
    """torch's own causal attention, by the kernel that torch takes; deterministic where torch is set to be."""
    q_BTSK, k_BGSK, v_BGSK = (x.transpose(1, 2) for x in (q_BSTK, k_BSGK, v_BSGK))
    grouped = q_BTSK.shape[1] != k_BGSK.shape[1]
    seen_B1SS = None if start_BS is None else seen(start_BS).unsqueeze(1)
    o_BTSK = F.scaled_dot_product_attention(
        q_BTSK, k_BGSK, v_BGSK, attn_mask=seen_B1SS, is_causal=start_BS is None, enable_gqa=grouped
    )
    return o_BTSK.transpose(1, 2)


def seen(start_BS: Tensor) -> Tensor:
    """Whether a token (row) sees another (column): one of its own document that is not after it, (B, S, S)."""
    place_S = torch.arange(start_BS.shape[1], device=start_BS.device)
    return (place_S >= start_BS.unsqueeze(2)) & (place_S <= place_S.unsqueeze(1))


def norm_forward(x: Tensor, delta: Tensor | None, gain: Tensor, eps: float) -> tuple[Tensor, Tensor, Any]:
    """RMSNorm of x + delta; see `NormKernel`."""
    total = x if delta is None else x + delta
    wide = total.to(_precise(x))
    length_R1 = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse_R1 = length_R1.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    unit = (wide * inverse_R1).to(x.dtype)
    return total, unit * gain, (unit, inverse_R1)


def norm_backward(dy: Tensor, ds: Tensor | None, saved: Any, gain: Tensor, gain_gradient: Tensor) -> Tensor:
    """dx = (g - unit mean(g unit)) inverse + ds, with g = dy gain; the gain's is the sum of dy unit over rows."""
    unit, inverse_R1 = saved
    precise = inverse_R1.dtype
    wide_dy, wide_unit, wide_gain = (one.to(precise) for one in (dy, unit, gain))
    product = wide_dy * wide_unit
    gain_gradient.add_(product.sum(0))
    mean_R1 = torch.mv(product, wide_gain).unsqueeze(1)
    dx = (wide_dy * wide_gain).addcmul_(wide_unit, mean_R1, value=-1 / dy.shape[1])
    dx = dx.mul_(inverse_R1) if ds is None else torch.addcmul(ds.to(precise), dx, inverse_R1)
    return dx.to(dy.dtype)


def gate_forward(projected: Tensor) -> tuple[Tensor, Any]:
    """silu(gate) * up; see `ForwardBackward`."""
    gate, up = projected.chunk(2, dim=1)
    opened = F.silu(gate)
    inner = opened * up
    return inner, (projected, opened, inner)


def gate_backward(dinner: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
    """Gradient of gate and up, and the inner activations, which were saved."""
    projected, opened, inner = saved
    gate, up = projected.chunk(2, dim=1)
    dprojected = torch.empty_like(projected)
    dgate, dup = dprojected.chunk(2, dim=1)
    torch.mul(dinner, opened, out=dup)
    dinner.mul_(up)
    torch.ops.aten.silu_backward.grad_input(dinner, gate, grad_input=dgate)
    return dprojected, inner


def measure(logits_RV: Tensor, column_R: Tensor) -> Measured:
    """Peak, total and target of each row. Exponentials overwrite logits if these are fp32."""
    work_RV = logits_RV.to(_precise(logits_RV))
    column_R1 = column_R.unsqueeze(1)
    held_R1 = (column_R1 >= 0) & (column_R1 < work_RV.shape[1])
    target_logit_R1 = work_RV.gather(1, column_R1 * held_R1) * held_R1
    peak_R1 = work_RV.amax(1, keepdim=True)
    work_RV.sub_(peak_R1).exp_()
    return Measured(peak_R1, work_RV.sum(1, keepdim=True), target_logit_R1, (work_RV, held_R1))


def differentiate(
    logits_RV: Tensor, column_R: Tensor, found: Measured, scale_R1: Tensor, share: float
) -> None:
    """The gradient, in place of the logits; see `CrossEntropy`."""
    work_RV, held_R1 = found.saved
    column_R1 = column_R.unsqueeze(1) * held_R1
    work_RV.mul_(scale_R1)
    work_RV.scatter_add_(1, column_R1, held_R1 * work_RV.new_tensor(-share))
    if work_RV is not logits_RV:
        logits_RV.copy_(work_RV)


def accumulate(gradient: Tensor, dy_RF: Tensor, x_RH: Tensor) -> None:
    """gradient += dy' x; a product of lower precision is rounded to it before it is added."""
    if gradient.dtype == dy_RF.dtype:
        gradient.addmm_(dy_RF.t(), x_RH)
    else:
        gradient.add_(torch.mm(dy_RF.t(), x_RH))


def accumulate_cuda(gradient: Tensor, dy_RF: Tensor, x_RH: Tensor) -> None:
    """gradient += dy' x inside the multiplication, where the product of bf16 is added in fp32 before it is rounded."""
    if gradient.dtype == dy_RF.dtype:
        gradient.addmm_(dy_RF.t(), x_RH)
    else:
        torch.addmm(gradient, dy_RF.t(), x_RH, out_dtype=gradient.dtype, out=gradient)


def adamw(
    weights: Tensor,
    gradients: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rounded: Tensor | None = None,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
    grad_scale: float,
) -> None:
    """torch's fused AdamW; see `AdamWKernel`."""
    torch._fused_adamw_(
        [weights],
        [gradients],
        [exp_avg],
        [exp_avg_sq],
        [],
        [torch.full((), step, dtype=torch.float32, device=weights.device)],
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
        grad_scale=torch.full((), grad_scale, dtype=torch.float32, device=weights.device),
    )
    if rounded is not None:
        rounded.copy_(weights)


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
