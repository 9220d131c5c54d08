"""A corpus from tokens as they are: they are checked and hashed where they lie, and the splits are ranges of them.

    train.ranges, held_out.ranges    (number of the file, first token, token behind the last), int64

Held out are the files that are named, or whole documents by the hash of their tokens; blocks of tokens where no index
says where documents end. A file's number counts the training files and then the held-out ones, as `inputs.jsonl` lists
them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.data import tokenizer
from runtime.data.build.inputs import check_unchanged
from runtime.data.build.shards import HELD_OUT_CHOICES, SPLITS
from runtime.data.build.text_sources import block_size
from runtime.data.build.token_files import TokenFile, open_token_file
from runtime.data.build.workers import Report, Workers
from runtime.data.corpus import ranges_digest
from runtime.data.errors import CorpusError
from runtime.data.token_stream import TokenStream
from specs.data import Bytes, Corpus, DataSpec, HeldOutChoice, Split, TokenFiles, TokenizerFile, corpus_digest
from specs.data_inputs import InputFile, inputs_of
from specs.document.files import DocumentError

_SMALLEST_BLOCK, _LARGEST_BLOCK = 2**10, 2**20
"""Tokens of a block: most sequences should lie in one, and one in 50 be a fair sample."""
_SCANNED_AT_ONCE = 2**22
_DECODED_TOKENS, _DECODED_AT_ONCE = 2**22, 2**14
"""Tokens of the held-out split that are decoded to count their bytes: the mean of four million is known to .1 %."""
_SAMPLE_CHARACTERS = 300


@dataclass(frozen=True)
class ScanTask:
    """A file that one process checks."""

    file: TokenFile
    vocab: int
    held_out: bool | None
    """Whether the file is held out as a whole; None where its documents are by their hash."""
    held_out_one_in: int
    end_of_document: int | None


@dataclass(frozen=True)
class Scan:
    """What was found in a file."""

    documents: tuple[int, int]
    """Documents or blocks of the training and of the held-out split."""
    ranges: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Of both splits: first token and token behind the last. Documents that touch are one range."""
    choices: list[int]
    """Tokens that each of `HELD_OUT_CHOICES` would hold out."""
    unended: int
    """Documents that do not end with the token for it."""
    ends_documents: bool
    """Whether that token is anywhere in it."""


def build_tokens(
    spec: DataSpec, base: Path, part: Path, files: Sequence[InputFile], workers: Workers
) -> Corpus:
    """Write the ranges of both splits to the folder `part`; the manifest.

    CorpusError or DocumentError where a file is damaged, or a token is none of the vocabulary.
    """
    text, ids = spec.text, tokenizer.given(spec, base, part)
    tokenizer.check(spec, base, part, ())
    assert isinstance(text, TokenFiles)
    assert ids is not None  # a tokenizer cannot be trained on tokens
    named = [file for file in files if file.role.startswith(("train ", "held out "))]
    _check_distinct(named)
    opened = [open_token_file(Path(file.path), text, ids.vocab) for file in named]
    _check_types(opened)
    whole = [file.role.startswith("held out ") if text.held_out else None for file in named]
    tasks = [
        ScanTask(file, ids.vocab, held_out, spec.held_out_one_in, ids.separator)
        for file, held_out in zip(opened, whole, strict=True)
    ]
    total_bytes = sum(file.path.stat().st_size for file in opened)
    scans = workers.map("checking tokens", total_bytes, scan, tasks)
    check_unchanged(files)
    splits = [_write_split(part, split, named, scans) for split in range(2)]
    stream = TokenStream(
        [file.map() for file in opened], np.fromfile(part / "held_out.ranges", "<i8").reshape(-1, 3)
    )
    decoded = _decode(spec, part, stream, ids.separator)
    path = part / "tokenizer.json"
    tokenizer_sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
    return Corpus(
        spec=spec,
        inputs=inputs_of(files),
        reading=None,
        digest=corpus_digest(splits[0].digest, splits[1].digest, tokenizer_sha256),
        vocab=ids.vocab,
        token_type=opened[0].token_type,
        end_of_document=ids.separator,
        train=splits[0],
        held_out=splits[1],
        held_out_choices=() if text.held_out else _choices(spec.held_out_one_in, scans),
        tokenizer_sha256=tokenizer_sha256,
        bytes_per_token=decoded.bytes_per_token,
        sample=decoded.sample,
        notes=tuple(_notes(opened, scans, ids.separator)),
    )


def scan(task: ScanTask, report: Report) -> Scan:
    """Check the ids of a file, and hash its documents. DocumentError at the first id that is none of the vocabulary."""
    tokens, file = task.file.map(), task.file
    ends_documents = False
    for start in range(0, file.tokens, _SCANNED_AT_ONCE):
        block = tokens[start : start + _SCANNED_AT_ONCE]
        wrong = np.flatnonzero((block >= task.vocab) | (block < 0))
        if len(wrong):
            at = start + int(wrong[0])
            what = f"token {at:,} is {int(tokens[at]):,}, but the vocabulary has {task.vocab:,}"
            write = "correct data.tokenizer or data.text.dtype, or restore the file"
            raise DocumentError(file.path, 1, 1, f"{what} (read as {file.token_type})", write)
        ends_documents = ends_documents or bool((block == task.end_of_document).any())
        report(block.nbytes)
    ends = file.ends
    if ends is None:
        each = block_size(file.tokens, _SMALLEST_BLOCK, _LARGEST_BLOCK)
        ends = np.append(np.arange(each, file.tokens, each), file.tokens)
    ends = np.unique(ends[ends > 0])
    documents = np.stack([np.append(0, ends)[: len(ends)], ends], axis=1).astype(np.int64)
    held_out, choices = np.full(len(ends), task.held_out is True), [0] * len(HELD_OUT_CHOICES)
    if task.held_out is None:
        hashes = np.array([_hash(tokens[first:last]) for first, last in documents.tolist()], np.uint64)
        held_out = hashes % np.uint64(task.held_out_one_in) == 0
        lengths = documents[:, 1] - documents[:, 0]
        choices = [int(lengths[hashes % np.uint64(one_in) == 0].sum()) for one_in in HELD_OUT_CHOICES]
    unended = 0
    if file.ends is not None and task.end_of_document is not None:
        unended = int((tokens[ends - 1] != task.end_of_document).sum())
    return Scan(
        (int((~held_out).sum()), int(held_out.sum())),
        (_merged(documents[~held_out]), _merged(documents[held_out])),
        choices,
        unended,
        ends_documents,
    )


def _merged(documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Documents as ranges, those that touch as one."""
    starts_new = np.append(True, documents[1:, 0] != documents[:-1, 1])[: len(documents)]
    ends_old = np.append(starts_new[1:], True)[: len(documents)]
    return np.stack([documents[starts_new, 0], documents[ends_old, 1]], axis=1)


def _hash(tokens: NDArray[Any]) -> int:
    """64 bits of the SHA-256 of the ids as uint32, whatever type they are stored in."""
    return int.from_bytes(hashlib.sha256(tokens.astype("<u4").tobytes()).digest()[-8:], "big")


def _check_distinct(files: Sequence[InputFile]) -> None:
    """DocumentError where two files have the same content: it would be counted as unique tokens twice, or be trained on
    and held out."""
    first_of: dict[str, InputFile] = {}
    for file in files:
        first = first_of.setdefault(file.sha256, file)
        if first is not file and file.bytes:
            both = first.role.startswith("train ") and file.role.startswith("held out ")
            kept = "is trained on" if both else "is read too"
            what = f"its content is that of {first.path}, which {kept}"
            raise DocumentError(file.path, 1, 1, what, "give one of them alone")


def _check_types(files: Sequence[TokenFile]) -> None:
    first = files[0]
    other = next((file for file in files if file.token_type != first.token_type), None)
    if other is not None:
        what = f"its tokens are {other.token_type}, but those of {first.path.name} are {first.token_type}"
        raise DocumentError(other.path, 1, 1, what, "give files of one type to a corpus")


def _write_split(part: Path, split: int, files: Sequence[InputFile], scans: Sequence[Scan]) -> Split:
    """Write the ranges of a split."""
    found = [scan.ranges[split] for scan in scans]
    ranges = np.concatenate([np.insert(one, 0, number, axis=1) for number, one in enumerate(found)])
    documents, tokens = sum(scan.documents[split] for scan in scans), int((ranges[:, 2] - ranges[:, 1]).sum())
    if not tokens:
        of = f"of {sum(sum(scan.documents) for scan in scans):,} documents or blocks"
        raise CorpusError(
            f"no tokens are {('to train on', 'held out')[split]}, {of}; "
            "give more files, name some in data.text.held_out, or change held_out_one_in"
        )
    content = ranges.astype("<i8").tobytes()
    (part / f"{SPLITS[split]}.ranges").write_bytes(content)
    return Split(documents=documents, text_bytes=None, tokens=tokens, digest=ranges_digest(files, content))


@dataclass(frozen=True)
class _Decoded:
    bytes_per_token: float | None
    sample: str | None


def _decode(spec: DataSpec, part: Path, held_out: TokenStream, separator: int | None) -> _Decoded:
    """Bytes of a held-out token and the first words, where a tokenizer is known; a separator counts as a byte."""
    if isinstance(spec.tokenizer, Bytes):
        first = bytes(held_out[0:_SAMPLE_CHARACTERS].astype(np.uint8)).decode(errors="replace")
        return _Decoded(1.0, first)
    if not isinstance(spec.tokenizer, TokenizerFile):
        return _Decoded(None, None)
    reader = tokenizer.load(part / "tokenizer.json")
    step = max(_DECODED_AT_ONCE, len(held_out) * _DECODED_AT_ONCE // _DECODED_TOKENS)
    count = text_bytes = 0
    sample = ""
    for start in range(0, len(held_out), step):
        some = held_out[start : start + _DECODED_AT_ONCE]
        text = reader.decode(some[some != separator].tolist(), skip_special_tokens=False)
        sample = sample or text[:_SAMPLE_CHARACTERS]
        text_bytes += len(text.encode(errors="replace")) + int((some == separator).sum())
        count += len(some)
    return _Decoded(text_bytes / count, sample)


def _notes(files: Sequence[TokenFile], scans: Sequence[Scan], separator: int | None) -> Iterator[str]:
    documents, unended = sum(sum(scan.documents) for scan in scans), sum(scan.unended for scan in scans)
    if unended:
        yield (
            f"{unended:,} of {documents:,} documents do not end with token {separator}, the end of a document: "
            "a model does not learn where they end"
        )
    elif separator is not None and not any(scan.ends_documents for scan in scans):
        yield f"token {separator}, the end of a document, is nowhere in them: a model does not learn where they end"
    blocks = sum(file.ends is None for file in files)
    if blocks:
        yield (
            f"{blocks:,} of {len(files):,} files have no index of their documents: "
            "they are taken in blocks, and documents that repeat are not noticed"
        )


def _choices(one_in: int, scans: Sequence[Scan]) -> tuple[HeldOutChoice, ...]:
    tokens = np.sum([scan.choices for scan in scans], axis=0).tolist()
    return tuple(
        HeldOutChoice(one_in=choice, tokens=count)
        for choice, count in zip(HELD_OUT_CHOICES, tokens, strict=True)
        if choice < one_in
    )
