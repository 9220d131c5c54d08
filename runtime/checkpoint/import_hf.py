"""Weights from outside, to start a run from: copied into the workspace once, and named by their values.

The digest is over the tensors' names, shapes and values in fp32. It is that of a checkpoint with the same weights, so a
run started from an exported fp32 run says which run that was. RunSpec.parent holds it, since it changes the numbers.
"""

import json
import os
import shutil
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from model import hf
from runtime.checkpoint.export_hf import bar, counted, tokenizer_of
from runtime.checkpoint.format import values_sha256
from runtime.checkpoint.imported_weights import (
    MANIFEST,
    ImportedWeights,
    ImportedWeightsManifest,
    place,
    stored,
)
from runtime.data.corpus import load_corpus
from specs.document.files import DocumentError, locate
from specs.document.write import sync_folder, write_json
from specs.run import Imported, RunSpec

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def import_folder(source: Path, data: Path, console: Console) -> ImportedWeights:
    """Check a Hugging Face Llama and copy it under `data`; what is there already is left alone.

    DocumentError for what our model does not compute, and for a folder that is not whole.
    """
    model = hf.read_spec(source)
    hf.open_weights(source, model)
    weights = data / "weights"
    _check_room(weights, source)
    part = weights / f".{os.getpid()}.part"
    part.mkdir(parents=True)
    try:
        with bar(console) as progress:
            _copy(source, part, progress)
            opened = hf.open_weights(part, model)  # the copy, so that what is named is what is kept
            named = ((name, opened.whole(name)) for name in sorted(opened.files))
            digest = values_sha256(counted(named, progress, "taking their digest", model.params))
        sizes = {path.name: path.stat().st_size for path in hf.files(part)}
        found = ImportedWeightsManifest(sha256=digest, model=model, files=sizes)
        write_json(part / MANIFEST, found)
        final = place(data, digest)
        if not final.exists():
            os.rename(part, final)
            sync_folder(weights)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return stored(data, digest)


def run_from(stored: ImportedWeights, path: Path, run: RunSpec, data: Path) -> RunSpec:
    """The run of a document as it starts from these weights: their shape with the run's own context."""
    context, most = run.model.context, stored.manifest.model.context
    if context > most:
        what = f"the weights were made for at most {most} positions, not {context}"
        raise locate(path, "model.context", what, f"write a context of at most {most}")
    _check_tokenizer(stored, path, run, data)
    model = stored.manifest.model.model_copy(update={"context": context})
    started = run.model_copy(update={"model": model, "parent": Imported(sha256=stored.manifest.sha256)})
    return RunSpec.model_validate_json(started.canonical_json())


def _check_tokenizer(stored: ImportedWeights, path: Path, run: RunSpec, data: Path) -> None:
    """DocumentError where the corpus and the weights came with tokenizers of different vocabularies."""
    theirs = stored.folder / "tokenizer.json"
    if not theirs.exists():
        return
    corpus = load_corpus(data, run.data.corpus)
    ours = json.loads(tokenizer_of(corpus, data).to_str())
    if ours["model"]["vocab"] != json.loads(theirs.read_text(encoding="utf-8")).get("model", {}).get("vocab"):
        what = "the corpus was not made with the tokenizer of these weights, whose ids mean other text"
        raise locate(path, "data.corpus", what, "name a corpus of that tokenizer")


def _check_room(weights: Path, source: Path) -> None:
    there = next(folder for folder in (weights, *weights.absolute().parents) if folder.exists())
    needed, free = sum(path.stat().st_size for path in hf.files(source)), shutil.disk_usage(there).free
    if needed > free:
        what = f"the weights need {needed / 2**30:.3g} GiB and {free / 2**30:.3g} GiB are free"
        raise DocumentError(there, 1, 1, what, "make room")


def _copy(source: Path, part: Path, progress: Progress) -> None:
    """The files that count, each durable on return."""
    others = ("config.json", "model.safetensors.index.json", *_TOKENIZER_FILES)
    paths = [*hf.files(source), *(source / name for name in others if (source / name).exists())]
    for path in progress.track(paths, description="copying weights"):
        shutil.copyfile(path, part / path.name)
        handle = os.open(part / path.name, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
