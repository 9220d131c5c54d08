"""The flash-attn back end: FlashAttention 4, 3 (arXiv 2407.08608) or 2 (arXiv 2307.08691), the newest that works here.

All three call themselves flash_attn_func, take (B, S, heads, K) and share keys and values among query heads; which of
them a package of that name holds differs, so each is looked up and tried on the run's own shape (trial.py). They differ
in the head sizes that they take; 3 has no deterministic backward for head sizes above 192, 4 no backward on an A100.

B batch    S sequence    K head size
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.kernels.backend import AbsentError, Candidate, Candidates, Offer, function
from model.kernels.fused_attention import CoreAttention

_VERSIONS = (
    ("flash-attn 4", "flash_attn.cute"),
    ("flash-attn 3", "flash_attn_interface"),
    ("flash-attn 2", "flash_attn"),
)
"""Newest first. Versions 2 and 4 install into one namespace."""


def candidates() -> Candidates:
    """Attention by each version, in bf16."""
    return {
        "core_attention": tuple(
            Candidate(version, partial(_offer, version, module)) for version, module in _VERSIONS
        )
    }


def _offer(version: str, module: str, precision: str, deterministic: bool) -> Offer:
    if precision != "bf16":
        raise AbsentError(f"{version} computes in bf16, not {precision}")
    attend, attend_within = (function(module, f"flash_attn_{kind}func") for kind in ("", "varlen_"))
    description = version + (", deterministic" if deterministic else "")
    return Offer(_core_attention_of(attend, attend_within, deterministic), description)


def _core_attention_of(
    attend: Callable[..., Any], attend_within: Callable[..., Any], deterministic: bool
) -> CoreAttention:
    """`attend_within` takes documents side by side without padding (varlen)."""

    def core_attention(
        q: Tensor, k: Tensor, v: Tensor, start_BS: Tensor | None = None, ends_N: Tensor | None = None
    ) -> Tensor:
        if start_BS is None:
            return _output(attend(q, k, v, causal=True, deterministic=deterministic))
        longest = q.shape[1]
        if ends_N is None:
            ends_N = _document_ends(start_BS)
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
    """`Positions.ends_N` from where each token's document begins; a GPU is waited for."""
    first_BS = start_BS == torch.arange(start_BS.shape[1], device=start_BS.device)
    begins_N = first_BS.flatten().nonzero().flatten()
    return torch.cat((begins_N, begins_N.new_tensor([start_BS.numel()]))).int()
