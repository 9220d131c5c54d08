"""The lengths of the documents of a split, counted from the tokens that end them."""

from collections import defaultdict

import numpy as np

from runtime.data.token_stream import Tokens
from specs.document_lengths import LengthBin, length_bin

_AT_ONCE = 2**24
"""Tokens that are looked at together: 64 MB at most."""


def document_lengths(tokens: Tokens, end_of_document: int) -> tuple[LengthBin, ...]:
    """The documents of a split by their lengths, shortest first; the token that ends one belongs to it."""
    found: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    begun = 0
    for start in range(0, len(tokens), _AT_ONCE):
        ends = np.flatnonzero(np.asarray(tokens[start : start + _AT_ONCE]) == end_of_document) + start + 1
        if len(ends):
            _add(found, np.diff(ends, prepend=begun))
            begun = int(ends[-1])
    if begun < len(tokens):
        _add(found, np.array([len(tokens) - begun]))
    return tuple(LengthBin(documents=found[one][0], tokens=found[one][1]) for one in sorted(found))


def _add(found: dict[int, list[int]], lengths: "np.typing.NDArray[np.int64]") -> None:
    values, counts = np.unique(lengths, return_counts=True)
    for length, count in zip(values.tolist(), counts.tolist(), strict=True):
        of_bin = found[length_bin(length)]
        of_bin[0] += count
        of_bin[1] += count * length
