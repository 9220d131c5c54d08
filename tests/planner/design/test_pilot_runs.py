"""The runs of a ladder: different legal sizes around the prior's optimum, and a learning-rate check beside a pilot."""

import math

from planner.design.pilot_design import Ladder
from planner.design.pilot_runs import pilot_requests, pilot_shapes
from specs.document.files import from_catalog
from specs.law import Family, PublishedLaw

TINY = from_catalog(Family, "tiny", None)
PRIOR = from_catalog(PublishedLaw, "tiny", None)
LADDER = Ladder(budgets=3, sizes=5, spread=2.0, budget_ratio=math.sqrt(10.0), top_share=0.1)


def test_sizes_are_different_and_surround_the_centre() -> None:
    """Even where the grid of legal widths is coarse."""
    for centre in (1.0e5, 4.4e5, 3e6):
        found = [shape.flop_per_token for shape in pilot_shapes(TINY, 256, centre, LADDER)]
        assert len(set(found)) == 5
        assert found == sorted(found)
        assert found[0] < centre < found[-1]


def test_sizes_closer_than_legal_shapes_are_still_different() -> None:
    """Ten sizes a tenth apart at a budget whose optimum is below the smallest shape."""
    close = Ladder(budgets=3, sizes=10, spread=1.1, budget_ratio=10.0, top_share=0.1)
    found = pilot_shapes(TINY, 256, 2e4, close)
    assert [shape.width for shape in found] == list(range(12, 52, 4))


def test_the_learning_rate_check_repeats_a_pilot() -> None:
    """It runs the middle shape of the second largest budget, which is also a pilot at the law's own rate."""
    assert PRIOR.allocation is not None
    wanted = pilot_requests(LADDER, (0.5, 2.0), TINY, 256, PRIOR.allocation, 1e13, 2)
    rates = [request for request in wanted if request.role == "rate"]
    assert [request.rate_multiple for request in rates] == [0.5, 2.0]
    for request in rates:
        assert math.isclose(request.compute_flop, 10**11.5)
        assert any(
            w.role == "pilot" and w.shape == request.shape and w.compute_flop == request.compute_flop
            for w in wanted
        )
