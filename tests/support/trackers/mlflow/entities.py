"""What a client sends."""

from typing import NamedTuple


class Metric(NamedTuple):
    """A value of a step."""

    key: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    """A setting."""

    key: str
    value: str


class RunTag(NamedTuple):
    """A tag."""

    key: str
    value: str
