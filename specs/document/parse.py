"""YAML and JSON text to plain data that remembers the place of each value.

YAML is read as version 1.2 from ruamel's event stream, without the parts that make YAML dangerous or surprising: no
tags, anchors, aliases, directives, tabs, duplicate keys or second documents, and no more than `MAX_DEPTH` levels.
Nothing is ever constructed but dict, list, str, int, float, bool and None. Every error has its line and column.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from specs.exit_codes import InputError

MAX_DEPTH = 32
"""Deepest nesting that is read; the deepest of our own documents, a plan, has 8 levels."""

Place = tuple[int, int]
"""Line and column, both counted from 1."""
Route = tuple[str | int, ...]
"""Keys and indices that lead from the top of a document to a value."""

_LONGEST = 400
_BREAK = r"\r\n|[\n\r]"
# Tabs, control characters, and what only YAML takes for the end of a line (U+0085, U+2028, U+2029).
_FORBIDDEN = re.compile(
    "[^\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
# YAML 1.2.2, section 10.3.2 (core schema).
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")
_DIGITS = 400


class DocumentError(InputError):
    """What a person must correct, in one line: `path:line:column: what is wrong; what to write`."""

    def __init__(self, path: Path | str, line: int, column: int, what: str, write: str) -> None:
        super().__init__(path, line, column, what, write)
        self.path = Path(path)
        self.line = line
        self.column = column
        self.what = what
        self.write = write

    def __str__(self) -> str:
        return f"{one_line(str(self.path))}:{self.line}:{self.column}: {one_line(self.what)}; {one_line(self.write)}"


@dataclass(frozen=True)
class Document:
    """Plain data with the places of its keys and values."""

    path: Path
    """Where it was read from."""
    plain: Any
    """dict, list, str, int, float, bool or None."""
    text: str
    """The text it was read from."""
    first_line: int
    """Line of its file at which the text begins."""
    keys: dict[Route, Place] = field(default_factory=dict)
    """Where the key of a value is."""
    values: dict[Route, Place] = field(default_factory=dict)
    """Where a value begins."""

    def place(self, route: Route, at_key: bool = False) -> Place:
        """Where the key or the value at the end of the route is, or else its nearest parent."""
        if at_key and route in self.keys:
            return self.keys[route]
        while route and route not in self.values:
            route = route[:-1]
        return self.values.get(route, (self.first_line, 1))


def read_yaml(path: Path, text: str, first_line: int = 1) -> Document:
    """The one YAML document in the text; `first_line` is where the text begins in its file."""
    return _YamlReader(path, text, first_line).read()


def read_json(path: Path, text: str, first_line: int = 1) -> Document:
    """The JSON document in the text, without duplicate keys; `located` finds its places when they are needed."""
    try:
        plain = json.loads(text, object_pairs_hook=_unique)
        _check_depth(plain)
    except json.JSONDecodeError as error:
        what = f"this is not JSON ({error.msg})"
        raise DocumentError(
            path, first_line + error.lineno - 1, error.colno, what, "correct the JSON here"
        ) from None
    except (ValueError, RecursionError) as error:  # a key twice, a number of 5000 digits, nesting
        read_yaml(path, text.replace("\t", " "), first_line)
        raise DocumentError(
            path, first_line, 1, f"this JSON cannot be read ({error})", "correct it"
        ) from None
    return Document(path, plain, text, first_line)


def located(document: Document) -> Document:
    """The document with its places. JSON gets them here, from its text read as the YAML that it is but for tabs."""
    if document.values:
        return document
    try:
        return read_yaml(document.path, document.text.replace("\t", " "), document.first_line)
    except DocumentError:
        return document


def place_of_offset(text: str, offset: int) -> Place:
    """Line and column of a character of the text."""
    breaks = [match.end() for match in re.finditer(_BREAK, text[:offset])]
    return len(breaks) + 1, offset - (breaks[-1] if breaks else 0) + 1


def at(plain: Any, route: Route) -> Any:
    """The value at the end of a route."""
    for part in route:
        plain = plain[part]
    return plain


def nearest(word: str, known: list[str], at_least: float = 0.6) -> str | None:
    """The known word that was probably meant; `at_least` is difflib's similarity, 1 for equal words."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=at_least)
    return close[0] if close else None


def show(value: Any) -> str:
    """A value for a message: text in quotes, long ones cut."""
    match value:
        case dict():
            return "a mapping (keys and values)"
        case list():
            return "a list"
        case str():
            return repr(value if len(value) <= 60 else value[:40] + "..." + value[-15:])
        case None:
            return "null"
        case True | False:
            return str(value).lower()
    return one_line(repr(value), 60)


@dataclass
class _YamlReader:
    """One pass over ruamel's events that builds the plain data and notes places."""

    path: Path
    text: str
    first_line: int
    events: Iterator[Any] = field(default_factory=lambda: iter(()))
    keys: dict[Route, Place] = field(default_factory=dict)
    values: dict[Route, Place] = field(default_factory=dict)

    def read(self) -> Document:
        bad = _FORBIDDEN.search(self.text)
        if bad:
            line, column = place_of_offset(self.text, bad.start())
            self._refuse_character(bad.group(), (line + self.first_line - 1, column))
        self.events = YAML(typ="safe", pure=True).parse(self.text)
        try:
            return self._document()
        except DocumentError:
            raise
        except MarkedYAMLError as error:
            problem = str(error.problem or error.context)
            misaligned = "<block end>" in problem
            what = (
                "the indentation does not match the lines above"
                if misaligned
                else f"this is not YAML ({problem})"
            )
            write = "quote text that holds ': ', ' #' or brackets, and indent with spaces"
            self._refuse(self._place(error.problem_mark or error.context_mark), what, write)
        except (YAMLError, ValueError, OverflowError) as error:  # an escape that is no character
            last = max(self.values.values(), default=(1, 1))
            self._refuse(
                last, f"this is not YAML, here or below ({error})", "write the characters themselves"
            )

    def _document(self) -> Document:
        next(self.events)
        start = next(self.events)
        if isinstance(start, StreamEndEvent):
            self._refuse(
                (self.first_line, 1), "the document is empty", "write at least its kind, e.g. 'kind: budget'"
            )
        if start.version or start.tags:
            self._refuse(self._at(start), "directives (%) are not allowed", "remove the line")
        plain = self._value(next(self.events), ())
        after = next(event for event in self.events if not isinstance(event, DocumentEndEvent))
        if not isinstance(after, StreamEndEvent):
            self._refuse(self._at(after), "a second document begins here", "write one document in a file")
        return Document(self.path, plain, self.text, self.first_line, self.keys, self.values)

    def _value(self, event: Any, route: Route) -> Any:
        self._check_node(event, route)
        self.values[route] = self._at(event)
        if isinstance(event, ScalarEvent):
            return self._scalar(event)
        if isinstance(event, MappingStartEvent):
            return self._mapping(route)
        items: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self._value(event, (*route, len(items))))
        return items

    def _mapping(self, route: Route) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(named := next(self.events), MappingEndEvent):
            self._check_node(named, route)
            if not isinstance(named, ScalarEvent):
                self._refuse(self._at(named), "a key must be a word", "write 'key: value'")
            key = self._text(named)
            if key in found:
                self._refuse(self._at(named), f"the key {show(key)} appears twice", "keep one of them")
            self.keys[*route, key] = self._at(named)
            event = next(self.events)
            found[key] = self._value(event, (*route, key))
            if (
                found[key] is None and event.start_mark.index == event.end_mark.index
            ):  # marked in the next line
                self.values[*route, key] = self._at(named)
        return found

    def _check_node(self, event: Any, route: Route) -> None:
        if isinstance(event, AliasEvent):
            self._refuse(
                self._at(event),
                f"an alias (*{event.anchor}) is not allowed",
                "write the value, or quote the text",
            )
        if event.anchor is not None:
            self._refuse(
                self._at(event), f"an anchor (&{event.anchor}) is not allowed", "remove it, or quote the text"
            )
        if event.ctag is not None:
            self._refuse(
                self._at(event), "a tag (!) is not allowed", "write the plain value, or quote the text"
            )
        if len(route) > MAX_DEPTH:
            self._refuse(self._at(event), f"nested deeper than {MAX_DEPTH} levels", "write fewer levels")

    def _scalar(self, event: Any) -> Any:
        text = event.value
        if event.style is not None:
            return self._text(event)
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text) and len(text) <= _DIGITS:
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if _FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text):
            value = float(re.sub(r"\.(?=[a-zA-Z])", "", text))
            if not math.isfinite(value) or len(text) > _DIGITS:
                self._refuse(
                    self._at(event), f"{show(text)} is not a finite number", "write a number such as 0.5"
                )
            return value
        return self._text(event)

    def _text(self, event: Any) -> str:
        text: str = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._refuse(
                self._at(event), "the escape is half a character (a surrogate)", "write the character itself"
            )
        return text

    def _refuse_character(self, character: str, place: Place) -> NoReturn:
        if character == "\t":
            self._refuse(place, "tabs are not allowed", "write spaces")
        self._refuse(place, f"the character U+{ord(character):04X} is not allowed", "remove it")

    def _refuse(self, place: Place, what: str, write: str) -> NoReturn:
        raise DocumentError(self.path, *place, what, write)

    def _at(self, event: Any) -> Place:
        return self._place(event.start_mark)

    def _place(self, mark: Any) -> Place:
        return mark.line + self.first_line, mark.column + 1


def one_line(text: str, longest: int = _LONGEST) -> str:
    """The text without line ends, or anything else that is not printable, its middle left out where it is long."""
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return (
        printable
        if len(printable) <= longest
        else printable[: longest // 2] + " ... " + printable[-longest // 2 :]
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _check_depth(plain: Any) -> None:
    """ValueError where JSON is nested deeper than YAML may be."""
    level = [plain]
    for _ in range(MAX_DEPTH + 1):
        level = [
            part
            for value in level
            if isinstance(value, dict | list)
            for part in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError("nested too deeply")
