"""Runs as the fits see them: checked, and joined to cells and bins."""

import numpy as np
import pytest

from planner.scaling.points import cells, points
from tests.support.ladders import cloud


def test_short_runs_count_for_a_ninth() -> None:
    runs = points(
        [1e5, 2e5, 4e5], [1e6, 1e6, 1e6], [3.0, 2.9, 2.8], steps=[999, 1000, 5000], weights=[1, 1, 2]
    )
    assert runs.precision.tolist() == pytest.approx([1 / 9, 1, 2])
    assert runs.take([2]).precision.tolist() == [2]
    with pytest.raises(ValueError, match="steps has 2 entries"):
        points([1e5], [1e6], [3.0], steps=[1, 2])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [("loss", -1.0, "loss of run 3"), ("size", 0.0, "size of run 3"), ("tokens", np.nan, "tokens of run 3")],
)
def test_bad_runs_are_named(column: str, value: float, message: str) -> None:
    runs = {"size": np.full(9, 1e7), "tokens": np.full(9, 1e9), "loss": np.full(9, 3.0)}
    runs[column][3] = value
    with pytest.raises(ValueError, match=message):
        points(runs["size"], runs["tokens"], runs["loss"])


def test_tokens_that_differ_by_less_than_a_batch_are_the_same_run_under_another_seed() -> None:
    """A millionth is, a hundredth is not; nor is other text, on which as many tokens are worth fewer."""
    runs = points(
        [1e5, 1e5, 1e5, 2e5, 1e5],
        [1e6, 1e6 * (1 + 1e-6), 1.01e6, 1e6, 1e6],
        [3.0, 3.1, 3.0, 2.9, 3.0],
        unique_tokens=[np.inf, np.inf, np.inf, np.inf, 1e5],
    )
    assert runs.cell[0] == runs.cell[1]
    assert len(set(runs.cell.tolist())) == 4
    joined = cells(runs)
    assert sorted(joined.runs.tolist()) == [1, 1, 1, 2]
    assert joined.freedom == 1
    assert joined.square == pytest.approx(np.log(3.1 / 3.0) ** 2 / 2)


def test_many_runs_are_no_cell_though_no_gap_parts_them() -> None:
    runs = cloud(30_000)
    assert np.diff(np.log(np.sort(runs.tokens))).mean() < 5e-4
    order = np.argsort(runs.cell, kind="stable")
    firsts = np.unique(runs.cell[order], return_index=True)[1]
    for column in (np.log(runs.size[order]), np.log(runs.tokens[order])):
        assert (np.maximum.reduceat(column, firsts) - np.minimum.reduceat(column, firsts)).max() <= 2e-3


def test_bins_are_small_where_cells_are_many_and_single_where_they_are_few() -> None:
    """Each cell has one, and no bin spans more than a third of a decade of the three that the runs cover."""
    few, many = cells(cloud(100)), cells(cloud(1000))
    assert sorted(few.bin.tolist()) == list(range(100))
    assert 64 < len(np.unique(many.bin)) <= 128
    for column in (many.size, many.fresh_tokens):
        spans = [np.ptp(np.log10(column[many.bin == one])) for one in np.unique(many.bin)]
        assert max(spans) < 1 / 3
    assert many.mean(np.ones(1000), np.ones(1000)) == pytest.approx(1)
