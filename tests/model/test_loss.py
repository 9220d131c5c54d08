import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import Kernels, choose
from model.loss import cross_entropy
from model.mesh import Axis, Mesh
from model.parameters import shard_range
from tests.model.test_kernels import UNIT, relative
from tests.support.spawn import spawn

PEAK = Path("/proc/self/clear_refs")
KERNELS = choose("torch", "cpu")


def _example(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(rows, columns, generator=generator) + 20
    return logits.to(dtype), torch.randint(columns, (rows,), generator=generator)


def _exact(logits: Tensor, targets: Tensor, step_tokens: int) -> tuple[float, Tensor]:
    exact = logits.detach().double().requires_grad_()
    total = F.cross_entropy(exact, targets, reduction="sum") / step_tokens
    (gradient,) = torch.autograd.grad(total, exact)
    return total.item(), gradient


def _ours(
    logits: Tensor, targets: Tensor, step_tokens: int, kernels: Kernels = KERNELS
) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    result = cross_entropy(leaf * 1, targets, step_tokens, Axis(), kernels)
    result.backward()
    assert leaf.grad is not None
    return result.detach(), leaf.grad


@pytest.mark.parametrize("dtype", UNIT, ids=str)
@pytest.mark.parametrize("rows_at_once", [0, 1, 7, 1000])
def test_loss_and_gradient_are_exact_to_the_logits_precision(dtype: torch.dtype, rows_at_once: int) -> None:
    chunked = replace(KERNELS, cross_entropy=KERNELS.cross_entropy._replace(chunk_logits=rows_at_once * 50))
    logits, targets = _example(40, 50, dtype)
    value, gradient = _ours(logits, targets, 123, chunked)
    exact, exact_gradient = _exact(logits, targets, 123)
    arithmetic = UNIT[torch.promote_types(dtype, torch.float32)]
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(exact, rel=8 * arithmetic)
    assert relative(gradient, exact_gradient) < UNIT[dtype] + 8 * arithmetic


def test_shares_of_a_step_add_up_to_its_mean() -> None:
    logits, targets = _example(40, 50, torch.float32)
    cuts = zip(logits.split([7, 20, 13]), targets.split([7, 20, 13]), strict=True)
    shares = [cross_entropy(part.clone(), wanted, 40, Axis(), KERNELS).item() for part, wanted in cuts]
    assert sum(shares) == pytest.approx(float(F.cross_entropy(logits.double(), targets)), rel=1e-6)


def test_the_gradient_lies_where_the_logits_lay() -> None:
    logits, targets = _example(6, 5, torch.float32)
    leaf = logits.requires_grad_()
    used = leaf * 1
    seen: list[Tensor] = []
    used.register_hook(seen.append)
    cross_entropy(used, targets, 6, Axis(), KERNELS).backward()
    assert seen[0].data_ptr() == used.data_ptr()


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e30, 0.0, 1e30]])
    value, gradient = _ours(logits, torch.tensor([0, 2]), 2)
    assert float(value) == 0.0
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_a_scaled_loss_is_refused(scale: float) -> None:
    logits, targets = _example(6, 5, torch.float32)
    result = cross_entropy(logits.requires_grad_() * 1, targets, 6, Axis(), KERNELS)
    with pytest.raises(RuntimeError, match="scaled"):
        (result * scale).backward()


@pytest.mark.slow
@pytest.mark.skipif(not PEAK.exists(), reason="needs Linux' /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_second_tensor_of_the_logits_size_is_ever_alive(dtype: torch.dtype) -> None:
    rows, columns = 4096, 2**24 // 4096 * 4
    logits = torch.zeros(rows, columns, dtype=dtype).requires_grad_()  # 128 or 256 MiB
    hidden = logits * 1
    targets = torch.zeros(rows, dtype=torch.int64)
    PEAK.write_text("5")  # the peak starts again from here (proc(5))
    before = _peak_bytes()
    seen: list[int] = []
    hidden.register_hook(lambda gradient: seen.append(_peak_bytes()))
    cross_entropy(hidden, targets, rows, Axis(), KERNELS).backward()
    assert seen[0] - before < hidden.nbytes / 8


def _peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def _split(mesh: Mesh, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    columns = shard_range(logits.shape[1], mesh.dp)
    mine = logits[:, columns.start : columns.stop].clone().requires_grad_()
    result = cross_entropy(mine * 1, targets - columns.start, 9, mesh.dp, KERNELS)
    result.backward()
    assert mine.grad is not None
    return result.detach(), mine.grad


@pytest.mark.slow
def test_a_vocabulary_split_over_ranks_gives_the_same_loss_and_gradient() -> None:
    """Any vocabulary: of 51 columns one rank has 25, the other 26."""
    logits, targets = _example(40, 51, torch.float64)
    exact, exact_gradient = _exact(logits, targets, 9)
    results = spawn(2, _split, logits, targets, poisoned=True)
    for value, _ in results:
        assert float(value) == pytest.approx(exact, rel=1e-14)
    assert relative(torch.cat([gradient for _, gradient in results], dim=1), exact_gradient) < 1e-14
