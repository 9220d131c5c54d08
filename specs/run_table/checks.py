"""Cells that must be there and be positive: the first that is not is refused, with what to write."""

import math

import numpy as np

from specs.document.parse import DocumentError, show
from specs.humanize import several
from specs.run_table.find_columns import Found
from specs.run_table.numbers import is_ambiguous, number
from specs.run_table.quantities import meaning
from specs.run_table.table import Array

LEAST = {"params": 100, "block_params": 100, "flop_per_token": 100, "tokens": 1000, "flop": 1e6}
"""What is below was written in millions or billions: the smallest model of Kaplan et al. 2020 has 768 parameters."""
MOST = {"tokens": 1e18, "flop": 1e34, "loss": 1e9}
"""What is above is a slip; so is a size above 1e15, the default."""
EXAMPLES = {"loss": "2.85", "flop": "3e21", "tokens": "8B or 8e9"}
"""What a cell may hold, for messages; 410M where nothing else is said."""
MISSING = {"", "na", "n/a", "none", "null", "-", "--", "\u2013", "?"}
"""How people write that there is no value."""


def needed(found: Found, quantity: str) -> Array:
    """A quantity that every run must have, finite and positive; DocumentError for the first run that does not."""
    values = found.numbers(quantity)
    check_needed(found, quantity, values)
    return values


def check_needed(found: Found, quantity: str, values: Array) -> None:
    """DocumentError for the first run whose value is missing, not finite or too small."""
    bad = np.flatnonzero(
        ~((values >= LEAST.get(quantity, 0)) & (values > 0) & (values <= MOST.get(quantity, 1e15)))
    )
    if bad.size == 0:
        return
    row = int(bad[0])
    what, write = _explain(found, quantity, row)
    what += f" ({several(bad.size - 1, 'row')} below cannot be used either)" if bad.size > 1 else ""
    raise found.grid.refuse(row, found.column[quantity], what, write)


def optional(found: Found, quantity: str) -> tuple[Array | None, list[str]]:
    """A quantity that runs may lack, nan where they do, with a note on cells that are not usable."""
    if quantity not in found.column:
        return None, []
    column = found.column[quantity]
    cells = found.grid.columns[column]
    values = found.numbers(quantity)
    usable = (np.abs(values) < 1e30) & ((values > 1e-30) | (quantity == "seed"))
    odd = [row for row in np.flatnonzero(~usable) if not is_missing(cells[row])]
    notes = []
    if odd:
        which = f"{show(cells[odd[0]])} in line {found.grid.line[odd[0]]}"
        notes = [f"{quantity}: {several(len(odd), 'cell')} of {column!r} left out as not positive ({which})"]
    return (np.where(usable, values, np.nan) if usable.any() else None), notes


def is_missing(cell: object) -> bool:
    """Whether a cell says that there is no value."""
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING | {"nan"})


def _explain(found: Found, quantity: str, row: int) -> tuple[str, str]:
    """What is wrong with a cell, and what to write."""
    column = found.column[quantity]
    cell = found.grid.columns[column][row]
    example = EXAMPLES.get(quantity, "410M or 4.1e8")
    name = f"{quantity} ({show(column)})" if column != quantity else quantity
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING):
        return f"{name} is missing", "write it, or drop the row"
    value = number(cell, found.decimal_comma)
    if math.isnan(value):
        if isinstance(cell, float) or str(cell).strip().lower().lstrip("+-") == "nan":
            return f"{name} is nan", "write a number, or drop the row"
        if is_ambiguous(cell):
            return f"the separator in {show(cell)} may be one of thousands or of decimals", f"write {example}"
        if isinstance(cell, str) and meaning(cell):
            return f"{name} is {show(cell)}, as in a header", "give one table in a file, with one header"
        return f"{name} is {show(cell)}, which is not a number", f"write one such as {example}"
    if math.isinf(value):
        return f"{name} is {show(cell)}, which is not finite", "write a number, or drop the row"
    if value <= 0:
        return f"{name} is {show(cell)} and must be above 0", "write a positive number, or drop the row"
    scale = found.means[column].scale
    if value * scale > MOST.get(quantity, 1e15):
        return f"{name} of {show(cell)} is more than any run has", f"write it like {example}, or drop the row"
    what = f"{name} of {show(cell)} is too small to be in units"
    named = f", or name the column '{column} (B)' if it is in billions" if scale == 1 else ""
    return what, f"write it like {example}{named}"


def refuse_column(found: Found, quantity: str, what: str, write: str) -> DocumentError:
    """A refusal that points at the head of a quantity's column."""
    return found.grid.refuse(None, found.column[quantity], what, write)
