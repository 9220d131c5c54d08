"""The loss-spike guard: when a step is rejected, and when a run rolls back to a checkpoint."""

from pydantic import Field

from specs.document.base import Spec


class SpikeGuardSpec(Spec):
    """When a step is rejected (its gradients are not applied), and when the run rolls back to a checkpoint.

    A loss is a loss spike where its logarithm lies `spike_deviations` above the median of the last `window_steps`
    applied steps. A deviation is 1.4826 times their median absolute deviation (one standard deviation of normal
    noise), at least .001.
    """

    window_steps: int = Field(default=128, ge=8)
    """Applied steps that a loss is compared with; no loss counts as a spike before there are so many."""
    spike_deviations: float = Field(default=15.0, gt=0)
    """Height of a spike. Sound runs of ours stay below 10 (docs/log.md)."""
    patience_steps: int = Field(default=4, ge=1)
    """Rejected steps in a row after which the run rolls back to the checkpoint before them and skips their data."""


class SpikeGuardState(Spec):
    """State of the loss-spike guard, as a checkpoint stores it."""

    losses: tuple[float, ...] = ()
    """Losses of the newest applied steps, as many as the guard uses; oldest first."""
    rejected_in_a_row: int = Field(default=0, ge=0)
    """Steps that were rejected since the last applied one."""
