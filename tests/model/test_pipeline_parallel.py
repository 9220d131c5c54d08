import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from model import pipeline_parallel
from model.mesh import Axis, Mesh, mesh_of
from model.pipeline_parallel import Pipeline, _Passes, _PointToPoint
from model.transformer import WHOLE
from model.zero import AdamW
from specs.layout import Layout
from specs.pipeline_schedule import Action, one_f_one_b
from tests.model.test_kernels import relative
from tests.model.test_transformer import batch, stage_of
from tests.support import samples
from tests.support.pipelines import most_alive
from tests.support.spawn import RankError, spawn

SEED, SEQUENCES, STEPS = 11, 16, 5
SPEC = samples.model(layers=5, width=16, ffn=24, vocab=40, context=16, init_std=0.1)
OPTIM = samples.optim(clip_norm=0.1)


class Trained(NamedTuple):
    """What one rank has after a step, and after all of them."""

    dp_rank: int
    shares: tuple[float, float]
    """Of the first step's loss, and of an evaluation's."""
    gradients: dict[str, Tensor]
    norms: list[float]
    weights: dict[str, Tensor]


def cut(**changes: Any) -> Layout:
    return WHOLE.model_copy(update={"micro_batch_sequences": 2} | changes)


TWO = [cut(pp=2), cut(pp=2, stage_layers=(1, 4)), cut(pp=2, interleave=2, micro_batch_sequences=1)]
FOUR = [cut(pp=4), cut(pp=4, stage_layers=(1, 2, 1, 1)), cut(pp=2, dp=2), cut(pp=2, dp=2, interleave=2)]


def train(mesh: Mesh, layout: Layout, precision: str, rows_BT: Tensor) -> Trained:
    """Evaluate, then train, on these of a batch's rows."""
    stage = stage_of(SPEC, precision, mesh, layout=layout)
    optimizer, stages = AdamW(stage, mesh.dp, OPTIM), Pipeline(stage)
    optimizer.initialize(SEED)
    held_out = go(stages.evaluate, rows_BT, 3)
    norms: list[float] = []
    for step in range(STEPS):
        share = go(stages.train, rows_BT, layout.micro_batch_sequences)
        if step == 0:
            shares = float(share), float(held_out)
            gradients = {name: one.grad.clone() for name, one in stage.named_parameters()}
        norms.append(optimizer.step(0.01))
    optimizer.wait_for_parameters()
    weights = {name: one.detach() for name, one in stage.named_parameters()}
    return Trained(mesh.dp.rank, shares, gradients, norms, weights)


def go(what: Callable[..., Tensor], rows_BT: Tensor, at_once: int) -> Tensor:
    parts = rows_BT.split(at_once)
    return what([len(part) for part in parts], lambda i: parts[i], SEQUENCES * SPEC.context)


def train_all(_: Mesh, layouts: Sequence[Layout], precision: str) -> list[Trained]:
    trained = []
    for layout in layouts:
        mesh = mesh_of(layout.dp, layout.pp, layout.tp)
        rows_BT = batch(SPEC, SEQUENCES).chunk(layout.dp)[mesh.dp.rank]
        trained.append(train(mesh, layout, precision, rows_BT))
    return trained


def alone(layout: Layout, precision: str, dp_rank: int | None = None) -> Trained:
    """One process: the micro-batches one after another, through the whole model; all rows or one replica's."""
    rows_BT = batch(SPEC, SEQUENCES)
    if dp_rank is not None:
        rows_BT = rows_BT.chunk(layout.dp)[dp_rank]
    return train(Mesh(), cut(micro_batch_sequences=layout.micro_batch_sequences), precision, rows_BT)


def check_step(ranks: list[Trained], layout: Layout, precision: str) -> None:
    """Shares of the loss and all gradients of every replica are those of one process, to the last bit."""
    for dp_rank in range(layout.dp):
        mine, expected = [one for one in ranks if one.dp_rank == dp_rank], alone(layout, precision, dp_rank)
        assert tuple(map(sum, zip(*(one.shares for one in mine), strict=True))) == expected.shares
        found = {name: gradient for one in mine for name, gradient in one.gradients.items()}
        assert found.keys() == expected.gradients.keys()
        assert all(torch.equal(gradient, expected.gradients[name]) for name, gradient in found.items())


def check_steps(ranks: list[Trained], expected: Trained, bound: float) -> None:
    """Norms and weights after all steps are those of one process."""
    for one in ranks:
        assert one.norms == pytest.approx(expected.norms, rel=bound, abs=0.0)
        for name, weight in one.weights.items():
            assert relative(weight, expected.weights[name].double()) <= bound, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "layouts", "precision"), [(2, TWO, "fp32"), (2, TWO[-1:], "bf16"), (4, FOUR, "fp32")]
)
def test_a_pipeline_computes_what_one_process_does(size: int, layouts: list[Layout], precision: str) -> None:
    """Without data parallelism even the order of every sum is the same, and so all steps are, to the last bit."""
    answers = spawn(size, train_all, layouts, precision, timeout_s=180, poisoned=True)
    for layout, ranks in zip(layouts, zip(*answers, strict=True), strict=True):
        check_step(list(ranks), layout, precision)
        if layout.dp == 1:
            check_steps(list(ranks), alone(layout, precision), 0.0)


def watch_memory(mesh: Mesh, layout: Layout, micro_batches: int) -> tuple[int, int, int]:
    """At most at a time: forwards that are kept, results that are still there; and what is left of both in the end."""
    stage = stage_of(SPEC, "fp32", mesh_of(1, mesh.world.size, 1), layout=layout)
    AdamW(stage, Axis(), OPTIM).initialize(SEED)
    kept, alive = [0], [0]
    results: list[StorageWeakRef] = []

    class Watched(_Passes):
        def forward(self, action: Action) -> None:
            super().forward(action)
            kept.append(len(self._saved))

    class Links(_PointToPoint):
        def put(self, action: Action, result: Tensor) -> None:
            super().put(action, result)
            results.append(StorageWeakRef(result.untyped_storage()))
            alive.append(sum(not one.expired() for one in results))

    pipeline_parallel._Passes, pipeline_parallel._PointToPoint = Watched, Links  # type: ignore[misc]  # in a process of its own
    rows_BT = batch(SPEC, micro_batches)
    Pipeline(stage).train([1] * micro_batches, lambda i: rows_BT[i : i + 1], 100)
    return max(kept), max(alive), sum(not one.expired() for one in results)


@pytest.mark.slow
@pytest.mark.parametrize(("pp", "chunks"), [(4, 1), (2, 2)])
def test_activations_go_when_they_are_spent_and_results_when_they_are_sent(pp: int, chunks: int) -> None:
    layout = cut(pp=pp, interleave=chunks)
    for rank, (kept, alive, left) in enumerate(spawn(pp, watch_memory, layout, 16)):
        assert kept == most_alive(one_f_one_b(pp, rank, 16, chunks))
        assert alive <= 5  # two under way, and what is being computed, there and back
        assert left == 0


def fail(mesh: Mesh, how: str) -> None:
    """Rank 1 has an error in its second backward, while the others wait for what it would have sent."""
    stage = stage_of(SPEC, "fp32", mesh_of(1, 4, 1), layout=cut(pp=4))
    AdamW(stage, Axis(), OPTIM).initialize(SEED)
    backward, seen = _Passes.backward, []

    def failing(self: _Passes, action: Action) -> None:
        seen.append(action)
        if mesh.world.rank == 1 and len(seen) == 2:
            if how == "die":
                os._exit(3)
            raise ArithmeticError("rank 1 had enough")
        backward(self, action)

    _Passes.backward = failing  # type: ignore[method-assign]  # in a process of its own
    rows_BT = batch(SPEC, 8)
    Pipeline(stage).train([1] * 8, lambda i: rows_BT[i : i + 1], 100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"), [("raise", "rank 1:.*rank 1 had enough"), ("die", "died|closed|reset")]
)
def test_a_rank_that_fails_in_the_middle_ends_the_others(how: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(RankError, match=re.compile(message, re.DOTALL)):
        spawn(4, fail, how)
    assert time.monotonic() - began < 30


def evaluate(mesh: Mesh, layout: Layout, sizes: Sequence[Sequence[int]]) -> list[float]:
    stage = stage_of(SPEC, "fp32", mesh_of(1, layout.pp, 1) if layout.pp > 1 else mesh, layout=layout)
    AdamW(stage, Axis(), OPTIM).initialize(SEED)
    stages, rows_BT = Pipeline(stage), batch(SPEC, 8)
    return [
        float(stages.evaluate(each, rows_BT[: sum(each)].split(list(each)).__getitem__, 100))
        for each in sizes
    ]


def test_evaluations_may_have_any_number_of_micro_batches_of_any_size() -> None:
    sizes = [[8], [1] * 8, [3, 3, 2], [5, 1, 1, 1], []]
    first, last = spawn(2, evaluate, cut(pp=2, interleave=2), sizes, poisoned=True)
    assert first == [0.0] * len(sizes)
    assert last == evaluate(Mesh(), cut(), sizes)
