"""The posterior of a law's constants given few, noisy runs and priors from published laws.

A ladder of a dozen small runs hardly determines the floor E, and so any extrapolation. So the constants get
priors, wide enough for every public data set we know. `fit_law` finds the most probable constants and a Gaussian around
them, by which hold-out splits are scored. `FittedLaw.draw` draws from the posterior by randomised maximum a posteriori
(Oliver 1996; Bardsley et al. 2014, "randomize-then-optimize"): each draw perturbs every run by its noise and every
prior by its width, and descends. All draws advance as one batch. With many runs the priors become negligible.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.scaling.laws import COUPLED, STANDARD, TIED, VALLEY, Array, Form, columns, log_value_and_gradient
from planner.scaling.levenberg_marquardt import Descents, LeastSquaresProblem, descend, unscaled
from planner.scaling.noise_scale import NoiseScale, noise_scale_from_residuals
from planner.scaling.points import Cells, Points, cells
from specs.law import Interval

NOISE_SD, _NOISE_FACTOR = 0.005, 3.0
"""Prior of the run-to-run standard deviation of log L, two thirds of it within this factor: seeds of byte-level pilots
of 1e11..1e13 FLOP spread 0.3 to 1.4 %, large runs 0.1 % (docs/log.md; Open Athena's Delphi)."""
NOISE_SLOPE, _NOISE_SLOPE_SD = 0.1, 0.05
"""Prior of the decimal orders by which that noise falls in a decade of compute: .8 orders over the nine decades between
those pilots and those large runs. The runs' own residuals move it."""
_SLOPES = np.linspace(-0.3, 0.6, 46)
_FIRST_NOISE_SD, _ROUNDS = 0.02, 6
"""Constants and noise are estimated in turn, starting from a large noise, so that no useful residual is clipped."""
_CLIP_SDS = 3.0
"""Residuals beyond this count as this in the estimate of the noise."""
_DRAW_TOLERANCE = 1e-6
LOG_LARGEST = 690.0
"""ln of 1e300, the largest constant that is written: a diverging constant stops there."""


@dataclass(frozen=True)
class DrawInterval:
    """Median and central interval of draws."""

    low: float
    median: float
    high: float

    def to_document(self) -> Interval:
        """The same for a document."""
        return Interval(value=self.median, low=self.low, high=self.high)


def interval(draws: ArrayLike) -> DrawInterval:
    """Median and central 95 % interval of draws of one quantity."""
    low, median, high = np.percentile(np.asarray(draws, float), [2.5, 50, 97.5])
    return DrawInterval(float(low), float(median), float(high))


@dataclass(frozen=True)
class Prediction:
    """What a fitted law says of runs that it has not seen, to first order in its constants."""

    log_loss: Array
    """(runs,) at the most probable constants."""
    gradient: Array
    """(constants, runs) derivatives of log L in the scaled log-constants."""
    covariance: Array
    """(constants, constants) of these constants' Gaussian."""
    noise_sd: Array
    """(runs,) standard deviation of log L that each run's own noise adds."""

    @property
    def law_variance(self) -> Array:
        """(runs,) variance of log L that comes from the constants."""
        return np.asarray(((self.covariance @ self.gradient) * self.gradient).sum(axis=0))

    def mean_variance(self, rows: Sequence[int], weights: Array) -> float:
        """The same of a weighted mean over some of the runs; the weights sum to 1."""
        slope = self.gradient[:, rows] @ weights
        return float(slope @ self.covariance @ slope)


@dataclass(frozen=True)
class FittedLaw:
    """A law's most probable constants on some runs, and the Gaussian around them."""

    form: Form
    cost_per: float
    problem: LeastSquaresProblem
    """Of the runs' bins."""
    prior: "Prior"
    state: Array
    """(constants,) most probable scaled log-constants."""
    covariance: Array
    """(constants, constants)"""
    noise: NoiseScale
    """Standard deviation of log L of one full-length run of the largest compute."""
    noise_slope: float
    """Decimal orders by which the noise falls in a decade of compute."""
    relative_sd: Array
    """(bins,) standard deviation of a bin's mean over that of one run of the largest compute."""
    bend: Array
    """(bins,) Huber's bend over the same."""
    log10_flop: float
    """Of the largest compute."""

    def predict(self, size: Array, fresh_tokens: Array) -> Prediction:
        """Its prediction of runs of these sizes and fresh tokens."""
        log_loss, gradient = log_value_and_gradient(
            self.form, self.state[None], self._scaled_logs(size, fresh_tokens)
        )
        noise = self.noise.median * self._noise_shape(size, fresh_tokens)
        return Prediction(log_loss[0], gradient[0], self.covariance, noise)

    def draw(self, draws: int, seed: int) -> "Posterior":
        """Draws from the posterior; deterministic in (law, draws, seed)."""
        generator = np.random.Generator(np.random.PCG64(seed))
        sds = self.noise.draw(generator, draws)
        noise = sds[:, None] * self.relative_sd
        targets = self.problem.log_loss + noise * generator.standard_normal(noise.shape)
        anchors = self.prior.draw(generator, draws)
        starts = np.broadcast_to(self.state, anchors.shape).copy()
        bend, places = sds[:, None] * self.bend, self.problem.rows(draws)
        goal = _descents(starts, places, targets, noise, bend, anchors, self.prior)
        ends, _ = descend(self.form, goal, _DRAW_TOLERANCE)
        return Posterior(self, unscaled(self.problem, ends), sds)

    def _scaled_logs(self, size: Array, fresh_tokens: Array) -> tuple[Array, ...]:
        variables = columns(self.form, size, fresh_tokens, self.cost_per)
        return tuple(np.log(v) - centre for v, centre in zip(variables, self.problem.centre, strict=True))

    def _noise_shape(self, size: Array, fresh_tokens: Array) -> Array:
        """Noise of runs over that of the largest; larger runs are as noisy as the largest."""
        beyond = np.log10(self.cost_per * size * fresh_tokens) - self.log10_flop
        return np.asarray(10.0 ** (-self.noise_slope * np.minimum(beyond, 0.0)))


@dataclass(frozen=True)
class Posterior:
    """Draws of a law's constants and of the runs' noise."""

    law: FittedLaw
    log_params: Array
    """(draws, constants)"""
    noise_sd: Array
    """(draws,) standard deviation of log L of one full-length run of the largest compute."""

    def log_loss(self, size: ArrayLike, fresh_tokens: ArrayLike) -> Array:
        """log L without noise at each target, (draws, targets)."""
        sizes, tokens = np.atleast_1d(size)[None], np.atleast_1d(fresh_tokens)[None]
        return self._log_losses(sizes, tokens)

    def log_loss_of_each(self, size: Array, fresh_tokens: Array) -> Array:
        """log L without noise by each draw at a target of its own, (draws,)."""
        return self._log_losses(size[:, None], fresh_tokens[:, None])[:, 0]

    def _log_losses(self, size: Array, fresh_tokens: Array) -> Array:
        form = self.law.form
        constants = np.moveaxis(np.exp(self.log_params)[:, None], -1, 0)
        with np.errstate(over="ignore"):
            loss = form.expression(*columns(form, size, fresh_tokens, self.law.cost_per), *constants)
        return np.asarray(np.log(loss))

    def constant(self, name: str) -> Array:
        """Draws of one constant, limited to the largest number that a document can hold."""
        return np.exp(np.minimum(self.log_params[:, self.law.form.index(name)], LOG_LARGEST))


# Median and standard deviation of the logarithm of each exponent, over fits to public data.
# Standard and tied: alpha .34, beta .28 (Hoffmann et al. 2022); .35, .37 (Besiroglu et al. 2024); .35
# (Muennighoff
# et al. 2023); our own fits: .25, .30 (Farseer), .31 (Gemstones).
# Coupled, our own fits of k, k alpha, k beta: .46, .18, .19 (Farseer); .77, .33, .33 (Epoch); .42, .21, .26
# (Gemstones); .48, .29, .50 (misfitting); .42, .45, .36 (datablations).
# Valley: gamma .154 (Hoffmann), .093 (Farseer), .166 (Epoch), .120 (Gemstones), .136 and .162 (Porian et al.
# 2024);
# a .45-.58 by data set (DeepSeek LLM, Table 4), .73 (Kaplan et al. 2020); kappa .03-.12 over the same
# profiles.
_EXPONENTS = {
    STANDARD.name: {"alpha": (0.35, 0.35), "beta": (0.35, 0.35)},
    TIED.name: {"alpha": (0.35, 0.35)},
    COUPLED.name: {"k alpha": (0.27, 0.3), "k beta": (0.31, 0.3), "k": (0.48, 0.35)},
    VALLEY.name: {"gamma": (0.14, 0.25), "a": (0.5, 0.2), "kappa": (0.06, 0.7)},
}
_FLOOR_SHARE = (0.4, 0.8)
"""The floor as a share of the lowest loss: from a tenth to all of it, which is wider than what is known (.25
of the lowest loss of tiny pilots, .6 to .9 of large runs)."""
_EXCESS_SHARE, _COEFFICIENT_WIDTH = 0.3, 1.2
"""Each power term's part of the median loss at the middle of the runs, within a factor of ten either way."""


def fit_law(form: Form, runs: Points) -> FittedLaw:
    """The most probable constants and noise of runs."""
    [law] = fit_laws(form, [cells(runs)])
    return law


def fit_laws(form: Form, evidence: Sequence[Cells]) -> list[FittedLaw]:
    """The most probable constants and noise of a law on each evidence, estimated in turn; all advance as one batch."""
    estimates = [_Estimate(form, joined) for joined in evidence]
    for _ in range(_ROUNDS):
        ends, _ = descend(form, _stacked([estimate.goal() for estimate in estimates]), _DRAW_TOLERANCE)
        for estimate, end in zip(estimates, ends, strict=True):
            estimate.update(end)
    return [estimate.law() for estimate in estimates]


class _Estimate:
    """A law's constants and noise on some cells, on their way to the most probable ones.

    A bin's target is the law there plus the mean residual of its cells, which is exact to first order. Replicates give
    the share of the noise that is due to seeds.
    """

    def __init__(self, form: Form, joined: Cells) -> None:
        variables = columns(form, joined.size, joined.fresh_tokens, joined.cost_per)
        logs = tuple(np.log(variable) for variable in variables)
        self._form, self._joined, self._prior = form, joined, prior_of(form, joined.loss)
        self._centre = tuple(float(log.mean()) for log in logs)
        self._variables = tuple(np.exp(log - at) for log, at in zip(logs, self._centre, strict=True))
        self._places = np.stack([joined.mean(np.log(v), np.ones_like(v)) for v in self._variables])
        flop = np.log10(joined.cost_per * joined.size * joined.fresh_tokens)
        self._log10_flop, self._below = float(flop.max()), flop.max() - flop
        self._seeds = noise_scale_from_residuals(NOISE_SD, _NOISE_FACTOR, joined.square, joined.freedom)
        self._noise_sd, self._seed_share, self._slope = _FIRST_NOISE_SD, 1.0, NOISE_SLOPE
        self._move(self._prior.mean)
        self._weigh()

    def goal(self) -> Descents:
        """One row: from here to the best constants for this noise."""
        noise, mean = self._noise_sd * self._relative[None], self._prior.mean[None]
        bend = self._noise_sd * self._bend[None]
        return _descents(
            self._state[None], self._places[None], self._targets[None], noise, bend, mean, self._prior
        )

    def update(self, state: Array) -> None:
        """Take these constants, and the noise that the residuals show."""
        self._move(state)
        scaled_gradient = self._gradient / (self._noise_sd * self._relative)
        self._covariance, used = _spread_of_constants(scaled_gradient, self._prior)
        joined = self._joined
        residuals = self._residuals / joined.relative_sd(self._seed_share)
        freedom = max(len(residuals) - used, 0.0)
        self._slope = self._noise_slope(self._clipped(residuals), freedom)
        standard = self._clipped(residuals) / 10 ** (self._slope * self._below)
        square = float((standard**2).sum())
        if self._seed_share == 1.0:  # the seeds explain all: their deviations show the same noise
            square, freedom = square + joined.square, freedom + joined.freedom
        self._noise = noise_scale_from_residuals(NOISE_SD, _NOISE_FACTOR, square, freedom)
        self._noise_sd = self._noise.median
        self._seed_share = min((self._seeds.median / self._noise_sd) ** 2, 1.0) if joined.freedom else 1.0
        self._weigh()

    def law(self) -> FittedLaw:
        """The law as it is now."""
        return FittedLaw(
            form=self._form,
            cost_per=self._joined.cost_per,
            problem=LeastSquaresProblem(self._form, tuple(self._places), self._targets, self._centre),
            prior=self._prior,
            state=self._state,
            covariance=self._covariance,
            noise=self._noise,
            noise_slope=self._slope,
            relative_sd=self._relative,
            bend=self._bend,
            log10_flop=self._log10_flop,
        )

    def _move(self, state: Array) -> None:
        """Residuals of the cells, and the law and its gradient at the bins."""
        with np.errstate(over="ignore"):
            law = np.log(self._form.expression(*self._variables, *np.exp(state).tolist()))
        self._state, self._residuals = state, self._joined.log_loss - law
        values, gradients = log_value_and_gradient(self._form, state[None], tuple(self._places))
        self._at_places, self._gradient = values[0], gradients[0]

    def _weigh(self) -> None:
        """Weights and targets of the bins."""
        own_sd = self._joined.relative_sd(self._seed_share)
        self._relative, self._bend = self._joined.spread(own_sd * 10 ** (self._slope * self._below))
        self._targets = self._at_places + self._joined.mean(self._residuals, own_sd**-2)

    def _clipped(self, residuals: Array) -> Array:
        most = _CLIP_SDS * self._noise_sd * 10 ** (self._slope * self._below)
        return np.clip(residuals, -most, most)

    def _noise_slope(self, residuals: Array, freedom: float) -> float:
        """Posterior mean of the noise's slope, whatever its level."""
        below = self._joined.mean(self._below, np.ones_like(self._below))
        count = np.bincount(self._joined.bin)
        square = np.bincount(self._joined.bin, residuals**2)
        tried = 10 ** (_SLOPES[:, None] * below)
        level = np.log((square / tried**2).sum(axis=1) / count.sum() + 1e-14)
        likelihood = -freedom * (np.log(tried) @ count / count.sum() + level / 2)
        log_density = likelihood - 0.5 * ((_SLOPES - NOISE_SLOPE) / _NOISE_SLOPE_SD) ** 2
        density = np.exp(log_density - log_density.max())
        return float(density @ _SLOPES / density.sum())


def _stacked(rows: Sequence[Descents]) -> Descents:
    """One batch of rows; those with fewer runs are filled up with runs of no weight."""
    most = max(row.targets.shape[1] for row in rows)

    def filled(arrays: Sequence[Array], value: float) -> Array:
        whole = np.full((sum(map(len, arrays)), *arrays[0].shape[1:-1], most), value)
        first = 0
        for array in arrays:
            whole[first : first + len(array), ..., : array.shape[-1]] = array
            first += len(array)
        return whole

    return Descents(
        starts=np.concatenate([row.starts for row in rows]),
        log_variables=filled([row.log_variables for row in rows], 0.0),
        targets=filled([row.targets for row in rows], 0.0),
        weights=filled([row.weights for row in rows], 0.0),
        delta=filled([row.delta for row in rows], 1.0),
        anchors=np.concatenate([row.anchors for row in rows]),
        precision=np.concatenate([row.precision for row in rows]),
    )


def _spread_of_constants(scaled_gradient: Array, prior: "Prior") -> tuple[Array, float]:
    """Covariance of the constants, and how many of them the runs determine: the trace of the hat matrix."""
    information = scaled_gradient @ scaled_gradient.T
    covariance = np.asarray(np.linalg.inv(information + prior.precision), float)
    return covariance, float((covariance * information).sum())


@dataclass(frozen=True)
class Prior:
    """A Gaussian on scaled log-constants: mean, and the square root of its covariance."""

    mean: Array
    root: Array

    @property
    def precision(self) -> Array:
        """Inverse of the covariance."""
        inverse = np.linalg.inv(self.root)
        return np.asarray(inverse.T @ inverse)

    def draw(self, generator: np.random.Generator, draws: int) -> Array:
        """(draws, constants)."""
        return np.asarray(self.mean + generator.standard_normal((draws, len(self.mean))) @ self.root.T)


def prior_of(form: Form, loss: Array) -> Prior:
    """Independent priors of each constant, and of k alpha and k beta where there is a coupling k."""
    lowest, middle = float(loss.min()), float(np.median(loss))
    known = dict(_EXPONENTS[form.name])
    coupling = known.get("k", (1.0, 0.0))[0]
    part = (_EXCESS_SHARE * middle) ** (1 / coupling)
    known["E"] = (_FLOOR_SHARE[0] * lowest, _FLOOR_SHARE[1])
    known |= dict.fromkeys(("A", "B"), (part, _COEFFICIENT_WIDTH / coupling))
    known |= {"K": (2 * part, _COEFFICIENT_WIDTH), "Q": (1.0, 2.0)}
    names = [name if name in known else f"k {name}" for name in form.constants]
    logs = np.log([known[name][0] for name in names])
    widths = np.diag([known[name][1] for name in names])
    # A prior's row in log-constants: log(k alpha) = log k + log alpha.
    combined = np.eye(len(names))
    for row, name in enumerate(names):
        if name.startswith("k "):
            combined[row, form.index("k")] = 1.0
    apart = np.linalg.inv(combined)
    return Prior(np.asarray(apart @ logs, float), np.asarray(apart @ widths, float))


def _descents(
    starts: Array,
    log_variables: Array,
    targets: Array,
    noise: Array,
    bend: Array,
    anchors: Array,
    prior: Prior,
) -> Descents:
    return Descents(
        starts=starts,
        log_variables=log_variables,
        targets=targets,
        weights=noise**-2,
        delta=bend,
        anchors=anchors,
        precision=np.broadcast_to(prior.precision, (len(starts), *prior.root.shape)),
    )
