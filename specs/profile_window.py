"""Which steps of a run are profiled."""

from typing import Self

from pydantic import model_validator

from specs.document.base import Spec


class ProfileWindow(Spec):
    """Steps that are profiled; the trace is in the run's folder `profile/`."""

    steps: tuple[int, int]
    """The first and the last one."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not 1 <= self.first <= self.last:
            raise ValueError(
                f"profile.steps {list(self.steps)} is no range of steps; write [FIRST, LAST], as [100, 105]"
            )
        return self

    @property
    def first(self) -> int:
        """The first profiled step."""
        return self.steps[0]

    @property
    def last(self) -> int:
        """The last profiled step."""
        return self.steps[1]
