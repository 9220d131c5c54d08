"""A standard deviation that is not known: believed beforehand to be about so much, then read from residuals.

The belief is a log-normal, so that a spread ten times smaller than expected is as possible as one ten times larger, and
a few residuals move it by orders of magnitude where they must. Its posterior is kept on a grid: any likelihood will do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.scaling.laws import Array

_SMALLEST, _LARGEST, _STEPS = 1e-6, 1.0, 600
"""The grid, in the logarithm of a relative standard deviation: steps of 2.3 %."""


@dataclass(frozen=True)
class NoiseScale:
    """A distribution over a standard deviation."""

    sd: Array
    """The grid, increasing."""
    cumulative: Array
    """Probability that the spread is at most that."""

    def quantile(self, probability: Array) -> Array:
        """Spreads at these probabilities."""
        return np.asarray(np.exp(np.interp(probability, self.cumulative, np.log(self.sd))))

    def draw(self, generator: np.random.Generator, draws: int) -> Array:
        """(draws,) spreads."""
        return self.quantile(generator.random(draws))

    @property
    def median(self) -> float:
        """As likely above as below."""
        return float(self.quantile(np.array(0.5)))


def noise_scale(median: float, factor: float, log_likelihood: Callable[[Array], Array]) -> NoiseScale:
    """What is believed after seeing: a log-normal around `median`, two thirds of it within `factor` either way, times
    a likelihood of spreads (any shape in, the same out)."""
    sd = np.geomspace(_SMALLEST, _LARGEST, _STEPS)
    log_density = log_likelihood(sd) - 0.5 * (np.log(sd / median) / np.log(factor)) ** 2
    density = np.exp(log_density - log_density.max())
    cumulative = np.cumsum(density) - density / 2
    return NoiseScale(sd, cumulative / density.sum())


def noise_scale_from_residuals(median: float, factor: float, square: float, freedom: float) -> NoiseScale:
    """After residuals whose squares sum to `square` with `freedom` degrees: sd**-freedom exp(-square / (2 sd**2))."""
    return noise_scale(median, factor, lambda sd: -freedom * np.log(sd) - square / (2 * sd**2))
