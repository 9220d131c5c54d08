import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import Attention, Heads, Kernels, choose, positions, torch_cpu, torch_ops
from model.kernels.fused_attention import fused_attention
from runtime.train.run_logger import SegmentStart, open_run_logger
from specs.data import CorpusRef
from specs.record import Start
from tests.support import training

BACK_ENDS = {
    "blocks": Attention(torch_cpu.attention_forward, torch_cpu.attention_backward),
    "fused": fused_attention(torch_ops.rotate_heads, torch_ops.core_attention),
}
SHAPES = {
    "one token": Heads(1, 1, 2, 1, 4),
    "uneven": Heads(3, 37, 4, 2, 6),
    "one kv head": Heads(2, 64, 4, 1, 8),
    "blocks": Heads(4, 200, 4, 4, 8),
    "last block short": Heads(3, 300, 3, 3, 2),
}
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}


def textbook(qkv_RF: Tensor, heads: Heads, theta: float) -> Tensor:
    """Attention by its definition, head by head and position by position of the rotation; (R, T K)."""
    B, S, T, G, K = heads
    q, k, v = qkv_RF.view(B, S, -1, K).split([T, G, G], dim=2)
    frequency = theta ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)
    turn = torch.polar(
        torch.ones(S, K // 2, dtype=torch.float64), torch.outer(torch.arange(S).double(), frequency)
    )

    def turned(x: Tensor) -> Tensor:
        low, high = x.double().chunk(2, dim=-1)
        z = torch.complex(low, high) * turn[:, None, :]
        return torch.cat((z.real, z.imag), dim=-1)

    q, k, v = turned(q), turned(k), v.double()
    mask = torch.ones(S, S, dtype=torch.bool).tril()
    mixed = []
    for head in range(T):
        group = head // (T // G)
        scores = torch.einsum("bsk,btk->bst", q[:, :, head], k[:, :, group]) / math.sqrt(K)
        mixed.append(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[:, :, group])
    return torch.stack(mixed, dim=2).reshape(B * S, T * K)


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())


@pytest.mark.parametrize("heads", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("back_end", BACK_ENDS.values(), ids=BACK_ENDS)
@pytest.mark.parametrize("dtype", UNIT, ids=str)
def test_attention_and_its_gradient_are_the_textbooks(
    back_end: Attention, heads: Heads, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    width = (heads.query + 2 * heads.kv) * heads.size
    qkv = torch.randn(heads.batch * heads.sequence, width, generator=generator).to(dtype)
    do = torch.randn(len(qkv), heads.query * heads.size, generator=generator).to(dtype)
    exact_in = qkv.double().clone().requires_grad_()
    exact = textbook(exact_in, heads, 100.0)
    (exact_gradient,) = torch.autograd.grad(exact, exact_in, do.double())
    at = positions(heads.size, heads.sequence, 100.0, dtype, "cpu")
    o, kept = back_end.forward(qkv.clone(), heads, at)
    gradient = back_end.backward(do, kept, heads, at)
    # A handful of roundings in sequence, each of at most UNIT relative to the terms of sums that barely cancel.
    assert relative(o, exact) < 8 * UNIT[dtype]
    assert relative(gradient, exact_gradient) < 16 * UNIT[dtype]


@pytest.mark.parametrize("setting", ["BLOCK_ROWS", "MAX_SAVED_CONTEXT"])
def test_how_the_square_is_cut_changes_rounding_only(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = Heads(2, 160, 2, 1, 8)
    qkv = torch.randn(320, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for value in (getattr(torch_cpu, setting), 48):
        monkeypatch.setattr(torch_cpu, setting, value)
        at = positions(8, 160, 1e4, torch.float64, "cpu")
        o, kept = BACK_ENDS["blocks"].forward(qkv, heads, at)
        results.append((o, BACK_ENDS["blocks"].backward(o, kept, heads, at)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_first_positions_are_those_of_a_shorter_context() -> None:
    long, short = (positions(8, context, 1e4, torch.float32, "cpu") for context in (20, 12))
    assert long.first(20) is long
    assert torch.equal(long.first(12).cos_KS, short.cos_KS)
    assert torch.equal(long.first(12).sin_KS, short.sin_KS)


def test_gradients_add_up_in_the_buffers_own_precision() -> None:
    """A thousand bf16 gradients of 1 in fp32 make 1000; in bf16 the sum would stop at 256."""
    gradient = torch.zeros(2, 3)
    dy, x = torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(1, 3, dtype=torch.bfloat16)
    for _ in range(1000):
        torch_ops.accumulate(gradient, dy, x)
    assert torch.equal(gradient, torch.full((2, 3), 1000.0))


def test_adamw_is_torchs() -> None:
    generator = torch.Generator().manual_seed(2)
    ours = torch.randn(1000, generator=generator)
    theirs = torch.nn.Parameter(ours.clone())
    optimizer = torch.optim.AdamW(
        [theirs], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False
    )
    moments = torch.zeros(2, 1000)
    rounded = torch.empty(1000, dtype=torch.bfloat16)
    for step in range(1, 6):
        gradient = torch.randn(1000, generator=generator)
        theirs.grad = gradient / 4
        optimizer.step()
        torch_ops.adamw(
            ours,
            gradient.clone(),
            *moments,
            rounded,
            step=step,
            lr=0.1,
            betas=(0.9, 0.95),
            weight_decay=0.1,
            eps=1e-8,
            grad_scale=4.0,
        )
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(rounded, ours.bfloat16())


@pytest.mark.parametrize("setting", ["auto", "torch"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_was_chosen_is_said(setting: str, device: str) -> None:
    descriptions = choose(setting, device).describe()
    assert set(descriptions) == {field.name for field in fields(Kernels)} - {"chosen", "failed_here"}
    assert all("torch" in text for text in descriptions.values())


@pytest.mark.parametrize("setting", ["Torch", "flash_attn", ""])
def test_what_does_not_exist_is_refused_with_what_does(setting: str) -> None:
    with pytest.raises(ValueError, match="write auto, torch, apex, triton, flash-attn"):
        choose(setting, "cpu")


@pytest.mark.parametrize("shape", [(5, 3), (64, 16)])
def test_linear_is_the_same_however_it_lies_in_memory(shape: tuple[int, int]) -> None:
    x, weight = torch.randn(7, shape[1]), torch.randn(shape)
    for device in ("cpu", "cuda"):
        torch.testing.assert_close(choose("torch", device).linear(x, weight), F.linear(x, weight))


def test_a_run_says_and_records_what_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = training.tiny_run(CorpusRef(corpus="0123456789abcdef", digest="5" * 64))
    folder, descriptions = training.opened(tmp_path, run), choose("auto", "cpu").describe()
    with open_run_logger(folder, run, training.order(run), SegmentStart(0, 0, descriptions, [])):
        pass
    assert "adamw by torch _fused_adamw_" in capsys.readouterr().out
    (start,) = folder.records()
    assert isinstance(start, Start)
    assert start.kernels == descriptions
