import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import hf
from model.kernels import choose
from model.mesh import Axis, Mesh
from model.parameters import Piece
from model.transformer import Stage
from model.zero import AdamW
from specs.document.files import DocumentError
from specs.model import ModelSpec
from tests.support import samples

SEED = 5


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm-wise error."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def weights_of(spec: ModelSpec, seed: int = SEED) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in hf.shapes(spec).items()}


def written(folder: Path, spec: ModelSpec, precision: str = "fp32", **options: Any) -> Path:
    folder.mkdir()
    hf.write(folder, spec, precision, 0, weights_of(spec).items(), **options)
    return folder


def edited(folder: Path, **changes: Any) -> Path:
    """The same folder with other entries in its config.json."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def test_a_shape_comes_back_from_its_config(tmp_path: Path) -> None:
    spec = samples.model(heads=4, kv_heads=2, rope_theta=5e5, norm_eps=1e-5, init_std=0.02)
    assert hf.read_spec(written(tmp_path / "it", spec)) == spec


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_come_back_by_boxes_rounded_once(tmp_path: Path, precision: str) -> None:
    spec = samples.model()
    weights = hf.open_weights(written(tmp_path / "it", spec, precision), spec)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    for name, value in weights_of(spec).items():
        assert torch.equal(weights.whole(name), value.to(dtype).float())
    piece = Piece("model.layers.1.mlp.down_proj.weight", (64, 176), 3, 50, 5, 70)
    out = torch.empty(5, 70)
    weights.fill(piece, out)
    assert torch.equal(out, weights.whole(piece.name)[3:8, 50:120])


def test_large_models_are_cut_into_files_with_an_index(tmp_path: Path) -> None:
    spec = samples.model()
    folder = written(tmp_path / "it", spec, shard_bytes=100_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(names) > 2
    assert sorted(set(index["weight_map"].values())) == names
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert index["metadata"]["total_size"] == 4 * spec.params
    largest = max(tensor.nbytes for tensor in weights_of(spec).values())
    for name in names:
        held = load_file(folder / name)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= max(100_000, largest)
    weights = hf.open_weights(folder, spec)
    assert all(torch.equal(weights.whole(name), value) for name, value in weights_of(spec).items())


def test_a_tensor_that_was_not_given_is_not_written_about(tmp_path: Path) -> None:
    spec = samples.model()
    some = [(name, value) for name, value in weights_of(spec).items() if name != "lm_head.weight"]
    with pytest.raises(ValueError, match="lm_head"):
        hf.write(tmp_path, spec, "fp32", 0, some)


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("shard_bytes", [hf.SHARD_BYTES, 50_000])
def test_transformers_computes_our_logits(tmp_path: Path, kv_heads: int, shard_bytes: int) -> None:
    """fp32, norm-wise 1e-5: as in test_transformer.py."""
    transformers = pytest.importorskip("transformers")
    spec = samples.model(heads=4, kv_heads=kv_heads, init_std=0.1)
    ours = stage_with_weights(spec, "fp32")
    folder = tmp_path / "it"
    folder.mkdir()
    hf.write(folder, spec, "fp32", 0, drawn(spec), shard_bytes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(theirs, transformers.LlamaForCausalLM)
    assert theirs.dtype == torch.float32
    tokens = torch.randint(spec.vocab, (2, 100), generator=torch.Generator().manual_seed(SEED))
    assert relative(ours.logits(tokens), theirs(tokens).logits) < 1e-5


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_transformers_computes_our_logits_in_bf16_as_well_as_we_do(tmp_path: Path, kv_heads: int) -> None:
    """Both against fp32 of the same rounded weights: neither is farther off than bf16's 2^-9 per rounding explains.

    Some 6 roundings a sub-layer on the way to the residual stream, 2 layers of 2: 24 x 2^-9 = 5 % at the very worst,
    sqrt(24) x 2^-9 = 1 % if they are independent; the bound is twice that.
    """
    transformers = pytest.importorskip("transformers")
    spec = samples.model(heads=4, kv_heads=kv_heads, init_std=0.1)
    folder = tmp_path / "it"
    folder.mkdir()
    hf.write(folder, spec, "bf16", 0, drawn(spec))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.dtype == torch.bfloat16
    tokens = torch.randint(spec.vocab, (2, 100), generator=torch.Generator().manual_seed(SEED))
    ours = stage_with_weights(spec, "bf16").logits(tokens).double()
    exact = theirs.float()(tokens).logits.double()
    found = theirs.bfloat16()(tokens).logits.double()
    assert relative(ours, exact) < 0.02
    assert relative(found, exact) < 0.02
    assert relative(ours, found) < 0.03


def stage_with_weights(spec: ModelSpec, precision: str) -> Stage:
    stage = Stage(spec, precision=precision, mesh=Mesh(), kernels=choose("auto", "cpu"), device="cpu")
    AdamW(stage, Axis(), samples.optim()).initialize(SEED)
    return stage


def drawn(spec: ModelSpec) -> list[tuple[str, torch.Tensor]]:
    """The masters that a stage starts with."""
    stage = Stage(spec, precision="fp32", mesh=Mesh(), kernels=choose("auto", "cpu"), device="cpu")
    optimizer = AdamW(stage, Axis(), samples.optim())
    optimizer.initialize(SEED)
    return [(box.piece.name, box.master.clone()) for box in optimizer.boxes()]


REFUSED: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_act": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4},
    "head_dim": 48,
    "quantization_config": {"bits": 4},
    "num_key_value_heads": 3,
    "hidden_size": "64",
    "rope_theta": "high",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_our_model_does_not_compute_is_refused_at_its_line(tmp_path: Path, key: str) -> None:
    folder = written(tmp_path / "it", samples.model())
    changes = {key: REFUSED[key]} | ({"rope_parameters": None} if key == "rope_theta" else {})
    edited(folder, **changes)
    lines = (folder / "config.json").read_text().splitlines()
    with pytest.raises(DocumentError) as caught:
        hf.read_spec(folder)
    assert f'"{key}"' in lines[caught.value.line - 1] or key == "num_key_value_heads"
    assert key in str(caught.value) or key == "num_key_value_heads"


def test_what_transformers_left_out_has_its_default(tmp_path: Path) -> None:
    folder = written(tmp_path / "it", samples.model(heads=2, kv_heads=2))
    config = json.loads((folder / "config.json").read_text())
    for key in (
        "rope_parameters",
        "head_dim",
        "attention_bias",
        "mlp_bias",
        "num_key_value_heads",
        "hidden_act",
    ):
        del config[key]
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))
    found = hf.read_spec(folder)
    assert found.rope_theta == 5e5
    assert found.kv_heads == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "model.norm.weight and 0 other tensors"),
        (lambda tensors: tensors.update({"model.extra": torch.zeros(2)}), "model.extra is not a tensor"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}), "has the shape"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(64).long()}), "stored as I64"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    tmp_path: Path, change: Any, message: str
) -> None:
    spec = samples.model()
    folder = written(tmp_path / "it", spec)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DocumentError, match=message):
        hf.open_weights(folder, spec)


def test_tables_that_follow_from_the_config_are_passed_over(tmp_path: Path) -> None:
    spec = samples.model()
    folder = written(tmp_path / "it", spec)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(16)
    save_file(tensors, folder / "model.safetensors")
    assert hf.open_weights(folder, spec).files.keys() == hf.shapes(spec).keys()


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    folder = written(tmp_path / "it", samples.model())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DocumentError, match="pickle files, which are never opened"):
        hf.files(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/model.safetensors", "model.bin"])
def test_an_index_names_files_of_its_own_folder_only(tmp_path: Path, name: str) -> None:
    index = {"weight_map": {"model.norm.weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DocumentError, match="not the name of a safetensors file in this folder"):
        hf.files(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    spec = samples.model()
    folder = written(tmp_path / "it", spec)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DocumentError, match="not a readable safetensors file"):
        hf.open_weights(folder, spec)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff\xfe", b'{"model_type": "llama"}'])
def test_a_config_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(DocumentError, match=r"config\.json"):
        hf.read_spec(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="cannot be read"):
        hf.read_spec(tmp_path / "absent")
