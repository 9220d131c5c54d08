from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import tensor_parallel
from model.collectives import AsyncTensor, ready
from model.kernels import choose
from model.layers import SubLayer, SubLayerWeights
from model.mesh import Axis, Mesh
from model.tensor_parallel import ParallelLinears
from runtime.rehearse.tracer import StepTracer
from tests.model.test_kernels import relative
from tests.support.spawn import spawn

RANKS, BATCH, SEQUENCE, WIDTH, INNER = 2, 3, 8, 6, 10
KERNELS = choose("auto", "cpu")


def _random(salt: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(salt))


X, W_IN, W_OUT, DY = (
    _random(1, BATCH, SEQUENCE, WIDTH),
    _random(2, INNER, WIDTH),
    _random(3, WIDTH, INNER),
    _random(4, BATCH, SEQUENCE, WIDTH),
)


def _exact() -> tuple[Tensor, Tensor, Tensor]:
    """y = x into' out', its gradient in the middle, and that of x."""
    x = X.clone().requires_grad_()
    middle = F.linear(x, W_IN)
    y = F.linear(middle, W_OUT)
    return y.detach(), *torch.autograd.grad(y, (middle, x), DY)


def _mine(whole: Tensor, axis: Axis, dim: int) -> Tensor:
    return whole.chunk(axis.size, dim)[axis.rank].contiguous()


def _through(mesh: Mesh) -> dict[tuple[bool, bool, int], tuple[Tensor, ...]]:
    """There and back for every way to split, to multiply and to cut: this rank's part of each result."""
    axis, found = mesh.dp, {}
    into, out = _mine(W_IN, axis, 0), _mine(W_OUT, axis, 1)
    for split in (False, True):
        x, dy = (_mine(one, axis, 1) if split else one.clone() for one in (X, DY))
        for transposed in (False, True):
            for pieces in (1, 3):
                tensor_parallel.PIECES, tensor_parallel.PIECE_BYTES = pieces, 1  # in a process of its own
                ours = ParallelLinears(axis, split, KERNELS.linear if transposed else F.linear)
                y = ours.row_parallel(ours.column_parallel(x, into, ours.multiply), out, BATCH)
                dmiddle_RF, dy_RH = ours.row_parallel_backward(dy, out)
                dx = ours.column_parallel_backward(dmiddle_RF, into, BATCH).wait()
                again = ours.regather(x).wait()
                found[split, transposed, pieces] = (y, dmiddle_RF, dy_RH, dx, again)
    return found


def test_what_enters_and_leaves_is_what_one_process_multiplies_however_it_is_cut() -> None:
    y, dmiddle, dx = _exact()
    for rank, found in enumerate(spawn(RANKS, _through, poisoned=True)):
        axis = Axis(RANKS, rank)
        for (split, *_), (our_y, our_dmiddle, our_dy, our_dx, again) in found.items():
            for ours, exact in ((our_y, y), (our_dx, dx)):
                assert relative(ours, _mine(exact, axis, 1) if split else exact) < 1e-14
            assert relative(our_dmiddle.reshape(BATCH, SEQUENCE, -1), _mine(dmiddle, axis, 2)) < 1e-14
            assert torch.equal(our_dy.reshape(DY.shape), DY)
            assert torch.equal(again, X)


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_pieces_are_whole_and_not_too_small(rows: int) -> None:
    x = torch.zeros(2, rows, tensor_parallel.PIECE_BYTES // 64)
    pieces = ParallelLinears(Axis(2, 0), True, F.linear)._pieces(x, 64)
    assert [row for piece in pieces for row in range(rows)[piece]] == list(range(rows))
    assert len(pieces) <= tensor_parallel.PIECES
    assert len(pieces) == 1 or x[:, pieces[0]].nbytes >= tensor_parallel.PIECE_BYTES


@pytest.mark.parametrize(
    ("rows", "columns", "processors", "pieces"),
    [
        (
            4096,
            1280,
            132,
            2,
        ),  # the 67B's queries, keys and values at tp 8 on an H100: 160 tiles, 2 waves; 4 x 40 took 4
        (4096, 5504, 132, 3),  # its gate and up: 704 tiles, 6 waves; 3 x 242 take 2 each
        (4096, 1024, 132, 1),  # 128 tiles are one wave
        (16384, 8192, 132, 4),  # many waves: 4096 tiles, 32; 4 x 1024 take 8 each
        (64, 64, 132, 1),
    ],
)
def test_pieces_take_no_more_waves_of_tiles_than_the_whole(
    rows: int, columns: int, processors: int, pieces: int
) -> None:
    assert tensor_parallel.whole_waves(8, rows // 8, columns, processors, 4) == pieces


def test_ranks_of_an_uneven_vocabulary_cut_alike() -> None:
    """Else they would wait for gathers that nobody starts: only even columns decide, and the fewest processors."""
    x = torch.zeros(1, 64, tensor_parallel.PIECE_BYTES // 64)
    linears = ParallelLinears(Axis(2, 0), True, F.linear, processors=132)
    assert len(linears._pieces(x, None)) == 4
    assert len(linears._pieces(x, 256)) == 1


def test_forward_gathers_without_a_copy_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only backward wants the gathered rows, beside their product."""
    monkeypatch.setattr(tensor_parallel, "PIECE_BYTES", 1)
    monkeypatch.setattr(
        tensor_parallel, "gather_from_sp_region", lambda x, axis: ready(torch.cat([x, x], dim=1))
    )
    linears, weight = ParallelLinears(Axis(2, 0), True, F.linear), torch.randn(10, WIDTH, dtype=torch.float64)
    x, transposed = X[:, :4].contiguous(), weight.t().contiguous()
    with StepTracer(Mesh()) as tracer:
        linears.column_parallel(x, weight, F.linear)
        forward = tracer.peak_bytes
        tracer.reset()
        _, whole_RH = linears.row_parallel_backward(x, transposed)
    assert torch.equal(whole_RH.view(BATCH, 8, WIDTH), torch.cat([x, x], dim=1))
    assert forward + whole_RH.nbytes <= tracer.peak_bytes


def test_weights_gradients_are_multiplied_while_the_sum_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    def collective(name: str) -> Callable[[Tensor, Axis], AsyncTensor]:
        def start(x: Tensor, axis: Axis) -> AsyncTensor:
            if axis.size == 1:
                return ready(x)
            seen.append(f"start {name}")
            return AsyncTensor(None, Axis(), lambda: (seen.append(f"wait {name}"), x)[1])

        return start

    def accumulate(*args: Any) -> None:
        seen.append("weights")
        KERNELS.accumulate(*args)

    names = {
        "reduce": "all_reduce_async",
        "gather": "gather_from_sp_region",
        "scatter": "reduce_scatter_to_sp_region",
    }
    for short, name in names.items():
        monkeypatch.setattr(tensor_parallel, name, collective(short))
    layer_of = replace(KERNELS, accumulate=accumulate)
    weights = SubLayerWeights(
        *(_buffered(one) for one in (torch.ones(WIDTH), _random(5, 8, WIDTH), _random(6, WIDTH, 4)))
    )
    for split, expected in (
        (False, ["start reduce", "weights", "weights", "wait reduce"]),
        (True, ["start gather", "start scatter", "weights", "wait gather", "weights", "wait scatter"]),
    ):
        layer = SubLayer(KERNELS.gate, ParallelLinears(Axis(2, 0), split, F.linear), layer_of, 1e-6, False)
        with torch.no_grad():
            _, _, kept = layer.forward(X, None, weights)
            seen.clear()
            layer.backward(DY, DY, kept, weights)
        assert seen[-len(expected) :] == expected


def _buffered(x: Tensor) -> Tensor:
    parameter = torch.nn.Parameter(x.double())
    parameter.grad = torch.zeros_like(parameter)
    return parameter
