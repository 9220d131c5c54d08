"""Lines that a person adds to a ledger: runs of a table, and exclusions. Nothing is ever deleted."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from specs.document.files import DocumentError, read_bytes
from specs.document.parse import show
from specs.document.write import append_lines
from specs.ledger import Exclusion, Ledger, TableRunRecord, locked, read_ledger, run_id
from specs.run_table.table import Array, RunTable

SUFFIX = ".jsonl"
_LISTED = 4


@dataclass(frozen=True)
class Added:
    """What adding a table did."""

    added: int
    """Runs that are new in the ledger."""
    known: int
    """Runs that it had already."""


def add_table(path: Path, table: RunTable, text: str | None) -> Added:
    """Append the table's runs that the ledger does not have yet; the file is made where there is none.

    `text` says what the losses are of. DocumentError where the file is no ledger, or has one of the runs under another
    text; nothing is appended then.
    """
    found = [_record(table, row, text) for row in range(len(table.name))]
    with locked(path):
        ledger = read_ledger(path) if path.exists() else Ledger(())
        _check_text(path, ledger, found)
        known = Counter(record.same_run() for record in ledger.from_tables)
        new = []
        for record in found:
            if known[record.same_run()]:
                known[record.same_run()] -= 1
            else:
                new.append(record)
        append_lines(path, new)
    return Added(len(new), len(found) - len(new))


def decide(path: Path, prefix: str, excluded: bool, reason: str) -> tuple[str, bool]:
    """Exclude a run or take it back in: its id, and whether a line was appended, as none is where nothing changes.

    DocumentError where no run, or more than one, has an id that begins with the prefix.
    """
    check_name(path)
    read_bytes(path, None)  # refused where there is none, before the lock's file is made
    with locked(path):
        ledger = read_ledger(path)
        run = _run(path, ledger, prefix)
        was = ledger.excluded.get(run)
        if (was == reason) if excluded else (was is None):
            return run, False
        append_lines(path, [Exclusion(run=run, excluded=excluded, reason=reason)])
    return run, True


def check_name(path: Path) -> None:
    """DocumentError where a file is no ledger by its name: a table that stands in its place, say."""
    if path.suffix != SUFFIX:
        what = f"a ledger's name ends in {SUFFIX}"
        raise DocumentError(path, 1, 1, what, "name the ledger, such as ledger.jsonl")


def _check_text(path: Path, ledger: Ledger, found: list[TableRunRecord]) -> None:
    """DocumentError where a run is there already, and its loss is said to be of another text."""
    texts = {record.same_run(): record.text for record in found if record.text is not None}
    for number, line in enumerate(ledger.lines, start=1):
        if isinstance(line, TableRunRecord) and texts.get(line.same_run(), line.text) != line.text:
            said = "no text" if line.text is None else f"the text {show(line.text)}"
            what = f"this run of {line.table} is here already, with {said}"
            raise DocumentError(path, number, 1, what, "leave --text out, or add the table to another ledger")


def _run(path: Path, ledger: Ledger, prefix: str) -> str:
    """The id of the one run that the prefix is of."""
    ids = dict.fromkeys(run_id(line) for line in ledger.lines if not isinstance(line, Exclusion))
    meant = [one for one in ids if prefix and one.startswith(prefix)]
    if not meant:
        what = f"no run of this ledger begins with {show(prefix)}"
        raise DocumentError(
            path, 1, 1, what, f"write the first characters of one: isoplan ledger list {path}"
        )
    if len(meant) > 1:
        more = f" and {len(meant) - _LISTED} more" if len(meant) > _LISTED else ""
        what = f"{len(meant)} runs begin with {show(prefix)}: {', '.join(meant[:_LISTED])}{more}"
        raise DocumentError(path, 1, 1, what, "write more characters")
    return meant[0]


def _record(table: RunTable, row: int, text: str | None) -> TableRunRecord:
    """The line of a table's run."""
    sizes = {table.size_kind: table.size, **table.other_sizes}
    known = {kind: value for kind, column in sizes.items() if (value := _value(column, row)) is not None}
    return TableRunRecord(
        table=table.path.name,
        table_sha256=table.sha256,
        line=int(table.line[row]),
        name=table.name[row] if "name" in table.columns else None,
        text=text,
        sizes=known,
        tokens=float(table.tokens[row]),
        loss=float(table.loss[row]),
        bytes_per_token=table.bytes_per_token,
        compute_flop=float(table.flop[row]),
        steps=_value(table.steps, row),
        peak_lr=_value(table.lr, row),
        batch_tokens=_value(table.batch_tokens, row),
        seed=_value(table.seed, row),
        unique_tokens=_value(table.unique_tokens, row),
    )


def _value(column: Array | None, row: int) -> float | None:
    """A cell; None where the table lacks it."""
    value = math.nan if column is None else float(column[row])
    return value if math.isfinite(value) else None
