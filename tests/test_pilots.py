"""The ladder: within the share, below a tenth of the target, different legal sizes around the prior's optimum."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.pilots import ladder, sizes, wishes
from specs.budget import Pilots
from specs.files import from_catalog
from specs.law import Family, PublishedLaw

TINY = from_catalog(Family, "tiny", None)
PRIOR = from_catalog(PublishedLaw, "tiny", None)


def pilots(share: float = 0.8, budgets: int = 3, count: int = 5) -> Pilots:
    """The pilots section of a budget."""
    return Pilots(kind="pilots", prior="tiny", share=share, budgets=budgets, sizes=count)


def test_the_demos_ladder() -> None:
    """1e11, 3.16e11 and 1e12 for a target of 1e13: a tenth at most, half a decade apart."""
    assert ladder(pilots(), 1e13) == pytest.approx([1e11, 10**11.5, 1e12])


@given(st.floats(0.001, 1.0), st.integers(2, 8), st.integers(4, 10), st.floats(12, 25))
def test_pilots_cost_no_more_than_their_share(
    share: float, budgets: int, count: int, log_target: float
) -> None:
    """All budgets times sizes, and the learning-rate check, stay within the share; no budget is over a tenth."""
    asked, target = pilots(share, budgets, count), 10**log_target
    rungs = ladder(asked, target)
    spent = count * sum(rungs) + len(asked.rates) * rungs[-2]
    assert spent <= share * target * (1 + 1e-12)
    assert rungs[-1] <= 0.1 * target * (1 + 1e-12)


def test_sizes_are_different_and_surround_the_centre() -> None:
    """Even where the grid of legal widths is coarse."""
    for centre in (1.0e5, 4.4e5, 3e6):
        found = [shape.flop_per_token for shape in sizes(TINY, 256, centre, pilots())]
        assert len(set(found)) == 5
        assert found == sorted(found)
        assert found[0] < centre < found[-1]


def test_the_learning_rate_check_repeats_a_pilot() -> None:
    """It runs the middle shape of the second largest budget, which is also a pilot at the law's own rate."""
    assert PRIOR.allocation is not None
    wanted = wishes(pilots(), TINY, 256, PRIOR.allocation, 1e13, 2)
    rates = [wish for wish in wanted if wish.role == "rate"]
    assert [wish.rate_multiple for wish in rates] == [0.5, 2.0]
    for wish in rates:
        assert math.isclose(wish.compute_flop, 10**11.5)
        assert any(
            w.role == "pilot" and w.shape == wish.shape and w.compute_flop == wish.compute_flop
            for w in wanted
        )
