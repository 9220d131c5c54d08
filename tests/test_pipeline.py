from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from model.mesh import Mesh, mesh_of
from model.pipeline import Pipeline
from model.transformer import WHOLE
from model.zero import AdamW
from specs.layout import Layout
from tests import samples
from tests.spawn import spawn
from tests.test_kernels import relative
from tests.test_transformer import batch, stage_of

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
    optimizer, pipeline = AdamW(stage, mesh.dp, OPTIM), Pipeline(stage)
    optimizer.start(SEED)
    held_out = go(pipeline.evaluate, rows_BT, 3)
    norms: list[float] = []
    for step in range(STEPS):
        share = go(pipeline.train, rows_BT, layout.micro_batch_sequences)
        if step == 0:
            shares = float(share), float(held_out)
            gradients = {name: one.grad.clone() for name, one in stage.named_parameters()}
        norms.append(optimizer.step(0.01))
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("size", "layouts"), [(2, TWO), (4, FOUR)])
def test_a_pipeline_computes_what_one_process_does(size: int, layouts: list[Layout], precision: str) -> None:
    """Without data parallelism even the order of every sum is the same, and so all steps are, to the last bit."""
    answers = spawn(size, train_all, layouts, precision)
    for layout, ranks in zip(layouts, zip(*answers, strict=True), strict=True):
        check_step(list(ranks), layout, precision)
        if layout.dp == 1:
            check_steps(list(ranks), alone(layout, precision), 0.0)


def test_replicas_of_a_pipeline_train_as_one_process_does() -> None:
    """fp64: replicas sum the rows in another order, which Adam amplifies a little (STEPS steps)."""
    layouts = [layout for layout in FOUR if layout.dp > 1]
    answers = spawn(4, train_all, layouts, "fp64")
    for layout, ranks in zip(layouts, zip(*answers, strict=True), strict=True):
        check_steps(list(ranks), alone(layout, "fp64"), 1e-12)
