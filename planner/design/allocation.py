"""What a budget is spent on: from the compute of a run to its shape, under each objective.

The split of compute comes from an allocation (a power law in compute) or from a loss surface L(X, D), whose best split
at a compute is where a little more size and as much less data change nothing. A model that will serve tokens weighs its
size more: of all models with its loss it is to cost least, c X D + c X D_served / 3, as a forward pass is a third of a
training step (Sardana et al., arXiv 2401.00448, Eq. 3). By Lagrange's rule that is

    dL/dln X = (1 + D_served / (3 D)) dL/dln D

on the line c X D = C of the budget, so that the training takes the budget whole. Where X is a table's N and a family's
shapes cost M(N), the line is M(X) D = C, and the right side has a factor dln M/dln X.

The loss is that of the text at hand: tokens beyond the unique ones count as the fresh ones that they are worth
(planner/scaling/data_constrained.py), in every loss, optimum and target loss alike. So where text is short, the best
size is larger and a loss takes more compute.

    X size (N or M)    D tokens    C compute    c FLOP per token and unit of X
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.design.model_shape import family_shapes, shape_for
from planner.scaling.best_split import Cost
from planner.scaling.data_constrained import UniqueTokens, effective_tokens
from planner.scaling.laws import STANDARD, Array, value
from specs.budget import FixedRatio, FixedSize, Inference, Objective, Optimal
from specs.law import FLOP_PER_SIZE_TOKEN, Allocation, Family, Monomial, PublishedLaw, SizeKind
from specs.model import ModelSpec

SERVING_SHARE = 1 / 3
"""FLOP of reading or writing a token over those of training on it: 2 N against 6 N (Sardana et al. 2023,
arXiv 2401.00448, section 2)."""
_SMOOTHED, _GRID = math.log(2), 1000
"""Standard deviation in ln N over which the cost of sizes is smoothed, and the places at which it is kept."""
_HALVINGS = 60
_STEP = 1e-4
"""Step in log size and log tokens for the surface's slopes: errors of 1e-8 and of rounding are both small."""


class NoOptimumError(ValueError):
    """The loss law has no interior optimum; the message says towards which size it falls."""


@dataclass(frozen=True)
class LossSurface:
    """A loss law L(X, D) with its constants, what its size X counts, and the text that its tokens are drawn from."""

    name: str
    """Name of the law, for messages."""
    size: SizeKind
    """What X counts."""
    log_losses: Callable[[Array, Array], Array]
    """ln L of models of these sizes after these fresh tokens, none of them repeated: the law itself."""
    unique_tokens: UniqueTokens = math.inf
    """Tokens of the text; more are repeats, which are worth less."""
    cost: Cost | None = None
    """FLOP per trained token of models of these sizes; None for c X, with the c of the law's source."""

    def measure(self, shape: ModelSpec) -> float:
        """X of a shape."""
        return float(getattr(shape, self.size))

    def loss(self, size: float, tokens: float) -> float:
        """Loss in nats per token."""
        return float(np.exp(self._log_losses(np.array([size]), np.array([tokens]))[0]))

    def best_size(self, compute_flop: float, served_tokens: float = 0.0) -> float:
        """X of the run of this compute that is cheapest to train and to serve; NoOptimumError where there is none."""

        def too_small(log_size: float) -> bool:
            log_tokens = math.log(compute_flop) - self.log_cost(log_size)
            on_size, on_tokens = self._slopes(log_size, log_tokens)
            served = SERVING_SHARE * served_tokens * math.exp(-log_tokens)
            return on_size < self._cost_slope(log_size) * (1 + served) * on_tokens

        low, high = 0.0, math.log(compute_flop / FLOP_PER_SIZE_TOKEN[self.size])
        if not too_small(low) or too_small(high):
            where = "larger" if too_small(high) else "smaller"
            raise NoOptimumError(
                f"the loss law {self.name} has no interior optimum at {compute_flop:.3g} FLOP: the predicted loss "
                f"keeps falling towards {where} models"
            )
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if too_small(middle) else (low, middle)
        return math.exp(low)

    def log_cost(self, log_size: float) -> float:
        """ln of the FLOP per token of a model of this size."""
        if self.cost is None:
            return math.log(FLOP_PER_SIZE_TOKEN[self.size]) + log_size
        return math.log(float(self.cost(np.array([math.exp(log_size)]))[0]))

    def _cost_slope(self, log_size: float) -> float:
        """dln(FLOP per token)/dln X: 1 where a size costs a constant times itself."""
        if self.cost is None:
            return 1.0
        return (self.log_cost(log_size + _STEP) - self.log_cost(log_size - _STEP)) / (2 * _STEP)

    def _slopes(self, log_size: float, log_tokens: float) -> tuple[float, float]:
        """dln L/dln X and dln L/dln D, times twice the step."""
        x = np.exp(log_size + _STEP * np.array([1, -1, 0, 0]))
        d = np.exp(log_tokens + _STEP * np.array([0, 0, 1, -1]))
        log_loss = self._log_losses(x, d)
        return float(log_loss[0] - log_loss[1]), float(log_loss[2] - log_loss[3])

    def _log_losses(self, size: Array, tokens: Array) -> Array:
        """ln L after these tokens, of which those beyond the unique ones are repeats."""
        return self.log_losses(size, effective_tokens(tokens, self.unique_tokens))


@dataclass(frozen=True)
class Laws:
    """The laws of size and loss that a plan uses: an allocation, a loss surface, or both."""

    allocation: Allocation | None
    surface: LossSurface | None


def published_loss_surface(law: PublishedLaw, unique_tokens: UniqueTokens = math.inf) -> LossSurface | None:
    """The loss surface that a law's source prints, on so much text; None where it prints none."""
    if law.loss is None:
        return None
    loss = law.loss
    constants = loss.E, loss.A, loss.B, loss.alpha, loss.beta

    def log_losses(size: Array, fresh_tokens: Array) -> Array:
        return np.log(value(STANDARD, constants, size, fresh_tokens))

    return LossSurface(law.name, loss.size, log_losses, unique_tokens)


def shape_for_objective(
    compute_flop: float, objective: Objective, laws: Laws, family: Family, vocab: int, stages: int = 1
) -> ModelSpec:
    """The shape of a run of this compute under an objective. The laws must hold what it needs (see `missing_law`)."""

    def nearest(target_size: float, measure: Callable[[ModelSpec], float]) -> ModelSpec:
        return shape_for(family, vocab, target_size, measure, stages)

    if isinstance(objective, FixedSize):
        return nearest(objective.params, lambda shape: shape.params)
    if isinstance(objective, FixedRatio):
        product = compute_flop / objective.tokens_per_param
        return nearest(product, lambda shape: float(shape.flop_per_token) * shape.params)
    if isinstance(objective, Optimal) and laws.allocation is not None:
        best = laws.allocation.flop_per_token.at(compute_flop=compute_flop)
        return nearest(best, lambda shape: shape.flop_per_token)
    assert laws.surface is not None  # the caller checks `missing_law`
    served = objective.served if isinstance(objective, Inference) else 0
    return nearest(laws.surface.best_size(compute_flop, served), laws.surface.measure)


def cost_of_sizes(family: Family, vocab: int, kind: SizeKind) -> Cost | None:
    """What the family's models of a size cost, M by their N, smooth in both: steps of a layer and bends in the family's
    practice are no reason to prefer a size. None where sizes are M."""
    if kind == "flop_per_token":
        return None
    shapes = family_shapes(family, vocab, math.inf)
    sizes = np.log([float(getattr(shape, kind)) for shape in shapes])
    ratios = np.log([float(shape.flop_per_token) for shape in shapes]) - sizes
    at = np.linspace(sizes.min(), sizes.max(), _GRID)
    smooth = _local_lines(sizes, ratios, at)

    def cost(size: Array) -> Array:
        return np.asarray(size * np.exp(np.interp(np.log(size), at, smooth)))

    return cost


def _local_lines(x: Array, y: Array, at: Array) -> Array:
    """y at these places, by the line through its Gaussian neighbourhood (Cleveland 1979, JASA 74:829)."""
    off = x - at[:, None]
    weights = np.exp(-((off / _SMOOTHED) ** 2) / 2)
    s0, s1, s2 = (np.sum(weights * off**k, axis=1) for k in range(3))
    t0, t1 = (np.sum(weights * off**k * y, axis=1) for k in range(2))
    return np.asarray((s2 * t0 - s1 * t1) / (s0 * s2 - s1**2))


def split_near(surface: LossSurface, compute_flop: float) -> Allocation:
    """The surface's best split at a compute and a decade below it, with power laws through both; NoOptimumError where
    there is none."""
    here, below = (_best_cost(surface, flop) for flop in (compute_flop, compute_flop / 10))
    exponent = math.log10(here / below)
    coefficient = here / compute_flop**exponent
    return Allocation(
        flop_per_token=Monomial(coefficient=coefficient, exponents={"compute_flop": exponent}),
        tokens=Monomial(coefficient=1 / coefficient, exponents={"compute_flop": 1 - exponent}),
    )


def _best_cost(surface: LossSurface, compute_flop: float) -> float:
    """FLOP per token of the best size."""
    return math.exp(surface.log_cost(math.log(surface.best_size(compute_flop))))


def missing_law(objective: Objective, laws: Laws) -> str:
    """What the objective needs and the laws do not have; empty if nothing is missing."""
    if isinstance(objective, Inference) and laws.surface is None:
        return "a loss law"
    if isinstance(objective, Optimal) and laws.allocation is None and laws.surface is None:
        return "an allocation or a loss law"
    return ""


def least_compute_for_loss(
    loss: float, surface: LossSurface, shape: Callable[[float], ModelSpec], max_flop: float
) -> float:
    """The least compute whose run reaches the loss, within a thousandth; inf where `max_flop` does not reach it."""

    def reaches_loss(compute_flop: float) -> bool:
        model = shape(compute_flop)
        return surface.loss(surface.measure(model), compute_flop / model.flop_per_token) <= loss

    if not reaches_loss(max_flop):
        return math.inf
    low, high = 0.0, math.log(max_flop)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if reaches_loss(math.exp(middle)) else (middle, high)
    return math.exp(high)


def serving_flop(model: ModelSpec, served_tokens: float) -> float:
    """FLOP of serving these tokens: the forward third of M for each."""
    return SERVING_SHARE * model.flop_per_token * served_tokens
