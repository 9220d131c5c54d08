"""What lists of pipeline work keep alive, counted."""

from collections.abc import Sequence
from itertools import accumulate

from specs.pipeline_schedule import Action


def most_alive(order: Sequence[Action]) -> int:
    """Forward passes whose backward pass is still to come, at most at the same time."""
    return max(accumulate(1 if work.kind == "forward" else -1 for work in order))
