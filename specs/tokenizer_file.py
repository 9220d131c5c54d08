"""What a plan needs of a tokenizer's file: the number of its token ids."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specs.document.files import DocumentError, decode_text, read_bytes
from specs.tiktoken_file import is_tiktoken, tiktoken_vocab

LARGEST_BYTES = 2**28
"""Largest tokenizer.json or SentencePiece model that is read: 262,144 tokens in ten languages take 33 MB (Gemma's)."""

SEPARATOR = "<|document|>"
"""The BBPE token between documents; text that spells it is encoded as ordinary text."""


def token_count(path: Path, encoding: str | None = None) -> int:
    """One more than the largest token id, added tokens included; `encoding` is that of a tiktoken file. DocumentError
    where the file is no tokenizer's."""
    if is_tiktoken(path):
        ranks, special = tiktoken_vocab(path, encoding)
        return max(*ranks.values(), *special.values()) + 1
    if path.suffix == ".model":
        return _sentencepiece_count(path)
    try:
        plain = json.loads(decode_text(path, read_bytes(path, LARGEST_BYTES)))
        return max(_ids(plain)) + 1
    except (ValueError, TypeError, KeyError, RecursionError):
        what = "this is not a tokenizer.json with a vocabulary"
        raise DocumentError(path, 1, 1, what, "give a tokenizer.json, as save_pretrained writes it") from None


def _ids(plain: Any) -> list[int]:
    """The ids of the model's vocabulary, a mapping or (unigram) a list, and of the added tokens."""
    vocab = plain["model"]["vocab"]
    ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
    return [*ids, *(token["id"] for token in plain.get("added_tokens", ()))]


# --- SentencePiece: a message of protocol buffers whose field 1 repeats for each piece ---


def _sentencepiece_count(path: Path) -> int:
    try:
        count = sum(field == 1 for field in _fields(read_bytes(path, LARGEST_BYTES)))
    except (IndexError, ValueError):
        count = 0
    if count == 0:
        raise DocumentError(path, 1, 1, "this is no SentencePiece model", "give the .model file whole")
    return count


def _fields(message: bytes) -> Iterator[int]:
    """The numbers of a message's fields, in order (protobuf.dev/programming-guides/encoding)."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 2:
            size, at = _varint(message, at)
            at += size
        elif key & 7 == 0:
            _, at = _varint(message, at)
        else:
            raise ValueError
        yield key >> 3
    if at != len(message):
        raise ValueError


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
