"""A run's checkpoint as a folder that `transformers` loads: `AutoModelForCausalLM` and `AutoTokenizer`.

    exports/<fingerprint>/step-00001000/
      config.json, model*.safetensors      the weights in the run's precision (model/hf.py)
      tokenizer.json, tokenizer_config.json  the corpus' tokenizer: the same ids as in training
      isoplan.json                         which run and step this is, and the digest of its fp32 weights

The folder is written aside and renamed: whole or absent. What it holds depends on the run and the step alone, so it is
written once.
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
from runtime.checkpoint.format import CheckpointError, find_whole, hashed, verify, weights
from runtime.data.corpus import SEPARATOR, load_corpus
from runtime.run_folder.folder import RunFolder, folder_name, found, step_of
from specs.data import Bbpe, Corpus
from specs.document.base import Sha256, Spec
from specs.document.files import DocumentError
from specs.document.write import sync_folder, write_json, write_text
from specs.run import RunSpec

_BYTES_OF = {"bf16": 2, "fp32": 4}
"""Of one exported weight."""


class Export(Spec):
    """`isoplan.json` of an exported folder."""

    kind: Literal["export"] = "export"
    """Selects this document."""
    run: RunSpec
    """The run it is of."""
    step: int = Field(ge=1)
    """Finished steps of that run."""
    weights_sha256: Sha256
    """Digest of the fp32 weights, as at the end of the run's record; those of a bf16 run are rounded here."""


def export(folder: RunFolder, data: Path, step: int | None, out: Path | None, console: Console) -> Path:
    """Write the run's weights after `step` steps, the newest whole checkpoint's where it is None; the folder.

    DocumentError, CheckpointError or CorpusError where something is missing, damaged or in the way.
    """
    run = folder.run()
    corpus = load_corpus(data, run.data.corpus)
    checkpoint = _checkpoint(folder, run, step)
    done = step_of(checkpoint)
    final = out or Path("exports") / run.fingerprint() / checkpoint.name
    if final.exists():
        _refuse_another(final, run, done)
        return final
    _check_room(final, run)
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        separator = _write_tokenizer(part, data, corpus, run.model.context)
        _write_weights(part, folder, run, checkpoint, separator, console)
        os.rename(part, final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return final


def tokenizer_of(corpus: Corpus, data: Path) -> Tokenizer:
    """The corpus' tokenizer; for bytes, one whose ids are the bytes of the text in UTF-8."""
    if isinstance(corpus.spec.tokenizer, Bbpe):
        trained = Tokenizer.from_file(str(data / corpus.spec.fingerprint() / "tokenizer.json"))
        trained.encode_special_tokens = True  # which its file does not say
        return trained
    characters = _byte_characters()
    tokenizer = Tokenizer(models.BPE(vocab={characters[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def bar(console: Console) -> Progress:
    """A progress bar that goes away when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def counted(
    named: Iterable[tuple[str, Tensor]], progress: Progress, what: str, params: int
) -> Iterator[tuple[str, Tensor]]:
    """The same weights, their elements counted by a bar."""
    task = progress.add_task(what, total=params)
    for name, whole in named:
        yield name, whole
        progress.advance(task, whole.numel())


def _byte_characters() -> dict[int, str]:
    """How byte-level tokenizers write a byte: GPT-2's table (openai/gpt-2, src/encoder.py, bytes_to_unicode).

    What prints in Latin-1 stands for itself; the others follow from U+0100 on.
    """
    printing = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printing]
    return {byte: chr(byte) for byte in printing} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _checkpoint(folder: RunFolder, run: RunSpec, step: int | None) -> Path:
    """The checkpoint to export, its digests verified."""
    if step is not None:
        path = folder.checkpoints / folder_name(step)
        if not path.is_dir():
            there = ", ".join(str(step_of(one)) for one in reversed(found(folder.checkpoints)))
            what = f"there is no checkpoint of step {step} (there are: {there or 'none'})"
            raise DocumentError(folder.checkpoints, 1, 1, what, "give one of these as --step")
        verify(path, run)
        return path
    newest, problems = find_whole(folder.checkpoints, run, folder.skipped())
    end = folder.end()
    if end is not None and (newest is None or step_of(newest) != end.step):
        what = f"the run's final weights are not whole: {problems[0] if problems else 'their checkpoint is gone'}"
        write = f"isoplan checkpoints {folder.path} --prune, then run again, or give an earlier --step"
        raise DocumentError(folder.checkpoints, 1, 1, what, write)
    if newest is None:
        what = problems[0] if problems else "this run has no checkpoint yet"
        raise DocumentError(folder.checkpoints, 1, 1, what, "train it further, then export again")
    return newest


def _refuse_another(final: Path, run: RunSpec, step: int) -> None:
    """DocumentError unless the folder is this very export."""
    there = final / "isoplan.json"
    try:
        found = Export.model_validate_json(there.read_bytes())
    except (OSError, ValidationError):
        found = None
    if found is None or found.run != run or found.step != step:
        what = "something else than this run and step is there"
        raise DocumentError(final, 1, 1, what, "give another folder as --out")


def _check_room(final: Path, run: RunSpec) -> None:
    there = next(parent for parent in final.absolute().parents if parent.exists())
    needed, free = run.model.params * _BYTES_OF[run.precision], shutil.disk_usage(there).free
    if needed > free:
        what = f"the weights need {needed / 2**30:.3g} GiB and {free / 2**30:.3g} GiB are free"
        raise DocumentError(there, 1, 1, what, "make room, or give a folder elsewhere as --out")


def _write_tokenizer(part: Path, data: Path, corpus: Corpus, context: int) -> int:
    """tokenizer.json and what transformers wants to know besides; the id of the token between documents."""
    tokenizer = tokenizer_of(corpus, data)
    words: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(corpus.spec.tokenizer, Bbpe):
        # Text that spells the separator is only text, as it was in training.
        words |= {"bos_token": SEPARATOR, "eos_token": SEPARATOR, "split_special_tokens": True}
    write_text(part / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_text(part / "tokenizer_config.json", json.dumps(words, indent=2) + "\n")
    return tokenizer.token_to_id(SEPARATOR) or 0


def _write_weights(
    part: Path, folder: RunFolder, run: RunSpec, checkpoint: Path, separator: int, console: Console
) -> None:
    digest, step = hashlib.sha256(), step_of(checkpoint)
    with bar(console) as progress:
        named = counted(weights(checkpoint), progress, "writing weights", run.model.params)
        hf.write(part, run.model, run.precision, separator, hashed(named, digest))
    end = folder.end()
    if end is not None and end.step == step and end.weights_sha256 != digest.hexdigest():
        raise CheckpointError(f"{checkpoint} is not what the run ended with, by the end of its record")
    write_json(part / "isoplan.json", Export(run=run, step=step, weights_sha256=digest.hexdigest()))
