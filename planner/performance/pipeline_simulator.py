"""Seconds of a pipeline's step, by simulating the engine's own schedule (specs/pipeline_schedule.py).

Closed forms assume equal stages and hidden transfers; the simulation has uneven stages, the head on the last one, and
virtual stages that wait for each other. A schedule is turned into indices once, and timed for any durations in one
pass. After its first micro-batches a pipeline is periodic, so long steps are extrapolated from two short ones.
"""

from collections import deque
from dataclasses import dataclass

from specs.pipeline_schedule import Action, one_f_one_b

WARM_ROUNDS = 2
"""Rounds of pp micro-batches after which a pipeline is periodic: the first is all warmup when it is interleaved."""


@dataclass(frozen=True)
class PassTimes:
    """Seconds of one micro-batch's passes."""

    forward: tuple[float, ...]
    """Through every virtual stage, in order of depth."""
    backward: tuple[float, ...]
    """Likewise, recomputation included."""
    travel: float
    """From one virtual stage to the next, overlapped with the ranks' work."""
    busy: float
    """Of a rank at each pass without overlap: issuing transfers, or waiting for them."""


@dataclass(frozen=True)
class Program:
    """All passes of a step, as indices, each after those that it depends on."""

    stage: tuple[int, ...]
    """Virtual stage of every work."""
    backward: tuple[bool, ...]
    """It is a backward pass."""
    before: tuple[int, ...]
    """The work before it on its rank; -1 for the first."""
    feeding: tuple[int, ...]
    """The work whose result goes into it; -1 where none does."""


def timed_program(pp: int, micro_batches: int, chunks: int) -> Program:
    """The passes of all ranks, each after those that it waits for; ValueError on a deadlock."""
    listing = _ProgramBuilder(pp, micro_batches, pp * chunks)
    orders = [deque(one_f_one_b(pp, rank, micro_batches, chunks)) for rank in range(pp)]
    while any(orders):
        known = len(listing.lines)
        for rank, order in enumerate(orders):
            listing.extend(rank, order)
        if len(listing.lines) == known:
            raise ValueError("deadlock: the passes of this pipeline schedule wait for each other")
    stage, backward, previous, feeding = zip(*listing.lines, strict=True)
    return Program(stage, backward, previous, feeding)


class _ProgramBuilder:
    """Builds a program."""

    def __init__(self, pp: int, micro_batches: int, stages: int) -> None:
        self.lines: list[tuple[int, bool, int, int]] = []
        self._pp, self._stages, self._micro_batches = pp, stages, micro_batches
        self._places = [[-1] * (stages * micro_batches) for _ in range(2)]
        self._last = [-1] * pp

    def extend(self, rank: int, order: deque[Action]) -> None:
        """Take the works of a rank that wait for nothing which is still to come. What feeds a work is the same pass of
        the stage before it, or behind it (specs.pipeline_schedule.source)."""
        while order:
            kind, micro_batch, chunk = order[0]
            stage, backward = chunk * self._pp + rank, kind == "backward"
            feeder, feeding = stage + 1 if backward else stage - 1, -1
            if 0 <= feeder < self._stages:
                feeding = self._places[backward][feeder * self._micro_batches + micro_batch]
                if feeding < 0:
                    return
            order.popleft()
            self._places[backward][stage * self._micro_batches + micro_batch] = len(self.lines)
            self.lines.append((stage, backward, self._last[rank], feeding))
            self._last[rank] = len(self.lines) - 1


def pipeline_end_s(listed: Program, times: PassTimes) -> float:
    """When the last work of a program ends."""
    durations = ([t + times.busy for t in times.forward], [t + times.busy for t in times.backward])
    ends: list[float] = []
    for stage, backward, before, feeding in zip(
        listed.stage, listed.backward, listed.before, listed.feeding, strict=True
    ):
        start = ends[before] if before >= 0 else 0.0
        if feeding >= 0 and ends[feeding] + times.travel > start:
            start = ends[feeding] + times.travel
        ends.append(start + durations[backward][stage])
    return max(ends)


class Simulator:
    """PassTimes pipelines, turning each list into indices once."""

    def __init__(self) -> None:
        self._programs: dict[tuple[int, int, int], Program] = {}

    def pipeline_s(self, pp: int, micro_batches: int, chunks: int, times: PassTimes) -> float:
        """Seconds from the first forward to the last backward pass of a step."""
        if pp == 1:
            return micro_batches * (sum(times.forward) + sum(times.backward))
        rest = micro_batches % pp
        short, long = (rounds * pp + rest for rounds in (WARM_ROUNDS, WARM_ROUNDS + 1))
        if micro_batches <= long:
            return self._end(pp, micro_batches, chunks, times)
        first, second = (self._end(pp, count, chunks, times) for count in (short, long))
        return first + (micro_batches - short) / pp * (second - first)

    def _end(self, pp: int, micro_batches: int, chunks: int, times: PassTimes) -> float:
        key = (pp, micro_batches, chunks)
        if key not in self._programs:
            self._programs[key] = timed_program(*key)
        return pipeline_end_s(self._programs[key], times)
