"""Hugging Face Llama import and export: a folder of config.json and safetensors. Tensors have the same names as ours.

`transformers` loads an export as `LlamaForCausalLM`. An import must be a Llama whose every operation our model has:
anything else is refused, with the line of config.json. Weights are safetensors only; pickles are never opened.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.mesh import Axis
from model.parameters import Piece, local_pieces
from model.transformer import DTYPES
from specs.document.files import DocumentError
from specs.document.parse import Document, located, read_json
from specs.document.write import fsync_path, write_text
from specs.model import ModelSpec

SHARD_BYTES = 5 * 10**9
"""Largest file of weights, one tensor more than this aside (what transformers wrote for years, its "5GB")."""

_TEXT_BYTES = 2**26
"""Largest config.json or index that is read; the index of a 100-layer Llama has 0.1 MB."""

_MUST_BE: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "tie_word_embeddings": (False,),
    "rope_scaling": (None, {"rope_type": "default"}, {"type": "default"}),
    "quantization_config": (None,),
}
"""What our model computes, by the key of config.json. An absent key has Llama's default in transformers, the first."""

_FIELDS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "vocab": "vocab_size",
    "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
}
"""Fields of a ModelSpec that config.json has under another name."""


def config(spec: ModelSpec, precision: str, separator: int | None) -> dict[str, Any]:
    """The content of config.json. A document begins after the token `separator` and ends with it; None where there is
    no such token."""
    rope = {"rope_type": "default", "rope_theta": spec.rope_theta}
    return {
        "architectures": ["LlamaForCausalLM"],
        **{theirs: getattr(spec, ours) for ours, theirs in _FIELDS.items()},
        **{key: allowed[0] for key, allowed in _MUST_BE.items() if key != "quantization_config"},
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "rope_theta": spec.rope_theta,  # transformers before 5
        "rope_parameters": rope,  # since 5
        "attention_dropout": 0.0,
        "bos_token_id": separator,
        "eos_token_id": separator,
        "torch_dtype": {"bf16": "bfloat16", "fp32": "float32"}[precision],
    }


def shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, by its name."""
    held = local_pieces(spec, Axis()).values()
    return {piece.name: piece.shape for pieces in held for piece in pieces}


def write(
    folder: Path,
    spec: ModelSpec,
    precision: str,
    separator: int | None,
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """config.json and the tensors, rounded to the precision, in files of at most `shard_bytes` with an index.

    The tensors come in any order, all of the model's; one file's worth of them is in memory at a time.
    """
    write_text(folder / "config.json", json.dumps(config(spec, precision, separator), indent=2) + "\n")
    dtype = DTYPES[precision]
    shards = _shards(tensors, dtype, shard_bytes)
    written: list[tuple[Path, list[str]]] = []
    total_bytes = 0
    for shard in shards:
        path = folder / f".{len(written)}.safetensors"
        save_file(shard, path, {"format": "pt"})
        fsync_path(path)
        written.append((path, list(shard)))
        total_bytes += sum(tensor.nbytes for tensor in shard.values())
    missing = shapes(spec).keys() - {name for _, names in written for name in names}
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, for example {min(missing)}")
    _name(folder, written, total_bytes)


def _shards(
    tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, shard_bytes: int
) -> Iterator[dict[str, Tensor]]:
    """The tensors in groups of at most `shard_bytes`."""
    shard: dict[str, Tensor] = {}
    held_bytes = 0
    for name, tensor in tensors:
        tensor = tensor.to(dtype).contiguous()
        if shard and held_bytes + tensor.nbytes > shard_bytes:
            yield shard
            shard, held_bytes = {}, 0
        shard[name] = tensor
        held_bytes += tensor.nbytes
    if shard:
        yield shard


def _name(folder: Path, written: list[tuple[Path, list[str]]], total_bytes: int) -> None:
    """Give the files the names that transformers looks for."""
    if len(written) == 1:
        os.rename(written[0][0], folder / "model.safetensors")
        return
    where: dict[str, str] = {}
    for number, (path, names) in enumerate(written, 1):
        final = f"model-{number:05d}-of-{len(written):05d}.safetensors"
        os.rename(path, folder / final)
        where |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(where.items()))}
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def read_spec(folder: Path) -> ModelSpec:
    """The shape that a folder's config.json describes, its context the most positions that it was made for.

    DocumentError, at its line, for whatever our model does not compute.
    """
    path = folder / "config.json"
    document = read_json(path, _text(path))
    if not isinstance(document.plain, dict):
        raise DocumentError(
            path, 1, 1, "this is not the config.json of a model", "give the folder of a Llama model"
        )
    found: dict[str, Any] = document.plain
    for key, allowed in _MUST_BE.items():
        if found.get(key, allowed[0]) not in allowed:
            raise _refused(document, key, f"isoplan supports only {json.dumps(allowed[0])}")
    theta = _rope_theta(document)
    missing = [theirs for theirs in _FIELDS.values() if theirs not in found and theirs != "initializer_range"]
    if missing:
        raise DocumentError(path, 1, 1, f"{missing[0]} is missing", "give the config.json of a Llama model")
    plain = {ours: found[theirs] for ours, theirs in _FIELDS.items() if theirs in found}
    plain |= {
        "kv_heads": found.get("num_key_value_heads") or found["num_attention_heads"],
        "rope_theta": theta,
    }
    try:
        spec = ModelSpec.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        key = _FIELDS.get(str(first["loc"][0]), "hidden_size") if first["loc"] else "hidden_size"
        raise _refused(document, key, first["msg"]) from None
    if found.get("head_dim") not in (None, spec.head_dim):
        raise _refused(
            document, "head_dim", f"isoplan supports only hidden_size / num_attention_heads = {spec.head_dim}"
        )
    return spec


def _rope_theta(document: Document) -> float:
    """The base of the rotary angles: at the top before transformers 5, in `rope_parameters` since."""
    found = document.plain
    rope = found.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise _refused(document, "rope_parameters", 'isoplan supports only the rope_type "default"')
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise _refused(document, "rope_parameters", "isoplan supports only partial_rotary_factor 1.0")
    theta = rope.get("rope_theta", found.get("rope_theta", 10000.0))
    if not isinstance(theta, int | float):
        raise _refused(document, "rope_theta", "it must be a number")
    return float(theta)


def _refused(document: Document, key: str, rule: str) -> DocumentError:
    value = json.dumps(document.plain.get(key))
    what = f"{key} is {value if len(value) < 60 else value[:57] + '...'}: {rule}"
    return DocumentError(
        document.path,
        *located(document).place((key,)),
        what,
        "choose another model",
    )


@dataclass(frozen=True)
class HfWeights:
    """The weights of a folder, opened: which tensor is in which file."""

    files: Mapping[str, Any]
    """Name of a tensor -> its opened file."""

    def whole(self, name: str) -> Tensor:
        """A tensor, in fp32."""
        tensor: Tensor = self.files[name].get_tensor(name)
        return tensor.float()

    def fill(self, piece: Piece, out: Tensor) -> None:
        """Copy a box of a tensor into `out`, (rows, cols) or (rows,), reading no more than its rows and columns."""
        stored = self.files[piece.name].get_slice(piece.name)
        rows = slice(piece.row, piece.row + piece.rows)
        out.copy_(stored[rows] if len(piece.shape) == 1 else stored[rows, piece.col : piece.col + piece.cols])


def open_weights(folder: Path, spec: ModelSpec) -> HfWeights:
    """The folder's tensors, of which none may be missing, unknown or of another shape; else DocumentError."""
    opened: dict[str, Any] = {}
    expected = shapes(spec)
    for path in files(folder):
        try:
            file: Any = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name.endswith("rotary_emb.inv_freq"):
                    continue  # a table that old versions of transformers saved; it follows from rope_theta
                _check(path, name, file.get_slice(name), expected, opened)
                opened[name] = file
        except (OSError, SafetensorError) as error:
            raise _refused_weights(
                path, f"this is not a readable safetensors file ({str(error).partition(chr(10))[0]})"
            ) from None
    missing = [name for name in expected if name not in opened]
    if missing:
        raise _refused_weights(
            folder,
            f"{missing[0]} and {len(missing) - 1} other tensors that config.json describes are missing",
        )
    return HfWeights(opened)


def _check(
    path: Path, name: str, stored: Any, expected: Mapping[str, tuple[int, ...]], opened: Mapping[str, Any]
) -> None:
    shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
    if name not in expected:
        raise _refused_weights(path, f"{name} is not a tensor of the Llama that config.json describes")
    if name in opened:
        raise _refused_weights(path, f"{name} is in a second file too")
    if shape != expected[name]:
        raise _refused_weights(path, f"{name} has the shape {shape}, but config.json says {expected[name]}")
    if dtype not in ("F64", "F32", "BF16", "F16"):
        raise _refused_weights(path, f"{name} is stored as {dtype}, not as plain floating-point numbers")


def files(folder: Path) -> list[Path]:
    """The safetensors files of a folder's weights, by its index if there is one; DocumentError where there are none."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        if not (folder / "model.safetensors").exists():
            pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
            reason = (
                "the weights are pickle files, which are never opened"
                if pickled
                else "the folder has no weights"
            )
            raise _refused_weights(folder, f"there is no model.safetensors here: {reason}")
        return [folder / "model.safetensors"]
    named = read_json(index, _text(index)).plain
    where = named.get("weight_map") if isinstance(named, dict) else None
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise _refused_weights(index, "this is not an index of safetensors files")
    names = sorted(set(where.values()))
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise _refused_weights(index, f"{outside[0]!r} is not the name of a safetensors file in this folder")
    return [folder / name for name in names]


def _refused_weights(path: Path, what: str) -> DocumentError:
    return DocumentError(path, 1, 1, what, "give a complete folder written by transformers' save_pretrained")


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_TEXT_BYTES + 1)
        if len(data) > _TEXT_BYTES:
            raise DocumentError(
                path, 1, 1, f"the file is larger than {_TEXT_BYTES} bytes", "give the folder of a Llama model"
            )
        return data.decode()
    except OSError as error:
        raise DocumentError(
            path, 1, 1, f"the file cannot be read ({error.strerror})", "give the folder of a Llama model"
        ) from None
    except UnicodeDecodeError:
        raise DocumentError(
            path, 1, 1, "the file is not UTF-8 text", "give the folder of a Llama model"
        ) from None
