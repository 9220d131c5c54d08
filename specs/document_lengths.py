"""How long a corpus's documents are, and how much of a sequence attention sees where it stays within documents."""

import math
from collections.abc import Iterable, Sequence

from pydantic import Field

from specs.document.base import Spec

BINS_PER_OCTAVE = 24
"""Bins are 2.9 % wide, narrow enough that lengths in one are as good as equal: attended lengths are within .1 %."""


class LengthBin(Spec):
    """Documents of about one length."""

    documents: int = Field(ge=1)
    """How many there are."""
    tokens: int = Field(ge=1)
    """Their tokens together, those that end them included."""


def length_bin(tokens: int) -> int:
    """The bin of a document with so many tokens."""
    return math.floor(BINS_PER_OCTAVE * math.log2(tokens))


def mean_attended_tokens(bins: Iterable[LengthBin], context: int) -> float:
    """Mean tokens of a token's own document within its sequence: of documents packed one after the other and cut every
    `context` tokens, in tokens.

    It takes the context's place where attention over the full square is counted, as in M = 6 N + 12 L d s: a sequence
    whose documents have lengths l has sum(l^2) of its pairs left, sum(l^2) / sum(l) for each token. Two tokens of a
    document that are k apart fall into one sequence with probability 1 - k / context, wherever the cuts lie, so that a
    document of length l leaves the sum over |k| < l of (l - |k|) max(0, 1 - |k| / context).
    """
    pairs = tokens = 0.0
    for one in bins:
        length = one.tokens / one.documents
        pairs += one.documents * _pairs(length, context)
        tokens += one.tokens
    return pairs / tokens


def _pairs(length: float, context: int) -> float:
    """The pairs of a document that fall into one sequence on average."""
    m = min(math.ceil(length), context) - 1
    first, second = m * (m + 1) / 2, m * (m + 1) * (2 * m + 1) / 6
    return length + 2 * (m * length - first * (1 + length / context) + second / context)


def weighted_mean(attended: Sequence[tuple[float, float]]) -> float:
    """That of several sources: (share of the tokens, attended tokens) of each."""
    return sum(share * tokens for share, tokens in attended) / sum(share for share, _ in attended)
