import os
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from model.mesh import Axis, Mesh, _connect_groups, claim_device, connect, mesh_of, set_timeout
from tests.support.spawn import RankError, spawn


def test_one_process_is_a_mesh_without_groups() -> None:
    with connect(1, 1, 1, rank=0, rendezvous="tcp://nowhere:1", device="cpu") as mesh:
        assert mesh == Mesh() == Mesh(Axis(1, 0, None), Axis(1, 0, None), Axis(1, 0, None))
        assert not dist.is_initialized()


@pytest.mark.parametrize(("sizes", "rank"), [((2, 1, 1), 2), ((1, 2, 2), -1), ((0, 1, 1), 0)])
def test_a_rank_without_a_place_is_refused_before_any_group_forms(
    sizes: tuple[int, int, int], rank: int
) -> None:
    refused = connect(*sizes, rank=rank, rendezvous="tcp://nowhere:1", device="cpu")
    with pytest.raises(ValueError, match=f"no rank {rank}"), refused:
        pass
    assert not dist.is_initialized()


def _places(world: Mesh) -> list[list[tuple[int, int, list[int]]]]:
    """For several meshes over the same ranks: size, place and the world's ranks of each axis."""
    found = []
    for sizes in ((4, 1, 1), (1, 2, 2), (2, 2, 1), (2, 1, 2)):
        mesh = mesh_of(*sizes)
        assert mesh.world == world.world
        found.append(
            [(axis.size, axis.rank, _ranks(axis, world.dp.rank)) for axis in (mesh.dp, mesh.pp, mesh.tp)]
        )
    with pytest.raises(ValueError, match="the process group has 4 ranks"):
        mesh_of(3, 1, 1)
    limited = mesh_of(2, 2, 1, timedelta(seconds=7))
    assert _timeouts_s(limited.dp, limited.pp, limited.world) == [7, 7, 60]
    set_timeout(limited, 11)
    assert _timeouts_s(limited.dp, limited.pp, limited.world) == [11, 11, 11]
    return found


def _timeouts_s(*axes: Axis) -> list[float]:
    options: list[Any] = [axis.group._get_backend(torch.device("cpu")).options for axis in axes]
    return [one._timeout.total_seconds() for one in options]


def test_groups_that_have_collectives_connect_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, in one order on all ranks; a pipeline has none, and connects pairs."""
    connected: list[str] = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: connected.append(group))
    world, dp, pp, tp = (Axis(2, 0, group) for group in ("world", "dp", "pp", "tp"))
    _connect_groups(Mesh(dp, pp, tp, world), "cpu")
    _connect_groups(Mesh(world, Axis(), Axis(), world), "cpu")
    assert connected == ["world", "dp", "tp", "world"]


def test_a_device_has_one_rank() -> None:
    store = dist.HashStore()
    for rank, device in enumerate(("GPU a of n1", "GPU b of n1", "GPU a of n2")):
        claim_device(store, rank, device)
    with pytest.raises(OSError, match="ranks 1 and 3 both have GPU b of n1; start as many ranks"):
        claim_device(store, 3, "GPU b of n1")


def _ranks(axis: Axis, rank: int) -> list[int]:
    ranks = torch.zeros(axis.size, dtype=torch.int64)
    ranks[axis.rank] = rank
    if axis.size > 1:
        dist.all_reduce(ranks, group=axis.group)
    return ranks.tolist()


@pytest.mark.slow
def test_each_rank_knows_its_place_and_its_groups() -> None:
    for rank, (line, square, outer, inner) in enumerate(spawn(4, _places)):
        high, low = divmod(rank, 2)
        rows, columns = [2 * high, 2 * high + 1], [low, low + 2]
        alone = (1, 0, [rank])
        assert line == [(4, rank, [0, 1, 2, 3]), alone, alone]
        assert square == [alone, (2, high, columns), (2, low, rows)]
        assert outer == [(2, high, columns), (2, low, rows), alone]
        assert inner == [(2, high, columns), alone, (2, low, rows)]


def _misbehave(mesh: Mesh, how: str) -> None:
    if mesh.dp.rank == 1 and how == "raise":
        raise ArithmeticError("rank 1 had enough")
    if mesh.dp.rank == 1 and how == "die":
        os._exit(3)
    if mesh.dp.rank == 1:
        time.sleep(60)
    dist.all_reduce(torch.zeros(1), group=mesh.dp.group)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "timeout_s", "message"),
    [
        ("raise", 60.0, "rank 1 had enough"),
        ("die", 60.0, "died|closed"),
        ("hang", 10.0, "no answer|[Tt]imed out"),
    ],
)
def test_a_rank_that_fails_ends_all_of_them_at_once(how: str, timeout_s: float, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(RankError, match=message):
        spawn(2, _misbehave, how, timeout_s=timeout_s)
    assert time.monotonic() - began < 30
