"""Mixes of sources: their weights as people write them, and as whole samples in a period, which a run holds."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from specs.document.base import Slug, Spec, canonical_json

PERIOD = 100_000
"""Most samples of a period: shares are kept to a hundred-thousandth, and a table of them takes .1 s and half a MB."""
MOST_PHASES = 19
"""Most phases after the first: the shortest run of a plan has 20 steps, and each phase has one."""
ROUNDING = 0.005
"""Shares may add up to 1 within this: three thirds of two digits do."""

Weight = Annotated[float, Field(ge=0, le=1_000_000)]
"""A share, or epochs, of which only the ratios count."""
Milestone = Annotated[str, StringConstraints(pattern=r"^milestone [1-9]$"), Field(examples=["milestone 1"])]
"""The first drop of the learning rate, or a later one."""
Start = Annotated[float, Field(gt=0, lt=1)] | Milestone


def check_weights(share: Mapping[str, float | None], epochs: Mapping[str, float | None]) -> None:
    """ValueError unless sources are weighted all by their share or all by their epochs, and some above 0."""
    by_share = {name for name, value in share.items() if value is not None}
    by_epochs = {name for name, value in epochs.items() if value is not None}
    both, neither = by_share & by_epochs, (share.keys() | epochs.keys()) - by_share - by_epochs
    if both or neither:
        found = f"{min(both)} has share and epochs" if both else f"{min(neither)} has no weight"
        raise ValueError(f"{found}; write one of share and epochs")
    if by_share and by_epochs:
        raise ValueError(
            f"{min(by_share)} is weighted by share and {min(by_epochs)} by epochs; write the same for all"
        )
    total = sum(value or 0.0 for value in (share if by_share else epochs).values())
    if by_share and abs(total - 1) > ROUNDING:
        raise ValueError(f"the shares add up to {total:g}; write shares that add up to 1")
    if not total > 0:
        raise ValueError("all weights are 0; write one that is larger")


class WeightsFrom(Spec):
    """Other weights from some step on, as an annealing phase has them. A source that is not named gives nothing."""

    start: Start
    """Where they begin: a share of the steps, or `milestone 1`, the first drop of the learning rate."""
    share: dict[Slug, Weight] | None = None
    """Share of the tokens by source."""
    epochs: dict[Slug, Weight] | None = None
    """Epochs by source, of which only their ratios count."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.share is None) == (self.epochs is None):
            raise ValueError("a phase has weights of one kind; write one of share and epochs")
        check_weights(self.share or {}, self.epochs or {})
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Its weights, of whichever kind."""
        return self.share or self.epochs or {}


Samples = Annotated[int, Field(ge=0)]


class MixPhase(Spec):
    """Constant shares of the sources, from a step on."""

    from_step: int = Field(ge=0)
    """Finished steps at which it begins."""
    samples: dict[Slug, Samples] = Field(min_length=1)
    """Samples (sequences) of each source in a period of all of them together; others give none."""

    @model_validator(mode="after")
    def _a_period(self) -> Self:
        if not 0 < sum(self.samples.values()) <= PERIOD:
            raise ValueError(
                f"a period has {sum(self.samples.values()):,} samples; write 1 to {PERIOD:,} in all"
            )
        return self

    def share(self, source: str) -> float:
        """Share of the samples that are the source's."""
        return self.samples.get(source, 0) / sum(self.samples.values())


class Mix(Spec):
    """The mix of a run: how many of its samples come from which source, and how its held-out loss is averaged."""

    phases: tuple[MixPhase, ...] = Field(min_length=1)
    """Shares of the sources, the first from step 0 on."""
    evaluation: dict[Slug, Samples] = Field(min_length=1)
    """Every source with its weight in the held-out loss: weights over their sum are shares."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        starts = [phase.from_step for phase in self.phases]
        if starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"phases begin at {starts}; write 0 for the first, and increasing steps")
        read = {name for phase in self.phases for name, samples in phase.samples.items() if samples}
        if unknown := read - self.evaluation.keys():
            raise ValueError(f"evaluation does not name {min(unknown)}; write its weight, 0 or more")
        if unread := self.evaluation.keys() - read:
            raise ValueError(f"no phase reads {min(unread)}; remove it, or give it samples in a phase")
        if not 0 < sum(self.evaluation.values()) <= PERIOD:
            raise ValueError(f"the weights of evaluation must add up to 1 to {PERIOD:,}; correct them")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all sources, in alphabetical order."""
        return tuple(sorted(self.evaluation))

    def evaluation_share(self, source: str) -> float:
        """The source's share of the held-out loss."""
        return self.evaluation[source] / sum(self.evaluation.values())

    def shares_digest(self) -> str:
        """16 digits that name its shares and weights, wherever in a run its phases begin."""
        parts = [self.evaluation, *(phase.samples for phase in self.phases)]
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]

    def shares(self, steps: int) -> dict[str, float]:
        """Each source's share of the samples of a run of so many steps."""
        return average_shares(self.phases, steps)


def average_shares(phases: Sequence[MixPhase], steps: int) -> dict[str, float]:
    """Each source's share of the samples of so many steps, by its name in alphabetical order."""
    ends = [phase.from_step for phase in phases[1:]] + [steps]
    lengths = [max(0, end - phase.from_step) for phase, end in zip(phases, ends, strict=True)]
    sources = sorted({name for phase in phases for name, samples in phase.samples.items() if samples})
    return {
        name: sum(length * phase.share(name) for length, phase in zip(lengths, phases, strict=True)) / steps
        for name in sources
    }


def held_out_sequences(evaluation: Mapping[str, int], sequences: int) -> dict[str, int]:
    """How many of so many held-out sequences are of each source: by its share of the loss, one at least."""
    total, found = sum(evaluation.values()), dict.fromkeys(sorted(evaluation), 1)
    for _ in range(sequences - len(found)):
        deficits = {name: evaluation[name] * sequences - total * count for name, count in found.items()}
        found[max(deficits, key=deficits.__getitem__)] += 1
    return found
