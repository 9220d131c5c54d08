from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model.kernels import Heads, choose, positions
from model.layers import attention, embedding, linear, rms_norm, swiglu
from tests.test_kernels import UNIT, relative, textbook

B, S, H, T, G, K, F, V = 2, 12, 16, 4, 2, 4, 24, 11
Layer = Callable[..., Tensor]


def _weights(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Parameters with gradient buffers, fp32 at least."""
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(shape, dtype=torch.float64, generator=generator) / H**0.5 for shape in shapes]
    made = [nn.Parameter(one.to(dtype)) for one in drawn]
    for one in made:
        one.grad_dtype = torch.promote_types(dtype, torch.float32)
        one.grad = torch.zeros(one.shape, dtype=one.grad_dtype)
    return made  # type: ignore[return-value]


def _rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def _swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2)
    opened = x @ gate.t()
    return (opened / (1 + (-opened).exp()) * (x @ up.t())) @ down.t()


def _attention(x: Tensor, qkv: Tensor, out: Tensor) -> Tensor:
    return (textbook((x @ qkv.t()).view(B * S, -1), Heads(B, S, T, G, K), 100.0) @ out.t()).view(B, S, H)


def _our_attention(x: Tensor, qkv: Tensor, out: Tensor) -> Tensor:
    return attention(x, qkv, out, (T, G, K), positions(K, S, 100.0, x.dtype, "cpu"), choose("auto", "cpu"))


LAYERS: dict[str, tuple[Layer, Layer, list[tuple[int, ...]]]] = {
    "rms_norm": (lambda x, gain: rms_norm(x, gain, 1e-6, choose("auto", "cpu")), _rms_norm, [(H,)]),
    "attention": (_our_attention, _attention, [((T + 2 * G) * K, H), (H, T * K)]),
    "swiglu": (
        lambda x, gate_up, down: swiglu(x, gate_up, down, choose("auto", "cpu")),
        _swiglu,
        [(2 * F, H), (H, F)],
    ),
    "linear": (
        lambda x, weight: linear(x, weight, choose("auto", "cpu")),
        lambda x, weight: x @ weight.t(),
        [(V, H)],
    ),
}


@pytest.mark.parametrize("dtype", UNIT, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_and_its_gradients_are_the_textbooks(name: str, dtype: torch.dtype) -> None:
    ours, exact, shapes = LAYERS[name]
    weights = _weights(*shapes, dtype=dtype)
    x = torch.randn(B, S, H, generator=torch.Generator().manual_seed(6)).to(dtype).requires_grad_()
    y = ours(x, *weights)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(dtype)
    exact_in = [one.detach().double().clone().requires_grad_() for one in (x, *weights)]
    exact_y = exact(*exact_in)
    gradients = torch.autograd.grad(exact_y, exact_in, dy.double())
    y.backward(dy)
    assert relative(y, exact_y) < 16 * UNIT[dtype]
    for one, gradient in zip((x, *weights), gradients, strict=True):
        assert one.grad is not None
        assert relative(one.grad, gradient) < 16 * UNIT[dtype]


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_weights_add_up_over_calls(name: str) -> None:
    ours, _, shapes = LAYERS[name]
    weights = _weights(*shapes)
    seen = []
    for _ in range(2):
        ours(torch.ones(B, S, H, dtype=torch.float64).cumsum(1), *weights).sum().backward()
        seen.append([one.grad.clone() for one in weights if one.grad is not None])
    for once, twice in zip(*seen, strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=1e-14, atol=0)


def test_embedding_takes_rows_and_gives_their_gradients_back() -> None:
    (weight,) = _weights((V, H))
    tokens = torch.tensor([[3, 0, 3], [3, 9, 1]])
    y = embedding(tokens, weight)
    assert torch.equal(y, weight.detach()[tokens])
    dy = torch.randn(y.shape, dtype=torch.float64)
    y.backward(dy)
    one_hot = nn.functional.one_hot(tokens, V).double()
    torch.testing.assert_close(weight.grad, torch.einsum("bsv,bsh->vh", one_hot, dy))


def test_attention_never_looks_ahead() -> None:
    weights = _weights(((T + 2 * G) * K, H), (H, T * K))
    x = torch.randn(B, S, H, dtype=torch.float64)
    changed = x.clone()
    changed[:, 7:] += 1
    before, after = _our_attention(x, *weights), _our_attention(changed, *weights)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])
