"""Tables that a program holds: a dict of arrays, a data frame, anything that gives columns by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specs.document.parse import DocumentError, Place, show
from specs.humanize import several
from specs.run_table.grid import RUNS, Cell, Grid, too_many

PATH = Path("table")
"""Stands for the file in messages, where the row counts as the line."""

_EXAMPLE = "give a path, a data frame, or a dict such as {'params': [...], 'tokens': [...], 'loss': [...]}"
_MISSING = {"<NA>", "NaT"}
"""What data frames write where there is no value."""


def grid_of(table: Any) -> Grid:
    """The cells of a table in memory; DocumentError where it has no columns by name, or they differ in length.

    Read are mappings, NumPy's structured arrays, and what pandas, polars and pyarrow give.
    """
    names = _names(table)
    texts = [str(name) for name in names]
    for at, text in enumerate(texts):
        if text in texts[:at]:
            raise _refuse(at, f"the column {show(text)} appears twice", "rename or remove one of them")
    columns = {
        text: _cells(table[name], at, text) for at, (name, text) in enumerate(zip(names, texts, strict=True))
    }
    rows = len(columns[texts[0]]) if texts else 0
    for at, text in enumerate(texts):
        own = len(columns[text])
        if own != rows:
            what = f"the column {show(text)} has {several(own, 'cell')} where {show(texts[0])} has {rows}"
            raise _refuse(at, what, "give each run a cell in every column")
    if rows == 0:
        raise _refuse(0, "the table has no run", "give a row for each run")
    if rows > RUNS.most_rows:
        raise too_many(PATH, RUNS)

    def place(row: int | None, column: str) -> Place:
        return (1 if row is None else row + 1), (texts.index(column) + 1 if column in columns else 1)

    return Grid(PATH, columns, list(range(1, rows + 1)), place)


def _names(table: Any) -> list[Any]:
    """The names of a table's columns, as they are asked for."""
    if isinstance(table, Mapping):
        return list(table)
    for names in (
        getattr(table, "column_names", None),  # pyarrow, whose `columns` are not names
        getattr(table, "columns", None),
        getattr(getattr(table, "dtype", None), "names", None),
    ):
        if names is not None and not callable(names):
            return list(names)
    raise _refuse(0, f"a table of type {show(type(table).__name__)} has no columns by name", _EXAMPLE)


def _cells(column: Any, at: int, name: str) -> list[Cell]:
    """A column's cells as Python's own values, None where there is none."""
    for convert in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, convert):
            cells = getattr(column, convert)()
            break
    else:
        cells = list(column) if hasattr(column, "__iter__") and not isinstance(column, str) else column
    if not isinstance(cells, list):
        raise _refuse(
            at, f"the column {show(name)} is {show(cells)}", "give a list or an array, a value for each run"
        )
    return [_cell(cell) for cell in cells]


def _cell(cell: Any) -> Cell:
    if cell is None or isinstance(cell, str | int | float):
        return cell
    if hasattr(cell, "tolist"):  # one number of NumPy, torch or JAX; a list where it is several
        return cell.tolist()
    return None if str(cell) in _MISSING else cell


def _refuse(at: int, what: str, write: str) -> DocumentError:
    return DocumentError(PATH, 1, at + 1, what, write)
