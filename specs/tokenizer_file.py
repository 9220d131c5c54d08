"""What a plan needs of a tokenizer.json: the number of its token ids."""

import json
from pathlib import Path
from typing import Any

from specs.document.files import DocumentError, decode_text, read_bytes

LARGEST_BYTES = 2**28
"""Largest tokenizer.json that is read: 262,144 tokens in ten languages take 33 MB (Gemma's)."""

SEPARATOR = "<|document|>"
"""The BBPE token between documents; text that spells it is encoded as ordinary text."""


def token_count(path: Path) -> int:
    """One more than the largest token id, added tokens included. DocumentError where the file is no tokenizer's."""
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
