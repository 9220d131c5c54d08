"""The parts of the benchmarks that can be wrong without a figure looking odd."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bench import curate, gpu, step
from bench.operations import Ceilings, Operation, ceilings, operations
from bench.trainers import Step, llama, nanogpt, ours
from model.kernels import choose
from runtime.doctor.benchmark import seconds
from specs.cluster import Cluster
from specs.document.files import from_catalog
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


# bench.gpu, on a CPU: the same functions at a tiny shape.

LIMITS = Ceilings(1e12, 1e11)


def test_ceilings_count_flop_and_bytes_both_ways() -> None:
    found = ceilings("cpu", size=64, copied_bytes=2**16)
    assert 1e7 < found.flop_per_s < 1e14
    assert 1e7 < found.bytes_per_s < 1e13


def test_a_median_is_taken_after_calls_that_warm_up() -> None:
    calls: list[int] = []
    assert seconds(lambda: calls.append(1), "cpu", repeats=5) >= 0
    assert len(calls) == 8


def test_every_operation_of_a_step_runs_and_has_a_floor() -> None:
    found = list(operations(TINY, 2, choose("auto", "cpu"), "cpu"))
    for operation in found:
        operation.run()
        assert operation.floor_s(LIMITS) > 0
    names = [operation.name for operation in found]
    assert len(set(names)) == len(names) == 17
    rows, width = 2 * TINY.context, TINY.width
    by_name = dict(zip(names, found, strict=True))
    assert by_name["norm, forward"].moved_bytes == 4 * 2 * rows * width  # x, delta, sum, result in bf16
    assert by_name["head, forward"].flop == 2 * rows * width * TINY.vocab
    assert by_name["cross-entropy, both"].moved_bytes == 3 * 2 * rows * TINY.vocab
    # softmax(q k') v and its gradient: 2 and 5 products of half a square, of two FLOP each
    assert by_name["attention, both"].flop == 7 * rows * TINY.context * width


def test_a_floor_is_the_larger_of_two_times() -> None:
    assert Operation("", int, 2e12, 1e10).floor_s(LIMITS) == 2.0
    assert Operation("", int, 1e11, 1e11).floor_s(LIMITS) == 1.0


@pytest.mark.slow
def test_bf16_keeps_the_reference_loss_within_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.print_loss("cpu", ["torch"], gpu.CHECKED.model_copy(update={"context": 64}))
    assert "within the bounds" in capsys.readouterr().out


def test_a_wrong_gradient_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "compared", lambda *_: (3.0, 3.001, 0.5))
    assert not gpu.print_loss("cpu", ["torch"])
    assert "OUTSIDE THE BOUNDS" in capsys.readouterr().out


@pytest.mark.slow
def test_steps_are_measured_and_printed_against_the_peer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "SHAPES", {"tiny": TINY})
    monkeypatch.setattr(gpu, "MICRO_BATCH", {"tiny": 1})
    monkeypatch.setattr(gpu, "llama", lambda *_, compiled: nanogpt(TINY, "bf16", "cpu", 1))
    gpu.print_kernels("cpu", ["torch", "auto"], LIMITS, "tiny", TINY, 2)
    gpu.print_steps("cpu", LIMITS, ["tiny"], peer=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 17 + 1 + 3
    assert [line[-1] for line in lines[-2:]] == ["x", "x"]
    assert torch.get_deterministic_debug_mode() == 0


@pytest.mark.slow
def test_a_micro_batch_that_does_not_fit_is_halved() -> None:
    tried: list[int] = []

    def make(micro_batch: int) -> Step:
        tried.append(micro_batch)
        if micro_batch > 1:
            raise torch.cuda.OutOfMemoryError
        return lambda tokens_BT: float(len(tokens_BT))

    found = gpu.steps(make, TINY, 4, "cpu")
    assert tried == [4, 2, 1]
    assert found is not None
    assert (found.micro_batch, found.tokens) == (1, gpu.MICRO_BATCHES * TINY.context)
    assert gpu.mfu(TINY, found, 1e12) == pytest.approx(
        TINY.mfu_flop_per_token * found.tokens / found.step_s / 1e12
    )


def test_shapes_and_rates_are_what_they_are_called() -> None:
    for name, spec in gpu.SHAPES.items():
        assert spec.block_params / 1e9 == pytest.approx(float(name[:-1]), rel=0.06)
    for cluster, device in (
        ("h100-64", "H100"),
        ("h200-256", "H200"),
        ("a100-1024", "A100"),
        ("b200-256", "B200"),
    ):
        sold = from_catalog(Cluster, cluster, None).device.peak_bf16
        assert sold == gpu.DATA_SHEET_FLOP_PER_S[device]


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["kernels", "--shapes", "1.3B"]) == 2
    assert "there is none" in capsys.readouterr().err


@pytest.mark.slow
def test_planted_duplicates_are_found_and_sound_documents_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(curate, "_EACH", 5)
    monkeypatch.setattr(curate, "_LATER", 3)
    console = Console(width=120)
    outcome = curate.measure(tmp_path, 300_000, 1, console)
    assert set(outcome.found) == {*curate.NEAR, "equal", "short"}
    assert all(one.planted for one in outcome.found.values())
    for kind in ("equal", "short", next(iter(curate.NEAR))):
        assert outcome.found[kind].dropped == outcome.found[kind].planted
    least, *_, most = sorted(one.expected for kind, one in outcome.found.items() if kind in curate.NEAR)
    assert 0 < least < most < 1
    assert outcome.sound > 10
    assert outcome.lost == 0
    curate.show(outcome, 1, console)
    assert "MinhashDedup, signatures" in capsys.readouterr().out
