"""Documents in sequences that are packed with several: where each begins, and which predictions count.

B sequences    S their tokens
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def document_starts(tokens_BS: Tensor, end_of_document: int) -> Tensor:
    """Where each token's document begins in its sequence, int64: at the sequence's first token, or at the one after the
    last `end_of_document` before it. That token itself belongs to the document that it ends."""
    place_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
    begins_BS = torch.zeros_like(tokens_BS, dtype=torch.bool)
    begins_BS[:, 1:] = tokens_BS[:, :-1] == end_of_document
    return (place_S * begins_BS).cummax(1).values


def document_ends(tokens_BS: NDArray[np.int64], end_of_document: int) -> NDArray[np.int32]:
    """Where documents begin in the sequences one after another, and the end of all: (documents + 1,).

    On the host, since a device would have to be waited for: how many there are is a value.
    """
    begins_BS = np.ones(tokens_BS.shape, bool)
    begins_BS[:, 1:] = tokens_BS[:, :-1] == end_of_document
    return np.append(begins_BS.ravel().nonzero()[0], tokens_BS.size).astype(np.int32)


def loss_weights(tokens_BS: Tensor, end_of_document: int) -> Tensor:
    """0 where the next token is another document's first, which nothing before it says anything of; else 1. Bool."""
    return tokens_BS != end_of_document
