"""Imported weights in the workspace, from which a run may start.

    data/weights/<first 16 digits of the digest>/
      manifest.json                        shape, digest, files
      config.json, model*.safetensors      as imported; tokenizer files too

Checking them does not import torch; loading them does.
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
    """Digest of the values in fp32, tensor by tensor, sorted by name."""
    model: ModelSpec
    """The shape; its context is the most positions that the model supports."""
    files: dict[str, int] = Field(min_length=1)
    """Size in bytes of every file of weights."""


@dataclass(frozen=True)
class ImportedWeights:
    """Imported weights in the workspace."""

    folder: Path
    """Their folder."""
    manifest: ImportedWeightsManifest
    """Their manifest."""


def check_imported_weights(run: RunSpec, data: Path) -> None:
    """DocumentError where the run starts from imported weights that are missing or of a different shape."""
    if not isinstance(run.parent, Imported):
        return
    imported = find_imported_weights(data, run.parent.sha256)
    folder, found = imported.folder, imported.manifest
    sizes = {name: _bytes(folder / name) for name in found.files}
    if found.sha256 != run.parent.sha256 or sizes != found.files:
        raise _import_error(folder, "these are not the weights that the run starts from")
    if not _fits(found.model, run.model):
        raise _import_error(folder, "these weights have a different shape than the run's model")


def load_imported_weights(run: RunSpec, data: Path, boxes: Iterable["Box"]) -> None:
    """Fill the boxes' master weights from the imported weights that the run starts from; reads only those boxes."""
    from model import hf  # imports torch, which the rest does not need

    assert isinstance(run.parent, Imported)
    opened = hf.open_weights(weights_folder(data, run.parent.sha256), run.model)
    for box in boxes:
        opened.fill(box.piece, box.master)


def find_imported_weights(data: Path, digest: str) -> ImportedWeights:
    """The imported weights with this digest; DocumentError where there are none."""
    folder = weights_folder(data, digest)
    try:
        return ImportedWeights(
            folder, ImportedWeightsManifest.model_validate_json((folder / MANIFEST).read_bytes())
        )
    except (OSError, ValidationError):
        raise _import_error(folder, "there are no imported weights here") from None


def weights_folder(data: Path, digest: str) -> Path:
    """Folder of the imported weights with this digest."""
    return data / "weights" / digest[:16]


def _fits(weights: ModelSpec, model: ModelSpec) -> bool:
    """Whether the model can start from these weights: the same shape, but for a shorter context and what is seen of
    it."""
    free = {name: getattr(weights, name) for name in ("context", "init_std", "mean_attended_tokens")}
    return model.model_copy(update=free) == weights and model.context <= weights.context


def _bytes(path: Path) -> int:
    """Size of a file, 0 where there is none. Its content was hashed when it was imported."""
    return path.stat().st_size if path.is_file() else 0


def _import_error(folder: Path, what: str) -> DocumentError:
    return DocumentError(folder, 1, 1, what, "import them with: isoplan import DIR")
