"""Loss, gradients and training under every layout equal those of one process.

All layouts of one world size run in one spawn. Gradients are read off AdamW's first moments after one step without
clipping, (1 - beta_1) times the gradient: so they went through every collective, the optimizer's too.

The bound in fp32, 1e-6 norm-wise per tensor. Layouts differ in the order of sums only. A sum of K numbers of random
signs is off by about 2^-24 sqrt(log2 K) times the norm of its result when it is made pairwise, which torch and BLAS
roughly do: 1e-7 to 2e-7 for the K up to 512 here. Such errors meet at random on the way through 2 x 4 sub-layers and
back, which multiplies them by sqrt(16) = 4 at most, since residuals pass most of a signal by them. Parameters after
several steps are compared in fp64, since Adam turns the rounding of a gradient near zero into a step of its own size.
Measured over the pairs of four ranks: 7.3e-7 in fp32 (keys' weights, whose gradients cancel most), 3.8e-14 in fp64.
"""

from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from model import buckets, tensor_parallel
from model.documents import loss_weights
from model.mesh import Mesh, mesh_of
from model.parameters import Piece
from model.pipeline_parallel import Pipeline
from model.transformer import WHOLE
from model.zero import AdamW
from specs.layout import Layout
from specs.model import ModelSpec
from tests.model.test_kernels import relative
from tests.model.test_transformer import batch, stage_of
from tests.support import samples
from tests.support.spawn import spawn

MODEL = samples.model(layers=4, width=32, heads=4, kv_heads=4, ffn=48, vocab=51, context=16, init_std=0.06)
"""The vocabulary divides by nothing here."""
GROUPED = MODEL.model_copy(update={"kv_heads": 2, "vocab": 50, "context": 8})
SEQUENCES = 8
OPTIM = samples.optim(batch_sequences=SEQUENCES, clip_norm=1e6, weight_decay=0.1)
CLIPPED = samples.optim(batch_sequences=SEQUENCES, clip_norm=0.5, weight_decay=0.1)

State = list[tuple[Piece, Tensor]]


@dataclass(frozen=True)
class Found:
    """What one rank has after some steps."""

    losses: list[float]
    """This rank's shares of them."""
    norms: list[float]
    weights: State
    """The masters it owns."""
    gradients: State
    """Those of the last step, as far as it owns them."""
    published: State
    """All parameters that it computes with."""


def _rows(spec: ModelSpec, end_of_document: int | None) -> Tensor:
    """A step's rows: of documents that stay apart, some in every sequence."""
    rows = batch(spec, SEQUENCES)
    return rows if end_of_document is None else rows % 7


def _train(
    mesh: Mesh,
    layout: Layout,
    spec: ModelSpec,
    precision: str,
    steps: int,
    end_of_document: int | None = None,
) -> Found:
    stage = stage_of(spec, precision, mesh, layout=layout, end_of_document=end_of_document)
    optimizer = AdamW(stage, mesh.dp, OPTIM if steps == 1 else CLIPPED)
    optimizer.initialize(11)
    pipeline, all_rows = Pipeline(stage), _rows(spec, end_of_document)
    counted_tokens = all_rows[:, 1:].numel()
    if end_of_document is not None:
        counted_tokens = int(loss_weights(all_rows[:, :-1], end_of_document).sum())
    rows = all_rows.chunk(mesh.dp.size)[mesh.dp.rank]
    parts, losses, norms = rows.split(layout.micro_batch_sequences), [], []
    for _ in range(steps):
        optimizer.start_accumulation(len(parts))
        share = pipeline.train([len(part) for part in parts], parts.__getitem__, counted_tokens)
        losses.append(float(share) if mesh.tp.rank == 0 else 0.0)
        norms.append(optimizer.step(0.01))
    optimizer.wait_for_parameters()
    counted = [box for box in optimizer.boxes() if len(box.piece.shape) == 2 or mesh.tp.rank == 0]
    published = [
        (piece, part.clone())
        for local in stage.local_parameters.values()
        for piece, part in zip(
            local.pieces, local.of(stage.weights).split([one.rows for one in local.pieces]), strict=True
        )
    ]
    return Found(
        losses,
        norms,
        [(box.piece, box.master.clone()) for box in counted],
        [(box.piece, box.exp_avg / (1 - OPTIM.betas[0])) for box in counted],
        published,
    )


@dataclass(frozen=True)
class Case:
    """One training that all ranks do together."""

    layout: Layout
    model: ModelSpec
    precision: str
    steps: int
    small: bool
    """Cut what travels into many buckets and pieces."""
    end_of_document: int | None = None
    """The token behind which another document begins; None joins documents."""


def _train_all(world: Mesh, cases: list[Case]) -> list[Found]:
    """One case after another over the same processes."""
    meshes = cache(mesh_of)  # each group has threads of gloo for as long as the process lives
    found, usual = [], (buckets.BUCKET_BYTES, tensor_parallel.PIECE_BYTES)
    for case in cases:
        buckets.BUCKET_BYTES, tensor_parallel.PIECE_BYTES = (
            (8000, 128) if case.small else usual
        )  # in processes of their own
        mesh = meshes(case.layout.dp, case.layout.pp, case.layout.tp)
        found.append(_train(mesh, case.layout, case.model, case.precision, case.steps, case.end_of_document))
    return found


def _window(whole: Tensor, piece: Piece) -> Tensor:
    box = (slice(piece.row, piece.row + piece.rows), slice(piece.col, piece.col + piece.cols))
    return whole[box[: whole.dim()]]


def _whole(states: list[State]) -> dict[str, Tensor]:
    """The global tensors, each of whose elements one rank has."""
    found: dict[str, Tensor] = {}
    for piece, part in (one for state in states for one in state):
        whole = found.setdefault(piece.name, torch.full(piece.shape, torch.nan, dtype=part.dtype))
        assert _window(whole, piece).isnan().all()
        _window(whole, piece).copy_(part)
    assert not any(whole.isnan().any() for whole in found.values())
    return found


@cache
def _alone(spec: ModelSpec, precision: str, steps: int, end_of_document: int | None) -> Found:
    return _train(Mesh(), WHOLE, spec, precision, steps, end_of_document)


def _compare(case: Case, ranks: list[Found], one: Found) -> None:
    """AssertionError, which names the layout, unless the ranks together have what one process has."""
    bound = 1e-6 if case.precision == "fp32" else 1e-12
    losses = [sum(shares) for shares in zip(*(rank.losses for rank in ranks), strict=True)]
    assert losses == pytest.approx(one.losses, rel=bound), case
    assert all(rank.norms == ranks[0].norms for rank in ranks), case
    assert ranks[0].norms == pytest.approx(one.norms, rel=bound), case
    gradients, weights = _whole([rank.gradients for rank in ranks]), _whole([rank.weights for rank in ranks])
    _compare_tensors(gradients, one.gradients, bound, case)
    if case.precision == "fp64":
        _compare_tensors(weights, one.weights, bound, case)
    for rank in ranks:
        for piece, part in rank.published:
            assert torch.equal(part, _window(weights[piece.name], piece)), f"{piece.name}, {case}"
    if case.layout.pp == case.layout.devices:  # the same arithmetic in the same order
        assert losses == one.losses, case
        assert ranks[0].norms == one.norms, case
        assert all(torch.equal(gradients[piece.name], part) for piece, part in one.gradients), case


def _compare_tensors(ours: dict[str, Tensor], theirs: State, bound: float, case: Case) -> None:
    assert ours.keys() == {piece.name for piece, _ in theirs}, case
    for piece, part in theirs:
        error = relative(ours[piece.name], part.double())
        assert error < bound, f"{piece.name} is off by {error:.2g} in {case}"


def _compare_recomputed(cases: list[Case], results: list[list[Found]]) -> None:
    """What is computed again is the same to the last bit."""
    kept = {replace(case, layout=_keeping(case.layout)): at for at, case in enumerate(cases) if _keeps(case)}
    for case, ranks in zip(cases, results, strict=True):
        twin = kept.get(replace(case, layout=_keeping(case.layout)))
        if twin is None:
            continue
        for one, other in zip(ranks, results[twin], strict=True):
            assert (one.losses, one.norms) == (other.losses, other.norms), case
            for (_, ours), (_, theirs) in zip(one.gradients, other.gradients, strict=True):
                assert torch.equal(ours, theirs), case


def _keeps(case: Case) -> bool:
    return case.layout.recompute == "none"


def _keeping(layout: Layout) -> Layout:
    return layout.model_copy(update={"recompute": "none"})


def _layouts(ranks: int) -> list[Layout]:
    """Every factorisation of so many ranks with every cut: sequence parallel or not, one chunk of a rank or two."""
    sizes = [(dp, pp, ranks // (dp * pp)) for dp in range(1, 9) for pp in (1, 2, 4) if ranks % (dp * pp) == 0]
    return [
        WHOLE.model_copy(
            update={
                "dp": dp,
                "pp": pp,
                "tp": tp,
                "sequence_parallel": sequence_parallel,
                "interleave": chunks,
            }
        )
        for dp, pp, tp in sizes
        for sequence_parallel in (False, True)
        for chunks in (1, 2)
        if not (sequence_parallel and tp == 1) and not (chunks == 2 and pp != 2)
    ]


def _every_case(ranks: int, steps: int = 5) -> list[Case]:
    """Gradients in fp32, and in fp64 what several steps lead to."""
    return [
        Case(layout.model_copy(update={"recompute": recompute}), model, precision, count, small, end)
        for layout in _layouts(ranks)
        for model in (MODEL, GROUPED)
        for recompute in ("none", "selective", "full")
        for precision, count in (("fp32", 1), ("fp64", steps))
        for small in (False, True)
        for end in (None, 3)
        if not layout.problems_of_shape(model)
    ]


def _pairs(cases: list[Case]) -> list[Case]:
    """Few of the cases, in which every two choices that occur together in some case still do: greedily the richest."""
    left = set().union(*map(_choices, cases))
    chosen: list[Case] = []
    while left:
        chosen.append(max(cases, key=lambda case: len(_choices(case) & left)))
        left -= _choices(chosen[-1])
    return chosen


def _choices(case: Case) -> set[Any]:
    """Pairs of choices; and that each cut of the ranks is tried in both precisions, and with documents apart."""
    layout = case.layout
    cut = {"dp": layout.dp, "pp": layout.pp, "tp": layout.tp, "chunks": layout.interleave}
    kinds = {"split": layout.sequence_parallel, "recompute": layout.recompute, "model": case.model}
    settings = cut | kinds | {"precision": case.precision, "small": case.small, "end": case.end_of_document}
    whole_cuts = {
        (*cut.values(), layout.sequence_parallel, one) for one in (case.precision, case.end_of_document)
    }
    return whole_cuts | {*combinations(settings.items(), 2)}


def _check(ranks: int, cases: list[Case], timeout_s: float) -> None:
    by_rank = spawn(ranks, _train_all, cases, timeout_s=timeout_s, poisoned=True)
    results = [list(found) for found in zip(*by_rank, strict=True)]
    for case, found in zip(cases, results, strict=True):
        _compare(case, found, _alone(case.model, case.precision, case.steps, case.end_of_document))
    _compare_recomputed(cases, results)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.soak), 4])
def test_every_pair_of_choices_equals_one_process(ranks: int) -> None:
    cases = _pairs(_every_case(ranks, steps=3))
    assert {case.layout for case in cases} >= set(_layouts(ranks))
    _check(ranks, cases, timeout_s=300)


@pytest.mark.soak
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_every_layout_equals_one_process(ranks: int) -> None:
    """Every cut, way to recompute and precision; models and sizes of buckets take turns."""
    chosen: dict[tuple[Layout, str], list[Case]] = {}
    for case in _every_case(ranks):
        chosen.setdefault((case.layout, case.precision), []).append(case)
    _check(ranks, [cases[at % len(cases)] for at, cases in enumerate(chosen.values())], timeout_s=1800)


@pytest.mark.slow
def test_what_one_process_recomputes_is_the_same_to_the_last_bit() -> None:
    for model, precision in product((MODEL, GROUPED), ("fp32", "bf16")):
        once, *others = [
            _train(Mesh(), WHOLE.model_copy(update={"recompute": recompute}), model, precision, 3)
            for recompute in ("none", "selective", "full")
        ]
        for other in others:
            assert (other.losses, other.norms) == (once.losses, once.norms)
            for (_, ours), (_, theirs) in zip(other.weights, once.weights, strict=True):
                assert torch.equal(ours, theirs)
