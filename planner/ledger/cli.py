"""`isoplan ledger`: list what is in a ledger, add the runs of a table, exclude a run, take it back in."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from planner.ledger import edit, listing
from specs.document.parse import DocumentError
from specs.document.write import print_json
from specs.exit_codes import InputError
from specs.ledger import read_ledger
from specs.table_options import (
    BytesPerToken,
    Columns,
    LossUnit,
    checked_unit,
    column_mapping,
)

LedgerFile = Annotated[Path, typer.Argument(metavar="LEDGER", help="The ledger, such as ledger.jsonl.")]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="The first characters of what `isoplan ledger list` calls it.")
]
Reason = Annotated[
    str,
    typer.Option(help="Why; it is recorded in the ledger and shown by plans and fits.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
WIDTH = 120
"""Characters of a line where the output is no terminal."""


def ledger_command() -> None:
    """List a ledger, add runs of other engines to it, and exclude runs from plans and fits.

    A ledger is only ever appended to, by these verbs and by `audit`. What reads a table of runs reads a ledger too:
    `isoplan fit ledger.jsonl`.
    """


def list_command(
    ledger: Annotated[Path, typer.Argument(metavar="LEDGER", help="The ledger.")] = Path("ledger.jsonl"),
    json: AsJson = False,
) -> None:
    """List the runs of a ledger: size, tokens, compute, loss, where each came from, and why it is excluded.

    Exit codes: 0 done, 2 bad input.
    """
    edit.check_name(ledger)
    found = read_ledger(ledger)
    if json:
        print_json(listing.plain(ledger, found))
    else:
        console = Console()
        listing.show(ledger, found, console if console.is_terminal else Console(width=WIDTH))


def add(
    ledger: LedgerFile,
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Finished runs: CSV, JSONL or Parquet.")],
    column: Columns = None,
    bytes_per_token: BytesPerToken = None,
    loss_unit: LossUnit = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text, tokenizer and held-out set that the losses are of, in your words: runs of equal words are "
            "comparable. For the text of audited runs, write what `isoplan ledger list` shows of them.",
            show_default="the table's name",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Add the runs of a table, each as a line of its own kind, with the table's name, digest and line.

    A run that is there already is not added again. Plans on pilots do not use these lines, as they have no run spec;
    whatever reads a table does: isoplan fit LEDGER.

    Exit codes: 0 done, 2 bad input.
    """
    from specs.run_table.read import is_ledger, read_table

    edit.check_name(ledger)
    if is_ledger(table):
        what, write = "this is a ledger, and no table of runs", "add the tables that its runs came from"
        raise DocumentError(table, 1, 1, what, write)
    runs = read_table(
        table,
        column_mapping(column or []),
        bytes_per_token=bytes_per_token,
        loss_unit=checked_unit(loss_unit),
    )
    done = edit.add_table(ledger, runs, text)
    if json:
        print_json({"ledger": str(ledger), "added": done.added, "known": done.known, "notes": runs.notes})
        return
    known = f"; {done.known} are there already" if done.known else ""
    typer.echo(f"{done.added} of {done.added + done.known} runs of {table} added to {ledger}{known}")
    for note in runs.notes:
        typer.echo(f"note  {note}")


def exclude(ledger: LedgerFile, run: Run, reason: Reason = "", json: AsJson = False) -> None:
    """Exclude a run: plans and fits leave it out from now on, and name it with the reason in a flag.

    Sealed plans stay as they are. The run's own line is never deleted; `include` takes it back in.

    Exit codes: 0 done, 2 bad input.
    """
    _decide(ledger, run, True, reason, json)


def include(ledger: LedgerFile, run: Run, reason: Reason = "", json: AsJson = False) -> None:
    """Take an excluded run back in.

    Exit codes: 0 done, 2 bad input.
    """
    _decide(ledger, run, False, reason, json)


def _decide(ledger: Path, prefix: str, excluded: bool, reason: str, json: bool) -> None:
    if not reason.strip():
        raise InputError("a reason is missing; say why in a few words: --reason '...'")
    run, changed = edit.decide(ledger, prefix, excluded, reason.strip())
    if json:
        print_json({"ledger": str(ledger), "run": run, "excluded": excluded, "changed": changed})
        return
    state = "excluded" if excluded else "included"
    typer.echo(f"run {run} is {state}" + ("" if changed else " already; nothing was written"))


COMMANDS = {"list": list_command, "add": add, "exclude": exclude, "include": include}
"""What follows `isoplan ledger`."""
