"""AdamW, the batch, and the multi-step learning-rate schedule with its milestones in steps."""

from itertools import pairwise
from typing import Self

from pydantic import Field, model_validator

from specs.document.base import Spec


class Milestone(Spec):
    """From this step on the learning rate is `factor` times the peak."""

    step: int = Field(ge=1)
    """Number of finished steps at which the drop takes effect."""
    factor: float = Field(gt=0, le=1)
    """Share of the peak learning rate from here on."""


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
        return self

    def lr(self, step: int) -> float:
        """Learning rate of the update number `step` (1-based): warmup, peak, then the milestones' factors."""
        if step <= self.warmup_steps:
            return self.peak_lr * (
                step / self.warmup_steps
            )  # so that the last step of it is the peak exactly
        factor = 1.0
        for milestone in self.milestones:
            if step > milestone.step:
                factor = milestone.factor
        return self.peak_lr * factor


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
