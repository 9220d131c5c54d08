"""flash-attn and apex: messages where they cannot run, stand-ins that read as their sources do, tests on a GPU."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.documents import document_ends, document_starts
from model.kernels import Heads, Kernels, apex, choose, positions, registry, shape_of
from model.kernels.backend import KernelShape, UnavailableError, function
from model.kernels.registry import SMALL
from model.kernels.torch_ops import core_attention
from model.kernels.trial import Example
from specs.model import ModelSpec
from tests.model.test_kernels import UNIT, relative, textbook
from tests.model.test_triton import DTYPES, drawn, exactly, norm_is_the_textbooks
from tests.support import gpu_libraries


@pytest.mark.parametrize("setting", ["apex", "triton", "flash-attn"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_absent_back_end_is_refused_in_one_line(
    setting: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match="need a CUDA device; write kernels: auto or kernels: torch"
    ) as refused:
        choose(setting, device)
    assert setting in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.__context__ is None


def test_auto_takes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose("auto", "cuda").describe() == choose("torch", "cuda").describe()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No module named"),
        ("raise OSError('libcudart.so.11: cannot open\\nmore')", r"libcudart.so.11: cannot open\)"),
        ("", "has no attend"),
        ("attend = 3", "has no attend"),
    ],
)
def test_a_probe_looks_for_the_function_not_the_package(
    content: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    if content is not None:
        (tmp_path / "probed_package.py").write_text(content)
    with pytest.raises(UnavailableError, match=reason):
        function("probed_package", "attend")
    sys.modules.pop("probed_package", None)


TINY = SMALL._replace(context=20, width=32, inner=16, vocab=60)
"""Small enough for Triton's interpreter."""


def tried(
    setting: str,
    shape: KernelShape = TINY,
    precision: str = "bf16",
    deterministic: bool = True,
    sum_over_ranks: registry.SumOverRanks = list,
) -> Kernels:
    """As `choose` on a GPU, but with the examples on this CPU."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    return registry._tried(setting, Example(shape, dtype, "cpu", deterministic), precision, sum_over_ranks)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with torch alone."""
    gpu_libraries.remove(monkeypatch, (*gpu_libraries.MODULES.values(), *gpu_libraries.APEX, "triton"))
    return monkeypatch


@pytest.mark.parametrize(
    ("size", "deterministic", "installed", "taken"),
    [
        (64, True, {4: 9, 3: 9, 2: 9}, 4),
        (24, True, {4: 10, 2: 10}, 4),
        (20, True, {4: 9, 3: 9, 2: 9}, 2),  # no multiple of 8: only version 2 pads
        (160, True, {4: 9, 3: 9}, 4),
        (160, True, {4: 10, 2: 10}, 2),  # above 128 on a B200
        (256, True, {3: 9, 2: 9}, 2),  # no deterministic backward
        (200, True, {3: 9, 2: 9}, 2),  # rounded up to 256
        (200, False, {3: 9, 2: 9}, 3),
        (192, True, {3: 9, 2: 9}, 3),
        (64, True, {4: 8, 2: 8}, 2),  # no backward on an A100
        (264, True, {4: 9, 3: 9, 2: 9}, None),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_flash_attention_is_tried_on_the_runs_own_head_size(
    size: int,
    deterministic: bool,
    installed: dict[int, int],
    taken: int | None,
    masked: bool,
    bare: pytest.MonkeyPatch,
) -> None:
    for version, capability in installed.items():
        gpu_libraries.install_flash(bare, f"flash-attn {version}", capability)
    shape = TINY._replace(heads=4, kv_heads=2, head_size=size, masked=masked)
    text = tried("auto", shape, deterministic=deterministic).describe()["attention"]
    assert text.startswith("torch scaled" if taken is None else f"flash-attn {taken}")
    assert text.startswith(f"flash-attn {taken}, deterministic") == (taken is not None and deterministic)
    newer = [version for version in installed if taken is None or version > taken]
    for version in newer:  # the reason is in the record
        assert f"flash-attn {version} failed (" in text
    assert ("since" in text) == bool(newer)


def test_what_flash_attention_is_given_comes_back_as_torchs(bare: pytest.MonkeyPatch) -> None:
    for version in (2, 3, 4):
        gpu_libraries.install_flash(bare, f"flash-attn {version}")
        candidate = {one.name: one for one in registry.flash.candidates()["core_attention"]}[
            f"flash-attn {version}"
        ]
        attend = candidate.find("bf16", True).function
        q = torch.randn(2, 5, 3, 8).bfloat16()
        torch.testing.assert_close(attend(q, q, q), core_attention(q, q, q))
        start_BS = torch.tensor([[0, 0, 2, 2, 2], [0, 1, 1, 1, 4]])
        torch.testing.assert_close(
            attend(q, q, q, start_BS), core_attention(q, q, q, start_BS), rtol=2**-6, atol=2**-6
        )


def test_where_documents_end_is_taken_from_the_host_where_it_says(bare: pytest.MonkeyPatch) -> None:
    """To find it on a GPU, each layer would wait for that."""
    gpu_libraries.install_flash(bare, "flash-attn 2")
    attend = registry.flash.candidates()["core_attention"][-1].find("bf16", True).function
    tokens_BS = torch.tensor([[5, 3, 6, 7, 3, 3, 8], [3, 1, 2, 4, 5, 6, 3]])
    q, starts_BS = torch.randn(2, 7, 2, 8).bfloat16(), document_starts(tokens_BS, 3)
    found = attend(q, q, q, starts_BS)
    bare.setattr(registry.flash, "_document_ends", None)
    ends_N = torch.from_numpy(document_ends(tokens_BS.numpy(), 3))
    assert torch.equal(attend(q, q, q, starts_BS, ends_N), found)


@pytest.mark.parametrize("broken", ["flash_attn_func", "flash_attn_varlen_func"])
@pytest.mark.parametrize("wrong", [0.2, math.nan])
def test_a_flash_attention_with_wrong_results_is_not_taken(
    wrong: float, broken: str, bare: pytest.MonkeyPatch
) -> None:
    package = gpu_libraries.flash_2()
    right = package[broken]
    package[broken] = lambda *args, **named: right(*args, **named) + wrong
    gpu_libraries.module(bare, "flash_attn", **package)
    masked = TINY._replace(masked=True)
    with pytest.raises(ValueError, match=r"flash-attn 2 failed \(its results differ from torch's"):
        tried("flash-attn", masked)
    assert "its results differ from torch's" in tried("auto", masked).describe()["attention"]
    if broken == "flash_attn_varlen_func":  # which a run of joined documents never calls
        assert tried("flash-attn").describe()["attention"].startswith("flash-attn 2")


def test_late_positions_count_as_much_as_the_first(bare: pytest.MonkeyPatch) -> None:
    """Results of attention get smaller along a sequence: what is wrong at its end is small beside the first."""
    package = gpu_libraries.flash_2()
    right = package["flash_attn_func"]

    def late(*args: Any, **named: Any) -> Tensor:
        o: Tensor = right(*args, **named)
        return torch.cat((o[:, :-64], o[:, -64:] * 1.2), dim=1)

    package["flash_attn_func"] = late
    gpu_libraries.module(bare, "flash_attn", **package)
    with pytest.raises(ValueError, match="its results differ from torch's"):
        tried("flash-attn", TINY._replace(context=512))


def test_results_that_do_not_repeat_are_refused_where_bytes_are_promised(bare: pytest.MonkeyPatch) -> None:
    package = gpu_libraries.flash_2()
    right, calls = package["flash_attn_func"], []

    def unsteady(*args: Any, **named: Any) -> Tensor:
        calls.append(1)
        result: Tensor = right(*args, **named)
        return result * (1 + 2.0**-7 * (len(calls) % 2))

    package["flash_attn_func"] = unsteady
    gpu_libraries.module(bare, "flash_attn", **package)
    with pytest.raises(ValueError, match="its results differ from call to call"):
        tried("flash-attn")
    assert tried("flash-attn", deterministic=False).describe()["attention"].startswith("flash-attn 2")


def test_fp32_is_not_given_to_flash_attention(bare: pytest.MonkeyPatch) -> None:
    gpu_libraries.install_flash(bare, "flash-attn 2")
    with pytest.raises(ValueError, match="computes in bf16, not fp32"):
        tried("flash-attn", precision="fp32")
    assert "since" not in tried("auto", precision="fp32").describe()["attention"]  # it is no fault


def test_a_node_without_a_compiler_falls_back_with_the_reason(bare: pytest.MonkeyPatch) -> None:
    """Triton compiles its driver at its first launch; whichever operation comes first fails there."""
    bare.undo()
    calls = pytest.importorskip("model.kernels.triton_ops")

    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    for name in ("norm_forward", "gate_forward", "rotate", "measure"):
        bare.setattr(calls, name, no_compiler)
    reason = (
        "triton failed (RuntimeError: Failed to find C compiler. Please specify via CC environment variable.)"
    )
    described = tried("auto").describe()
    for operation in ("norm", "gate", "cross_entropy", "attention"):
        assert described[operation].startswith("torch")
        assert described[operation].endswith(f", since {reason}")
    assert "since" not in described["adamw"]
    with pytest.raises(
        ValueError, match=r"triton kernels cannot run here: triton failed .*kernels: auto"
    ) as refused:
        tried("triton")
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_triton_is_taken_where_it_works(bare: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter."""
    bare.undo()
    knobs = pytest.importorskip("triton", reason="Triton is not installed").knobs
    if not knobs.runtime.interpret:
        pytest.skip("a process has Triton's interpreter or its compiler")
    described = tried("triton", precision="fp32").describe()
    for operation in ("norm", "gate", "cross_entropy"):
        assert described[operation] == "ours, in Triton"
    assert described["attention"].endswith("rotary positions: ours, in Triton")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_apex_offers_what_it_was_built_with(precision: str, bare: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="distributed_adam_cuda does not import"):
        tried("apex")
    for built in (gpu_libraries.APEX, gpu_libraries.APEX[2:], gpu_libraries.APEX[:1]):
        gpu_libraries.install_apex(bare, built)
        described = tried("apex", precision=precision).describe()
        assert {text for text in described.values() if "apex" in text} == {f"apex {name}" for name in built}


def test_an_apex_for_another_gpu_is_not_taken(bare: pytest.MonkeyPatch) -> None:
    def no_kernel(*_: Any) -> Any:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    gpu_libraries.install_apex(bare)
    gpu_libraries.module(bare, "fused_weight_gradient_mlp_cuda", wgrad_gemm_accum_fp32=no_kernel)
    described = tried("auto").describe()
    assert described["accumulate"].startswith(
        "torch addmm into fp32, since apex failed (RuntimeError: CUDA error: no"
    )
    assert described["adamw"] == "apex distributed_adam_cuda"
    with pytest.raises(ValueError, match="no kernel image is available"):
        tried("apex")


def test_apexs_norm_is_the_textbooks(bare: pytest.MonkeyPatch) -> None:
    gpu_libraries.install_apex(bare)
    for dtype in DTYPES:
        norm_is_the_textbooks(tried("apex"), "cpu", 20, 64, True, dtype)


def test_apexs_adamw_is_called_as_its_source_reads(bare: pytest.MonkeyPatch) -> None:
    gpu_libraries.install_apex(bare)
    _adamw_is_torchs(tried("apex").adamw, "cpu", bare)


@pytest.mark.parametrize(("bad", "absent"), [(1, 0), (1, 1)], ids=["fails", "is absent"])
def test_ranks_take_only_what_works_on_all_of_them(bad: int, absent: int, bare: pytest.MonkeyPatch) -> None:
    """Else tensor-parallel ranks would compute different norms of the same rows."""
    gpu_libraries.install_apex(bare)
    asked = []

    def with_another_rank(numbers: list[int]) -> list[int]:
        asked.append(numbers)
        return [ours + theirs for ours, theirs in zip(numbers, (bad, absent, 1), strict=True)]

    kernels = tried("auto", sum_over_ranks=with_another_rank)
    for operation in ("norm", "accumulate", "adamw"):
        text = kernels.describe()[operation]
        assert text.startswith("torch")
        assert text.endswith("apex failed (on another rank, whose log says why)")
    assert all("apex" not in line for line in kernels.failed_here)
    candidates = [one.candidates() for one in (registry.flash, registry.apex)] + [registry._triton()]
    assert len(asked) == sum(
        len(each) for one in candidates for each in one.values()
    )  # on every rank as often
    with pytest.raises(ValueError, match="on another rank, whose log says why"):
        tried("apex", sum_over_ranks=with_another_rank)


def test_a_run_tries_its_own_share_of_the_model() -> None:
    spec = ModelSpec(layers=2, width=64, heads=8, kv_heads=4, ffn=176, vocab=1000, context=32)
    assert shape_of(spec, 4, True) == KernelShape(2, 1, 8, 32, 64, 44, 250, True)


def _adamw_is_torchs(adamw: Any, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apex, "_TENSOR_ELEMENTS", 30)
    states = [[drawn(seed, 100, dtype=torch.float32, device=device) for seed in range(2)] for _ in range(2)]
    rounded = torch.empty(100, dtype=torch.bfloat16, device=device)
    for state, update in zip(states, (adamw, choose("torch", "cpu").adamw), strict=True):
        state += [torch.zeros_like(state[0]), torch.zeros_like(state[0])]
        for step in (1, 2, 3):
            update(
                *(one.clone() if place == 1 else one for place, one in enumerate(state)),
                rounded,
                step=step,
                lr=0.1,
                betas=(0.9, 0.95),
                weight_decay=0.1,
                eps=1e-8,
                grad_scale=4.0,
            )
        assert torch.equal(rounded, state[0].bfloat16())
    for ours, theirs in zip(*states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# On a GPU.


def _or_skip(setting: str) -> Kernels:
    try:
        return choose(setting, "cuda")
    except ValueError as absent:
        pytest.skip(str(absent))


@pytest.mark.gpu
@pytest.mark.parametrize("setting", ["torch", "flash-attn", "auto"])
@pytest.mark.parametrize("heads", [Heads(2, 256, 4, 2, 64), Heads(1, 300, 2, 2, 128)])
def test_attention_on_a_gpu_is_the_textbooks_and_repeats_itself(setting: str, heads: Heads) -> None:
    kernels = _or_skip(setting)
    width = (heads.query + 2 * heads.kv) * heads.size
    qkv = drawn(0, heads.batch * heads.sequence, width, dtype=torch.bfloat16, device="cuda")
    do = drawn(1, len(qkv), heads.query * heads.size, dtype=torch.bfloat16, device="cuda")
    at = positions(heads.size, heads.sequence, 1e4, torch.bfloat16, "cuda")
    (exact,) = exactly(qkv)
    exact_o = textbook(exact, heads, 1e4)
    exact_o.backward(do.double().cpu())
    assert exact.grad is not None
    torch.set_deterministic_debug_mode("error")
    try:
        results = [kernels.attention.forward(qkv.clone(), heads, at) for _ in range(2)]
        gradients = [kernels.attention.backward(do, kept, heads, at) for _, kept in results]
    finally:
        torch.set_deterministic_debug_mode("default")
    assert relative(results[0][0].cpu(), exact_o) < 8 * UNIT[torch.bfloat16]
    assert relative(gradients[0].cpu(), exact.grad) < 16 * UNIT[torch.bfloat16]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(*gradients)


@pytest.mark.gpu
@pytest.mark.parametrize("setting", ["torch", "apex"])
def test_weight_gradients_on_a_gpu_add_up_in_fp32(setting: str) -> None:
    """A sum of bf16 products that is rounded to bf16 before it is added would be off by 2^-9 each time."""
    kernels = _or_skip(setting)
    gradient = torch.ones(64, 48, device="cuda")
    dy, x = (drawn(seed, 256, size, dtype=torch.bfloat16, device="cuda") for seed, size in ((0, 64), (1, 48)))
    exact = 1 + 3 * dy.double().t() @ x.double()
    for _ in range(3):
        kernels.accumulate(gradient, dy, x)
    assert relative(gradient.cpu(), exact.cpu()) < 32 * UNIT[torch.float32]


@pytest.mark.gpu
def test_apexs_adamw_on_a_gpu_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = _or_skip("apex")
    if "apex" not in kernels.describe()["adamw"]:
        pytest.skip("apex was built without distributed_adam_cuda")
    _adamw_is_torchs(kernels.adamw, "cuda", monkeypatch)


@pytest.mark.gpu
def test_apexs_norm_on_a_gpu_is_the_textbooks() -> None:
    kernels = _or_skip("apex")
    if "apex" not in kernels.describe()["norm"]:
        pytest.skip("apex was built without fused_layer_norm_cuda")
    for dtype in DTYPES:
        norm_is_the_textbooks(kernels, "cuda", 300, 64, True, dtype)
