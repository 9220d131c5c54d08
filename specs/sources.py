"""The corpora that a DataSpec is built as: one, or one for each source of a mix.

A mix that trains its tokenizer has it in a folder under `data/` of its own, and its sources read it as a file that
exists. `data/.index/` says which tokenizer that was; it is looked for there and never trained by the planner.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from specs.data import (
    Bbpe,
    Corpus,
    CorpusRef,
    DataSpec,
    DeclaredText,
    FileText,
    MixCorpus,
    TokenizerFile,
    mix_name,
)
from specs.data_inputs import InputFileError, find_corpus, read_index
from specs.document.base import canonical_json
from specs.tokenizer_file import SEPARATOR


@dataclass(frozen=True)
class Sources:
    """The built corpora of a text. They have one tokenizer."""

    corpora: Mapping[str, Corpus]
    """By the source's name; of text that is no mix the one corpus, under no name."""

    @property
    def manifest(self) -> Corpus | MixCorpus:
        """What identifies them: `data/<name>/manifest.json`."""
        if "" in self.corpora:
            return self.corpora[""]
        return MixCorpus(sources={name: self.corpora[name].ref for name in sorted(self.corpora)})

    @property
    def ref(self) -> CorpusRef:
        """The data of a run on them."""
        return self.manifest.ref

    @property
    def any(self) -> Corpus:
        """One of them, for what they have in common: tokenizer and vocabulary."""
        return next(iter(self.corpora.values()))


def is_declared(spec: DataSpec) -> bool:
    """Whether the text, or that of a source, is not on this machine."""
    return any(isinstance(part.text, DeclaredText) for part in spec.parts().values())


def is_curated(spec: DataSpec) -> bool:
    """Whether the text, or that of a source, is curated first."""
    return any(isinstance(part.text, FileText) and part.text.curate for part in spec.parts().values())


def declared_ref(spec: DataSpec) -> CorpusRef:
    """The data of a run that cannot start, as its text is only declared: what was asked for, whatever the weights."""
    parts = spec.parts()
    if "" in parts:
        return CorpusRef(corpus=spec.fingerprint(), digest=None)
    refs = {name: CorpusRef(corpus=part.fingerprint(), digest=None) for name, part in parts.items()}
    return MixCorpus(sources=refs).ref


def find_sources(spec: DataSpec, base: Path, data: Path) -> Sources | str:
    """The corpora of this DataSpec as its files are now, or why there are none. Nothing is hashed.

    InputFileError where a file is missing.
    """
    parts = with_tokenizer(spec, base, data)
    if parts is None:
        return "the corpus is not built yet"
    found: dict[str, Corpus] = {}
    for name, part in parts.items():
        try:
            corpus = find_corpus(part, base, data)
        except InputFileError as error:
            raise in_part(name, error) from None
        if isinstance(corpus, str):
            return f"{name}: {corpus}" if name else corpus
        found[name] = corpus
    sources = Sources(found)
    manifest = data / sources.ref.corpus / "manifest.json"
    return sources if manifest.exists() else f"the corpus is not built yet ({manifest} does not exist)"


def last_built(spec: DataSpec, base: Path, data: Path) -> str | None:
    """Name of what was built last from this DataSpec, by the index, though its files may have changed since; None where
    nothing was."""
    parts = with_tokenizer(spec, base, data)
    if parts is None:
        return None
    built = {name: read_index(part, base, data) for name, part in parts.items()}
    names = {name: one.corpus for name, one in built.items() if one is not None}
    if len(names) < len(parts):
        return None
    return names[""] if "" in names else mix_name(names)


def in_part(name: str, error: InputFileError) -> InputFileError:
    """The error with its place in the DataSpec of the mix."""
    if not name or not error.field.startswith("text"):
        return error
    return InputFileError(error.path, f"text.parts.{name}.{error.field}", error.what, error.write)


def with_tokenizer(spec: DataSpec, base: Path, data: Path) -> dict[str, DataSpec] | None:
    """The DataSpecs of the sources, each with the tokenizer that was trained for all; None where none was trained."""
    parts = spec.parts()
    if "" in parts or not isinstance(spec.tokenizer, Bbpe):
        return parts
    try:
        name = json.loads(tokenizer_index(spec, base, data).read_text(encoding="utf-8"))["tokenizer"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    file = TokenizerFile(
        kind="file",
        path=os.path.relpath(data / name / "tokenizer.json", base),
        end_of_document=SEPARATOR,
        rows=spec.tokenizer.rows,
    )
    return {part: one.model_copy(update={"tokenizer": file}) for part, one in parts.items()}


def tokenizer_index(spec: DataSpec, base: Path, data: Path) -> Path:
    """The file that says which tokenizer was trained for the sources of a DataSpec in this folder."""
    parts = {name: part.plain() for name, part in spec.parts().items()}
    key = canonical_json({"parts": parts, "folder": str(base.resolve())})
    return (
        data
        / ".index"
        / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.tokenizer.json"
    )
