"""Token files as others write them."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Documents = Sequence[Sequence[int]]
CODES = {"uint8": 1, "int32": 4, "int64": 5, "uint16": 8}


def write_flat(path: Path, documents: Documents, dtype: str = "uint16") -> None:
    """As nanoGPT and OLMo do."""
    np.concatenate([np.array(one, dtype) for one in documents]).tofile(path)


def write_megatron(path: Path, documents: Documents, dtype: str = "uint16") -> None:
    """`path` and the .idx beside it, each document a sequence."""
    write_flat(path, documents, dtype)
    lengths = np.array([len(one) for one in documents], "<i4")
    offsets = (np.cumsum(lengths) - lengths).astype("<i8") * np.dtype(dtype).itemsize
    head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, CODES[dtype], len(documents), len(documents) + 1)
    firsts = np.arange(len(documents) + 1, dtype="<i8")
    path.with_suffix(".idx").write_bytes(head + lengths.tobytes() + offsets.tobytes() + firsts.tobytes())


def write_datatrove(path: Path, documents: Documents, dtype: str = "uint16") -> None:
    """`path`, its .index and its .metadata."""
    write_flat(path, documents, dtype)
    ends = np.cumsum([len(one) for one in documents]).astype("<u8")
    path.with_name(path.name + ".index").write_bytes(ends.tobytes())
    text = f"tokenizer.json|{np.dtype(dtype).itemsize}\n{ends[-1]}\n{ends[-1]} tokens"
    path.with_name(path.name + ".metadata").write_text(text)
