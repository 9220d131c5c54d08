"""Curves, learning rates and batches of runs as figures."""

import pytest

from specs.humanize import Losses
from specs.report.run_figures import RatePoint, TrainingCurve, envelope, rate_map, rates_and_batches

NATS = Losses(None)


def test_curves_are_drawn_dark_for_large_runs_and_cut_off_far_above_their_ends() -> None:
    small = TrainingCurve("small", (1e10, 1e12), (9.0, 4.0))
    large = TrainingCurve("large", (1e13, 1e15), (9.0, 3.0))
    figure = envelope([large, small], [(1e12, 3.9), (1e15, 2.9)], "law", NATS, "C, FLOP")
    assert figure is not None
    assert [trace["name"] for trace in figure["data"]] == ["small", "large", "law"]
    colours = [trace["line"]["color"] for trace in figure["data"]]
    assert colours[0] != colours[1] == "#0a3260"
    low, high = figure["layout"]["yaxis"]["range"]
    assert 10**low < 2.9
    assert 6.4 < 10**high < 9
    assert envelope([], [(1e12, 3.9)], "law", NATS, "C, FLOP") is None


def points(size: float = 1e8, tokens: float = 2e9) -> list[RatePoint]:
    """Three rates by two batches, one cell of them missing, and one of them run twice."""
    cells = [
        (1e-3, 2**18, 3.0),
        (2e-3, 2**18, 3.1),
        (4e-3, 2**18, 3.2),
        (1e-3, 2**19 * 1.01, 3.3),
        (2e-3, 2**19, 3.0),
    ]
    return [RatePoint(size, tokens * 1.01, *cell) for cell in cells] + [
        RatePoint(size, tokens, 1e-3, 2**18, 2.7)
    ]


def test_runs_of_one_size_are_a_map_of_their_rates_and_batches() -> None:
    found = rate_map([*points(), RatePoint(2e8, 4e9, 1e-3, 2**18, 2.5)])
    assert found is not None
    assert (found.size, found.rates) == (1e8, (1e-3, 2e-3, 4e-3))
    assert found.batches == (2**18, 2**19)
    assert found.loss[0] == pytest.approx(((3.0 * 2.7) ** 0.5, 3.1, 3.2))
    assert found.loss[1] == (pytest.approx(3.3), pytest.approx(3.0), None)


def test_a_map_shows_how_far_each_cell_is_above_the_best() -> None:
    found = rate_map(points())
    assert found is not None
    (heat,) = rates_and_batches(found, NATS)["data"]
    assert heat["z"][0][0] == 0
    assert heat["z"][1][2] is None
    assert heat["zmax"] == 5
    assert heat["y"] == ["262144", "524288"]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        points()[:3],  # one batch
        [point for point in points() if point.lr == 1e-3],  # one rate
        [
            RatePoint(1e8, 2e9, rate, batch, 3.0) for rate, batch in ((1e-3, 2**18), (2e-3, 2**19))
        ],  # both at once
    ],
)
def test_there_is_no_map_without_two_of_each(rows: list[RatePoint]) -> None:
    assert rate_map(rows) is None
