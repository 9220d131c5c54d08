"""The process group of the parity tests finds what it is for."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from model.buckets import GradAndParamBuckets
from model.collectives import all_gather, all_reduce, all_reduce_async, gather_from_sp_region
from model.mesh import Axis, Mesh
from tests.support.spawn import RankError, spawn


def _exchange(axis: Axis, x: Tensor) -> tuple[Tensor, dist.Work]:
    """Send to the other rank and receive from it; the send is not waited for."""
    other, theirs = 1 - axis.rank, torch.zeros(4)
    send = dist.isend(x, group=axis.group, group_dst=other)
    receive = dist.irecv(theirs, group=axis.group, group_src=other)
    assert theirs.isnan().all(), "not poisoned"
    receive.wait()
    return theirs, send


def _right(mesh: Mesh) -> None:
    axis, x = mesh.dp, torch.full((4,), float(mesh.dp.rank))
    assert all_reduce(x, axis).tolist() == [1.0] * 4
    assert all_gather(x, axis).tolist() == [[0.0] * 4, [1.0] * 4]
    assert all_reduce(torch.tensor([7]), axis).tolist() == [14]
    theirs, send = _exchange(axis, x)
    assert theirs.tolist() == [1.0 - axis.rank] * 4
    send.wait()


def _read_too_early(mesh: Mesh) -> None:
    x = torch.ones(4)
    gathered = gather_from_sp_region(x.view(1, 4, 1), mesh.dp)
    too_early = gathered._finish().sum()
    gathered.wait()
    assert too_early == 8.0, "read too early"


def _integers_read_too_early(mesh: Mesh) -> None:
    x = torch.tensor([7])
    handle = all_reduce_async(x, mesh.dp)
    too_early = int(x)
    handle.wait()
    assert too_early in (7, 14), "read too early"


def _input_reused(mesh: Mesh) -> None:
    x = torch.ones(4)
    _, send = _exchange(mesh.dp, x)
    x.zero_()
    send.wait()


def _result_written(mesh: Mesh) -> None:
    x = torch.ones(4)
    handle = all_reduce_async(x, mesh.dp)
    x[2] += 1
    x[1] = 5
    handle.wait()


def _never_waited(mesh: Mesh) -> None:
    all_reduce_async(torch.ones(4), mesh.dp)


def _cases(mesh: Mesh, wrong: list[Callable[[Mesh], None]]) -> list[str]:
    """What each case raises, the same ranks doing all of them."""
    from tests.support import poisoned_group

    found = []
    for case in wrong:
        try:
            case(mesh)
            poisoned_group.check_nothing_in_flight()
            found.append("")
        except AssertionError as error:
            found.append(str(error).splitlines()[0])
            poisoned_group._in_flight.clear()
    return found


@pytest.mark.slow
def test_it_finds_missing_waits_and_early_reuse() -> None:
    cases = {
        _right: "",
        _read_too_early: "read too early",
        _integers_read_too_early: "read too early",
        _input_reused: "the input of send was changed before it was waited for",
        _result_written: "the result of all_reduce was written to before it was waited for",
        _never_waited: "never waited for: all_reduce",
    }
    for found in spawn(2, _cases, list(cases), poisoned=True):
        assert found == list(cases.values())


def _forgets(mesh: Mesh) -> None:
    """The engine's own training without the wait for new parameters."""
    from tests.model.test_zero import ODD, _train
    from tests.support import samples

    GradAndParamBuckets.before_forward = lambda self, module: None  # type: ignore[method-assign]  # in a process of its own
    losses, _, _ = _train(mesh, ODD, samples.optim(), "fp32", 2, bucket_bytes=1)
    assert all(loss == loss for loss in losses), "the second step's loss is not a number"


@pytest.mark.slow
def test_it_finds_a_wait_that_the_engine_forgets() -> None:
    with pytest.raises(RankError, match="is not a number"):
        spawn(2, _forgets, poisoned=True)
