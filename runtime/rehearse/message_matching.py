"""Whether ranks that were rehearsed meet: what one sends the other receives, in one order, of one size.

Their messages are carried out against each other, one after another. This is stricter than any network: a rank waits at
each message until its partners are there too, so that what passes here cannot wait in a circle anywhere.
"""

from collections import deque
from collections.abc import Mapping, Sequence

from runtime.rehearse.tracer import Message
from specs.layout import Layout

_COUNTERPART = {"send": "receive", "receive": "send"}


def mismatch(layout: Layout, messages: Mapping[int, Sequence[Message]]) -> str | None:
    """What goes wrong when ranks carry out their messages; None where each meets its partners among these ranks."""
    left = {rank: deque(said) for rank, said in messages.items()}
    waiting = {rank for rank in left if left[rank]}
    while waiting:
        done = False
        for rank in sorted(waiting):
            while left[rank]:
                partners = _partners(layout, rank, left[rank][0], left)
                heads = {one: left[one][0] if left[one] else None for one in partners}
                wrong = _wrong(layout, rank, left[rank][0], heads)
                if wrong:
                    return wrong
                if any(not _meets(layout, rank, left[rank][0], one, head) for one, head in heads.items()):
                    break
                for one in (rank, *partners):
                    left[one].popleft()
                done = True
        waiting = {rank for rank in waiting if left[rank]}
        if waiting and not done:
            stuck = ", ".join(f"rank {rank} at {left[rank][0]}" for rank in sorted(waiting)[:4])
            return f"these wait for each other: {stuck}"
    return None


def _partners(layout: Layout, rank: int, message: Message, known: Mapping[int, object]) -> list[int]:
    """The other rehearsed ranks that a message needs."""
    members = members_of(layout, rank, message.axis)
    if message.peer >= 0:
        members = [members[message.peer]]
    return [one for one in members if one in known and one != rank]


def members_of(layout: Layout, rank: int, axis: str) -> list[int]:
    """The ranks of an axis that a rank is on, in order (see model/mesh.py)."""
    if axis == "world":
        return list(range(layout.devices))
    stride = {"dp": layout.pp * layout.tp, "pp": layout.tp, "tp": 1}[axis]
    size = {"dp": layout.dp, "pp": layout.pp, "tp": layout.tp}[axis]
    first = rank - rank // stride % size * stride
    return list(range(first, first + size * stride, stride))


def _wrong(layout: Layout, rank: int, message: Message, heads: Mapping[int, Message | None]) -> str | None:
    """A partner that has ended, or whose message on the same axis with this rank is another one."""
    for one, head in heads.items():
        if head is None:
            return f"rank {rank} is at {message} and rank {one} has nothing more to say"
        with_us = head.peer < 0 or members_of(layout, one, head.axis)[head.peer] == rank
        if head.axis == message.axis and with_us and not _meets(layout, rank, message, one, head):
            return f"rank {rank} is at {message} where rank {one} is at {head}"
    return None


def _meets(layout: Layout, rank: int, message: Message, other: int, theirs: Message | None) -> bool:
    """Whether two ranks' messages are the two sides of one communication."""
    if theirs is None or theirs.axis != message.axis:
        return False
    if message.peer < 0:
        return theirs == message
    back = members_of(layout, other, theirs.axis)[theirs.peer] if theirs.peer >= 0 else -1
    same = (theirs.elements, theirs.element_bytes) == (message.elements, message.element_bytes)
    return back == rank and theirs.what == _COUNTERPART[message.what] and same
