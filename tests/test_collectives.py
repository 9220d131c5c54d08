import pytest
import torch
from torch import Tensor

from model.collectives import enter, leave, max_over, sum_over
from model.mesh import Axis, Mesh
from tests.spawn import spawn


def test_one_rank_gets_the_very_same_tensor_back() -> None:
    x = torch.ones(2, 3, 4)
    for sequence_parallel in (False, True):
        assert enter(x, Axis(), sequence_parallel) is x
        assert leave(x, Axis(), sequence_parallel) is x
    assert sum_over(x, Axis()) is x
    assert max_over(x, Axis()) is x


def _of_rank(rank: int, salt: int, sequence: int) -> Tensor:
    """(B, S, H) fp64."""
    generator = torch.Generator().manual_seed(10 * salt + rank)
    return torch.randn(2, sequence, 3, dtype=torch.float64, generator=generator)


def _cases(mesh: Mesh) -> dict[str, tuple[Tensor, Tensor]]:
    """Forward results, and gradients for this rank's own cotangent."""
    axis, found = mesh.dp, {}
    for name, crossing, sequence_parallel, taken, given in (
        ("copy", enter, False, 4, 4),
        ("gather", enter, True, 4, 4 * axis.size),
        ("reduce", leave, False, 4, 4),
        ("scatter", leave, True, 4 * axis.size, 4),
    ):
        x = _of_rank(axis.rank, 1, taken).requires_grad_()
        y = crossing(x, axis, sequence_parallel)
        (gradient,) = torch.autograd.grad(y, x, _of_rank(axis.rank, 2, given))
        found[name] = (y.detach(), gradient)
    x = _of_rank(axis.rank, 3, 4)
    found["sums"] = (sum_over(x, axis), max_over(x, axis))
    assert torch.equal(x, _of_rank(axis.rank, 3, 4))
    return found


def test_pairs_are_what_the_papers_say_and_each_others_gradients() -> None:
    ranks = 2
    results = spawn(ranks, _cases)
    short = [[_of_rank(rank, salt, 4) for rank in range(ranks)] for salt in (0, 1, 2, 3)]
    long = [[_of_rank(rank, salt, 8) for rank in range(ranks)] for salt in (0, 1, 2)]
    for rank, found in enumerate(results):
        part = slice(4 * rank, 4 * rank + 4)
        expected = {
            "copy": (short[1][rank], sum(short[2])),
            "reduce": (sum(short[1]), short[2][rank]),
            "gather": (torch.cat(short[1], dim=1), sum(long[2])[:, part]),  # type: ignore[index]
            "scatter": (sum(long[1])[:, part], torch.cat(short[2], dim=1)),  # type: ignore[index]
            "sums": (sum(short[3]), torch.maximum(*short[3])),
        }
        for name, pair in expected.items():
            for ours, theirs in zip(found[name], pair, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15, msg=f"{name} on rank {rank}")


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_leave_after_enter_is_one_region(sequence_parallel: bool) -> None:
    """One process is the case of size 1: the same lines, no communication, the same gradient."""
    x = _of_rank(0, 1, 4).requires_grad_()
    y = leave(enter(x, Axis(), sequence_parallel) * 2, Axis(), sequence_parallel)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 2.0))
