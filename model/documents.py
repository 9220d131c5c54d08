"""Documents in sequences that are packed with several: where each begins, and which predictions count.

B sequences    S their tokens
"""

import torch
from torch import Tensor


def document_starts(tokens_BS: Tensor, end_of_document: int) -> Tensor:
    """Where each token's document begins in its sequence, int64: at the sequence's first token, or at the one after the
    last `end_of_document` before it. That token itself belongs to the document that it ends."""
    place_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
    begins_BS = torch.zeros_like(tokens_BS, dtype=torch.bool)
    begins_BS[:, 1:] = tokens_BS[:, :-1] == end_of_document
    return (place_S * begins_BS).cummax(1).values


def loss_weights(tokens_BS: Tensor, end_of_document: int) -> Tensor:
    """0 where the next token is another document's first, which nothing before it says anything of; else 1. Bool."""
    return tokens_BS != end_of_document
