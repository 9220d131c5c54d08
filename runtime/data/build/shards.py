"""The two passes over a text, each in tasks that are independent, finish whole, and are never done twice.

    reading      parts of the files -> records, settled and hashed -> sorted runs (runtime/data/build/sorted_runs.py)
    tokenizing   the documents of neighbouring digests -> tokens of both splits

A task writes a summary when everything else of it is on disk, so a build that was killed skips what has one.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.data import tokenizer as tokenizers
from runtime.data.build.sorted_runs import SLOTS, RunWriter, documents_in
from runtime.data.build.text_files import FilePart, Malformed, Record
from runtime.data.build.text_sources import read_parts
from runtime.data.build.workers import Report
from runtime.data.errors import CorpusError
from runtime.data.tokenizer import TokenIdsOf
from specs.data import DataSpec, FileText
from specs.document.files import DocumentError
from specs.document.parse import one_line
from specs.document.write import fsync_path
from specs.humanize import several

SHARD_BYTES = 16 * 2**20
"""Text that one task tokenizes, seconds of work: many enough for all cores, few enough for the memory of each."""
SPLITS = ("train", "held_out")
HELD_OUT_CHOICES = (
    2,
    3,
    4,
    5,
    6,
    8,
    10,
    12,
    15,
    20,
    25,
    30,
    40,
    50,
    60,
    80,
    100,
    150,
    200,
    300,
    400,
    500,
    1000,
)
"""Values of `held_out_one_in` for which it is counted what they would hold out."""

_ENCODED_BYTES = 2**20
"""Text that is encoded at once: its tokens are Python integers for a moment, 30 bytes for each byte."""
_EXAMPLES = 3
"""Malformed records that are named."""
_HOPELESS = 1000
"""Records of a task, more than half of them malformed, after which the task does not go on."""

_DECODED, _DECODED_CHARACTERS = 50, 20_000
"""Documents of a task that are encoded and decoded, to see whether the tokenizer keeps their text."""

T = TypeVar("T")


@dataclass
class RecordCounts:
    """What was read of a text so far."""

    records: int = 0
    empty: int = 0
    malformed: int = 0
    examples: list[list[Any]] = field(default_factory=list)
    """Path, first byte of the part, line, column, what is wrong and what to write, of the first malformed records."""

    def document(self, part: FilePart, record: Record, allowed: float) -> bytes | None:
        """Count a record of this part; its text, where it has any. DocumentError where hardly any record is readable,
        of which a share `allowed` may be malformed."""
        self.records += 1
        if isinstance(record, Malformed):
            self.malformed += 1
            if len(self.examples) < _EXAMPLES:
                place = [record.line, record.column, record.what, record.write]
                self.examples.append([str(part.path), part.start, *place])
            if self.malformed >= _HOPELESS and 2 * self.malformed > self.records:
                raise refusal(self.examples[0], self.malformed, self.records, allowed)
        elif record.strip():
            return record
        else:
            self.empty += 1
        return None

    def check(self, allowed: float) -> None:
        """DocumentError where a larger share of the records is malformed, CorpusError where there is no document."""
        if self.malformed > allowed * self.records:
            raise refusal(self.examples[0], self.malformed, self.records, allowed)
        if self.records == self.empty + self.malformed:
            empties = f" ({several(self.records, 'record')} without any text)" if self.records else ""
            raise CorpusError(
                f"no documents were found{empties}; check the paths and the field, or the packages, of data.text"
            )


def total(counts: Iterable[RecordCounts]) -> RecordCounts:
    """All of them together, with the examples in their order."""
    found = RecordCounts()
    for one in counts:
        found.records += one.records
        found.empty += one.empty
        found.malformed += one.malformed
        found.examples += one.examples
    return found


@dataclass(frozen=True)
class ReadTask:
    """Parts of the files that one process reads."""

    spec: DataSpec
    parts: tuple[FilePart, ...]
    stem: Path
    """Path of its files, without their endings."""

    @property
    def bytes(self) -> int:
        """Bytes of the files that it reads."""
        return sum((part.stop or part.path.stat().st_size) - part.start for part in self.parts)


@dataclass
class ReadSummary(RecordCounts):
    """What a task has read."""

    text_bytes: int = 0


@dataclass(frozen=True)
class TokenizeTask:
    """Slots of the sorted runs whose documents one process tokenizes."""

    runs: Path
    """Folder of the sorted runs."""
    first_slot: int
    last_slot: int
    """The first slot that is not its."""
    held_out_one_in: int
    tokenizer: Path | None
    ids: TokenIdsOf
    stem: Path
    """Path of its files, without their endings."""


@dataclass(frozen=True)
class TokenizeSummary:
    """What a task has written to `<stem>.train` and `<stem>.held_out`, in this order."""

    documents: list[int]
    text_bytes: list[int]
    tokens: list[int]
    """With a separator before each document."""
    choices: list[int]
    """Tokens that each of `HELD_OUT_CHOICES` would hold out."""
    without_tokens: int
    """Documents of whose text the tokenizer makes nothing."""
    with_separator: int
    """Documents whose own tokens have a separator among them."""
    decoded: int
    """Documents that were encoded and decoded, as a sample."""
    altered: int
    """Those that were not the same text after it."""


def read(task: ReadTask, report: Report) -> ReadSummary:
    """Write the documents of the task's files to sorted runs.

    DocumentError where a file cannot be read, or hardly any of its records.
    """
    return _once(task.stem, ReadSummary, lambda: _read(task, report))


def _read(task: ReadTask, report: Report) -> ReadSummary:
    writer, read, allowed = RunWriter(task.stem), ReadSummary(), malformed_allowed(task.spec)
    for part, record in read_parts(task.spec, task.parts, report):
        text = read.document(part, record, allowed)
        if text is not None:
            writer.add(text)
            read.text_bytes += len(text)
    writer.flush()
    return read


def malformed_allowed(spec: DataSpec) -> float:
    """The share of malformed records that a text may have; of installed text none is, since it is left out."""
    return spec.text.malformed if isinstance(spec.text, FileText) else 0.0


def example_text(example: Sequence[Any], base: Path) -> str:
    """A malformed record as `file:line: what is wrong`, the file relative to `base`."""
    path, start, line, _, what, _ = example
    return one_line(f"{os.path.relpath(path, base)}:{_line(path, start, line)}: {what}")


def refusal(example: Sequence[Any], malformed: int, records: int, allowed: float) -> DocumentError:
    """The refusal of text with too many malformed records, at the first of them; a share `allowed` may be."""
    path, start, line, column, what, write = example
    if records > 1:
        share = f"{100 * allowed:g} %"
        what += (
            f"; {malformed:,} of {records:,} records are malformed, and data.text.malformed allows {share}"
        )
    return DocumentError(path, _line(path, start, line), column, what, write)


def _line(path: str, start: int, line: int) -> int:
    """The line of the file that is line `line` of its part from byte `start` on. The line of the byte before it is the
    last of the part before."""
    if not start:
        return line
    with open(path, "rb") as file:
        left, lines = start - 1, 1 + line
        while left > 0 and (block := file.read(min(left, 2**24))):
            lines += block.count(b"\n")
            left -= len(block)
        return lines


def slot_groups(text_bytes: int) -> list[tuple[int, int]]:
    """First and last slot of each tokenizing task, for this much text: at least `SHARD_BYTES` each, if there is as
    much."""
    each = 1
    while each < SLOTS and text_bytes * each < SHARD_BYTES * SLOTS:
        each *= 2
    return [(first, first + each) for first in range(0, SLOTS, each)]


def run_files(folder: Path) -> list[Path]:
    """The sorted runs of a folder."""
    return sorted(path.with_suffix("") for path in folder.glob("*.slots"))


def training_documents(runs: Path, groups: Sequence[tuple[int, int]], one_in: int) -> Iterator[bytes]:
    """The documents of the training split, in the order of their digests."""
    for first, last in groups:
        found = documents_in(run_files(runs), first, last)
        for text, held_out in zip(found.texts, found.held_out(one_in), strict=True):
            if not held_out:
                yield text


def tokenize(task: TokenizeTask, report: Report) -> TokenizeSummary:
    """Write the tokens of the task's documents, those of both splits, with a separator before each."""
    return _once(task.stem, TokenizeSummary, lambda: _tokenize(task, report))


def _tokenize(task: TokenizeTask, report: Report) -> TokenizeSummary:
    found = documents_in(run_files(task.runs), task.first_slot, task.last_slot)
    tokenizer = None if task.tokenizer is None else _loaded(task.tokenizer)
    lengths = np.array([len(text) for text in found.texts], np.int64)
    in_split = np.stack([~(held_out := found.held_out(task.held_out_one_in)), held_out])
    counts, separators = np.zeros((2, len(lengths)), np.int64)
    with open(f"{task.stem}.train", "wb") as train, open(f"{task.stem}.held_out", "wb") as other:
        for first, last in _batches(lengths):
            tokens, counts[first:last] = encode_joined(tokenizer, task.ids, found.texts[first:last])
            document_of = np.repeat(np.arange(first, last), counts[first:last])
            separators[first:last] = np.bincount(
                document_of[tokens == task.ids.separator] - first, minlength=last - first
            )
            into_other = held_out[document_of]
            train.write(tokens[~into_other].tobytes())
            other.write(tokens[into_other].tobytes())
            report(int(lengths[first:last].sum()))
    return TokenizeSummary(
        documents=in_split.sum(axis=1).tolist(),
        text_bytes=(in_split @ lengths).tolist(),
        tokens=(in_split @ counts).tolist(),
        choices=[int(counts[found.held_out(one_in)].sum()) for one_in in HELD_OUT_CHOICES],
        without_tokens=int((counts == 1).sum()),
        with_separator=int((separators > 1).sum()),
        decoded=len(found.texts[:_DECODED]),
        altered=0 if tokenizer is None else sum(map(partial(_is_altered, tokenizer), found.texts[:_DECODED])),
    )


def _is_altered(tokenizer: Any, text: bytes) -> bool:
    """Whether the beginning of a text is another text after it was encoded and decoded."""
    begin = text.decode()[:_DECODED_CHARACTERS]
    ids = tokenizer.encode(begin, add_special_tokens=False).ids
    return bool(tokenizer.decode(ids, skip_special_tokens=False) != begin)


_loaded = cache(tokenizers.load)
"""Once in a process; a build's tokenizer does not change."""


def encode_joined(
    tokenizer: Any, ids: TokenIdsOf, texts: Sequence[bytes]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The texts' tokens with a separator before each, and their numbers, the separators counted."""
    tokens, counts = tokenizers.encode(tokenizer, texts)
    counts += 1
    joined = np.empty(int(counts.sum()), np.dtype(ids.token_type).newbyteorder("<"))
    is_separator = np.zeros(len(joined), bool)
    is_separator[np.cumsum(counts) - counts] = True
    joined[is_separator] = ids.separator
    joined[~is_separator] = tokens
    return joined, counts


def _batches(lengths: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and last document of each batch of about `_ENCODED_BYTES`."""
    first, ends = 0, np.cumsum(lengths)
    while first < len(lengths):
        before = ends[first] - lengths[first]
        last = max(first + 1, int(np.searchsorted(ends, before + _ENCODED_BYTES)))
        yield first, last
        first = last


def _once(stem: Path, kind: type[T], work: Callable[[], T]) -> T:
    """The summary of a task that is done already, or of the work."""
    done = Path(f"{stem}.json")
    if done.exists():
        return kind(**json.loads(done.read_text()))
    summary = work()
    for path in stem.parent.glob(f"{stem.name}[-.]*"):  # on disk before the summary says so
        fsync_path(path)
    aside = Path(f"{stem}.new")
    aside.write_text(json.dumps(asdict(summary)))  # type: ignore[call-overload]
    os.replace(aside, done)
    return summary
