"""Whether a step is applied: the guard against steps that would spoil a run, and what it must remember to judge.

A pure function of the losses so far, so every rank judges alike, and a resumed run as one that was never interrupted.
"""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from specs.spike_guard import SpikeGuardState, StepGuard

_NORMAL = 1.4826
"""Standard deviation of normal noise over its median absolute deviation (Rousseeuw & Croux, JASA 1993)."""

_QUIET = 0.001
"""A deviation is at least this in ln loss, or a curve without noise would make spikes of nothing: our choice."""
_LEAST = 1e-12
"""Losses are positive; one that has come down to zero counts as this."""


class SpikeGuard:
    """One run's guard; without a spec it throws nothing away."""

    def __init__(self, spec: StepGuard | None, memory: SpikeGuardState) -> None:
        self._spec = spec
        self._losses = deque(memory.losses, maxlen=spec.window_steps if spec else 0)
        self.in_a_row = memory.in_a_row

    @property
    def memory(self) -> SpikeGuardState:
        """What it must remember."""
        return SpikeGuardState(losses=tuple(self._losses), in_a_row=self.in_a_row)

    @property
    def impatient(self) -> bool:
        """Whether so many steps in a row were thrown away that the run should go back."""
        return self._spec is not None and self.in_a_row >= self._spec.patience_steps

    def objection(self, loss: float, grad_norm: float) -> str:
        """Why this step must not be applied, in words; empty where it may be. It is remembered either way."""
        said = self._objection(loss, grad_norm)
        if said:
            self.in_a_row += 1
        else:
            self.in_a_row = 0
            self._losses.append(loss)
        return said

    def _objection(self, loss: float, grad_norm: float) -> str:
        if self._spec is None:
            return ""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss:.4g}, gradient norm {grad_norm:.4g}"
        if len(self._losses) < self._spec.window_steps:
            return ""
        height = deviations(loss, self._losses)
        if height <= self._spec.spike_deviations:
            return ""
        return f"loss {loss:.4g} is {height:.3g} deviations above the last {len(self._losses)} steps' median"


def deviations(loss: float, before: Sequence[float] | deque[float]) -> float:
    """How far ln loss lies above the median of those before it, in robust standard deviations."""
    logs = [math.log(max(one, _LEAST)) for one in before]
    middle = median(logs)
    spread = max(_NORMAL * median(abs(one - middle) for one in logs), _QUIET)
    return (math.log(max(loss, _LEAST)) - middle) / spread
