"""A DataSpec as tokens: built into `data/<name>/` once, and memory-mapped from then on.

    manifest.json    specs.data.Corpus: its DataSpec, inputs, counts and digests
    inputs.jsonl     every input file with its size and digest
    train.bin        tokens of the training split (uint8 for bytes, else uint16 or uint32 by the vocabulary)
    held_out.bin     tokens of the held-out split
    tokenizer.json   the tokenizer; absent for bytes and for ids alone

Tokens as they are stay where they lie: train.ranges and held_out.ranges say which of them belong to a split.

The name is that of the contents: other files, or files that changed, are another corpus. The folder is written under
another name, `.<name>.part`, and renamed, so it is complete or absent. A build that was killed goes on from there; one
that is refused leaves nothing.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from runtime.data.build_text import WORK, build_text, file_sha256
from runtime.data.build_tokens import build_tokens, ranges_digest
from runtime.data.errors import CorpusError, KilledWorkerError
from runtime.data.inputs import hash_inputs
from runtime.data.token_stream import Tokens, TokenStream
from runtime.data.workers import Workers, open_workers
from specs.data import Corpus, DataSpec, DeclaredText, TokenFiles, corpus_digest, corpus_name
from specs.data_inputs import InputFile, find_corpus, index_path, read_index, write_index
from specs.document.files import DocumentError, load
from specs.document.write import write_json, write_text


def build(spec: DataSpec, base: Path, data: Path, console: Console, processes: int | None = None) -> Corpus:
    """The corpus of this spec under `data`, built where it is missing; paths are relative to the folder `base`.

    On all cores, or with this many processes. CorpusError or DocumentError where the text is missing, unreadable, or
    too little for both splits.
    """
    if isinstance(spec.text, DeclaredText):
        raise CorpusError(
            "data.text names no files to read (source: declared); write source: files or source: installed"
        )
    found = find_corpus(spec, base, data)
    if isinstance(found, Corpus):
        return load_corpus(data, found.name)
    try:
        data.mkdir(parents=True, exist_ok=True)
        with open_workers(console, processes) as workers:
            files = hash_inputs(spec, base, data, workers)
            before = read_index(spec, base, data)
            name = corpus_name(spec, write_index(spec, base, data, files).digest)
            if before is not None and before.corpus != name:  # what a killed build of other contents left
                shutil.rmtree(data / f".{before.corpus}.part", ignore_errors=True)
            with _only_builder(data, name):
                _build_then_rename(data / name, spec, base, files, workers)
    except KilledWorkerError:
        raise
    except (CorpusError, DocumentError):
        index_path(spec, base, data).unlink(missing_ok=True)
        raise
    except OSError as error:
        remedy = "make it readable" if isinstance(error, PermissionError) else "free disk space"
        raise CorpusError(
            f"{error.filename or data}: {error.strerror}; {remedy} or choose another folder"
        ) from None
    return load_corpus(data, name)


def load_corpus(data: Path, name: str) -> Corpus:
    """The manifest of a built corpus, its files' sizes checked; CorpusError where one is missing or truncated."""
    folder = data / name
    if not (folder / "manifest.json").exists():
        raise CorpusError(f"there is no corpus {name} under {data}; run: isoplan data BUDGET")
    corpus = load(folder / "manifest.json", Corpus)
    if isinstance(corpus.spec.text, TokenFiles):
        _check_sizes(folder)
        return corpus
    for split_name, split in (("train", corpus.train), ("held_out", corpus.held_out)):
        path = folder / f"{split_name}.bin"
        expected = split.tokens * np.dtype(corpus.token_type).itemsize
        if not path.exists() or path.stat().st_size != expected:
            raise CorpusError(
                f"{path} does not have the {expected} bytes that its manifest requires; delete {folder} and rerun"
            )
    return corpus


def verify(data: Path, name: str) -> Corpus:
    """As `load_corpus`, and every file's digest recomputed; CorpusError where one differs."""
    corpus = load_corpus(data, name)
    folder = data / name
    expected = {} if corpus.tokenizer_sha256 is None else {folder / "tokenizer.json": corpus.tokenizer_sha256}
    if isinstance(corpus.spec.text, TokenFiles):
        files = _token_inputs(folder)
        expected |= {Path(file.path): file.sha256 for file in files}
        for name, split in (("train", corpus.train), ("held_out", corpus.held_out)):
            if ranges_digest(files, (folder / f"{name}.ranges").read_bytes()) != split.digest:
                raise CorpusError(f"{folder / name}.ranges is damaged; delete {folder} and rerun")
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
    if corpus.digest != corpus_digest(corpus.train.digest, corpus.held_out.digest, corpus.tokenizer_sha256):
        raise CorpusError(
            f"the digest in {folder / 'manifest.json'} does not match its files' digests; delete {folder} and rerun"
        )
    return corpus


def tokens(data: Path, corpus: Corpus, split: Literal["train", "held_out"]) -> Tokens:
    """The split's tokens, memory-mapped and read-only, of the corpus' own integer type."""
    folder, dtype = data / corpus.name, np.dtype(corpus.token_type).newbyteorder("<")
    if not isinstance(corpus.spec.text, TokenFiles):
        return np.asarray(np.memmap(folder / f"{split}.bin", dtype=dtype, mode="r"))
    arrays = [
        np.asarray(np.memmap(file.path, dtype, "r")) if file.bytes else np.empty(0, dtype)
        for file in _token_inputs(folder)
    ]
    return TokenStream(arrays, np.fromfile(folder / f"{split}.ranges", "<i8").reshape(-1, 3))


def _token_inputs(folder: Path) -> list[InputFile]:
    """The token files of a corpus, those to train on and then those that are held out."""
    lines = (folder / "inputs.jsonl").read_text(encoding="utf-8").splitlines()
    files = [InputFile(mtime_ns=0, ctime_ns=0, **json.loads(line)) for line in lines]
    return [file for file in files if file.role.startswith(("train ", "held out "))]


def _check_sizes(folder: Path) -> None:
    """CorpusError where a token file is gone or has another size."""
    for file in _token_inputs(folder):
        path = Path(file.path)
        if not path.exists() or path.stat().st_size != file.bytes:
            raise CorpusError(
                f"{path} does not have the {file.bytes:,} bytes that the corpus {folder.name} was built from; "
                "restore the file, or build again: isoplan data BUDGET"
            )


@contextmanager
def _only_builder(data: Path, name: str) -> Iterator[None]:
    """Wait until no other process is building this corpus."""
    with open(data / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_then_rename(
    folder: Path, spec: DataSpec, base: Path, files: Sequence[InputFile], workers: Workers
) -> None:
    """Build in a folder with another name, and rename it when it is complete."""
    if folder.exists():  # built before, or by another process meanwhile
        write_text(folder / "inputs.jsonl", "".join(map(_input_line, files)))  # where its files are now
        return
    part = folder.with_name(f".{folder.name}.part")
    part.mkdir(exist_ok=True)
    try:
        if not (part / "manifest.json").exists():
            build_here = build_tokens if isinstance(spec.text, TokenFiles) else build_text
            corpus = build_here(spec, base, part, files, workers)
            write_text(part / "inputs.jsonl", "".join(map(_input_line, files)))
            write_json(part / "manifest.json", corpus)
        for name in WORK:
            shutil.rmtree(part / name, ignore_errors=True)
        (part / "work.txt").unlink(missing_ok=True)
        os.rename(part, folder)
    except KilledWorkerError:
        raise
    except (CorpusError, DocumentError):
        shutil.rmtree(part)
        raise


def _input_line(file: InputFile) -> str:
    line = {"role": file.role, "path": file.path, "bytes": file.bytes, "sha256": file.sha256}
    return json.dumps(line, ensure_ascii=False) + "\n"
