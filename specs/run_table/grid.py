"""A table as its file has it: cells by column, and where each of them stands."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specs.document.parse import DocumentError, Place

MOST_RUNS = 100_000
"""Most runs that are read; the largest public table of finished runs has about 3,000."""

Cell = Any
"""str in a delimited file; str, int, float, bool, None in the others."""


@dataclass(frozen=True)
class Scope:
    """What is read of a file, and how messages call its rows."""

    row: str
    """What a row is: `run`."""
    example: str
    """A row as a JSON object, for messages."""
    most_rows: int
    fewer: str
    """What to write where there are more."""
    wanted: Callable[[str], bool]
    """Whether a column of this name is read; the cells of others are None, which saves their memory."""


RUNS = Scope(
    row="run",
    example='{"params": 410e6, "tokens": 8e9, "loss": 3.02}',
    most_rows=MOST_RUNS,
    fewer="give one row for each finished run, its last one if these are training curves",
    wanted=lambda _: True,
)
"""A table of finished runs, all of it."""


@dataclass(frozen=True)
class Grid:
    """Cells of a file, all as they stand in it."""

    path: Path
    columns: dict[str, list[Cell]]
    """Cells by the column's name; a column without a name is left out."""
    line: list[int]
    """Line of the file that each row begins in."""
    place: Callable[[int | None, str], Place]
    """(row, column) -> line and column of the file; row None is the header."""
    notes: tuple[str, ...] = ()
    """What was skipped, a line each."""

    def refuse(self, row: int | None, column: str, what: str, write: str) -> DocumentError:
        """A refusal that points at a cell, or at a column's head."""
        return DocumentError(self.path, *self.place(row, column), what, write)

    def refuse_table(self, what: str, write: str) -> DocumentError:
        """A refusal of the table as a whole, which points at its first line."""
        return self.refuse(None, "", what, write)

    def select(self, rows: list[int]) -> "Grid":
        """The table with these rows alone."""
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        line = [self.line[row] for row in rows]

        def place(row: int | None, column: str) -> Place:
            return self.place(None if row is None else rows[row], column)

        return Grid(self.path, columns, line, place, self.notes)

    def has_values(self, column: str) -> bool:
        """Whether any cell of the column is filled."""
        return any(cell is not None and str(cell).strip() for cell in self.columns[column])


def too_many(path: Path, scope: Scope) -> DocumentError:
    """The refusal of a file with more rows than its scope allows."""
    return DocumentError(path, 1, 1, f"the table has more than {scope.most_rows:,} rows", scope.fewer)
