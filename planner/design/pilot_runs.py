"""The pilot runs: a ladder of isoFLOP budgets (chosen by planner/design/pilot_design.py) and a learning-rate check.

Sizes are spaced around the prior's optimum, each a different legal shape.
"""

import math

from planner.design.model_shape import family_shapes
from planner.design.pilot_design import Ladder, rate_check_offset
from planner.design.run_draft import DraftRequest
from specs.law import Allocation, Family
from specs.model import ModelSpec


def pilot_shapes(family: Family, vocab: int, centre_flop_per_token: float, ladder: Ladder) -> list[ModelSpec]:
    """Different shapes spaced evenly in ln M around the centre, smallest first."""
    steps = [i - (ladder.sizes - 1) / 2 for i in range(ladder.sizes)]
    targets = [centre_flop_per_token * ladder.spread**step for step in steps]
    largest = targets[-1] * ladder.spread**ladder.sizes
    pool = family_shapes(family, vocab, largest)
    while len(pool) < ladder.sizes:  # at a small budget the targets are closer together than legal shapes are
        largest *= 2
        pool = family_shapes(family, vocab, largest)
    chosen: list[ModelSpec] = []
    for flop_per_token in targets:
        free = [shape for shape in pool if shape not in chosen]
        chosen.append(min(free, key=lambda s: (abs(math.log(s.flop_per_token / flop_per_token)), s.width)))
    return sorted(chosen, key=lambda shape: shape.flop_per_token)


def pilot_requests(
    ladder: Ladder,
    rates: tuple[float, ...],
    family: Family,
    vocab: int,
    prior: Allocation,
    target_flop: float,
    devices: int,
) -> list[DraftRequest]:
    """Every pilot and learning-rate run, smallest budgets first."""
    budgets = ladder.budgets_flop(target_flop)
    share = _devices_per_run(devices, ladder.budgets * ladder.sizes + len(rates))
    requests: list[DraftRequest] = []
    for budget in budgets:
        centre = prior.flop_per_token.at(compute_flop=budget)
        for shape in pilot_shapes(family, vocab, centre, ladder):
            title = f"{budget:.1e} FLOP, width {shape.width}"
            requests.append(DraftRequest("pilot", title, budget, shape, share))
    checked = budgets[-1 - rate_check_offset(ladder.budgets)]
    shapes = pilot_shapes(family, vocab, prior.flop_per_token.at(compute_flop=checked), ladder)
    middle = shapes[len(shapes) // 2]
    return requests + [
        DraftRequest(
            "rate",
            f"{checked:.1e} FLOP, width {middle.width}, lr x{multiple:g}",
            checked,
            middle,
            share,
            multiple,
        )
        for multiple in rates
    ]


def _devices_per_run(devices: int, runs: int) -> int:
    return int(2 ** math.floor(math.log2(max(1.0, devices / runs))))
