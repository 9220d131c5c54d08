"""A chart as W&B exports it, a column for each run ("run-a - eval/loss"), turned into a row for each point."""

from specs.document.parse import DocumentError, Place, show
from specs.run_table.checks import is_missing
from specs.run_table.grid import Cell, Grid
from specs.run_table.quantities import is_held_out, meaning

BETWEEN = " - "
"""What W&B writes between a run's name and a metric's."""
_SPREAD = ("__MIN", "__MAX")
"""Ends of the columns that hold the extremes of smoothed points."""


def metric_of(column: str) -> str:
    """The metric that a column of an exported chart holds; any other column's own name."""
    return column.rpartition(BETWEEN)[2]


def long_form(grid: Grid, loss: str | None) -> Grid:
    """The points of an exported chart, a row each with its run; any other table as it is. `loss` names the metric where
    its name does not say that it is one.

    DocumentError where the columns are of several losses.
    """
    runs = {column: run for column in grid.columns if (run := _run_of(column, loss))}
    if not runs:
        return grid
    metrics = list(dict.fromkeys(map(metric_of, runs)))
    if loss in metrics:
        runs = {column: run for column, run in runs.items() if metric_of(column) == loss}
        metrics = [metric_of(next(iter(runs)))]
    if len(metrics) > 1:
        raise _several(grid, metrics)
    shared = [column for column in grid.columns if BETWEEN not in column]
    points = [
        (column, row)
        for column in runs
        for row, cell in enumerate(grid.columns[column])
        if not is_missing(cell)
    ]
    columns: dict[str, list[Cell]] = {
        name: [grid.columns[name][row] for _, row in points] for name in shared if grid.has_values(name)
    }
    columns |= {"run": [runs[column] for column, _ in points]}
    columns |= {metrics[0]: [grid.columns[column][row] for column, row in points]}

    def place(row: int | None, column: str) -> Place:
        if row is None:
            return grid.place(None, next(iter(runs)) if column in ("run", metrics[0]) else column)
        return grid.place(points[row][1], points[row][0] if column in ("run", metrics[0]) else column)

    lines = [grid.line[row] for _, row in points]
    return Grid(
        grid.path, columns, lines, place, (*grid.notes, f"a column for each of {len(runs)} runs is read")
    )


def _run_of(column: str, loss: str | None) -> str:
    """The run whose losses a column holds; empty for other columns, "val - loss" among them."""
    run, _, metric = column.rpartition(BETWEEN)
    named = meaning(metric)
    is_loss = metric == loss or (named is not None and named.quantity == "loss")
    return run if is_loss and not column.endswith(_SPREAD) and is_held_out(run) is None else ""


def _several(grid: Grid, metrics: list[str]) -> DocumentError:
    what = f"the columns of the runs hold {show(metrics[0])} and {show(metrics[1])}"
    return grid.refuse_table(what, f"export one of them, or map it: loss={metrics[0]}")
