"""Cross-entropy whose gradient takes the place of the logits: no second tensor of their size is ever alive.

Arithmetic is fp32 whatever the logits are, a few rows at a time (DeepSeek LLM, section 2.4: bf16 logits are converted
inside the kernel, and the gradient is written in place).
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 2**20
"""Logits that are held in fp32 at once, 4 MB: less than a core's cache, far less than any model's logits."""


def cross_entropy(logits_RV: Tensor, targets_R: Tensor, step_tokens: int) -> Tensor:
    """Sum of the rows' cross-entropies over `step_tokens`, an fp64 scalar in nats. The logits are used up.

    Forward writes (softmax - one_hot) / step_tokens over the logits where a gradient is wanted; backward hands that
    out. The result must be the root of the graph: its own gradient is taken as 1.
    """
    result: Tensor = _InPlace.apply(logits_RV, targets_R, step_tokens)  # type: ignore[no-untyped-call]
    return result


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, step_tokens: int) -> Tensor:
        rows = max(1, CHUNK_LOGITS // logits.shape[1])
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for part, wanted in zip(logits.split(rows), targets.split(rows), strict=True):
            total += _chunk(part, wanted.unsqueeze(1), step_tokens, ctx.needs_input_grad[0])
        ctx.gradient = logits
        return total / step_tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient, None, None


def _chunk(logits: Tensor, targets: Tensor, step_tokens: int, gradient: bool) -> Tensor:
    """The chunk's summed cross-entropy in fp64; its gradient is left in `logits`."""
    log_p = torch.log_softmax(logits.float(), dim=1)
    loss = log_p.gather(1, targets).sum(dtype=torch.float64).neg()
    if gradient:
        p = log_p.exp_()
        p.scatter_add_(1, targets, p.new_full((1, 1), -1.0).expand_as(targets))
        logits.copy_(p.mul_(1.0 / step_tokens))
    return loss
