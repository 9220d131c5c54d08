"""When text is short, and when a model will be used a lot: repeats discounted, serving counted in.

A token that is seen again teaches less: repeated data count as a smaller amount of fresh data (Muennighoff et al.
2023). A model that will be served costs at every token it reads or writes, so that a smaller one, trained longer to the
same loss, is cheaper in the end (Sardana et al. 2023). Both need a law of size and tokens; its constants are the
caller's own, and only the discount is taken from elsewhere.

Legend: X size (N parameters or M FLOP per token), D tokens, U unique tokens, S served tokens, C = cost_per * X * D.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.scaling.laws import STANDARD, Array, Form, optimum, value
from specs.law import LossLaw

REPEAT_SCALE = 15.39
"""R_D*: repeated epochs after which one more is worth 1/e of a fresh one (Muennighoff et al. 2023, arXiv 2305.16264,
section 6 and appendix A)."""
SERVING_SHARE = 1 / 3
"""FLOP of reading or writing a token over those of training on it: 2 N against 6 N (Sardana et al. 2023,
arXiv 2401.00448, section 2)."""
TRUSTED_EPOCHS = 16.0
"""Up to here the discounted loss is unbiased on Muennighoff et al.'s own runs; between 16 and 64 epochs they end 5 %
above it, more beyond, since they overfit (bench/data_limits.py)."""
_MOST_FLOP = 1e60
"""Far beyond any budget: where a law's loss has come down to its floor."""
_HALVINGS = 200
"""A bisection in logarithms is at the last digit of a float long before."""
_COST_PER = {"params": 6.0, "block_params": 6.0, "flop_per_token": 1.0}


@dataclass(frozen=True)
class Surface:
    """A law of size and tokens with its constants."""

    form: Form
    params: tuple[float, ...]
    """In the order of form.constants."""
    cost_per: float
    """FLOP that a unit of size costs per trained token: 6 for parameters, 1 for FLOP per token."""

    def loss(self, size: ArrayLike, tokens: ArrayLike) -> Array:
        """Nats per token."""
        return value(self.form, self.params, size, tokens)

    def best(self, flop: float) -> tuple[float, float, float]:
        """The compute-optimal size, tokens and loss."""
        size, tokens, loss = optimum(self.form, self.params, flop, self.cost_per)
        return float(size), float(tokens), float(loss)


@dataclass(frozen=True)
class Overtrained:
    """A run with more tokens per size than its compute would choose."""

    size: float
    tokens: float
    loss: float
    """Nats per token."""
    penalty: float
    """Nats per token above the compute-optimal run of the same compute."""
    wasted: float
    """Share of the compute that a compute-optimal run of the same loss would save."""


def surface(law: LossLaw) -> Surface:
    """A printed loss law as a surface."""
    return Surface(STANDARD, (law.E, law.A, law.B, law.alpha, law.beta), _COST_PER[law.size])


def effective_tokens(tokens: float, unique: float) -> float:
    """Fresh tokens that `tokens` drawn from `unique` ones are worth: U + U R* (1 - exp(-(D/U - 1) / R*)).

    Muennighoff et al. 2023, Eq. 5. Four epochs are worth 3.73 fresh ones, sixteen 10.6, endless ones 16.4.
    """
    if not (tokens > 0 and unique > 0):
        raise ValueError(f"tokens {tokens} and unique tokens {unique} must be positive")
    repeats = tokens / unique - 1
    if repeats <= 0:
        return float(tokens)
    return float(unique * (1 - REPEAT_SCALE * np.expm1(-repeats / REPEAT_SCALE)))


def flop_for_loss(law: Surface, loss: float) -> float:
    """The least compute that reaches a loss; ValueError where none does."""
    lowest = law.best(_MOST_FLOP)[2]
    if loss <= lowest:
        raise ValueError(f"no compute reaches {loss:.4g} nats/token: this law ends at {lowest:.4g}")
    low, high = 0.0, float(np.log(_MOST_FLOP))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if law.best(float(np.exp(middle)))[2] > loss else (low, middle)
    return float(np.exp(high))


def inference_optimum(law: Surface, compute_flop: float, served_tokens: float) -> tuple[float, float]:
    """Size and tokens that reach the compute-optimal loss of `compute_flop` at the lowest cost of training and serving.

    Minimises cost_per X (D + S/3) at that loss. The training alone then costs more than `compute_flop`, and serving
    less than it would have. ValueError for a law that is not one of two power terms.
    """
    if served_tokens < 0:
        raise ValueError(f"served tokens {served_tokens} must not be negative")
    _, fewest, loss = law.best(compute_flop)
    if served_tokens == 0:
        return law.best(compute_flop)[:2]
    low, high = np.log(fewest), np.log(fewest) + 60.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tokens = float(np.exp(middle))
        above = float(law.loss(_served_size(law, tokens, served_tokens), tokens)) > loss
        low, high = (middle, high) if above else (low, middle)
    tokens = float(np.exp((low + high) / 2))
    return _served_size(law, tokens, served_tokens), tokens


def _served_size(law: Surface, tokens: float, served: float) -> float:
    """The size at which a per cent of cost gains the same spent on size as on tokens.

    alpha A X**-alpha = beta B D**-beta (1 + S / 3D), whatever function of the two terms' sum the loss is.
    """
    if law.form.variables != ("X", "D"):
        raise ValueError(
            f"the {law.form.name} law has no terms of size and of tokens to set against each other"
        )
    known = dict(zip(law.form.constants, law.params, strict=True))
    alpha, beta = known["alpha"], known.get("beta", known["alpha"])
    slope = beta * known["B"] * tokens**-beta * (1 + SERVING_SHARE * served / tokens)
    return float((alpha * known["A"] / slope) ** (1 / alpha))


def overtrained(law: Surface, compute_flop: float, factor: float) -> Overtrained:
    """The run of the same compute with `factor` times the optimum's tokens per size (below 1: with fewer).

    Four times costs .0044 nats at 1e24 FLOP on Epoch's constants, worth 16 % of the compute.
    """
    if factor <= 0:
        raise ValueError(f"the factor on tokens per size is {factor}; it must be positive")
    size, tokens, best = law.best(compute_flop)
    size, tokens = size / factor**0.5, tokens * factor**0.5
    loss = float(law.loss(size, tokens))
    wasted = 1 - flop_for_loss(law, loss) / compute_flop
    return Overtrained(size=size, tokens=tokens, loss=loss, penalty=loss - best, wasted=max(wasted, 0.0))
