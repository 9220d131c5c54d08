"""Which ladder of pilots to buy: of all that the share affords, the one that leaves the target's loss least unsure.

A ladder is judged before any of its runs is bought. Near the law that is believed beforehand, ln L is linear in the
law's log-constants, so the variance of ln L at the target, given runs at known places, has a closed form that does not
depend on what the runs will show (Bayesian linear design: Chaloner & Verdinelli 1995, Statistical Science 10:273). The
beliefs are the forecast's own: the priors of the constants and the noise of a run (planner/scaling/posterior.py), the
laws' weights and what they miss per decade (planner/scaling/model_averaging.py): from the target down to the largest
budget as a forecast has it, from there on as a random walk, one number for all runs of a budget, so that runs far
below tell less.

Legend: C compute, M FLOP per token, J gradient of ln L in a law's log-constants, K covariance of the miss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import NormalDist

import numpy as np

from planner.design.model_shape import family_shapes
from planner.design.run_draft import EVALUATIONS
from planner.scaling.laws import Array, Form, columns, log_gradient
from planner.scaling.model_averaging import CANDIDATES, DISCREPANCY_PER_DECADE, PRIOR_WEIGHTS
from planner.scaling.posterior import NOISE_SD, SHORT_RUN_NOISE, prior_of
from specs.budget import Pilots
from specs.law import Allocation, Family, Hyper, Monomial
from specs.model import ModelSpec
from specs.plan import LadderChoice

HALF_DECADE = math.sqrt(10.0)
"""Ratio of neighbouring budgets; the paper's eight budgets from 1e17 to 3e20 are as far apart."""
MAX_TOP_SHARE = 0.1
"""The largest pilot budget is at most this share of the target."""
PAPER_BUDGETS, PAPER_SIZES = 8, 10
"""DeepSeek LLM, arXiv 2401.02954, section 3.2: budgets from 1e17 to 3e20 FLOP, around ten allocations each."""
MAX_COMPUTE_RANGE = HALF_DECADE ** (PAPER_BUDGETS - 1)
"""Largest over smallest budget of the paper's ladder; over more nobody has checked that one law holds."""
_BUDGETS = range(3, 13)
"""Two below a cut and one above are the fewest on which a law can be judged (planner/scaling/holdout.py); the most that
specs/budget.py allows."""
_SIZES = range(4, 16)
"""As specs/budget.py allows."""
_STEPS = tuple(10 ** (twelfths / 12) for twelfths in range(3, 13))
"""Ratios of neighbouring budgets that are tried: a quarter of a decade to a whole one."""
_SPANS = (2.0, 3.0, 4.0)
"""Largest size over the middle one: published laws differ by up to 1.6 in the best size at 1e17 to 1e21 FLOP (deepseek,
hoffmann and epoch-chinchilla of the catalog), so that less might miss it; at 4 a parabola's bias is 1.4 % in size
(docs/log.md)."""
UNKNOWN_SD = 1e3
"""Spread of ln L that tells nothing."""
_TOLERANCE = 1e-9
"""Relative difference under which two numbers are one."""
Z_95 = NormalDist().inv_cdf(0.975)
"""Half-width of a 95 % interval in standard deviations."""


@dataclass(frozen=True)
class Ladder:
    """isoFLOP budgets, and model sizes around the prior's optimum of each."""

    budgets: int
    sizes: int
    spread: float
    """Ratio of neighbouring sizes."""
    step: float
    """Ratio of neighbouring budgets."""
    top: float
    """The largest budget as a share of the target's compute."""

    def rungs(self, target_flop: float) -> list[float]:
        """The budgets in FLOP, smallest first."""
        top = self.top * target_flop
        return [top * self.step**-i for i in reversed(range(self.budgets))]

    @property
    def length(self) -> float:
        """Largest over smallest budget."""
        return self.step ** (self.budgets - 1)


def rate_check_offset(budgets: int) -> int:
    """How far below the top the learning-rate check runs: late enough to have settled, cheap enough to repeat."""
    return min(1, budgets - 1)


def affordable_ladder(pilots: Pilots, budgets: int, sizes: int, spread: float, step: float) -> Ladder:
    """The ladder of this make whose pilots and rate check cost the share; less where its top would be too near."""
    weights = [step**-i for i in range(budgets)]
    per_top = sizes * sum(weights) + len(pilots.rates) * weights[rate_check_offset(budgets)]
    return Ladder(budgets, sizes, spread, step, min(MAX_TOP_SHARE, pilots.share / per_top))


@dataclass(frozen=True)
class PilotSetting:
    """Where a ladder will stand: the target above it, and what is known of runs below."""

    target_flop: float
    prior: Allocation
    hyper: Hyper
    family: Family
    vocab: int
    low_flop: float
    """Smallest compute that the prior was fitted on: below, its sizes, rates and batches are guesses."""
    reach: float
    """Largest ratio of the target's compute to the largest pilot's."""
    shapes: tuple[ModelSpec, ...] = field(repr=False)
    """The family's shapes, smallest first."""

    @property
    def exponent(self) -> float:
        """Of M_opt(C)."""
        return self.prior.flop_per_token.exponents["compute_flop"]

    def noise(self, log_flop: Array, log_size: Array) -> Array:
        """Standard deviation of ln L of runs of these ln C and ln M: larger of short ones, boundless of those that
        cannot be run, or of which the prior knows neither size nor rate."""
        log_tokens = log_flop - log_size
        known = [math.log(shape.flop_per_token) for shape in self.shapes]
        log_batch = _log_at(
            self.hyper.batch_tokens,
            {
                "compute_flop": log_flop,
                "flop_per_token": log_size,
                "tokens": log_tokens,
                "width": np.interp(log_size, known, [math.log(shape.width) for shape in self.shapes]),
                "block_params": np.interp(
                    log_size, known, [math.log(shape.block_params) for shape in self.shapes]
                ),
            },
        )
        log_steps = log_tokens - np.maximum(log_batch, math.log(self.family.context))
        settled = np.where(log_steps < math.log(self.family.min_steps), SHORT_RUN_NOISE, 1.0) * NOISE_SD
        unknown = log_flop < math.log(self.low_flop) - _TOLERANCE
        return np.asarray(np.where(unknown | (log_steps < math.log(EVALUATIONS)), UNKNOWN_SD, settled))


def pilot_setting(
    target_flop: float,
    prior: Allocation,
    hyper: Hyper,
    family: Family,
    vocab: int,
    low_flop: float,
    reach: float,
) -> PilotSetting:
    """The site of a target's ladder."""
    largest = prior.flop_per_token.at(compute_flop=target_flop)
    return PilotSetting(
        target_flop,
        prior,
        hyper,
        family,
        vocab,
        low_flop,
        reach,
        tuple(family_shapes(family, vocab, largest)),
    )


def _log_at(law: Monomial, log_values: dict[str, Array]) -> Array:
    powers = [exponent * log_values[name] for name, exponent in law.exponents.items()]
    return np.asarray(math.log(law.coefficient) + np.sum(powers, axis=0))


def log_loss_variances(ladders: Sequence[Ladder], place: PilotSetting) -> Array:
    """Variance of ln L of the target run, its own noise included, given the runs of each ladder."""
    found = np.empty(len(ladders))
    makes = [(ladder.budgets, ladder.sizes) for ladder in ladders]
    for make in sorted(set(makes)):
        rows = [i for i, other in enumerate(makes) if other == make]
        found[rows] = _variances([ladders[i] for i in rows], place)
    return found


def _variances(ladders: Sequence[Ladder], place: PilotSetting) -> Array:
    """As above, for ladders of one number of budgets and sizes."""
    log_flop, log_size = run_positions(ladders, place)
    noise = place.noise(log_flop, log_size)
    miss = _discrepancy_covariance((math.log(place.target_flop) - log_flop[:, :, 0]) / math.log(10))
    best = place.prior.flop_per_token.at(compute_flop=place.target_flop)
    wanted = np.log([place.target_flop]), np.log([best])
    laws = np.zeros(len(ladders))
    for form, weight in zip(CANDIDATES, PRIOR_WEIGHTS, strict=True):
        at_target = _gradient(form, *wanted, place)[:, 0]
        precision = prior_of(form, np.ones(1)).precision + _information(
            _gradient(form, log_flop, log_size, place), noise**-2, miss
        )
        laws += weight * (np.linalg.solve(precision, at_target[:, None])[..., 0] @ at_target)
    return laws + NOISE_SD**2


def _discrepancy_covariance(decades: Array) -> Array:
    """K of budgets this far below the target, the largest last: (ladders, budgets, budgets)."""
    top = decades[:, -1:, None]
    below = np.minimum(decades[:, :, None], decades[:, None]) - top
    return np.asarray(DISCREPANCY_PER_DECADE**2 * (top**2 + below))


def run_positions(ladders: Sequence[Ladder], place: PilotSetting) -> tuple[Array, Array]:
    """ln C and ln M of every run, (ladders, budgets, sizes): sizes spread evenly around the prior's optimum, or upwards
    from the smallest shape where some would lie below it."""
    rung = np.array([np.log(ladder.rungs(place.target_flop)) for ladder in ladders])
    count = np.arange(ladders[0].sizes)
    apart = np.array([[[math.log(ladder.spread)]] for ladder in ladders])
    centre = math.log(place.prior.flop_per_token.coefficient) + place.exponent * rung
    log_size = centre[:, :, None] + apart * (count - count.mean())
    smallest = math.log(place.shapes[0].flop_per_token) + apart * count
    return np.broadcast_to(rung[:, :, None], log_size.shape), np.maximum(log_size, smallest)


def _gradient(form: Form, log_flop: Array, log_size: Array, place: PilotSetting) -> Array:
    """J, (constants, ...), at the form's prior: a loss of 1 where the largest pilot may be, at the prior's size.

    One point for every ladder, so that ladders differ by their runs alone.
    """
    known = MAX_TOP_SHARE * place.target_flop
    flop = np.exp(log_flop.ravel()) / known
    size = np.exp(log_size.ravel()) / place.prior.flop_per_token.at(compute_flop=known)
    gradient = log_gradient(form, prior_of(form, np.ones(1)).mean, columns(form, size, flop / size))
    return gradient.reshape(len(form.constants), *log_size.shape)


def _information(gradient: Array, precision: Array, miss: Array) -> Array:
    """J' (noise + K)^-1 J of each ladder, (ladders, constants, constants).

    K is one number for all runs of a budget, so it leaves what they say of each other alone and blurs their mean.
    """
    total = precision.sum(axis=2)
    mean = (precision * gradient).sum(axis=3) / total
    apart = gradient - mean[..., None]
    within = np.einsum("pcnm,qcnm,cnm->cpq", apart, apart, precision, optimize=True)
    means = np.moveaxis(mean, 0, 2)
    blurred = miss + np.eye(total.shape[1]) / total[:, None]
    return np.asarray(within + np.swapaxes(means, 1, 2) @ np.linalg.solve(blurred, means))


@dataclass(frozen=True)
class LadderDesign:
    """The ladder to buy, beside what the same compute could have bought."""

    ladder: Ladder
    considered: int
    """Ladders of equal cost that it was compared with, itself included."""
    half_width: float
    """Half of the 95 % interval of the target's loss that it should leave, relative."""
    best_half_width: float
    """The same for the best ladder where the budget states nothing."""
    paper_half_width: float
    """The same for the paper's ladder at equal cost, its budgets and sizes as far apart as suits it best."""

    def document(self, target_flop: float) -> LadderChoice:
        """As the plan has it."""
        return LadderChoice(
            budgets=self.ladder.budgets,
            budget_ratio=self.ladder.step,
            top_flop=self.ladder.top * target_flop,
            sizes=self.ladder.sizes,
            spread=self.ladder.spread,
            half_width=self.half_width,
            best_half_width=self.best_half_width,
            paper_half_width=self.paper_half_width,
            considered=self.considered,
        )


def choose_ladder(pilots: Pilots, place: PilotSetting) -> LadderDesign:
    """The ladder that the budget states, what it leaves open chosen for the narrowest interval; deterministic."""
    asked = candidate_ladders(pilots)
    ladder, half_width = best_ladder(asked, place)
    free = pilots.model_copy(update={"budgets": None, "sizes": None, "spread": None})
    best = half_width if free == pilots else best_ladder(candidate_ladders(free), place)[1]
    paper = float(half_widths(paper_ladders(pilots), place).min())
    return LadderDesign(ladder, len(asked), half_width, best, paper)


def candidate_ladders(pilots: Pilots) -> list[Ladder]:
    """Every ladder that the share affords, with what the budget states; a stated number of budgets is half a decade
    apart."""
    makes = product(
        _BUDGETS if pilots.budgets is None else (pilots.budgets,),
        _STEPS if pilots.budgets is None else (HALF_DECADE,),
        _SIZES if pilots.sizes is None else (pilots.sizes,),
    )
    return [
        affordable_ladder(pilots, budgets, sizes, spread, step)
        for budgets, step, sizes in makes
        for spread in (_spreads(sizes) if pilots.spread is None else (pilots.spread,))
    ]


def paper_ladders(pilots: Pilots) -> list[Ladder]:
    """The paper's budgets and allocations for the same share: half a decade apart or less, where that reaches too far
    down, and sizes as far apart as suits them, since the paper does not print it."""
    return [
        affordable_ladder(pilots, PAPER_BUDGETS, PAPER_SIZES, spread, step)
        for step in _STEPS
        for spread in _spreads(PAPER_SIZES)
        if step <= HALF_DECADE * (1 + _TOLERANCE)
    ]


def _spreads(sizes: int) -> tuple[float, ...]:
    """Ratios of neighbouring sizes whose largest is _SPANS times the middle one."""
    return tuple(span ** (2 / (sizes - 1)) for span in _SPANS)


def best_ladder(ladders: Sequence[Ladder], place: PilotSetting) -> tuple[Ladder, float]:
    """Of the ladders that overstep what is known least, usually not at all, the one with the narrowest interval."""
    short = np.array([constraint_violation(ladder, place) for ladder in ladders])
    sound = [ladder for ladder, over in zip(ladders, short, strict=True) if over <= short.min() + _TOLERANCE]
    widths = half_widths(sound, place)
    best = int(np.argmin(widths))
    return sound[best], float(widths[best])


def half_widths(ladders: Sequence[Ladder], place: PilotSetting) -> Array:
    """Half of the 95 % interval of the target's loss that each ladder should leave, relative."""
    return np.asarray(Z_95 * np.sqrt(log_loss_variances(ladders, place)))


def constraint_violation(ladder: Ladder, place: PilotSetting) -> float:
    """By how much, in logarithms, a ladder oversteps: below the smallest shape, longer than the paper's, or too far
    below the target; 0 is sound."""
    lowest = ladder.rungs(place.target_flop)[0]
    smallest = place.prior.flop_per_token.at(compute_flop=lowest) * ladder.spread ** -((ladder.sizes - 1) / 2)
    over = (
        place.shapes[0].flop_per_token / smallest,
        ladder.length / MAX_COMPUTE_RANGE,
        1 / ladder.top / place.reach,
    )
    return sum(max(0.0, math.log(ratio)) for ratio in over)
