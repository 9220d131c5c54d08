"""When text is short: a token that is seen again teaches less, so that repeated data count as fewer fresh ones."""

from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

REPEAT_SCALE = 15.39
"""R_D*: repeated epochs after which one more is worth 1/e of a fresh one (Muennighoff et al. 2023, arXiv 2305.16264,
section 6 and appendix A)."""
TRUSTED_EPOCHS = 16.0
"""Up to here the discounted loss is unbiased on Muennighoff et al.'s own runs; between 16 and 64 epochs they end 5 %
above it, more beyond, since they overfit (bench/data_limits.py)."""


@dataclass(frozen=True)
class MixedText:
    """The unique tokens of a mix: each source repeats its own, as soon as its share of a run's tokens exceeds them."""

    sources: tuple[tuple[float, float], ...]
    """Of each source: its share of a run's tokens, and its unique tokens. Shares are above 0 and add up to 1."""

    def effective(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """Fresh tokens that a run's tokens are worth: the sum over its sources."""
        drawn = np.asarray(tokens, float)
        found = [effective_tokens(share * drawn, unique) for share, unique in self.sources]
        return np.asarray(sum(found), float)

    @property
    def one_epoch(self) -> float:
        """Tokens of the longest run that repeats none of any source."""
        return min(unique / share for share, unique in self.sources)

    def scaled(self, factor: float) -> "MixedText":
        """The mix with so many times the unique tokens of every source."""
        return MixedText(tuple((share, factor * unique) for share, unique in self.sources))


UniqueTokens = float | MixedText
"""Different tokens of a text that runs draw from; may be infinite."""


def one_epoch(unique: UniqueTokens) -> float:
    """Tokens of the longest run that repeats nothing."""
    return unique.one_epoch if isinstance(unique, MixedText) else unique


@overload
def effective_tokens(tokens: float, unique: UniqueTokens) -> float: ...
@overload
def effective_tokens(tokens: NDArray[np.float64], unique: ArrayLike | MixedText) -> NDArray[np.float64]: ...
def effective_tokens(tokens: ArrayLike, unique: ArrayLike | MixedText) -> float | NDArray[np.float64]:
    """Fresh tokens that `tokens` drawn from `unique` ones are worth: U + U R* (1 - exp(-(D/U - 1) / R*)).

    Numbers or arrays of one shape; unique tokens may be infinite. Of a mix, the sum over its sources.

    Muennighoff et al. 2023, Eq. 5, for D tokens from U unique ones. Four epochs are worth 3.73 fresh ones, sixteen
    10.6, endless ones 16.4.
    """
    if isinstance(unique, MixedText):
        mixed = unique.effective(tokens)
        return float(mixed) if mixed.ndim == 0 else mixed
    drawn, existing = np.asarray(tokens, float), np.asarray(unique, float)
    if not (np.all(drawn > 0) and np.all(existing > 0)):
        raise ValueError(f"tokens {tokens!r} and unique tokens {unique!r} must be positive")
    seen = np.minimum(drawn, existing)
    worth = seen * (1 - REPEAT_SCALE * np.expm1(-(drawn / seen - 1) / REPEAT_SCALE))
    return float(worth) if worth.ndim == 0 else worth
