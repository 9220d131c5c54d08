"""Which column holds which quantity: by the user's mapping, or else by its name."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from specs.document.parse import DocumentError, nearest, show
from specs.run_table.grid import Cell, Grid
from specs.run_table.numbers import has_decimal_commas, numbers
from specs.run_table.quantities import (
    MAPPABLE,
    SIZES,
    Meaning,
    as_unit,
    is_accuracy,
    is_perplexity,
    meaning,
    squeeze,
)
from specs.run_table.table import Array

NEEDED = (*SIZES, "tokens", "loss", "flop")
"""Quantities of which two columns that differ are refused: which one is meant changes the law."""


@dataclass(frozen=True)
class Found:
    """The columns of a table that have a meaning."""

    grid: Grid
    column: dict[str, str]
    """By quantity."""
    means: dict[str, Meaning]
    """By column."""
    mapped: frozenset[str]
    """Quantities whose column the user named."""
    decimal_comma: bool
    notes: dict[str, list[str]]
    """Which of two columns was taken, by quantity."""
    read: dict[str, Array] = field(default_factory=dict, init=False)
    """Numbers of columns that were asked for before."""

    def numbers(self, quantity: str) -> Array:
        """The quantity by run in base units, nan where a cell is empty or no number."""
        return self.of_column(self.column[quantity])

    def of_column(self, column: str) -> Array:
        """A column's numbers in base units."""
        if column not in self.read:
            scale = self.means[column].scale if column in self.means else 1.0
            self.read[column] = numbers(self.grid.columns[column], self.decimal_comma) * scale
        return self.read[column]


def find_columns(grid: Grid, mapping: Mapping[str, str], loss_unit: str | None) -> Found:
    """One column for each quantity that the table has; DocumentError where two could be meant."""
    mapped = _mapped(grid, mapping)
    filled = [column for column in grid.columns if grid.has_values(column)]
    means = {column: means for column in filled if (means := meaning(column))}
    for quantity, column in mapped.items():
        named = meaning(column)
        means[column] = named if named and named.quantity == quantity else Meaning(quantity, 0)
    wanted = as_unit(loss_unit) if loss_unit else None
    found = Found(grid, {}, means, frozenset(mapped), _decimal_comma(grid, means), {})
    for quantity in dict.fromkeys(one.quantity for one in means.values()):
        columns = [column for column, one in means.items() if one.quantity == quantity]
        if quantity in mapped:
            found.column[quantity] = mapped[quantity]
            continue
        if len(columns) > 1 and quantity not in (
            "name",
            "unit",
        ):  # a label, as "kaplan" in a column param_count
            columns = [c for c in columns if np.isfinite(found.of_column(c)).any()] or columns
        columns.sort(key=lambda column: _rank(means[column], wanted))
        found.column[quantity] = columns[0]
        found.notes[quantity] = _others(found, quantity, columns, wanted)
    return found


def missing(found: Found, quantity: str, usual: str) -> DocumentError:
    """The refusal of a table that lacks a quantity; `usual` are names that its column goes by."""
    grid = found.grid
    free = [column for column in grid.columns if column not in found.column.values()]
    what = f"no column is the {_in_words(quantity)} (columns: {', '.join(list(grid.columns)[:12])})"
    if quantity == "loss" and (other := next(filter(is_perplexity, free), None)):
        what = f"the only loss is a perplexity, {show(other)}"
        return grid.refuse(None, other, what, "write its natural logarithm in a column loss")
    if quantity == "loss" and (other := next(filter(is_accuracy, free), None)):
        what = f"the table has an accuracy, {show(other)}, and no loss"
        return grid.refuse(None, other, what, "give the loss of the runs in a column loss")
    empty = next((column for column in free if (m := meaning(column)) and m.quantity == quantity), None)
    if empty:
        return grid.refuse(
            None,
            empty,
            f"the column {show(empty)} is empty",
            f"fill it, or map another: --column {quantity}=NAME",
        )
    return grid.refuse_table(what, f"name it {usual}, or map it: --column {quantity}=NAME")


def _in_words(quantity: str) -> str:
    return {"tokens": "number of training tokens", "params": "model size", "flop": "compute"}.get(
        quantity, quantity
    )


def _mapped(grid: Grid, mapping: Mapping[str, str]) -> dict[str, str]:
    """The user's mapping, its quantities by their own names."""
    found: dict[str, str] = {}
    for written, column in mapping.items():
        by_name = meaning(written)
        quantity = written if written in MAPPABLE else by_name.quantity if by_name else ""
        if quantity not in MAPPABLE:
            meant = nearest(written, list(MAPPABLE))
            write = f"write '{meant}'" if meant else f"write one of {', '.join(MAPPABLE)}"
            raise grid.refuse_table(f"a column is mapped to {show(written)}, which is no quantity", write)
        if column not in grid.columns:
            same = [name for name in grid.columns if squeeze(name) == squeeze(column)]
            meant = same[0] if same else nearest(column, list(grid.columns))
            write = f"write {meant!r}" if meant else f"write one of {', '.join(list(grid.columns)[:12])}"
            raise grid.refuse_table(f"the table has no column {show(column)} for {quantity}", write)
        if column in found.values():
            raise grid.refuse(
                None, column, f"{show(column)} is mapped to two quantities", "map it to one of them"
            )
        found[quantity] = column
    return found


def _rank(one: Meaning, wanted: str | None) -> tuple[int, int]:
    """Preference among a quantity's columns: by name, then in the wanted unit, else in nats."""
    return one.tier, (one.unit or "nats/token") != (wanted or "nats/token")


def _others(found: Found, quantity: str, columns: list[str], wanted: str | None) -> list[str]:
    """Notes on the columns that were not taken; DocumentError where one of them may as well be meant."""
    chosen = columns[0]
    notes = []
    for other in columns[1:]:
        same_rank = _rank(found.means[other], wanted) == _rank(found.means[chosen], wanted)
        if quantity in ("name", "unit"):
            break
        if np.allclose(found.of_column(chosen), found.of_column(other), rtol=1e-6, atol=0, equal_nan=True):
            notes.append(f"{quantity}: {chosen!r} is read; {other!r} has the same values")
        elif same_rank and quantity in NEEDED:
            what = f"{show(chosen)} and {show(other)} may both be the {_in_words(quantity)}, and differ"
            options = (f"--column {shlex.quote(f'{quantity}={column}')}" for column in (chosen, other))
            raise found.grid.refuse(None, other, what, f"say which: {' or '.join(options)}")
        else:
            notes.append(f"{quantity}: {chosen!r} is read, and not {other!r}, which differs")
    return notes


def _decimal_comma(grid: Grid, means: Mapping[str, Meaning]) -> bool:
    def cells(measures: bool) -> Iterable[Cell]:
        for column, one in means.items():
            if one.quantity not in ("name", "unit") and (one.quantity in ("loss", "lr")) == measures:
                yield from grid.columns[column]

    return has_decimal_commas(cells(False), cells(True))
