"""flash-attn and apex: messages where they cannot run, stand-ins that read as their sources do, tests on a GPU."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import Heads, Kernels, apex, choose, flash, positions
from model.kernels.backend import UnavailableError, function
from model.kernels.torch_ops import core_attention
from tests.model.test_kernels import UNIT, relative, textbook
from tests.model.test_triton import DTYPES, drawn, exactly, norm_is_the_textbooks


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
    assert refused.value.__suppress_context__


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


def _module(name: str, monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    made = ModuleType(name)
    made.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, name, made)


def _flash(wrong: float = 0.0, result: Callable[[Tensor], Any] = lambda o: o) -> Callable[..., Any]:
    """A stand-in with flash-attn's signature."""

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, deterministic: bool) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return result(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2) + wrong)

    return flash_attn_func


def _varlen(wrong: float = 0.0, result: Callable[[Tensor], Any] = lambda o: o) -> Callable[..., Any]:
    """A stand-in of its function for documents side by side."""

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        *,
        causal: bool,
        deterministic: bool,
    ) -> Any:
        assert cu_seqlens_q.dtype == torch.int32
        assert max_seqlen_q == max_seqlen_k
        sizes = cu_seqlens_q.diff().tolist()
        documents = zip(*(x.split(sizes) for x in (q, k, v)), strict=True)
        parts = [
            _flash()(*(x[None] for x in one), causal=causal, deterministic=deterministic)[0]
            for one in documents
        ]
        return result(torch.cat(parts) + wrong)

    return flash_attn_varlen_func


def _package(
    wrong: float = 0.0, result: Callable[[Tensor], Any] = lambda o: o
) -> dict[str, Callable[..., Any]]:
    return {"flash_attn_func": _flash(wrong, result), "flash_attn_varlen_func": _varlen(wrong, result)}


@pytest.fixture
def no_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, module in flash._VERSIONS:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.usefixtures("no_flash")
def test_the_newest_flash_attention_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UnavailableError, match=r"flash_attn\.cute does not import.*flash_attn does not import"
    ):
        flash.offers("cpu", True)
    _module("flash_attn", monkeypatch, **_package())
    assert flash.offers("cpu", True)["core_attention"].description == "flash-attn 2, deterministic"
    _module("flash_attn_interface", monkeypatch, **_package(result=lambda o: (o, None)))
    offer = flash.offers("cpu", False)["core_attention"]
    assert offer.description == "flash-attn 3"
    q = torch.randn(2, 5, 3, 8)
    torch.testing.assert_close(offer.function(q, q, q), _flash()(q, q, q, causal=True, deterministic=True))
    start_BS = torch.tensor([[0, 0, 2, 2, 2], [0, 1, 1, 1, 4]])
    torch.testing.assert_close(offer.function(q, q, q, start_BS), core_attention(q, q, q, start_BS))


@pytest.mark.usefixtures("no_flash")
@pytest.mark.parametrize("broken", ["flash_attn_func", "flash_attn_varlen_func"])
@pytest.mark.parametrize("wrong", [0.2, math.nan])
def test_a_flash_attention_with_wrong_results_is_not_taken(
    wrong: float, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _module("flash_attn", monkeypatch, **_package() | {broken: _package(wrong)[broken]})
    with pytest.raises(UnavailableError, match="flash-attn 2 gives other results than torch"):
        flash.offers("cpu", True)


@pytest.mark.usefixtures("no_flash")
def test_a_flash_attention_that_raises_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    raising: dict[str, Any] = {"flash_attn_func": lambda *_, **__: torch.ones(1) @ torch.ones(2)}
    _module("flash_attn", monkeypatch, **_package() | raising)
    with pytest.raises(UnavailableError, match="flash-attn 2 fails on cpu"):
        flash.offers("cpu", True)


def test_fp32_is_not_given_to_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="computes in bf16, not fp32"):
        choose("flash-attn", "cuda", "fp32")


def test_apex_offers_what_it_was_built_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("distributed_adam_cuda", "fused_weight_gradient_mlp_cuda", "fused_layer_norm_cuda"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnavailableError, match="distributed_adam_cuda does not import"):
        apex.offers()
    _module("fused_weight_gradient_mlp_cuda", monkeypatch, wgrad_gemm_accum_fp32=_wgrad)
    _module("fused_layer_norm_cuda", monkeypatch, rms_forward_affine=len)
    offers = apex.offers()
    assert set(offers) == {"accumulate"}
    gradient = torch.ones(2, 3)
    dy, x = torch.randn(5, 2), torch.randn(5, 3)
    offers["accumulate"].function(gradient, dy, x)
    torch.testing.assert_close(gradient, 1 + dy.t() @ x)


def _wgrad(x: Tensor, dy: Tensor, gradient: Tensor) -> None:
    gradient += dy.t() @ x


def _distributed_adam(
    chunk: int,
    noop: Tensor,
    lists: list[list[Tensor]],
    grad_scale: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    mode: int,
    bias_correction: int,
    weight_decay: float,
) -> None:
    """apex's DistAdamFunctor in torch, as its source says (mode 1 is AdamW; gradients are multiplied by the scale)."""
    assert (mode, bias_correction, int(noop)) == (1, 1, 0)
    for p, m, v, g, out in zip(*lists, strict=True):
        scaled = g * grad_scale
        m.lerp_(scaled, 1 - beta1)
        v.lerp_(scaled.square(), 1 - beta2)
        update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps) + weight_decay * p
        p.sub_(update, alpha=lr)
        out.copy_(p)


def test_apexs_adamw_is_called_as_its_source_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    _module("distributed_adam_cuda", monkeypatch, multi_tensor_fused_adam=_distributed_adam)
    _adamw_is_torchs(apex.offers()["adamw"].function, "cpu", monkeypatch)


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
