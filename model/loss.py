"""Cross-entropy whose gradient takes the place of the logits: no second tensor of their size is ever alive.

Arithmetic is fp32 whatever the logits are, a few rows at a time (DeepSeek LLM, section 2.4: bf16 logits are converted
inside the kernel, and the gradient is written in place). The vocabulary may be split over an axis.

R rows, a token each    V this rank's part of the vocabulary
"""

from typing import Any

import torch
from torch import Tensor

from model.collectives import max_over, sum_over
from model.mesh import Axis

CHUNK_LOGITS = 2**18
"""Logits that are worked on at once: 1 MiB in fp32, half of a server core's L2 cache."""


def cross_entropy(logits_RV: Tensor, targets_R: Tensor, step_tokens: int, vocab: Axis) -> Tensor:
    """Sum of the rows' cross-entropies over `step_tokens`, an fp64 scalar in nats. The logits are used up.

    `targets_R` are int64 in the whole vocabulary, of which this rank holds V from V * vocab.rank on. Forward writes
    (softmax - one_hot) / step_tokens over the logits where a gradient is wanted; backward hands that out. The result
    must be the root of the graph: RuntimeError where its own gradient is not 1.
    """
    return _InPlace.apply(logits_RV, targets_R, step_tokens, vocab)  # type: ignore[no-untyped-call,no-any-return]


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, step_tokens: int, vocab: Axis) -> Tensor:
        rows = max(1, CHUNK_LOGITS // logits.shape[1])
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for part, wanted in zip(logits.split(rows), targets.split(rows), strict=True):
            total += _chunk(
                part, wanted.unsqueeze(1), step_tokens if ctx.needs_input_grad[0] else None, vocab
            )
        ctx.gradient = logits.detach()
        return total / step_tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        torch._assert_async(grads[0] == 1, "the loss is not the root of the graph, or was scaled")
        gradient, ctx.gradient = ctx.gradient, None
        return gradient, None, None, None


def _chunk(logits_RV: Tensor, target_R1: Tensor, step_tokens: int | None, vocab: Axis) -> Tensor:
    """The chunk's summed cross-entropy in fp64; its gradient is left in the logits unless `step_tokens` is None."""
    work_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    work_RV.sub_(max_over(work_RV.amax(1, keepdim=True), vocab))
    column_R1, held_R1 = _columns(target_R1, work_RV, vocab)
    wanted_R1 = sum_over(work_RV.gather(1, column_R1) * held_R1, vocab)
    total_R1 = sum_over(work_RV.exp_().sum(1, keepdim=True), vocab)
    if step_tokens is not None:
        work_RV.div_(total_R1 * step_tokens)
        work_RV.scatter_(1, column_R1, work_RV.gather(1, column_R1).sub_(held_R1 / step_tokens))
        if work_RV is not logits_RV:
            logits_RV.copy_(work_RV)
    return (total_R1.log_() - wanted_R1).sum(dtype=torch.float64)


def _columns(target_R1: Tensor, work_RV: Tensor, vocab: Axis) -> tuple[Tensor, Tensor | float]:
    """The targets' columns in this rank's part, and 1 where they are here; where not, column 0 and 0."""
    if vocab.size == 1:
        return target_R1, 1.0
    columns = work_RV.shape[1]
    column_R1 = target_R1 - columns * vocab.rank
    held_R1 = (column_R1 >= 0) & (column_R1 < columns)
    return column_R1 * held_R1, held_R1.to(work_RV.dtype)
