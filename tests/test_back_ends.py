"""Every back end against the textbook in fp64, and what is said where one cannot run.

Our Triton kernels run here in Triton's interpreter, and are compiled for GPUs that need not be there.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import Heads, Kernels, apex, choose, door, flash, positions
from model.kernels.offers import UnavailableError, function
from model.loss import cross_entropy
from model.mesh import Axis
from tests.test_kernels import UNIT, relative, textbook

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DTYPES = (torch.float32, torch.bfloat16)


def _unit(dtype: torch.dtype, device: str) -> float:
    """A rounding's relative error. Triton's interpreter cuts bf16 off instead of rounding it: up to 2^-7."""
    return UNIT[dtype] * (4 if device == "cpu" and dtype == torch.bfloat16 else 1)


@pytest.fixture(params=["cpu", GPU])
def triton_kernels(request: pytest.FixtureRequest) -> tuple[Kernels, str]:
    """Our Triton kernels and their device; on a CPU Triton's interpreter runs them."""
    device = request.param
    knobs = pytest.importorskip("triton", reason="Triton is not installed").knobs
    if (device == "cpu") != knobs.runtime.interpret:
        pytest.skip("a process has Triton's interpreter or its compiler, and here is a GPU")
    return door._assembled(door._torch() | door._triton(device, "bf16", True)), device


def drawn(seed: int, *shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def exactly(*tensors: Tensor) -> list[Tensor]:
    """The same numbers in fp64 on a CPU, for autograd."""
    return [one.detach().double().cpu().requires_grad_() for one in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (13, 100), (300, 64)])
def test_the_norm_and_its_gradients_are_the_textbooks(
    triton_kernels: tuple[Kernels, str], rows: int, width: int, residual: bool, dtype: torch.dtype
) -> None:
    kernels, device = triton_kernels
    x, delta, dy, ds = (drawn(seed, rows, width, dtype=dtype, device=device) for seed in range(4))
    gain, summed = drawn(4, width, dtype=dtype, device=device), torch.ones(width, device=device)
    total, y, kept = kernels.norm.forward(x, delta if residual else None, gain, 1e-6)
    dx = kernels.norm.backward(dy, ds if residual else None, kept, gain, summed)
    exact_x, exact_delta, exact_gain = exactly(x, delta, gain)
    exact_total = exact_x + exact_delta if residual else exact_x * 1
    exact_y = exact_total / (exact_total.square().mean(1, keepdim=True) + 1e-6).sqrt() * exact_gain
    torch.autograd.backward((exact_y, exact_total), (*exactly(dy), exactly(ds)[0] * residual))
    bound = 8 * _unit(dtype, device)  # the sum, the result, and a few roundings of fp32
    assert relative(total.cpu(), exact_total) <= bound
    assert relative(y.cpu(), exact_y) < bound
    assert exact_x.grad is not None
    assert exact_gain.grad is not None
    assert relative(dx.cpu(), exact_x.grad) < bound
    assert relative(summed.cpu(), exact_gain.grad + 1) < bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "inner"), [(1, 4), (7, 1030)])
def test_the_gate_and_its_gradient_are_the_textbooks(
    triton_kernels: tuple[Kernels, str], rows: int, inner: int, dtype: torch.dtype
) -> None:
    kernels, device = triton_kernels
    projected = 3 * drawn(0, rows, 2 * inner, dtype=dtype, device=device)
    dinner = drawn(1, rows, inner, dtype=dtype, device=device)
    y, kept = kernels.gate.forward(projected)
    dprojected, again = kernels.gate.backward(dinner.clone(), kept)
    (exact,) = exactly(projected)
    gate, up = exact.chunk(2, dim=1)
    exact_y = gate / (1 + (-gate).exp()) * up
    exact_y.backward(dinner.double().cpu())
    bound = 4 * _unit(dtype, device)  # one rounding of the result, and a few of fp32
    assert relative(y.cpu(), exact_y) < bound
    assert torch.equal(again, y)
    assert exact.grad is not None
    assert relative(dprojected.cpu(), exact.grad) < bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [Heads(2, 37, 4, 2, 6), Heads(1, 20, 3, 1, 16)])
def test_attention_on_rotated_rows_is_the_textbooks(
    triton_kernels: tuple[Kernels, str], heads: Heads, dtype: torch.dtype
) -> None:
    """Queries and keys are turned where they lie, and their gradients back into the projection's."""
    kernels, device = triton_kernels
    batch, sequence, query, kv, size = heads
    qkv = drawn(0, batch * sequence, (query + 2 * kv) * size, dtype=dtype, device=device)
    do = drawn(1, batch * sequence, query * size, dtype=dtype, device=device)
    at = positions(size, sequence, 100.0, dtype, device)
    (exact,) = exactly(qkv)
    exact_o = textbook(exact, heads, 100.0)
    exact_o.backward(do.double().cpu())
    o, kept = kernels.attention.forward(qkv, heads, at)
    assert relative(o.cpu(), exact_o) < 8 * _unit(dtype, device)
    assert exact.grad is not None
    assert relative(kernels.attention.backward(do, kept, heads, at).cpu(), exact.grad) < 16 * _unit(
        dtype, device
    )


@pytest.mark.parametrize("innermost", ["sequence", "size"])
def test_rotation_reads_its_tables_however_they_lie(
    triton_kernels: tuple[Kernels, str], innermost: str
) -> None:
    from model.kernels import triton_calls as calls

    _, device = triton_kernels
    at = positions(8, 33, 100.0, torch.float32, device)
    if (at.cos_KS.stride(1) == 1) != (innermost == "sequence"):
        at = at._replace(
            cos_KS=at.cos_KS.t().contiguous().t() if innermost == "size" else at.cos_KS.contiguous(),
            sin_KS=at.sin_KS.t().contiguous().t() if innermost == "size" else at.sin_KS.contiguous(),
        )
    x = drawn(0, 2, 33, 3, 8, dtype=torch.float32, device=device)
    there, back = torch.empty_like(x), torch.empty_like(x)
    calls.rotate(x, at, 1, there)
    calls.rotate(there, at, -1, back)
    assert relative(back.cpu(), x.double().cpu()) < 8 * UNIT[torch.float32]
    torch.testing.assert_close(there.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(there[:, 1:], x[:, 1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [5, 4100])
def test_cross_entropy_and_its_gradient_are_the_textbooks(
    triton_kernels: tuple[Kernels, str], columns: int, dtype: torch.dtype
) -> None:
    kernels, device = triton_kernels
    logits = 4 * drawn(0, 6, columns, dtype=dtype, device=device) + 20
    target = torch.randint(columns, (6,), generator=torch.Generator().manual_seed(1))
    (exact,) = exactly(logits)
    loss = F.cross_entropy(exact, target, reduction="sum") / 50
    loss.backward()
    ours = cross_entropy(logits.requires_grad_() * 1, target.to(device), 50, Axis(), kernels)
    (gradient,) = torch.autograd.grad(ours, logits)
    assert float(ours.detach()) == pytest.approx(loss.item(), rel=16 * UNIT[torch.float32])
    assert exact.grad is not None
    assert relative(gradient.cpu(), exact.grad) < _unit(dtype, device) + 16 * UNIT[torch.float32]


@pytest.mark.parametrize("cut", [1, 30, 49])
def test_halves_of_a_vocabulary_make_the_whole(triton_kernels: tuple[Kernels, str], cut: int) -> None:
    """Two ranks' columns, measured apart, compared, and differentiated apart; rows of each are strided."""
    kernels, device = triton_kernels
    logits = 4 * drawn(0, 9, 50, dtype=torch.float32, device=device)
    target = torch.arange(9, device=device) * 6
    whole = kernels.cross_entropy.measure(logits, target)
    expected = logits.clone()
    kernels.cross_entropy.differentiate(expected, target, whole, 0.1 / whole.total, 0.1)
    parts = [(logits[:, :cut], target), (logits[:, cut:], target - cut)]
    found = [kernels.cross_entropy.measure(*part) for part in parts]
    peak = torch.maximum(found[0].peak, found[1].peak)
    total = sum(one.total * (one.peak - peak).exp() for one in found)
    torch.testing.assert_close(peak, whole.peak, rtol=0, atol=0)
    torch.testing.assert_close(total, whole.total)
    torch.testing.assert_close(found[0].wanted + found[1].wanted, whole.wanted, rtol=0, atol=0)
    for part, one in zip(parts, found, strict=True):
        kernels.cross_entropy.differentiate(*part, one, 0.1 * (one.peak - peak).exp() / total, 0.1)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-8)


def test_fp64_is_refused_instead_of_rounded(triton_kernels: tuple[Kernels, str]) -> None:
    kernels, device = triton_kernels
    with pytest.raises(ValueError, match="write kernels: torch"):
        kernels.gate.forward(torch.ones(2, 4, dtype=torch.float64, device=device))


COMPILE = """
import re, sys
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from model.kernels import triton_source

knobs.cache.dir = sys.argv[1]
halves = "x delta gain total y dy ds dx projected inner dinner dprojected out cos sin logits"
types = {name: "*bf16" for name in halves.split()}
types |= {name: "*fp32" for name in "inverse partial peak scale wanted".split()}
types |= {"column": "*i64", "eps": "fp32", "sign": "fp32", "share": "fp32"}
constants = {
    "norm_forward": {"HAS_DELTA": True, "BLOCK": 2048},
    "norm_backward": {"HAS_DS": True, "BLOCK": 2048},
    "gate_forward": {"BLOCK": 1024},
    "gate_backward": {"BLOCK": 1024},
    "rotate": {"cos_size": 1, "ROWS": 16, "BLOCK": 64},
    "measure": {"BLOCK": 4096},
    "differentiate": {"BLOCK": 1024},
}
kernels = {name: one for name, one in vars(triton_source).items() if hasattr(one, "arg_names")}
assert set(kernels) == set(constants), "which kernels there are"
for capability in (80, 90):
    for name, kernel in kernels.items():
        known = types | ({"total": "*fp32"} if name == "measure" else {}) | dict.fromkeys(constants[name], "constexpr")
        signature = {argument: known.get(argument, "i32") for argument in kernel.arg_names}
        multiples = [n for n, kind in enumerate(signature.values()) if kind not in ("constexpr", "fp32")]
        source = ASTSource(
            kernel, signature, constexprs=constants[name], attrs={(n,): [["tt.divisibility", 16]] for n in multiples}
        )
        ptx = compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
        wide = [re.search(f"{one}[.]global[^;]*[.]v4[.]", ptx) is not None for one in ("ld", "st")]
        print(name, capability, *wide)
"""


def test_every_kernel_compiles_and_moves_16_bytes_at_once(tmp_path: Path) -> None:
    """For A100 and H100, with rows and widths that are multiples of 16, as those of models are."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 14
    for name, _, loads, stores in lines:
        assert loads == "True", name
        assert stores == "True" or name == "measure", name  # which stores three numbers a row


# What cannot run here.


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
    _module("flash_attn", monkeypatch, flash_attn_func=_flash())
    assert flash.offers("cpu", True)["mix"].words == "flash-attn 2, deterministic"
    _module("flash_attn_interface", monkeypatch, flash_attn_func=_flash(result=lambda o: (o, None)))
    offer = flash.offers("cpu", False)["mix"]
    assert offer.words == "flash-attn 3"
    q = torch.randn(2, 5, 3, 8)
    torch.testing.assert_close(offer.carries_out(q, q, q), _flash()(q, q, q, causal=True, deterministic=True))


@pytest.mark.usefixtures("no_flash")
@pytest.mark.parametrize("wrong", [0.2, math.nan])
def test_a_flash_attention_with_wrong_results_is_not_taken(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    _module("flash_attn", monkeypatch, flash_attn_func=_flash(wrong))
    with pytest.raises(UnavailableError, match="flash-attn 2 gives other results than torch"):
        flash.offers("cpu", True)


@pytest.mark.usefixtures("no_flash")
def test_a_flash_attention_that_raises_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    _module("flash_attn", monkeypatch, flash_attn_func=lambda *_, **__: torch.ones(1) @ torch.ones(2))
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
    offers["accumulate"].carries_out(gradient, dy, x)
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
    _adamw_is_torchs(apex.offers()["adamw"].carries_out, "cpu", monkeypatch)


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
        test_the_norm_and_its_gradients_are_the_textbooks((kernels, "cuda"), 300, 64, True, dtype)
