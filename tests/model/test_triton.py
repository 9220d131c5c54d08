"""Our Triton kernels against the textbook in fp64.

Without a GPU they run in Triton's interpreter, and are compiled for GPUs that need not be there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import Heads, Kernels, positions, registry
from model.loss import cross_entropy
from model.mesh import Axis
from tests.model.test_kernels import UNIT, relative, textbook
from tests.support.paths import ROOT

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
    ours = {name: one.find("bf16", True) for name, (one,) in registry._triton().items()}
    return registry._assembled(registry._torch() | ours), device


def drawn(seed: int, *shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def exactly(*tensors: Tensor) -> list[Tensor]:
    """The same numbers in fp64 on a CPU, for autograd."""
    return [one.detach().double().cpu().requires_grad_() for one in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (13, 100), (20, 64)])
def test_the_norm_and_its_gradients_are_the_textbooks(
    triton_kernels: tuple[Kernels, str], rows: int, width: int, residual: bool, dtype: torch.dtype
) -> None:
    norm_is_the_textbooks(*triton_kernels, rows, width, residual, dtype)


def norm_is_the_textbooks(
    kernels: Kernels, device: str, rows: int, width: int, residual: bool, dtype: torch.dtype
) -> None:
    """RMSNorm of a sum, its gradients, the gain's added to what was there."""
    x, delta, dy, ds = (drawn(seed, rows, width, dtype=dtype, device=device) for seed in range(4))
    gain, summed = drawn(4, width, dtype=dtype, device=device), torch.ones(width, device=device)
    total, y, saved = kernels.norm.forward(x, delta if residual else None, gain, 1e-6)
    dx = kernels.norm.backward(dy, ds if residual else None, saved, gain, summed)
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
    y, saved = kernels.gate.forward(projected)
    dprojected, again = kernels.gate.backward(dinner.clone(), saved)
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
    o, saved = kernels.attention.forward(qkv, heads, at)
    assert relative(o.cpu(), exact_o) < 8 * _unit(dtype, device)
    assert exact.grad is not None
    assert relative(kernels.attention.backward(do, saved, heads, at).cpu(), exact.grad) < 16 * _unit(
        dtype, device
    )


@pytest.mark.parametrize("innermost", ["sequence", "size"])
def test_rotation_reads_its_tables_however_they_lie(
    triton_kernels: tuple[Kernels, str], innermost: str
) -> None:
    from model.kernels import triton_ops as calls

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
    torch.testing.assert_close(
        found[0].target_logit + found[1].target_logit, whole.target_logit, rtol=0, atol=0
    )
    for part, one in zip(parts, found, strict=True):
        kernels.cross_entropy.differentiate(*part, one, 0.1 * (one.peak - peak).exp() / total, 0.1)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-8)


def test_fp64_is_refused_instead_of_rounded(triton_kernels: tuple[Kernels, str]) -> None:
    kernels, device = triton_kernels
    with pytest.raises(ValueError, match="write kernels: torch"):
        kernels.gate.forward(torch.ones(2, 4, dtype=torch.float64, device=device))


COMPILE = """
import json, re, subprocess, sys
from pathlib import Path
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from model.kernels import triton_kernels, triton_ops as ops

knobs.cache.dir = sys.argv[1]
halves = "x delta gain total y dy ds dx projected inner dinner dprojected out cos sin logits"
types = {name: "*bf16" for name in halves.split()}
types |= {name: "*fp32" for name in "inverse partial peak scale target_logit".split()}
types |= {"column": "*i64", "eps": "fp32", "sign": "fp32", "share": "fp32"}
launches = [  # the largest blocks; 16384 is the width of Llama 3 405B
    ("norm_forward", {"HAS_DELTA": True, "BLOCK": 16384}, ops.warps(16384)),
    ("norm_backward", {"HAS_DS": True, "BLOCK": 4096}, ops.backward_warps(4096)),
    ("norm_backward", {"HAS_DS": True, "BLOCK": 8192}, ops.backward_warps(8192)),
    ("norm_backward", {"HAS_DS": True, "BLOCK": 16384}, ops.backward_warps(16384)),
    ("gate_forward", {"BLOCK": ops.TILE}, 4),
    ("gate_backward", {"BLOCK": ops.TILE}, 4),
    ("rotate", {"cos_size": 1, "ROWS": ops.ROTARY_ROWS, "BLOCK": 128}, 4),
    ("measure", {"BLOCK": ops.LOGITS_AT_ONCE}, ops.LOGITS_WARPS),
    ("differentiate", {"BLOCK": ops.TILE}, 4),
]
kernels = {name: one for name, one in vars(triton_kernels).items() if hasattr(one, "arg_names")}
assert set(kernels) == {name for name, *_ in launches}, "which kernels there are"
for capability in (80, 90, 100):
    assembler = (knobs.nvidia.ptxas_blackwell if capability >= 100 else knobs.nvidia.ptxas).path
    for name, constants, warps in launches:
        kernel = kernels[name]
        known = types | ({"total": "*fp32"} if name == "measure" else {}) | dict.fromkeys(constants, "constexpr")
        signature = {argument: known.get(argument, "i32") for argument in kernel.arg_names}
        multiples = [n for n, kind in enumerate(signature.values()) if kind not in ("constexpr", "fp32")]
        source = ASTSource(
            kernel, signature, constexprs=constants, attrs={(n,): [["tt.divisibility", 16]] for n in multiples}
        )
        target = GPUTarget("cuda", capability, 32)
        ptx = compile(source, target=target, options={"num_warps": warps}).asm["ptx"]
        wide = {one: re.search(f"{one}[.]global[^;]*[.]v4[.]", ptx) is not None for one in ("ld", "st")}
        text = Path(sys.argv[1]) / "kernel.ptx"
        text.write_text(ptx)
        argv = [assembler, "-v", "--gpu-name", re.search("[.]target (sm_[0-9a-z]+)", ptx)[1], text, "-o", "/dev/null"]
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stderr
        spilled = sum(map(int, re.search("([0-9]+) bytes spill stores, ([0-9]+) bytes spill loads", said).groups()))
        registers = int(re.search("Used ([0-9]+) registers", said)[1])
        found = {"spilled_bytes": spilled, "registers": registers, "threads": 32 * warps, **wide}
        print(json.dumps({"name": name, "capability": capability, "block": constants["BLOCK"], **found}))
"""
REGISTERS = 65536
"""Of a processor of an A100, H100 and B200 (NVIDIA, CUDA C++ Programming Guide, table of technical specifications)."""


@pytest.mark.slow
def test_every_kernel_compiles_without_spills_and_moves_16_bytes_at_once(tmp_path: Path) -> None:
    """For A100, H100 and B200 at the largest blocks, with rows and widths that are multiples of 16, as those of models
    are, by the assembler that comes with Triton. A spill makes each row go through memory once more."""
    ops = pytest.importorskip("model.kernels.triton_ops", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 3 * 9
    for line in lines:
        assert line["spilled_bytes"] == 0, line
        assert line["registers"] * line["threads"] <= REGISTERS, line
        assert line["ld"], line
        assert line["st"] or line["name"] == "measure", line  # which stores three numbers a row
        if (line["name"], line["block"]) == (
            "norm_backward",
            4096,
        ):  # as many programs at once as are started
            assert line["registers"] * line["threads"] * ops.PROGRAMS_PER_PROCESSOR <= REGISTERS, line
