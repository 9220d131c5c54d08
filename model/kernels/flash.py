"""The flash-attn back end: FlashAttention 4, 3 (arXiv 2407.08608) or 2 (arXiv 2307.08691), the newest that works here.

All three call themselves flash_attn_func, take (B, S, heads, K) and share keys and values among query heads; which of
them a package of that name holds differs, so each is looked up and tried with a small example.

B batch    S sequence    K head size
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.backend import Offer, Offers, UnavailableError, function

_VERSIONS = (
    ("flash-attn 4", "flash_attn.cute"),
    ("flash-attn 3", "flash_attn_interface"),
    ("flash-attn 2", "flash_attn"),
)
"""Newest first. Versions 2 and 4 install into one namespace."""
_TRIAL_BOUND = 2.0**-5
"""Largest error of the trial relative to the largest result: 16 roundings of bf16, 2^-9 each."""


def offers(device: str, deterministic: bool) -> Offers:
    """Attention in bf16; if `deterministic`, its gradients repeat bit by bit. UnavailableError says what was tried."""
    reasons = []
    for version, module in _VERSIONS:
        try:
            core_attention = _core_attention_of(function(module, "flash_attn_func"), deterministic)
            _try(version, core_attention, device)
        except UnavailableError as reason:
            reasons.append(str(reason))
        else:
            return {
                "core_attention": Offer(
                    core_attention, version + (", deterministic" if deterministic else "")
                )
            }
    raise UnavailableError("; ".join(reasons))


def _core_attention_of(
    attend: Callable[..., Any], deterministic: bool
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def core_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = attend(q, k, v, causal=True, deterministic=deterministic)
        output: Tensor = result[0] if isinstance(result, tuple) else result  # 4 gives the softmax's sums too
        return output

    return core_attention


def _try(version: str, core_attention: Callable[[Tensor, Tensor, Tensor], Tensor], device: str) -> None:
    """One small attention there and back, against torch's: a build for another GPU fails here, not in the run."""
    drawn = torch.randn(3, 1, 128, 2, 64, generator=torch.Generator().manual_seed(0))
    try:
        ours, theirs = (
            _forward_backward(one, drawn.to(device, torch.bfloat16)) for one in (core_attention, _reference)
        )
    except Exception as error:
        raise UnavailableError(f"{version} fails on {device} ({type(error).__name__}: {error})") from error
    off = float((ours - theirs).abs().max() / theirs.abs().max())
    if not off <= _TRIAL_BOUND:
        raise UnavailableError(
            f"{version} gives other results than torch on {device} (relative error {off:.2g})"
        )


def _forward_backward(core_attention: Callable[[Tensor, Tensor, Tensor], Tensor], drawn: Tensor) -> Tensor:
    """Output and gradients in one."""
    with torch.enable_grad():
        leaf = drawn.clone().requires_grad_()
        output = core_attention(*leaf)
        (gradient,) = torch.autograd.grad(output, leaf, drawn[0])
    return torch.cat((output.detach(), *gradient)).float()


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(
        torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1), -torch.inf
    )
    return (F.softmax(scores, -1) @ v).transpose(1, 2)
