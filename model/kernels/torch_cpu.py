"""Operations for a CPU, in torch: multiplications whose rows are innermost in memory, and attention in blocks of rows.

Blocks leave out most of what the mask hides, and with the sequence innermost vector units run along it, however small
the heads are.

B batch    S sequence    R = B S rows    T query heads    G key and value heads    K head size    F = (T + 2 G) K
P = T B pairs of a head and a sequence    Q rows of a head's attention square    C columns they look at
"""

from typing import Any

import torch
from torch import Tensor

from model.kernels.interfaces import Heads, Positions
from model.kernels.torch_ops import rotate

BLOCK_ROWS = 128
"""Q. At a context of 256, 3/4 of the square is computed. 64 and 256 were within 5 % of this, on either side, at widths
16 to 256."""
MAX_SAVED_CONTEXT = 1024
"""Contexts up to which the probabilities are saved for backward; beyond, they are recomputed to save memory."""


def linear(x_RH: Tensor, weight_FH: Tensor) -> Tensor:
    """x weight', (R, F), with R innermost in memory."""
    return torch.mm(weight_FH, x_RH.t()).t()


def attention_forward(qkv_RF: Tensor, heads: Heads, at: Positions) -> tuple[Tensor, Any]:
    """Attention block by block of rows; see `Attention`."""
    B, S, T, G, K = heads
    qkv_FBKS = qkv_RF.t().view(T + 2 * G, K, B, S).transpose(1, 2)
    turned = qkv_RF.new_empty(T + G, B, K, S)
    rotate(qkv_FBKS[: T + G], at, 1, turned)
    turned[:T].mul_(K**-0.5)
    q_PKS, k_PKS = turned[:T].view(-1, K, S), _repeat(turned[T:], heads)
    v_PKS = _repeat(qkv_FBKS[T + G :], heads)
    outputs, saved = [], []
    for rows, columns in _blocks(S):
        p_PQC = _probabilities(q_PKS[..., rows], k_PKS[..., columns], rows, at)
        outputs.append(torch.bmm(v_PKS[..., columns], p_PQC.mT))
        saved.append(p_PQC if S <= MAX_SAVED_CONTEXT else None)
    o_RF = _cat(outputs).view(T, B, K, S).transpose(1, 2).reshape(T * K, B * S).t()
    return o_RF, (q_PKS, k_PKS, v_PKS, saved)


def attention_backward(do_RF: Tensor, saved: Any, heads: Heads, at: Positions) -> Tensor:
    """Its gradient, the last block first: that one has all columns."""
    B, S, T, G, K = heads
    q_PKS, k_PKS, v_PKS, saved = saved
    do_PKS = do_RF.t().view(T, K, B, S).transpose(1, 2).reshape(-1, K, S)
    (*others, last), (*others_kept, last_kept) = _blocks(S), saved
    dq_PKQ, dk_PKS, dv_PKS = _block_backward(do_PKS, q_PKS, k_PKS, v_PKS, last, last_kept, at)
    dqs = [dq_PKQ]
    for block, p_PQC in zip(reversed(others), reversed(others_kept), strict=True):
        dq_PKQ, dk_PKC, dv_PKC = _block_backward(do_PKS, q_PKS, k_PKS, v_PKS, block, p_PQC, at)
        dqs.insert(0, dq_PKQ)
        dk_PKS[..., block[1]].add_(dk_PKC)
        dv_PKS[..., block[1]].add_(dv_PKC)
    dq_PKS = _cat(dqs).mul_(K**-0.5)
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
    firsts = range(0, sequence, BLOCK_ROWS)
    lasts = [min(first + BLOCK_ROWS, sequence) for first in firsts]
    return [(slice(first, last), slice(0, last)) for first, last in zip(firsts, lasts, strict=True)]


def _probabilities(q_PKQ: Tensor, k_PKC: Tensor, rows: slice, at: Positions) -> Tensor:
    """softmax(q' k) of a block of rows, the future masked: (P, Q, C)."""
    scores_PQC = torch.bmm(q_PKQ.mT, k_PKC)
    size = rows.stop - rows.start
    scores_PQC[..., rows].add_(at.future_QQ if size == BLOCK_ROWS else at.future_QQ[:size, :size])
    if at.start_BS is not None:
        before_BQC = torch.arange(rows.stop) < at.start_BS[:, rows, None]
        scores_PQC.view(-1, *before_BQC.shape).masked_fill_(before_BQC, -torch.inf)
    torch.ops.aten._softmax.out(scores_PQC, -1, False, out=scores_PQC)
    return scores_PQC


def _cat(blocks: list[Tensor]) -> Tensor:
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
