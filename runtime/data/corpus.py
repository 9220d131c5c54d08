"""Text to tokens: a DataSpec is tokenized into `data/<fingerprint>/` once, and memory-mapped from then on.

    manifest.json    specs.data.Corpus: its DataSpec, counts and digests
    train.bin        tokens of the training split (uint8 for bytes, else uint16 or uint32 by the vocabulary)
    held_out.bin     tokens of the held-out split
    tokenizer.json   the trained tokenizer; absent for bytes

Documents are deduplicated and sorted by the SHA-256 of their text, which also decides which are held out. So the result
depends on the texts alone, not on file names or the order of folders, and no text is in both splits. Documents are
packed: joined by a NUL byte, or by the tokenizer's separator. The folder is written under another name and renamed, so
it is complete or absent.
"""

import fcntl
import hashlib
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from runtime.data.text_sources import CorpusError, TextDocument, documents
from specs.data import Bbpe, Corpus, DataSpec, DeclaredText, Split
from specs.document.base import canonical_json
from specs.document.files import load
from specs.document.write import write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SEPARATOR = "<|document|>"
"""The BBPE token between documents; text that spells it is encoded as ordinary text."""

TOKENIZER_SAMPLE_BYTES = 32 * 2**20
"""Text that a BBPE is trained on: the first documents by hash, a random sample. It takes 10 s on two cores, and a
tokenizer from it needs 0.1 % fewer tokens than one from a quarter of it (our measurement)."""

_BATCH_BYTES = 4 * 2**20
"""Text that is tokenized between two updates of the progress bar."""


@dataclass(frozen=True)
class _Spooled:
    """A document in the spool file."""

    digest: bytes
    start: int
    length: int

    def held_out(self, one_in: int) -> bool:
        """Whether it is in the held-out split; decided by other bits of the digest than the sort order."""
        return int.from_bytes(self.digest[-8:], "big") % one_in == 0


def build(spec: DataSpec, base: Path, data: Path, console: Console) -> Corpus:
    """The corpus of this spec under `data`, built where it is missing; paths are relative to the folder `base`.

    CorpusError or DocumentError where the text is missing, unreadable, or too little for both splits.
    """
    if isinstance(spec.text, DeclaredText):
        raise CorpusError(
            "data.text names no files to read (source: declared); write source: files or source: installed"
        )
    folder = data / spec.fingerprint()
    try:
        if not folder.exists():
            with _only_builder(data, folder.name):
                _build_then_rename(folder, spec, base, console)
    except OSError as error:
        raise CorpusError(
            f"{error.filename or data}: {error.strerror}; free disk space or choose another folder"
        ) from None
    return load_corpus(data, folder.name)


def load_corpus(data: Path, fingerprint: str) -> Corpus:
    """The manifest of a built corpus, its files' sizes checked; CorpusError where one is missing or truncated."""
    folder = data / fingerprint
    if not (folder / "manifest.json").exists():
        raise CorpusError(f"there is no corpus {fingerprint} under {data}; run: isoplan data BUDGET")
    corpus = load(folder / "manifest.json", Corpus)
    for name, split in (("train", corpus.train), ("held_out", corpus.held_out)):
        path = folder / f"{name}.bin"
        expected = split.tokens * _token_type(corpus.spec).itemsize
        if not path.exists() or path.stat().st_size != expected:
            raise CorpusError(
                f"{path} does not have the {expected} bytes that its manifest requires; delete {folder} and rerun"
            )
    return corpus


def verify(data: Path, fingerprint: str) -> Corpus:
    """The manifest of a built corpus, after its files are verified by their digests; CorpusError where one differs."""
    corpus = load_corpus(data, fingerprint)
    folder = data / fingerprint
    expected = {"train.bin": corpus.train.digest, "held_out.bin": corpus.held_out.digest}
    if corpus.tokenizer_sha256:
        expected["tokenizer.json"] = corpus.tokenizer_sha256
    for name, digest in expected.items():
        if _file_sha256(folder / name) != digest:
            raise CorpusError(
                f"{folder / name} is damaged: its digest differs from the manifest's; delete {folder} and rerun"
            )
    if corpus.digest != _identity(corpus.train.digest, corpus.held_out.digest, corpus.tokenizer_sha256):
        raise CorpusError(
            f"the digest in {folder / 'manifest.json'} does not match its files' digests; delete {folder} and rerun"
        )
    return corpus


def tokens(data: Path, corpus: Corpus, split: Literal["train", "held_out"]) -> NDArray[Any]:
    """The split's tokens, memory-mapped and read-only; shape (tokens,), of the corpus' own integer type."""
    path = data / corpus.spec.fingerprint() / f"{split}.bin"
    return np.asarray(np.memmap(path, dtype=_token_type(corpus.spec), mode="r"))


def _token_type(spec: DataSpec) -> np.dtype[Any]:
    sizes = ((2**8, "u1"), (2**16, "<u2"))
    return np.dtype(next((kind for most, kind in sizes if spec.vocab <= most), "<u4"))


@contextmanager
def _only_builder(data: Path, name: str) -> Iterator[None]:
    """Wait until no other process is building this corpus."""
    data.mkdir(parents=True, exist_ok=True)
    with open(data / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_then_rename(folder: Path, spec: DataSpec, base: Path, console: Console) -> None:
    """Build in a folder with another name, and rename it when it is complete."""
    if folder.exists():
        return  # another process built it meanwhile
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    _build_in(part, spec, base, console)
    os.rename(part, folder)


def _build_in(part: Path, spec: DataSpec, base: Path, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        spooled = _spool(part / "text", documents(spec, base), progress)
        train = [one for one in spooled if not one.held_out(spec.held_out_one_in)]
        held_out = [one for one in spooled if one.held_out(spec.held_out_one_in)]
        if not train or not held_out:
            raise CorpusError(
                f"of {len(spooled)} different documents, {len(held_out)} are held out (one in {spec.held_out_one_in}), "
                "and both splits need at least one; add documents or change held_out_one_in"
            )
        with open(part / "text", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            tokenizer = _train_tokenizer(part, spec, text, train, progress)
            splits = [
                _write_split(part / f"{name}.bin", spec, tokenizer, text, chosen, progress)
                for name, chosen in (("train", train), ("held_out", held_out))
            ]
    (part / "text").unlink()
    tokenizer_sha256 = _file_sha256(part / "tokenizer.json") if tokenizer else None
    digest = _identity(splits[0].digest, splits[1].digest, tokenizer_sha256)
    corpus = Corpus(
        spec=spec, digest=digest, train=splits[0], held_out=splits[1], tokenizer_sha256=tokenizer_sha256
    )
    write_json(part / "manifest.json", corpus)


def _spool(path: Path, found: Iterator[TextDocument], progress: Progress) -> list[_Spooled]:
    """Copy the documents to one file without duplicates; their positions, sorted by hash."""
    task = progress.add_task("reading text", total=None)
    spooled: dict[bytes, _Spooled] = {}
    shown = end = 0
    with open(path, "wb") as file:
        for document in found:
            if document.read_bytes - shown > _BATCH_BYTES:
                shown = document.read_bytes
                progress.update(task, completed=shown, total=document.total_bytes)
            digest = hashlib.sha256(document.text).digest()
            if digest not in spooled:
                spooled[digest] = _Spooled(digest, end, len(document.text))
                end += file.write(document.text)
    if not spooled:
        raise CorpusError("no documents were found; check the paths and packages of data.text")
    progress.update(task, completed=1, total=1)
    return [spooled[digest] for digest in sorted(spooled)]


def _train_tokenizer(
    part: Path, spec: DataSpec, text: mmap.mmap, train: list[_Spooled], progress: Progress
) -> "Tokenizer | None":
    """Train a byte-level BPE on the training split's first documents; written to tokenizer.json. None for bytes."""
    if not isinstance(spec.tokenizer, Bbpe):
        return None
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    task = progress.add_task("training the tokenizer", total=None)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.tokenizer.vocab,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(text, train), trainer)
    tokenizer.encode_special_tokens = True  # text that spells the separator is only text
    tokenizer.save(str(part / "tokenizer.json"))
    progress.update(task, completed=1, total=1)
    return tokenizer


def _sample(text: mmap.mmap, train: list[_Spooled]) -> Iterator[str]:
    seen = 0
    for one in train:
        if seen >= TOKENIZER_SAMPLE_BYTES:
            return
        seen += one.length
        yield text[one.start : one.start + one.length].decode()


def _write_split(
    path: Path,
    spec: DataSpec,
    tokenizer: "Tokenizer | None",
    text: mmap.mmap,
    chosen: list[_Spooled],
    progress: Progress,
) -> Split:
    """Write the documents' tokens, with a separator between documents."""
    text_bytes = sum(one.length for one in chosen) + len(chosen) - 1
    task = progress.add_task(f"writing {path.name}", total=text_bytes)
    digest, count, first = hashlib.sha256(), 0, True
    with open(path, "wb") as file:
        for batch in _batches(chosen):
            texts = [text[one.start : one.start + one.length] for one in batch]
            block = _encode(spec, tokenizer, texts)
            block = block[1:] if first else block
            first = False
            file.write(block.data)
            digest.update(block.data)
            count += len(block)
            progress.advance(task, sum(map(len, texts)))
        file.flush()
        os.fsync(file.fileno())
    progress.update(task, completed=text_bytes)
    return Split(documents=len(chosen), text_bytes=text_bytes, tokens=count, digest=digest.hexdigest())


def _batches(chosen: list[_Spooled]) -> Iterator[list[_Spooled]]:
    batch: list[_Spooled] = []
    size = 0
    for one in chosen:
        batch.append(one)
        size += one.length
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(spec: DataSpec, tokenizer: "Tokenizer | None", texts: list[bytes]) -> NDArray[Any]:
    """The texts' tokens, a separator before each; shape (tokens,)."""
    if tokenizer is None:
        return np.frombuffer(b"\0" + b"\0".join(texts), dtype=np.uint8)
    separator = np.array([tokenizer.token_to_id(SEPARATOR)])
    parts = []
    for encoding in tokenizer.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False):
        parts += [separator, np.array(encoding.ids, dtype=np.int64)]
    return np.concatenate(parts).astype(_token_type(spec))


def _identity(train: str, held_out: str, tokenizer: str | None) -> str:
    """The digest that identifies the data."""
    parts = {"train": train, "held_out": held_out, "tokenizer": tokenizer}
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
