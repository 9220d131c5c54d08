import os
import time

import pytest
import torch
import torch.distributed as dist

from model.mesh import Axis, Mesh, connect
from tests.spawn import RankError, spawn


def test_one_process_is_a_mesh_without_groups() -> None:
    with connect(1, 1, 1, rank=0, rendezvous="tcp://nowhere:1", device="cpu") as mesh:
        assert mesh == Mesh() == Mesh(Axis(1, 0, None), Axis(1, 0, None), Axis(1, 0, None))
        assert not dist.is_initialized()


@pytest.mark.parametrize(("pp", "tp", "said"), [(2, 1, "pp: 1"), (1, 4, "tp: 1")])
def test_axes_that_are_not_built_are_refused_before_any_group_forms(pp: int, tp: int, said: str) -> None:
    refused = connect(2, pp, tp, rank=0, rendezvous="tcp://nowhere:1", device="cpu")
    with pytest.raises(ValueError, match=said), refused:
        pass
    assert not dist.is_initialized()


def _place(mesh: Mesh) -> tuple[int, int, list[int], bool]:
    ranks = torch.zeros(mesh.dp.size, dtype=torch.int64)
    ranks[mesh.dp.rank] = mesh.dp.rank + 1
    dist.all_reduce(ranks, group=mesh.dp.group)
    return mesh.dp.size, mesh.dp.rank, ranks.tolist(), mesh.pp == mesh.tp == Axis()


def test_each_rank_knows_its_place_and_its_group() -> None:
    assert spawn(3, _place) == [(3, rank, [1, 2, 3], True) for rank in range(3)]


def _misbehave(mesh: Mesh, how: str) -> None:
    if mesh.dp.rank == 1 and how == "raise":
        raise ArithmeticError("rank 1 had enough")
    if mesh.dp.rank == 1 and how == "die":
        os._exit(3)
    if mesh.dp.rank == 1:
        time.sleep(60)
    dist.all_reduce(torch.zeros(1), group=mesh.dp.group)


@pytest.mark.parametrize(
    ("how", "timeout_s", "said"),
    [
        ("raise", 60.0, "rank 1 had enough"),
        ("die", 60.0, "died|closed"),
        ("hang", 5.0, "no answer|[Tt]imed out"),
    ],
)
def test_a_rank_that_fails_ends_all_of_them_at_once(how: str, timeout_s: float, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(RankError, match=said):
        spawn(2, _misbehave, how, timeout_s=timeout_s)
    assert time.monotonic() - began < 30
