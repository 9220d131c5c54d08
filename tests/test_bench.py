"""The parts of the benchmarks that can be wrong without a figure looking odd."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import step
from bench.trainers import Step, llama, nanogpt, ours
from specs.model import ModelSpec

TINY = ModelSpec(layers=2, width=32, heads=4, kv_heads=2, ffn=48, vocab=64, context=16, init_std=0.02)


@pytest.mark.parametrize("make", [ours, llama, nanogpt])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_trainer_starts_at_chance_and_learns(make: Callable[..., Step], precision: str) -> None:
    train = make(TINY, precision, "cpu", 2)
    tokens = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(0))
    losses = [train(tokens) for _ in range(8)]
    assert losses[0] == pytest.approx(math.log(64), rel=0.01)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("spec", [TINY, step.PEERS], ids=["grouped", "peers"])
def test_the_ceilings_multiplications_are_the_flop_that_are_counted(spec: ModelSpec) -> None:
    rows = 4 * spec.context
    counted = sum(2 * times * m * n * k for times, m, n, k in step.products(spec, rows))
    half = 1 + 1 / spec.context  # the diagonal
    square = 6 * spec.layers * spec.width * spec.context * rows
    assert counted == pytest.approx(step.flop(spec, rows) + (half - 1) * square, rel=1e-2)


def test_trainers_take_turns_and_the_first_step_is_not_counted() -> None:
    seen: list[Any] = []
    trainers: dict[str, Step] = {name: lambda _, name=name: seen.append(name) or 0.0 for name in "ab"}  # type: ignore[misc]
    found = step.step_seconds(trainers, [torch.zeros(1)] * 3)
    assert seen == ["a", "b"] * 3
    assert set(found) == {"a", "b"}
