"""The loss-spike guard: rejects steps whose loss spikes or is not finite, and says when to roll back.

A pure function of the losses so far, so all ranks decide alike, and a resumed run decides as an uninterrupted one.
"""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from specs.spike_guard import SpikeGuardSpec, SpikeGuardState

_NORMAL = 1.4826
"""Standard deviation of normal noise over its median absolute deviation (Rousseeuw & Croux, JASA 1993)."""

_LEAST_DEVIATION = 0.001
"""A deviation is at least this in ln loss; else tiny changes of a noiseless curve would be spikes: our choice."""
_LEAST_LOSS = 1e-12
"""Losses are positive; zero counts as this."""


class SpikeGuard:
    """One run's guard; without a spec it rejects nothing."""

    def __init__(self, spec: SpikeGuardSpec | None, state: SpikeGuardState) -> None:
        self._spec = spec
        self._losses = deque(state.losses, maxlen=spec.window_steps if spec else 0)
        self.rejected_in_a_row = state.rejected_in_a_row

    @property
    def state(self) -> SpikeGuardState:
        """What a checkpoint must store of it."""
        return SpikeGuardState(losses=tuple(self._losses), rejected_in_a_row=self.rejected_in_a_row)

    @property
    def should_roll_back(self) -> bool:
        """Whether so many steps in a row were rejected that the run should return to a checkpoint before them."""
        return self._spec is not None and self.rejected_in_a_row >= self._spec.patience_steps

    def reject_reason(self, loss: float, grad_norm: float) -> str:
        """Why this step must be rejected; empty where it may be applied. Updates the guard's state."""
        reason = self._reject_reason(loss, grad_norm)
        if reason:
            self.rejected_in_a_row += 1
        else:
            self.rejected_in_a_row = 0
            self._losses.append(loss)
        return reason

    def _reject_reason(self, loss: float, grad_norm: float) -> str:
        if self._spec is None:
            return ""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss:.4g} or gradient norm {grad_norm:.4g} is not finite"
        if len(self._losses) < self._spec.window_steps:
            return ""
        height = deviations(loss, self._losses)
        if height <= self._spec.spike_deviations:
            return ""
        last = f"the last {len(self._losses)} steps"
        return f"loss spike: loss {loss:.4g} is {height:.3g} robust standard deviations above the median of {last}"


def deviations(loss: float, before: Sequence[float] | deque[float]) -> float:
    """How far ln loss lies above the median of those before it, in robust standard deviations."""
    logs = [math.log(max(one, _LEAST_LOSS)) for one in before]
    middle = median(logs)
    spread = max(_NORMAL * median(abs(one - middle) for one in logs), _LEAST_DEVIATION)
    return (math.log(max(loss, _LEAST_LOSS)) - middle) / spread
