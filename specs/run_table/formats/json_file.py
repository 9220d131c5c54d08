"""Tables of JSON objects: one in a line, or a list of them. Nested keys are joined by dots."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specs.document.parse import MAX_DEPTH, DocumentError, Place, place_of_offset, show
from specs.run_table.grid import Cell, Grid, Scope, too_many

_BETWEEN = re.compile(r"[ \t\r\n]*")


def read_json_objects(path: Path, text: str, scope: Scope) -> Grid:
    """The table of a text that is a list of objects, or objects after one another."""
    objects = f"write one object for each {scope.row}, such as {scope.example}"
    columns: dict[str, list[Cell]] = {}
    wanted: dict[str, bool] = {}
    starts: list[int] = []
    for start, plain in _objects(path, text):
        if not isinstance(plain, dict):
            raise _refuse(path, text, start, f"expected an object, found {show(plain)}", objects)
        for name, cell in dict(_flat(path, text, start, plain)).items():
            if name not in wanted:
                wanted[name] = scope.wanted(name)
                columns[name] = []
            if wanted[name]:
                columns[name] += [None] * (len(starts) - len(columns[name]))
                columns[name].append(cell)
        starts.append(start)
        if len(starts) > scope.most_rows:
            raise too_many(path, scope)
    if not starts:
        raise DocumentError(path, 1, 1, f"the file has no {scope.row}", objects)
    if len(starts) == 1:
        what = "the file has a single object"
        raise _refuse(path, text, starts[0], what, f"{objects} (pandas: orient='records')")
    unread: list[Cell] = [None] * len(starts)
    for name, cells in columns.items():
        columns[name] = cells + unread[len(cells) :] if cells else unread

    def place(row: int | None, column: str) -> Place:
        start, *after = starts[row or 0 :][:2]
        at = text.find(json.dumps(column.rpartition(".")[2]), start, *after)
        return place_of_offset(text, max(at, start))

    return Grid(path, columns, _line_numbers(text, starts), place)


def _objects(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(start, value) of each value of the list, or of each that follows another."""
    decode = json.JSONDecoder(object_pairs_hook=_unique).raw_decode
    at = _after_blanks(text, 0)
    is_list = text[at : at + 1] == "["
    at += is_list
    first = True
    while (at := _after_blanks(text, at)) < len(text):
        if is_list and text[at] == "]" and _after_blanks(text, at + 1) == len(text):
            return
        if is_list and not first:
            if text[at] != ",":
                raise _refuse(path, text, at, "the list goes on without a comma", "write ',' or ']' here")
            at = _after_blanks(text, at + 1)
        try:
            value, end = decode(text, at)
        except json.JSONDecodeError as error:
            what = f"this is not JSON ({error.msg})"
            raise _refuse(path, text, error.pos, what, "correct the JSON here") from None
        except (ValueError, RecursionError) as error:
            what = f"this JSON cannot be read ({error})"
            raise _refuse(path, text, at, what, "write each key once, and few levels") from None
        yield at, value
        at, first = end, False
    if is_list:
        raise _refuse(path, text, len(text), "the list has no end", "write ']', or give the whole file")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _flat(
    path: Path, text: str, start: int, plain: dict[str, Any], head: str = "", depth: int = 1
) -> Iterator[tuple[str, Cell]]:
    """(keys joined by dots, value) of all that is no object; lists are left out."""
    if depth > MAX_DEPTH:
        raise _refuse(path, text, start, f"nested deeper than {MAX_DEPTH} levels", "write fewer levels")
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from _flat(path, text, start, value, f"{head}{key}.", depth + 1)
        elif not isinstance(value, list):
            yield f"{head}{key}", value


def _after_blanks(text: str, at: int) -> int:
    match = _BETWEEN.match(text, at)
    return match.end() if match else at


def _line_numbers(text: str, starts: list[int]) -> list[int]:
    """The line of each offset; they are in order."""
    lines = []
    line, last = 1, 0
    for start in starts:
        line += text.count("\n", last, start)
        last = start
        lines.append(line)
    return lines


def _refuse(path: Path, text: str, at: int, what: str, write: str) -> DocumentError:
    return DocumentError(path, *place_of_offset(text, at), what, write)
