"""Tables in memory: whatever gives arrays by name is read as a file with the same cells is."""

from typing import Any

import numpy as np
import pyarrow
import pytest

from specs.document.parse import DocumentError
from specs.run_table.columns import grid_of
from specs.run_table.read import read_columns, read_table

COLUMNS: dict[str, list[Any]] = {
    "run": ["a", "b", "c"],
    "params": [1e8, 2e8, 4e8],
    "tokens": [2_000_000_000, 4_000_000_000, 8_000_000_000],
    "loss": [3.5, 3.25, 3.0],
    "steps": [1000, None, 4000],
}


class Missing:
    """As pandas' own: it compares with nothing and is no number."""

    def __str__(self) -> str:
        return "<NA>"


class Series:
    """A column of pandas or polars."""

    def __init__(self, cells: list[Any]) -> None:
        self.cells = cells

    def to_list(self) -> list[Any]:
        return self.cells


class Frame:
    """A data frame of pandas or polars."""

    def __init__(self, columns: dict[Any, list[Any]]) -> None:
        self.columns = list(columns)
        self.cells = columns

    def __getitem__(self, name: object) -> Series:
        return Series([Missing() if cell is None else cell for cell in self.cells[name]])


def structured() -> Any:
    kinds = [("run", "U1"), ("params", "f8"), ("tokens", "i8"), ("loss", "f4"), ("steps", "O")]
    return np.array(list(zip(*COLUMNS.values(), strict=True)), dtype=kinds)


@pytest.mark.parametrize(
    "table",
    [
        COLUMNS,
        {name: tuple(cells) for name, cells in COLUMNS.items()},
        COLUMNS | {"params": np.array(COLUMNS["params"]), "loss": [np.float32(x) for x in COLUMNS["loss"]]},
        Frame(COLUMNS),
        pyarrow.table(COLUMNS),
        structured(),
    ],
    ids=["lists", "tuples", "arrays", "data frame", "pyarrow", "structured array"],
)
def test_whatever_gives_columns_by_name_gives_the_same_cells(table: object) -> None:
    grid = grid_of(table)
    assert grid.columns == COLUMNS
    assert {type(cell) for cells in grid.columns.values() for cell in cells} <= {str, int, float, type(None)}


def test_a_table_in_memory_is_read_as_its_file_is(tmp_path: Any) -> None:
    path = tmp_path / "runs.csv"
    rows = (
        ",".join("" if cell is None else str(cell) for cell in row)
        for row in zip(*COLUMNS.values(), strict=True)
    )
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    of_file, of_columns = read_table(path), read_columns(COLUMNS)
    for name in ("name", "size_kind", "cost_per", "loss_unit", "columns", "notes"):
        assert getattr(of_file, name) == getattr(of_columns, name), name
    for name in ("size", "tokens", "loss", "flop", "steps", "batch_tokens"):
        np.testing.assert_array_equal(getattr(of_file, name), getattr(of_columns, name))
    assert of_columns.line.tolist() == [1, 2, 3]
    assert read_columns(COLUMNS).sha256 == of_columns.sha256
    assert read_columns(COLUMNS | {"loss": [3.5, 3.25, 3.1]}).sha256 != of_columns.sha256


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([{"params": 1e8}], "table:1:1: a table of type 'list' has no columns by name; give a path"),
        (COLUMNS | {"loss": 3.0}, "table:1:4: the column 'loss' is 3.0; give a list"),
        (COLUMNS | {"run": "abc"}, "table:1:1: the column 'run' is 'abc'; give a list"),
        (COLUMNS | {"loss": [3.5, 3.25]}, "table:1:4: the column 'loss' has 2 cells where 'run' has 3; give each"),
        (COLUMNS | {"loss": [3.5, None, 3.0]}, "table:2:4: loss is missing; write it"),
        (COLUMNS | {"loss": [3.5, 3.25, float("nan")]}, "table:3:4: loss is nan; write a number"),
        (COLUMNS | {"tokens": [[1], [2], [3]]}, "table:1:3: tokens is a list, which is not a number"),
        (pyarrow.table([[1.0], [2.0]], names=["loss", "loss"]), "table:1:2: the column 'loss' appears twice"),
        (COLUMNS | {"tokens": [np.ones(2)] * 3}, "table:1:3: tokens is a list, which is not a number"),
        ({}, "table:1:1: the table has no run; give a row"),
        ({"params": [], "tokens": [], "loss": []}, "table:1:1: the table has no run; give a row"),
        ({"params": range(100_001)}, "table:1:1: the table has more than 100,000 rows"),
        ({name: cells[:1] for name, cells in COLUMNS.items()}, "table:1:1: the table has a single run"),
        ({0: [1e8, 2e8], 1: [2e9, 4e9]}, "table:1:1: no column is the loss (columns: 0, 1)"),
    ],
)  # fmt: skip
def test_a_bad_table_is_one_line_with_row_and_column(table: object, says: str) -> None:
    with pytest.raises(DocumentError) as refused:
        read_columns(table)
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)
