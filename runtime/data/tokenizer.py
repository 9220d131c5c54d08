"""Tokenizers: trained here, read from a file, or bytes; and what of them a corpus needs."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from runtime.data.converted_tokenizer import check_conversion, convert, needs_conversion
from runtime.data.errors import CorpusError
from specs.data import Bbpe, Bytes, DataSpec, TokenIds, TokenizerFile, TokenType
from specs.data_inputs import check_token_count, tokenizer_file
from specs.document.files import DocumentError
from specs.document.parse import one_line
from specs.tokenizer_file import SEPARATOR

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TRAINING_BYTES = 32 * 2**20
"""Text that a BBPE is trained on: the first documents by hash, a random sample. It takes 10 s on two cores, and a
tokenizer from it needs 0.1 % fewer tokens than one from a quarter of it (our measurement)."""

_CJK = "一-龥ࠀ-一가-퟿"
"""DeepSeek LLM's range of CJK characters (its tokenizer.json, published with the models)."""
_PIECES = rf"[\r\n]|\s?[\p{{L}}\p{{M}}&&[^{_CJK}]]+|\s?[\p{{P}}\p{{S}}]+|[{_CJK}]+|\p{{N}}"
"""What no token spans: newlines, words, punctuation, CJK, digits one by one (DeepSeek LLM, section 2.1). As one pattern
it takes two thirds of the time of five after each other (our measurement)."""

_USUAL_ENDS = (
    SEPARATOR,
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
    "[EOS]",
    "<|eos|>",
    "<EOS>",
)
"""Names of the token that ends a document: ours, GPT-2's, Llama 3's, DeepSeek's, Llama's, Gemma's and others."""


@dataclass(frozen=True)
class TokenIdsOf:
    """What token files are written with."""

    vocab: int
    """Number of token ids."""
    separator: int | None
    """The id between documents."""

    @property
    def token_type(self) -> TokenType:
        """The smallest integer type that holds every id."""
        return "uint8" if self.vocab <= 2**8 else "uint16" if self.vocab <= 2**16 else "uint32"


BYTES = TokenIdsOf(vocab=256, separator=0)
"""Bytes as tokens; documents are joined by a NUL byte."""


def given(spec: DataSpec, base: Path, folder: Path) -> TokenIdsOf | None:
    """The ids of a tokenizer that exists, and its file as `folder / "tokenizer.json"`; None where one is to be trained.

    DocumentError where it cannot be read, or its token between documents is not known.
    """
    match spec.tokenizer:
        case Bytes():
            return BYTES
        case Bbpe():
            return None
        case TokenIds():
            return TokenIdsOf(spec.tokenizer.vocab, spec.tokenizer.end_of_document)
        case TokenizerFile():
            source, path = tokenizer_file(spec.tokenizer, base), folder / "tokenizer.json"
            if needs_conversion(source):
                path.write_text(convert(spec.tokenizer, source).to_str(pretty=True), encoding="utf-8")
            elif spec.tokenizer.encoding is not None:
                what = "only a tiktoken file has an encoding"
                raise DocumentError(source, 1, 1, what, "remove data.tokenizer.encoding")
            else:
                load(source)
                shutil.copyfile(source, path)
            tokenizer = load(path)
            ids = _ids(tokenizer, _end_of_document(tokenizer, spec.tokenizer, source))
            check_token_count(spec.tokenizer, source, ids.vocab)
            return ids


def check(spec: DataSpec, base: Path, folder: Path, documents: Iterable[bytes]) -> None:
    """DocumentError where the tokenizer was converted, and its original gives one of these documents other ids."""
    if not isinstance(spec.tokenizer, TokenizerFile):
        return
    source = tokenizer_file(spec.tokenizer, base)
    if needs_conversion(source):
        tokenizer = load(folder / "tokenizer.json")
        check_conversion(
            spec.tokenizer,
            source,
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            documents,
        )


def trained(spec: DataSpec, folder: Path, sample: Iterable[bytes], progress: Progress) -> TokenIdsOf:
    """The ids of a tokenizer trained on the sample, unless `folder / "tokenizer.json"` is it already."""
    asked, path = spec.tokenizer, folder / "tokenizer.json"
    assert isinstance(asked, Bbpe)  # all others are given
    if not path.exists():
        task = progress.add_task("training the tokenizer", total=None)
        _train(asked, sample, path)
        progress.remove_task(task)
    return _ids(load(path), SEPARATOR)


def load(path: Path) -> "Tokenizer":
    """The tokenizer of a file; text that spells a special token is only text, and the same text is always the same
    tokens. DocumentError where there is none."""
    from tokenizers import Tokenizer, models

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        what = f"this is not a tokenizer of the tokenizers library ({str(error).splitlines()[0]})"
        raise DocumentError(path, 1, 1, what, "give a tokenizer.json, as save_pretrained writes it") from None
    tokenizer.encode_special_tokens = True  # its file does not store this setting
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None  # merges left out at random
    return tokenizer


def encode(tokenizer: "Tokenizer | None", texts: Sequence[bytes]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The tokens of all texts, shape (tokens,), and the number of tokens of each. CorpusError where it has none for a
    text."""
    if tokenizer is None:
        return np.frombuffer(b"".join(texts), np.uint8), np.array([len(text) for text in texts], np.int64)
    try:
        encodings = tokenizer.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
    except Exception as error:  # the library raises Exception itself
        raise CorpusError(
            f"the tokenizer cannot encode a text ({one_line(str(error))}); "
            "give one that has a token for whatever it does not know"
        ) from None
    ids = [encoding.ids for encoding in encodings]
    counts = np.array([len(one) for one in ids], np.int64)
    return np.fromiter(chain.from_iterable(ids), np.uint32, int(counts.sum())), counts


def _train(asked: Bbpe, sample: Iterable[bytes], path: Path) -> None:
    """Train a byte-level BPE, as in DeepSeek LLM; whole or not at all."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=asked.vocab,
        special_tokens=[SEPARATOR, *(f"<|reserved_{number}|>" for number in range(1, asked.special))],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(sample), trainer)
    aside = path.with_suffix(".new")
    aside.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")  # `save` hides what the disk says
    aside.rename(path)


def _first(sample: Iterable[bytes]) -> Iterator[str]:
    seen = 0
    for text in sample:
        if seen >= TRAINING_BYTES:
            return
        seen += len(text)
        yield text.decode()


def _ids(tokenizer: "Tokenizer", separator: str) -> TokenIdsOf:
    known = tokenizer.get_vocab(with_added_tokens=True)
    return TokenIdsOf(max(known.values()) + 1, known[separator])


def usual_ends(tokenizer: "Tokenizer") -> list[str]:
    """Its tokens of usual names between documents, special ones first."""
    known = tokenizer.get_vocab(with_added_tokens=True)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    return sorted((name for name in _USUAL_ENDS if name in known), key=lambda name: name not in special)


def _end_of_document(tokenizer: "Tokenizer", spec: TokenizerFile, path: Path) -> str:
    """The token between documents."""
    known = tokenizer.get_vocab(with_added_tokens=True)
    if not known:
        raise CorpusError(f"{path}: this tokenizer has no tokens; give one that is trained")
    if spec.end_of_document is None:
        usual = usual_ends(tokenizer)
        if not usual:
            special = [
                token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special
            ]
            what = "this tokenizer has no token of a usual name between documents"
            named = f"; its special tokens are {', '.join(special[:8])}" if special else ""
            raise DocumentError(path, 1, 1, what + named, "name one in data.tokenizer.end_of_document")
        return usual[0]
    if spec.end_of_document not in known:
        what = f"this tokenizer has no token '{spec.end_of_document}'"
        raise DocumentError(path, 1, 1, what, "correct data.tokenizer.end_of_document")
    return spec.end_of_document
