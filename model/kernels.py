"""One door to fused operations. A back end is chosen once, by an explicit setting, and named in the run's record.

Only torch's own kernels stand behind the door now; flash-attn, apex and triton get their places here when they exist.
Tensor shapes: B batch, T heads, S sequence, K head size, H width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Kernels:
    """The operations of one back end."""

    backend: Literal["torch"]

    def describe(self) -> dict[str, str]:
        """Operation -> what carries it out, for the run's record."""
        return {
            "attention": "torch scaled_dot_product_attention",
            "rms_norm": "torch rms_norm",
            "cross_entropy": "torch, gradient in place of the logits",
            "adamw": "torch _fused_adamw_",
        }

    def attention(self, q_BTSK: Tensor, k_BTSK: Tensor, v_BTSK: Tensor) -> Tensor:
        """Causal softmax(q k' / sqrt K) v; fewer key and value heads than query heads are grouped."""
        grouped = k_BTSK.shape[1] < q_BTSK.shape[1]
        return F.scaled_dot_product_attention(q_BTSK, k_BTSK, v_BTSK, is_causal=True, enable_gqa=grouped)

    def rms_norm(self, x_H: Tensor, gain_H: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) times the gain, over the last dimension."""
        return F.rms_norm(x_H, (x_H.shape[-1],), gain_H, eps)

    def adamw(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        *,
        step: Tensor,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float,
        grad_scale: Tensor,
    ) -> None:
        """One AdamW step in place; gradients are divided by `grad_scale` first. `step` counts this update."""
        torch._fused_adamw_(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            [],
            [step] * len(params),
            lr=lr,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=grad_scale,
            found_inf=None,
        )


def choose(setting: str, device: str) -> Kernels:
    """The back end for a setting; `auto` takes the fastest that works on this device.

    ValueError for a name that has no back end.
    """
    if setting not in ("auto", "torch"):
        raise ValueError(f"there are no kernels called {setting!r} for {device}; write auto or torch")
    return Kernels("torch")
