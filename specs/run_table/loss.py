"""The loss column in nats per token, from whichever unit it is in; what is no loss is refused."""

import math
import re

import numpy as np

from specs.document.parse import show
from specs.law import LossUnit
from specs.run_table.checks import check_needed, refuse_column
from specs.run_table.find_columns import Found, missing
from specs.run_table.grid import Cell
from specs.run_table.numbers import numbers
from specs.run_table.quantities import as_unit, is_accuracy, is_perplexity, per_character
from specs.run_table.table import Array

MOST_NATS = 14.0
"""Loss of a uniform guess over 1.2 million tokens, more than any vocabulary: what is above is a perplexity."""
LEAST_NATS = 1e-6
"""What is below is a slip: a model that is so sure needs a million tokens of text to be wrong by one nat."""
RISING = 0.5
"""Rank correlation with compute above which values between 0 and 1 are accuracies."""

_WITH_UNIT = re.compile(r"\s*([-+0-9.,eE]*[0-9.])\s*([a-zA-Z][a-zA-Z/_ ]*)")
_UNITS = "nats/token, bits/token or bits/byte"


def read_loss(
    found: Found, loss_unit: str | None, bytes_per_token: float | None
) -> tuple[Array, LossUnit, list[str]]:
    """(loss in nats per token, the unit it was in, notes) by run."""
    if "loss" not in found.column:
        raise missing(found, "loss", "val_loss or loss")
    column = found.column["loss"]
    _refuse_by_name(found, column)
    cells, written = _units_in_cells(found.grid.columns[column])
    values = numbers(cells, found.decimal_comma)
    check_needed(found, "loss", values)
    unit = _unit(found, written, loss_unit)
    notes = [] if unit else [f"loss ({column!r}) is taken to be in nats per token"]
    if not unit and np.median(values) < 1:
        notes[0] += (
            "; such low values are usual in bits per byte: if they are, say so with --loss-unit bits/byte"
        )
    per_token = _per_token(found, unit or "nats/token", bytes_per_token)
    return values * per_token, unit or "nats/token", notes


def check_is_loss(found: Found, nats: Array, work: Array) -> None:
    """DocumentError where the values are perplexities or accuracies; `work` is what losses fall with."""
    write = "give the loss of the runs in nats per token"
    if (nats < LEAST_NATS).all():
        what = f"every value of {show(found.column['loss'])} is below {LEAST_NATS:g} nats per token"
        raise refuse_column(found, "loss", what, f"{write}, or correct its unit and bytes per token")
    rises = nats.size >= 4 and _rank_correlation(nats, work) > RISING
    if rises and ((nats <= 1).all() or (nats > MOST_NATS).all()):
        what = (
            f"the values of {show(found.column['loss'])} rise with compute: they are accuracies, not losses"
        )
        raise refuse_column(found, "loss", what, write)
    if (nats > MOST_NATS).all():
        what = f"every value of {show(found.column['loss'])} is above {MOST_NATS:g}: they are perplexities"
        raise refuse_column(found, "loss", what, "write their natural logarithm, in nats per token")


def _refuse_by_name(found: Found, column: str) -> None:
    if is_perplexity(column):
        what = f"{show(column)} is a perplexity"
        raise refuse_column(found, "loss", what, "write its natural logarithm in a column loss")
    if is_accuracy(column):
        what = f"{show(column)} is an accuracy, and laws are of losses"
        raise refuse_column(found, "loss", what, "give the loss of the runs in a column loss")
    if per_character(column):
        what = f"{show(column)} is in bits per character, which are not bits per byte"
        raise refuse_column(found, "loss", what, f"write it in {_UNITS}")


def _units_in_cells(cells: list[Cell]) -> tuple[list[Cell], list[str | None]]:
    """The cells without units, and each one's unit as it is written: "3.1 nats" is 3.1 in nats."""
    bare: list[Cell] = []
    units: list[str | None] = []
    for cell in cells:
        match = _WITH_UNIT.fullmatch(cell) if isinstance(cell, str) and cell and cell[-1].isalpha() else None
        is_unit = match is not None and as_unit(match[2]) is not None
        bare.append(match[1] if match and is_unit else cell)
        units.append(match[2] if match and is_unit else None)
    return bare, units


def _unit(found: Found, in_cells: list[str | None], loss_unit: str | None) -> LossUnit | None:
    """The one unit that the column's name, its cells, a column of units or the user states."""
    grid = found.grid
    named = found.means[found.column["loss"]].unit
    asked = as_unit(loss_unit) if loss_unit else None
    if loss_unit and asked is None:
        write = (
            "write its natural logarithm in nats per token" if is_perplexity(loss_unit) else f"write {_UNITS}"
        )
        raise refuse_column(found, "loss", f"{show(loss_unit)} is no unit of a loss", write)
    stated: list[str | None] = in_cells
    if "unit" in found.column and not any(in_cells):
        stated = [str(cell or "").strip() or None for cell in grid.columns[found.column["unit"]]]
    units = [as_unit(text) if text else None for text in stated]
    for row, (text, unit) in enumerate(zip(stated, units, strict=True)):
        if text and unit is None:
            raise grid.refuse(
                row, found.column["unit"], f"{show(text)} is no unit of a loss", f"write {_UNITS}"
            )
        if unit != units[0]:
            what = f"the units are mixed: {unit or 'none'} here, {units[0] or 'none'} in line {grid.line[0]}"
            raise grid.refuse(row, found.column["loss"], what, "write every loss in one unit")
    for one, other in ((named, units[0]), (asked, named), (asked, units[0])):
        if one and other and one != other:
            what = f"the loss is said to be in {one} and in {other}"
            raise refuse_column(found, "loss", what, "leave one of them, in the column's name or --loss-unit")
    return asked or named or units[0]


def _per_token(found: Found, unit: LossUnit, bytes_per_token: float | None) -> float:
    """Nats per token of one unit of the loss."""
    if bytes_per_token is not None and not 0 < bytes_per_token < math.inf:
        what = f"bytes per token of {bytes_per_token:g} must be above 0"
        raise refuse_column(found, "loss", what, "write a number such as 4.3")
    if unit == "nats/token":
        return 1.0
    if unit == "bits/token":
        return math.log(2)
    if bytes_per_token is None:
        what = f"{show(found.column['loss'])} is in bits per byte, and the bytes of a token are not known"
        raise refuse_column(found, "loss", what, "say how many, as in --bytes-per-token 4.3")
    return math.log(2) * bytes_per_token


def check_no_outlier(found: Found, nats: Array) -> None:
    """DocumentError for the first loss that no model has, in a column in which others are fine."""
    if not (nats > MOST_NATS).any() or (nats > MOST_NATS).all():
        return
    row = int(np.flatnonzero(nats > MOST_NATS)[0])
    column = found.column["loss"]
    what = (
        f"a loss of {show(found.grid.columns[column][row])} is above {MOST_NATS:g} nats per token: a perplexity among"
        " losses, or a run that diverged"
    )
    raise found.grid.refuse(row, column, what, "write the loss in the unit of the others, or drop the row")


def _rank_correlation(a: Array, b: Array) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    ranks = np.argsort(np.argsort(np.stack([a, b]), kind="stable"), kind="stable")
    return float(np.atleast_2d(np.corrcoef(ranks))[0, 1])
