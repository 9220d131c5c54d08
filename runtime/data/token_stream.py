"""Tokens in many places as one sequence: ranges of memory-mapped files, one after the other."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Tokens(Protocol):
    """A split's tokens: an array, or a `TokenStream`."""

    def __len__(self) -> int:
        """Number of tokens."""

    def __getitem__(self, place: slice, /) -> NDArray[Any]:
        """The tokens from `start` to before `stop`."""


class TokenStream:
    """The tokens of ranges of arrays."""

    def __init__(self, arrays: Sequence[NDArray[Any]], ranges: NDArray[np.int64]) -> None:
        """`ranges` has a row for each range: number of the array, first token, and the token behind the last."""
        self._arrays = arrays
        self._ranges = ranges
        self._ends = np.cumsum(ranges[:, 2] - ranges[:, 1])

    def __len__(self) -> int:
        """Number of tokens."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, place: slice) -> NDArray[Any]:
        """The tokens from `start` to before `stop`: a view where they lie in one range."""
        start, stop, _ = place.indices(len(self))
        parts: list[NDArray[Any]] = []
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            array, _, last = self._ranges[number].tolist()
            at = last - (int(self._ends[number]) - start)
            taken = min(stop - start, last - at)
            parts.append(self._arrays[array][at : at + taken])
            start, number = start + taken, number + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [self._arrays[0][:0]])
