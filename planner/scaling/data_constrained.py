"""When text is short: a token that is seen again teaches less, so that repeated data count as fewer fresh ones."""

import numpy as np

REPEAT_SCALE = 15.39
"""R_D*: repeated epochs after which one more is worth 1/e of a fresh one (Muennighoff et al. 2023, arXiv 2305.16264,
section 6 and appendix A)."""
TRUSTED_EPOCHS = 16.0
"""Up to here the discounted loss is unbiased on Muennighoff et al.'s own runs; between 16 and 64 epochs they end 5 %
above it, more beyond, since they overfit (bench/data_limits.py)."""


def effective_tokens(tokens: float, unique: float) -> float:
    """Fresh tokens that `tokens` drawn from `unique` ones are worth: U + U R* (1 - exp(-(D/U - 1) / R*)).

    Muennighoff et al. 2023, Eq. 5, for D tokens from U unique ones. Four epochs are worth 3.73 fresh ones, sixteen
    10.6, endless ones 16.4.
    """
    if not (tokens > 0 and unique > 0):
        raise ValueError(f"tokens {tokens} and unique tokens {unique} must be positive")
    repeats = tokens / unique - 1
    if repeats <= 0:
        return float(tokens)
    return float(unique * (1 - REPEAT_SCALE * np.expm1(-repeats / REPEAT_SCALE)))
