"""Files of tokens that others made, where they lie: their integer type, their length, and where documents end.

Megatron    x.bin, x.idx                       MMIDIDX header, lengths, offsets and documents
datatrove   x.ds, x.ds.index, x.ds.metadata    ends of the documents, in tokens; "tokenizer|bytes of a token"
flat        x.bin, x.npy                       token ids and nothing else (nanoGPT, OLMo)
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specs.data import TokenFiles, TokenType
from specs.document.files import DocumentError

_MEGATRON_MAGIC = b"MMIDIDX\0\0"
_MEGATRON_HEADER = struct.Struct("<9sQBQQ")
_MEGATRON_TYPES: dict[int, TokenType] = {1: "uint8", 4: "int32", 5: "int64", 8: "uint16"}
"""Megatron-LM, megatron/core/datasets/indexed_dataset.py, DType; those that hold token ids."""
_NUMPY_MAGIC = b"\x93NUMPY"
_FEWEST_TO_TELL, _WIDTH_TOKENS = 16, 2**20
"""Groups of four tokens from which on it is told what type they are not, and tokens that are looked at."""
_LLM_C_MAGIC = (20240520, 20240801)
"""First integer of the token files of llm.c and modded-nanogpt (llm.c, dev/data/data_common.py)."""


@dataclass(frozen=True)
class TokenFile:
    """A file of tokens."""

    path: Path
    token_type: TokenType
    tokens: int
    """Number of tokens."""
    ends: NDArray[np.int64] | None
    """Where its documents end, in tokens; None where that is not known."""

    def map(self) -> NDArray[Any]:
        """The tokens, memory-mapped and read-only."""
        if not self.tokens:
            return np.empty(0, self.token_type)
        return np.memmap(self.path, np.dtype(self.token_type).newbyteorder("<"), "r", shape=(self.tokens,))


def open_token_file(path: Path, text: TokenFiles, vocab: int) -> TokenFile:
    """What a file is, by its name and those beside it. DocumentError where its index or size does not fit."""
    if path.with_suffix(".idx").is_file() and path.suffix == ".bin":
        return _megatron(path, path.with_suffix(".idx"), text)
    if path.suffix == ".ds":
        return _datatrove(path, text, vocab)
    return _flat(path, text, vocab)


def _megatron(path: Path, index: Path, text: TokenFiles) -> TokenFile:
    size = index.stat().st_size
    with open(index, "rb") as file:
        head = file.read(_MEGATRON_HEADER.size)
        if len(head) < _MEGATRON_HEADER.size or not head.startswith(_MEGATRON_MAGIC):
            raise _bad(index, "this is not a Megatron index: it does not begin with MMIDIDX")
        _, version, code, sequences, documents = _MEGATRON_HEADER.unpack(head)
        if version != 1:
            raise _bad(index, f"this Megatron index has version {version}, and 1 is read")
        if code not in _MEGATRON_TYPES:
            raise _bad(
                index, f"its type code {code} is not one of token ids: {', '.join(map(str, _MEGATRON_TYPES))}"
            )
        _check_stated(path, index, _MEGATRON_TYPES[code], text)
        if size < _MEGATRON_HEADER.size + 12 * sequences + 8 * documents:
            raise _bad(index, f"the index is cut off: {size:,} bytes are too few for {sequences:,} sequences")
        lengths = np.fromfile(file, "<i4", sequences).astype(np.int64)
        offsets = np.fromfile(file, "<i8", sequences)
        first_sequences = np.fromfile(file, "<i8", documents)
    item_bytes = np.dtype(_MEGATRON_TYPES[code]).itemsize
    ends = np.cumsum(lengths)
    if (lengths < 0).any() or not np.array_equal(offsets, (ends - lengths) * item_bytes):
        raise _bad(index, "its sequences do not lie one after the other")
    if (
        not documents
        or first_sequences[0] != 0
        or first_sequences[-1] != sequences
        or (np.diff(first_sequences) < 0).any()
    ):
        raise _bad(index, "its documents are not all of its sequences, in order")
    tokens = int(lengths.sum())
    if path.stat().st_size != tokens * item_bytes:
        what = f"the file has {path.stat().st_size:,} bytes, but {index.name} says {tokens * item_bytes:,}"
        raise _bad(path, what)
    of_document = first_sequences[1:]
    return TokenFile(
        path, _MEGATRON_TYPES[code], tokens, np.concatenate([[0], ends])[of_document].astype(np.int64)
    )


def _datatrove(path: Path, text: TokenFiles, vocab: int) -> TokenFile:
    index, metadata = (path.with_name(path.name + ending) for ending in (".index", ".metadata"))
    token_type: TokenType = text.dtype or _by_vocab(vocab)
    if metadata.is_file():
        head = metadata.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        token_bytes = head.rpartition("|")[2].strip()
        if token_bytes not in ("2", "4"):
            raise _bad(metadata, "its first line is not 'tokenizer|bytes' with 2 or 4 bytes a token")
        token_type = "uint16" if token_bytes == "2" else "uint32"
        _check_stated(path, metadata, token_type, text)
    elif not index.is_file():
        return _flat(path, text, vocab)
    if not index.is_file():
        return _sized(path, token_type, None)
    if index.stat().st_size % 8:
        raise _bad(index, f"{index.stat().st_size:,} bytes are not whole numbers of 8 bytes")
    ends = np.fromfile(index, "<u8").astype(np.int64)
    found = _sized(path, token_type, ends)
    back = np.flatnonzero(np.diff(ends, prepend=0) < 0)
    if len(back):
        raise _bad(index, f"it goes back at document {back[0] + 1:,}")
    if (int(ends[-1]) if len(ends) else 0) != found.tokens:
        last = int(ends[-1]) if len(ends) else 0
        raise _bad(path, f"the file has {found.tokens:,} tokens, but {index.name} ends at {last:,}")
    return found


def _flat(path: Path, text: TokenFiles, vocab: int) -> TokenFile:
    with open(path, "rb") as file:
        head = file.read(8)
    if head.startswith(_NUMPY_MAGIC):
        raise _bad(path, "this is a NumPy file with a header", "write its tokens with ndarray.tofile()")
    if len(head) >= 4 and int.from_bytes(head[:4], "little") in _LLM_C_MAGIC:
        raise _bad(path, "this file has the header of llm.c", "write its tokens alone, from byte 1024 on")
    found = _sized(path, text.dtype or _by_vocab(vocab), None)
    if text.dtype is None:
        _check_width(found)
    return found


def _check_width(file: TokenFile) -> None:
    """DocumentError where a file looks like one of a wider type: only in such a one is every second token 0."""
    first = file.map()[: 4 * (min(file.tokens, _WIDTH_TOKENS) // 4)].reshape(-1, 4)
    if file.token_type != "uint16" or len(first) < _FEWEST_TO_TELL or not first.any() or first[:, 1::2].any():
        return
    if first[:, 2].any():
        wider, write = "uint32", "name their type in data.text.dtype"
    else:
        wider, write = "int64", "write its tokens again as uint32"
    raise _bad(file.path, f"every second token is 0 when read as uint16, as in a file of {wider}", write)


def _check_stated(path: Path, beside: Path, token_type: TokenType, text: TokenFiles) -> None:
    if text.dtype is not None and text.dtype != token_type:
        what = f"{beside.name} says that its tokens are {token_type}, but data.text.dtype is {text.dtype}"
        raise _bad(path, what, "remove data.text.dtype, or restore the file")


def _by_vocab(vocab: int) -> TokenType:
    return "uint16" if vocab <= 2**16 else "uint32"


def _sized(path: Path, token_type: TokenType, ends: NDArray[np.int64] | None) -> TokenFile:
    size, item_bytes = path.stat().st_size, np.dtype(token_type).itemsize
    if size % item_bytes:
        what = f"{size:,} bytes are not whole tokens of {token_type}"
        raise _bad(path, what, "name their type in data.text.dtype, or restore the file")
    return TokenFile(path, token_type, size // item_bytes, ends)


def _bad(path: Path, what: str, write: str = "restore the file, or write it again") -> DocumentError:
    return DocumentError(path, 1, 1, what, write)
