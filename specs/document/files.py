"""Documents from files: `load` reads one, `read_lines` a JSON-lines file, `from_catalog` one of the catalog.

Whatever is wrong with a file is a `DocumentError`, one line of `path:line:column: what; what to write`. Nothing in a
file is ever executed.
"""

import functools
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, TypeVar, get_args, overload

from pydantic import TypeAdapter, ValidationError

from specs.document import schemas
from specs.document.base import Spec
from specs.document.parse import (
    Document,
    DocumentError,
    Place,
    Route,
    at,
    located,
    nearest,
    place_of_offset,
    read_json,
    read_yaml,
    show,
)
from specs.document.validate import check
from specs.document.write import cut_off

__all__ = [
    "DocumentError",
    "catalog_names",
    "catalog_path",
    "decode_text",
    "from_catalog",
    "is_file",
    "load",
    "load_any",
    "locate",
    "read_bytes",
    "read_lines",
]

S = TypeVar("S", bound=Spec)

WRITTEN_BYTES = 2**20
"""Largest document that a person writes."""
GENERATED_BYTES = 2**22
"""Largest plan, order, corpus or audit; a plan of 30 runs has about 0.1 MB."""
CATALOG = Path(__file__).parents[1] / "catalog"
_FOLDERS = {"law": "laws", "cluster": "clusters", "family": "families"}
_GENERATED = frozenset({"plan", "order", "corpus", "audit"})


def load(path: Path, kind: type[S]) -> S:
    """The document of this type in a .json or YAML file; DocumentError for the first thing that is wrong with it."""
    document = _read(path)
    name = get_args(kind.model_fields["kind"].annotation)[0]
    _check_kind(document, [name])
    return check(document, TypeAdapter(kind), _schema(name))


def load_any(path: Path) -> Spec:
    """The document in a .json or YAML file, of the type that its `kind` names."""
    document = _read(path)
    name = _check_kind(document, schemas.kinds())
    return check(document, TypeAdapter(schemas.type_of(name)), _schema(name))


@overload
def read_lines(path: Path, line_type: type[S]) -> list[S]: ...
@overload
def read_lines(path: Path, line_type: Any) -> list[Any]: ...
def read_lines(path: Path, line_type: Any) -> list[Any]:
    """Every line of a JSON-lines file as the type, which may be a union. A last line without its end is refused."""
    text = decode_text(path, read_bytes(path, None))
    adapter: TypeAdapter[Any] = TypeAdapter(line_type)
    if text and not text.endswith("\n"):
        raise cut_off(path, text.count("\n") + 1)
    found = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        document = read_json(path, line, number)
        try:
            found.append(adapter.validate_json(line))
        except ValidationError:
            found.append(check(document, adapter, adapter.json_schema()))
    return found


def catalog_names(kind: type[Spec]) -> list[str]:
    """Names of the catalog's documents of this type, in order."""
    folder = CATALOG / _FOLDERS[get_args(kind.model_fields["kind"].annotation)[0]]
    return sorted(path.stem for path in folder.glob("*.yaml"))


def from_catalog(kind: type[S], name: str, named_in: Path | None) -> S:
    """A law, cluster or family by its name; `named_in` is the document that names it, for the error's place."""
    kind_name = get_args(kind.model_fields["kind"].annotation)[0]
    folder = CATALOG / _FOLDERS[kind_name]
    known = catalog_names(kind)
    if name not in known:
        place = _place_of_value(named_in, name) if named_in else (1, 1)
        meant = nearest(name, known)
        write = f"write '{meant}'" if meant else f"write one of {', '.join(known)}"
        raise DocumentError(
            named_in or folder, *place, f"there is no {kind_name} {show(name)} in the catalog", write
        )
    document: S = _load_once(folder / f"{name}.yaml", kind)
    return document


def catalog_path(kind: type[Spec], name: str) -> Path:
    """Where the catalog has the document of this type and name."""
    return CATALOG / _FOLDERS[get_args(kind.model_fields["kind"].annotation)[0]] / f"{name}.yaml"


@functools.cache
def _load_once(path: Path, kind: type[S]) -> S:
    """A document of the catalog, which is a part of the program: a plan asks for all the laws, several times."""
    return load(path, kind)


def is_file(name: str) -> bool:
    """Whether a document is named by its file, and not by its name in the catalog."""
    return name.endswith((".yaml", ".yml", ".json"))


def locate(path: Path, field: str, what: str, write: str) -> DocumentError:
    """A refusal that points at a field of a document, `runs.3.run.seed` say, or at its nearest part that is there."""
    route = tuple(int(part) if part.isdigit() else part for part in field.split("."))
    return DocumentError(path, *located(_read(path)).place(route), what, write)


def _read(path: Path) -> Document:
    """The file as plain data, its size checked before anything is parsed."""
    data = read_bytes(path, GENERATED_BYTES)
    text = decode_text(path, data)
    kind = re.search(r"^\W*kind\W*:\W*(\w+)", text[:WRITTEN_BYTES], re.MULTILINE)
    if len(data) > WRITTEN_BYTES and not (kind and kind[1] in _GENERATED):
        raise _too_large(path, WRITTEN_BYTES)
    return read_json(path, text) if path.suffix == ".json" else read_yaml(path, text)


def read_bytes(path: Path, most: int | None) -> bytes:
    """The file's bytes, no more than `most`; only a regular file is opened."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise DocumentError(path, 1, 1, "this is a folder", "give the path of a file in it")
        if not stat.S_ISREG(mode):
            raise DocumentError(path, 1, 1, "this is not a regular file", "give the path of a regular file")
        with open(path, "rb") as file:
            data = file.read() if most is None else file.read(most + 1)
    except FileNotFoundError:
        beside = [
            other for other in _visible(path.parent) if other != path.name
        ]  # a link to nowhere is there itself
        meant = nearest(path.name, beside, at_least=0.75)
        write = f"give {path.parent / meant}" if meant else "give the path of a file that exists"
        raise DocumentError(path, 1, 1, "there is no such file", write) from None
    except DocumentError:  # a ValueError too
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        what = f"the file cannot be read ({getattr(error, 'strerror', None) or error})"
        raise DocumentError(path, 1, 1, what, "give the path of a file that can be read") from None
    if most is not None and len(data) > most:
        raise _too_large(path, most)
    return data


def _visible(folder: Path) -> list[str]:
    """Names in a folder but for hidden ones; none where there is no such folder."""
    return [name for name in os.listdir(folder) if name[0] != "."] if folder.is_dir() else []


def decode_text(path: Path, data: bytes) -> str:
    """The bytes as UTF-8 text, without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = place_of_offset(data[: error.start].decode("utf-8-sig"), error.start)
        what = f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8"
        raise DocumentError(path, line, column, what, "save the file as UTF-8") from None


def _check_kind(document: Document, expected: list[str]) -> str:
    """The document's kind, which must be an expected one."""
    kinds = f"'kind: {expected[0]}'" if len(expected) == 1 else f"'kind:' with one of {', '.join(expected)}"
    if not isinstance(document.plain, dict):
        raise _refusal(
            document,
            (),
            f"expected keys and values, found {show(document.plain)}",
            f"begin with {kinds}",
        )
    if "kind" not in document.plain:
        raise _refusal(document, (), "the key 'kind' is missing", f"begin with {kinds}")
    kind = document.plain["kind"]
    if kind in expected:
        return str(kind)
    meant = nearest(str(kind), expected)
    write = f"write '{meant}'" if meant else f"write {kinds}"
    if len(expected) == 1 and kind in schemas.kinds():
        write = f"give the path of a {expected[0]}"
    raise _refusal(document, ("kind",), f"{show(kind)} is the wrong kind of document", write)


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(schemas.schema_path(name).read_text(encoding="utf-8"))
    return schema


def _place_of_value(path: Path, value: str) -> Place:
    """Where a document that was read before holds this text."""
    document = located(_read(path))
    return next(
        (place for route, place in document.values.items() if at(document.plain, route) == value), (1, 1)
    )


def _refusal(document: Document, route: Route, what: str, write: str) -> DocumentError:
    return DocumentError(document.path, *located(document).place(route), what, write)


def _too_large(path: Path, most: int) -> DocumentError:
    return DocumentError(path, 1, 1, f"the file is larger than {most >> 20} MiB", "give an isoplan document")
