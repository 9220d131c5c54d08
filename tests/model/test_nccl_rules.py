"""What the pipeline's ranks give to NCCL connects and ends, for every pipeline, by the rules of tests.support."""

from collections.abc import Callable, Sequence
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model import pipeline_parallel
from model.mesh import Axis
from model.pipeline_parallel import _PointToPoint, connect_neighbours
from specs import pipeline_schedule
from specs.pipeline_schedule import Action, Transfer, forward_only, one_f_one_b, rank_schedule, timetable
from tests.support.nccl_rules import (
    Call,
    Operation,
    Trace,
    Wait,
    failed_connection,
    grouped_on_one_side_only,
    stuck,
    unmatched,
)

PIPELINES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
MICRO_BATCHES = (1, 2, 3, 5, 8, 12, 16, 24, 32, 64)
CHUNKS = (1, 2, 4)
SOME = [
    (2, 1, 1),
    (2, 2, 2),
    (3, 1, 1),
    (3, 6, 2),
    (4, 1, 1),
    (4, 8, 3),
    (5, 3, 1),
    (8, 16, 1),
    (12, 12, 2),
    (32, 8, 1),
]


class Recorded:
    """torch.distributed for one rank: records what it is asked for, and moves nothing."""

    def __init__(self) -> None:
        self.trace: list[Action | Call | Wait] = []
        self._calls = 0

    def call(self, *operations: Operation, batch: bool = False) -> Any:
        self.trace.append(Call(operations, batch))
        number, self._calls = self._calls, self._calls + 1
        return SimpleNamespace(wait=lambda: self.trace.append(Wait(number)))

    def isend(self, tensor: Any, *, group: Any, group_dst: int) -> Any:
        return self.call(Operation("send", group_dst))

    def irecv(self, tensor: Any, *, group: Any, group_src: int) -> Any:
        return self.call(Operation("receive", group_src))

    def send(self, tensor: Any, *, group: Any, group_dst: int) -> None:
        self.isend(tensor, group=group, group_dst=group_dst).wait()

    def recv(self, tensor: Any, *, group: Any, group_src: int) -> None:
        self.irecv(tensor, group=group, group_src=group_src).wait()


class Grouped(_PointToPoint):
    """What starts together is one call, as batch_isend_irecv makes it."""

    def start_transfers(self, transfers: Sequence[Transfer], empty: Callable[[Action], Any]) -> None:
        self._wait_sent(2)
        operations = [Operation(one.kind, one.peer) for one in transfers]
        handle = pipeline_parallel.dist.call(*operations, batch=True)  # type: ignore[attr-defined]
        for kind, _, action in transfers:
            if kind == "send":
                self._sending.append((self._outputs.pop(action), handle))
            else:
                self._receiving[action] = empty(action), handle


def traces(
    monkeypatch: pytest.MonkeyPatch,
    orders: Sequence[Sequence[Action]],
    chunks: int,
    links: type[_PointToPoint] = _PointToPoint,
    connected: bool = True,
) -> list[Trace]:
    """What every rank does from the start to the end of its first step."""
    found, pp = list[Trace](), len(orders)
    spans = timetable(orders, chunks, lambda _, action: 1.0 if action.kind == "forward" else 2.0)
    monkeypatch.setattr(pipeline_schedule, "timetable", lambda *_: spans)  # once for all ranks
    for rank in range(pp):
        recorded = Recorded()
        monkeypatch.setattr(pipeline_parallel, "dist", recorded)
        axis = Axis(pp, rank, "group")
        if connected:
            connect_neighbours(axis, torch.empty(1), ring=chunks > 1)
        p2p = links(axis)
        for step in rank_schedule(orders, chunks, rank):
            if isinstance(step, list):
                p2p.start_transfers(step, lambda action: torch.empty(0))
                continue
            if step in p2p._receiving:
                p2p.wait_received(step)
            recorded.trace.append(step)
            p2p.put(step, torch.empty(0))
        p2p.finish()
        found.append(recorded.trace)
    monkeypatch.undo()
    return found


def training(pp: int, micro_batches: int, chunks: int) -> list[Sequence[Action]]:
    return [one_f_one_b(pp, rank, micro_batches, chunks) for rank in range(pp)]


def evaluation(pp: int, micro_batches: int, chunks: int) -> list[Sequence[Action]]:
    return [forward_only(pp, micro_batches, chunks)] * pp


def check(monkeypatch: pytest.MonkeyPatch, orders: Sequence[Sequence[Action]], chunks: int) -> None:
    found = traces(monkeypatch, orders, chunks)
    assert not any(one.batch for trace in found for one in trace if isinstance(one, Call))
    assert not unmatched(found)
    assert failed_connection(found) is None
    for one_queue in (False, True):
        assert stuck(found, one_queue=one_queue) == []


@pytest.mark.parametrize(("pp", "micro_batches", "chunks"), SOME)
def test_a_pipeline_connects_and_ends(
    monkeypatch: pytest.MonkeyPatch, pp: int, micro_batches: int, chunks: int
) -> None:
    check(monkeypatch, training(pp, micro_batches, chunks), chunks)
    check(monkeypatch, evaluation(pp, micro_batches, chunks), chunks)


@pytest.mark.soak
@pytest.mark.parametrize("pp", PIPELINES)
def test_every_pipeline_connects_and_ends(monkeypatch: pytest.MonkeyPatch, pp: int) -> None:
    for micro_batches, chunks in product(MICRO_BATCHES, CHUNKS):
        if chunks == 1 or micro_batches % pp == 0:
            check(monkeypatch, training(pp, micro_batches, chunks), chunks)
        check(monkeypatch, evaluation(pp, micro_batches, chunks), chunks)


@pytest.mark.parametrize("pp", range(2, 34))
@pytest.mark.parametrize("ring", [False, True])
def test_all_that_a_step_needs_is_connected_at_the_start(
    monkeypatch: pytest.MonkeyPatch, pp: int, ring: bool
) -> None:
    used = []
    for rank in range(pp):
        recorded = Recorded()
        monkeypatch.setattr(pipeline_parallel, "dist", recorded)
        connect_neighbours(Axis(pp, rank, "group"), torch.empty(1), ring)
        used.append(recorded.trace)
    monkeypatch.undo()
    assert failed_connection(used) is None
    assert stuck(used, one_queue=True) == []
    operations = [[op for one in trace if isinstance(one, Call) for op in one.operations] for trace in used]
    for rank, found in enumerate(operations):
        peers = {(rank + 1) % pp, (rank - 1) % pp} if ring else {rank - 1, rank + 1} & set(range(pp))
        assert sorted(found) == sorted(
            Operation(kind, peer) for kind in ("send", "receive") for peer in peers
        )  # type: ignore[arg-type]


def test_groups_of_one_micro_batch_connect_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rules find in groups: two stages send different sizes, four wait for each other."""
    two, four = (
        failed_connection(traces(monkeypatch, training(pp, 1, 1), 1, Grouped, connected=False))
        for pp in (2, 4)
    )
    assert two is not None
    assert "which sends" in two
    assert four is not None
    assert "wait for each other" in four
    assert failed_connection(traces(monkeypatch, training(4, 4, 1), 1, Grouped, connected=False)) is None


@pytest.mark.parametrize(("chunks", "split"), [(1, 7), (2, 16)])
def test_groups_differ_between_neighbours(monkeypatch: pytest.MonkeyPatch, chunks: int, split: int) -> None:
    grouped = traces(monkeypatch, training(8, 64, chunks), chunks, Grouped)
    assert grouped_on_one_side_only(grouped) == split
    assert grouped_on_one_side_only(traces(monkeypatch, training(8, 64, chunks), chunks)) == 0


def test_groups_of_an_interleaved_pipeline_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stuck(traces(monkeypatch, training(12, 24, 2), 2, Grouped), one_queue=False) != []
