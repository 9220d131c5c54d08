"""The state of a run at a step, whole or absent, readable under any layout, and without executing anything from it.

    checkpoints/step-00001000/manifest.json              step, run, layout, SHA-256 of the other files
                              rank-00000.safetensors     the boxes that data-parallel rank 0 owns
                              rank-00001.safetensors     ...

A box is a rectangle of a globally named tensor. Its three fp32 tensors (master weights and AdamW's two moments) are
stored under `<number>.<part>`, and the file's metadata say which box that number is. A rank that loads reads what of
all files lies in its own boxes, so any number of ranks reads what any other number has written.

A checkpoint is written aside, made durable, and renamed. The newest one whose files have their digests is used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, StringConstraints
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.collectives import sum_over
from model.mesh import Axis
from model.zero import Box
from specs.base import Fingerprint, Sha256, Spec
from specs.files import sync_folder, write_json
from specs.layout import Layout

KEPT = 2
"""Checkpoints that stay: the newest, and one before it in case that one is damaged."""

FileName = Annotated[str, StringConstraints(pattern=r"^rank-[0-9]{5}\.safetensors$")]

_PARTS = ("master", "exp_avg", "exp_avg_sq")


class CheckpointError(ValueError):
    """A checkpoint that is not what it should be: which, and why."""


class Manifest(Spec):
    """`manifest.json` of a checkpoint."""

    kind: Literal["checkpoint"] = "checkpoint"
    """Selects this document."""
    run: Fingerprint
    """The run it belongs to."""
    step: int = Field(ge=1)
    """Finished steps."""
    layout: Layout
    """Under which it was written."""
    files: dict[FileName, Sha256]
    """Digest of every other file."""


@dataclass(frozen=True)
class Stored:
    """A box in a file."""

    file: Path
    """Which file."""
    key: str
    """Its number there."""
    name: str
    """Name of the global tensor."""
    shape: tuple[int, ...]
    """Shape of the global tensor."""
    row: int
    """First row."""
    col: int
    """First column; 0 where there is one dimension."""
    rows: int
    """Rows."""
    cols: int
    """Columns; 1 where there is one dimension."""


def save_checkpoint(
    folder: Path, run: str, step: int, layout: Layout, boxes: Sequence[Box], axis: Axis, device: torch.device
) -> None:
    """Write the state after `step` finished steps under `folder`; every data-parallel rank calls it with its boxes."""
    final = folder / _folder_name(step)
    part = folder / f".{final.name}.part"
    part.mkdir(parents=True, exist_ok=True)
    digest = _write_durably(part / _file_name(axis.rank), _serialised(boxes))
    digests = _gathered(digest, axis, device)
    if axis.rank == 0:
        files = {_file_name(rank): one for rank, one in enumerate(digests)}
        write_json(part / "manifest.json", Manifest(run=run, step=step, layout=layout, files=files))
        if final.exists():
            shutil.rmtree(final)  # damaged, or it would have been resumed from
        os.rename(part, final)
        sync_folder(folder)
        _prune(folder, step)


def newest_whole(folder: Path, run: str) -> tuple[Path | None, list[str]]:
    """The newest checkpoint with all its files as they were written, and why each newer one cannot be used.

    Leftovers of a killed process are removed: call it on one rank, before the others write.
    """
    if folder.is_dir():
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover)
    return find_whole(folder, run)


def find_whole(folder: Path, run: str) -> tuple[Path | None, list[str]]:
    """As `newest_whole`, but only looks: for readers of a run that may be in progress."""
    problems: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            verify(path, run)
            return path, problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint; CheckpointError where there is none that can be read."""
    try:
        return Manifest.model_validate_json((path / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} has no manifest that can be read ({_first_line(error)})") from None


def step_of(path: Path) -> int:
    """Finished steps of a checkpoint, from its name."""
    return int(path.name.removeprefix("step-"))


def load_checkpoint(folder: Path, step: int, boxes: Sequence[Box]) -> None:
    """Fill the boxes with the state after `step` steps, a whole checkpoint that any layout has written."""
    path = folder / _folder_name(step)
    stored = _stored_by_name(path)
    opened = {file: safe_open(file, framework="pt") for file in _files(path)}
    for box in boxes:
        covered = 0
        for one in stored.get(box.piece.name, []):
            if one.shape != tuple(box.piece.shape):
                raise CheckpointError(
                    f"{one.file} has {one.name} in the shape {one.shape}, not {box.piece.shape}"
                )
            covered += _copy_overlap(opened[one.file], one, box)
        if covered != box.piece.rows * box.piece.cols:
            raise CheckpointError(f"{path} holds only {covered} values of a box of {box.piece.name}")


def weights(folder: Path, step: int) -> Iterator[tuple[str, Tensor]]:
    """The fp32 weights after `step` steps, whole, in the order of their names, whatever layout has written them."""
    path = folder / _folder_name(step)
    opened = {file: safe_open(file, framework="pt") for file in _files(path)}
    for name, stored in sorted(_stored_by_name(path).items()):
        whole = torch.empty(stored[0].shape, dtype=torch.float32)
        for one in stored:
            _window(whole, one.row, one.col, one.rows, one.cols).copy_(
                opened[one.file].get_tensor(f"{one.key}.master")
            )
        yield name, whole


def weights_sha256(folder: Path, step: int) -> str:
    """Digest of the weights after `step` steps: equal for every layout."""
    return digest_of(weights(folder, step))


def digest_of(named: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of fp32 weights, which come whole and in the order of their names."""
    digest = hashlib.sha256()
    for _ in hashed(named, digest):
        pass
    return digest.hexdigest()


def hashed(named: Iterable[tuple[str, Tensor]], digest: Any) -> Iterator[tuple[str, Tensor]]:
    """The same weights, each added to the digest as it passes."""
    for name, whole in named:
        digest.update(json.dumps([name, list(whole.shape)]).encode())
        digest.update(whole.numpy())
        yield name, whole


def _serialised(boxes: Sequence[Box]) -> bytes:
    """The boxes as a safetensors file."""
    tensors: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    for number, box in enumerate(boxes):
        piece = box.piece
        place = {"name": piece.name, "shape": list(piece.shape), "row": piece.row, "col": piece.col}
        places[str(number)] = json.dumps(place | {"rows": piece.rows, "cols": piece.cols})
        for part in _PARTS:
            tensors[f"{number}.{part}"] = getattr(box, part).detach().contiguous()
    return save(tensors, places)


def _copy_overlap(file: Any, one: Stored, box: Box) -> int:
    """Copy what a stored box and one of ours have in common; how many values of each part that is."""
    ours = box.piece
    top, bottom = max(one.row, ours.row), min(one.row + one.rows, ours.row + ours.rows)
    left, right = max(one.col, ours.col), min(one.col + one.cols, ours.col + ours.cols)
    if top >= bottom or left >= right:
        return 0
    for part in _PARTS:
        source = file.get_slice(f"{one.key}.{part}")
        rows = slice(top - one.row, bottom - one.row)
        values = source[rows] if len(one.shape) == 1 else source[rows, left - one.col : right - one.col]
        target = _window(getattr(box, part), top - ours.row, left - ours.col, bottom - top, right - left)
        target.copy_(values)
    return (bottom - top) * (right - left)


def _window(tensor: Tensor, row: int, col: int, rows: int, cols: int) -> Tensor:
    """The rectangle of a matrix, or the stretch of a vector."""
    return tensor[row : row + rows] if tensor.dim() == 1 else tensor[row : row + rows, col : col + cols]


def _stored_by_name(path: Path) -> dict[str, list[Stored]]:
    """Every box in a checkpoint's files, by the name of its tensor."""
    found: dict[str, list[Stored]] = {}
    for file in _files(path):
        try:
            with safe_open(file, framework="pt") as opened:
                places = {key: json.loads(text) for key, text in opened.metadata().items()}
            boxes = [Stored(file, key, **(at | {"shape": tuple(at["shape"])})) for key, at in places.items()]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file} does not say which boxes it holds ({_first_line(error)})"
            ) from None
        for stored in boxes:
            found.setdefault(stored.name, []).append(stored)
    return found


def _files(path: Path) -> list[Path]:
    return [path / name for name in sorted(manifest(path).files)]


def verify(path: Path, run: str) -> None:
    """CheckpointError unless the checkpoint is this run's and every file has its digest."""
    found = manifest(path)
    if found.run != run or path.name != _folder_name(found.step):
        raise CheckpointError(f"{path} is of step {found.step} of run {found.run}")
    for name, digest in found.files.items():
        try:
            with open(path / name, "rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError as error:
            raise CheckpointError(f"{path / name} cannot be read ({error.strerror})") from None
        if not same:
            raise CheckpointError(f"{path / name} is not what was written")


def _prune(folder: Path, step: int) -> None:
    """Keep this checkpoint and those before it up to `KEPT`; what is newer was found damaged. Each goes by a rename."""
    everything = sorted(folder.glob("step-*"))
    kept = [path for path in everything if path.name <= _folder_name(step)][-KEPT:]
    for old in set(everything) - set(kept):
        gone = old.with_name(f".{old.name}.old")
        os.rename(old, gone)
        shutil.rmtree(gone)


def _gathered(digest: bytes, axis: Axis, device: torch.device) -> list[str]:
    """Every rank's digest, in the order of ranks: a sum in which each rank fills its own row."""
    rows = torch.zeros(axis.size, len(digest), dtype=torch.int32)
    rows[axis.rank] = torch.frombuffer(bytearray(digest), dtype=torch.uint8).int()
    return [bytes(row).hex() for row in sum_over(rows.to(device), axis).tolist()]


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _write_durably(path: Path, content: bytes) -> bytes:
    """Write a file that is on disk on return; its SHA-256."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).digest()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
