"""How several arrays share the number of runs that may be at work at once (`slurm.pilots_at_once`)."""

from collections.abc import Sequence
from typing import NamedTuple


class Share(NamedTuple):
    """What one of the arrays may do."""

    at_once: int
    """Most of its runs at work at once."""
    after: int | None
    """The array whose end it waits for; None where it need not wait."""


def share(sizes: Sequence[int], limit: int) -> list[Share]:
    """Shares of arrays with so many runs, so that never more than `limit` runs of all are at work.

    As many arrays as possible begin at once, with shares in proportion to their sizes; the others each wait for one.
    """
    begin = min(len(sizes), limit)
    given = [1] * begin
    for _ in range(min(limit, sum(sizes[:begin])) - begin):
        given[max(range(begin), key=lambda one: (sizes[one] / given[one], -one))] += 1
    return [Share(given[one % begin], None if one < begin else one - begin) for one in range(len(sizes))]
