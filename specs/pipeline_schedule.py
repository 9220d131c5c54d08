"""Pipeline schedules as plain lists of actions: the planner times them, the engine executes them, tests prove them.

A model is cut into pp x chunks virtual stages: chunk c of rank r is virtual stage c * pp + r, in order of depth. A rank
executes its list of actions in order, and results are sent between neighbouring virtual stages. What is sent and
received, and when, follows from the lists alone: all transfers of a step have one order of time, which every rank
follows, and so there is no deadlock.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple


class Action(NamedTuple):
    """One pass of one micro-batch through one chunk of a rank."""

    kind: Literal["forward", "backward"]
    micro_batch: int
    chunk: int


class Transfer(NamedTuple):
    """A result that a rank sends to a neighbour or receives from one."""

    kind: Literal["send", "receive"]
    peer: int
    """The other rank."""
    action: Action
    """This rank's action that the result comes from, or that it goes into."""


class Span(NamedTuple):
    """When an action runs."""

    start: float
    end: float


def one_f_one_b(pp: int, rank: int, micro_batches: int, chunks: int = 1) -> tuple[Action, ...]:
    """A rank's actions in a training step: 1F1B, interleaved with several chunks (arXiv 2104.04473, section 2.2).

    After its warmup of forwards a rank alternates one forward and one backward, then drains the backwards. ValueError
    for what has no such order: a rank outside the pipeline, or interleaved micro-batches that are no multiple of pp.
    """
    if not 0 <= rank < pp or micro_batches < 1 or chunks < 1:
        raise ValueError(
            f"rank {rank} of {pp}, {micro_batches} micro-batches, {chunks} chunks: not a pipeline"
        )
    if chunks > 1 and (pp == 1 or micro_batches % pp):
        raise ValueError(
            f"interleaving needs micro-batches in multiples of pp > 1, not {micro_batches} of pp {pp}"
        )
    forwards = forward_only(pp, micro_batches, chunks)
    backwards = [Action("backward", action.micro_batch, chunks - 1 - action.chunk) for action in forwards]
    warm = min(_warm_up(pp, rank, chunks), len(forwards))
    steady = zip(forwards[warm:], backwards, strict=False)
    pairs = [action for pair in steady for action in pair]
    return (*forwards[:warm], *pairs, *backwards[len(forwards) - warm :])


def forward_only(pp: int, micro_batches: int, chunks: int = 1) -> tuple[Action, ...]:
    """Every rank's actions in an evaluation: pp micro-batches go through a chunk before the next chunk's turn."""
    return tuple(
        Action("forward", micro_batch, chunk)
        for first in range(0, micro_batches, pp)
        for chunk in range(chunks)
        for micro_batch in range(first, min(first + pp, micro_batches))
    )


def source(pp: int, chunks: int, rank: int, action: Action) -> tuple[int, Action] | None:
    """The rank and its action whose result goes into this one.

    None for the forward that takes tokens and the backward that starts from the loss. (A backward also takes what its
    own forward kept, on the same rank.)
    """
    stage = action.chunk * pp + rank + (-1 if action.kind == "forward" else 1)
    if not 0 <= stage < pp * chunks:
        return None
    return stage % pp, action._replace(chunk=stage // pp)


def timetable(
    orders: Sequence[Sequence[Action]],
    chunks: int,
    duration: Callable[[int, Action], float],
    transfer: float = 0.0,
) -> dict[tuple[int, Action], Span]:
    """When every (rank, action) runs, if it takes `duration(rank, action)` and its result arrives `transfer` later.

    `orders` has the actions of every rank. Sending costs a rank no time. ValueError where orders wait for each
    other (deadlock).
    """
    spans: dict[tuple[int, Action], Span] = {}
    left = [deque(order) for order in orders]
    free = [0.0] * len(orders)
    waiting = set(range(len(orders)))
    while waiting:
        before = len(spans)
        for rank in sorted(waiting):
            while left[rank]:
                feeding = source(len(orders), chunks, rank, left[rank][0])
                if feeding is not None and feeding not in spans:
                    break
                action = left[rank].popleft()
                start = max(free[rank], spans[feeding].end + transfer) if feeding else free[rank]
                free[rank] = start + duration(rank, action)
                spans[rank, action] = Span(start, free[rank])
            else:
                waiting.remove(rank)
        if waiting and len(spans) == before:
            raise ValueError("these orders of actions wait for each other: a deadlock")
    return spans


def rank_schedule(
    orders: Sequence[Sequence[Action]], chunks: int, rank: int
) -> list[Action | list[Transfer]]:
    """A rank's actions, and between them its transfers: those of a list start one after another, each as its own call.

    Transfers are in the order in which the actions that they come from end, if forwards take 1 and backwards 2 (which
    their FLOP do). An action waits for the transfer that brings its input, and for no other; what arrives during an
    action starts before it, so that transfer and action overlap.
    """
    spans = timetable(orders, chunks, lambda _, action: 1.0 if action.kind == "forward" else 2.0)
    transfers = _transfers(orders, chunks, rank, spans)
    ends = [end for end, _ in transfers]
    steps: list[Action | list[Transfer]] = []
    issued = 0
    for action in orders[rank]:
        span = spans[rank, action]
        for until in (bisect_right(ends, span.start), bisect_left(ends, span.end)):
            if until > issued:
                steps.append([transfer for _, transfer in transfers[issued:until]])
                issued = until
        steps.append(action)
    if issued < len(transfers):
        steps.append([transfer for _, transfer in transfers[issued:]])
    return steps


def _warm_up(pp: int, rank: int, chunks: int) -> int:
    """Forwards before the first backward's turn; interleaved, two more than the next rank (Megatron-LM's order)."""
    if chunks == 1:
        return pp - rank - 1
    return 2 * (pp - rank - 1) + (chunks - 1) * pp


def _transfers(
    orders: Sequence[Sequence[Action]], chunks: int, rank: int, spans: Mapping[tuple[int, Action], Span]
) -> list[tuple[float, Transfer]]:
    """A rank's transfers by the end of the action they come from; ties have one order for all ranks."""
    found = []
    for receiver, order in enumerate(orders):
        for action in order:
            feeding = source(len(orders), chunks, receiver, action)
            if feeding is None or rank not in (receiver, feeding[0]):
                continue
            sender, sent = feeding
            mine = Transfer("send", receiver, sent) if rank == sender else Transfer("receive", sender, action)
            found.append((spans[feeding].end, sender, sent, mine))
    return [(end, transfer) for end, _, _, transfer in sorted(found)]
