"""Checkpoint format: the state of a run at a step, atomic, readable under any layout, safe to read.

    checkpoints/step-00001000/manifest.json              run, step, and the digest of every other file
                              rank-00000.safetensors     the boxes that rank 0 owns
                              rank-00001.safetensors     ...

A box is a rectangle of a globally named tensor: `master.<name>` is the fp32 weight, `exp_avg.<name>` and
`exp_avg_sq.<name>` are AdamW's moments (see runtime/checkpoint/shards.py). Every rank writes its own file into a
staging folder (`stage`); when all have, rank 0 adds the manifest and renames the folder (`commit`). A run resumes from
the latest intact checkpoint: the newest one whose files have their digests."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, StringConstraints
from torch import Tensor

from model.zero import Box
from runtime.run_folder.folder import checkpoint_name, differing_fields, list_checkpoints, step_of
from specs.checkpoint_retention import Retention
from specs.document.base import Fingerprint, Spec
from specs.document.files import DocumentError
from specs.document.write import fsync_path, write_json
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
"""Errors that mean a damaged checkpoint. Others, as of a disk that does not answer, end the run: taken for damage, they
would make it start from scratch and remove intact checkpoints."""

_PARTS = ("master", "exp_avg", "exp_avg_sq")


class CheckpointError(ValueError):
    """A damaged checkpoint: which, and how."""


class CheckpointManifest(Spec):
    """`manifest.json` of a checkpoint."""

    kind: Literal["checkpoint"] = "checkpoint"
    """Selects this document."""
    run_fingerprint: Fingerprint
    """Fingerprint of its run."""
    run: RunSpec
    """That run in full, so that an error about another run can say what differs."""
    step: int = Field(ge=1)
    """Finished steps."""
    updates: int = Field(ge=0)
    """Steps that were applied to the weights: all but the rejected ones."""
    tokens: int = Field(ge=1)
    """Tokens trained on."""
    loss: float | None
    """The latest held-out loss, nats per token; null before the first."""
    guard: SpikeGuardState
    """State of the loss-spike guard."""
    skipped: tuple[SkippedRange, ...]
    """Data skipped by the rollbacks so far."""
    layout: Layout
    """The layout that wrote it."""
    versions: dict[str, str]
    """Versions of the packages that wrote it."""
    files: dict[FileName, Digest] = Field(default_factory=dict)
    """Digest of every other file."""


def stage(folder: Path, step: int, rank: int, boxes: Sequence[Box]) -> None:
    """Write this rank's boxes, in host memory, to the staging folder; on disk on return, with the file's digest."""
    from runtime.checkpoint.shards import write_shards

    part = _staging_folder(folder, step)
    part.mkdir(parents=True, exist_ok=True)
    digest = write_shards(part / _file_name(rank), _shards(boxes))
    with open(part / _digest_name(rank), "w") as file:
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())
    fsync_path(part)


def commit(
    folder: Path,
    manifest: CheckpointManifest,
    world_size: int,
    retention: Retention,
    damaged: Collection[int] = (),
) -> None:
    """Make a checkpoint of what all ranks have staged, and remove those that the retention does not keep.

    Checkpoints of `damaged` steps are always removed.
    """
    part, final = _staging_folder(folder, manifest.step), folder / checkpoint_name(manifest.step)
    files = {_file_name(rank): (part / _digest_name(rank)).read_text() for rank in range(world_size)}
    for rank in range(world_size):
        (part / _digest_name(rank)).unlink()
    write_json(part / "manifest.json", manifest.model_copy(update={"files": files}))
    if final.exists():
        remove(final)  # damaged or rolled back, or it would have been resumed from
    os.rename(part, final)
    fsync_path(folder)
    for path in prunable(folder, manifest.step, retention, damaged):
        remove(path)


def discard(folder: Path, step: int) -> None:
    """Remove what ranks have staged of a failed checkpoint."""
    shutil.rmtree(_staging_folder(folder, step), ignore_errors=True)


def prunable(folder: Path, step: int, retention: Retention, damaged: Collection[int]) -> list[Path]:
    """Checkpoints that the retention does not keep, given an intact one of this step; newer ones were rolled back."""
    losses: dict[int, float | None] = {}
    for path in list_checkpoints(folder):
        try:
            losses[step_of(path)] = read_manifest(path).loss
        except CheckpointError:
            continue
    kept = retention.kept({one: loss for one, loss in losses.items() if one <= step and one not in damaged})
    return [path for path in list_checkpoints(folder) if step_of(path) not in kept]


def remove_leftovers(folder: Path) -> None:
    """Remove the staging folders of killed processes: call it on one rank, before the others write."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)


def find_latest_intact(
    folder: Path, run: RunSpec, skipped: Sequence[SkippedRange]
) -> tuple[Path | None, list[str]]:
    """The latest intact checkpoint, and how newer ones are damaged.

    Read-only, so it may be called while the run is in progress. DocumentError where a checkpoint is of another run.
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
    """The manifest of a checkpoint; CheckpointError where it cannot be read."""
    try:
        return CheckpointManifest.model_validate_json((path / "manifest.json").read_bytes())
    except (*_MISSING_FILE, ValueError) as error:
        raise CheckpointError(f"{path} has no readable manifest ({first_line(error)})") from None


def usable_manifest(path: Path, run: RunSpec, skipped: Sequence[SkippedRange]) -> CheckpointManifest | None:
    """The manifest, if the checkpoint may be used; None where it is of steps that the run has rolled back.

    CheckpointError where the name or the list of files does not match. DocumentError where it is of another run: such a
    checkpoint must not be ignored, since training on would remove it.
    """
    manifest = read_manifest(path)
    if manifest.run_fingerprint != run.fingerprint():
        fields = differing_fields(manifest.run.plain(), run.plain()) or ["nothing but the fingerprint"]
        other = f"another run, {manifest.run_fingerprint}, which differs in {', '.join(fields)}"
        what, write = f"this checkpoint belongs to {other}", "move the checkpoint away and rerun"
        raise DocumentError(path / "manifest.json", 1, 1, what, write)
    if path.name != checkpoint_name(manifest.step):
        raise CheckpointError(
            f"{path} holds the checkpoint of step {manifest.step}, not of the step in its name"
        )
    present = {one.name for one in path.glob("*.safetensors")}
    if unlisted := sorted(present - set(manifest.files)):
        raise CheckpointError(f"{path / unlisted[0]} is not listed in the manifest")
    kept = all(one in manifest.skipped or manifest.step <= one.to_step for one in skipped)
    return manifest if kept else None


def verify(path: Path, run: RunSpec) -> None:
    """CheckpointError where a file is damaged; DocumentError where the checkpoint is of another run."""
    manifest = usable_manifest(path, run, ())
    assert manifest is not None  # no skipped ranges were given
    if problem := first_damage(path, manifest):
        raise CheckpointError(problem)


def first_damage(path: Path, manifest: CheckpointManifest) -> str:
    """What is wrong with the first damaged file; empty where all are intact. Reads the files up to that one in full."""
    return next((problem for name in manifest.files if (problem := file_damage(path, manifest, name))), "")


def file_damage(path: Path, manifest: CheckpointManifest, name: str) -> str | None:
    """What is wrong with a file; None where it has its digest. OSError where it cannot be read."""
    from runtime.checkpoint.shards import digest_of

    try:
        same = digest_of(path / name) == manifest.files[name]
    except _MISSING_FILE as error:
        return f"{path / name} is missing ({error.strerror})"
    return None if same else f"{path / name} is damaged: its digest differs from the manifest's"


def load_checkpoint(path: Path, boxes: Sequence[Box]) -> None:
    """Fill the boxes from an intact checkpoint, whatever layout wrote it."""
    from runtime.checkpoint.shards import StoredShards

    try:
        StoredShards(path).fill(_shards(boxes))
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def weights(path: Path, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """The fp32 weights, or those of these names, as full tensors, sorted by name, whatever layout wrote them."""
    from runtime.checkpoint.shards import StoredShards

    try:
        stored = StoredShards(path)
        for key, shape in stored.shapes():
            part, _, name = key.partition(".")
            if part == "master" and (names is None or name in names):
                whole = torch.empty(shape, dtype=torch.float32)
                stored.fill({key: whole})
                yield name, whole
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def weights_sha256(path: Path) -> str:
    """Digest of the weights, the same for every layout."""
    return values_sha256(weights(path))


def tensor_digests(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The digests of these weights, by name, of which `combined_sha256` makes that of all."""
    return {name: _tensor_digest(name, whole) for name, whole in weights(path, names)} if names else {}


def combined_sha256(digests: Mapping[str, bytes]) -> str:
    """Digest of weights from those of each."""
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()


def values_sha256(named: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of fp32 weights, given as full tensors sorted by name: of their own digests, which ranks may share."""
    digest = hashlib.sha256()
    for _ in hash_each(named, digest):
        pass
    return digest.hexdigest()


def hash_each(named: Iterable[tuple[str, Tensor]], digest: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the same weights, and add each to the digest."""
    for name, whole in named:
        digest.update(_tensor_digest(name, whole))
        yield name, whole


def _tensor_digest(name: str, whole: Tensor) -> bytes:
    digest = hashlib.sha256(json.dumps([name, list(whole.shape)]).encode())
    digest.update(whole.numpy().data)
    return digest.digest()


def _shards(boxes: Sequence[Box]) -> dict[str, "Shard"]:
    """The boxes' tensors by their stored names."""
    from runtime.checkpoint.shards import Shard

    return {
        f"{part}.{box.piece.name}": Shard(getattr(box, part), box.piece.shape, box.piece.offsets)
        for box in boxes
        for part in _PARTS
    }


def remove(path: Path) -> None:
    """Remove a checkpoint; renamed first, so that it is never seen half removed."""
    renamed = path.with_name(f".{path.name}.old")
    os.rename(path, renamed)
    shutil.rmtree(renamed)


def _staging_folder(folder: Path, step: int) -> Path:
    return folder / f".{checkpoint_name(step)}.part"


def _file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _digest_name(rank: int) -> str:
    return f"rank-{rank:05d}.digest"
