"""Training curves from a file: `read_curves`, the losses of one run or of several along their training."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specs.document.parse import show
from specs.humanize import several
from specs.law import LossUnit
from specs.run_table.checks import LEAST, check_needed, is_missing, refuse_column
from specs.run_table.find_columns import Found, find_columns, missing
from specs.run_table.formats.chart_export import long_form, metric_of
from specs.run_table.grid import Scope
from specs.run_table.loss import check_is_loss, read_loss
from specs.run_table.quantities import is_held_out, meaning
from specs.run_table.read import read_grid
from specs.run_table.table import Array

MOST_POINTS = 3_000_000
"""Most rows that are read: they take about 1 GB while they are."""
QUANTITIES = ("name", "loss", "unit", "tokens", "steps", "batch_tokens", "batch", "context")
"""What is read of a curve."""
SAME = 1e-6
"""Losses of one place of a curve that differ by less, relatively, are one that was written twice."""


@dataclass(frozen=True)
class Curve:
    """Losses of one run in the order of training; arrays by point."""

    loss: Array
    """Nats per token."""
    tokens: Array | None
    """Tokens seen; None where the file gives steps alone."""
    steps: Array | None
    """Steps done; None where the file gives tokens alone."""
    line: NDArray[np.int64]
    """Line of the file that each point stands in (row number, from 1, in a Parquet file)."""


@dataclass(frozen=True)
class CurveTable:
    """Training curves, checked and in one unit."""

    path: Path
    sha256: str
    """Of the file's bytes."""
    curves: dict[str, Curve]
    """By the run's name, in the file's order; the name is empty where the file has no column of runs."""
    held_out: bool | None
    """Whether the losses are of held-out text; False: of the training text; None: their column does not say."""
    loss_unit: LossUnit
    """Unit that the file gives."""
    bytes_per_token: float | None
    columns: dict[str, str]
    """The file's column for each quantity that was found."""
    notes: tuple[str, ...]
    """What was assumed or skipped, a line each."""

    @property
    def points(self) -> int:
        """Points of all curves."""
        return sum(len(curve.loss) for curve in self.curves.values())


def read_curves(
    path: Path,
    mapping: Mapping[str, str] = {},
    *,
    shared: Mapping[str, str] = {},
    bytes_per_token: float | None = None,
    loss_unit: str | None = None,
) -> CurveTable:
    """The curves of a CSV, JSONL, JSON or Parquet file; DocumentError for the first thing that is wrong with it.

    A row is a point: a loss, and the tokens or steps until then. A column that names runs tells several curves apart; a
    chart that W&B exported has a column for each run instead. Rows without a loss, as between the evaluations of an
    exported history, are skipped. The options are those of `read_table`; `shared` is the mapping of the table of these
    runs, used as far as this file has its columns.
    """
    file, sha256 = read_grid(path, _scope({*mapping.values(), *shared.values()}))
    grid = long_form(file, mapping.get("loss", shared.get("loss")))
    own = {quantity: column for quantity, column in shared.items() if column in grid.columns}
    found = find_columns(grid, own | dict(mapping), loss_unit)
    if "loss" not in found.column:
        raise missing(found, "loss", "val_loss or loss")
    found, skipped = _select(found, _given(found, "loss"), "loss")
    names, run = _runs(found)
    place = _place(found, run)
    placed = _given(found, place) & (found.numbers(place) != 0)
    found, before = _select(found, placed, place)
    run = run[placed]
    _check_places(found, place)
    loss, unit, notes = read_loss(found, loss_unit, bytes_per_token)
    check_is_loss(found, loss, found.numbers(place))
    order, repeats = _order(found, place, run, loss)
    column, used = found.column["loss"], [place]
    tokens, steps, how = _tokens_and_steps(found, place, used)
    lines = np.array(found.grid.line)
    ends = np.searchsorted(run[order], np.arange(len(names) + 1))
    curves = {}
    for name, first, last in zip(names, ends[:-1], ends[1:], strict=True):
        rows = order[first:last]
        if not rows.size:
            continue
        curves[name] = Curve(
            loss=loss[rows],
            tokens=None if tokens is None else tokens[rows],
            steps=None if steps is None else steps[rows],
            line=lines[rows],
        )
    used += ["loss", "name"]
    counted = {
        f"without a loss ({column!r})": skipped,
        f"without {place} or before the first": before,
        "equal to another": repeats,
    }
    return CurveTable(
        path=path,
        sha256=sha256,
        curves=curves,
        held_out=is_held_out(column),
        loss_unit=unit,
        bytes_per_token=bytes_per_token,
        columns={quantity: found.column[quantity] for quantity in used if quantity in found.column},
        notes=(
            *grid.notes,
            *(f"{several(number, 'row')} {what} skipped" for what, number in counted.items() if number),
            *(note for quantity in used for note in found.notes.get(quantity, [])),
            *notes,
            *how,
        ),
    )


def _scope(mapped: Collection[str]) -> Scope:
    """What is read of a file: columns that are mapped, or whose name says that they belong to a curve."""

    def wanted(column: str) -> bool:
        metric = metric_of(column)
        return bool({column, metric} & {*mapped}) or (
            (m := meaning(metric)) is not None and m.quantity in QUANTITIES
        )

    return Scope(
        row="point of a curve",
        example='{"run": "a", "tokens": 8e9, "val_loss": 3.02}',
        most_rows=MOST_POINTS,
        fewer="give fewer points of each curve",
        wanted=wanted,
    )


def _given(found: Found, quantity: str) -> NDArray[np.bool_]:
    """Rows whose cell is not empty, nor nan."""
    cells, given = found.grid.columns[found.column[quantity]], np.isfinite(found.numbers(quantity))
    for row in np.flatnonzero(~given).tolist():
        given[row] = not is_missing(cells[row])
    return given


def _place(found: Found, run: NDArray[np.int64]) -> str:
    """The quantity that says where on its curve a point is: tokens, unless steps tell more points apart.

    Some logs repeat the tokens of the whole run in each row.
    """
    places = [quantity for quantity in ("tokens", "steps") if quantity in found.column]
    if not places:
        raise missing(found, "tokens", "tokens or step")
    return max(places, key=lambda quantity: _different(run, found.numbers(quantity)) if places[1:] else 0)


def _different(run: NDArray[np.int64], values: Array) -> int:
    """Number of different values, counted in each run."""
    known = np.isfinite(values)
    order = np.lexsort((values[known], run[known]))
    return int(((np.diff(run[known][order]) != 0) | (np.diff(values[known][order]) != 0)).sum())


def _check_places(found: Found, place: str) -> None:
    """DocumentError for a place that is none; a small one is an early point, unless all are small."""
    values, least = found.numbers(place), LEAST.get(place, 0)
    early = (values > 0) & (np.nanmax(values) >= least)
    check_needed(found, place, np.where(early, np.maximum(values, least), values))


def _select(found: Found, keep: NDArray[np.bool_], quantity: str) -> tuple[Found, int]:
    """The rows to keep, and the number of the others; DocumentError where the quantity leaves none."""
    if keep.all():
        return found, 0
    if not keep.any():
        what = f"no row has {'a loss' if quantity == 'loss' else quantity} in {show(found.column[quantity])}"
        raise refuse_column(found, quantity, what, f"fill it, or map another: --column {quantity}=NAME")
    return replace(found, grid=found.grid.select(np.flatnonzero(keep).tolist())), int((~keep).sum())


def _runs(found: Found) -> tuple[list[str], NDArray[np.int64]]:
    """The runs' names, and the number of each point's run."""
    if "name" not in found.column:
        return [""], np.zeros(len(found.grid.line), np.int64)
    number: dict[str, int] = {}
    cells = found.grid.columns[found.column["name"]]
    names = [str(cell).strip() for cell in cells]
    for row, name in enumerate(names):
        if name in number:
            continue
        if is_missing(cells[row]):
            what = "the point has a loss, but no run"
            raise found.grid.refuse(row, found.column["name"], what, "write the run's name, or drop the row")
        number[name] = len(number)
    return list(number), np.array([number[name] for name in names])


def _order(found: Found, place: str, run: NDArray[np.int64], loss: Array) -> tuple[NDArray[np.int64], int]:
    """Rows by run and place, each place once, and how many were written twice; DocumentError where these disagree."""
    at = found.numbers(place)
    order = np.lexsort((at, run))
    again = (np.diff(run[order]) == 0) & (np.diff(at[order]) == 0)
    off = again & (np.abs(loss[order][1:] / loss[order][:-1] - 1) > SAME)
    if off.any():
        earlier, later = order[np.flatnonzero(off)[0] :][:2].tolist()
        whose, write = "the curve", "name the runs in a column run, or keep one of the rows"
        if "name" in found.column:
            whose = f"the run {show(found.grid.columns[found.column['name']][later])}"
            write = "keep one of the rows"
        what = f"{whose} has another loss at the same {place} in line {found.grid.line[earlier]}"
        raise found.grid.refuse(later, found.column["loss"], what, write)
    return order[np.concatenate([[True], ~again])], int(again.sum())


def _tokens_and_steps(
    found: Found, place: str, used: list[str]
) -> tuple[Array | None, Array | None, list[str]]:
    """(tokens, steps, notes) by point; `used` gets the quantities they come from."""
    if place == "tokens":
        steps = found.numbers("steps") if "steps" in found.column else None
        known = steps is not None and bool(np.isfinite(steps).all())
        used += ["steps"] if known else []
        return found.numbers("tokens"), steps if known else None, []
    steps, batch, how = found.numbers("steps"), None, ""
    if "batch_tokens" in found.column:
        batch, how = found.numbers("batch_tokens"), "steps * batch_tokens"
    elif {"batch", "context"} <= found.column.keys():
        batch = found.numbers("batch") * found.numbers("context")
        how = f"steps * {found.column['batch']!r} * {found.column['context']!r}"
    if batch is None or not bool((np.isfinite(batch) & (batch > 0)).all()):
        return None, steps, []
    return steps * batch, steps, [f"tokens are derived as {how}"]
