"""From a DataSpec to its folder, `data/<name>/`, where it is missing.

The folder is written under another name, `.<name>.part`, and renamed, so it is complete or absent. A build that was
killed goes on from there; one that is refused leaves nothing.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from runtime.data.build.curation_page import render_curation
from runtime.data.build.inputs import check_unchanged, hash_inputs
from runtime.data.build.text import WORK, build_text
from runtime.data.build.tokens import build_tokens
from runtime.data.build.workers import Workers, open_workers
from runtime.data.corpus import load_corpus, load_unchanged, tokens_in
from runtime.data.document_lengths import document_lengths
from runtime.data.errors import CorpusError, KilledWorkerError
from specs.data import Corpus, DataSpec, DeclaredText, TokenFiles, corpus_name
from specs.data_inputs import InputFile, find_corpus, index_path, read_index, write_index
from specs.document.files import DocumentError
from specs.document.write import write_json, write_text


def build(spec: DataSpec, base: Path, data: Path, console: Console, processes: int | None = None) -> Corpus:
    """The corpus of one text under `data`, built where it is missing; paths are relative to the folder `base`.

    On all cores, or with this many processes. CorpusError or DocumentError where the text is missing, unreadable, or
    too little for both splits.
    """
    if isinstance(spec.text, DeclaredText):
        raise CorpusError(
            "data.text names no files to read (source: declared); write source: files or source: installed"
        )
    found = find_corpus(spec, base, data)
    if isinstance(found, Corpus) and _is_usable(data, found.name):
        return load_corpus(data, found.name)
    with disk_errors(data):
        try:
            data.mkdir(parents=True, exist_ok=True)
            with open_workers(console, processes) as workers:
                name, files = hash_corpus(spec, base, data, workers)
                with only_builder(data, name, console):
                    _build_then_rename(data / name, spec, base, files, workers)
        except KilledWorkerError:
            raise
        except (CorpusError, DocumentError):
            index_path(spec, base, data).unlink(missing_ok=True)
            raise
    return load_corpus(data, name)


def _is_usable(data: Path, name: str) -> bool:
    """Whether a corpus whose inputs are here names them where they are, and as they are."""
    try:
        load_unchanged(data, name)
    except CorpusError:
        return False
    return True


def hash_corpus(spec: DataSpec, base: Path, data: Path, workers: Workers) -> tuple[str, list[InputFile]]:
    """The name of a corpus, and its inputs, which the index has from now on; errors as in `hash_inputs`."""
    files = hash_inputs(spec, base, data, workers)
    before = read_index(spec, base, data)
    name = corpus_name(spec, write_index(spec, base, data, files).digest)
    if before is not None and before.corpus != name:  # what a killed build of other contents left
        discard_part(data, before.corpus)
    return name, files


def part_of(data: Path, name: str) -> Path:
    """Folder of a corpus while it is built."""
    return data / f".{name}.part"


_REMEDIES = {
    errno.ENOSPC: "free disk space and rerun: finished parts are kept",
    errno.EDQUOT: "free disk space and rerun: finished parts are kept",
    errno.EACCES: "make it readable, or choose another folder",
    errno.EPERM: "make it readable, or choose another folder",
    errno.EROFS: "choose another folder",
    errno.ENOENT: "rerun once nothing removes files",
}


@contextmanager
def disk_errors(data: Path) -> Iterator[None]:
    """CorpusError in place of an OSError: a folder or a disk that is not as it should be."""
    try:
        yield
    except OSError as error:
        number = error.errno or errno.ENOSPC  # NumPy's own says only that it could not write all
        remedy = _REMEDIES.get(number, "check the disk, or choose another folder")
        raise CorpusError(f"{error.filename or data}: {os.strerror(number)}; {remedy}") from None


@contextmanager
def only_builder(data: Path, name: str, console: Console) -> Iterator[None]:
    """Wait until no other process is building this corpus."""
    with open(data / f".{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("another process is building this corpus; waiting for it", highlight=False)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def discard_part(data: Path, name: str) -> None:
    """Remove what an unfinished build of this corpus left, unless another process is building it."""
    with open(data / f".{name}.lock", "w") as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(part_of(data, name), ignore_errors=True)


def _build_then_rename(
    folder: Path, spec: DataSpec, base: Path, files: Sequence[InputFile], workers: Workers
) -> None:
    """Build in a folder with another name, and rename it when it is complete."""
    if folder.exists():  # built before, or by another process meanwhile
        if not (folder / "manifest.json").exists():
            raise CorpusError(f"{folder} has no manifest.json; delete the folder and rerun")
        write_text(folder / "inputs.jsonl", "".join(map(_input_line, files)))  # where its files are now
        return
    part = part_of(folder.parent, folder.name)
    part.mkdir(exist_ok=True)
    if not (part / "manifest.json").exists():
        corpus = _build_part(spec, base, part, files, workers)
        write_text(part / "inputs.jsonl", "".join(map(_input_line, files)))
        if corpus.end_of_document is not None:
            lengths = document_lengths(tokens_in(part, corpus, "train"), corpus.end_of_document)
            corpus = corpus.model_copy(update={"document_lengths": lengths})
        if corpus.reading is not None and corpus.reading.curation:
            write_text(part / "curation.html", render_curation(corpus))
        write_json(part / "manifest.json", corpus)
    for name in WORK:
        shutil.rmtree(part / name, ignore_errors=True)
    (part / "work.txt").unlink(missing_ok=True)
    os.rename(part, folder)


def _build_part(
    spec: DataSpec, base: Path, part: Path, files: Sequence[InputFile], workers: Workers
) -> Corpus:
    """Write tokens to the folder `part`, or remove it where the text is refused. What is finished of it stays where a
    process was killed or the disk is full."""
    build_here = build_tokens if isinstance(spec.text, TokenFiles) else build_text
    try:
        try:
            return build_here(spec, base, part, files, workers)
        except OSError:
            check_unchanged(files)
            raise
    except KilledWorkerError:
        raise
    except (CorpusError, DocumentError):
        shutil.rmtree(part)
        raise


def _input_line(file: InputFile) -> str:
    return json.dumps(file._asdict()) + "\n"  # in ASCII: a path may have bytes that are no UTF-8
