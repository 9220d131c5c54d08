"""Synthetic ladders of pilots on a known surface."""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from planner.scaling import laws
from planner.scaling.points import Points, points

BUDGETS = (1e11, 3e11, 1e12)
# A byte-level surface like the pilots': 2.7 bits at 1e12 FLOP, 30 % of it floor, coupled as public data are.
_PILOTS = {"E": 0.8, "excess": 1.9, "alpha": 0.5, "beta": 0.55, "k": 0.45, "size": 4e5}


def pilot_surface() -> tuple[laws.Form, list[float]]:
    """Constants whose optimum at 1e12 has that size and loss."""
    alpha, beta, k = _PILOTS["alpha"], _PILOTS["beta"], _PILOTS["k"]
    inner = _PILOTS["excess"] ** (1 / k)
    a = inner * beta / (alpha + beta) * _PILOTS["size"] ** alpha
    b = inner * alpha / (alpha + beta) * (1e12 / _PILOTS["size"]) ** beta
    return laws.COUPLED, [_PILOTS["E"], a, b, alpha, beta, k]


def ladder(
    budgets: tuple[float, ...] = BUDGETS,
    *,
    noise: ArrayLike = 0.01,
    seed: int = 0,
    sizes: int = 5,
    kink: float = 0.0,
) -> Points:
    """Runs on the pilot surface, the budgets' sizes within a factor of three of its optimum.

    `noise` (one, or by budget) is the standard deviation of ln loss; `kink` is added to ln loss for each decade beyond
    1.3 below the largest budget: there is no law of all runs then, but the larger runs' is the pilot surface.
    """
    form, params = pilot_surface()
    generator = np.random.default_rng(seed)
    flop = np.repeat(budgets, sizes)
    spread = np.tile(np.geomspace(1 / 3, 3, sizes), len(budgets))
    size = laws.optimum(form, params, flop)[0] * spread
    sds = np.repeat(np.broadcast_to(noise, len(budgets)), sizes)
    off = kink * np.maximum(np.log10(max(budgets) / flop) - 1.3, 0)
    off += sds * generator.standard_normal(len(size))
    return points(size, flop / size, laws.value(form, params, size, flop / size) * np.exp(off))


def cloud(runs: int, *, noise: float = 0.01, seed: int = 0) -> Points:
    """Runs at every compute from 1e10 to 1e13 FLOP, within a factor of three of the pilot surface's optimum."""
    form, params = pilot_surface()
    generator = np.random.default_rng(seed)
    flop = 10 ** generator.uniform(10, 13, runs)
    size = laws.optimum(form, params, flop)[0] * np.exp(generator.uniform(-1.1, 1.1, runs))
    off = noise * generator.standard_normal(runs)
    return points(size, flop / size, laws.value(form, params, size, flop / size) * np.exp(off))


def with_losses(runs: Points, losses: dict[int, float]) -> Points:
    """The runs with these losses at these rows."""
    changed = runs.loss.copy()
    changed[list(losses)] = list(losses.values())
    return replace(runs, loss=changed)


def target(flop: float) -> tuple[float, float]:
    """The compute-optimal size and tokens of the pilot surface."""
    size, tokens, _ = laws.optimum(*pilot_surface(), flop)
    return float(size), float(tokens)


def true_loss(size: float, tokens: float) -> float:
    """The pilot surface's loss."""
    form, params = pilot_surface()
    return float(laws.value(form, params, size, tokens))
