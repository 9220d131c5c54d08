"""Where a run's first weights lie when they come from outside, and what is known of them.

    data/weights/<first 16 digits of the digest>/
      manifest.json                        shape, digest, files
      config.json, model*.safetensors      as they were found; tokenizer files too

Torch is not needed to tell whether a run can start from them, only to do so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from specs.document.base import Sha256, Spec
from specs.document.files import DocumentError
from specs.model import ModelSpec
from specs.run import Imported, RunSpec

if TYPE_CHECKING:
    from model.zero import Box

MANIFEST = "manifest.json"


class ImportedWeightsManifest(Spec):
    """`manifest.json` of imported weights."""

    kind: Literal["weights"] = "weights"
    """Selects this document."""
    sha256: Sha256
    """Digest of the values in fp32, tensor by tensor in the order of names."""
    model: ModelSpec
    """The shape; its context is the most positions that the model was made for."""
    files: dict[str, int] = Field(min_length=1)
    """Bytes of every file of weights."""


@dataclass(frozen=True)
class ImportedWeights:
    """Imported weights in the workspace."""

    folder: Path
    """Where they lie."""
    manifest: ImportedWeightsManifest
    """What they are."""


def check_origin(run: RunSpec, data: Path) -> None:
    """DocumentError unless the imported weights that the run starts from, if it does, are there and of its shape."""
    if not isinstance(run.parent, Imported):
        return
    there = stored(data, run.parent.sha256)
    folder, found = there.folder, there.manifest
    sizes = {name: _bytes(folder / name) for name in found.files}
    if found.sha256 != run.parent.sha256 or sizes != found.files:
        raise _not_here(folder, "these are not the weights that the run starts from")
    if not _fits(found.model, run.model):
        raise _not_here(folder, "these weights are of another shape than the run's model")


def start_from(run: RunSpec, data: Path, boxes: Iterable["Box"]) -> None:
    """Fill the boxes' master weights with the imported ones that the run starts from, of which this reads its part."""
    from model import hf  # torch: not needed for the rest

    assert isinstance(run.parent, Imported)
    opened = hf.open_weights(place(data, run.parent.sha256), run.model)
    for box in boxes:
        opened.fill(box.piece, box.master)


def stored(data: Path, digest: str) -> ImportedWeights:
    """The weights of this digest; DocumentError where there are none."""
    folder = place(data, digest)
    try:
        return ImportedWeights(
            folder, ImportedWeightsManifest.model_validate_json((folder / MANIFEST).read_bytes())
        )
    except (OSError, ValidationError):
        raise _not_here(folder, "there are no imported weights here") from None


def place(data: Path, digest: str) -> Path:
    """The folder of the weights of this digest."""
    return data / "weights" / digest[:16]


def _fits(weights: ModelSpec, model: ModelSpec) -> bool:
    """Whether a model of this shape can start from weights of that one: equal but for a shorter context."""
    free = {"context": weights.context, "init_std": weights.init_std}
    return model.model_copy(update=free) == weights and model.context <= weights.context


def _bytes(path: Path) -> int:
    """Size of a file, 0 where there is none. The digest of what it holds was taken when it was imported."""
    return path.stat().st_size if path.is_file() else 0


def _not_here(folder: Path, what: str) -> DocumentError:
    return DocumentError(folder, 1, 1, what, "bring them in with: isoplan import DIR")
