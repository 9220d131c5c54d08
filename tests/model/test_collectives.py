import pytest
import torch
from torch import Tensor

from model.collectives import (
    all_gather,
    all_reduce,
    all_reduce_async,
    gather_from_sp_region,
    ready,
    reduce_from_tp_region,
    reduce_scatter_to_sp_region,
)
from model.mesh import Axis, Mesh
from tests.support.spawn import spawn


def test_one_rank_gets_the_very_same_tensor_back() -> None:
    x = torch.ones(2, 3, 4)
    assert all(
        one(x, Axis()).wait() is x
        for one in (gather_from_sp_region, reduce_scatter_to_sp_region, all_reduce_async)
    )
    assert ready(x).wait() is x
    assert all(
        reduce_from_tp_region(x, Axis(), sequence_parallel) is x for sequence_parallel in (False, True)
    )
    assert all_reduce(x, Axis()) is x


def _of_rank(rank: int, salt: int, sequence: int) -> Tensor:
    """(B, S, H) fp64."""
    generator = torch.Generator().manual_seed(10 * salt + rank)
    return torch.randn(2, sequence, 3, dtype=torch.float64, generator=generator)


def _cases(mesh: Mesh) -> dict[str, tuple[Tensor, ...]]:
    """What comes, and for `reduce_from_tp_region` the gradient for this rank's own cotangent too."""
    axis = mesh.dp
    short, long = _of_rank(axis.rank, 1, 4), _of_rank(axis.rank, 2, 4 * axis.size)
    found = {
        "gather": (
            gather_from_sp_region(short, axis).wait(),
            gather_from_sp_region(short[:, 1:3], axis).wait(),
        ),
        "scatter": (reduce_scatter_to_sp_region(long, axis).wait(),),
        "reduce": (all_reduce_async(short.clone(), axis).wait(),),
        "all": (all_reduce(short, axis), all_gather(short, axis)),
    }
    assert torch.equal(short, _of_rank(axis.rank, 1, 4))
    assert torch.equal(long, _of_rank(axis.rank, 2, 4 * axis.size))
    for name, x, sequence_parallel in (("leave", short, False), ("leave split", long, True)):
        x.requires_grad_()
        y = reduce_from_tp_region(x, axis, sequence_parallel)
        found[name] = (y.detach(), *torch.autograd.grad(y, x, _of_rank(axis.rank, 3, 4)))
    return found


@pytest.mark.slow
def test_collectives_are_what_the_papers_say_and_each_others_gradients() -> None:
    ranks = 2
    results = spawn(ranks, _cases, poisoned=True)
    short, dy = ([_of_rank(rank, salt, 4) for rank in range(ranks)] for salt in (1, 3))
    long = [_of_rank(rank, 2, 8) for rank in range(ranks)]
    for rank, found in enumerate(results):
        mine = slice(4 * rank, 4 * rank + 4)
        expected = {
            "gather": (torch.cat(short, dim=1), torch.cat([one[:, 1:3] for one in short], dim=1)),
            "scatter": (sum(long)[:, mine],),  # type: ignore[index]
            "reduce": (sum(short),),
            "all": (sum(short), torch.stack(short)),
            "leave": (sum(short), dy[rank]),
            "leave split": (sum(long)[:, mine], torch.cat(dy, dim=1)),  # type: ignore[index]
        }
        for name, results_of in expected.items():
            for ours, theirs in zip(found[name], results_of, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15, msg=f"{name} on rank {rank}")
