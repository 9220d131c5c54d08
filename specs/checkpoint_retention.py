"""Which checkpoints of a run stay on the disk."""

from collections.abc import Mapping

from pydantic import Field

from specs.document.base import Spec


class Retention(Spec):
    """What stays when a checkpoint has been written; the rest is removed."""

    newest: int = Field(default=2, ge=1)
    """So many of the newest, in case the last one is damaged."""
    period_steps: int | None = Field(default=None, ge=1)
    """Those whose step is a multiple of this, for good; null keeps none for that."""
    best: bool = False
    """The one whose held-out loss is the lowest."""

    def most(self, steps: int) -> int:
        """Checkpoints that may lie there at once in a run of so many steps, the one being written included."""
        periods = 0 if self.period_steps is None else steps // self.period_steps
        return self.newest + 1 + int(self.best) + periods

    def kept(self, losses: Mapping[int, float | None]) -> set[int]:
        """Steps of the checkpoints that stay, of those at these steps, each with its newest held-out loss or null."""
        steps = sorted(losses)
        kept = set(steps[-self.newest :])
        if self.period_steps is not None:
            kept |= {step for step in steps if step % self.period_steps == 0}
        measured = {step: loss for step, loss in losses.items() if loss is not None}
        if self.best and measured:
            kept.add(min(measured, key=lambda step: (measured[step], step)))
        return kept
