"""AdamW, the batch, and the learning-rate schedule in steps; and the kinds of schedules, in shares of a run.

Every schedule is a warmup, a constant phase, drops of the learning rate, and a decay to the end; each kind has some of
them.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from specs.document.base import Spec


class Milestone(Spec):
    """From this step on the learning rate is `factor` times the peak."""

    step: int = Field(ge=1)
    """Number of finished steps at which the drop takes effect."""
    factor: float = Field(gt=0, le=1)
    """Share of the peak learning rate from here on."""


DecayShape = Literal["linear", "cosine", "sqrt"]
"""Of what is left of the learning rate, x being the share of the decay that is over: 1 - x, (1 + cos(pi x)) / 2, and
1 - sqrt(x)."""


class Decay(Spec):
    """The learning rate falls smoothly from here to the end of the run."""

    start_step: int = Field(ge=0)
    """Finished steps after which it falls."""
    shape: DecayShape
    """How it falls."""
    floor: float = Field(ge=0, lt=1)
    """Share of the peak at the last step."""


class OptimSpec(Spec):
    """How the weights are updated. Everything here changes the numbers."""

    steps: int = Field(ge=1)
    """Optimizer steps of the whole run."""
    batch_sequences: int = Field(ge=1)
    """Sequences per step over all devices."""
    peak_lr: float = Field(gt=0)
    """Maximum learning rate."""
    warmup_steps: int = Field(ge=0)
    """Steps of linear warmup from zero."""
    milestones: tuple[Milestone, ...] = ()
    """Drops of the learning rate, in order."""
    decay: Decay | None = Field(default=None, exclude_if=lambda decay: decay is None)
    """Its decay to the end; null for none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the moments (DeepSeek LLM, section 2.3)."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's denominator floor (Adam's published default)."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay of matrices; norms are not decayed (DeepSeek LLM, section 2.3)."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm (DeepSeek LLM, section 2.3)."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        marks = [self.warmup_steps, *(m.step for m in self.milestones), self.steps]
        if any(a >= b for a, b in pairwise(marks)):
            raise ValueError(
                f"warmup, milestones and the last step must increase, but are {marks}; "
                "write them strictly increasing"
            )
        last = max([self.warmup_steps, *(m.step for m in self.milestones)])
        if self.decay is not None and not last <= self.decay.start_step < self.steps:
            raise ValueError(
                f"the decay starts at step {self.decay.start_step}; write {last} to {self.steps - 1}, so that it "
                "follows the warmup and the milestones, and ends with the run"
            )
        return self

    @property
    def drop_steps(self) -> tuple[int, ...]:
        """Finished steps at which the learning rate drops, or begins to, after a constant phase."""
        steps = [milestone.step for milestone in self.milestones]
        if self.decay is not None and self.decay.start_step > self.warmup_steps:
            steps.append(self.decay.start_step)
        return tuple(steps)

    @property
    def schedule_text(self) -> str:
        """What follows the warmup, in words."""
        parts = [f"x {m.factor:g} after step {m.step:,}" for m in self.milestones]
        if self.decay is not None:
            shape, start = self.decay.shape, self.decay.start_step
            parts.append(f"{shape} decay to x {self.decay.floor:g} from step {start:,} to {self.steps:,}")
        return "; ".join(parts) or "constant"

    def lr(self, step: int) -> float:
        """Learning rate of the update number `step` (1-based): warmup, peak, then the milestones' factors and the
        decay, whose floor is the last update's."""
        if step <= self.warmup_steps:
            return self.peak_lr * (
                step / self.warmup_steps
            )  # so that the last step of it is the peak exactly
        factor = 1.0
        for milestone in self.milestones:
            if step > milestone.step:
                factor = milestone.factor
        if self.decay is not None and step > self.decay.start_step:
            over = (step - self.decay.start_step) / (self.steps - self.decay.start_step)
            factor *= self.decay.floor + (1 - self.decay.floor) * _left(self.decay.shape, over)
        return self.peak_lr * factor


def _left(shape: DecayShape, over: float) -> float:
    """What is left of the learning rate when this share of its decay is over."""
    if shape == "linear":
        return 1 - over
    return (1 + math.cos(math.pi * over)) / 2 if shape == "cosine" else 1 - math.sqrt(over)


class MultiStep(Spec):
    """The paper's schedule: x 0.316 after 80 % of the steps, x 0.1 after 90 % (DeepSeek LLM, section 2.3)."""

    kind: Literal["multi-step"]
    """Selects this kind."""


class Cosine(Spec):
    """A cosine decay from the warmup to the end (Loshchilov and Hutter, arXiv 1608.03983)."""

    kind: Literal["cosine"]
    """Selects this kind."""
    floor: float = Field(default=0.1, ge=0, lt=1)
    """Share of the peak at the last step (Chinchilla's, arXiv 2203.15556, and Llama's, arXiv 2302.13971)."""


class Wsd(Spec):
    """Warmup, stable, decay: a constant learning rate, then a decay (Hu et al., arXiv 2404.06395)."""

    kind: Literal["wsd"]
    """Selects this kind."""
    decay: float = Field(default=0.2, gt=0, lt=1)
    """Share of the steps in the decay; at 20 % it is as good as cosine (Hägele et al., arXiv 2405.18392)."""
    shape: DecayShape = "sqrt"
    """How the learning rate falls; 1 - sqrt is the best of theirs."""
    floor: float = Field(default=0.0, ge=0, lt=1)
    """Share of the peak at the last step."""


Schedule = Annotated[MultiStep | Cosine | Wsd, Field(discriminator="kind")]


class SteppedSchedule(NamedTuple):
    """A schedule in the steps of one run: fields of its OptimSpec."""

    warmup_steps: int
    milestones: tuple[Milestone, ...] = ()
    decay: Decay | None = None


def in_steps(schedule: MultiStep | Cosine | Wsd, steps: int, warmup_steps: int) -> SteppedSchedule:
    """A schedule of so many steps, the warmup cut as in `multi_step`."""
    warmup, milestones = multi_step(steps, warmup_steps)
    if isinstance(schedule, MultiStep):
        return SteppedSchedule(warmup, milestones)
    if isinstance(schedule, Cosine):
        return SteppedSchedule(warmup, decay=Decay(start_step=warmup, shape="cosine", floor=schedule.floor))
    start = max(warmup, min(steps - 1, round((1 - schedule.decay) * steps)))
    return SteppedSchedule(warmup, decay=Decay(start_step=start, shape=schedule.shape, floor=schedule.floor))


def multi_step(steps: int, warmup_steps: int) -> tuple[int, tuple[Milestone, ...]]:
    """The paper's schedule: drops to 31.6 % and 10 % of the peak after 80 % and 90 % of the steps.

    Returns (warmup steps, milestones), the warmup cut to a twentieth of a run that is too short for it.
    Source: DeepSeek LLM, section 2.3. The cut is ours: 5 % of the steps, measured on tiny runs (docs/log.md).
    """
    first, second = round(0.8 * steps), round(0.9 * steps)
    return min(warmup_steps, max(1, steps // 20)), (
        Milestone(step=first, factor=0.316),
        Milestone(step=second, factor=0.1),
    )
