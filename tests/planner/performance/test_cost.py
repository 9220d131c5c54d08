"""Costs: the paper's Table 3, the real model's parameters, torch's own FLOP counter, Korthikanti's bytes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from model.kernels import choose
from model.mesh import Mesh
from model.transformer import Stage
from planner.performance import cost
from planner.performance.cost import Architecture, architecture
from specs import model as counts
from specs.model import ModelSpec

MHA = ModelSpec(layers=3, width=64, heads=4, kv_heads=4, ffn=176, vocab=320, context=32)
GQA = ModelSpec(layers=2, width=96, heads=6, kv_heads=2, ffn=256, vocab=512, context=48)


def gpt(layers: int, width: int, heads: int) -> Architecture:
    """GPT as in Korthikanti et al.: GELU, dropout, learned positions, 16 bit."""
    return Architecture(
        layers, width, heads, heads, width // heads, 4 * width, 51200, 2048, 2, True, True, True
    )


@pytest.mark.parametrize(
    ("layers", "width", "n1", "n2", "flop", "share_1", "share_2"),
    [
        (8, 512, 25.2e6, 77.6e6, 352e6, 0.43, 1.32),
        (12, 768, 84.9e6, 164e6, 963e6, 0.53, 1.02),
        (24, 1024, 302e6, 407e6, 3.02e9, 0.60, 0.81),
        (24, 2048, 1.21e9, 1.42e9, 9.66e9, 0.75, 0.88),
        (32, 4096, 6.44e9, 6.86e9, 45.1e9, 0.85, 0.91),
        (40, 5120, 12.6e9, 13.1e9, 85.6e9, 0.88, 0.92),
        (80, 8192, 64.4e9, 65.3e9, 419e9, 0.92, 0.94),
    ],
)
def test_the_papers_table_3(
    layers: int, width: int, n1: float, n2: float, flop: float, share_1: float, share_2: float
) -> None:
    """N1, N2, M as printed, and their ratios to a unit of the last digit (6/7 is printed as .85, cut, not rounded)."""
    a = Architecture(layers, width, width // 64, width // 64, 64, 8 * width // 3, 102400, 4096)
    six_n1, m = 6 * cost.block_params(a), counts.paper_flop_per_token(layers, width, 4096)
    six_n2 = six_n1 + 6 * a.vocab * width
    assert (six_n1 / 6, six_n2 / 6, m) == (
        pytest.approx(n1, rel=5e-3),
        pytest.approx(n2, rel=5e-3),
        pytest.approx(flop, rel=5e-3),
    )
    assert six_n1 / m == pytest.approx(share_1, abs=0.01)
    assert six_n2 / m == pytest.approx(share_2, abs=0.01)


def test_the_exact_count_stands_beside_the_papers() -> None:
    """With grouped queries the paper's formula overstates the 67B by 15 %."""
    spec = ModelSpec(layers=95, width=8192, heads=64, kv_heads=8, ffn=22016, vocab=102400, context=4096)
    assert spec.flop_per_token == pytest.approx(4.33e11, rel=2e-3)
    assert spec.paper_flop_per_token == pytest.approx(4.97e11, rel=2e-3)


@pytest.mark.parametrize("spec", [MHA, GQA], ids=["mha", "gqa"])
def test_parameters_equal_the_real_models(spec: ModelSpec) -> None:
    """On the meta device, matrix by matrix and in all."""
    stage = Stage(spec, precision="bf16", mesh=Mesh(), kernels=choose("torch", "cpu"), device="meta")
    assert sum(p.numel() for p in stage.parameters()) == spec.params
    matrices = [p for name, p in stage.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    assert sum(p.numel() for p in matrices) == cost.block_params(architecture(spec)) == spec.block_params


class Textbook(torch.nn.Module):
    """The decoder in plain torch, without norms and rotation, which multiply no matrices."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        kv = spec.kv_heads * spec.head_dim
        sizes = [
            (spec.width, spec.width + 2 * kv),
            (spec.width, spec.width),
            (spec.width, 2 * spec.ffn),
            (spec.ffn, spec.width),
        ]
        self.spec = spec
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleList(torch.nn.Linear(*size, bias=False, device="meta") for size in sizes)
            for _ in range(spec.layers)
        )
        self.head = torch.nn.Linear(spec.width, spec.vocab, bias=False, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        for qkv, out, gate_up, down in self.layers:
            kv = spec.kv_heads * spec.head_dim
            q, k, v = (
                part.unflatten(-1, (-1, spec.head_dim)).transpose(1, 2)
                for part in qkv(x).split((spec.width, kv, kv), -1)
            )
            k, v = (part.repeat_interleave(spec.heads // spec.kv_heads, 1) for part in (k, v))
            mixed = ((q @ k.mT) / math.sqrt(spec.head_dim)).softmax(-1) @ v
            x = x + out(mixed.transpose(1, 2).flatten(2))
            gate, up = gate_up(x).chunk(2, -1)
            x = x + down(F.silu(gate) * up)
        return self.head(x)


@pytest.mark.parametrize("spec", [MHA, GQA], ids=["mha", "gqa"])
def test_flop_equal_torchs_counter(spec: ModelSpec) -> None:
    """Forward, and forward with backward, of two sequences."""
    a, tokens = architecture(spec), 2 * spec.context
    x = torch.empty(2, spec.context, spec.width, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = Textbook(spec)(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert forward.get_total_flops() == tokens * cost.forward_flop(a)
    assert backward.get_total_flops() == 2 * tokens * cost.forward_flop(a)


def test_causal_attention_counts_the_columns_that_are_seen() -> None:
    """Row i of s sees i of s columns."""
    a = architecture(GQA)
    seen = sum(range(1, a.context + 1)) / a.context
    assert cost.attention_flop(a, causal=True) == pytest.approx(4 * a.layers * a.width * seen)


@pytest.mark.parametrize(
    ("t", "sp", "scores", "expected"),
    [
        (1, 0, 1, lambda s, h, a: 34 + 5 * a * s / h),
        (8, 0, 1, lambda s, h, a: 10 + 24 / 8 + 5 * a * s / (8 * h)),
        (8, 1, 1, lambda s, h, a: 34 / 8 + 5 * a * s / (8 * h)),
        (8, 0, 0, lambda s, h, a: 10 + 24 / 8),
        (8, 1, 0, lambda s, h, a: 34 / 8),
    ],
)
def test_activations_of_gpt_are_korthikantis(t: int, sp: int, scores: int, expected: object) -> None:
    """Table 2 of arXiv 2205.05198, in units of s b h."""
    a = gpt(96, 12288, 96)
    assert callable(expected)
    assert cost.saved_activation_bytes(a, t, sp, 2, scores) / a.width == pytest.approx(
        expected(a.context, a.width, a.heads)
    )


def test_traffic_is_the_rings() -> None:
    """A gather over one rank sends nothing."""
    assert cost.gather_bytes(800, 1) == 0
    assert cost.gather_bytes(800, 8) == 700
