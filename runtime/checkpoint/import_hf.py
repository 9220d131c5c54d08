"""Import Hugging Face weights to start a run from: copied into the workspace once, and named by their digest.

The digest covers the tensors' names, shapes and values in fp32. A checkpoint with the same weights has the same digest,
so a run that starts from an exported fp32 run names its origin. RunSpec.parent holds it, since it changes the numbers.
"""

import json
import os
import shutil
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from model import hf
from runtime.checkpoint.export_hf import has_tokenizer, load_tokenizer, progress_bar, track_elements
from runtime.checkpoint.format import values_sha256
from runtime.checkpoint.imported_weights import (
    MANIFEST,
    ImportedWeights,
    ImportedWeightsManifest,
    find_imported_weights,
    weights_folder,
)
from runtime.data.corpus import load_sources
from specs.document.files import DocumentError, locate
from specs.document.write import fsync_path, write_json
from specs.run import Imported, RunSpec

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def import_weights(source: Path, data: Path, console: Console) -> ImportedWeights:
    """Check a Hugging Face Llama and copy it under `data`, unless it is there already.

    DocumentError for a model that ours cannot represent, and for an incomplete folder.
    """
    model = hf.read_spec(source)
    hf.open_weights(source, model)
    weights = data / "weights"
    _check_disk_space(weights, source)
    part = weights / f".{os.getpid()}.part"
    part.mkdir(parents=True)
    try:
        with progress_bar(console) as progress:
            _copy(source, part, progress)
            opened = hf.open_weights(part, model)  # the copy: the digest is of the stored files
            named = ((name, opened.whole(name)) for name in sorted(opened.files))
            digest = values_sha256(track_elements(named, progress, "hashing weights", model.params))
        sizes = {path.name: path.stat().st_size for path in hf.files(part)}
        found = ImportedWeightsManifest(sha256=digest, model=model, files=sizes)
        write_json(part / MANIFEST, found)
        final = weights_folder(data, digest)
        if not final.exists():
            os.rename(part, final)
            fsync_path(weights)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return find_imported_weights(data, digest)


def run_from(stored: ImportedWeights, path: Path, run: RunSpec, data: Path) -> RunSpec:
    """The run started from these weights: with their model shape and the run's own context."""
    context, longest = run.model.context, stored.manifest.model.context
    if context > longest:
        what = f"the weights support at most {longest} positions, not {context}"
        raise locate(path, "model.context", what, f"write a context of at most {longest}")
    _check_tokenizer(stored, path, run, data)
    own = {"context": context, "mean_attended_tokens": run.model.mean_attended_tokens}
    model = stored.manifest.model.model_copy(update=own)
    started = run.model_copy(update={"model": model, "parent": Imported(sha256=stored.manifest.sha256)})
    return RunSpec.model_validate_json(started.canonical_json())


def _check_tokenizer(stored: ImportedWeights, path: Path, run: RunSpec, data: Path) -> None:
    """DocumentError where the corpus and the weights have different tokenizers."""
    theirs = stored.folder / "tokenizer.json"
    if not theirs.exists():
        return
    corpus = load_sources(data, run.data.corpus).any
    if not has_tokenizer(corpus):
        return
    ours = json.loads(load_tokenizer(corpus, data).to_str())
    if ours["model"]["vocab"] != json.loads(theirs.read_text(encoding="utf-8")).get("model", {}).get("vocab"):
        what = "the corpus has another tokenizer than these weights, so its token ids mean other text"
        raise locate(path, "data.corpus", what, "name a corpus with the weights' tokenizer")


def _check_disk_space(weights: Path, source: Path) -> None:
    existing = next(folder for folder in (weights, *weights.absolute().parents) if folder.exists())
    needed, free = sum(path.stat().st_size for path in hf.files(source)), shutil.disk_usage(existing).free
    if needed > free:
        what = f"the weights need {needed / 2**30:.3g} GiB, but only {free / 2**30:.3g} GiB are free"
        raise DocumentError(existing, 1, 1, what, "free disk space")


def _copy(source: Path, part: Path, progress: Progress) -> None:
    """Copy the weights, config and tokenizer files; on disk (fsync) on return."""
    names = ("config.json", "model.safetensors.index.json", *_TOKENIZER_FILES)
    paths = [*hf.files(source), *(source / name for name in names if (source / name).exists())]
    for path in progress.track(paths, description="copying weights"):
        shutil.copyfile(path, part / path.name)
        fsync_path(part / path.name)
