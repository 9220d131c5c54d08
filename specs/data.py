"""Where text comes from, how it becomes tokens, and the manifest of the corpus that is built."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from specs.document.base import Fingerprint, Sha256, Spec
from specs.document.quantity import Tokens


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
    """The user's own files: .txt and .md (a document each), .jsonl, .jsonl.gz (a document per line)."""

    source: Literal["files"]
    """Selects this kind of text."""
    paths: tuple[str, ...] = Field(min_length=1)
    """Files or glob patterns, relative to the document they are written in."""
    field: str = "text"
    """Key of the text in a JSON line."""


class DeclaredText(Spec):
    """Text that is not on this machine: enough to plan with, not to train on."""

    source: Literal["declared"]
    """Selects this kind of text."""
    describe: str = Field(min_length=1)
    """What the text is, for the report; a published loss law applies only to the data it was fitted on."""
    unique: Tokens
    """Unique training tokens that will be there."""


class Bytes(Spec):
    """One token per byte; 256 of them."""

    kind: Literal["bytes"]
    """Selects this tokenizer."""


class Bbpe(Spec):
    """Byte-level byte-pair encoding, trained on the training split with the `tokenizers` library."""

    kind: Literal["bbpe"]
    """Selects this tokenizer."""
    vocab: int = Field(ge=257, le=1_000_000)
    """Number of tokens, the document separator included."""


Text = Annotated[InstalledText | FileText | DeclaredText, Field(discriminator="source")]
Tokenizer = Annotated[Bytes | Bbpe, Field(discriminator="kind")]


class DataSpec(Spec):
    """A corpus: its text, tokenizer and held-out share. Its fingerprint names the folder under `data/`."""

    text: Text
    """Where the text comes from."""
    tokenizer: Tokenizer
    """How text becomes tokens."""
    held_out_one_in: int = Field(default=50, ge=2)
    """One document in this many, chosen by its hash, is held out and never trained on."""

    @property
    def vocab(self) -> int:
        """Number of different tokens."""
        return 256 if isinstance(self.tokenizer, Bytes) else self.tokenizer.vocab


class CorpusRef(Spec):
    """The data of a run, by content."""

    corpus: Fingerprint
    """Fingerprint of the DataSpec: the folder under `data/`."""
    digest: Sha256 | None
    """SHA-256 of tokens and tokenizer; null where data.text has source: declared, and such a run cannot start."""


class Split(Spec):
    """One split of a built corpus."""

    documents: int = Field(ge=1)
    """Number of documents."""
    text_bytes: int = Field(ge=1)
    """UTF-8 bytes of the text, separators included."""
    tokens: int = Field(ge=1)
    """Number of tokens in the file."""
    digest: Sha256
    """SHA-256 of the token file."""


class Corpus(Spec):
    """`data/<fingerprint>/manifest.json`: what building a DataSpec gave."""

    kind: Literal["corpus"] = "corpus"
    """Selects this document."""
    spec: DataSpec
    """What was built."""
    digest: Sha256
    """Digest over the splits' and the tokenizer's digests: the identity of the data."""
    train: Split
    """What may be trained on."""
    held_out: Split
    """What is only ever evaluated on."""
    tokenizer_sha256: Sha256 | None
    """Digest of tokenizer.json; null for bytes."""

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per held-out token: turns nats per token into bits per byte."""
        return self.held_out.text_bytes / self.held_out.tokens
