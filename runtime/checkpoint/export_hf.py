"""Export a run's checkpoint to a folder that `transformers` loads: `AutoModelForCausalLM` and `AutoTokenizer`.

    exports/<fingerprint>/step-00001000/
      config.json, model*.safetensors      the weights in the run's precision (model/hf.py)
      tokenizer.json, tokenizer_config.json  the corpus' tokenizer: the token ids of training
      generation_config.json               ids that are never generated, where rows of the model have no token
      isoplan.json                         run, step, and the digest of the fp32 weights

The folder is written under another name and renamed, so it is complete or absent. Its content depends on the run and
the step alone, so an existing export is not written again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from model import hf
from runtime.checkpoint.format import CheckpointError, find_latest_intact, hash_each, verify, weights
from runtime.data import tokenizer
from runtime.data.corpus import load_sources
from runtime.run_folder.folder import RunFolder, checkpoint_name, list_checkpoints, step_of
from specs.data import Corpus, TokenIds, TokenizerFile
from specs.document.base import Sha256, Spec
from specs.document.files import DocumentError
from specs.document.write import fsync_path, write_json, write_text
from specs.run import RunSpec
from specs.tokenizer_file import SEPARATOR

_WEIGHT_BYTES = {"bf16": 2, "fp32": 4}
"""Bytes of one exported weight."""


class Export(Spec):
    """`isoplan.json` of an export."""

    kind: Literal["export"] = "export"
    """Selects this document."""
    run: RunSpec
    """The exported run."""
    step: int = Field(ge=1)
    """Finished steps of that run."""
    weights_sha256: Sha256
    """Digest of the fp32 weights, as in the run's End record; a bf16 run's weights are exported in bf16."""


def export(folder: RunFolder, data: Path, step: int | None, out: Path | None, console: Console) -> Path:
    """Export the checkpoint of this step, or the latest intact one where it is None; the folder.

    DocumentError, CheckpointError or CorpusError where a file is missing, damaged, or already there.
    """
    run = folder.run()
    corpus = load_sources(data, run.data.corpus).any
    checkpoint = _checkpoint(folder, run, step)
    exported_step = step_of(checkpoint)
    final = out or Path("exports") / run.fingerprint() / checkpoint.name
    if final.exists():
        _check_existing(final, run, exported_step)
        return final
    _check_disk_space(final, run)
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        if has_tokenizer(corpus):
            _write_tokenizer(part, data, corpus, run.model.context)
        _write_weights(part, folder, run, checkpoint, corpus.end_of_document, console)
        _write_generation(part, data, corpus, run.model.vocab, console)
        os.rename(part, final)
        fsync_path(final.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return final


def load_tokenizer(corpus: Corpus, data: Path) -> Tokenizer:
    """The corpus' tokenizer; for bytes, one whose token ids are the UTF-8 bytes of the text.

    Ids alone have none: callers ask `has_tokenizer` first.
    """
    if corpus.tokenizer_sha256 is not None:
        return tokenizer.load(data / corpus.name / "tokenizer.json")
    characters = _byte_characters()
    of_bytes = Tokenizer(models.BPE(vocab={characters[byte]: byte for byte in range(256)}, merges=[]))
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    of_bytes.decoder = decoders.ByteLevel()
    return of_bytes


def has_tokenizer(corpus: Corpus) -> bool:
    """Whether anything turns the corpus' ids into text."""
    return not isinstance(corpus.spec.tokenizer, TokenIds)


def progress_bar(console: Console) -> Progress:
    """A progress bar that disappears when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def track_elements(
    named: Iterable[tuple[str, Tensor]], progress: Progress, what: str, params: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the same weights, and show their elements in a progress bar."""
    task = progress.add_task(what, total=params)
    for name, whole in named:
        yield name, whole
        progress.advance(task, whole.numel())


def _byte_characters() -> dict[int, str]:
    """The character of each byte in byte-level BPE: GPT-2's table (openai/gpt-2, src/encoder.py, bytes_to_unicode).

    Printable Latin-1 bytes stand for themselves; the others are numbered from U+0100 on.
    """
    printing = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printing]
    return {byte: chr(byte) for byte in printing} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _checkpoint(folder: RunFolder, run: RunSpec, step: int | None) -> Path:
    """The checkpoint to export, verified by its digests."""
    if step is not None:
        path = folder.checkpoints / checkpoint_name(step)
        if not path.is_dir():
            steps = ", ".join(str(step_of(one)) for one in reversed(list_checkpoints(folder.checkpoints)))
            what = f"there is no checkpoint of step {step}; its checkpoints: {steps or 'none'}"
            raise DocumentError(folder.checkpoints, 1, 1, what, "give one of these as --step")
        verify(path, run)
        return path
    latest, problems = find_latest_intact(folder.checkpoints, run, folder.skipped())
    end = folder.end()
    if end is not None and (latest is None or step_of(latest) != end.step):
        what = "the checkpoint of the final weights is missing"
        if problems:
            what = f"the checkpoint of the final weights is damaged: {problems[0]}"
        write = f"give an earlier --step, or rerun the last steps after: isoplan checkpoints {folder.path} --prune"
        raise DocumentError(folder.checkpoints, 1, 1, what, write)
    if latest is None:
        what = problems[0] if problems else "this run has no checkpoint yet"
        raise DocumentError(folder.checkpoints, 1, 1, what, "train the run further, then export again")
    return latest


def _check_existing(final: Path, run: RunSpec, step: int) -> None:
    """DocumentError unless the folder is the export of this run and step."""
    try:
        existing = Export.model_validate_json((final / "isoplan.json").read_bytes())
    except (OSError, ValidationError):
        existing = None
    if existing is None or existing.run != run or existing.step != step:
        what = "this folder exists and is not the export of this run and step"
        raise DocumentError(final, 1, 1, what, "give another folder as --out")


def _check_disk_space(final: Path, run: RunSpec) -> None:
    folder = next(parent for parent in final.absolute().parents if parent.exists())
    needed, free = run.model.params * _WEIGHT_BYTES[run.precision], shutil.disk_usage(folder).free
    if needed > free:
        what = f"the weights need {needed / 2**30:.3g} GiB, but only {free / 2**30:.3g} GiB are free"
        raise DocumentError(folder, 1, 1, what, "free disk space, or give a folder on another disk as --out")


def _write_tokenizer(part: Path, data: Path, corpus: Corpus, context: int) -> None:
    """Write tokenizer.json and tokenizer_config.json; a tokenizer that existed before is written as it was."""
    loaded = load_tokenizer(corpus, data)
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    separator = None if corpus.end_of_document is None else loaded.id_to_token(corpus.end_of_document)
    if separator == SEPARATOR:
        # Text that spells the separator is only text, as it was in training.
        config |= {"bos_token": SEPARATOR, "eos_token": SEPARATOR, "split_special_tokens": True}
    elif isinstance(corpus.spec.tokenizer, TokenizerFile) and separator is not None:
        config |= {"eos_token": separator}
    if corpus.tokenizer_sha256 is not None:
        shutil.copyfile(data / corpus.name / "tokenizer.json", part / "tokenizer.json")
        fsync_path(part / "tokenizer.json")
    else:
        write_text(part / "tokenizer.json", loaded.to_str(pretty=True) + "\n")
    write_text(part / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def _write_generation(part: Path, data: Path, corpus: Corpus, rows: int, console: Console) -> None:
    """Write generation_config.json where rows of the model have no token: what nobody trained is not generated."""
    tokens = (
        set(load_tokenizer(corpus, data).get_vocab(with_added_tokens=True).values())
        if has_tokenizer(corpus)
        else set(range(corpus.vocab))
    )
    suppressed = [row for row in range(rows) if row not in tokens]
    if not suppressed:
        return
    config = {
        "bos_token_id": corpus.end_of_document,
        "eos_token_id": corpus.end_of_document,
        "suppress_tokens": suppressed,
    }
    write_text(part / "generation_config.json", json.dumps(config) + "\n")
    console.print(
        f"{len(suppressed):,} of the model's {rows:,} rows have no token; generation_config.json suppresses them",
        soft_wrap=True,
        highlight=False,
    )


def _write_weights(
    part: Path, folder: RunFolder, run: RunSpec, checkpoint: Path, separator: int | None, console: Console
) -> None:
    digest, step = hashlib.sha256(), step_of(checkpoint)
    with progress_bar(console) as progress:
        named = track_elements(weights(checkpoint), progress, "writing weights", run.model.params)
        hf.write(part, run.model, run.precision, separator, hash_each(named, digest))
    end = folder.end()
    if end is not None and end.step == step and end.weights_sha256 != digest.hexdigest():
        raise CheckpointError(
            f"{checkpoint} does not hold the final weights: its digest differs from the run's End record"
        )
    write_json(part / "isoplan.json", Export(run=run, step=step, weights_sha256=digest.hexdigest()))
