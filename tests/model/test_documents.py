"""Documents that stay apart: a packed sequence gives each document's loss and gradients as if it were alone."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.documents import document_ends, document_starts, loss_weights
from model.kernels import choose
from model.loss import cross_entropy
from model.mesh import Mesh
from model.transformer import WHOLE, Stage
from model.zero import AdamW
from specs.model import ModelSpec
from tests.model.test_kernels import relative
from tests.model.test_transformer import batch, stage_of
from tests.support import samples

END = 3
MODEL = samples.model(layers=2, width=32, heads=4, kv_heads=2, ffn=48, vocab=50, context=24, init_std=0.06)
LONG = MODEL.model_copy(update={"context": 300})
"""Attention on a CPU goes by blocks of 128 rows."""


def test_where_documents_begin_and_what_counts() -> None:
    tokens_BS = torch.tensor([[5, END, 6, 7, END, END, 8], [END, 1, 2, 4, 5, 6, END]])
    assert document_starts(tokens_BS, END).tolist() == [[0, 0, 2, 2, 2, 5, 6], [0, 1, 1, 1, 1, 1, 1]]
    assert document_ends(tokens_BS.numpy(), END).tolist() == [0, 2, 5, 6, 7, 8, 14]
    assert loss_weights(tokens_BS, END).int().tolist() == [[1, 0, 1, 1, 0, 0, 1], [0, 1, 1, 1, 1, 1, 0]]


def alone(row_T: Tensor) -> Iterator[Tensor]:
    """The documents of a packed sequence, each with the token after it where that is its own."""
    first = 0
    for place, token in enumerate(row_T[:-1].tolist(), 1):
        if token == END:
            yield row_T[first:place]
            first = place
    yield row_T[first:]


def trained(stage: Stage) -> AdamW:
    optimizer = AdamW(stage, Mesh().dp, samples.optim(batch_sequences=1))
    optimizer.initialize(11)
    stage.gradients.zero_()
    return optimizer


@pytest.mark.parametrize("spec", [MODEL, LONG], ids=["short", "long"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_each_document_is_as_if_it_were_alone(spec: ModelSpec, recompute: str) -> None:
    rows_BT = batch(spec, 3) % 11
    layout = WHOLE.model_copy(update={"recompute": recompute})
    packed = stage_of(spec, "fp64", layout=layout, end_of_document=END)
    single = stage_of(spec, "fp64")
    for stage in (packed, single):
        trained(stage)
    counted = int(loss_weights(rows_BT[:, :-1], END).sum())
    loss = packed.loss(rows_BT[:, :-1], rows_BT[:, 1:], counted)
    loss.backward()
    documents = [document for row_T in rows_BT for document in alone(row_T) if len(document) > 1]
    assert len(documents) > 3
    assert sum(len(document) - 1 for document in documents) == counted
    total = 0.0
    for document in documents:
        share = single.loss(document[None, :-1], document[None, 1:], counted)
        share.backward()
        total += float(share.detach())
    assert float(loss.detach()) == pytest.approx(total, rel=1e-13)
    for name, local in packed.local_parameters.items():
        assert relative(local.of(packed.gradients), local.of(single.gradients)) < 1e-12, name


def test_joined_documents_are_another_loss() -> None:
    rows_BT = batch(MODEL, 3) % 11
    losses = []
    for end in (None, END):
        stage = stage_of(MODEL, "fp64", end_of_document=end)
        trained(stage)
        losses.append(float(stage.loss(rows_BT[:, :-1], rows_BT[:, 1:], 1).detach()))
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_weights_of_tokens_weigh_loss_and_gradient() -> None:
    """Any weights, against the textbook; several chunks of logits."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(40, 9, dtype=torch.float64, generator=generator)
    targets, weights = (
        torch.randint(9, (40,), generator=generator),
        torch.rand(40, dtype=torch.float64, generator=generator),
    )
    kernels = choose("auto", "cpu")
    kernels = replace(kernels, cross_entropy=kernels.cross_entropy._replace(chunk_logits=63))
    textbook = logits.clone().requires_grad_()
    expected = (
        torch.nn.functional.cross_entropy(textbook, targets, reduction="none") * weights
    ).sum() / weights.sum()
    expected.backward()
    ours = logits.clone().requires_grad_()
    loss = cross_entropy(ours * 1, targets, float(weights.sum()), Mesh().tp, kernels, weights)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-13)
    assert textbook.grad is not None
    assert ours.grad is not None
    assert relative(ours.grad, textbook.grad) < 1e-13
