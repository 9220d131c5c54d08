"""The records of the user's text files, one after the other, whatever the format: a text each, or why there is none.

    .txt .md          the file is one document; or blocks of it, cut at line ends
    .json .jsonl      a record a line; or JSON values one after the other, an array of them too
    .parquet          a row each
    .gz .zst          any of the first two, compressed

A text is settled before it is hashed: no byte order mark, \\n as the only line end, and none at the end of the text.
So a document saved on Windows is the same document. What is blank is no record.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from runtime.data.build.workers import Report
from specs.data_inputs import TEXT_SUFFIXES, compression, suffix
from specs.document.files import DocumentError

_BOM = b"\xef\xbb\xbf"
_OTHER_KINDS = {
    b"\xff\xfe": ("UTF-16", "save the file as UTF-8"),
    b"\xfe\xff": ("UTF-16", "save the file as UTF-8"),
    b"\x1f\x8b": ("compressed by gzip", "end its name in .gz"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "end its name in .zst"),
    b"PAR1": ("Parquet", "end its name in .parquet"),
}
"""First bytes of files that are no text, what they are, and what to do."""
_PARQUET_ROWS = 1024
"""Rows of Parquet that are in memory at once: at most some tens of MB of web pages."""
_READ_BYTES = 2**22
_HEAD_BYTES = 2**16
_NOT_BLANK = re.compile(r"[^ \t\n\r,]")
"""Where a JSON value begins, or an array ends."""
_LONGEST_WORD = len("-Infinity")
"""Of JSON, as Python reads it: an error that is nearer to the end may be a word that is cut there."""
_REPORT_EACH = 64
"""Records between two reports of progress."""


@dataclass(frozen=True)
class FilePart:
    """A file, or the part of it that one process reads."""

    path: Path
    start: int = 0
    """First byte; of the lines, those that begin at it or later."""
    stop: int | None = None
    """The lines that begin before this byte; None for all."""
    block_bytes: int | None = None
    """Size of the blocks that a text file is cut into; None for one document."""


@dataclass(frozen=True)
class Malformed:
    """A record without a readable text."""

    line: int
    """Line, or row of Parquet, from 1; counted from the part's start."""
    column: int
    what: str
    """What is wrong with it."""
    write: str
    """What to do about it."""


Record = bytes | Malformed
"""A settled text in UTF-8, which may be empty; or why there is none."""

Others = dict[str, str]
"""Other keys of a record that were asked for and that it has, as text."""


def records(part: FilePart, field: str, report: Report) -> Iterator[Record]:
    """The records of the part. `field` is the key or column of the text; `report` is told of the bytes read.

    DocumentError where the file as a whole cannot be read.
    """
    return (record for record, _ in records_with(part, field, (), report))


def records_with(
    part: FilePart, field: str, keys: Sequence[str], report: Report
) -> Iterator[tuple[Record, Others]]:
    """The same, each with other keys or columns; these may be within its `metadata`, where datatrove writes them."""
    if part.path.name.lower().endswith(".parquet"):
        yield from _rows(part.path, field, keys, report)
        return
    values = suffix(part.path) not in TEXT_SUFFIXES and part.stop is None and holds_values(part.path)
    with _opened(part) as (stream, file):
        done = file.tell()
        for number, (record, value) in enumerate(_of_stream(stream, part, field, values)):
            if number % _REPORT_EACH == 0:
                report(file.tell() - done)
                done = file.tell()
            yield settled(record) if isinstance(record, bytes) else record, _others(value, keys)


def settled(text: bytes) -> bytes:
    """The text without a byte order mark, with \\n as the only line end, and none at its end."""
    text = text.removeprefix(_BOM)
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return text.rstrip(b"\n")


def holds_values(path: Path) -> bool:
    """Whether a JSON file is to be read as values that span lines: an array, or objects that are indented."""
    with _opened(FilePart(path)) as (stream, _):
        head = stream.read(_HEAD_BYTES).removeprefix(_BOM).lstrip()
    return head.startswith(b"[") or head.partition(b"\n")[0].strip() == b"{"


def _others(value: Any, keys: Sequence[str]) -> Others:
    """These keys of a decoded record, those that it has."""
    if not keys or not isinstance(value, dict):
        return {}
    inner = value.get("metadata")
    inner = inner if isinstance(inner, dict) else {}
    found = {key: value.get(key, inner.get(key)) for key in keys}
    # JSON may hold lone surrogates, which no file can
    return {key: str(one).encode(errors="backslashreplace").decode() for key, one in found.items() if one}


def _of_stream(stream: IO[bytes], part: FilePart, field: str, values: bool) -> Iterator[tuple[Record, Any]]:
    """Each record, and what it was decoded from."""
    if suffix(part.path) in TEXT_SUFFIXES:
        texts = _whole(stream) if part.block_bytes is None else _blocks(stream, part.block_bytes)
        return ((text, None) for text in texts)
    return _json_values(part.path, stream, field) if values else _json_lines(stream, part, field)


@contextmanager
def _opened(part: FilePart) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The part's bytes, decompressed, and the file beneath; DocumentError where that fails."""
    path = part.path
    with open(path, "rb") as file:
        file.seek(part.start)
        try:
            match compression(path):
                case ".gz":
                    yield gzip.GzipFile(fileobj=file), file  # type: ignore[misc]
                case ".zst":
                    yield _zst(path, file), file
                case _:
                    yield file, file
        except (OSError, EOFError, zlib.error) as error:
            if not compression(path):
                raise
            what = f"the file cannot be decompressed ({error})"
            raise DocumentError(path, 1, 1, what, "compress the file again, or remove it") from None


def _zst(path: Path, file: IO[bytes]) -> IO[bytes]:
    """The stream of a .zst file, by Arrow's codec, which reads several frames too and is what reads Parquet."""
    import io

    pyarrow = _pyarrow(path)
    stream: IO[bytes] = io.BufferedReader(
        pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd"), _READ_BYTES
    )
    return stream


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        what = "this file needs pyarrow, which is not installed"
        raise DocumentError(path, 1, 1, what, "run: pip install 'isoplan[parquet]'") from None
    return pyarrow


def _whole(stream: IO[bytes]) -> Iterator[Record]:
    yield _checked(stream.read(), 1)


def _checked(text: bytes, line: int) -> Record:
    """The text, which begins at this line, if it is UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        if line == 1 and (other := _other_kind(text, 1)):
            return other
        number = line + text.count(b"\n", 0, error.start)
        column = error.start - text.rfind(b"\n", 0, error.start)
        return Malformed(number, column, "this byte is not UTF-8", "save the file as UTF-8")
    return text


def _other_kind(content: bytes, line: int) -> Malformed | None:
    """What a file that begins like this is, where it is no text."""
    for begin, (kind, write) in _OTHER_KINDS.items():
        if content.startswith(begin):
            return Malformed(line, 1, f"the file is {kind}", write)
    return None


def _blocks(stream: IO[bytes], block_bytes: int) -> Iterator[Record]:
    """Blocks of at most this size, cut behind a line, or else between two characters."""
    rest, line = b"", 1
    while more := stream.read(max(_READ_BYTES, block_bytes)):
        rest += more
        start = 0
        while len(rest) - start > block_bytes:
            end = _cut(rest, start, start + block_bytes)
            yield _checked(rest[start:end], line)
            line += rest.count(b"\n", start, end)
            start = end
        rest = rest[start:]
    if rest.strip():
        yield _checked(rest, line)


def _cut(text: bytes, start: int, stop: int) -> int:
    """Where to cut, in (start, stop]."""
    for end_of_line in (b"\n", b"\r"):
        found = text.rfind(end_of_line, start, stop) + 1
        if found > start and text[found : found + 1] != b"\n":
            return found
    back = next(
        (n for n in range(4) if text[stop - n] & 0xC0 != 0x80), 0
    )  # a character has at most four bytes
    return stop - back


def _json_lines(stream: IO[bytes], part: FilePart, field: str) -> Iterator[tuple[Record, Any]]:
    """The text of every line that begins in the part. A lone \\r ends a line too: no JSON text holds one."""
    number, position = 0, part.start
    if part.start:  # the line that the part's first byte lies in belongs to the part before
        stream.seek(part.start - 1)
        position += len(stream.readline()) - 1
    for line in stream:
        if part.stop is not None and position >= part.stop:
            return
        position += len(line)
        for piece in line.split(b"\r") if b"\r" in line.rstrip(b"\r\n") else (line,):
            number += 1
            piece = piece.removeprefix(_BOM) if number == 1 else piece
            if not piece.isspace() and piece:
                yield _of_line(piece, number, field)


def _of_line(line: bytes, number: int, field: str) -> tuple[Record, Any]:
    try:
        value = _JSON.decode(line.decode())
        return _text_of(value, number, field), value
    except (ValueError, RecursionError) as error:
        return _not_json(error, number, field, line), None


def _json_values(path: Path, stream: IO[bytes], field: str) -> Iterator[tuple[Record, Any]]:
    """The texts of JSON values one after the other, or of the elements of arrays of them. DocumentError where the JSON
    is broken: what follows cannot be told apart."""
    window, in_array = _Window(path, stream), False
    while (first := window.next_character()) or in_array:
        if first == "[" and not in_array:
            in_array = True
            window.skip(1)
        elif first == "]" and in_array:
            in_array = False
            window.skip(1)
        else:
            line = window.line
            value, text = window.take_value()
            if text.isascii() or _is_utf_8(text):
                yield _text_of(value, line, field), value
            else:
                what = "this record is not a document (it holds a byte that is not UTF-8)"
                yield Malformed(line, 1, what, "save the file as UTF-8"), None


def _whole_number(digits: str) -> int | float:
    """The number; an infinite one where it has more digits than Python reads."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


_JSON = json.JSONDecoder(parse_int=_whole_number)


def _is_utf_8(text: str) -> bool:
    """Whether the text is as it was decoded: bytes that are not UTF-8 became lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Window:
    """The part of a JSON file that is in memory: from the value that is read next, at least to its end."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.line = 1
        """Line of the first character that is not taken yet."""
        self._path = path
        self._stream = stream
        self._text = ""
        self._column = 1
        """Of the text's first character."""
        self._at = 0
        """Where that character is in the text."""
        self._ended = False
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._parse = _JSON.raw_decode

    def next_character(self) -> str:
        """The next character that is no blank and no comma; nothing at the end of the file."""
        while True:
            found = _NOT_BLANK.search(self._text, self._at)
            self.skip((found.start() if found else len(self._text)) - self._at)
            if found or self._ended:
                return self._text[self._at : self._at + 1]
            self._read()

    def skip(self, characters: int) -> str:
        """Go behind so many characters; these."""
        taken = self._text[self._at : self._at + characters]
        self.line += taken.count("\n")
        self._at += characters
        return taken

    def take_value(self) -> tuple[Any, str]:
        """The value that begins here, and its text."""
        while True:
            try:
                value, end = self._parse(self._text, self._at)
            except RecursionError:
                raise self._refusal("nested too deeply", self._at) from None
            except json.JSONDecodeError as error:
                if self._ended or not self._may_be_cut(error):
                    raise self._refusal(error.msg, error.pos) from None
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    return value, self.skip(end - self._at)
            self._read()

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether more of the file may mend it."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_WORD

    def _read(self) -> None:
        """Read as much again as is in memory: a value is then parsed a few times at most."""
        newline = self._text.rfind("\n", 0, self._at)
        self._column = self._at - newline if newline >= 0 else self._column + self._at
        left = self._text[self._at :]
        block = self._stream.read(max(_READ_BYTES, len(left)))
        self._ended = not block
        self._text, self._at = left + self._decode(block, self._ended), 0

    def _refusal(self, what: str, at: int) -> DocumentError:
        line = self.line + self._text.count("\n", self._at, at)
        newline = self._text.rfind("\n", 0, at)
        column = at - newline if newline >= 0 else self._column + at
        write = "mend it, or give JSON Lines: there, a line that is malformed is skipped"
        return DocumentError(self._path, line, column, f"this is not JSON ({what})", write)


def _text_of(value: Any, number: int, field: str) -> Record:
    """The text of a record."""
    if not isinstance(value, dict):
        what = "this record is not a document (not a JSON object)"
    elif field not in value:
        what = f"this record has no key '{field}'" + _other_keys(value)
    elif not isinstance(value[field], str):
        what = f"this record is not a document (its '{field}' is {type(value[field]).__name__}, not a string)"
    else:
        try:
            text: bytes = value[field].encode()
            return text
        except UnicodeEncodeError:
            what = "this record is not a document (its text has a lone surrogate)"
    return Malformed(number, 1, what, _json_remedy(field))


def _other_keys(value: dict[str, Any]) -> str:
    keys = ", ".join(list(value)[:5])
    return f", but {keys}" if 0 < len(keys) <= 80 else ""


def _not_json(error: Exception, number: int, field: str, content: bytes) -> Malformed:
    if other := _other_kind(content, number):
        return other
    what = f"this record is not a document ({str(error) or 'nested too deeply'})"
    return Malformed(number, 1, what.replace("\n", " "), _json_remedy(field))


def _json_remedy(field: str) -> str:
    return f'write {{"{field}": "..."}}, or name the key in data.text.field'


def _rows(path: Path, field: str, keys: Sequence[str], report: Report) -> Iterator[tuple[Record, Others]]:
    """The texts of a Parquet file's column, and other columns."""
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_READ_BYTES) as table:
            _check_column(path, table.schema_arrow, field)
            row_bytes = path.stat().st_size // max(1, table.metadata.num_rows)
            others = [name for name in (*keys, "metadata") if keys and name in table.schema_arrow.names]
            batches = table.iter_batches(
                _PARQUET_ROWS, columns=[*{field: None} | dict.fromkeys(others)], use_threads=False
            )
            rows = chain.from_iterable(
                zip(_bytes_of(batch.column(field)), batch.select(others).to_pylist(), strict=True)
                for batch in batches
            )
            for number, (text, row) in enumerate(rows, start=1):
                if number % _REPORT_EACH == 0:
                    report(_REPORT_EACH * row_bytes)
                yield _of_row(text, number), _others(row, keys)
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        what = f"the file cannot be read as Parquet ({str(error).splitlines()[0]})"
        raise DocumentError(path, 1, 1, what, "write it again, or remove it") from None


def _bytes_of(column: Any) -> list[bytes | None]:
    """The column's strings in UTF-8, as they are stored: nothing has checked them yet."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    found: list[bytes | None] = column.cast(pyarrow.large_binary()).to_pylist()
    return found


def _of_row(text: bytes | None, number: int) -> Record:
    if text is None:
        return Malformed(number, 1, "this row has no text (null)", "fill it, or remove the row")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        what = f"this row is not UTF-8 (its byte {error.start:,})"
        return Malformed(number, 1, what, "write the column as UTF-8, or remove the row")
    return settled(text)


def _check_column(path: Path, schema: Any, field: str) -> None:
    import pyarrow

    if field not in schema.names:
        what = f"there is no column '{field}'; the columns are {', '.join(schema.names[:10])}"
        raise DocumentError(path, 1, 1, what, "name the column of the text in data.text.field")
    if schema.names.count(field) > 1:
        what = f"{schema.names.count(field)} columns are named '{field}'"
        raise DocumentError(path, 1, 1, what, "write the file again with one column of this name")
    kind = schema.field(field).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if not (
        pyarrow.types.is_string(kind)
        or pyarrow.types.is_large_string(kind)
        or pyarrow.types.is_string_view(kind)
    ):
        what = f"the column '{field}' holds {kind}, not strings"
        raise DocumentError(path, 1, 1, what, "name the column of the text in data.text.field")
