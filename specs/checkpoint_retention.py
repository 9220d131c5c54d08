"""Checkpoint retention: which checkpoints of a run stay on disk."""

from collections.abc import Mapping

from pydantic import Field

from specs.document.base import Spec


class Retention(Spec):
    """Which checkpoints stay when a new one has been written; the others are removed."""

    newest: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept; more than one in case the last is damaged."""
    period_steps: int | None = Field(default=None, ge=1)
    """Keep every checkpoint whose step is a multiple of this; null keeps none."""
    best: bool = False
    """Keep the checkpoint with the lowest held-out loss."""

    def max_checkpoints(self, steps: int) -> int:
        """Most checkpoints on disk at once in a run of so many steps, the one being written included."""
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
