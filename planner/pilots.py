"""Which pilot runs to buy: a ladder of isoFLOP budgets half a decade apart, and a learning-rate check beside it.

The ladder's top is a tenth of the target at most, so that the law is asked to extrapolate and is judged by it; the rest
follows from the share. Sizes are spread around the prior's optimum, each a different legal shape.
"""

import math

from planner.draft import Wish
from planner.shape import sizes_of_family
from specs.budget import Pilots
from specs.law import Allocation, Family
from specs.model import ModelSpec

HALF_DECADE = math.sqrt(10.0)
"""Ratio of neighbouring budgets; the paper's eight budgets from 1e17 to 3e20 are as far apart."""
TOP_OF_TARGET = 0.1
"""The largest pilot budget is at most this share of the target."""


def ladder(pilots: Pilots, target_flop: float) -> list[float]:
    """The budgets, smallest first, so that all pilots together cost at most the share of the target's compute."""
    weights = [HALF_DECADE**-i for i in range(pilots.budgets)]
    per_top = pilots.sizes * sum(weights) + len(pilots.rates) * weights[_rate_rung(pilots)]
    top = min(TOP_OF_TARGET, pilots.share / per_top) * target_flop
    return [top * weight for weight in reversed(weights)]


def sizes(family: Family, vocab: int, centre_flop_per_token: float, pilots: Pilots) -> list[ModelSpec]:
    """Different shapes spread evenly in ln M around the centre, smallest first."""
    steps = [i - (pilots.sizes - 1) / 2 for i in range(pilots.sizes)]
    wanted = [centre_flop_per_token * pilots.spread**step for step in steps]
    pool = sizes_of_family(family, vocab, wanted[-1] * pilots.spread**pilots.sizes)
    chosen: list[ModelSpec] = []
    for flop_per_token in wanted:
        free = [shape for shape in pool if shape not in chosen]
        chosen.append(min(free, key=lambda s: (abs(math.log(s.flop_per_token / flop_per_token)), s.width)))
    return sorted(chosen, key=lambda shape: shape.flop_per_token)


def wishes(
    pilots: Pilots, family: Family, vocab: int, prior: Allocation, target_flop: float, devices: int
) -> list[Wish]:
    """Every pilot and learning-rate run, smallest budgets first."""
    budgets = ladder(pilots, target_flop)
    share = _devices_each(devices, pilots.budgets * pilots.sizes + len(pilots.rates))
    found: list[Wish] = []
    for budget in budgets:
        centre = prior.flop_per_token.at(compute_flop=budget)
        for shape in sizes(family, vocab, centre, pilots):
            title = f"{budget:.1e} FLOP, width {shape.width}"
            found.append(Wish("pilot", title, budget, shape, share))
    return found + _rate_wishes(pilots, family, vocab, prior, budgets, share)


def _rate_wishes(
    pilots: Pilots, family: Family, vocab: int, prior: Allocation, budgets: list[float], devices: int
) -> list[Wish]:
    budget = budgets[-1 - _rate_rung(pilots)]
    around = sizes(family, vocab, prior.flop_per_token.at(compute_flop=budget), pilots)
    middle = around[len(around) // 2]
    return [
        Wish(
            "rate",
            f"{budget:.1e} FLOP, width {middle.width}, lr x{multiple:g}",
            budget,
            middle,
            devices,
            multiple,
        )
        for multiple in pilots.rates
    ]


def _rate_rung(pilots: Pilots) -> int:
    """The check runs on the second largest budget: late enough to have settled, cheap enough to repeat."""
    return min(1, pilots.budgets - 1)


def _devices_each(devices: int, runs: int) -> int:
    return int(2 ** math.floor(math.log2(max(1.0, devices / runs))))
