"""The compute-optimal split of a compute into size and tokens, by all members of a mixture together."""

from collections.abc import Callable

import numpy as np

from planner.scaling.data_constrained import UniqueTokens, effective_tokens, one_epoch
from planner.scaling.laws import Array, optimum
from planner.scaling.model_averaging import Mixture
from planner.scaling.posterior import DrawInterval, Posterior, interval

UNDETERMINED = 100.0
"""Where the ends of the 95 % interval of tokens per size are further apart than this, the runs do not say how to split:
published laws lie within a factor of ten of each other."""
_WIDEST, _STEPS = 12.0, 60
"""Golden-section search of ln size, this far above the best split of fresh text: to 4e-12 of it."""
_GOLDEN = (np.sqrt(5) - 1) / 2
_COSTLIER = 7.0
"""The same below, for a cost that is no constant times the size: a thousandth of it. M / 6 and N differ by a factor of
300 at most, in the catalog's smallest shapes under a vocabulary of 100,000."""
Cost = Callable[[Array], Array]
"""FLOP per trained token of models of these sizes."""


def best_split(
    mixture: Mixture, flop: float, unique_tokens: UniqueTokens = np.inf, cost: Cost | None = None
) -> dict[str, DrawInterval]:
    """95 % intervals of the compute-optimal "size", "tokens", "tokens_per_size" and noise-free "loss" at a budget, over
    all weighted members. Tokens beyond the unique ones count as the fresh ones that they are worth. `cost` is what
    models of a size cost, FLOP per token; None for a constant times the size, as the runs count."""
    splits = [_optimum(law, flop, unique_tokens, cost) for law in mixture.laws]
    size, tokens, loss = (mixture.mixed(column) for column in zip(*splits, strict=True))
    quantities = {"size": size, "tokens": tokens, "tokens_per_size": tokens / size, "loss": loss}
    return {name: interval(values) for name, values in quantities.items()}


def undetermined(split: dict[str, DrawInterval]) -> bool:
    """Whether the runs leave open how to split the compute."""
    ratio = split["tokens_per_size"]
    return not ratio.high < UNDETERMINED * ratio.low


def _optimum(
    law: Posterior, flop: float, unique_tokens: UniqueTokens, cost: Cost | None
) -> tuple[Array, Array, Array]:
    """Size, tokens and loss of each draw's best run."""
    form, cost_per = law.law.form, law.law.cost_per
    size, tokens, loss = optimum(form, np.exp(law.log_params), flop, cost_per)
    if cost is None and (tokens <= one_epoch(unique_tokens)).all():
        return size, tokens, loss

    def tokens_of(sizes: Array) -> Array:
        return np.asarray(flop / cost_per / sizes if cost is None else flop / cost(sizes))

    def log_loss(log_size: Array) -> Array:
        sizes = np.exp(log_size)
        return law.log_loss_of_each(sizes, np.asarray(effective_tokens(tokens_of(sizes), unique_tokens)))

    # Repeats only make larger models better; with a cost of its own the best size may be smaller, too.
    low, high = np.log(size) - (0 if cost is None else _COSTLIER), np.log(size) + _WIDEST
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = log_loss(left), log_loss(right)
    for _ in range(_STEPS):
        lower = at_left < at_right
        low, high = np.where(lower, low, left), np.where(lower, right, high)
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        at_left, at_right = log_loss(left), log_loss(right)
    best = np.exp((low + high) / 2)
    return best, tokens_of(best), np.exp(log_loss(np.log(best)))
