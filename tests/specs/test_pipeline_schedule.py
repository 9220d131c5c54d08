from collections import deque
from collections.abc import Sequence
from itertools import product

import pytest

from specs.pipeline_schedule import (
    Action,
    Transfer,
    forward_only,
    one_f_one_b,
    rank_schedule,
    source,
    timetable,
)

Orders = list[tuple[Action, ...]]

STAGES, MICRO_BATCHES, CHUNKS = range(1, 17), range(1, 65), range(1, 5)
SOME = [(1, 1, 1), (1, 5, 1), (2, 1, 1), (2, 8, 1), (2, 2, 2), (2, 6, 4), (3, 2, 1), (4, 8, 1), (4, 4, 2)]
SOME += [(4, 12, 3), (5, 64, 1), (7, 14, 2), (16, 16, 1), (16, 32, 4), (16, 64, 1)]


def orders(pp: int, micro_batches: int, chunks: int) -> Orders:
    return [one_f_one_b(pp, rank, micro_batches, chunks) for rank in range(pp)]


def legal(pp: int, micro_batches: int, chunks: int) -> bool:
    return chunks == 1 or (pp > 1 and micro_batches % pp == 0)


@pytest.mark.parametrize(
    ("pp", "rank", "expected"),
    [(2, 0, "f0 f1 b0 f2 b1 f3 b2 b3"), (2, 1, "f0 b0 f1 b1 f2 b2 f3 b3"), (4, 1, "f0 f1 f2 b0 f3 b1 b2 b3")],
)
def test_1f1b_of_four_micro_batches_as_it_is_drawn_in_the_paper(pp: int, rank: int, expected: str) -> None:
    order = one_f_one_b(pp, rank, 4)
    assert " ".join(f"{action.kind[0]}{action.micro_batch}" for action in order) == expected


def test_interleaved_1f1b_of_two_ranks() -> None:
    texts = [
        " ".join(f"{kind[0]}{at}{'ab'[chunk]}" for kind, at, chunk in order) for order in orders(2, 2, 2)
    ]
    assert texts == ["f0a f1a f0b f1b b0b b1b b0a b1a", "f0a f1a f0b b0b f1b b1b b0a b1a"]


@pytest.mark.parametrize(("pp", "micro_batches", "chunks"), SOME)
def test_every_micro_batch_goes_once_each_way_through_every_chunk(
    pp: int, micro_batches: int, chunks: int
) -> None:
    expected = sorted(
        Action(k, m, c)
        for k in ("backward", "forward")
        for m, c in product(range(micro_batches), range(chunks))
    )  # type: ignore[arg-type]
    for order in orders(pp, micro_batches, chunks):
        assert sorted(order) == expected


@pytest.mark.parametrize(("pp", "micro_batches", "chunks"), SOME)
def test_no_rank_keeps_more_activations_than_theory_says(pp: int, micro_batches: int, chunks: int) -> None:
    for rank, order in enumerate(orders(pp, micro_batches, chunks)):
        alive = most = 0
        done: set[Action] = set()
        for action in order:
            alive += 1 if action.kind == "forward" else -1
            most = max(most, alive)
            assert action.kind == "forward" or action._replace(kind="forward") in done
            done.add(action)
        assert alive == 0
        if chunks == 1:
            assert most == min(pp - rank, micro_batches)
        else:  # the first rank's, in whole stages: p (1 + (p - 1) / (p v)) (arXiv 2205.05198, 4.2.3)
            assert most == min(pp * chunks + pp - 1 - 2 * rank, micro_batches * chunks)


@pytest.mark.parametrize(("pp", "micro_batches", "chunks"), [(4, 8, 1), (4, 8, 2), (8, 32, 1), (8, 32, 4)])
def test_the_bubble_is_the_papers(pp: int, micro_batches: int, chunks: int) -> None:
    """Idle over ideal time is (p - 1) / (m v) (arXiv 2104.04473, 2.2.1 and 2.2.2)."""
    spans = timetable(
        orders(pp, micro_batches, chunks), chunks, lambda _, action: 1 if action.kind == "forward" else 2
    )
    ideal = 3 * micro_batches * chunks
    assert max(span.end for span in spans.values()) - ideal == 3 * (pp - 1)


def test_a_result_that_travels_arrives_later() -> None:
    spans = timetable(orders(2, 1, 1), 1, lambda _, action: 1.0, transfer=0.25)
    assert spans[0, Action("backward", 0, 0)] == (3.5, 4.5)


def test_orders_that_wait_for_each_other_are_refused() -> None:
    crossed = [(Action("backward", 0, 0), Action("forward", 0, 0)), one_f_one_b(2, 1, 1)]
    with pytest.raises(ValueError, match="deadlock"):
        timetable(crossed, 1, lambda _, action: 1.0)


@pytest.mark.parametrize(
    ("pp", "rank", "micro_batches", "chunks"),
    [(4, 4, 8, 1), (2, -1, 2, 1), (2, 0, 0, 1), (4, 0, 6, 2), (1, 0, 4, 2)],
)
def test_what_has_no_order_is_refused(pp: int, rank: int, micro_batches: int, chunks: int) -> None:
    with pytest.raises(ValueError, match=r"not a pipeline|interleaving needs"):
        one_f_one_b(pp, rank, micro_batches, chunks)


@pytest.mark.parametrize(("pp", "micro_batches", "chunks"), SOME)
def test_nobody_waits_for_ever(pp: int, micro_batches: int, chunks: int) -> None:
    check(orders(pp, micro_batches, chunks), chunks)


@pytest.mark.parametrize(
    ("pp", "micro_batches", "chunks"), [(2, 3, 1), (2, 3, 2), (4, 1, 3), (4, 9, 1), (16, 21, 4)]
)
def test_nobody_waits_for_ever_in_an_evaluation(pp: int, micro_batches: int, chunks: int) -> None:
    check([forward_only(pp, micro_batches, chunks)] * pp, chunks)


@pytest.mark.soak
@pytest.mark.parametrize("pp", STAGES)
def test_nobody_waits_for_ever_in_any_pipeline(pp: int) -> None:
    for micro_batches, chunks in product(MICRO_BATCHES, CHUNKS):
        if legal(pp, micro_batches, chunks):
            check(orders(pp, micro_batches, chunks), chunks)


def check(actions: Orders, chunks: int) -> None:
    """Carry out the ranks' scripts with blocking sends and receives, and look at what each action is given."""
    scripts = [rank_schedule(actions, chunks, rank) for rank in range(len(actions))]
    for rank, steps in enumerate(scripts):
        assert [step for step in steps if isinstance(step, Action)] == list(actions[rank])
    got = rendezvous(scripts)
    for rank, order in enumerate(actions):
        for action in order:
            feeding = source(len(actions), chunks, rank, action)
            assert got.pop((rank, action), None) == feeding, "each result reaches the action it is for"
    assert not got


def rendezvous(
    scripts: Sequence[Sequence[Action | list[Transfer]]],
) -> dict[tuple[int, Action], tuple[int, Action]]:
    """Who got what, if a rank does one thing at a time and a send and its receive both last until they have met.

    Nothing is named on the way: between two ranks the first send meets the first receive. This is stricter than any
    back end, which has buffers, carries out a batch's transfers together, and lets ranks compute meanwhile.
    """
    left = [
        deque(one for step in steps for one in (step if isinstance(step, list) else [step]))
        for steps in scripts
    ]
    done: set[tuple[int, Action]] = set()
    got: dict[tuple[int, Action], tuple[int, Action]] = {}
    ready = set(range(len(left)))
    while ready:
        rank = ready.pop()
        while left[rank]:
            mine = left[rank][0]
            if isinstance(mine, Action):
                done.add((rank, mine))
                left[rank].popleft()
                continue
            theirs = left[mine.peer][0] if left[mine.peer] else None
            if not isinstance(theirs, Transfer) or theirs.peer != rank or theirs.kind == mine.kind:
                break  # the peer comes back to it
            sender, receiver = ((rank, mine.action), (mine.peer, theirs.action))
            if mine.kind == "receive":
                sender, receiver = receiver, sender
            assert sender in done, "what is sent was computed"
            assert receiver not in done, "what is received comes before its action"
            got[receiver] = sender
            left[rank].popleft()
            left[mine.peer].popleft()
            ready.add(mine.peer)
    assert not any(left), "a circle of waiting"
    return got
