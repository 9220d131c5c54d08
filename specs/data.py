"""Where text comes from, how it becomes tokens, and the manifest of the corpus that is built."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from specs.curate import CurationStage, CurationStep
from specs.document.base import Fingerprint, Sha256, Slug, Spec, canonical_json
from specs.document.quantity import Tokens
from specs.document_lengths import LengthBin
from specs.mix import MOST_PHASES, Weight, WeightsFrom, check_weights

MOST_ROWS = 10_000_000
"""Most rows of a vocabulary: the largest in use have a quarter of a million. A damaged file may name any id."""


class InstalledText(Spec):
    """Source and documentation of this interpreter's standard library and of installed Python packages.

    Real text that is on every machine; what it is depends on the installed versions, so its digest is recorded.
    """

    source: Literal["installed"]
    """Selects this kind of text."""
    packages: tuple[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$"), Field(examples=["numpy"])], ...
    ] = ()
    """Import names of packages to read besides the standard library."""


class FileText(Spec):
    """The user's own files: .txt and .md (a document each), .json and .jsonl (a record each), each also as .gz or .zst,
    and .parquet (a row each). A text file that is alone, or larger than 16 MiB, is cut into blocks at its line ends.

    Byte order marks, line ends and newlines at the end are settled first, so that the same text is one document.
    """

    source: Literal["files"]
    """Selects this kind of text."""
    paths: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    """Files, folders or glob patterns, relative to the document they are written in."""
    field: str = "text"
    """Key of the text in a JSON record, column of it in Parquet."""
    malformed: float = Field(default=0.001, ge=0, lt=1)
    """Largest share of records without a readable text that is skipped, counted and named; more are refused. Our
    choice: public dumps have one in thousands, a wrong key or encoding has nearly all."""
    curate: tuple[CurationStep, ...] = Field(default=(), exclude_if=lambda steps: not steps)
    """What is done to the text first, by datatrove, in this order."""


class TokenFiles(Spec):
    """Tokens as they are: read in place, never copied. Megatron's .bin with its .idx, datatrove's .ds, and flat arrays
    of token ids without a header (nanoGPT's .bin, OLMo's .npy)."""

    source: Literal["tokens"]
    """Selects this kind of text."""
    paths: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    """Files, folders or glob patterns, relative to the document they are written in."""
    held_out: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Files to hold out, named as in `paths`; without any, documents are held out by their hash, blocks where no index
    says where documents end."""
    dtype: Literal["uint8", "uint16", "uint32"] | None = None
    """Integer type of flat arrays; null is uint16 where the vocabulary fits in it, else uint32."""


class DeclaredText(Spec):
    """Text that is not on this machine: enough to plan with, not to train on."""

    source: Literal["declared"]
    """Selects this kind of text."""
    describe: str = Field(min_length=1)
    """What the text is, for the report; a published loss law applies only to the data it was fitted on."""
    unique: Tokens
    """Unique training tokens that will be there."""


PartText = Annotated[InstalledText | FileText | TokenFiles | DeclaredText, Field(discriminator="source")]


class MixPart(Spec):
    """A source of a mix: its text, and its weight until the first of `phases`."""

    text: PartText
    """Where the text comes from."""
    share: Weight | None = None
    """Share of the tokens that are trained on. Weigh all sources by share, or all by epochs."""
    epochs: Weight | None = None
    """Weight as epochs: shares are epochs times unique tokens. A run makes more or fewer epochs, in these ratios."""
    held_out_one_in: int | None = Field(default=None, ge=2, le=1_000_000_000)
    """One document in this many is held out; null is `data.held_out_one_in`."""


class MixText(Spec):
    """Several sources, each a corpus of its own with its own held-out split, read in given shares."""

    source: Literal["mix"]
    """Selects this kind of text."""
    parts: dict[Slug, MixPart] = Field(min_length=2)
    """The sources by name."""
    phases: tuple[WeightsFrom, ...] = Field(default=(), max_length=MOST_PHASES)
    """Other weights from some step on, in order."""
    evaluation: dict[Slug, Weight] | None = None
    """Share of each source in the held-out loss, which is what is forecast; null is its share of the whole run."""

    @field_validator("parts")
    @classmethod
    def _weighted_alike(cls, parts: dict[str, MixPart]) -> dict[str, MixPart]:
        check_weights(
            {name: part.share for name, part in parts.items()},
            {name: part.epochs for name, part in parts.items()},
        )
        declared = [name for name, part in parts.items() if isinstance(part.text, DeclaredText)]
        if 0 < len(declared) < len(parts):
            other = next(name for name in parts if name not in declared)
            raise ValueError(
                f"{declared[0]} is only declared, and {other} is not; declare all sources to plan without text, or "
                "give the files of all"
            )
        return parts

    @field_validator("phases", "evaluation")
    @classmethod
    def _of_known_sources(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "evaluation" and value is not None:
            check_weights(value, {})
        maps = [one.weights for one in value] if info.field_name == "phases" else [value or {}]
        parts = info.data.get("parts", {})
        unknown = next((name for weights in maps for name in weights if parts and name not in parts), None)
        if unknown is not None:
            raise ValueError(f"there is no source {unknown}; write names of parts: {', '.join(parts)}")
        return value

    @model_validator(mode="after")
    def _all_are_read(self) -> Self:
        for name, part in self.parts.items():
            if not (part.share or part.epochs or any(phase.weights.get(name) for phase in self.phases)):
                raise ValueError(f"no phase reads {name}; remove it, or give it a weight above 0")
        return self


class Bytes(Spec):
    """One token per byte; 256 of them."""

    kind: Literal["bytes"]
    """Selects this tokenizer."""


class Bbpe(Spec):
    """Byte-level byte-pair encoding, trained on the training split with the `tokenizers` library. As in DeepSeek LLM
    (section 2.1), no token spans newlines, words, punctuation and CJK characters, and digits stand alone."""

    kind: Literal["bbpe"]
    """Selects this tokenizer."""
    vocab: int = Field(ge=257, le=1_000_000)
    """Tokens to train, special ones included; a text that supports fewer gives fewer."""
    special: int = Field(default=1, ge=1, le=1024)
    """Special tokens: the separator between documents, and others in reserve (15 in DeepSeek LLM)."""
    rows: int | None = Field(default=None, ge=257, le=1_000_000)
    """Rows of the model's vocabulary, with those in reserve (102400 in DeepSeek LLM); null is one for each token."""

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.vocab < 256 + self.special:
            raise ValueError(
                f"vocab {self.vocab} has no room for 256 bytes and special: {self.special}; "
                f"write vocab: {256 + self.special} or more"
            )
        if self.rows is not None and self.rows < self.vocab:
            raise ValueError(
                f"rows {self.rows} are fewer than vocab {self.vocab}; write rows: {self.vocab} or more"
            )
        return self


TiktokenEncodingName = Literal["r50k_base", "p50k_base", "cl100k_base", "o200k_base", "llama3", "qwen"]
"""tiktoken's own encodings, and those of models whose files have its form."""


class TokenizerFile(Spec):
    """A tokenizer that exists: a `tokenizer.json` of the `tokenizers` library, read as it is, or a SentencePiece .model
    or a tiktoken file, which are converted. A conversion must give the same ids as the original library, on hard texts
    and on documents of the corpus, or it is refused."""

    kind: Literal["file"]
    """Selects this tokenizer."""
    path: str = Field(min_length=1)
    """The file, relative to the document it is written in."""
    encoding: TiktokenEncodingName | None = None
    """Of a tiktoken file, which has neither pattern nor special tokens: the encoding whose it takes."""
    end_of_document: str | None = None
    """The token between documents; null takes the one of a usual name, such as <|endoftext|> or </s>."""
    rows: int | None = Field(default=None, ge=2, le=MOST_ROWS)
    """Rows of the model's vocabulary, with those in reserve; null is one for each token id."""


class TokenIds(Spec):
    """Token ids alone, of text or of anything else (proteins, music): nothing turns them into text."""

    kind: Literal["ids"]
    """Selects this tokenizer."""
    vocab: int = Field(ge=2, le=MOST_ROWS)
    """Number of token ids: all are below it."""
    end_of_document: int | None = Field(default=None, ge=0)
    """The id that ends documents; null where there is none."""
    rows: int | None = Field(default=None, ge=2, le=MOST_ROWS)
    """Rows of the model's vocabulary, with those in reserve; null is one for each token id."""

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.end_of_document is not None and self.end_of_document >= self.vocab:
            raise ValueError(
                f"end_of_document {self.end_of_document} is not below vocab {self.vocab}; correct one of them"
            )
        if self.rows is not None and self.rows < self.vocab:
            raise ValueError(
                f"rows {self.rows} are fewer than vocab {self.vocab}; write rows: {self.vocab} or more"
            )
        return self


Text = Annotated[
    InstalledText | FileText | TokenFiles | DeclaredText | MixText, Field(discriminator="source")
]
Tokenizer = Annotated[Bytes | Bbpe | TokenizerFile | TokenIds, Field(discriminator="kind")]


class DataSpec(Spec):
    """A corpus: its text, tokenizer and held-out share."""

    text: Text
    """Where the text comes from."""
    tokenizer: Tokenizer
    """How text becomes tokens."""
    held_out_one_in: int = Field(default=50, ge=2, le=1_000_000_000)
    """One document in this many, chosen by its hash, is held out and never trained on."""

    @model_validator(mode="after")
    def _tokenizer_fits(self) -> Self:
        texts = [part.text for part in self.parts().values()]
        if any(isinstance(text, TokenFiles) for text in texts) and isinstance(self.tokenizer, Bbpe):
            raise ValueError(
                "a tokenizer cannot be trained on tokens (source: tokens); "
                "write tokenizer: {kind: file, path: tokenizer.json}, or {kind: ids, vocab: ...}"
            )
        turned = any(isinstance(text, InstalledText | FileText) for text in texts)
        if turned and isinstance(self.tokenizer, TokenIds):
            raise ValueError(
                "kind: ids turns no text into tokens; write kind: bytes, bbpe or file, or text.source: tokens"
            )
        return self

    def parts(self) -> "dict[str, DataSpec]":
        """The DataSpec of each source of a mix; of any other text this one alone, under no name."""
        if not isinstance(self.text, MixText):
            return {"": self}
        return {
            name: DataSpec.model_construct(
                text=part.text,
                tokenizer=self.tokenizer,
                held_out_one_in=part.held_out_one_in or self.held_out_one_in,
            )
            for name, part in self.text.parts.items()
        }

    @property
    def reserved_rows(self) -> int:
        """Rows of the vocabulary that are asked for, however many tokens there are; 0 where none are."""
        return 0 if isinstance(self.tokenizer, Bytes) else self.tokenizer.rows or 0


class CorpusRef(Spec):
    """The data of a run, by content."""

    corpus: Fingerprint
    """Name of the folder under `data/`."""
    digest: Sha256 | None
    """SHA-256 of tokens and tokenizer; null where data.text has source: declared, and such a run cannot start."""


class Split(Spec):
    """One split of a built corpus."""

    documents: int = Field(ge=1)
    """Number of documents; of blocks where it is not known where documents end."""
    text_bytes: int | None = Field(default=None, ge=1)
    """UTF-8 bytes of the text, separators included; null where only the tokens are known."""
    tokens: int = Field(ge=1)
    """Number of tokens."""
    digest: Sha256
    """SHA-256 of the tokens; of tokens as they are, of the files' digests and the ranges in them."""


class Inputs(Spec):
    """What a corpus was built from. `inputs.jsonl` beside the manifest names every file with its size and digest."""

    files: int = Field(ge=1)
    """Number of files, the tokenizer's included."""
    bytes: int = Field(ge=0)
    """Their sizes, added up."""
    digest: Sha256
    """SHA-256 over the sizes, digests and kinds of all files: neither names nor times are in it."""


class Reading(Spec):
    """How the records of the text were read."""

    records: int = Field(ge=0)
    """Records with a text, malformed ones and empty texts."""
    empty: int = Field(ge=0)
    """Records without any text in them, which are left out."""
    duplicates: int = Field(ge=0)
    """Documents left out, as the same text was there before."""
    malformed: int = Field(ge=0)
    """Records without a readable text, which are skipped."""
    examples: tuple[str, ...]
    """The first of these: `file:line: what is wrong`."""
    curation: tuple[CurationStage, ...] = Field(default=(), exclude_if=lambda stages: not stages)
    """What each step of data.text.curate left of the documents, before duplicates are counted; absent without any."""


class HeldOutChoice(Spec):
    """What another `held_out_one_in` would hold out."""

    one_in: int = Field(ge=2)
    """One document in this many."""
    tokens: int = Field(ge=0)
    """Tokens that are then held out."""


TokenType = Literal["uint8", "uint16", "uint32", "int32", "int64"]
"""Integer types of token files, little-endian."""


class Corpus(Spec):
    """`data/<name>/manifest.json`: what building a DataSpec gave."""

    kind: Literal["corpus"] = "corpus"
    """Selects this document."""
    spec: DataSpec
    """What was built."""
    inputs: Inputs
    """What it was built from."""
    reading: Reading | None
    """How the text was read; null for tokens as they are."""
    digest: Sha256
    """Digest over the splits' and the tokenizer's digests: the identity of the data."""
    vocab: int = Field(ge=2)
    """Number of token ids: all are below it. A trained tokenizer may have fewer than were asked for."""
    token_type: TokenType
    """Integer type of train.bin and held_out.bin."""
    end_of_document: int | None
    """The token between documents; null where there is none."""
    train: Split
    """What may be trained on."""
    held_out: Split
    """What is only ever evaluated on."""
    document_lengths: tuple[LengthBin, ...] = ()
    """Lengths of the training documents, shortest first; empty where no token ends them."""
    held_out_choices: tuple[HeldOutChoice, ...]
    """What other shares would hold out; empty where the held-out files are named."""
    tokenizer_sha256: Sha256 | None
    """Digest of tokenizer.json; null for bytes and for ids alone."""
    bytes_per_token: float | None = Field(gt=0)
    """UTF-8 bytes per held-out token: turns nats per token into bits per byte. Null where the text is not known."""
    sample: str | None = None
    """The first held-out tokens as text, of tokens as they are; null where nothing decodes them."""
    notes: tuple[str, ...] = ()
    """What is unusual in it."""

    @property
    def name(self) -> str:
        """Name of its folder under `data/`."""
        return corpus_name(self.spec, self.inputs.digest)

    @property
    def rows(self) -> int:
        """Rows of a model's vocabulary, before padding."""
        return max(self.vocab, self.spec.reserved_rows)

    @property
    def ref(self) -> CorpusRef:
        """The data of a run on it."""
        return CorpusRef(corpus=self.name, digest=self.digest)


class MixCorpus(Spec):
    """`data/<name>/manifest.json` of a mix: the corpora that it is made of, which are its identity, and not weights."""

    kind: Literal["mix"] = "mix"
    """Selects this document."""
    sources: dict[Slug, CorpusRef] = Field(min_length=1)
    """The corpus of each source."""

    @property
    def name(self) -> str:
        """Name of its folder under `data/`."""
        return mix_name({name: ref.corpus for name, ref in self.sources.items()})

    @property
    def digest(self) -> str | None:
        """The digest that identifies the data, that of the sources' digests; None where one is only declared."""
        digests = {name: ref.digest for name, ref in self.sources.items()}
        if None in digests.values():
            return None
        return hashlib.sha256(canonical_json(digests).encode()).hexdigest()

    @property
    def ref(self) -> CorpusRef:
        """The data of a run on it."""
        return CorpusRef(corpus=self.name, digest=self.digest)


def mix_name(corpora: Mapping[str, str]) -> str:
    """The name of the mix of these corpora, by source."""
    return hashlib.sha256(canonical_json(dict(corpora)).encode()).hexdigest()[:16]


def corpus_name(spec: DataSpec, inputs_digest: str) -> str:
    """The name of the corpus of a DataSpec and the digest of its inputs: what was asked for, and of which contents."""
    parts = {"spec": spec.plain(), "inputs": inputs_digest}
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]


def corpus_digest(train: str, held_out: str, tokenizer: str | None) -> str:
    """The digest that identifies the data: that of the digests of both splits and of the tokenizer."""
    parts = {"train": train, "held_out": held_out, "tokenizer": tokenizer}
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()
