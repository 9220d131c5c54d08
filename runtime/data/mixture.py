"""Which source of a mix a sample comes from, and which of its samples that is: functions of the step and skipped data.

A phase of a mix repeats a period of samples. Sample i of the phase is that of place i modulo the period, so what a
source has given before it takes no replay. The period is a P-fair schedule (Baruah, Cohen, Plaxton & Varvel,
"Proportionate progress", Algorithmica 1996): sample j of a source with share w may stand at the places from
floor((j - 1) / w) + 1 to ceil(j / w), and of the samples that may stand at a place, the one with the earliest last
place is taken. So after any prefix each source is less than one sample off its share. (Tijdeman, "The chairman
assignment problem", Discrete Mathematics 1980, proves that this can be. Taking the largest deficit first does not do
it: sources that give 277, 277, 21 and 1 of 576 samples are up to 1.04 off.)

A source counts on through all phases, rollbacks and their skipped data included: it gives every sequence once before it
gives one again.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specs.mix import Mix
from specs.record import SkippedRange


class Taken(NamedTuple):
    """Neighbouring samples of one source."""

    source: str
    first: int
    """Number of the first among the source's samples; the others follow it."""
    places: NDArray[np.int64]
    """Where they stand among the samples that were asked for."""


@dataclass(frozen=True)
class Sampler:
    """The sources of a run's samples."""

    sources: tuple[str, ...]
    starts: tuple[int, ...]
    """Finished steps at which each phase begins."""
    counts: tuple[tuple[int, ...], ...]
    """By phase: samples of each source in a period."""

    @classmethod
    def of(cls, mix: Mix | None) -> "Sampler":
        """That of a mix; without one, all samples are of one source without a name."""
        if mix is None:
            return cls(("",), (0,), ((1,),))
        return cls(
            mix.sources,
            tuple(phase.from_step for phase in mix.phases),
            tuple(tuple(phase.samples.get(name, 0) for name in mix.sources) for phase in mix.phases),
        )

    def samples(
        self, step: int, batch_sequences: int, skipped: Sequence[SkippedRange], place: int, count: int
    ) -> list[Taken]:
        """Samples number `place` to `place + count - 1` of a step's batch (steps from 1), by source."""
        batches = batches_by_phase(self.starts, step, skipped)
        if len(self.sources) == 1:
            first = sum(batches) * batch_sequences + place
            return [Taken(self.sources[0], first, np.arange(count))]
        phase = max(number for number, start in enumerate(self.starts) if start < step)
        before = self._given(
            [0 if number == phase else read * batch_sequences for number, read in enumerate(batches)]
        )
        counts = self.counts[phase]
        source_at, rank_at = _period(counts)
        numbers = batches[phase] * batch_sequences + place + np.arange(count)
        periods, places = np.divmod(numbers, len(source_at))
        sources = source_at[places]
        found = []
        for number in np.unique(sources).tolist():
            where = np.flatnonzero(sources == number)
            first = int(periods[where[0]]) * counts[number] + int(rank_at[places[where[0]]])
            found.append(Taken(self.sources[number], before[number] + first, where))
        return found

    def given(self, step: int, batch_sequences: int, skipped: Sequence[SkippedRange]) -> dict[str, int]:
        """Samples that each source has given before a step, skipped ones included."""
        batches = batches_by_phase(self.starts, step, skipped)
        totals = self._given([read * batch_sequences for read in batches])
        return dict(zip(self.sources, totals, strict=True))

    def _given(self, samples: Sequence[int]) -> list[int]:
        """What each source has given after so many samples of each phase."""
        by_phase = [_given(counts, read) for counts, read in zip(self.counts, samples, strict=True)]
        return [sum(column) for column in zip(*by_phase, strict=True)]


def batches_by_phase(starts: Sequence[int], step: int, skipped: Sequence[SkippedRange]) -> list[int]:
    """Batches of each phase that were read before a step's own, as they were read: up to each rollback, and on from
    where it went back to."""
    last = max((number for number, one in enumerate(skipped) if one.to_step < step), default=-1)
    begins = [0, *(one.to_step for one in skipped[: last + 1])]
    ends = [*(one.step for one in skipped[: last + 1]), step - 1]
    return [
        sum(max(0, min(end, stop) - max(begin, start)) for begin, end in zip(begins, ends, strict=True))
        for start, stop in zip(starts, [*starts[1:], max(ends)], strict=True)
    ]


@lru_cache(maxsize=64)
def _given(counts: tuple[int, ...], samples: int) -> tuple[int, ...]:
    """How many of the first samples of a phase each source gives."""
    source_at, _ = _period(counts)
    periods, rest = divmod(samples, len(source_at))
    begun = np.bincount(source_at[:rest], minlength=len(counts)).tolist()
    return tuple(periods * count + more for count, more in zip(counts, begun, strict=True))


@lru_cache(maxsize=16)
def _period(counts: tuple[int, ...]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """By place of a period: number of the source, and how many of its samples stand before."""
    source_at = np.array(fair_order(counts), np.int32)
    rank_at = np.empty(len(source_at), np.int32)
    for number, count in enumerate(counts):
        rank_at[source_at == number] = np.arange(count)
    return source_at, rank_at


def fair_order(counts: Sequence[int]) -> list[int]:
    """The source of each place of a period in which source number s gives `counts[s]` samples."""
    length = sum(counts)
    opening: list[list[tuple[int, int]]] = [[] for _ in range(length)]
    for number, count in enumerate(counts):
        for j in range(count):
            last_place = -(-(j + 1) * length // count)
            opening[j * length // count].append((last_place, number))
    order, open_now = [], list[tuple[int, int]]()
    for samples in opening:
        for sample in samples:
            heapq.heappush(open_now, sample)
        order.append(heapq.heappop(open_now)[1])
    return order
