"""The state of a run at a step, whole or absent, readable under any layout, and without executing anything from it.

    checkpoints/step-00001000/manifest.json              what it is, and the digest of every other file
                              rank-00000.safetensors     the boxes that rank 0 owns
                              rank-00001.safetensors     ...

A box is a rectangle of a globally named tensor: `master.<name>` is the fp32 weight, `exp_avg.<name>` and
`exp_avg_sq.<name>` are AdamW's moments (see runtime/checkpoint/shards.py). Every rank writes its own file into a
folder aside (`stage`); when all have, one of them adds the manifest and renames the folder (`commit`). The newest one
whose files have their digests is used."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, StringConstraints
from torch import Tensor

from model.zero import Box
from runtime.run_folder.folder import differing_fields, checkpoint_name, list_checkpoints, step_of
from specs.checkpoint_retention import Retention
from specs.document.base import Fingerprint, Spec
from specs.document.files import DocumentError
from specs.document.write import sync_folder, write_json
from specs.humanize import first_line
from specs.layout import Layout
from specs.record import SkippedRange
from specs.run import RunSpec
from specs.spike_guard import SpikeGuardState

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""XXH3 of 128 bits (runtime/checkpoint/shards.py)."""

if TYPE_CHECKING:
    from runtime.checkpoint.shards import Shard

FileName = Annotated[str, StringConstraints(pattern=r"^rank-[0-9]{5}\.safetensors$")]

_MISSING_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""What a file of a damaged checkpoint may be. A disk that does not answer says nothing about the file: such an error
ends the run, which would else begin anew and remove checkpoints that are whole."""

_PARTS = ("master", "exp_avg", "exp_avg_sq")


class CheckpointError(ValueError):
    """A checkpoint that is not what it should be: which, and why."""


class CheckpointManifest(Spec):
    """`manifest.json` of a checkpoint."""

    kind: Literal["checkpoint"] = "checkpoint"
    """Selects this document."""
    run_fingerprint: Fingerprint
    """The run it belongs to."""
    run: RunSpec
    """The same run in full, so that another one can be told what differs."""
    step: int = Field(ge=1)
    """Finished steps."""
    updates: int = Field(ge=0)
    """Steps that were applied to the weights."""
    tokens: int = Field(ge=1)
    """Tokens trained on."""
    loss: float | None
    """The newest held-out loss, nats per token; null before the first."""
    guard: SpikeGuardState
    """What the guard remembers."""
    skipped: tuple[SkippedRange, ...]
    """What was given up so far, and whose data were left out."""
    layout: Layout
    """Under which it was written."""
    versions: dict[str, str]
    """Versions of the packages that wrote it."""
    files: dict[FileName, Digest] = Field(default_factory=dict)
    """Digest of every other file."""


def stage(folder: Path, step: int, rank: int, boxes: Sequence[Box]) -> None:
    """Write this rank's boxes, in host memory, aside; on disk on return, with the file's digest beside it."""
    from runtime.checkpoint.shards import (
        write_shards,  # half a second: when the first checkpoint is written, not before
    )

    part = _staging_folder(folder, step)
    part.mkdir(parents=True, exist_ok=True)
    digest = write_shards(part / _file_name(rank), _shards(boxes))
    with open(part / _digest_name(rank), "w") as file:
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(part)


def commit(
    folder: Path,
    manifest: CheckpointManifest,
    ranks: int,
    retention: Retention,
    damaged: Collection[int] = (),
) -> None:
    """Make a checkpoint of what all ranks have staged, and remove those that need not stay.

    Those of `damaged` steps, which a resume has found, stay for nobody.
    """
    part, final = _staging_folder(folder, manifest.step), folder / checkpoint_name(manifest.step)
    files = {_file_name(rank): (part / _digest_name(rank)).read_text() for rank in range(ranks)}
    for rank in range(ranks):
        (part / _digest_name(rank)).unlink()
    write_json(part / "manifest.json", manifest.model_copy(update={"files": files}))
    if final.exists():
        remove(final)  # damaged or rolled back, or it would have been resumed from
    os.rename(part, final)
    sync_folder(folder)
    for path in prunable(folder, manifest.step, retention, damaged):
        remove(path)


def discard(folder: Path, step: int) -> None:
    """Remove what ranks have staged of a checkpoint that is not to be."""
    shutil.rmtree(_staging_folder(folder, step), ignore_errors=True)


def prunable(folder: Path, step: int, retention: Retention, damaged: Collection[int]) -> list[Path]:
    """Checkpoints that need not stay beside the whole one of this step; what is newer was given up."""
    losses: dict[int, float | None] = {}
    for path in list_checkpoints(folder):
        try:
            losses[step_of(path)] = read_manifest(path).loss
        except CheckpointError:
            continue
    kept = retention.kept({one: loss for one, loss in losses.items() if one <= step and one not in damaged})
    return [path for path in list_checkpoints(folder) if step_of(path) not in kept]


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left: call it on one rank, before the others write."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)


def find_latest_intact(folder: Path, run: RunSpec, skipped: Sequence[SkippedRange]) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that can be used and whose files are as they were written, and why no newer one is.

    Only looks: readers of a run in progress may call it. DocumentError where one is of another run.
    """
    problems: list[str] = []
    for path in list_checkpoints(folder):
        try:
            manifest = usable_manifest(path, run, skipped)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if manifest is not None:
            problem = first_damage(path, manifest)
            if not problem:
                return path, problems
            problems.append(problem)
    return None, problems


def read_manifest(path: Path) -> CheckpointManifest:
    """The manifest of a checkpoint; CheckpointError where there is none that can be read."""
    try:
        return CheckpointManifest.model_validate_json((path / "manifest.json").read_bytes())
    except (*_MISSING_FILE, ValueError) as error:
        raise CheckpointError(f"{path} has no manifest that can be read ({first_line(error)})") from None


def usable_manifest(path: Path, run: RunSpec, skipped: Sequence[SkippedRange]) -> CheckpointManifest | None:
    """Its manifest, by which alone it can be used; None where it is of steps that the run has given up.

    CheckpointError unless it is under its own name and has the files that it lists. DocumentError if it is of another
    run: such a one must not be passed over, since what follows would remove it.
    """
    manifest = read_manifest(path)
    if manifest.run_fingerprint != run.fingerprint():
        fields = differing_fields(manifest.run.plain(), run.plain()) or ["its manifest alone"]
        what = f"this checkpoint is of another run, {manifest.run_fingerprint}, which differs in {', '.join(fields)}"
        raise DocumentError(path / "manifest.json", 1, 1, what, "move the checkpoint away, and run again")
    if path.name != checkpoint_name(manifest.step):
        raise CheckpointError(f"{path} is of step {manifest.step}")
    there = {one.name for one in path.glob("*.safetensors")}
    if strange := sorted(there - set(manifest.files)):
        raise CheckpointError(f"{path / strange[0]} is not in its manifest")
    kept = all(one in manifest.skipped or manifest.step <= one.to_step for one in skipped)
    return manifest if kept else None


def verify(path: Path, run: RunSpec) -> None:
    """CheckpointError unless every file is as it was written; DocumentError if it is of another run."""
    manifest = usable_manifest(path, run, ())
    assert manifest is not None  # nothing was given up, as far as is asked here
    if problem := first_damage(path, manifest):
        raise CheckpointError(problem)


def first_damage(path: Path, manifest: CheckpointManifest) -> str:
    """What is wrong with the first damaged file; empty where none is. Files are read whole, up to that one."""
    return next((said for name in manifest.files if (said := file_damage(path, manifest, name))), "")


def file_damage(path: Path, manifest: CheckpointManifest, name: str) -> str | None:
    """What is wrong with a file; None where it has its digest. OSError where that cannot be told."""
    from runtime.checkpoint.shards import digest_of

    try:
        same = digest_of(path / name) == manifest.files[name]
    except _MISSING_FILE as error:
        return f"{path / name} is not there ({error.strerror})"
    return None if same else f"{path / name} is not what was written"


def load_checkpoint(path: Path, boxes: Sequence[Box]) -> None:
    """Fill the boxes from a whole checkpoint that any layout has written."""
    from runtime.checkpoint.shards import StoredShards

    try:
        StoredShards(path).fill(_shards(boxes))
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def weights(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The fp32 weights, whole, in the order of their names, whatever layout has written them."""
    from runtime.checkpoint.shards import StoredShards

    try:
        stored = StoredShards(path)
        for key, shape in stored.shapes():
            part, _, name = key.partition(".")
            if part == "master":
                whole = torch.empty(shape, dtype=torch.float32)
                stored.fill({key: whole})
                yield name, whole
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def weights_sha256(path: Path) -> str:
    """Digest of the weights: equal for every layout."""
    return values_sha256(weights(path))


def values_sha256(named: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of fp32 weights, which come whole and in the order of their names."""
    digest = hashlib.sha256()
    for _ in hash_each(named, digest):
        pass
    return digest.hexdigest()


def hash_each(named: Iterable[tuple[str, Tensor]], digest: Any) -> Iterator[tuple[str, Tensor]]:
    """The same weights, each added to the digest as it passes."""
    for name, whole in named:
        digest.update(json.dumps([name, list(whole.shape)]).encode())
        digest.update(whole.numpy())
        yield name, whole


def _shards(boxes: Sequence[Box]) -> dict[str, "Shard"]:
    """The boxes' tensors by the names under which they are stored."""
    from runtime.checkpoint.shards import Shard

    return {
        f"{part}.{box.piece.name}": Shard(getattr(box, part), box.piece.shape, box.piece.offsets)
        for box in boxes
        for part in _PARTS
    }


def remove(path: Path) -> None:
    """Remove a checkpoint; from the first moment on it is none."""
    gone = path.with_name(f".{path.name}.old")
    os.rename(path, gone)
    shutil.rmtree(gone)


def _staging_folder(folder: Path, step: int) -> Path:
    return folder / f".{checkpoint_name(step)}.part"


def _file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _digest_name(rank: int) -> str:
    return f"rank-{rank:05d}.digest"
