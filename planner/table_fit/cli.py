"""`isoplan fit TABLE`: reads a table of finished runs, writes the report of its fit, and prints it."""

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from planner.table_fit.analysis import fit_table
from planner.table_fit.curves import join_curves
from planner.table_fit.terminal import show
from specs.document.parse import DocumentError
from specs.document.write import print_json, write_text
from specs.exit_codes import InputError
from specs.report.table_fit.page import render_table_fit
from specs.run_table.curves import read_curves
from specs.table_options import BytesPerToken, Columns, LossUnit, checked_unit, column_mapping


def fit(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE", help="Finished runs, a row each: CSV, JSONL or Parquet.", show_default=False
        ),
    ],
    column: Columns = None,
    curves: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Training curves of these runs, joined by the run's name; columns as --column has them.",
            show_default=False,
        ),
    ] = None,
    curves_column: Annotated[
        list[str] | None,
        typer.Option(metavar="QUANTITY=COLUMN", help="As --column, for the file of curves alone."),
    ] = None,
    bytes_per_token: BytesPerToken = None,
    loss_unit: LossUnit = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET",
            help="Forecast the loss at '1e22 FLOP' in the best split, or of a run of '7B params 2T tokens'. Repeat "
            "for others.",
            show_default="10 times the largest compute",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report.", show_default="fits/<table>")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of tables.")] = False,
) -> None:
    """Fit scaling laws to a table of runs that you already have, and forecast larger ones.

    Gives the isoFLOP profiles, every form of the law with its held-out error and weight, the best split of compute
    into size and tokens, forecasts with 50 and 95 % bands, and a backtest: what the law would have said of the
    table's own largest runs before them. Flags say what weakens each of these.

    The law is in the table's own size, tokens and compute. Losses are in nats per token or bits per token or byte.

    Exit codes: 0 done, 2 bad input.
    """
    from specs.run_table.read import read_table

    mapping, unit = column_mapping(column or []), checked_unit(loss_unit)
    runs = read_table(table, mapping, bytes_per_token=bytes_per_token, loss_unit=unit)
    joined = None
    if curves is not None:
        own = column_mapping(curves_column or [], "--curves-column")
        try:
            read = read_curves(curves, own, shared=mapping, bytes_per_token=bytes_per_token, loss_unit=unit)
        except DocumentError as error:  # whose columns --column maps only where the table has them too
            write = error.write.replace("--column", "--curves-column")
            raise DocumentError(error.path, error.line, error.column, error.what, write) from None
        joined = join_curves(runs, read)
    elif curves_column:
        raise InputError(
            f"--curves-column {curves_column[0]}: give the file of curves too, with --curves FILE"
        )
    found = fit_table(runs, at or [], joined)
    folder = Path("fits") / folder_name(table) if out is None else out
    report = folder / "fit.html"
    write_text(report, render_table_fit(found, () if joined is None else joined.drawn))
    if json:
        print_json(found.answer() | {"report": str(report)})
    else:
        show(found, report, Console())


def folder_name(table: Path) -> str:
    """A table's name as a folder: its file's name without the ending, and without what shells take for their own."""
    return re.sub(r"[^\w.-]+", "-", table.stem).strip("-.") or "table"
