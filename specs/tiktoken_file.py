"""tiktoken's files of ranks, a line for each token with its bytes in base 64 and its id; and what they do not say."""

import base64
import binascii
import re
from pathlib import Path
from typing import NamedTuple

from specs.document.files import DocumentError, read_bytes

LARGEST_BYTES = 2**28
"""Largest file that is read: the 199,998 tokens of o200k_base take 3.6 MB."""


class TiktokenEncoding(NamedTuple):
    """What a file of tiktoken's ranks does not say of its encoding."""

    pattern: str
    """What no token spans."""
    special: dict[str, int | None]
    """Special tokens; one without an id follows those before it, the first of them the ranks."""
    ranks: int | None
    """How many ranks its file has; None where models have different ones."""


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"{_CASED}*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    rf"{_CASED}+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_END = "<|endoftext|>"
TIKTOKEN_ENCODINGS = {
    "r50k_base": TiktokenEncoding(_GPT2, {_END: 50256}, 50256),
    "p50k_base": TiktokenEncoding(_GPT2, {_END: 50256}, 50280),
    "cl100k_base": TiktokenEncoding(
        _CL100K,
        {
            _END: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
        100256,
    ),
    "o200k_base": TiktokenEncoding(_O200K, {_END: 199999, "<|endofprompt|>": 200018}, 199998),
    "llama3": TiktokenEncoding(_CL100K, {"<|begin_of_text|>": None, "<|end_of_text|>": None}, None),
    "qwen": TiktokenEncoding(
        _CL100K.replace(r"\p{N}{1,3}", r"\p{N}"), {_END: None, "<|im_start|>": None, "<|im_end|>": None}, None
    ),
}
"""Encodings by name: those of tiktoken 0.14 (tiktoken_ext/openai_public.py), of Llama 3 (llama3/llama/tokenizer.py) and
of Qwen (tokenization_qwen.py). Possessive quantifiers, which only make them faster, are left out."""


def is_tiktoken(path: Path) -> bool:
    """Whether a file has tiktoken's ranks: by its ending, or by its first line."""
    if path.suffix != ".model":
        return path.suffix == ".tiktoken"
    with open(path, "rb") as file:
        return _rank(file.readline(4096)) is not None


def tiktoken_ranks(path: Path) -> dict[bytes, int]:
    """The ids of all tokens, by their bytes. DocumentError at the first line that is none, and where a byte is
    missing."""
    ranks: dict[bytes, int] = {}
    taken: set[int] = set()
    for number, line in enumerate(read_bytes(path, LARGEST_BYTES).splitlines(), 1):
        if line.strip():
            found = _rank(line)
            if found is None or found[0] in ranks or found[1] in taken:
                what = "this line is no token in base 64 with its rank, or repeats one"
                raise DocumentError(path, number, 1, what, "give the file whole")
            ranks[found[0]] = found[1]
            taken.add(found[1])
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise DocumentError(path, 1, 1, "these ranks lack some byte", "give the file whole")
    return ranks


def tiktoken_vocab(path: Path, encoding: str | None) -> tuple[dict[bytes, int], dict[str, int]]:
    """The ids of an encoding's tokens, by their bytes, and of its special ones by name. DocumentError where the file is
    not that of this encoding."""
    if encoding is None:
        known = ", ".join(TIKTOKEN_ENCODINGS)
        what = "a tiktoken file holds no pattern and no special tokens"
        raise DocumentError(path, 1, 1, what, f"name its encoding, data.tokenizer.encoding: one of {known}")
    ranks, of = tiktoken_ranks(path), TIKTOKEN_ENCODINGS[encoding]
    if of.ranks not in (None, len(ranks)):
        what = f"this file has {len(ranks):,} ranks, and {encoding} has {of.ranks:,}"
        raise DocumentError(path, 1, 1, what, "name another encoding, or give its file whole")
    special = {
        name: len(ranks) + at if id_ is None else id_ for at, (name, id_) in enumerate(of.special.items())
    }
    taken = {*ranks.values(), *(id_ for id_ in special.values() if id_ < max(ranks.values()))}
    if len(taken) != max(ranks.values()) + 1 or set(ranks.values()) & set(special.values()):
        what = f"these ranks do not count from 0 to {len(ranks) - 1:,}, special tokens aside"
        raise DocumentError(path, 1, 1, what, "give the file whole")
    return ranks, special


def _rank(line: bytes) -> tuple[bytes, int] | None:
    token, _, rank = line.strip().partition(b" ")
    if not re.fullmatch(rb"[0-9]{1,9}", rank):
        return None
    try:
        return base64.b64decode(token, validate=True), int(rank)
    except binascii.Error:
        return None
