"""When a step of training is thrown away, and when a run goes back."""

from pydantic import Field

from specs.document.base import Spec


class StepGuard(Spec):
    """When a step's gradients are thrown away instead of applied, and when the run goes back to a checkpoint.

    A loss is a spike where its logarithm lies `spike_deviations` above the median of the last `window_steps` applied
    steps. A deviation is 1.4826 times their median absolute deviation (one standard deviation of normal noise), at
    least .001.
    """

    window_steps: int = Field(default=128, ge=8)
    """Applied steps that a loss is compared with; nothing is a spike before there are so many."""
    spike_deviations: float = Field(default=15.0, gt=0)
    """Height of a spike. Sound runs of ours stay below 10 (docs/log.md)."""
    patience_steps: int = Field(default=4, ge=1)
    """Steps thrown away in a row after which the run goes back to the checkpoint before them, without their data."""


class SpikeGuardState(Spec):
    """What the guard remembers, as a checkpoint keeps it."""

    losses: tuple[float, ...] = ()
    """Losses of the newest applied steps, as many as the guard looks at; oldest first."""
    rejected_in_a_row: int = Field(default=0, ge=0)
    """Steps that were thrown away since the last applied one."""
