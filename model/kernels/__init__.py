"""One door to the operations that have more than one implementation.

`choose` decides once, from an explicit setting and the device, and the result describes itself for the run's record;
whoever computes is handed the `Kernels` and never asks what is installed. Only torch stands behind the door now;
flash-attn, apex and triton get their places here when they exist. An operation with a gradient is a pair: forward gives
the result and whatever its backward wants kept.

B batch    S sequence    R = B S rows    T query heads    G key and value heads    K head size    F = (T + 2 G) K
P = T B pairs of a head and a sequence    Q rows of a head's attention square    C columns they look at

A tensor called x_RF has these dimensions; where it lies transposed in memory, because rows are better innermost, the
text says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_ROWS = 128
"""Q on a CPU. Blocks leave out what lies above the diagonal: at a context of 256, 3/4 of the square is computed. 64 and
256 were within 5 % of this, on either side, at widths 16 to 256."""
_KEEP_CONTEXT = 1024
"""Contexts up to which a CPU keeps the probabilities for backward; beyond, it computes them again to save memory."""


class Heads(NamedTuple):
    """How a fused projection divides."""

    batch: int
    sequence: int
    query: int
    kv: int
    size: int


class Positions(NamedTuple):
    """What attention knows of positions, in the activations' dtype."""

    cos_KS: Tensor
    """Rotary cosines; dimensions i and i + K/2 are a pair, as in LLaMA's Hugging Face weights."""
    sin_KS: Tensor
    """Rotary sines, negative for the first half: x cos + (x, halves exchanged) sin is x turned."""
    future_QQ: Tensor
    """-inf above the diagonal, else 0: added to a block of scores on the diagonal."""

    def first(self, sequence: int) -> "Positions":
        """Those of the first positions; itself where that is all of them."""
        if sequence == self.cos_KS.shape[1]:
            return self
        return self._replace(cos_KS=self.cos_KS[:, :sequence], sin_KS=self.sin_KS[:, :sequence])


class Attention(NamedTuple):
    """Causal grouped-query attention on a fused projection, rotary positions included."""

    forward: Callable[[Tensor, Heads, Positions], tuple[Tensor, Any]]
    """(qkv_RF, heads, positions) -> (output (R, T K), what backward wants)"""
    backward: Callable[[Tensor, Any, Heads, Positions], Tensor]
    """(the output's gradient, what was kept, heads, positions) -> gradient of qkv_RF"""


@dataclass(frozen=True)
class Kernels:
    """The chosen implementations."""

    linear: Callable[[Tensor, Tensor], Tensor]
    """(x (R, in), weight (out, in)) -> x weight' (R, out), laid out as the operations that follow like it."""
    attention: Attention
    chosen: tuple[tuple[str, str], ...]

    def describe(self) -> dict[str, str]:
        """Operation -> what carries it out, for the run's record."""
        return dict(self.chosen)


def choose(setting: str, device: str) -> Kernels:
    """The implementations for a setting; `auto` takes the fastest that works on this device.

    ValueError for a name that has none.
    """
    if setting not in ("auto", "torch"):
        raise ValueError(f"there are no kernels called {setting!r} for {device}; write auto or torch")
    common = (("adamw", "torch _fused_adamw_"), ("cross_entropy", "torch, gradient in place of the logits"))
    if device == "cpu":
        blocks = Attention(_blocks_forward, _blocks_backward)
        words = (("attention", "torch, blocks of rows"), ("linear", "torch, rows innermost"))
        return Kernels(_linear_rows_innermost, blocks, words + common)
    fused = Attention(_fused_forward, _fused_backward)
    words = (("attention", "torch scaled_dot_product_attention"), ("linear", "torch"))
    return Kernels(F.linear, fused, words + common)


def positions(head_size: int, context: int, theta: float, dtype: torch.dtype, device: str) -> Positions:
    """Angles s theta^(-2i/K) (RoFormer, arXiv 2104.09864, Eq. 15), computed in fp64."""
    frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.outer(frequency, torch.arange(context, dtype=torch.float64))
    cos_KS, sin_KS = torch.cat((angle.cos(), angle.cos())), torch.cat((-angle.sin(), angle.sin()))
    size = min(context, _BLOCK_ROWS)
    future_QQ = torch.full((size, size), -torch.inf).triu(1)
    return Positions(*(table.to(device, dtype) for table in (cos_KS, sin_KS, future_QQ)))


def accumulate(gradient: Tensor, dy_RF: Tensor, x_RH: Tensor) -> None:
    """Adds a weight's gradient dy' x (F, H) to a buffer, which may be of higher precision."""
    if gradient.dtype == dy_RF.dtype:
        gradient.addmm_(dy_RF.t(), x_RH)
    else:
        gradient.add_(torch.mm(dy_RF.t(), x_RH))


def adamw(
    weights: Tensor,
    gradients: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: Tensor,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
    grad_scale: Tensor,
) -> None:
    """One AdamW update in place, one pass over memory. Gradients are divided by `grad_scale` first, in place too.

    `step` counts this update: 1 at the first.
    """
    torch._fused_adamw_(
        [weights],
        [gradients],
        [exp_avg],
        [exp_avg_sq],
        [],
        [step],
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
        grad_scale=grad_scale,
    )


def rotate(x_KS: Tensor, at: Positions, sign: int, out_KS: Tensor) -> None:
    """x (..., K, S) turned by its positions into `out_KS`, whatever their strides; sign -1 turns back."""
    torch.mul(x_KS, at.cos_KS, out=out_KS)
    out_KS.addcmul_(x_KS.roll(x_KS.shape[-2] // 2, -2), at.sin_KS, value=sign)


def _linear_rows_innermost(x_RH: Tensor, weight_FH: Tensor) -> Tensor:
    return torch.mm(weight_FH, x_RH.t()).t()


# Attention in blocks of rows, with the projection's rows innermost in memory: on a CPU this leaves out most of what the
# mask hides, and vector units run along the sequence however small the heads are.


def _blocks_forward(qkv_RF: Tensor, heads: Heads, at: Positions) -> tuple[Tensor, Any]:
    B, S, T, G, K = heads
    qkv_FBKS = qkv_RF.t().view(T + 2 * G, K, B, S).transpose(1, 2)
    turned = qkv_RF.new_empty(T + G, B, K, S)
    rotate(qkv_FBKS[: T + G], at, 1, turned)
    turned[:T].mul_(K**-0.5)
    q_PKS, k_PKS = turned[:T].view(-1, K, S), _repeat(turned[T:], heads)
    v_PKS = _repeat(qkv_FBKS[T + G :], heads)
    outputs, kept = [], []
    for rows, columns in _blocks(S):
        p_PQC = _probabilities(q_PKS[..., rows], k_PKS[..., columns], rows, at)
        outputs.append(torch.bmm(v_PKS[..., columns], p_PQC.mT))
        kept.append(p_PQC if S <= _KEEP_CONTEXT else None)
    o_RF = _joined(outputs).view(T, B, K, S).transpose(1, 2).reshape(T * K, B * S).t()
    return o_RF, (q_PKS, k_PKS, v_PKS, kept)


def _blocks_backward(do_RF: Tensor, saved: Any, heads: Heads, at: Positions) -> Tensor:
    B, S, T, G, K = heads
    q_PKS, k_PKS, v_PKS, kept = saved
    do_PKS = do_RF.t().view(T, K, B, S).transpose(1, 2).reshape(-1, K, S)
    (*others, last), (*others_kept, last_kept) = _blocks(S), kept
    dq_PKQ, dk_PKS, dv_PKS = _block_backward(do_PKS, q_PKS, k_PKS, v_PKS, last, last_kept, at)
    dqs = [dq_PKQ]
    for block, p_PQC in zip(reversed(others), reversed(others_kept), strict=True):
        dq_PKQ, dk_PKC, dv_PKC = _block_backward(do_PKS, q_PKS, k_PKS, v_PKS, block, p_PQC, at)
        dqs.insert(0, dq_PKQ)
        dk_PKS[..., block[1]].add_(dk_PKC)
        dv_PKS[..., block[1]].add_(dv_PKC)
    dq_PKS = _joined(dqs).mul_(K**-0.5)
    dturned = torch.cat((dq_PKS.view(T, B, K, S), _sum_repeats(dk_PKS, heads)))
    dqkv_FBKS = do_RF.new_empty(T + 2 * G, K, B, S).transpose(1, 2)
    rotate(dturned, at, -1, dqkv_FBKS[: T + G])
    dqkv_FBKS[T + G :] = _sum_repeats(dv_PKS, heads)
    return dqkv_FBKS.transpose(1, 2).view(-1, B * S).t()


def _block_backward(
    do_PKS: Tensor,
    q_PKS: Tensor,
    k_PKS: Tensor,
    v_PKS: Tensor,
    block: tuple[slice, slice],
    p_PQC: Tensor | None,
    at: Positions,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a block of rows gives to the gradients of its rows of q, and of its columns of k and v."""
    rows, columns = block
    q_PKQ, k_PKC, do_PKQ = q_PKS[..., rows], k_PKS[..., columns], do_PKS[..., rows]
    if p_PQC is None:
        p_PQC = _probabilities(q_PKQ, k_PKC, rows, at)
    ds_PQC = torch.bmm(do_PKQ.mT, v_PKS[..., columns])
    torch.ops.aten._softmax_backward_data.out(ds_PQC, p_PQC, -1, ds_PQC.dtype, grad_input=ds_PQC)
    return torch.bmm(k_PKC, ds_PQC.mT), torch.bmm(q_PKQ, ds_PQC), torch.bmm(do_PKQ, p_PQC)


def _blocks(sequence: int) -> list[tuple[slice, slice]]:
    """(rows, the columns they may look at) of the causal square, top to bottom."""
    firsts = range(0, sequence, _BLOCK_ROWS)
    lasts = [min(first + _BLOCK_ROWS, sequence) for first in firsts]
    return [(slice(first, last), slice(0, last)) for first, last in zip(firsts, lasts, strict=True)]


def _probabilities(q_PKQ: Tensor, k_PKC: Tensor, rows: slice, at: Positions) -> Tensor:
    """softmax(q' k) of a block of rows, the future masked: (P, Q, C)."""
    scores_PQC = torch.bmm(q_PKQ.mT, k_PKC)
    size = rows.stop - rows.start
    scores_PQC[..., rows].add_(at.future_QQ if size == _BLOCK_ROWS else at.future_QQ[:size, :size])
    torch.ops.aten._softmax.out(scores_PQC, -1, False, out=scores_PQC)
    return scores_PQC


def _joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)


def _repeat(x_GBKS: Tensor, heads: Heads) -> Tensor:
    """Key or value heads, each as often as query heads share it: (P, K, S)."""
    B, S, T, G, K = heads
    if T != G:
        x_GBKS = x_GBKS.unsqueeze(1).expand(G, T // G, B, K, S)
    return x_GBKS.reshape(-1, K, S)


def _sum_repeats(x_PKS: Tensor, heads: Heads) -> Tensor:
    """The gradient of `_repeat`: (G, B, K, S)."""
    B, S, T, G, K = heads
    return x_PKS.view(T, B, K, S) if T == G else x_PKS.view(G, T // G, B, K, S).sum(1)


# torch's own fused attention, differentiated by torch.


def _fused_forward(qkv_RF: Tensor, heads: Heads, at: Positions) -> tuple[Tensor, Any]:
    B, S, T, G, K = heads
    qkv_BSFK = qkv_RF.view(B, S, T + 2 * G, K)
    turned = torch.empty_like(qkv_BSFK[:, :, : T + G])
    rotate(qkv_BSFK[:, :, : T + G].permute(0, 2, 3, 1), at, 1, turned.permute(0, 2, 3, 1))
    parts = (turned[:, :, :T], turned[:, :, T:], qkv_BSFK[:, :, T + G :])
    with torch.enable_grad():
        q, k, v = (part.transpose(1, 2).detach().requires_grad_() for part in parts)
        o_BTSK = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=T != G)
    return o_BTSK.detach().transpose(1, 2).reshape(B * S, T * K), (q, k, v, o_BTSK)


def _fused_backward(do_RF: Tensor, saved: Any, heads: Heads, at: Positions) -> Tensor:
    B, S, T, G, K = heads
    q, k, v, o_BTSK = saved
    do_BTSK = do_RF.view(B, S, T, K).transpose(1, 2)
    dq, dk, dv = torch.autograd.grad(o_BTSK, (q, k, v), do_BTSK)
    dqkv_BSFK = do_RF.new_empty(B, S, T + 2 * G, K)
    into_BFKS = dqkv_BSFK.permute(0, 2, 3, 1)
    rotate(dq.mT, at, -1, into_BFKS[:, :T])
    rotate(dk.mT, at, -1, into_BFKS[:, T : T + G])
    into_BFKS[:, T + G :] = dv.mT
    return dqkv_BSFK.view(B * S, -1)
