"""A rank's boxes of global tensors as torch.distributed.checkpoint sees them, in safetensors files.

torch.distributed.checkpoint cuts boxes against boxes, so what one layout has written any other reads. Its Hugging Face
storage keeps tensors and their offsets in safetensors files and nothing else: unlike its default storage it has no
pickle, and reading never executes anything.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

FILE_BYTES = 64 * 2**20
"""About the size of a file: writing one takes its size three times over in working memory."""


class Shard(Tensor):
    """A box of a global tensor, whose shape it has. Implements torch.distributed.checkpoint's `_Checkpointable`."""

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
        """Nothing is computed with it."""
        raise TypeError(f"{func} of a box of a tensor, most of which is elsewhere")

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        data = TensorWriteData(self._chunk(), TensorProperties.create_from_tensor(self.box), self.size())
        return [WriteItem(MetadataIndex(fqn, self.offsets), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self.box

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(self.offsets, self.box.size())


def write_shards(folder: Path, rank: int, shards: Mapping[str, Shard]) -> list[str]:
    """Write a rank's boxes, in host memory, to files that are on disk on return; the files' names."""
    files = _dealt(shards)
    writer = HuggingFaceStorageWriter(str(folder), files, save_distributed=True)
    planner = DefaultSavePlanner()
    planner.set_up_planner(dict(shards), writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(is_coordinator=True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    # What the writer's own plan of all ranks would add: here each rank writes for itself, whenever it is ready.
    plan = replace(plan, storage_data={"fqn_to_index_mapping": files, "shard_index": rank + 1})
    written = writer.write_data(planner.finish_plan(plan), planner).wait()
    return sorted({result.storage_data.relative_path for result in written})


class Stored:
    """What a checkpoint's files hold, read as far as it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._reader = HuggingFaceStorageReader(str(folder))
        try:
            self._metadata = self._reader.read_metadata()
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder} does not say which boxes it holds ({_first_line(error)})") from None
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's name and shape, in the order of names."""
        for name, held in sorted(self._metadata.state_dict_metadata.items()):
            if isinstance(held, TensorStorageMetadata):
                yield name, tuple(held.size)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the values into these tensors and boxes; ValueError where some are not there."""
        for name, wanted in tensors.items():
            self._check(name, wanted)
        planner = DefaultLoadPlanner()
        planner.set_up_planner(dict(tensors), self._metadata, is_coordinator=True)
        self._reader.read_data(planner.create_local_plan(), planner).wait()

    def _check(self, name: str, wanted: Tensor) -> None:
        held = self._metadata.state_dict_metadata.get(name)
        if not isinstance(held, TensorStorageMetadata):
            raise ValueError(f"{self._reader.path} holds no {name}")
        if held.size != wanted.size():
            raise ValueError(
                f"{self._reader.path} has {name} in the shape {tuple(held.size)}, not {tuple(wanted.size())}"
            )
        values = sum(chunk.sizes.numel() for chunk in held.chunks)
        if values != held.size.numel():
            raise ValueError(
                f"{self._reader.path} holds {values} of the {held.size.numel()} values of {name}"
            )


def _dealt(shards: Mapping[str, Shard]) -> dict[str, int]:
    """The number of each tensor's file, from 1; a file is full at `FILE_BYTES`."""
    files: dict[str, int] = {}
    numbers, left = count(1), 0
    number = next(numbers)
    for name, shard in shards.items():
        if left and left + shard.box.nbytes > FILE_BYTES:
            number, left = next(numbers), 0
        files[name], left = number, left + shard.box.nbytes
    return files


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
