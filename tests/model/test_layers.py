from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model.kernels import Heads, choose, positions
from model.kernels.interfaces import ForwardBackward
from model.layers import SubLayer, SubLayerWeights, attention, embedding, head, recomputed
from model.mesh import Axis
from model.tensor_parallel import ParallelLinears
from model.transformer import local_rows
from tests.model.test_kernels import UNIT, relative, textbook

B, S, H, T, G, K, F, V = 2, 12, 16, 4, 2, 4, 24, 11
KERNELS = choose("auto", "cpu")


def _weights(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Parameters with gradient buffers, fp32 at least."""
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(shape, dtype=torch.float64, generator=generator) / H**0.5 for shape in shapes]
    made = [nn.Parameter(one.to(dtype)) for one in drawn]
    for one in made:
        one.grad_dtype = torch.promote_types(dtype, torch.float32)
        one.grad = torch.zeros(one.shape, dtype=one.grad_dtype)
    return made  # type: ignore[return-value]


def _random(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def _swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2)
    opened = x @ gate.t()
    return (opened / (1 + (-opened).exp()) * (x @ up.t())) @ down.t()


def _attention(x: Tensor, qkv: Tensor, out: Tensor) -> Tensor:
    return (textbook((x @ qkv.t()).view(B * S, -1), Heads(B, S, T, G, K), 100.0) @ out.t()).view(B, S, H)


def _sub_layer(
    f: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    return lambda x, gain, into, out: x + f(_rms_norm(x, gain), into, out)


def _attend() -> ForwardBackward:
    return attention(KERNELS, Heads(B, S, T, G, K), positions(K, S, 100.0, torch.float64, "cpu"))


def _layer(name: str, dtype: torch.dtype, again: bool) -> SubLayer:
    f = KERNELS.gate
    if name == "attention":
        f = attention(KERNELS, Heads(B, S, T, G, K), positions(K, S, 100.0, dtype, "cpu"))
    linears = ParallelLinears(Axis(), False, KERNELS.linear)
    return SubLayer(recomputed(f) if again else f, linears, KERNELS, 1e-6, again)


SUB_LAYERS = {
    "attention": (_attention, [(H,), ((T + 2 * G) * K, H), (H, T * K)]),
    "swiglu": (_swiglu, [(H,), (2 * F, H), (H, F)]),
}


@pytest.mark.parametrize("dtype", UNIT, ids=str)
@pytest.mark.parametrize("name", SUB_LAYERS)
def test_a_sub_layer_and_its_gradients_are_the_textbooks(name: str, dtype: torch.dtype) -> None:
    """The residual comes in two parts, and its sum goes out beside the sub-layer's own result."""
    f, shapes = SUB_LAYERS[name]
    weights = _weights(*shapes, dtype=dtype)
    x, delta, dy = (_random(seed, (B, S, H)).to(dtype) for seed in (6, 8, 7))
    layer = _layer(name, dtype, again=False)
    with torch.no_grad():
        total, result, kept = layer.forward(x, delta, SubLayerWeights(*weights))
        dx = layer.backward(dy, dy, kept, SubLayerWeights(*weights))
    exact_in = [one.detach().double().requires_grad_() for one in (total, *weights)]
    exact_y = _sub_layer(f)(*exact_in)
    exact_dx, *gradients = torch.autograd.grad(exact_y, exact_in, dy.double())
    assert relative(total, x.double() + delta.double()) < 2 * UNIT[dtype]
    assert relative(total.double() + result.double(), exact_y) < 16 * UNIT[dtype]
    assert relative(dx, exact_dx) < 16 * UNIT[dtype]
    for one, gradient in zip(weights, gradients, strict=True):
        assert one.grad is not None
        assert relative(one.grad, gradient) < 32 * UNIT[dtype]


@pytest.mark.parametrize("name", SUB_LAYERS)
def test_gradients_of_weights_add_up_over_calls_and_what_is_recomputed_is_the_same(name: str) -> None:
    weights = _weights(*SUB_LAYERS[name][1])
    x = _random(6, (B, S, H))
    seen = []
    for again in (False, True, True):
        layer = _layer(name, torch.float64, again)
        with torch.no_grad():
            total, result, kept = layer.forward(x, None, SubLayerWeights(*weights))
            dx = layer.backward(x, x, kept, SubLayerWeights(*weights))
        gradients = [one.grad.clone() for one in weights if one.grad is not None]
        seen.append([total, result, dx, *gradients])
        if not again:
            for one in weights:
                one.grad.zero_()  # type: ignore[union-attr]
    once, again_once, again_twice = seen
    for one, other in zip(once, again_once, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(again_once[3:], again_twice[3:], strict=True):
        # A second product is added to the first one term by term: as many roundings as there are rows.
        assert relative(other, 2 * one) < B * S * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("dtype", UNIT, ids=str)
def test_the_head_and_its_gradients_are_the_textbooks(dtype: torch.dtype) -> None:
    weights = _weights((H,), (V, H), dtype=dtype)
    x, dy = _random(6, (B, S, H)).to(dtype).requires_grad_(), _random(7, (B, S, V)).to(dtype)
    y = head(x, *weights, 1e-6, ParallelLinears(Axis(), False, KERNELS.linear), KERNELS)
    y.backward(dy)
    exact_in = [one.detach().double().requires_grad_() for one in (x, *weights)]
    exact_y = _rms_norm(*exact_in[:2]) @ exact_in[2].t()
    gradients = torch.autograd.grad(exact_y, exact_in, dy.double())
    assert relative(y, exact_y) < 16 * UNIT[dtype]
    for one, gradient in zip((x, *weights), gradients, strict=True):
        assert one.grad is not None
        assert relative(one.grad, gradient) < 16 * UNIT[dtype]


def test_embedding_takes_rows_and_gives_their_gradients_back() -> None:
    (weight,) = _weights((V, H))
    tokens = torch.tensor([[3, 0, 3], [3, 9, 1]])
    y = embedding(tokens, weight)
    assert torch.equal(y, weight.detach()[tokens])
    dy = torch.randn(y.shape, dtype=torch.float64)
    y.backward(dy)
    one_hot = nn.functional.one_hot(tokens, V).double()
    torch.testing.assert_close(weight.grad, torch.einsum("bsv,bsh->vh", one_hot, dy))


@pytest.mark.parametrize("vocab", [range(10), range(10, 21), range(21, 32)])
def test_tokens_of_other_ranks_are_spread_and_change_no_gradient(vocab: range) -> None:
    """Zipf's frequencies; before, the two thirds that other ranks hold all fell on row 0, summed one after another."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.multinomial(1 / torch.arange(1, 33), 600, replacement=True, generator=generator).view(
        2, 300
    )
    row_BS, held_BS = local_rows(tokens, vocab)
    assert torch.equal(held_BS, (tokens >= vocab.start) & (tokens < vocab.stop))
    assert torch.equal(row_BS[held_BS], tokens[held_BS] - vocab.start)
    assert row_BS[~held_BS].bincount(minlength=len(vocab)).max() <= tokens.flatten().bincount().max() * 1.5
    dy_BSH = torch.randn(2, 300, 8, generator=generator)
    gradients = []
    for rows in (row_BS, (tokens - vocab.start) * held_BS):
        weight = torch.nn.Parameter(torch.ones(len(vocab), 8))
        weight.grad = torch.zeros(len(vocab), 8)
        (embedding(rows, weight) * held_BS.unsqueeze(2)).backward(dy_BSH)
        gradients.append(weight.grad)
    assert torch.equal(*gradients)


def test_attention_never_looks_ahead() -> None:
    qkv = _random(6, (B, S, (T + 2 * G) * K))
    changed = qkv.clone()
    changed[:, 7:] += 1
    before, after = (_attend().forward(one.view(B * S, -1))[0].view(B, S, -1) for one in (qkv, changed))
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])
