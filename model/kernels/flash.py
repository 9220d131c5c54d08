"""The flash-attn back end: FlashAttention 4, 3 (arXiv 2407.08608) or 2 (arXiv 2307.08691), the newest that works here.

All three call themselves flash_attn_func, take (B, S, heads, K) and share keys and values among query heads; which of
them a package of that name holds differs, so each is looked up and tried with a small example.

B batch    S sequence    K head size
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.backend import Offer, Offers, UnavailableError, function
from model.kernels.fused_attention import CoreAttention
from model.kernels.torch_ops import seen

_VERSIONS = (
    ("flash-attn 4", "flash_attn.cute"),
    ("flash-attn 3", "flash_attn_interface"),
    ("flash-attn 2", "flash_attn"),
)
"""Newest first. Versions 2 and 4 install into one namespace."""
Attend = Callable[..., Tensor]
"""Queries, keys and values of whole sequences to what they attend to."""
_TRIAL_BOUND = 2.0**-5
"""Largest error of the trial relative to the largest result: 16 roundings of bf16, 2^-9 each."""


def offers(device: str, deterministic: bool) -> Offers:
    """Attention in bf16; if `deterministic`, its gradients repeat bit by bit. UnavailableError says what was tried."""
    reasons = []
    for version, module in _VERSIONS:
        try:
            attend, attend_within = (function(module, f"flash_attn_{kind}func") for kind in ("", "varlen_"))
            core_attention = _core_attention_of(attend, attend_within, deterministic)
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
    attend: Callable[..., Any], attend_within: Callable[..., Any], deterministic: bool
) -> CoreAttention:
    """`attend_within` takes documents side by side without padding (varlen)."""

    def core_attention(q: Tensor, k: Tensor, v: Tensor, start_BS: Tensor | None = None) -> Tensor:
        if start_BS is None:
            return _output(attend(q, k, v, causal=True, deterministic=deterministic))
        ends_N, longest = _document_ends(start_BS), q.shape[1]
        flat = (x.flatten(0, 1) for x in (q, k, v))
        lengths = {f"cu_seqlens_{side}": ends_N for side in "qk"} | {
            f"max_seqlen_{side}": longest for side in "qk"
        }
        return _output(attend_within(*flat, **lengths, causal=True, deterministic=deterministic)).view_as(q)

    return core_attention


def _output(result: Any) -> Tensor:
    output: Tensor = result[0] if isinstance(result, tuple) else result  # 4 gives the softmax's sums too
    return output


def _document_ends(start_BS: Tensor) -> Tensor:
    """Where documents begin in the sequences one after the other, and the end: int32 of shape (documents + 1,)."""
    first_BS = start_BS == torch.arange(start_BS.shape[1], device=start_BS.device)
    begins_N = first_BS.flatten().nonzero().flatten()
    return torch.cat((begins_N, begins_N.new_tensor([start_BS.numel()]))).int()


def _try(version: str, core_attention: Attend, device: str) -> None:
    """One small attention there and back, of whole sequences and of documents, against torch's: a build for another GPU
    fails here, not in the run."""
    drawn = torch.randn(3, 1, 128, 2, 64, generator=torch.Generator().manual_seed(0)).to(
        device, torch.bfloat16
    )
    start_BS = torch.zeros(1, 128, dtype=torch.int64, device=device)
    start_BS[:, 50:] = 50
    offs = []
    for starts in (None, start_BS):
        try:
            ours = _forward_backward(partial(core_attention, start_BS=starts), drawn)
        except Exception as error:
            raise UnavailableError(
                f"{version} fails on {device} ({type(error).__name__}: {error})"
            ) from error
        theirs = _forward_backward(partial(_reference, start_BS=starts), drawn)
        offs.append(float((ours - theirs).abs().max() / theirs.abs().max()))
    off = next((one for one in offs if not one <= _TRIAL_BOUND), 0.0)
    if off:
        raise UnavailableError(
            f"{version} gives other results than torch on {device} (relative error {off:.2g})"
        )


def _forward_backward(core_attention: Attend, drawn: Tensor) -> Tensor:
    """Output and gradients in one."""
    with torch.enable_grad():
        leaf = drawn.clone().requires_grad_()
        output = core_attention(*leaf)
        (gradient,) = torch.autograd.grad(output, leaf, drawn[0])
    return torch.cat((output.detach(), *gradient)).float()


def _reference(q: Tensor, k: Tensor, v: Tensor, start_BS: Tensor | None) -> Tensor:
    starts_BS = torch.zeros(q.shape[:2], dtype=torch.int64, device=q.device) if start_BS is None else start_BS
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen(starts_BS).unsqueeze(1), -torch.inf)
    return (F.softmax(scores, -1) @ v).transpose(1, 2)
