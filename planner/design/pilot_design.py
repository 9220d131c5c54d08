"""Experimental design of the pilots: of all ladders that the share of compute affords, the one whose runs should give
the narrowest interval of the target's loss.

A ladder is judged before any of its runs is trained. Near the prior law, ln L is linear in the law's log-constants, so
the variance of ln L at the target, given runs at known sizes and budgets, has a closed form that does not depend on the
runs' results (Bayesian linear design: Chaloner & Verdinelli 1995, Statistical Science 10:273). Its assumptions are the
forecast's own: the priors of the constants and the noise of a run (planner/scaling/posterior.py), the laws' weights and
their discrepancy per decade (planner/scaling/model_averaging.py); but all runs are as noisy, and none of the laws is
fitted on the last decades only, since a ladder is short. From the target down to the largest budget the
discrepancy is that of a forecast; below, it is a random walk with one value per budget, so that runs far below the
target tell less.

Legend: C compute, M FLOP per token, J gradient of ln L in a law's log-constants, K covariance of the discrepancy.
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
from planner.scaling.points import SHORT_RUN_NOISE
from planner.scaling.posterior import NOISE_SD, prior_of
from specs.budget import Pilots
from specs.law import Allocation, Family, Hyper, Monomial
from specs.model import ModelSpec
from specs.plan import LadderChoice

HALF_DECADE = math.sqrt(10.0)
"""Ratio of neighbouring budgets; DeepSeek LLM's eight budgets from 1e17 to 3e20 are as far apart."""
MAX_TOP_SHARE = 0.1
"""The largest pilot budget is at most this share of the target."""
PAPER_BUDGETS, PAPER_SIZES = 8, 10
"""DeepSeek LLM, arXiv 2401.02954, section 3.2: budgets from 1e17 to 3e20 FLOP, around ten allocations each."""
MAX_COMPUTE_RANGE = HALF_DECADE ** (PAPER_BUDGETS - 1)
"""Largest over smallest budget of DeepSeek LLM's ladder: no published one shows a law to hold over a wider range."""
_BUDGETS = range(3, 13)
"""Two budgets to fit and one held out are the fewest that test a law (planner/scaling/holdout.py); the most is what
specs/budget.py allows."""
_SIZES = range(4, 16)
"""As specs/budget.py allows."""
_BUDGET_RATIOS = tuple(10 ** (twelfths / 12) for twelfths in range(3, 13))
"""Ratios of neighbouring budgets to try: a quarter of a decade to a whole one."""
_SPANS = (2.0, 3.0, 4.0)
"""Largest size over the middle one: published laws differ by up to 1.6 in the best size at 1e17 to 1e21 FLOP (deepseek,
hoffmann and epoch-chinchilla of the catalog), so that less might miss it; at 4 a parabola's bias is 1.4 % in size
(docs/log.md)."""
UNKNOWN_SD = 1e3
"""Standard deviation of ln L of a run that cannot be made, or that tells nothing."""
_TOLERANCE = 1e-9
"""Relative difference below which two numbers count as equal."""
Z_95 = NormalDist().inv_cdf(0.975)
"""Half-width of a 95 % interval in standard deviations."""


@dataclass(frozen=True)
class Ladder:
    """isoFLOP budgets, and model sizes around the prior's optimum of each."""

    budgets: int
    sizes: int
    spread: float
    """Ratio of neighbouring sizes."""
    budget_ratio: float
    """Ratio of neighbouring budgets."""
    top_share: float
    """The largest budget as a share of the target's compute."""

    def budgets_flop(self, target_flop: float) -> list[float]:
        """The budgets in FLOP, smallest first."""
        top = self.top_share * target_flop
        return [top * self.budget_ratio**-i for i in reversed(range(self.budgets))]

    @property
    def compute_range(self) -> float:
        """Largest over smallest budget."""
        return self.budget_ratio ** (self.budgets - 1)


def rate_check_offset(budgets: int) -> int:
    """How many budgets below the largest the learning-rate check runs: large enough to tell, cheap enough to repeat."""
    return min(1, budgets - 1)


def affordable_ladder(pilots: Pilots, budgets: int, sizes: int, spread: float, budget_ratio: float) -> Ladder:
    """The ladder of this form whose pilots and learning-rate check cost `pilots.share`, or less at MAX_TOP_SHARE."""
    weights = [budget_ratio**-i for i in range(budgets)]
    per_top = sizes * sum(weights) + len(pilots.rates) * weights[rate_check_offset(budgets)]
    return Ladder(budgets, sizes, spread, budget_ratio, min(MAX_TOP_SHARE, pilots.share / per_top))


@dataclass(frozen=True)
class PilotSetting:
    """What a ladder is designed for: the target, and what is known of runs below it."""

    target_flop: float
    prior: Allocation
    hyper: Hyper
    family: Family
    vocab: int
    low_flop: float
    """Smallest compute that the prior was fitted on: below it, its sizes, learning rates and batches are guesses."""
    reach: float
    """Largest ratio of the target's compute to the largest pilot's."""
    shapes: tuple[ModelSpec, ...] = field(repr=False)
    """The family's shapes, smallest first."""

    @property
    def exponent(self) -> float:
        """Of M_opt(C)."""
        return self.prior.flop_per_token.exponents["compute_flop"]

    def noise(self, log_flop: Array, log_size: Array) -> Array:
        """Standard deviation of ln L of runs of these ln C and ln M: larger for short runs, UNKNOWN_SD for runs that
        are too short to evaluate or lie below the compute that the prior was fitted on."""
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
    """The setting of a target's ladder."""
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


def log_loss_variances(ladders: Sequence[Ladder], setting: PilotSetting) -> Array:
    """Variance of ln L of the target run, its own noise included, given the runs of each ladder."""
    variances = np.empty(len(ladders))
    grids = [(ladder.budgets, ladder.sizes) for ladder in ladders]
    for grid in sorted(set(grids)):
        rows = [i for i, other in enumerate(grids) if other == grid]
        variances[rows] = _variances([ladders[i] for i in rows], setting)
    return variances


def _variances(ladders: Sequence[Ladder], setting: PilotSetting) -> Array:
    """The same for ladders that all have the same numbers of budgets and sizes."""
    log_flop, log_size = run_positions(ladders, setting)
    noise = setting.noise(log_flop, log_size)
    discrepancy = _discrepancy_covariance((math.log(setting.target_flop) - log_flop[:, :, 0]) / math.log(10))
    best = setting.prior.flop_per_token.at(compute_flop=setting.target_flop)
    target = np.log([setting.target_flop]), np.log([best])
    laws = np.zeros(len(ladders))
    for form, weight in zip(CANDIDATES, PRIOR_WEIGHTS, strict=True):
        at_target = _gradient(form, *target, setting)[:, 0]
        precision = prior_of(form, np.ones(1)).precision + _information(
            _gradient(form, log_flop, log_size, setting), noise**-2, discrepancy
        )
        laws += weight * (np.linalg.solve(precision, at_target[:, None])[..., 0] @ at_target)
    return laws + NOISE_SD**2


def _discrepancy_covariance(decades: Array) -> Array:
    """K of budgets that lie `decades` below the target, the largest budget last: (ladders, budgets, budgets)."""
    top = decades[:, -1:, None]
    below = np.minimum(decades[:, :, None], decades[:, None]) - top
    return np.asarray(DISCREPANCY_PER_DECADE**2 * (top**2 + below))


def run_positions(ladders: Sequence[Ladder], setting: PilotSetting) -> tuple[Array, Array]:
    """ln C and ln M of every run, (ladders, budgets, sizes): sizes spaced evenly in ln M around the prior's optimum, or
    upwards from the smallest shape where some would be smaller than it."""
    log_budget = np.array([np.log(ladder.budgets_flop(setting.target_flop)) for ladder in ladders])
    count = np.arange(ladders[0].sizes)
    apart = np.array([[[math.log(ladder.spread)]] for ladder in ladders])
    centre = math.log(setting.prior.flop_per_token.coefficient) + setting.exponent * log_budget
    log_size = centre[:, :, None] + apart * (count - count.mean())
    smallest = math.log(setting.shapes[0].flop_per_token) + apart * count
    return np.broadcast_to(log_budget[:, :, None], log_size.shape), np.maximum(log_size, smallest)


def _gradient(form: Form, log_flop: Array, log_size: Array, setting: PilotSetting) -> Array:
    """J, (constants, ...), at the form's prior, scaled to a loss of 1 at the largest compute that a pilot may have and
    the prior's size there. All ladders share this point, so that they differ by their runs alone.
    """
    known = MAX_TOP_SHARE * setting.target_flop
    flop = np.exp(log_flop.ravel()) / known
    size = np.exp(log_size.ravel()) / setting.prior.flop_per_token.at(compute_flop=known)
    gradient = log_gradient(form, prior_of(form, np.ones(1)).mean, columns(form, size, flop / size))
    return gradient.reshape(len(form.constants), *log_size.shape)


def _information(gradient: Array, precision: Array, discrepancy: Array) -> Array:
    """J' (noise + K)^-1 J of each ladder, (ladders, constants, constants).

    K is one value for all runs of a budget: it leaves the differences between them alone and blurs their mean.
    """
    total = precision.sum(axis=2)
    mean = (precision * gradient).sum(axis=3) / total
    apart = gradient - mean[..., None]
    within = np.einsum("pcnm,qcnm,cnm->cpq", apart, apart, precision, optimize=True)
    means = np.moveaxis(mean, 0, 2)
    blurred = discrepancy + np.eye(total.shape[1]) / total[:, None]
    return np.asarray(within + np.swapaxes(means, 1, 2) @ np.linalg.solve(blurred, means))


@dataclass(frozen=True)
class LadderDesign:
    """The chosen ladder, and the intervals that other ladders of equal cost should leave."""

    ladder: Ladder
    considered: int
    """Ladders of equal cost that it was compared with, itself included."""
    half_width: float
    """Half of the 95 % interval of the target's loss that it should leave, relative."""
    best_half_width: float
    """The same for the best ladder if the budget fixed neither budgets, sizes nor spread."""
    paper_half_width: float
    """The same for DeepSeek LLM's 8 x 10 ladder at equal cost, with its best spacing of budgets and sizes."""

    def to_document(self, target_flop: float) -> LadderChoice:
        """The choice as a document of the plan."""
        return LadderChoice(
            budgets=self.ladder.budgets,
            budget_ratio=self.ladder.budget_ratio,
            top_flop=self.ladder.top_share * target_flop,
            sizes=self.ladder.sizes,
            spread=self.ladder.spread,
            half_width=self.half_width,
            best_half_width=self.best_half_width,
            paper_half_width=self.paper_half_width,
            considered=self.considered,
        )


def choose_ladder(pilots: Pilots, setting: PilotSetting) -> LadderDesign:
    """The ladder with the narrowest interval among those with the budget's own choices; deterministic."""
    candidates = candidate_ladders(pilots)
    ladder, half_width = best_ladder(candidates, setting)
    free = pilots.model_copy(update={"budgets": None, "sizes": None, "spread": None})
    best = half_width if free == pilots else best_ladder(candidate_ladders(free), setting)[1]
    paper = float(half_widths(paper_ladders(pilots), setting).min())
    return LadderDesign(ladder, len(candidates), half_width, best, paper)


def candidate_ladders(pilots: Pilots) -> list[Ladder]:
    """Every ladder that the share affords and the budget's own choices allow; if the budget fixes their number, budgets
    are half a decade apart."""
    grids = product(
        _BUDGETS if pilots.budgets is None else (pilots.budgets,),
        _BUDGET_RATIOS if pilots.budgets is None else (HALF_DECADE,),
        _SIZES if pilots.sizes is None else (pilots.sizes,),
    )
    return [
        affordable_ladder(pilots, budgets, sizes, spread, ratio)
        for budgets, ratio, sizes in grids
        for spread in (_spreads(sizes) if pilots.spread is None else (pilots.spread,))
    ]


def paper_ladders(pilots: Pilots) -> list[Ladder]:
    """The paper's eight budgets and ten sizes for the same share: budgets half a decade apart or closer, where half
    decades reach too far down, and sizes of any spacing, since DeepSeek LLM does not print it."""
    return [
        affordable_ladder(pilots, PAPER_BUDGETS, PAPER_SIZES, spread, ratio)
        for ratio in _BUDGET_RATIOS
        for spread in _spreads(PAPER_SIZES)
        if ratio <= HALF_DECADE * (1 + _TOLERANCE)
    ]


def _spreads(sizes: int) -> tuple[float, ...]:
    """Ratios of neighbouring sizes whose largest is _SPANS times the middle one."""
    return tuple(span ** (2 / (sizes - 1)) for span in _SPANS)


def best_ladder(ladders: Sequence[Ladder], setting: PilotSetting) -> tuple[Ladder, float]:
    """Of the ladders with the smallest constraint violation, usually 0, the one with the narrowest interval."""
    violations = np.array([constraint_violation(ladder, setting) for ladder in ladders])
    allowed = [
        ladder for ladder, by in zip(ladders, violations, strict=True) if by <= violations.min() + _TOLERANCE
    ]
    widths = half_widths(allowed, setting)
    best = int(np.argmin(widths))
    return allowed[best], float(widths[best])


def half_widths(ladders: Sequence[Ladder], setting: PilotSetting) -> Array:
    """Half of the 95 % interval of the target's loss that each ladder should leave, relative."""
    return np.asarray(Z_95 * np.sqrt(log_loss_variances(ladders, setting)))


def constraint_violation(ladder: Ladder, setting: PilotSetting) -> float:
    """By how much, in logarithms, a ladder goes below the smallest shape, beyond DeepSeek LLM's range of compute, or
    too far below the target; 0 is allowed."""
    lowest = ladder.budgets_flop(setting.target_flop)[0]
    smallest = setting.prior.flop_per_token.at(compute_flop=lowest) * ladder.spread ** -(
        (ladder.sizes - 1) / 2
    )
    over = (
        setting.shapes[0].flop_per_token / smallest,
        ladder.compute_range / MAX_COMPUTE_RANGE,
        1 / ladder.top_share / setting.reach,
    )
    return sum(max(0.0, math.log(ratio)) for ratio in over)
