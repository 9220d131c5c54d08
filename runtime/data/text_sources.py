"""Text sources: the installed Python packages, or the user's own files, as a stream of UTF-8 documents.

The installed packages are real text on every machine. It is filtered for text that is worth training on: no tiny stubs,
data tables or minified lines. The user's own files are not filtered.
"""

import gzip
import importlib.util
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import IO

from specs.data import DataSpec, FileText, InstalledText
from specs.document.files import DocumentError
from specs.exit_codes import InputError

_SUFFIXES = (".py", ".pyi", ".rst", ".md", ".txt")
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})
# The filter; it keeps 125 of 127 MB of torch, scipy, sympy, numpy and the standard library.
_SMALLEST_BYTES, _LARGEST_BYTES = 200, 300_000
_LONGEST_MEAN_LINE = 100
_MOST_DIGITS = 0.15


class CorpusError(InputError):
    """A corpus that cannot be built or used: what is wrong, and what to do."""


@dataclass(frozen=True)
class TextDocument:
    """One document."""

    text: bytes
    """UTF-8, not empty."""
    read_bytes: int
    """Bytes read of all files so far, for the progress bar."""
    total_bytes: int
    """Size of all files."""


class NoTextError(DocumentError):
    """A path or pattern of a FileText that matches no file."""

    def __init__(self, path: Path, number: int) -> None:
        super().__init__(path, 1, 1, "there is no such file", "correct the path in data.text.paths")
        self.number = number
        """Which of the paths, from 0."""


def documents(spec: DataSpec, base: Path) -> Iterator[TextDocument]:
    """The documents of a DataSpec, in any order; paths are relative to the folder `base`.

    DocumentError or CorpusError where a file or package is missing or malformed.
    """
    text = spec.text
    if isinstance(text, InstalledText):
        return _installed(text)
    assert isinstance(text, FileText)
    return _from_files(_user_files(text, base), text.field)


def _installed(text: InstalledText) -> Iterator[TextDocument]:
    """Text files of the standard library and the packages."""
    roots = [Path(sysconfig.get_paths()["stdlib"]), *map(_package, text.packages)]
    sizes = {path: path.stat().st_size for root in roots for path in _tree(root)}
    total, done = sum(sizes.values()), 0
    for path, size in sizes.items():
        done += size
        if _SMALLEST_BYTES <= size <= _LARGEST_BYTES:
            content = path.read_bytes()
            if _looks_like_text(content):
                yield TextDocument(content, done, total)


def _package(name: str) -> Path:
    """Folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise CorpusError(
            f"data.text.packages: '{name}' is not an installed package; install it, or remove it"
        )
    return Path(places[0])


def _tree(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _NOT_LIBRARY)
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith(_SUFFIXES) and path.is_file():
                yield path


def _looks_like_text(content: bytes) -> bool:
    """UTF-8 with lines of ordinary length and few digits."""
    try:
        characters = len(content.decode())
    except UnicodeDecodeError:
        return False
    digits = sum(content.count(digit) for digit in b"0123456789")
    lines = content.count(b"\n") + 1
    return characters / lines < _LONGEST_MEAN_LINE and digits / len(content) < _MOST_DIGITS


def _user_files(text: FileText, base: Path) -> list[Path]:
    """The files that the paths and patterns match, each once."""
    found: set[Path] = set()
    for number, pattern in enumerate(text.paths):
        matches = [base / match for match in glob(pattern, root_dir=base, recursive=True)]
        files = [path for path in matches if path.is_file()]
        if not files:
            raise NoTextError(base / pattern, number)
        found.update(files)
    for path in found:
        if not path.name.endswith((".txt", ".md", ".jsonl", ".jsonl.gz")):
            raise DocumentError(
                path, 1, 1, "files of this type cannot be read", "give .txt, .md, .jsonl or .jsonl.gz"
            )
    return sorted(found)


def _from_files(paths: list[Path], field: str) -> Iterator[TextDocument]:
    total, before = sum(path.stat().st_size for path in paths), 0
    for path in paths:
        with open(path, "rb") as file:
            texts = _json_lines(path, file, field) if ".jsonl" in path.name else _whole(path, file)
            for text in texts:
                if text:
                    yield TextDocument(text, before + file.tell(), total)
            before += file.tell()


def _whole(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """The file as one document."""
    content = file.read()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise DocumentError(path, line, column, "this byte is not UTF-8", "save the file as UTF-8") from None
    yield content


def _json_lines(path: Path, file: IO[bytes], field: str) -> Iterator[bytes]:
    """The text of every line."""
    lines = gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            yield _text_of(path, number, line, field)
    except (OSError, EOFError, zlib.error) as error:
        raise DocumentError(
            path, number + 1, 1, f"the file cannot be decompressed ({error})", "compress the file again"
        ) from None


def _text_of(path: Path, number: int, line: bytes, field: str) -> bytes:
    try:
        value = json.loads(line)
        text = value[field] if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"not a JSON object with a string '{field}'")
        return text.encode()
    except KeyError:
        what = f"this line has no key '{field}'"
    except (ValueError, RecursionError) as error:
        what = f"this line is not a document ({str(error) or 'nested too deeply'})"
    raise DocumentError(
        path, number, 1, what, f'write {{"{field}": "..."}} on every line, or name the key in data.text.field'
    )
