"""The corpora of a mix: each source is built as any other text is, with one tokenizer for all of them.

A tokenizer that is trained for a mix is trained on the training splits of all sources: the first documents by hash of
all of them together, so each counts as its text does. It is kept in a folder of its own under `data/`.

Curation may be carried out elsewhere (`runtime.slurm.data_jobs`): its folders are prepared here, and the build finds
its tasks done.
"""

import hashlib
import heapq
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from runtime.data import tokenizer
from runtime.data.build import shards
from runtime.data.build.corpus import build, discard_part, disk_errors, hash_corpus, only_builder, part_of
from runtime.data.build.curation import Curation, check
from runtime.data.build.inputs import hash_inputs, hash_one
from runtime.data.build.text import RUNS, curation_of, discard_other_work, read_text
from runtime.data.build.workers import Workers, open_workers
from runtime.data.corpus import load_sources
from runtime.data.errors import CorpusError, KilledWorkerError
from specs.data import Bbpe, Corpus, DataSpec, FileText, MixText, corpus_name
from specs.data_inputs import InputFile, InputFileError, input_files, read_index, write_index
from specs.document.base import canonical_json
from specs.document.files import DocumentError
from specs.document.write import write_json, write_text
from specs.sources import Sources, find_sources, in_part, tokenizer_index, with_tokenizer


def build_sources(
    spec: DataSpec, base: Path, data: Path, console: Console, processes: int | None = None
) -> Sources:
    """The corpora of this spec under `data`, built where they are missing; errors as in `build`, and CorpusError where
    two sources are one."""
    if not isinstance(spec.text, MixText):
        return Sources({"": build(spec, base, data, console, processes)})
    found = find_sources(spec, base, data)
    if isinstance(found, Sources):
        return load_sources(data, found.ref.corpus)
    _check_files(spec, base, data)
    if isinstance(spec.tokenizer, Bbpe):
        with disk_errors(data), open_workers(console, processes) as workers:
            _train(spec, base, data, workers, console)
    parts = with_tokenizer(spec, base, data)
    assert parts is not None  # the tokenizer is there
    try:
        built = {
            name: _build_part(name, part, base, data, console, processes) for name, part in parts.items()
        }
    except KilledWorkerError:
        raise
    except (CorpusError, DocumentError):
        for part in parts.values():  # those that were handed on and not built
            if (index := read_index(part, base, data)) is not None:
                discard_part(data, index.corpus)
        raise
    _check_different(built)
    sources = Sources(built)
    with disk_errors(data):
        write_json(data / sources.ref.corpus / "manifest.json", sources.manifest)
    return sources


def prepare_curations(spec: DataSpec, base: Path, data: Path, console: Console) -> dict[str, Curation]:
    """What is to be curated by source (under no name where there is no mix), with its folder made: nothing where
    corpora are built, or texts are not curated. All inputs are hashed, and known from now on.

    CorpusError or DocumentError where a text is missing, or datatrove is.
    """
    found: dict[str, Curation] = {}
    with disk_errors(data), open_workers(console) as workers:
        data.mkdir(parents=True, exist_ok=True)
        _check_files(spec, base, data)
        if any(isinstance(part.text, FileText) and part.text.curate for part in spec.parts().values()):
            check()
        parts: Mapping[str, DataSpec] = spec.parts()
        if "" not in parts and isinstance(spec.tokenizer, Bbpe):
            folder, files = _hash_mix(spec, base, data, workers)
            work = part_of(data, folder.name)
            if not (folder / "tokenizer.json").exists():
                with only_builder(data, folder.name, console):
                    found = {
                        name: curation_of(one.text, base, files[name], work / name)
                        for name, one in parts.items()
                        if isinstance(one.text, FileText) and one.text.curate
                    }
                    return _opened(found, [work])
            _write_tokenizer_index(spec, base, data, folder)
            parts = with_tokenizer(spec, base, data) or parts
        for name, part in parts.items():
            corpus, inputs = hash_corpus(part, base, data, workers)
            if isinstance(part.text, FileText) and part.text.curate:
                with only_builder(data, corpus, console):
                    if not (data / corpus).exists():
                        one = curation_of(part.text, base, inputs, part_of(data, corpus))
                        found |= _opened({name: one}, [])
        return found


def _opened(found: dict[str, Curation], above: list[Path]) -> dict[str, Curation]:
    """The same, once their folders are there, and those above them."""
    for folder in [*above, *(one.work.parent for one in found.values())] if found else ():
        folder.mkdir(exist_ok=True)
        discard_other_work(folder)
    return found


def noted_curation(spec: DataSpec, base: Path, data: Path, source: str, work: Path) -> Curation:
    """A curation that was prepared, with its folder. CorpusError where its inputs are no longer known."""
    part = spec.parts()[source]
    known = read_index(part, base, data)
    if known is None or not isinstance(part.text, FileText):
        raise CorpusError(f"the inputs of {work} are no longer known; run isoplan data again")
    return curation_of(part.text, base, known.files.values(), work.parent)


def _build_part(
    name: str, part: DataSpec, base: Path, data: Path, console: Console, processes: int | None
) -> Corpus:
    console.print(f"building source {name}", highlight=False)
    try:
        return build(part, base, data, console, processes)
    except CorpusError as error:
        raise type(error)(f"{name}: {error}") from None


def _check_files(spec: DataSpec, base: Path, data: Path) -> None:
    """CorpusError where a file is in two sources: it would be read in the shares of both."""
    found: dict[str, str] = {}
    for name, part in spec.parts().items():
        try:
            paths = [one.path for one in input_files(part, base, data) if one.role != "tokenizer"]
        except InputFileError as error:
            raise in_part(name, error) from None
        for path in paths:
            other = found.setdefault(os.path.realpath(path), name)
            if other != name:
                raise CorpusError(f"{path} is in the sources {other} and {name}; name it in one of them")


def _check_different(built: Mapping[str, Corpus]) -> None:
    """CorpusError where two sources have the same tokens."""
    found: dict[str, str] = {}
    for name, corpus in built.items():
        other = found.setdefault(corpus.digest, name)
        if other != name:
            raise CorpusError(f"the sources {other} and {name} are the same text; remove one of them")


def _train(spec: DataSpec, base: Path, data: Path, workers: Workers, console: Console) -> None:
    """Train the tokenizer of a mix, unless there is one of the same texts, and write the index that names it. What was
    hashed and read for it is handed on to the sources' corpora. A call that was killed goes on where it was."""
    folder, files = _hash_mix(spec, base, data, workers)
    with only_builder(data, folder.name, console):
        work = part_of(data, folder.name)
        if not (folder / "tokenizer.json").exists():
            work.mkdir(exist_ok=True)
            try:
                discard_other_work(work)
                tokenizer.trained(spec, work, _documents(spec, base, work, files, workers), workers.progress)
            except KilledWorkerError:
                raise
            except (CorpusError, DocumentError):
                shutil.rmtree(work)
                raise
            folder.mkdir(exist_ok=True)
            os.replace(work / "tokenizer.json", folder / "tokenizer.json")
        _write_tokenizer_index(spec, base, data, folder)
        _hand_on(spec, base, data, files, work)
        shutil.rmtree(work, ignore_errors=True)


def _hash_mix(
    spec: DataSpec, base: Path, data: Path, workers: Workers
) -> tuple[Path, dict[str, list[InputFile]]]:
    """The folder of the tokenizer that is trained on the sources, and their inputs; errors as in `hash_inputs`."""
    files = {name: hash_inputs(part, base, data, workers) for name, part in spec.parts().items()}
    digests = {name: write_index(part, base, data, files[name]).digest for name, part in spec.parts().items()}
    parts = {name: part.plain() for name, part in spec.parts().items()}
    key = canonical_json({"parts": parts, "inputs": digests})
    return data / hashlib.sha256(key.encode()).hexdigest()[:16], files


def _write_tokenizer_index(spec: DataSpec, base: Path, data: Path, folder: Path) -> None:
    """Note the folder of the tokenizer that was trained on these sources."""
    write_text(tokenizer_index(spec, base, data), json.dumps({"tokenizer": folder.name}) + "\n")


def _documents(
    spec: DataSpec, base: Path, work: Path, files: Mapping[str, list[InputFile]], workers: Workers
) -> Iterator[bytes]:
    """The documents of all training splits, in the order of their digests."""
    found: list[Iterator[bytes]] = []
    for name, part in spec.parts().items():
        part_work = work / name
        part_work.mkdir(exist_ok=True)
        discard_other_work(part_work)
        runs = part_work / RUNS
        runs.mkdir(exist_ok=True)
        try:
            _, text_bytes = read_text(part, base, runs, files[name], workers)
        except CorpusError as error:
            raise type(error)(f"{name}: {error}") from None
        groups = shards.slot_groups(text_bytes)
        found.append(shards.training_documents(runs, groups, part.held_out_one_in))
    return heapq.merge(*found, key=lambda text: hashlib.sha256(text).digest())


def _hand_on(
    spec: DataSpec, base: Path, data: Path, files: Mapping[str, list[InputFile]], work: Path
) -> None:
    """Give each source's corpus, which has the new tokenizer among its inputs, the digests of its other inputs and the
    work that was done on its text."""
    parts = with_tokenizer(spec, base, data)
    assert parts is not None  # its index was written
    for name, part in parts.items():
        (last,) = [one for one in input_files(part, base, data) if one.role == "tokenizer"]
        inputs = write_index(part, base, data, [*files[name], hash_one(last, lambda done: None)])
        corpus = corpus_name(part, inputs.digest)
        folder = part_of(data, corpus)
        if (work / name).exists() and not (data / corpus).exists() and not folder.exists():
            os.rename(work / name, folder)
