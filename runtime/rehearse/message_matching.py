"""Check that the communication of the rehearsed ranks matches: what one sends the other receives, in order and size.

Their messages are matched one after another, each as a blocking call: a rank waits until its partners reach the same
communication. This is stricter than any network, so ranks that pass cannot deadlock.
"""

from collections import deque
from collections.abc import Mapping, Sequence

from runtime.rehearse.tracer import Message
from specs.layout import Layout

_COUNTERPART = {"send": "receive", "receive": "send"}


def mismatch(layout: Layout, messages: Mapping[int, Sequence[Message]]) -> str | None:
    """The first mismatch or deadlock of these ranks' messages; None where all of them match."""
    pending = {rank: deque(queue) for rank, queue in messages.items()}
    waiting = {rank for rank in pending if pending[rank]}
    while waiting:
        done = False
        for rank in sorted(waiting):
            while pending[rank]:
                partners = _partners(layout, rank, pending[rank][0], pending)
                heads = {one: pending[one][0] if pending[one] else None for one in partners}
                wrong = _wrong(layout, rank, pending[rank][0], heads)
                if wrong:
                    return wrong
                if any(
                    not _matches(layout, rank, pending[rank][0], one, head) for one, head in heads.items()
                ):
                    break
                for one in (rank, *partners):
                    pending[one].popleft()
                done = True
        waiting = {rank for rank in waiting if pending[rank]}
        if waiting and not done:
            stuck = ", ".join(f"rank {rank} at {pending[rank][0]}" for rank in sorted(waiting)[:4])
            return f"deadlock, these ranks wait for each other: {stuck}"
    return None


def _partners(layout: Layout, rank: int, message: Message, known: Mapping[int, object]) -> list[int]:
    """The other rehearsed ranks that take part in a message."""
    members = ranks_on_axis(layout, rank, message.axis)
    if message.peer >= 0:
        members = [members[message.peer]]
    return [one for one in members if one in known and one != rank]


def ranks_on_axis(layout: Layout, rank: int, axis: str) -> list[int]:
    """The ranks of the process group of this axis that has this rank, in order (see model/mesh.py)."""
    if axis == "world":
        return list(range(layout.devices))
    stride = {"dp": layout.pp * layout.tp, "pp": layout.tp, "tp": 1}[axis]
    size = {"dp": layout.dp, "pp": layout.pp, "tp": layout.tp}[axis]
    first = rank - rank // stride % size * stride
    return list(range(first, first + size * stride, stride))


def _wrong(layout: Layout, rank: int, message: Message, heads: Mapping[int, Message | None]) -> str | None:
    """The first partner that has no messages left, or whose next message with this rank on this axis does not match."""
    for one, head in heads.items():
        if head is None:
            return f"rank {rank} is at {message}, but rank {one} has no communication left"
        with_this_rank = head.peer < 0 or ranks_on_axis(layout, one, head.axis)[head.peer] == rank
        if head.axis == message.axis and with_this_rank and not _matches(layout, rank, message, one, head):
            return f"rank {rank} is at {message}, but rank {one} is at {head}"
    return None


def _matches(layout: Layout, rank: int, message: Message, other: int, theirs: Message | None) -> bool:
    """Whether two ranks' messages are the same communication."""
    if theirs is None or theirs.axis != message.axis:
        return False
    if message.peer < 0:
        return theirs == message
    back = ranks_on_axis(layout, other, theirs.axis)[theirs.peer] if theirs.peer >= 0 else -1
    same = (theirs.elements, theirs.element_bytes) == (message.elements, message.element_bytes)
    return back == rank and theirs.what == _COUNTERPART[message.what] and same
