"""Cross-entropy whose gradient takes the place of the logits: no second tensor of their size is ever alive.

Arithmetic is fp32 whatever the logits are (DeepSeek LLM, section 2.4: bf16 logits are converted inside the kernel, and
the gradient is written in place). The vocabulary may be split over an axis: each rank measures its columns, the ranks
all-gather what they measured, and each differentiates its columns.

R rows, a token each    V this rank's part of the vocabulary
"""

from typing import Any

import torch
from torch import Tensor

from model.collectives import all_gather
from model.kernels import CrossEntropy, Kernels
from model.kernels.interfaces import Measured
from model.mesh import Axis


def cross_entropy(
    logits_RV: Tensor,
    column_R: Tensor,
    step_tokens: float,
    vocab: Axis,
    kernels: Kernels,
    weight_R: Tensor | None = None,
) -> Tensor:
    """Sum of the rows' cross-entropies over `step_tokens`, an fp64 scalar in nats. The logits are overwritten.

    `column_R` are the targets' columns among this rank's, int64, outside of [0, V) where another rank has them.
    `weight_R` weighs each row's cross-entropy, >= 0; None is 1 for all. `step_tokens` is the sum of all weights of the
    step. Forward writes (softmax - one_hot) weight / step_tokens over the logits where a gradient is needed; backward
    hands that out. The result must be the root of the graph: RuntimeError where its own gradient is not 1.
    """
    return _InPlace.apply(logits_RV, column_R, step_tokens, vocab, kernels.cross_entropy, weight_R)  # type: ignore[no-untyped-call,no-any-return]


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        column_R: Tensor,
        step_tokens: float,
        vocab: Axis,
        kernel: CrossEntropy,
        weight_R: Tensor | None,
    ) -> Tensor:
        rows, columns = logits.shape
        at_once = max(1, kernel.chunk_logits // columns) if kernel.chunk_logits else rows
        share = 1 / step_tokens if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        weights = [None] * -(-rows // at_once) if weight_R is None else weight_R.split(at_once)
        parts = zip(logits.split(at_once), column_R.split(at_once), weights, strict=True)
        for part, columns_of_part, weight_of_part in parts:
            total += _chunk(part, columns_of_part, weight_of_part, share, vocab, kernel)
        ctx.gradient = logits.detach()
        return total / step_tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        torch._assert_async(grads[0] == 1, "the loss must be the root of the graph, and must not be scaled")
        gradient, ctx.gradient = ctx.gradient, None
        return gradient, None, None, None, None, None


def _chunk(
    logits_RV: Tensor,
    column_R: Tensor,
    weight_R: Tensor | None,
    share: float | None,
    vocab: Axis,
    kernel: CrossEntropy,
) -> Tensor:
    """The chunk's summed cross-entropy in fp64; its gradient times `share` is left in the logits, if that is given."""
    found = kernel.measure(logits_RV, column_R)
    peak_R1, total_R1, target_logit_R1, factor_R1 = _all_ranks(found, vocab)
    if share is not None:
        kernel.differentiate(logits_RV, column_R, found, factor_R1 * share / total_R1, share)
        if weight_R is not None:
            logits_RV.mul_(weight_R.unsqueeze(1))
    loss_R1: Tensor = total_R1.log() + (peak_R1 - target_logit_R1)
    if weight_R is not None:
        loss_R1 = loss_R1 * weight_R.unsqueeze(1)
    return loss_R1.sum(dtype=torch.float64)


def _all_ranks(found: Measured, vocab: Axis) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
    """Peak, total and target over all ranks' columns, and what this rank's exponentials are to be multiplied by."""
    if vocab.size == 1:
        return found.peak, found.total, found.target_logit, 1.0
    mine_R3 = torch.cat((found.peak, found.total, found.target_logit), dim=1)
    peaks, totals, target_logits = all_gather(mine_R3, vocab).split(1, dim=2)
    peak_R1 = peaks.amax(0)
    factors = (peaks - peak_R1).exp_()
    return peak_R1, (totals * factors).sum(0), target_logits.sum(0), factors[vocab.rank]
