"""Public tables, each from its file to a forecast of its own largest runs. Skipped where they are absent."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from planner.table_fit.analysis import analyse
from planner.table_fit.targets import ComputeTarget
from specs.report.table_fit_page import render_table_fit
from specs.run_table.table import RunTable
from specs.table_fit import TableFit
from tests.support.needs import shared
from tests.support.paths import SHARED
from tests.support.run_tables import run_table


def columns(path: Path, *names: str) -> list[list[float]]:
    """Columns of a CSV or JSONL file."""
    text = path.read_text().splitlines()
    rows = csv.DictReader(text) if path.suffix == ".csv" else [json.loads(line) for line in text]
    return [
        list(column) for column in zip(*([float(row[name]) for name in names] for row in rows), strict=True)
    ]


def kempner(corpus: str, data: Path) -> RunTable:
    size, tokens, loss, steps = columns(data / f"kempner/{corpus}.csv", "n", "d", "loss", "steps")
    return run_table(size, tokens, loss, steps=steps)


def epoch(data: Path) -> RunTable:
    size, flop, loss = columns(
        data / "epoch_chinchilla/svg_extracted_data.csv", "Model Size", "Training FLOP", "loss"
    )
    return run_table(size, np.array(flop) / 6 / np.array(size), loss)


def gemstones(data: Path) -> RunTable:
    names = ("params_active_precise", "tokens", "final_loss", "step")
    size, tokens, loss, steps = columns(data / "gemstones/wandb_df_for_fitting_cool_end.jsonl", *names)
    return run_table(size, tokens, loss, steps=steps)


TABLES: dict[str, Callable[[Path], RunTable]] = {
    **{f"kempner {corpus}": partial(kempner, corpus) for corpus in ("fineweb", "proof-pile-2", "starcoder")},
    "epoch": epoch,
    "gemstones": gemstones,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_a_public_table_forecasts_its_own_largest_runs(name: str) -> None:
    table = TABLES[name](shared(SHARED / "data"))
    fit = analyse(table, [ComputeTarget(10 * float(table.flop.max()))])
    assert fit.no_forecast is None
    assert fit.forecasts[0].extrapolation == pytest.approx(10, rel=1e-6)
    assert len(fit.backtests) == 2
    assert fit.backtests[0].runs[0].inside_95  # the largest run of all, from those half a decade below
    assert max(test.mean_error for test in fit.backtests) < 0.015  # .2 to 1.3 %
    for profile in fit.profiles:
        assert profile.bracketed == (profile.reason == "")
    assert TableFit.model_validate_json(fit.canonical_json()) == fit
    assert 'id="frontier"' in render_table_fit(fit)
