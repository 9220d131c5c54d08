"""The split under other conventions of size and compute, on a law whose exponents are known in one of them."""

from dataclasses import replace

import numpy as np
import pytest

from planner.scaling.laws import STANDARD, optimum
from planner.scaling.laws import value as law_value
from planner.scaling.model_averaging import Mixture, fit_mixture
from planner.table_fit.analysis import analyse, table_points
from planner.table_fit.conventions import conventions
from planner.table_fit.targets import ComputeTarget
from specs.report.table_fit.page import render_table_fit
from specs.run_table.table import RunTable
from specs.table_fit import Convention, TableFit
from tests.support.run_tables import run_table

TRUTH = (1.7, 400.0, 410.0, 0.34, 0.30)
"""E, A, B, alpha, beta in parameters without embeddings."""


@pytest.fixture(scope="module")
def table() -> RunTable:
    """Profiles of a law in non-embedding parameters, in a table that counts embeddings too."""
    generator = np.random.Generator(np.random.PCG64(3))
    rows = [
        (float(optimum(STANDARD, TRUTH, flop, 6.0)[0]) * factor, flop)
        for flop in (1e17, 4e17, 1.6e18, 6.4e18)
        for factor in np.geomspace(0.25, 4, 7)
    ]
    blocks, flop = np.array(rows).T
    tokens = flop / 6 / blocks
    loss = law_value(STANDARD, TRUTH, blocks, tokens) * np.exp(0.001 * generator.standard_normal(len(rows)))
    return run_table(blocks + 2e5 * blocks ** (1 / 3), tokens, loss, other_sizes={"block_params": blocks})


@pytest.fixture(scope="module")
def fit(table: RunTable) -> TableFit:
    return analyse(table, [ComputeTarget(1e20)])


def test_each_convention_has_its_exponents_and_the_true_ones_are_found(fit: TableFit) -> None:
    own, blocks = fit.conventions
    assert (own.name, blocks.name) == ("N: parameters, C = 6 N D", "N: non-embedding parameters, C = 6 N D")
    assert own.exponents == fit.exponents
    alpha, beta = TRUTH[3:]
    true = beta / (alpha + beta)
    assert blocks.exponents.size.low < true < blocks.exponents.size.high
    # Embeddings are a larger part of small models, so that N with them grows less (Pearce & Song 2024).
    assert own.exponents.size.value < blocks.exponents.size.value - 0.01


def test_the_split_is_given_at_the_largest_run_and_at_each_target(fit: TableFit) -> None:
    own, blocks = fit.conventions
    assert [split.at for split in own.splits] == ["the largest run", "1e20 FLOP"]
    assert own.splits[0].compute_flop == fit.largest_flop
    assert own.splits[1].size == fit.forecasts[0].split.size  # type: ignore[union-attr]
    for split in blocks.splits:
        size = float(optimum(STANDARD, TRUTH, split.compute_flop, 6.0)[0])
        assert split.size.low < size < split.size.high
    assert (
        1 < own.splits[0].compute_flop / blocks.splits[0].compute_flop < 1.5
    )  # embeddings cost nothing there


def test_report_and_json_show_them(fit: TableFit) -> None:
    assert "Other conventions of size and compute" in render_table_fit(fit)
    assert "non-embedding parameters, C = 6 N D" in fit.canonical_json()


@pytest.fixture(scope="module")
def mixture(table: RunTable) -> Mixture:
    return fit_mixture(table_points(table), draws=500)


def found(table: RunTable, mixture: Mixture) -> tuple[Convention, ...]:
    return conventions(
        table, mixture, range(len(table.loss)), [("the largest run", float(mixture.runs.flop.max()))]
    )


def test_a_column_of_other_compute_is_a_convention(table: RunTable, mixture: Mixture) -> None:
    columns = {**table.columns, "flop": "total FLOPs"}
    own, column = found(replace(table, flop=1.3 * table.flop, columns=columns, other_sizes={}), mixture)
    assert column.name == "M = C / D, C: the table's total FLOPs"
    assert column.exponents.size.value == pytest.approx(own.exponents.size.value, abs=0.01)
    assert column.splits[0].compute_flop == pytest.approx(1.3 * own.splits[0].compute_flop, rel=1e-6)
    assert column.splits[0].tokens.value == pytest.approx(own.splits[0].tokens.value, rel=0.05)


def test_a_table_of_one_convention_has_none_beside_it(table: RunTable, mixture: Mixture) -> None:
    assert found(replace(table, other_sizes={}), mixture) == ()
    assert found(replace(table, other_sizes={"block_params": table.size * 1.001}), mixture) == ()
