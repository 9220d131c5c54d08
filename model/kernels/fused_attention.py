"""Attention from two parts: rotary positions in place, and a fused kernel that torch's autograd knows how to undo.

B batch    S sequence    R = B S rows    T query heads    G key and value heads    K head size    F = (T + 2 G) K
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.kernels.interfaces import Attention, Heads, Positions

Rotate = Callable[[Tensor, Positions, int, Tensor], None]
"""(x_BSNK, positions, 1 or -1 to turn back, out_BSNK, which may be x): K innermost."""
CoreAttention = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""(q_BSTK, k_BSGK, v_BSGK, `Positions.start_BS`, `Positions.ends_N`) -> softmax(q k' / sqrt(K)) v under the causal
mask, within documents where these are given, (B, S, T, K). Differentiable."""


def fused_attention(rotate: Rotate, core_attention: CoreAttention) -> Attention:
    """Attention that rotates queries and keys in place, then calls the fused kernel."""

    def forward(qkv_RF: Tensor, heads: Heads, at: Positions) -> tuple[Tensor, Any]:
        B, S, T, G, K = heads
        qkv_BSFK = qkv_RF.view(B, S, T + 2 * G, K)
        turned_BSNK = qkv_BSFK[:, :, : T + G]
        rotate(turned_BSNK, at, 1, turned_BSNK)
        with torch.enable_grad():
            q, k, v = (part.detach().requires_grad_() for part in qkv_BSFK.split([T, G, G], dim=2))
            o_BSTK = core_attention(q, k, v, at.start_BS, at.ends_N)
        return o_BSTK.detach().reshape(B * S, T * K), (q, k, v, o_BSTK)

    def backward(do_RF: Tensor, saved: Any, heads: Heads, at: Positions) -> Tensor:
        B, S, T, G, K = heads
        q, k, v, o_BSTK = saved
        dq, dk, dv = torch.autograd.grad(o_BSTK, (q, k, v), do_RF.view(B, S, T, K))
        dqkv_BSFK = do_RF.new_empty(B, S, T + 2 * G, K)
        rotate(dq, at, -1, dqkv_BSFK[:, :, :T])
        rotate(dk, at, -1, dqkv_BSFK[:, :, T : T + G])
        dqkv_BSFK[:, :, T + G :] = dv
        return dqkv_BSFK.view(B * S, -1)

    return Attention(forward, backward)
