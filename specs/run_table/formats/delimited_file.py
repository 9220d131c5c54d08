"""Tables of text: cells separated by commas, semicolons or tabs, a header in the first line."""

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from specs.document.parse import DocumentError, Place, nearest, show
from specs.humanize import several
from specs.run_table.grid import Cell, Grid, Scope, too_many

SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}
"""In order of preference where a header has as many cells with either."""

Row = tuple[int, list[str]]
"""The line that a row begins in, and its cells."""

_CONTROL = re.compile("[\x00-\x08\x0e-\x1f]")
_NUMBER = re.compile(r"\s*[-+]?[0-9.,]+([eE][-+]?[0-9]+)?\s*")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


def read_delimited(path: Path, text: str, scope: Scope) -> Grid:
    """The table in a text. Comment lines, blank lines and repetitions of the header are skipped."""
    if control := _CONTROL.search(text):
        line = text.count("\n", 0, control.start()) + 1
        what = f"this is not a text of rows and columns (character U+{ord(control[0]):04X})"
        raise DocumentError(path, line, 1, what, "export the table as CSV, JSONL or Parquet")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    head = next((at for at, line in enumerate(_lines(text)) if line.strip() and line[0] != "#"), None)
    if head is None:
        raise DocumentError(
            path, 1, 1, "the file is empty", f"write a header, and a row for each {scope.row}"
        )
    header = _line(text, head + 1)
    separator = _separator(path, header, head)
    lines = _lines(text)
    if not re.match(r'"?\W*(hex\w*)?colou?r', header.lower()):  # whose values may begin with '#'
        lines = ("\n" if line[0] == "#" else line for line in lines)
    rows = _rows(path, lines, separator)
    first, names = next(rows)
    names = [name.strip() for name in names]
    _check_header(path, first, _line(text, first), names, separator)
    columns, starts, repeated = _data(path, rows, names, separator, scope)

    def place(row: int | None, column: str) -> Place:
        line = first if row is None else starts[row]
        return line, _start_of_cell(
            _line(text, line), separator, names.index(column) if column in names else 0
        )

    notes = [f"the header stands again in line {line}; skipped" for line in repeated]
    return Grid(path, columns, starts, place, tuple(notes))


def _lines(text: str) -> Iterator[str]:
    """The lines of a text one by one, as a list of them would be larger than the text."""
    return (match[0] for match in _LINE.finditer(text))


def _line(text: str, number: int) -> str:
    return next(itertools.islice(_lines(text), number - 1, None))


def _separator(path: Path, line: str, at: int) -> str:
    """What separates the cells of the header."""
    cells = {separator: len(next(csv.reader([line], delimiter=separator))) for separator in SEPARATORS}
    best = max(cells, key=lambda separator: cells[separator])
    if cells[best] == 1:
        what = f"the header {show(line.strip())} is a single column"
        raise DocumentError(path, at + 1, 1, what, "separate the columns with commas, semicolons or tabs")
    return best


def _rows(path: Path, lines: Iterator[str], separator: str) -> Iterator[Row]:
    """Rows that are not blank."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    line = 1
    try:
        for row in reader:
            if any(map(str.strip, row)):
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        what = f"the quotes do not match in the row that begins here ({error})"
        raise DocumentError(
            path, line, 1, what, 'close the quote, or write a quote in a cell as ""'
        ) from None


def _check_header(path: Path, line: int, text: str, names: list[str], separator: str) -> None:
    if all(_NUMBER.fullmatch(name) for name in names if name):
        what = "the first row has numbers where the names of the columns should be"
        write = "write a header such as params,tokens,loss above it, without '#' before it"
        raise DocumentError(path, line, 1, what, write)
    for at, name in enumerate(names):
        if name and name in names[:at]:
            column = _start_of_cell(text, separator, at)
            what = f"the column {show(name)} appears twice"
            raise DocumentError(path, line, column, what, "rename or remove one of them")


def _data(
    path: Path, rows: Iterator[Row], names: list[str], separator: str, scope: Scope
) -> tuple[dict[str, list[Cell]], list[int], list[int]]:
    """Cells below the header by column, the line of each row, and the lines in which the header is repeated."""
    read = [(at, name) for at, name in enumerate(names) if name and scope.wanted(name)]
    columns: dict[str, list[Cell]] = {name: [] for _, name in read}
    starts: list[int] = []
    repeated = []
    for line, row in rows:
        if len(row) > len(names) and not any(map(str.strip, row[len(names) :])):
            row = row[: len(names)]
        if len(row) != len(names):
            raise _ragged(path, line, row, names, separator)
        if row[-1].strip() == names[-1] and [cell.strip() for cell in row] == names:
            repeated.append(line)
            continue
        starts.append(line)
        for at, name in read:
            columns[name].append(row[at])
        if len(starts) > scope.most_rows:
            raise too_many(path, scope)
    if not starts:
        what = f"there is no {scope.row} below the header"
        raise DocumentError(path, 1, 1, what, f"write a row for each {scope.row}")
    unread = [None] * len(starts)
    return {name: columns.get(name, unread) for name in names if name}, starts, repeated


def _ragged(path: Path, line: int, row: list[str], names: list[str], separator: str) -> DocumentError:
    what = f"the row has {several(len(row), 'cell')} where the header has {len(names)}"
    write = f"write {len(names)} cells"
    others = [other for other in SEPARATORS if other != separator and any(other in cell for cell in row)]
    if len(row) > len(names) and separator == ",":
        write += ", with decimal points, or quote cells that hold a comma"
    elif others:
        write += f", separated by {SEPARATORS[separator]} as in the header"
    elif nearest(row[0].strip(), names, at_least=0.9):
        write = "give one table in a file, with one header"
    return DocumentError(path, line, 1, what, write)


def _start_of_cell(line: str, separator: str, wanted: int) -> int:
    """Column, from 1, at which a cell of the line begins."""
    quoted = False
    cell = 0
    for at, character in enumerate(line):
        if cell == wanted:
            return at + 1
        if character == '"':
            quoted = not quoted
        elif character == separator and not quoted:
            cell += 1
    return max(len(line.rstrip("\n")), 1)
