"""A corpus from text: documents are read, sorted by their SHA-256, deduplicated and tokenized, in bounded memory.

The digest also decides which documents are held out. So the result depends on the texts alone, not on file names, the
order of folders or the number of processes, and no text is in both splits. Documents are packed: joined by a NUL byte,
or by the tokenizer's separator.
"""

import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from runtime.data import tokenizer
from runtime.data.build import shards, text_sources
from runtime.data.build.curation import CURATED, Curation, curate
from runtime.data.build.inputs import check_unchanged
from runtime.data.build.shards import TokenizeSummary, TokenizeTask
from runtime.data.build.text_sources import text_parts
from runtime.data.build.workers import Workers
from runtime.data.corpus import file_sha256
from runtime.data.errors import CorpusError
from runtime.data.tokenizer import TokenIdsOf
from specs.data import (
    Bbpe,
    Corpus,
    DataSpec,
    FileText,
    HeldOutChoice,
    Reading,
    Split,
    TokenizerFile,
    corpus_digest,
)
from specs.data_inputs import CURATION_ROLE, InputFile, inputs_of
from specs.humanize import several

RUNS, TOKENS = "runs", "tokens"
WORK = (RUNS, TOKENS, CURATED)
"""Folders of what tasks have finished, which the corpus does not need."""
_COPIED_AT_ONCE = 2**24


def build_text(
    spec: DataSpec, base: Path, part: Path, files: Sequence[InputFile], workers: Workers
) -> Corpus:
    """Write the splits and the tokenizer to the folder `part`; the manifest. What an earlier call has finished there
    is not done again.

    CorpusError or DocumentError where too much of the text is malformed, or too little of it is there.
    """
    discard_other_work(part)
    ids = tokenizer.given(spec, base, part)
    runs, tokens = part / RUNS, part / TOKENS
    for folder in (runs, tokens):
        folder.mkdir(exist_ok=True)
    reading, text_bytes = read_text(spec, base, runs, files, workers)

    groups = shards.slot_groups(text_bytes)
    if ids is None:
        sample = shards.training_documents(runs, groups, spec.held_out_one_in)
        ids = tokenizer.trained(spec, part, sample, workers.progress)
    else:
        there = groups if shards.run_files(runs) else []  # they are gone if a build was killed at its end
        sample = shards.training_documents(runs, there, spec.held_out_one_in)
        tokenizer.check(spec, base, part, sample)
    path = part / "tokenizer.json"
    tasks = [
        TokenizeTask(
            runs, first, last, spec.held_out_one_in, path if path.exists() else None, ids, tokens / f"{first}"
        )
        for first, last in groups
    ]
    done = workers.map("tokenizing", text_bytes, shards.tokenize, tasks)
    documents = [sum(one.documents[split] for one in done) for split in range(2)]
    _check_splits(spec, documents)
    _check_tokens(spec, done)
    for file in runs.iterdir():
        if (
            file.suffix != ".json"
        ):  # the summaries stay: a build that is killed from here on does not read again
            file.unlink()

    item_bytes = np.dtype(ids.token_type).itemsize
    train, held_out = (_join(split, tasks, done, item_bytes, part) for split in range(2))
    tokenizer_sha256 = file_sha256(path) if path.exists() else None
    assert held_out.text_bytes is not None
    return Corpus(
        spec=spec,
        inputs=inputs_of(files),
        reading=reading.model_copy(update={"duplicates": reading.duplicates - sum(documents)}),
        digest=corpus_digest(train.digest, held_out.digest, tokenizer_sha256),
        vocab=ids.vocab,
        token_type=ids.token_type,
        end_of_document=ids.separator,
        train=train,
        held_out=held_out,
        held_out_choices=_choices(spec, done),
        tokenizer_sha256=tokenizer_sha256,
        bytes_per_token=held_out.text_bytes / held_out.tokens,
        notes=tuple(_notes(spec, ids, part, done)),
    )


def read_text(
    spec: DataSpec, base: Path, runs: Path, files: Sequence[InputFile], workers: Workers
) -> tuple[Reading, int]:
    """Write the documents to sorted runs in the folder `runs`; what was read, with all documents as `duplicates`, and
    the bytes of their text."""
    paths, curated = [Path(file.path) for file in _texts(files)], None
    if isinstance(spec.text, FileText) and spec.text.curate:
        curated = curate(curation_of(spec.text, base, files, runs.parent), workers)
        paths, left = curated.files, FileText(source="files", paths=spec.text.paths)
        spec = spec.model_copy(update={"text": left})
    parts = text_parts(spec.text, paths)
    tasks = [shards.ReadTask(spec, some, runs / f"{number:06}") for number, some in enumerate(parts)]
    read = workers.map("reading text", sum(task.bytes for task in tasks), shards.read, tasks)
    check_unchanged(files)
    counts, text_bytes = shards.total(read), sum(one.text_bytes for one in read)
    counts.check(shards.malformed_allowed(spec))
    documents = counts.records - counts.empty - counts.malformed
    if curated is not None:
        curated.read.empty += counts.empty
        counts = curated.read
    reading = Reading(
        records=counts.records,
        empty=counts.empty,
        duplicates=documents,
        malformed=counts.malformed,
        examples=tuple(shards.example_text(one, base) for one in counts.examples[:3]),
        curation=() if curated is None else curated.stages,
    )
    return reading, text_bytes


def curation_of(text: FileText, base: Path, files: Iterable[InputFile], part: Path) -> Curation:
    """The curation of a text, of which these are all inputs, in the folder `part` of its build."""
    by_content = sorted(
        _texts(files), key=lambda file: (file.sha256, file.path)
    )  # whatever the files are called
    return Curation(text, base, tuple(Path(file.path) for file in by_content), part / CURATED)


def _texts(files: Iterable[InputFile]) -> list[InputFile]:
    return [file for file in files if is_text(file.role)]


def is_text(role: str) -> bool:
    """Whether an input of this role is text."""
    return role != "tokenizer" and not role.startswith(CURATION_ROLE)


def _notes(spec: DataSpec, ids: TokenIdsOf, part: Path, done: Sequence[TokenizeSummary]) -> Iterator[str]:
    if isinstance(spec.tokenizer, Bbpe) and ids.vocab < spec.tokenizer.vocab:
        yield (
            f"the tokenizer has {ids.vocab:,} tokens, not {spec.tokenizer.vocab:,}: the text has no more pairs to "
            f"merge; models get {max(ids.vocab, spec.reserved_rows):,} rows"
        )
    if isinstance(spec.tokenizer, TokenizerFile) and spec.tokenizer.end_of_document is None:
        taken, *others = tokenizer.usual_ends(tokenizer.load(part / "tokenizer.json"))
        if others:
            yield (
                f"documents are joined by {taken}; the tokenizer also has {', '.join(others)}: "
                "name one in data.tokenizer.end_of_document"
            )
    with_separator, without, decoded, altered = (
        sum(getattr(one, name) for one in done)
        for name in ("with_separator", "without_tokens", "decoded", "altered")
    )
    if with_separator:
        yield (
            f"{several(with_separator, 'document')} with token {ids.separator} in the text, which stands between "
            "documents: a model sees each as several"
        )
    if without:
        yield f"{several(without, 'document')} without a token: the tokenizer leaves out all of the text"
    if altered:
        yield (
            f"of {several(decoded, 'document')} that were encoded and decoded, {altered:,} came back as other text: "
            "the tokenizer changes it, and bytes are counted before that"
        )


def discard_other_work(part: Path) -> None:
    """Start anew where another version, which cuts the work into other tasks, began it."""
    sizes = text_sources.PART_BYTES, text_sources.CURATION_TASKS, shards.SHARD_BYTES
    ours, note = f"isoplan {importlib.metadata.version('isoplan')}, tasks of {sizes}", part / "work.txt"
    if not note.exists() or note.read_text() != ours:
        for path in part.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        note.write_text(ours)


def _check_splits(spec: DataSpec, documents: Sequence[int]) -> None:
    """CorpusError where a split has no document."""
    if all(documents):
        return
    what = (
        f"of {sum(documents)} different documents, {documents[1]} are held out (one in {spec.held_out_one_in}), "
        "and both splits need at least one; "
    )
    remedy = "add documents or change held_out_one_in"
    if sum(documents) == 1 and isinstance(spec.text, FileText):
        remedy = (
            "add text: one .txt file alone is cut into blocks of 4 KiB or more, others are documents whole"
        )
    raise CorpusError(what + remedy)


def _check_tokens(spec: DataSpec, done: Sequence[TokenizeSummary]) -> None:
    """CorpusError where the tokenizer makes nothing of a whole split."""
    tokens, documents = (
        [sum(getattr(one, name)[split] for one in done) for split in range(2)]
        for name in ("tokens", "documents")
    )
    if any(count == separators for count, separators in zip(tokens, documents, strict=True)):
        raise CorpusError(
            "the tokenizer makes no token of the text, which it leaves out; give one that was made for it"
        )


def _join(
    split: int, tasks: Sequence[TokenizeTask], done: Sequence[TokenizeSummary], item_bytes: int, part: Path
) -> Split:
    """Write a split's file from all tasks' tokens, without the separator before the first document."""
    name = shards.SPLITS[split]
    digest, skip = hashlib.sha256(), item_bytes
    with open(part / f"{name}.bin", "wb") as joined:
        for task, summary in zip(tasks, done, strict=True):
            with open(f"{task.stem}.{name}", "rb") as file:
                if os.fstat(file.fileno()).st_size != summary.tokens[split] * item_bytes:
                    raise CorpusError(f"{file.name} is cut off; delete {part} and rerun")
                if summary.tokens[split]:
                    file.seek(skip)
                    skip = 0
                while block := file.read(_COPIED_AT_ONCE):
                    joined.write(block)
                    digest.update(block)
        joined.flush()
        os.fsync(joined.fileno())
    documents, text_bytes, tokens = (
        sum(getattr(one, field)[split] for one in done) for field in ("documents", "text_bytes", "tokens")
    )
    return Split(
        documents=documents,
        text_bytes=text_bytes + documents - 1,
        tokens=tokens - 1,
        digest=digest.hexdigest(),
    )


def _choices(spec: DataSpec, done: Sequence[TokenizeSummary]) -> tuple[HeldOutChoice, ...]:
    """What smaller values of `held_out_one_in` would hold out."""
    tokens = np.sum([one.choices for one in done], axis=0).tolist()
    return tuple(
        HeldOutChoice(one_in=one_in, tokens=count)
        for one_in, count in zip(shards.HELD_OUT_CHOICES, tokens, strict=True)
        if one_in < spec.held_out_one_in
    )
