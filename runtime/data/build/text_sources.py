"""Text sources: the installed Python packages, or the user's own files, cut into parts that one process reads each.

The installed packages are real text on every machine. It is filtered for text that is worth training on: no tiny stubs,
data tables or minified lines. The user's own files are not filtered.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from runtime.data.build.text_files import FilePart, Record, holds_values, records
from runtime.data.build.workers import Report
from specs.data import DataSpec, FileText, Text
from specs.data_inputs import JSON_SUFFIXES, TEXT_SUFFIXES, compression, suffix

PART_BYTES = 64 * 2**20
"""Bytes of the files that one task reads. A killed build reads no more than a task's again; 20 GB are 300 tasks."""
CURATION_TASKS = 64
"""Tasks of curation that a text has if it can be cut so: enough for the cores of a node."""
SMALLEST_CUT_BYTES = 2**20
"""Bytes that a file is cut into for curation, at least: a second of work or so, as starting a task is hundredths."""
HUGE_FILE_BYTES = 16 * 2**20
"""A text file larger than this is cut into blocks: no book is, concatenated corpora are."""
_BLOCKS = 1024
"""A file is cut into about as many blocks: then one in 50 is a fair sample of it."""
_SMALLEST_BLOCK, _LARGEST_BLOCK = 2**12, 2**20
"""Bytes of a block: a thousand tokens at least, as shorter ones would break most sequences; a book at most."""
# The filter of installed text; it keeps 125 of 127 MB of torch, scipy, sympy, numpy and the standard library.
_SMALLEST_BYTES, _LARGEST_BYTES = 200, 300_000
_LONGEST_MEAN_LINE = 100
_MOST_DIGITS = 0.15


def text_parts(text: Text, paths: Sequence[Path]) -> list[tuple[FilePart, ...]]:
    """A text in these files, in tasks of about `PART_BYTES`."""
    return list(_grouped(_all_parts(text, paths, PART_BYTES), PART_BYTES))


def curated_parts(text: FileText, paths: Sequence[Path]) -> list[tuple[FilePart, ...]]:
    """The same, in tasks for curation, which takes longer: smaller ones, where they would be few."""
    each = min(PART_BYTES, sum(path.stat().st_size for path in paths) // CURATION_TASKS)
    return list(_grouped(_all_parts(text, paths, max(each, SMALLEST_CUT_BYTES)), each))


def read_parts(
    spec: DataSpec, parts: Sequence[FilePart], report: Report
) -> Iterator[tuple[FilePart, Record]]:
    """The records of these parts."""
    text = spec.text
    for part in parts:
        if isinstance(text, FileText):
            yield from ((part, record) for record in records(part, text.field, report))
        elif (content := _installed_text(part.path)) is not None:
            report(len(content))
            yield part, content


def block_size(size: int, smallest: int, largest: int) -> int:
    """The power of two that cuts this size into about `_BLOCKS` blocks, within limits."""
    return min(largest, max(smallest, 1 << max(1, size // _BLOCKS).bit_length() - 1))


def _all_parts(text: Text, paths: Sequence[Path], cut_bytes: int) -> list[FilePart]:
    """The files, or the parts of this size of those that can be cut."""
    alone = isinstance(text, FileText) and len(paths) == 1
    return [part for path in paths for part in _parts(path, alone, cut_bytes)]


def _parts(path: Path, alone: bool, cut_bytes: int) -> Iterator[FilePart]:
    size = path.stat().st_size
    if suffix(path) in TEXT_SUFFIXES and (alone or size > HUGE_FILE_BYTES):
        yield FilePart(path, block_bytes=block_size(size, _SMALLEST_BLOCK, _LARGEST_BLOCK))
    elif (
        suffix(path) in JSON_SUFFIXES
        and size > cut_bytes
        and not compression(path)
        and not holds_values(path)
    ):
        yield from (FilePart(path, start, start + cut_bytes) for start in range(0, size, cut_bytes))
    else:
        yield FilePart(path)


def _grouped(parts: Sequence[FilePart], most_bytes: int) -> Iterator[tuple[FilePart, ...]]:
    """Neighbours in tasks of at most so many bytes, or one part."""
    group: list[FilePart] = []
    group_bytes = 0
    for part in parts:
        size = part.path.stat().st_size if part.stop is None else part.stop - part.start
        if group and group_bytes + size > most_bytes:
            yield tuple(group)
            group, group_bytes = [], 0
        group.append(part)
        group_bytes += size
    if group:
        yield tuple(group)


def _installed_text(path: Path) -> bytes | None:
    """The file as it is; None where it is not worth training on."""
    if not _SMALLEST_BYTES <= path.stat().st_size <= _LARGEST_BYTES:
        return None
    content = path.read_bytes()
    return content if _looks_like_text(content) else None


def _looks_like_text(content: bytes) -> bool:
    """UTF-8 with lines of ordinary length and few digits."""
    try:
        characters = len(content.decode())
    except UnicodeDecodeError:
        return False
    digits = sum(content.count(digit) for digit in b"0123456789")
    lines = content.count(b"\n") + 1
    return characters / lines < _LONGEST_MEAN_LINE and digits / len(content) < _MOST_DIGITS
