"""Stragglers: ranks whose own work takes longer than their peers', so that all the others wait for them.

All ranks' steps take equally long. What tells them apart is a rank's busy time: its step's time less what it waited for
others (`ranks.jsonl`). Peers are the ranks of one pipeline stage, which do equal work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from specs.layout import Layout
from specs.record import RankLine, Start

SLOWER = 1.2
"""Busy time over the peers' median from which a rank is named: our choice; equal CPUs differ by a tenth."""
_LEAST_S = 1e-3
"""Shortest busy time that is compared: below it the interpreter's own noise decides."""


@dataclass(frozen=True)
class Straggler:
    """A rank that is slower than its peers."""

    rank: int
    """The rank."""
    host: str
    """Its host."""
    slower: float
    """Its busy time over the median of its peers."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} computes {self.slower:.2g} times as long as its peers"


def stragglers(line: RankLine, layout: Layout) -> list[Straggler]:
    """The ranks of a line that are slower than their peers, the slowest first."""
    busy_s, found = line.busy_s, []
    for stage in range(layout.pp):
        ranks = [rank for rank in range(len(busy_s)) if rank // layout.tp % layout.pp == stage]
        usual_s = median_low([busy_s[rank] for rank in ranks]) if len(ranks) > 1 else 0.0
        if usual_s >= _LEAST_S:
            found += [
                Straggler(rank, line.hosts[rank], busy_s[rank] / usual_s)
                for rank in ranks
                if busy_s[rank] >= SLOWER * usual_s
            ]
    return sorted(found, key=lambda one: -one.slower)


def straggler_now(newest: RankLine | None, starts: Sequence[Start]) -> Straggler | None:
    """The slowest straggler of a run's newest line, if that is of its last segment."""
    if newest is None or not starts or newest.step <= starts[-1].from_step:
        return None
    return next(iter(_of(newest, starts)), None)


def straggler_summary(lines: Sequence[RankLine], starts: Sequence[Start]) -> list[str]:
    """Each rank that was a straggler in a tenth of the timed steps or more, and by how much, in the median line."""
    steps: dict[tuple[int, str], int] = {}
    slower: dict[tuple[int, str], list[float]] = {}
    for line in lines:
        for one in _of(line, starts):
            key = one.rank, one.host
            steps[key] = steps.get(key, 0) + line.steps
            slower.setdefault(key, []).append(one.slower)
    timed = sum(line.steps for line in lines)
    return [
        f"{Straggler(*key, median_low(slower[key]))} in {number / timed:.0%} of the timed steps"
        for key, number in sorted(steps.items())
        if number >= timed / 10
    ]


def _of(line: RankLine, starts: Sequence[Start]) -> list[Straggler]:
    """The stragglers of a line, with the layout of the last segment that began before it and has so many ranks."""
    layouts = [start.execution.layout for start in reversed(starts) if start.from_step < line.step]
    layout = next((one for one in layouts if one.devices == len(line.hosts)), None)
    return [] if layout is None else stragglers(line, layout)
