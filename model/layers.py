"""The layers' maths: tensors in, tensors out. Nothing here knows of ranks or groups.

S sequence    B batch    H width    T query heads    G key and value heads    K head size    F feed-forward width
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import Kernels


def rope_tables(context: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, (S, 1, 1, K) in fp32, of the rotary angles s theta^(-2i/K), each half of K alike.

    RoFormer (arXiv 2104.09864), Eq. 15, in the layout of LLaMA's Hugging Face weights: halves, not pairs.
    """
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle_SK = torch.outer(torch.arange(context, dtype=torch.float64), frequency).repeat(1, 2)
    tables = angle_SK.view(context, 1, 1, head_dim)
    return tables.cos().float(), tables.sin().float()


def rope(x_SBTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x rotated by its position: x cos + (-x2, x1) sin."""
    low, high = x_SBTK.chunk(2, dim=-1)
    return torch.addcmul(x_SBTK * cos, torch.cat((-high, low), dim=-1), sin)


def attention(
    x_SBH: Tensor,
    qkv: Tensor,
    out: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    kernels: Kernels,
) -> Tensor:
    """Causal grouped-query attention with rotary positions. `qkv` is ((T + 2 G) K, H), `out` is (H, T K)."""
    S, B, _ = x_SBH.shape
    turned, v_SBGK = (
        F.linear(x_SBH, qkv).view(S, B, heads + 2 * kv_heads, -1).split([heads + kv_heads, kv_heads], dim=2)
    )
    turned = rope(turned, cos[:S], sin[:S])
    q, k = turned.permute(1, 2, 0, 3).split([heads, kv_heads], dim=1)
    mixed_BTSK = kernels.attention(q, k, v_SBGK.permute(1, 2, 0, 3))
    return F.linear(mixed_BTSK.permute(2, 0, 1, 3).reshape(S, B, -1), out)


def swiglu(x_SBH: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """down(silu(gate x) * up x) (arXiv 2002.05202). `gate_up` is (2 F, H), gate first; `down` is (H, F)."""
    gate, up = F.linear(x_SBH, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)
