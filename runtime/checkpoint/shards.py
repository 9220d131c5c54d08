"""A rank's boxes of global tensors in safetensors files that torch.distributed.checkpoint reads.

torch.distributed.checkpoint reshards on loading, so any layout reads what another wrote. The file format is that of its
Hugging Face storage: tensors and their offsets in safetensors. Unlike the default storage it has no pickle, so reading
never executes anything. Only reading imports torch.distributed.checkpoint, which costs half a second of CPU (sympy).
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor

from specs.humanize import first_line

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

PIECE_BYTES = 4 * 2**20
"""Bytes written and hashed at a time: they stay in the processor's cache between the two."""


class Shard(Tensor):
    """A box of a global tensor, with the shape of that tensor: a `_Checkpointable` of torch.distributed.checkpoint."""

    box: Tensor
    offsets: torch.Size

    @staticmethod
    def __new__(cls: type["Shard"], box: Tensor, shape: tuple[int, ...], offsets: tuple[int, ...]) -> "Shard":
        """The values `box` at these offsets of a tensor of this shape."""
        made: Shard = Tensor._make_wrapper_subclass(cls, shape, dtype=box.dtype, device=box.device)
        made.box, made.offsets = box, torch.Size(offsets)
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """TypeError: a shard is for saving and loading only."""
        raise TypeError(f"{func} was called on a shard, which holds only a part of its tensor")

    def __create_chunk_list__(self) -> "list[ChunkStorageMetadata]":
        return [self._chunk()]

    def __get_tensor_shard__(self, index: "MetadataIndex") -> Tensor:
        return self.box

    def _chunk(self) -> "ChunkStorageMetadata":
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        return ChunkStorageMetadata(self.offsets, self.box.size())


def write_shards(path: Path, shards: Mapping[str, Shard]) -> str:
    """Write boxes in host memory to a file that is on disk on return; its digest.

    Written in pieces without a copy: torch's own writer of these files needs memory for three times their size.
    """
    digest, start = xxhash.xxh3_128(), 0
    header: dict[str, Any] = {"__metadata__": _metadata(shards)}
    for name, shard in shards.items():
        end = start + shard.box.nbytes
        header[name] = {"dtype": "F32", "shape": list(shard.box.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pieces: Iterator[bytes | memoryview] = chain((struct.pack("<Q", len(text)), text), _pieces(shards))
    with open(path, "wb", buffering=0) as file:
        for piece in pieces:
            _write(file, piece)
            digest.update(piece)
        os.fsync(file.fileno())
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    """The digest of a file: XXH3 of 128 bits, which detects accidental damage (not forgery) at the speed of memory."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _metadata(shards: Mapping[str, Shard]) -> dict[str, str]:
    """The metadata that HuggingFaceStorageReader reads: the boxes' offsets in their tensors. Its keys are those of
    torch 2.13's distributed/checkpoint/_hf_utils.py."""
    offsets = {name: {"saved_offsets": list(shard.offsets)} for name, shard in shards.items()}
    return {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}


def _pieces(shards: Mapping[str, Shard]) -> Iterator[bytes | memoryview]:
    """The values as bytes, in order."""
    for shard in shards.values():
        values = memoryview(shard.box.contiguous().view(-1).numpy().data).cast("B")
        for first in range(0, len(values), PIECE_BYTES):
            yield values[first : first + PIECE_BYTES]


def _write(file: IO[bytes], piece: bytes | memoryview) -> None:
    """Write the whole piece; a write to a nearly full disk may be partial."""
    remaining = memoryview(piece)
    while remaining:
        remaining = remaining[file.write(remaining) :]


class StoredShards:
    """Reads tensors, or parts of them, from a checkpoint's files."""

    def __init__(self, folder: Path) -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        self._reader = HuggingFaceStorageReader(str(folder))
        try:
            self._metadata = self._reader.read_metadata()
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder} has no readable list of its tensors ({first_line(error)})") from None
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's name and shape, sorted by name."""
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        for name, entry in sorted(self._metadata.state_dict_metadata.items()):
            if isinstance(entry, TensorStorageMetadata):
                yield name, tuple(entry.size)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the values into these tensors and boxes; ValueError where some are missing."""
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

        for name, tensor in tensors.items():
            self._check(name, tensor)
        planner = DefaultLoadPlanner()
        planner.set_up_planner(dict(tensors), self._metadata, is_coordinator=True)
        self._reader.read_data(planner.create_local_plan(), planner).wait()

    def _check(self, name: str, tensor: Tensor) -> None:
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        entry = self._metadata.state_dict_metadata.get(name)
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{self._reader.path} has no tensor {name}")
        if entry.size != tensor.size():
            raise ValueError(
                f"{self._reader.path} has {name} with shape {tuple(entry.size)}, not {tuple(tensor.size())}"
            )
        values = sum(chunk.sizes.numel() for chunk in entry.chunks)
        if values != entry.size.numel():
            raise ValueError(
                f"{self._reader.path} has only {values} of the {entry.size.numel()} values of {name}"
            )
