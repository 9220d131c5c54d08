"""The table of runs that a budget names, read beside it; what is wrong with it is said in the budget's words."""

import re
from dataclasses import replace
from pathlib import Path

from specs.budget import Budget, JoinedTable, Pilots, Runs
from specs.document.files import DocumentError, locate
from specs.run_table.read import read_table
from specs.run_table.table import RunTable

_OPTIONS = (
    (r"--column '(\w+)=(.+?)'", r"{field}.columns: {{\1: '\2'}}"),
    (r"--column (\w+)=(\S+)", r"{field}.columns: {{\1: \2}}"),
    (r"--loss-unit (\S+)", r"{field}.loss_unit: \1"),
    (r"--loss-unit", r"{field}.loss_unit"),
    (r"--bytes-per-token (\S+)", r"{field}.bytes_per_token: \1"),
)
"""Options of `isoplan fit` that the reader's messages name, and the budget's fields in their place."""


def table_field(budget: Budget) -> tuple[str, Runs | JoinedTable | None]:
    """Where the budget names a table, and what it says of it; None where it names none."""
    evidence = budget.evidence
    if isinstance(evidence, Runs):
        return "evidence", evidence
    return "evidence.also", evidence.also if isinstance(evidence, Pilots) else None


def load_table(budget: Budget, path: Path) -> RunTable | None:
    """The table that the budget in this file names; DocumentError for the first thing that is wrong with it.

    The table's path is the one that the budget gives, so a plan is the same wherever it is made.
    """
    field, named = table_field(budget)
    if named is None:
        return None
    file = path.parent / named.table
    if not file.exists():
        what = f"there is no table {file}"
        raise locate(path, f"{field}.table", what, "give the table's path from this budget's folder")
    try:
        table = read_table(
            file, named.columns, bytes_per_token=named.bytes_per_token, loss_unit=named.loss_unit
        )
        notes = tuple(_in_budget_words(note, field) for note in table.notes)
        return replace(table, path=Path(named.table), notes=notes)
    except DocumentError as error:
        parts = (_in_budget_words(text, field) for text in (error.what, error.write))
        raise DocumentError(error.path, error.line, error.column, *parts) from None


def _in_budget_words(text: str, field: str) -> str:
    for option, instead in _OPTIONS:
        text = re.sub(option, instead.format(field=field), text)
    return text
