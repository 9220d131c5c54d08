"""A built corpus: a DataSpec as tokens, built into `data/<name>/` once, and memory-mapped from then on.

    manifest.json    specs.data.Corpus: its DataSpec, inputs, counts and digests
    inputs.jsonl     every input file with its size, times and digest
    train.bin        tokens of the training split (uint8 for bytes, else uint16 or uint32 by the vocabulary)
    held_out.bin     tokens of the held-out split
    tokenizer.json   the tokenizer; absent for bytes and for ids alone

Tokens as they are stay where they lie: train.ranges and held_out.ranges say which of them belong to a split.

The name is that of the contents: other files, or files that changed, are another corpus. `runtime.data.build` builds
it.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from runtime.data.errors import CorpusError
from runtime.data.token_stream import Tokens, TokenStream
from specs.data import Corpus, MixCorpus, TokenFiles, corpus_digest
from specs.data_inputs import Input, InputFile, is_unchanged
from specs.document.base import canonical_json
from specs.document.files import load
from specs.plan_file import load_document
from specs.sources import Sources


def load_corpus(data: Path, name: str) -> Corpus:
    """The manifest of a built corpus, its files' sizes checked; CorpusError where one is missing or truncated, or
    where tokens that stay where they lie are no longer there."""
    folder = data / name
    if not (folder / "manifest.json").exists():
        raise CorpusError(f"there is no corpus {name} under {data}; run: isoplan data BUDGET")
    corpus = load(folder / "manifest.json", Corpus)
    if corpus.name != name or corpus.digest != corpus_digest(
        corpus.train.digest, corpus.held_out.digest, corpus.tokenizer_sha256
    ):
        raise CorpusError(
            f"{folder / 'manifest.json'} is not as it was written, as its name or its digest do not match the rest; "
            f"delete {folder} and rerun"
        )
    if corpus.tokenizer_sha256 is not None and not (folder / "tokenizer.json").exists():
        raise CorpusError(f"{folder / 'tokenizer.json'} is gone; delete {folder} and rerun")
    if isinstance(corpus.spec.text, TokenFiles):
        _check_token_files(folder, corpus)
        return corpus
    for split_name, split in (("train", corpus.train), ("held_out", corpus.held_out)):
        path = folder / f"{split_name}.bin"
        expected = split.tokens * np.dtype(corpus.token_type).itemsize
        if not path.exists() or path.stat().st_size != expected:
            raise CorpusError(
                f"{path} does not have the {expected} bytes that its manifest requires; delete {folder} and rerun"
            )
    return corpus


def load_sources(data: Path, name: str) -> Sources:
    """As `load_corpus`, of a corpus or of every source of a mix."""
    manifest = data / name / "manifest.json"
    found = load_document(manifest) if manifest.exists() else None
    if isinstance(found, MixCorpus):
        return Sources({source: load_corpus(data, ref.corpus) for source, ref in found.sources.items()})
    return Sources({"": load_corpus(data, name)})


def verify_sources(data: Path, name: str) -> Sources:
    """As `verify`, of a corpus or of every source of a mix."""
    corpora = load_sources(data, name).corpora
    return Sources({source: verify(data, corpus.name) for source, corpus in corpora.items()})


def verify(data: Path, name: str) -> Corpus:
    """As `load_corpus`, and every file's digest recomputed; CorpusError where one differs."""
    corpus = load_corpus(data, name)
    folder = data / name
    expected = {} if corpus.tokenizer_sha256 is None else {folder / "tokenizer.json": corpus.tokenizer_sha256}
    if isinstance(corpus.spec.text, TokenFiles):
        expected |= {Path(file.path): file.sha256 for file in _token_inputs(folder)}
    else:
        expected |= {
            folder / "train.bin": corpus.train.digest,
            folder / "held_out.bin": corpus.held_out.digest,
        }
    for path, digest in expected.items():
        if file_sha256(path) != digest:
            raise CorpusError(
                f"{path} is damaged: its digest differs from the manifest's; delete {folder} and rerun"
            )
    return corpus


def tokens(data: Path, corpus: Corpus, split: Literal["train", "held_out"]) -> Tokens:
    """The split's tokens, memory-mapped and read-only, of the corpus' own integer type."""
    return tokens_in(data / corpus.name, corpus, split)


def tokens_in(folder: Path, corpus: Corpus, split: Literal["train", "held_out"]) -> Tokens:
    """The same of a corpus in this folder, which may not have its own name yet."""
    dtype = np.dtype(corpus.token_type).newbyteorder("<")
    if not isinstance(corpus.spec.text, TokenFiles):
        return np.asarray(np.memmap(folder / f"{split}.bin", dtype=dtype, mode="r"))
    arrays = [
        np.asarray(np.memmap(file.path, dtype, "r")) if file.bytes else np.empty(0, dtype)
        for file in _token_inputs(folder)
    ]
    return TokenStream(arrays, np.fromfile(folder / f"{split}.ranges", "<i8").reshape(-1, 3))


def load_unchanged(data: Path, name: str) -> Sources:
    """As `load_sources`, and CorpusError where a token file was written to after it was hashed."""
    sources = load_sources(data, name)
    for corpus in sources.corpora.values():
        if not isinstance(corpus.spec.text, TokenFiles):
            continue
        for file in _token_inputs(data / corpus.name):
            if not is_unchanged(Input(file.role, Path(file.path)), file):
                raise CorpusError(
                    f"{file.path} may have changed since the corpus {corpus.name} was built; "
                    "hash it again: isoplan data BUDGET; if its content is another, restore it or plan again"
                )
    return sources


def _token_inputs(folder: Path) -> list[InputFile]:
    """The token files of a corpus, those to train on and then those that are held out."""
    path = folder / "inputs.jsonl"
    try:
        files = [InputFile(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError):
        raise CorpusError(f"{path} is missing or damaged; delete {folder} and rerun") from None
    return [file for file in files if file.role.startswith(("train ", "held out "))]


def _check_token_files(folder: Path, corpus: Corpus) -> None:
    """CorpusError where a token file is gone or has another size, or where the ranges are damaged."""
    files = _token_inputs(folder)
    for file in files:
        path = Path(file.path)
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise CorpusError(
                f"{path} does not have the {file.bytes:,} bytes that the corpus {folder.name} was built from; "
                "restore the file, or build again: isoplan data BUDGET"
            )
    for name, split in (("train", corpus.train), ("held_out", corpus.held_out)):
        ranges = folder / f"{name}.ranges"
        if not ranges.is_file() or ranges_digest(files, ranges.read_bytes()) != split.digest:
            raise CorpusError(f"{ranges} is missing or damaged; delete {folder} and rerun")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ranges_digest(files: Sequence[InputFile], ranges: bytes) -> str:
    """The digest of a split: that of the files' digests, in order, and of the ranges in them."""
    parts = {"files": [file.sha256 for file in files], "ranges": hashlib.sha256(ranges).hexdigest()}
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()
