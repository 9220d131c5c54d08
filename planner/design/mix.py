"""The mix of a budget: weights as shares of whole samples in a period, the same for pilots and target.

Phases begin at shares of a run's steps, so every run of a plan reads its sources in the same shares, whatever its
length.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from planner.scaling.data_constrained import MixedText
from specs.data import MixText
from specs.document.files import DocumentError
from specs.humanize import several
from specs.mix import PERIOD, Mix, MixPhase, average_shares
from specs.optim import OptimSpec, Schedule, in_steps

Refuse = Callable[[str, str, str], DocumentError]
"""The error at a field of the budget: what is wrong, and what to write."""
_NOMINAL_STEPS = 10**6
"""Of a schedule whose milestones are taken as shares of its steps."""


Phase = tuple[float | str, dict[str, int]]
"""Where it begins, a share of the steps or a milestone, and the samples of each source in a period of it."""


@dataclass(frozen=True)
class PlannedMix:
    """The mix that all runs of a plan share."""

    phases: tuple[Phase, ...]
    shares: dict[str, float]
    """Each source's share of a run's tokens."""
    evaluation: dict[str, int]
    """Every source with its weight in the held-out loss."""
    unique_tokens: dict[str, int]
    """Of each source."""

    def of_run(self, optim: OptimSpec) -> Mix:
        """The mix of a run of this schedule."""
        return Mix(phases=_phases_of_run(self.phases, optim), evaluation=self.evaluation)

    @property
    def text(self) -> MixedText:
        """Its unique tokens, as losses discount them."""
        return MixedText(
            tuple((share, float(self.unique_tokens[name])) for name, share in self.shares.items())
        )

    def evaluation_share(self, source: str) -> float:
        """The source's share of the held-out loss."""
        return self.evaluation[source] / sum(self.evaluation.values())


def planned_mix(
    text: MixText, unique_tokens: Mapping[str, int], schedule: Schedule, refuse: Refuse
) -> PlannedMix:
    """The mix of a budget whose sources have so many unique tokens; DocumentError where a share is too small or a phase
    is out of order."""
    nominal = _nominal(schedule)
    first = {name: part.share if part.share is not None else part.epochs for name, part in text.parts.items()}
    by_share = all(part.share is not None for part in text.parts.values())
    phases: list[Phase] = [(0.0, _samples(first, by_share, unique_tokens, "data.text.parts", refuse))]
    starts = [0.0]
    for number, phase in enumerate(text.phases):
        at = f"data.text.phases.{number}"
        starts.append(_share_of_steps(phase.start, nominal, f"{at}.start", refuse))
        if starts[-1] <= starts[-2]:
            what = f"the phase begins at {starts[-1]:g} of the steps, and the one before it at {starts[-2]:g}"
            raise refuse(
                f"{at}.start", what, "put the phases in order, each beginning later than the one before"
            )
        samples = _samples(phase.weights, phase.share is not None, unique_tokens, at, refuse)
        phases.append((phase.start, samples))
    shares = average_shares(_phases_of_run(phases, nominal), _NOMINAL_STEPS)
    weights = text.evaluation
    if weights is None:  # of a source that is hardly ever read too
        weights = {name: max(share, 2 / PERIOD) for name, share in shares.items()}
    evaluation = _samples(weights, True, unique_tokens, "data.text.evaluation", refuse)
    evaluation = dict.fromkeys(text.parts, 0) | evaluation
    return PlannedMix(tuple(phases), shares, evaluation, dict(unique_tokens))


def _phases_of_run(phases: Sequence[Phase], optim: OptimSpec) -> tuple[MixPhase, ...]:
    """The phases of a run of this schedule, no fewer steps than phases; every one has a step at least."""
    steps, end = [_first_step(start, optim) for start, _ in phases], optim.steps
    for number in range(1, len(steps)):
        steps[number] = max(steps[number], steps[number - 1] + 1)
    for number in reversed(range(len(steps))):
        steps[number] = end = min(steps[number], end - 1)
    return tuple(
        MixPhase(from_step=step, samples=samples) for step, (_, samples) in zip(steps, phases, strict=True)
    )


def _samples(
    weights: Mapping[str, float | None],
    by_share: bool,
    unique_tokens: Mapping[str, int],
    field: str,
    refuse: Refuse,
) -> dict[str, int]:
    """Samples of each source in the shortest period of at most PERIOD, by the largest remainder."""
    amounts = {
        name: (weight or 0.0) * (1 if by_share else unique_tokens[name]) for name, weight in weights.items()
    }
    exact = {name: PERIOD * amount / sum(amounts.values()) for name, amount in amounts.items() if amount}
    counts = {name: math.floor(samples) for name, samples in exact.items()}
    rest = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in rest[: PERIOD - sum(counts.values())]:
        counts[name] += 1
    for name, count in counts.items():
        if count == 0:
            least = 1 / PERIOD if by_share else sum(amounts.values()) / PERIOD / unique_tokens[name]
            kind = "share" if by_share else "epochs"
            what = f"the source {name} has a share of {exact[name] / PERIOD:.2g}, less than one sample in {PERIOD:,}"
            raise refuse(field, what, f"write {kind} {least:.2g} or more for {name}, or 0")
    divisor = math.gcd(*counts.values())
    return {name: counts[name] // divisor for name in sorted(counts)}


def _share_of_steps(start: float | str, optim: OptimSpec, field: str, refuse: Refuse) -> float:
    """Where a phase begins in a run, as a share of its steps."""
    drops = len(optim.drop_steps)
    if isinstance(start, str) and _number(start) > drops:
        what = f"the schedule has {several(drops, 'drop')} of the learning rate, and no {start}"
        write = f"write milestone {drops}, or a share of the steps" if drops else "write a share of the steps"
        raise refuse(field, what, write)
    return _first_step(start, optim) / optim.steps


def _first_step(start: float | str, optim: OptimSpec) -> int:
    """Finished steps of a run at which a phase begins."""
    return optim.drop_steps[_number(start) - 1] if isinstance(start, str) else round(start * optim.steps)


def _number(milestone: str) -> int:
    return int(milestone.removeprefix("milestone "))


def _nominal(schedule: Schedule) -> OptimSpec:
    """A schedule so long that rounding to whole steps does not matter."""
    stepped = in_steps(schedule, _NOMINAL_STEPS, 0)
    return OptimSpec(steps=_NOMINAL_STEPS, batch_sequences=1, peak_lr=1.0, **stepped._asdict())
