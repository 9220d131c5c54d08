"""A table of runs from a file, `read_table`, or from memory, `read_columns`. Whatever is wrong is a `DocumentError`."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from specs.document.files import decode_text, read_bytes
from specs.document.parse import DocumentError, show
from specs.humanize import several
from specs.law import FLOP_PER_SIZE_TOKEN
from specs.run_table.checks import is_missing, optional
from specs.run_table.columns import grid_of
from specs.run_table.find_columns import Found, find_columns, missing
from specs.run_table.formats.delimited_file import read_delimited
from specs.run_table.formats.json_file import read_json_objects
from specs.run_table.formats.parquet_file import read_parquet
from specs.run_table.grid import RUNS, Grid, Scope
from specs.run_table.loss import check_is_loss, check_no_outlier, read_loss
from specs.run_table.quantities import squeeze
from specs.run_table.size import Sizes, read_sizes
from specs.run_table.table import Array, RunTable

MOST_BYTES = 2**28
"""Largest file that is read."""
LONGEST_LINE = 2**20
"""A ledger's first line has less: a few thousand bytes, and 20 for each point of its curve."""
DELIMITED = (".csv", ".tsv", ".txt")
JSON = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
SAME = 0.02
"""A batch that is within this of tokens / steps is in tokens."""
SAME_SIZE = 0.05
"""Sizes of one run that are derived from its compute differ by less."""


def read_table(
    path: Path,
    mapping: Mapping[str, str] = {},
    *,
    bytes_per_token: float | None = None,
    loss_unit: str | None = None,
) -> RunTable:
    """The runs of a CSV, JSONL, JSON or Parquet file, or of a ledger; DocumentError for the first thing that is wrong.

    `mapping` names the column of a quantity (`{"loss": "wiki/nll"}`) where the column's name does not say so.
    `bytes_per_token` is needed where the loss is in bits per byte, `loss_unit` where no name or cell has the unit.
    """
    if is_ledger(path):
        if mapping or loss_unit or bytes_per_token is not None:
            what, write = "a ledger's lines say what they hold", "give no columns, unit or bytes per token"
            raise DocumentError(path, 1, 1, what, write)
        from specs.run_table.ledger_file import read_ledger_table  # the types of plans take a while to import

        return read_ledger_table(path)
    grid, sha256 = read_grid(path, RUNS)
    return _checked(grid, sha256, mapping, bytes_per_token, loss_unit)


def read_columns(
    table: Any,
    mapping: Mapping[str, str] = {},
    *,
    bytes_per_token: float | None = None,
    loss_unit: str | None = None,
) -> RunTable:
    """The runs of a table in memory, as `columns.grid_of` takes it: what `read_table` says of a file holds for it.

    Its digest is that of its columns as JSON, in their order.
    """
    grid = grid_of(table)
    data = json.dumps(grid.columns, default=str).encode()
    return _checked(grid, hashlib.sha256(data).hexdigest(), mapping, bytes_per_token, loss_unit)


def _checked(
    cells: Grid, sha256: str, mapping: Mapping[str, str], bytes_per_token: float | None, loss_unit: str | None
) -> RunTable:
    """The runs of these cells, of a file or columns with this digest."""
    grid, notes = _without_repeats(cells)
    found = find_columns(grid, mapping, loss_unit)
    if "loss" not in found.column:
        raise missing(found, "loss", "val_loss or loss")
    sizes = read_sizes(found)
    loss, unit, loss_notes = read_loss(found, loss_unit, bytes_per_token)
    check_no_outlier(found, loss)
    check_is_loss(found, loss, sizes.flop)
    optionals = {name: optional(found, name) for name in ("steps", "lr", "seed", "unique_tokens")}
    values = {name: array for name, (array, _) in optionals.items()}
    batch_tokens, batch_notes = _batch_tokens(found, sizes.tokens, values["steps"])
    names = _names(found)
    settings = (batch_tokens, *values.values())
    used = [*sizes.used, "loss", *(name for name, array in values.items() if array is not None), "name"]
    if batch_tokens is not None:
        used += ["batch_tokens"] if "batch_tokens" in found.column else []
    found_notes = [note for quantity in used for note in found.notes.get(quantity, [])]
    return RunTable(
        path=grid.path,
        sha256=sha256,
        line=np.array(grid.line),
        name=names,
        size=sizes.size,
        size_kind=sizes.kind,
        tokens=sizes.tokens,
        loss=loss,
        flop=sizes.flop,
        cost_per=FLOP_PER_SIZE_TOKEN[sizes.kind],
        steps=values["steps"],
        lr=values["lr"],
        batch_tokens=batch_tokens,
        seed=values["seed"],
        unique_tokens=values["unique_tokens"],
        loss_unit=unit,
        bytes_per_token=bytes_per_token,
        columns={quantity: found.column[quantity] for quantity in used if quantity in found.column},
        notes=(
            *notes,
            *found_notes,
            *sizes.notes,
            *loss_notes,
            *(note for _, some in optionals.values() for note in some),
            *batch_notes,
            *_same_names(found, names, sizes, loss, settings),
        ),
        other_sizes=sizes.others,
    )


def read_grid(path: Path, scope: Scope) -> tuple[Grid, str]:
    """The cells of a file, read by its suffix, and the SHA-256 of its bytes."""
    data = _file_bytes(path, scope)
    sha256, suffix = hashlib.sha256(data).hexdigest(), path.suffix.lower()
    if suffix in PARQUET:
        return read_parquet(path, data, scope), sha256
    text = decode_text(path, data)
    del data
    return (read_json_objects if suffix in JSON else read_delimited)(path, text, scope), sha256


def _file_bytes(path: Path, scope: Scope) -> bytes:
    """The file's bytes, if its name is one of a table."""
    known = (*DELIMITED, *JSON, *PARQUET)
    if os.path.isfile(path) and path.suffix.lower() not in known:
        what = (
            f"{show(path.suffix)} is not a table's suffix" if path.suffix else "the file's name has no suffix"
        )
        raise DocumentError(path, 1, 1, what, f"save the table as one of {', '.join(known)}")
    if os.path.isfile(path) and os.path.getsize(path) > MOST_BYTES:
        what = f"the file is larger than {MOST_BYTES >> 20} MiB"
        raise DocumentError(path, 1, 1, what, f"{scope.fewer}, and leave out columns")
    return read_bytes(path, None)


def is_ledger(path: Path) -> bool:
    """Whether a file of JSON lines begins with one of a ledger (specs/ledger.py)."""
    if path.suffix.lower() not in JSON or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            first = json.loads(file.readline(LONGEST_LINE))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and first.get("kind") in ("ledger", "table_run", "exclusion")


def _without_repeats(grid: Grid) -> tuple[Grid, list[str]]:
    """The table with each row once, and notes on what was skipped."""
    first: dict[Any, int] = {}
    for row, cells in enumerate(zip(*grid.columns.values(), strict=True)):
        first.setdefault(tuple(map(_hashable, cells)), row)
    rows = list(first.values())
    notes = list(grid.notes)
    if repeats := len(grid.line) - len(rows):
        kept = set(rows)
        line = next(line for row, line in enumerate(grid.line) if row not in kept)
        which = f"line {line}" if repeats == 1 else f"the first in line {line}"
        notes.append(f"{several(repeats, 'row')} equal to another in every column skipped: {which}")
    if len(rows) < 2:
        raise grid.refuse_table("the table has a single run", "write runs of several sizes, a row each")
    return (grid.select(rows) if repeats else grid), notes


def _hashable(cell: Any) -> Any:
    return repr(cell) if isinstance(cell, list | dict | float) else cell


def _batch_tokens(found: Found, tokens: Array, steps: Array | None) -> tuple[Array | None, list[str]]:
    """Tokens of a batch, and notes. Steps decide: a column named batch size may count sequences."""
    if "batch_tokens" in found.column:
        return optional(found, "batch_tokens")
    batch, notes = optional(found, "batch")
    if steps is not None:
        by_steps = tokens / steps
        if batch is None:
            return by_steps, [*notes, "batch_tokens are derived as tokens / steps"]
        both = np.isfinite(batch / by_steps)
        if both.any() and np.median(np.abs(batch[both] / by_steps[both] - 1)) < SAME:
            return batch, [*notes, f"batch_tokens are {found.column['batch']!r}: tokens / steps agree"]
        return by_steps, [
            *notes,
            f"batch_tokens are derived as tokens / steps; {found.column['batch']!r} counts other units",
        ]
    if batch is None:
        return None, notes
    context, _ = optional(found, "context")
    if context is not None:
        return batch * context, [
            *notes,
            f"batch_tokens are {found.column['batch']!r} * {found.column['context']!r}",
        ]
    return None, [
        *notes,
        f"batch: {found.column['batch']!r} is not used, since it may count tokens or sequences; name it batch_tokens,"
        " or add steps or seq_len",
    ]


def _names(found: Found) -> tuple[str, ...]:
    """Each run's name, or its line; its row where several runs are in a line of JSON."""
    lines = [f"line {line}" for line in found.grid.line]
    if len(set(lines)) < len(lines):
        lines = [f"row {row}" for row in range(1, len(lines) + 1)]
    if "name" not in found.column:
        return tuple(lines)
    cells = found.grid.columns[found.column["name"]]
    return tuple(
        line if is_missing(cell) else str(cell).strip() for cell, line in zip(cells, lines, strict=True)
    )


def _same_names(
    found: Found, names: tuple[str, ...], sizes: Sizes, loss: Array, settings: tuple[Array | None, ...]
) -> list[str]:
    """A note on runs that share name, size, tokens and settings; DocumentError where they cannot be of one name.

    A name may label the points of a training curve, or repeats of one configuration. But a run has one size, and an id
    has one loss.
    """
    if "name" not in found.column:
        return []
    first: dict[str, int] = {}
    losses: dict[Any, int] = {}
    repeats = 0
    for row, name in enumerate(names):
        other = first.setdefault(name, row)
        if abs(sizes.size[row] / sizes.size[other] - 1) > SAME_SIZE:
            what = f"the run {show(name)} has another {sizes.kind} in line {found.grid.line[other]}"
            raise _same_name(found, row, what)
        own = (name, sizes.tokens[row], *(str(array[row]) for array in settings if array is not None))
        other = losses.setdefault(own, row)
        if loss[row] == loss[other]:
            continue
        if squeeze(found.column["name"]) in ("id", "runid"):
            what = f"the run {show(name)} has another loss in line {found.grid.line[other]}"
            raise _same_name(found, row, what)
        repeats += 1
    if not repeats:
        return []
    return [f"{several(repeats, 'run')} with the name, size and tokens of another taken for repeats of it"]


def _same_name(found: Found, row: int, what: str) -> DocumentError:
    write = "give each run a name of its own, or keep one of the rows"
    return found.grid.refuse(row, found.column["name"], what, write)
