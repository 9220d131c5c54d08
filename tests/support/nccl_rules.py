"""NCCL's rules for sends and receives, replayed without time: who waits for whom, given what each rank calls.

A trace is what one rank does in order: it computes (an Action), calls (a Call: one send or receive, or several as one
group), or has its compute stream wait for one of its calls (a Wait). After NCCL 2.30's sources:

    grouping      both sides of a pair group its transfers alike; anything else is undefined (nccl issue 1279)
    connections   at a pair's first transfer both hosts exchange addresses and wait (transport.cc, P2pSetup)
    progress      a call is one kernel on its communicator's stream; what a group has in it shares channels, round by
                  round (enqueue.cc, scheduleP2pTasksToPlan; the worst case, that all of it does)

A single call runs on a communicator of the two ranks, a batch on that of all (torch's ProcessGroupNCCL).
"""

from collections import Counter, defaultdict, deque
from collections.abc import Generator, Hashable, Sequence
from functools import cache
from typing import Literal, NamedTuple

from specs.pipeline_schedule import Action

ROUNDS_AT_ONCE = 8
"""Rounds of a group that run at the same time (enqueue.cc, NCCL_MAX_DEV_WORK_P2P_PER_BATCH)."""


class Operation(NamedTuple):
    """One side of a transfer."""

    kind: Literal["send", "receive"]
    peer: int


class Call(NamedTuple):
    """Transfers that a rank gives to NCCL at once."""

    operations: tuple[Operation, ...]
    batch: bool
    """Whether it is a batch (batch_isend_irecv), even of one."""


class Wait(NamedTuple):
    """The compute stream waits for a call of this rank, by its number among them."""

    call: int


Trace = Sequence[Action | Call | Wait]
Transfer = tuple[int, int, int]
"""Sender, receiver, and its number among theirs."""


def transfers(traces: Sequence[Trace]) -> list[list[list[Transfer]]]:
    """By rank and call: the transfers. Between two ranks the first send meets the first receive, and so on."""
    found = []
    for rank, trace in enumerate(traces):
        counts: Counter[tuple[int, int]] = Counter()
        calls = []
        for call in (one for one in trace if isinstance(one, Call)):
            calls.append([])
            for kind, peer in call.operations:
                pair = (rank, peer) if kind == "send" else (peer, rank)
                calls[-1].append((*pair, counts[pair]))
                counts[pair] += 1
        found.append(calls)
    return found


def unmatched(traces: Sequence[Trace]) -> set[Transfer]:
    """Transfers that only one side has."""
    sides = Counter(one for calls in transfers(traces) for call in calls for one in call)
    return {transfer for transfer, count in sides.items() if count != 2}


def grouped_on_one_side_only(traces: Sequence[Trace]) -> int:
    """Pairs of transfers between the same two ranks that one of them has in one call and the other in two."""
    found = transfers(traces)
    call_of = [{one: at for at, call in enumerate(calls) for one in call} for calls in found]
    wrong = 0
    for rank, calls in enumerate(found):
        for call in calls:
            for at, one in enumerate(call):
                for other in call[:at]:
                    peer, same = (sum(each[:2]) - rank for each in (one, other))
                    wrong += peer == same and call_of[peer][one] != call_of[peer][other]
    return wrong


def communicator(rank: int, call: Call, ranks: int) -> tuple[int, ...]:
    """The members of the communicator that a call runs on."""
    return tuple(range(ranks)) if call.batch else tuple(sorted((rank, call.operations[0].peer)))


Message = tuple[Literal["send", "receive"], int, Hashable, int]
"""A host's message to or from a rank: its tag, and its size."""


def failed_connection(traces: Sequence[Trace]) -> str | None:
    """How the first transfers of pairs go wrong on the hosts; None where all pairs connect."""
    hosts = [_connecting(rank, trace, len(traces)) for rank, trace in enumerate(traces)]
    mailbox: defaultdict[Hashable, deque[int]] = defaultdict(deque)
    at = [next(host, None) for host in hosts]
    moved = True
    while moved:
        moved = False
        for rank, host in enumerate(hosts):
            while (message := at[rank]) is not None:
                kind, peer, tag, size = message
                if kind == "send":
                    mailbox[rank, peer, tag].append(size)
                elif not mailbox[peer, rank, tag]:
                    break
                elif (got := mailbox[peer, rank, tag].popleft()) != size:
                    return f"rank {rank} expects {size} from rank {peer}, which sends {got}"
                at[rank], moved = next(host, None), True
    waiting = [rank for rank, message in enumerate(at) if message is not None]
    return f"ranks {waiting} wait for each other" if waiting else None


def _connecting(rank: int, trace: Trace, ranks: int) -> Generator[Message]:
    """A host's messages: a pair's communicator at its first use, and then every call's new connections."""
    known: defaultdict[tuple[int, ...], set[Operation]] = defaultdict(set)
    for call in (one for one in trace if isinstance(one, Call)):
        members = communicator(rank, call, ranks)
        if not call.batch and members not in known:
            yield "send", call.operations[0].peer, (members, "init"), 1
            yield "receive", call.operations[0].peer, (members, "init"), 1
        new = set(call.operations) - known[members]
        known[members] |= new
        yield from _new_connections(members.index(rank), members, new) if new else ()


def _new_connections(me: int, members: tuple[int, ...], new: set[Operation]) -> Generator[Message]:
    """Addresses first, then a sign that both have connected; one channel each way is enough to see."""
    for what in ("address", "connected"):
        for distance in range(1, len(members)):
            below, above = members[me - distance], members[(me + distance) % len(members)]
            tag = (members, what, distance)
            receives, sends = Operation("receive", below) in new, Operation("send", above) in new
            if below == above:
                if receives or sends:
                    yield "send", below, tag, receives + sends if what == "address" else 1
                    yield "receive", below, tag, receives + sends if what == "address" else 1
                continue
            if receives:
                yield "send", below, tag, 1
            if sends:
                yield "send", above, tag, 1
                yield "receive", above, tag, 1
            if receives:
                yield "receive", below, tag, 1


def stuck(traces: Sequence[Trace], *, one_queue: bool) -> list[int]:
    """Ranks that never end; empty where all do. All that is enqueued starts as soon as the rules allow.

    `one_queue`: with CUDA_DEVICE_MAX_CONNECTIONS=1 nothing starts before what was enqueued earlier, on any stream.
    """
    devices = [_Device(rank, trace, len(traces), one_queue) for rank, trace in enumerate(traces)]
    for device, calls in zip(devices, transfers(traces), strict=True):
        device.calls = [
            _works(device.rank, call, calls_of, len(traces))
            for call, calls_of in zip(
                (one for one in device.trace if isinstance(one, Call)), calls, strict=True
            )
        ]
    sides: dict[Transfer, int] = defaultdict(int)
    ready = set(range(len(devices)))
    while ready:
        ready |= devices[ready.pop()].advance(sides)
    return [device.rank for device in devices if not device.ended]


class _Work(NamedTuple):
    """A part of a call: at most a send and a receive of one round."""

    transfers: tuple[Transfer, ...]
    after: tuple[int, ...]
    """Works of this call that end before it starts."""


def _works(rank: int, call: Call, moved: Sequence[Transfer], ranks: int) -> list[_Work]:
    """A call's works in NCCL's order: epoch after epoch, in each of them one send and receive of every round."""
    queues: dict[Operation, deque[Transfer]] = defaultdict(deque)
    for operation, transfer in zip(call.operations, moved, strict=True):
        queues[operation].append(transfer)
    placed: list[tuple[int, int, tuple[Transfer, ...]]] = []
    epoch = 0
    while any(queues.values()):
        for number, distance in enumerate(_rounds(ranks)):
            pair = (
                Operation("send", (rank + distance) % ranks),
                Operation("receive", (rank - distance) % ranks),
            )
            taken = tuple(queues[one].popleft() for one in pair if queues.get(one))
            if taken:
                placed.append((epoch, number, taken))
        epoch += 1
    batch = [(epoch, number // ROUNDS_AT_ONCE) for epoch, number, _ in placed]
    return [
        _Work(taken, tuple(before for before in range(at) if batch[before] != batch[at]))
        for at, (_, _, taken) in enumerate(placed)
    ]


@cache
def _rounds(ranks: int) -> tuple[int, ...]:
    """Distance of the peers of each round, with a node for every rank (init.cc, p2pSchedule)."""
    power = 1 << (ranks - 1).bit_length()
    distances, distance = [], 0
    for step in range(1, power + 1):
        if distance < ranks:
            distances.append(distance)
        distance = (distance + step) & (power - 1)
    return tuple(distances)


class _Device:
    """One rank's streams: that of its computation, and one of every communicator."""

    def __init__(self, rank: int, trace: Trace, ranks: int, one_queue: bool) -> None:
        self.rank, self.trace, self.calls = rank, trace, list[list[_Work]]()
        self._ranks, self._one_queue = ranks, one_queue
        self._at = self._called = 0
        self._streams: dict[tuple[int, ...], deque[int]] = defaultdict(deque)
        self._started: dict[int, set[int]] = {}
        self._ended = set[int]()

    @property
    def ended(self) -> bool:
        """Whether all of it has."""
        return self._at == len(self.trace) and not any(self._streams.values())

    def advance(self, sides: dict[Transfer, int]) -> set[int]:
        """Start and end what can, given how many sides of each transfer have started; the peers to look at again."""
        wake = set[int]()
        while self._finish_calls(sides, wake) or self._enqueue():
            pass
        return wake

    def _enqueue(self) -> bool:
        """The next of the trace, unless it waits."""
        if self._at == len(self.trace):
            return False
        step = self.trace[self._at]
        if isinstance(step, Wait) and step.call not in self._ended:
            return False
        if self._one_queue and any(
            stream[0] not in self._started for stream in self._streams.values() if stream
        ):
            return False  # a call that has not started holds back all behind it
        if isinstance(step, Call):
            self._streams[communicator(self.rank, step, self._ranks)].append(self._called)
            self._called += 1
        self._at += 1
        return True

    def _finish_calls(self, sides: dict[Transfer, int], wake: set[int]) -> bool:
        """Start the first call of every stream, and end what both sides have started."""
        moved = False
        for stream in self._streams.values():
            while stream and self._run(stream[0], sides, wake):
                self._ended.add(stream.popleft())
                moved = True
        return moved

    def _run(self, call: int, sides: dict[Transfer, int], wake: set[int]) -> bool:
        """Run a call as far as it goes; whether it has ended."""
        works = self.calls[call]
        started = self._started.setdefault(call, set())
        ended = set[int]()
        for at, work in enumerate(works):
            if not ended.issuperset(work.after):
                continue
            if at not in started:
                started.add(at)
                for transfer in work.transfers:
                    sides[transfer] += 1
                    wake.add(sum(transfer[:2]) - self.rank)
            if all(sides[transfer] == 2 for transfer in work.transfers):
                ended.add(at)
        return len(ended) == len(works)
