"""tiktoken's and SentencePiece's files as tokenizers of the `tokenizers` library.

Conversions of others gave other ids than the original for some texts. So every conversion is checked: the original
library encodes the same texts, some that are hard and some of the corpus, and the ids must be the same.
"""

import importlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specs.data import TokenizerFile
from specs.document.files import DocumentError
from specs.tiktoken_file import TIKTOKEN_ENCODINGS, is_tiktoken, tiktoken_vocab

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Encode = Callable[[str], list[int]]
"""Text to token ids, special tokens spelled in the text being only text."""

_HARD_TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs, 1,234.56 times.",
    "  two spaces   three\tand a tab \n\n\n  indented\r\nlines  \n",
    "don't DON'T we'll I'VE you're it's",
    "def f(x):\n    return {'a': [x ** 2, x != 3]}  # ok\n",
    "Zażółć gęślą jaźń. Straße, naïve café; Ελληνικά, кириллица, עברית, العربية",
    "漢字とかな交じり文。한국어 문장입니다. 中文没有空格。",
    "😀👩‍👩‍👧‍👦 ﬁ ½ Ⅷ ² ａｂｃ \u00a0\u3000\u200b e\u0301",
    "0 12 345 6789 01234567890 3.14159e-10 0xDEADBEEF",
    "<s></s> <unk> <|endoftext|> <0x41> ▁▁ _ ##ing",
    "\x00\x01\x7f\ufffd\ue000",
    "",
    " ",
    "a",
)
"""Texts on which conversions are known to differ: runs of blanks, marks of other tokenizers, rare characters."""
_SAMPLE_DOCUMENTS, _SAMPLE_CHARACTERS = 200, 20_000
_UNIGRAM, _BPE = 1, 2
"""TrainerSpec.ModelType of sentencepiece_model.proto."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""SentencePiece.Type of sentencepiece_model.proto."""
_NEVER = 1000.0
"""How far below the least likely piece those lie that may not be found in text."""


def needs_conversion(path: Path) -> bool:
    """Whether a tokenizer's file is one of another library."""
    return path.suffix in (".model", ".tiktoken")


def convert(spec: TokenizerFile, path: Path) -> "Tokenizer":
    """A tokenizer of the `tokenizers` library, the same for the same file. DocumentError where the file is damaged
    or of a kind that this library cannot express."""
    return _from_tiktoken(spec, path) if is_tiktoken(path) else _from_sentencepiece(path)


def check_conversion(spec: TokenizerFile, path: Path, encode: Encode, documents: Iterable[bytes]) -> None:
    """DocumentError where the original library encodes one of these documents, or a hard text, to other ids; and where
    that library is not installed."""
    original = _tiktoken_encoder(spec, path) if is_tiktoken(path) else _sentencepiece_encoder(path)
    of_corpus = (text.decode()[:_SAMPLE_CHARACTERS] for text in islice(documents, _SAMPLE_DOCUMENTS))
    for text in (*_HARD_TEXTS, *of_corpus):
        ours, theirs = encode(text), original(text)
        if ours != theirs:
            at = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
            shown = text if len(text) <= 40 else f"{text[:40]}..."
            what = f"its conversion gives other ids than the original, first at token {at} of {shown!r}"
            raise DocumentError(path, 1, 1, what, "give the tokenizer.json that its authors publish")


# --- tiktoken ---


def _from_tiktoken(spec: TokenizerFile, path: Path) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    ranks, special = tiktoken_vocab(path, spec.encoding)
    alphabet = _byte_alphabet()
    names = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    merges = [
        (names[token[:cut]], names[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in sorted(
            (one for one in range(1, len(token)) if token[:one] in ranks and token[one:] in ranks),
            key=lambda one, token=token: (ranks[token[:one]], ranks[token[one:]]),  # type: ignore[misc]
        )
    ]
    vocab = {names[token]: rank for token, rank in ranks.items()} | special
    reserved = {*range(max(vocab.values()))} - {*vocab.values()}
    vocab |= {f"<|reserved_{number}|>": number for number in sorted(reserved)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    pattern = TIKTOKEN_ENCODINGS[str(spec.encoding)].pattern
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _with_special(tokenizer, special)


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in GPT-2's vocabulary, which the library's ByteLevel takes (Radford et
    al. 2019, encoder.py): itself where it is printable, else one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _tiktoken_encoder(spec: TokenizerFile, path: Path) -> Encode:
    try:
        from tiktoken import Encoding
    except ImportError:
        raise _not_installed(path, "tiktoken") from None
    ranks, _ = tiktoken_vocab(path, spec.encoding)
    encode: Encode = Encoding(
        path.name,
        pat_str=TIKTOKEN_ENCODINGS[str(spec.encoding)].pattern,
        mergeable_ranks=ranks,
        special_tokens={},
    ).encode_ordinary
    return encode


# --- SentencePiece ---


def _from_sentencepiece(path: Path) -> "Tokenizer":
    model = _sentencepiece_model(path)
    _sentencepiece_encoder(path)  # reads the file whole, and refuses what is damaged
    try:
        return _converted(path, model)
    except DocumentError:
        raise
    except Exception as error:  # the library raises Exception itself
        what = f"this SentencePiece model cannot be converted ({_first_line(error)})"
        raise DocumentError(path, 1, 1, what, "give the tokenizer.json that its authors publish") from None


def _converted(path: Path, model: Any) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models

    trainer, pieces = model.trainer_spec, model.pieces
    if trainer.treat_whitespace_as_suffix or any(piece.type == _UNUSED for piece in pieces):
        raise _not_expressible(path, "has blanks at the ends of pieces, or unused pieces")
    unknown = next((number for number, piece in enumerate(pieces) if piece.type == _UNKNOWN), None)
    fallback = trainer.byte_fallback
    if trainer.model_type == _BPE:
        of_model: Any = models.BPE(
            {piece.piece: number for number, piece in enumerate(pieces)},
            _merges({piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}),
            unk_token=None if unknown is None else pieces[unknown].piece,
            fuse_unk=True,
            byte_fallback=fallback,
        )
    elif trainer.model_type == _UNIGRAM:
        never = min(piece.score for piece in pieces if piece.type == _NORMAL) - _NEVER
        of_text = (_NORMAL, _USER_DEFINED)
        scores = [(piece.piece, piece.score if piece.type in of_text else never) for piece in pieces]
        of_model = models.Unigram(scores, unk_id=unknown, byte_fallback=fallback)
    else:
        raise _not_expressible(path, "is neither BPE nor unigram")
    tokenizer = Tokenizer(of_model)
    normalizer = _normalizer(model.normalizer_spec)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    strip = [decoders.Strip(" ", 1, 0)] if model.normalizer_spec.add_dummy_prefix else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    return _with_added(tokenizer, model)


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """The pairs that give each piece, likeliest piece first: SentencePiece merges by the merged piece's score."""
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _normalizer(spec: Any) -> Any:
    """What SentencePiece does before it looks for pieces (normalizer.cc, Normalize), in its order; None for nothing."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", "▁"))
    return normalizers.Sequence(steps) if steps else None


def _with_added(tokenizer: "Tokenizer", model: Any) -> "Tokenizer":
    from tokenizers import AddedToken

    control = {p.piece: n for n, p in enumerate(model.pieces) if p.type in (_CONTROL, _UNKNOWN)}
    own = [piece.piece for piece in model.pieces if piece.type == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in own])
    return _with_special(tokenizer, control)


def _sentencepiece_model(path: Path) -> Any:
    try:
        messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError:
        raise _not_installed(path, "sentencepiece") from None
    model = messages.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own, which it hides
        what = f"this is no SentencePiece model ({_first_line(error)})"
        raise DocumentError(path, 1, 1, what, "give the .model file whole") from None
    if not model.pieces:
        raise DocumentError(
            path, 1, 1, "this SentencePiece model has no pieces", "give the .model file whole"
        )
    return model


def _sentencepiece_encoder(path: Path) -> Encode:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise _not_installed(path, "sentencepiece") from None
    try:
        encode: Encode = SentencePieceProcessor(model_file=str(path)).encode
    except (OSError, RuntimeError, ValueError) as error:  # ValueError: damage in its own message
        what = f"this is no SentencePiece model ({_first_line(error)})"
        raise DocumentError(path, 1, 1, what, "give the .model file whole") from None
    return encode


# --- both ---


def _first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _with_special(tokenizer: "Tokenizer", ids: dict[str, int]) -> "Tokenizer":
    """The tokenizer with these tokens of its vocabulary as special ones."""
    from tokenizers import AddedToken

    names = sorted(ids, key=ids.__getitem__)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def _not_expressible(path: Path, why: str) -> DocumentError:
    what = f"this SentencePiece model {why}, which a tokenizer.json cannot say"
    return DocumentError(path, 1, 1, what, "give the tokenizer.json that its authors publish")


def _not_installed(path: Path, package: str) -> DocumentError:
    what = f"converting this file is checked against the package {package}, which is not installed"
    return DocumentError(path, 1, 1, what, "install it: pip install 'isoplan[tokenizers]'")
