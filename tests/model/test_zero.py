import math
from typing import Any

import pytest
import torch
from torch import Tensor

from model import buckets, zero
from model.init import normal_rows
from model.kernels import choose
from model.mesh import Axis, Mesh
from model.transformer import Stage
from model.zero import AdamW, Box
from specs.model import ModelSpec
from specs.optim import OptimSpec
from tests.model.test_kernels import relative
from tests.model.test_transformer import batch, stage_of
from tests.support import samples
from tests.support.spawn import spawn

SEED = 11
ODD = samples.model(width=24, heads=3, kv_heads=1, ffn=40, vocab=50, context=32, init_std=0.1)
"""Rows that neither 2, 3 nor 4 ranks divide evenly (kv 8, q + k + v 40, vocabulary 50) beside some they do."""


def _accumulate(stage: Stage, tokens: Tensor, axis: Axis, micro_batch: int = 1) -> float:
    """Gradients of this rank's rows of the batch; the step's loss."""
    rows = tokens.chunk(axis.size)[axis.rank]
    loss = 0.0
    for part in rows.split(micro_batch):
        share = stage.loss(part[:, :-1], part[:, 1:], tokens[:, 1:].numel())
        share.backward()
        loss += float(share.detach())
    return loss


def _train(
    mesh: Mesh, spec: ModelSpec, optim: OptimSpec, precision: str, steps: int, bucket_bytes: int | None = None
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """(this rank's shares of the losses, gradient norms, this stage's parameters by path)."""
    if bucket_bytes is not None:
        buckets.BUCKET_BYTES = bucket_bytes  # in a process of its own
    stage = stage_of(spec, precision, mesh)
    optimizer = AdamW(stage, mesh.dp, optim)
    optimizer.initialize(SEED)
    losses, norms = [], []
    for _ in range(steps):
        losses.append(_accumulate(stage, batch(spec, 12), mesh.dp))
        norms.append(optimizer.step(0.01))
    optimizer.wait_for_parameters()
    return losses, norms, {name: parameter.detach() for name, parameter in stage.named_parameters()}


@pytest.mark.parametrize("clip_norm", [0.01, 100.0])
def test_a_step_is_torchs_adamw_after_torchs_clipping(clip_norm: float) -> None:
    """fp32, 3 steps: Adam's quotient m / sqrt(v) is off by a few roundings, times lr 0.01, beside weights of 0.1."""
    optim = samples.optim(clip_norm=clip_norm)
    stage, twin = stage_of(ODD), stage_of(ODD)
    ours = AdamW(stage, Axis(), optim)
    ours.initialize(SEED)
    AdamW(twin, Axis(), optim).initialize(SEED)
    matrices = [one for one in twin.parameters() if one.dim() == 2]
    gains = [one for one in twin.parameters() if one.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps)
    for lr in (0.01, 0.02, 0.003):
        for each in (stage, twin):
            _accumulate(each, batch(ODD, 4), Axis())
        norm = ours.step(lr)
        their_norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), optim.clip_norm)
        for group in theirs.param_groups:
            group["lr"] = lr
        theirs.step()
        theirs.zero_grad(set_to_none=False)
        assert norm == pytest.approx(float(their_norm), rel=1e-5)
        assert (norm > clip_norm) == (clip_norm < 1)
        for one, other in zip(stage.parameters(), twin.parameters(), strict=True):
            assert relative(one, other.double()) < 1e-5
    assert ours.steps == 3


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "bucket_bytes"), [(2, None), (4, 4000)])
def test_data_parallel_ranks_train_as_one_process(ranks: int, bucket_bytes: int | None) -> None:
    """In fp64, since Adam turns the rounding of a tiny gradient into a different step: 5 steps, a few 1e-16 each,
    amplified by at most 1 / eps-free quotients of order 1e2; in fp32 the first step's loss and norm, where sums of
    384 tokens in another order differ by some 2^-24 sqrt(384) = 1.2e-6 at worst, and half of that in the norm."""
    optim = samples.optim(clip_norm=0.5)
    losses, norms, parameters = _train(Mesh(), ODD, optim, "fp64", 5)
    found = spawn(ranks, _train, ODD, optim, "fp64", 5, bucket_bytes, poisoned=True)
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        assert sum(shares[step] for shares, _, _ in found) == pytest.approx(loss, rel=1e-12)
        assert {theirs[step] for _, theirs, _ in found} == {found[0][1][step]}
        assert found[0][1][step] == pytest.approx(norm, rel=1e-12)
    for _, _, theirs in found:
        assert all(relative(theirs[name], one) < 1e-11 for name, one in parameters.items())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precisions_of_training_agree_over_ranks(precision: str) -> None:
    optim = samples.optim(clip_norm=0.5)
    losses, norms, parameters = _train(Mesh(), ODD, optim, precision, 1)
    found = spawn(2, _train, ODD, optim, precision, 1, poisoned=True)
    # Forward passes of single sequences are the same arithmetic on every layout, so even bf16 differs by sums only.
    assert sum(shares[0] for shares, _, _ in found) == pytest.approx(losses[0], rel=1e-14)
    assert found[0][1][0] == found[1][1][0] == pytest.approx(norms[0], rel=2e-6)
    for name in parameters:
        assert torch.equal(found[0][2][name], found[1][2][name])


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_boxes_tile_every_tensor_once(ranks: int) -> None:
    covered: dict[str, Tensor] = {}
    for rank in range(ranks):
        axis = Axis(ranks, rank)
        optimizer = AdamW(stage_of(ODD, mesh=Mesh(dp=axis)), axis, samples.optim())
        for box in optimizer.boxes():
            seen = covered.setdefault(box.piece.name, torch.zeros(box.piece.shape, dtype=torch.int64))
            _window(seen, box).add_(1)
            assert {box.master.shape, box.exp_avg.shape, box.exp_avg_sq.shape} == {_window(seen, box).shape}
            assert {box.master.dtype, box.exp_avg.dtype, box.exp_avg_sq.dtype} == {torch.float32}
    assert sum(seen.numel() for seen in covered.values()) == ODD.params
    assert all((seen == 1).all() for seen in covered.values())


def _window(whole: Tensor, box: Box) -> Tensor:
    piece = box.piece
    rows, columns = slice(piece.row, piece.row + piece.rows), slice(piece.col, piece.col + piece.cols)
    return whole[(rows, columns)[: whole.dim()]]


def _save(mesh: Mesh, steps: int) -> list[Box]:
    stage = stage_of(ODD, "fp64", mesh)
    optimizer = AdamW(stage, mesh.dp, samples.optim())
    optimizer.initialize(SEED)
    for _ in range(steps):
        _accumulate(stage, batch(ODD, 12), mesh.dp)
        optimizer.step(0.01)
    optimizer.wait_for_parameters()
    return optimizer.boxes()


@pytest.mark.slow
def test_state_of_two_ranks_goes_on_in_one_process_as_if_it_had_never_left() -> None:
    _, _, expected = _train(Mesh(), ODD, samples.optim(), "fp64", 5)
    saved = [found for rank in spawn(2, _save, 3, poisoned=True) for found in rank]
    stage = stage_of(ODD, "fp64")
    optimizer = AdamW(stage, Axis(), samples.optim())
    for ours in optimizer.boxes():
        for theirs in saved:
            if theirs.piece.name == ours.piece.name:
                for part in ("master", "exp_avg", "exp_avg_sq"):
                    _window(getattr(ours, part), theirs).copy_(getattr(theirs, part))
    optimizer.steps = 3
    optimizer.sync_parameters()
    for _ in range(2):
        _accumulate(stage, batch(ODD, 12), Axis())
        optimizer.step(0.01)
    for name, parameter in stage.named_parameters():
        assert relative(parameter, expected[name]) < 1e-11


@pytest.mark.slow
def test_fresh_weights_do_not_depend_on_the_layout() -> None:
    (_, _, one), both = (
        _train(Mesh(), ODD, samples.optim(), "bf16", 0),
        spawn(2, _train, ODD, samples.optim(), "bf16", 0, poisoned=True),
    )
    for _, _, theirs in both:
        assert all(torch.equal(theirs[name], parameter) for name, parameter in one.items())


def test_bf16_updates_too_small_for_bf16_are_not_lost() -> None:
    stage = stage_of(ODD, "bf16")
    optimizer = AdamW(stage, Axis(), samples.optim(weight_decay=0.0))
    optimizer.initialize(SEED)
    before = {box.piece.name: box.master.clone() for box in optimizer.boxes()}
    for _ in range(10):
        stage.gradients.fill_(1e-3)
        optimizer.step(1e-6)
    gains = {name: one for name, one in before.items() if one.dim() == 1}
    moved = {box.piece.name: before[box.piece.name] - box.master for box in optimizer.boxes()}
    for name in gains:
        torch.testing.assert_close(moved[name], torch.full_like(moved[name], 1e-5), rtol=0.02, atol=0)
    assert all((parameter == 1).all() for parameter in stage.parameters() if parameter.dim() == 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    stage = stage_of(ODD)
    optimizer = AdamW(stage, Axis(), samples.optim())
    optimizer.initialize(SEED)
    before = stage.weights.clone()
    stage.gradients[5] = bad
    assert not math.isfinite(optimizer.step(0.01))
    assert torch.equal(stage.weights, before)
    assert optimizer.steps == 0
    assert not stage.gradients.any()


def test_the_same_step_twice_gives_the_same_bytes() -> None:
    first, second = (_train(Mesh(), ODD, samples.optim(), "fp32", 3) for _ in range(2))
    assert first[:2] == second[:2]
    assert all(torch.equal(one, second[2][name]) for name, one in first[2].items())


def _overlaps(mesh: Mesh) -> tuple[list[int], int, int, list[int]]:
    """Buckets in flight after each backward; in all; in flight after the step, and before each forward."""
    buckets.BUCKET_BYTES = 4000  # in a process of its own
    spec = samples.model(layers=3, width=16, ffn=32, vocab=64, context=8)
    stage = stage_of(spec, mesh=mesh)
    optimizer = AdamW(stage, mesh.dp, samples.optim())
    optimizer.initialize(SEED)
    in_flight, tokens = optimizer._buckets, batch(spec, 4).chunk(mesh.dp.size)[mesh.dp.rank]
    optimizer.start_accumulation(len(tokens))
    leaving = []
    for row in tokens.split(1):
        stage.loss(row[:, :-1], row[:, 1:], 32).backward()
        leaving.append(len(in_flight._reduce_scatters))
    optimizer.step(0.01)
    coming = len(in_flight._all_gathers)
    waiting = []
    for block in stage.blocks.values():
        block.register_forward_pre_hook(lambda *_: waiting.append(len(in_flight._all_gathers)))
    stage.loss(tokens[:, :-1], tokens[:, 1:], 32)
    return leaving, len(in_flight._buckets), coming, [*waiting, len(in_flight._all_gathers)]


def test_gradients_leave_with_the_last_backward_and_parameters_are_awaited_one_by_one() -> None:
    """All buckets of matrices leave but the embedding's, whose gradient comes last, and whose bucket has it alone."""
    for leaving, every, coming, waiting in spawn(2, _overlaps, poisoned=True):
        vectors, embedding = 1, 1
        assert leaving == [0, every - vectors - embedding]
        assert coming == every
        assert waiting[0] < every
        assert waiting == sorted(set(waiting), reverse=True)
        assert waiting[-1] == 0


@pytest.mark.parametrize("at_once", [2**26, 3 * 24])
def test_tensor_parallel_ranks_draw_each_row_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they draw what one process draws: of split columns each draws some rows, and gathers the rest."""
    spec = samples.model(width=24, heads=2, kv_heads=2, ffn=40, vocab=50, context=32)
    alone = AdamW(stage_of(spec), Axis(), samples.optim())
    alone.initialize(SEED)
    exact = {box.piece.name: box.master for box in alone.boxes()}
    monkeypatch.setattr(zero, "_DRAWN_AT_ONCE", at_once)
    drawn: list[tuple[str, int]] = []
    shares: list[list[Tensor]] = [[], []]

    def counted(seed: int, name: str, rows: range, **settings: Any) -> Any:
        drawn.extend((name, row) for row in rows)
        return normal_rows(seed, name, rows, **settings)

    def gathered(mine: Tensor, tp: Axis) -> Tensor:
        """The other rank's share too, once it is known."""
        shares[tp.rank].append(mine)
        place, others = len(shares[tp.rank]) - 1, shares[1 - tp.rank]
        other = others[place] if place < len(others) else mine
        return torch.stack([mine, other] if tp.rank == 0 else [other, mine])

    monkeypatch.setattr(zero, "normal_rows", counted)
    monkeypatch.setattr(zero, "all_gather", gathered)
    made: list[list[Box]] = []
    for rank in (0, 1, 0):  # the first again, when the second's shares are known
        drawn, shares[rank] = drawn if rank else [], []
        stage = Stage(
            spec,
            precision="fp32",
            mesh=Mesh(tp=Axis(2, rank)),
            kernels=choose("torch", "cpu"),
            device="cpu",
            layout=samples.layout(dp=1, tp=2),
        )
        optimizer = AdamW(stage, Axis(), samples.optim())
        optimizer.initialize(SEED)
        made.append(optimizer.boxes())
        if rank:
            assert len(drawn) == len(set(drawn)) == sum(len(box) for box in exact.values() if box.dim() == 2)
    for box in made[1] + made[2]:
        part = exact[box.piece.name][box.piece.row : box.piece.row + box.piece.rows]
        assert torch.equal(
            box.master, part[:, box.piece.col :][:, : box.piece.cols] if part.dim() == 2 else part
        )
