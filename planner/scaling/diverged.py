"""Runs that lie far off what all other runs say: diverged, or with a loss of another kind."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.scaling.laws import COUPLED, TIED, VALLEY, Array
from planner.scaling.points import LARGEST_LOSS, Points
from planner.scaling.posterior import fit_law

_FAR_DEVIATIONS, _FAR_SHARE = 8.0, 0.1
"""A run is far off where its loss is by this many robust standard deviations and by this share off every law: none of
the 2,487 runs of nineteen public ladders is (docs/log.md)."""
_MAD_TO_SD = 1.4826
"""Standard deviation of Gaussian values over the median of their distances from the middle."""
_MOST_LEFT_OUT = 0.25
"""If more of the runs are far off, there is no crowd to be far from."""
_LAWS = (TIED, COUPLED, VALLEY)
_RISING, _COMPARED = 0.75, 500
"""If more than this share of the pairs of runs rise, they are no losses; so many runs are compared."""


class UnusableLossesError(ValueError):
    """No law can rest on the losses: they are not in nats per token, or too many are far off the others."""


@dataclass(frozen=True)
class LeftOut:
    """A run that no law is fitted on."""

    row: int
    """Its place among the runs."""
    off: float
    """ln of its loss over the nearest law's."""


def without_diverged(runs: Points) -> tuple[Points, tuple[LeftOut, ...]]:
    """The runs without those far off all others, and which those are, in their order.

    The farthest are taken out first and the laws fitted again, since they pull the laws towards themselves and others
    seem far. UnusableLossesError where the losses cannot be nats per token, or too many of the runs are far off.
    """
    _check_losses(runs)
    kept = np.ones(len(runs.loss), bool)
    while True:
        off, far = _distances(runs, kept)
        if not (far & kept).any():
            break
        kept &= ~(far & (np.abs(off) >= np.abs(off[far & kept]).max() / 2))
        if (~kept).mean() > _MOST_LEFT_OUT:
            raise UnusableLossesError(
                f"{(~kept).sum()} of {len(kept)} runs lie far off what the others say, so that no law can rest on "
                "them; look for runs of other texts or units among them, and for diverged ones"
            )
    kept |= ~far
    return runs.take(kept), tuple(LeftOut(row, float(off[row])) for row in np.flatnonzero(~kept).tolist())


def _distances(runs: Points, kept: NDArray[np.bool_]) -> tuple[Array, NDArray[np.bool_]]:
    """ln of each run's loss over that of the nearest law of the kept runs, and whether that is far."""
    offs, deviations = [], []
    for form in _LAWS:
        law = fit_law(form, runs.take(kept))
        off = np.log(runs.loss) - law.predict(runs.size, runs.fresh_tokens).log_loss
        offs.append(off)
        deviations.append(np.abs(off) / (_MAD_TO_SD * np.median(np.abs(off[kept])) + 1e-12))
    distance = np.abs(offs)
    nearest = np.asarray(offs)[distance.argmin(axis=0), np.arange(len(runs.loss))]
    far = (np.min(deviations, axis=0) > _FAR_DEVIATIONS) & (np.abs(nearest) > _FAR_SHARE)
    return nearest, far


def _check_losses(runs: Points) -> None:
    """Refuse perplexities and accuracies, as far as they can be told from losses."""
    if _share_rising(runs) > _RISING:
        raise UnusableLossesError(
            "the losses rise with size and with tokens; are these accuracies? A forecast needs losses in nats per token"
        )
    middle = float(np.median(runs.loss))
    if middle > LARGEST_LOSS:
        raise UnusableLossesError(
            f"the median loss is {middle:.4g}, but no vocabulary has losses above {LARGEST_LOSS:g} nats per token; are "
            "these perplexities? Give their natural logarithms"
        )


def _share_rising(runs: Points) -> float:
    """Among pairs of a run and another of more size and more tokens, those where the other's loss is higher; 0 without
    any pair. A few diverged runs hardly move it."""
    order = np.argsort(runs.flop, kind="stable")
    some = order[np.unique(np.linspace(0, len(order) - 1, _COMPARED).astype(int))]
    size, tokens, loss = runs.size[some], runs.fresh_tokens[some], runs.loss[some]
    above = (size[:, None] < size) & (tokens[:, None] < tokens)
    rising = above & (loss[:, None] < loss)
    return float(rising.sum() / max(above.sum(), 1))
