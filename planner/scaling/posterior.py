"""The posterior of a law's constants given few, noisy runs and priors from published laws.

A ladder of a dozen small runs hardly determines the floor E, and so any extrapolation. So the constants get
priors, wide enough for every public data set we know, and are drawn from their posterior by randomised maximum
a posteriori (Oliver 1996; Bardsley et al. 2014, "randomize-then-optimize"): each draw perturbs every run by its
noise and every prior by its width, and descends. All draws advance as one batch. With many runs the priors
become negligible.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.scaling.fit import LOG_LARGEST, checked_runs
from planner.scaling.laws import COUPLED, STANDARD, TIED, VALLEY, Array, Form, columns, log_value_and_gradient
from planner.scaling.levenberg_marquardt import Descents, LeastSquaresProblem, descend, scale, unscaled
from planner.scaling.noise_scale import NoiseScale, noise_scale_from_residuals

SHORT_RUN_STEPS = 1000
"""Below this many steps warmup and noise dominate: the spread of byte-level pilots doubled to tripled
(docs/log.md)."""
SHORT_RUN_NOISE = 3.0
NOISE_SD, _NOISE_FACTOR = 0.005, 3.0
"""Prior of the run-to-run standard deviation of log L, two thirds of it within this factor: seeds of byte-level pilots
of 1e11..1e13 FLOP spread 0.3 to 1.4 %, large runs 0.1 % (docs/log.md; Open Athena's Delphi)."""
_HUBER_BEND_SDS = 1.5
"""Huber's bend in units of the noise: 96 % efficient on Gaussian noise (Huber 1981)."""
_FIRST_NOISE_SD, _ROUNDS = 0.02, 6
"""Constants and noise are estimated in turn, starting from a large noise, so that no useful residual is clipped."""
_DRAW_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Points:
    """Finished runs: the evidence of a fit or a forecast. Arrays of one length; C = cost_per * size *
    tokens."""

    size: Array
    tokens: Array
    loss: Array
    cost_per: float
    weights: Array
    """A run's noise variance is divided by its weight."""
    short: Array
    """1.0 where the run had fewer than SHORT_RUN_STEPS steps, else 0.0."""

    @property
    def cell(self) -> NDArray[np.int64]:
        """Number of each run's (size, tokens): runs of one cell differ in their seed only."""
        return np.asarray(np.unique(np.stack([self.size, self.tokens]), axis=1, return_inverse=True)[1])

    @property
    def flop(self) -> Array:
        """Compute of each run."""
        return self.cost_per * self.size * self.tokens

    @property
    def precision(self) -> Array:
        """Weight of each run in a fit: its own, or a ninth of that if it is short."""
        return self.weights / np.where(self.short > 0, SHORT_RUN_NOISE**2, 1.0)

    def take(self, rows: ArrayLike) -> "Points":
        """The runs at these indices or under this mask."""
        chosen = np.asarray(rows)
        return Points(
            self.size[chosen],
            self.tokens[chosen],
            self.loss[chosen],
            self.cost_per,
            self.weights[chosen],
            self.short[chosen],
        )


def points(
    size: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    cost_per: float = 1.0,
    steps: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Points:
    """Checked runs; `steps` (optimizer steps of each run) flags short ones. ValueError names the first bad
    run."""
    sizes, token_counts, losses, run_weights = checked_runs(size, tokens, loss, weights)
    lengths = np.full(len(losses), np.inf) if steps is None else np.asarray(steps, float).ravel()
    short = np.where(lengths < SHORT_RUN_STEPS, 1.0, 0.0)
    if len(short) != len(losses):
        raise ValueError(f"steps has {len(short)} entries for {len(losses)} losses")
    return Points(sizes, token_counts, losses, cost_per, run_weights, short)


@dataclass(frozen=True)
class _Cells:
    """Runs with their replicates averaged, to which a law is fitted."""

    size: Array
    tokens: Array
    log_loss: Array
    """Means weighted by the runs' precision."""
    precision: Array
    """Mean precision of a run of the cell."""
    runs: Array
    """Number of runs in the cell."""
    square: float
    """Squared deviations of ln L from the cells' means, times precision."""
    freedom: float
    """Their degrees of freedom: 0 without replicates."""

    def relative(self, seed_share: float) -> Array:
        """Standard deviation of each cell's mean over that of one run.

        `seed_share` of a run's variance changes with its seed and averages out; the rest, by which a shape lies off
        any smooth law, is the cell's own and does not.
        """
        return np.asarray(np.sqrt((1 - seed_share + seed_share / self.runs) / self.precision))


def _cells(runs: Points) -> _Cells:
    precision = np.maximum(runs.precision, 1e-12)
    _, first, cell = np.unique(
        np.stack([runs.size, runs.tokens]), axis=1, return_index=True, return_inverse=True
    )
    total, count = np.bincount(cell, precision), np.bincount(cell)
    mean = np.bincount(cell, precision * np.log(runs.loss)) / total
    return _Cells(
        size=runs.size[first],
        tokens=runs.tokens[first],
        log_loss=mean,
        precision=total / count,
        runs=count.astype(float),
        square=float((precision * (np.log(runs.loss) - mean[cell]) ** 2).sum()),
        freedom=float(len(cell) - len(first)),
    )


@dataclass(frozen=True)
class Posterior:
    """Draws of a law's constants and of the runs' noise."""

    form: Form
    log_params: Array
    """(draws, constants)"""
    noise_sd: Array
    """(draws,) standard deviation of log L of one full-length run."""
    cost_per: float

    def log_loss(self, size: ArrayLike, tokens: ArrayLike) -> Array:
        """log L without noise at each target, (draws, targets)."""
        variables = columns(self.form, np.atleast_1d(size), np.atleast_1d(tokens), self.cost_per)
        logs = tuple(np.log(column) for column in variables)
        return log_value_and_gradient(self.form, self.log_params, logs)[0]

    def constant(self, name: str) -> Array:
        """Draws of one constant, limited to the largest number that a document can hold."""
        return np.exp(np.minimum(self.log_params[:, self.form.index(name)], LOG_LARGEST))


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


def posterior(form: Form, runs: Points, draws: int, seed: int) -> Posterior:
    """Draws of the form's constants from runs; deterministic in (runs, draws, seed)."""
    cells = _cells(runs)
    logs = tuple(np.log(column) for column in columns(form, cells.size, cells.tokens, runs.cost_per))
    problem, prior = scale(form, logs, cells.log_loss), prior_of(form, runs.loss)
    best, noise_posterior, relative = _best(problem, prior, cells)
    generator = np.random.Generator(np.random.PCG64(seed))
    sds = noise_posterior.draw(generator, draws)
    noise = sds[:, None] * relative
    targets = problem.log_loss + noise * generator.standard_normal(noise.shape)
    anchors = prior.draw(generator, draws)
    starts = np.broadcast_to(best, anchors.shape).copy()
    ends, _ = descend(problem, _descents(starts, targets, noise, anchors, prior), _DRAW_TOLERANCE)
    return Posterior(form, unscaled(problem, ends), sds, runs.cost_per)


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


def _descents(starts: Array, targets: Array, noise: Array, anchors: Array, prior: Prior) -> Descents:
    return Descents(
        starts=starts,
        targets=targets,
        weights=noise**-2,
        delta=_HUBER_BEND_SDS * noise,
        anchors=anchors,
        precision=np.broadcast_to(prior.precision, (len(starts), *prior.root.shape)),
    )


def _best(problem: LeastSquaresProblem, prior: Prior, cells: _Cells) -> tuple[Array, NoiseScale, Array]:
    """The most probable constants, the posterior of one run's noise, and the cells' noise relative to it.

    Noise and constants are estimated in turn; the effective number of constants is the trace of the hat matrix.
    Replicates give the share of the noise that is due to seeds.
    """
    state, noise_sd, seed_share = prior.mean[None], _FIRST_NOISE_SD, 1.0
    seeds = noise_scale_from_residuals(NOISE_SD, _NOISE_FACTOR, cells.square, cells.freedom)
    for _ in range(_ROUNDS):
        relative = cells.relative(seed_share)
        noise = noise_sd * relative[None]
        goal = _descents(state, problem.log_loss[None], noise, prior.mean[None], prior)
        state, _ = descend(problem, goal, _DRAW_TOLERANCE)
        log_loss, jacobian = log_value_and_gradient(problem.form, state, problem.log_variables)
        scaled_jacobian = jacobian[0] / noise
        information = scaled_jacobian @ scaled_jacobian.T
        used = float(np.trace(np.linalg.solve(information + prior.precision, information)))
        standard = np.clip((problem.log_loss - log_loss[0]) / relative, -3 * noise_sd, 3 * noise_sd)
        square, freedom = float((standard**2).sum()), max(len(relative) - used, 0.0)
        if seed_share == 1.0:  # the seeds explain all: their deviations show the same noise
            square, freedom = square + cells.square, freedom + cells.freedom
        noise_posterior = noise_scale_from_residuals(NOISE_SD, _NOISE_FACTOR, square, freedom)
        noise_sd = noise_posterior.median
        seed_share = min((seeds.median / noise_sd) ** 2, 1.0) if cells.freedom else 1.0
    return state, noise_posterior, relative
