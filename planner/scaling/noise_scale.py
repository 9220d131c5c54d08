"""Posterior of an unknown standard deviation: a log-normal prior, updated by residuals.

Under the prior a standard deviation ten times smaller than expected is as likely as one ten times larger, and a few
residuals can move it by orders of magnitude. The posterior is kept on a grid, so that any likelihood will do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.scaling.laws import Array

_SDS = np.geomspace(1e-6, 1.0, 600)
"""The grid of relative standard deviations: steps of 2.3 %."""


@dataclass(frozen=True)
class NoiseScale:
    """A posterior distribution of a standard deviation."""

    sd: Array
    """The grid, increasing."""
    cumulative: Array
    """Probability that the standard deviation is at most that."""

    def quantile(self, probability: Array) -> Array:
        """Standard deviations at these probabilities."""
        return np.asarray(np.exp(np.interp(probability, self.cumulative, np.log(self.sd))))

    def draw(self, generator: np.random.Generator, draws: int) -> Array:
        """(draws,) standard deviations."""
        return self.quantile(generator.random(draws))

    @property
    def median(self) -> float:
        """Median of the posterior."""
        return float(self.quantile(np.array(0.5)))


def noise_scale(median: float, factor: float, log_likelihood: Callable[[Array], Array]) -> NoiseScale:
    """The posterior: a log-normal prior around `median`, two thirds of it within `factor` either way, times the
    likelihood of standard deviations (an array of any shape in, the same out)."""
    log_density = log_likelihood(_SDS) - 0.5 * (np.log(_SDS / median) / np.log(factor)) ** 2
    density = np.exp(log_density - log_density.max())
    cumulative = np.cumsum(density) - density / 2
    return NoiseScale(_SDS, cumulative / density.sum())


def noise_scale_from_residuals(median: float, factor: float, square: float, freedom: float) -> NoiseScale:
    """The posterior after residuals with sum of squares `square` and `freedom` degrees of freedom; the likelihood is
    sd**-freedom exp(-square / (2 sd**2))."""
    return noise_scale(median, factor, lambda sd: -freedom * np.log(sd) - square / (2 * sd**2))
