"""What a back end offers: its operations each with a description for the record, or the reason why it cannot run here.

What counts is whether functions work, not which packages are installed: the import is tried, the function looked up,
and, where a build can be wrong for a device, called once.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Offer(NamedTuple):
    """One operation of a back end."""

    function: Any
    description: str
    """For the run's record."""


Offers = dict[str, Offer]
"""By operation: the fields of `Kernels`, but `rotary` and `core_attention` for the two parts of attention."""


class UnavailableError(ValueError):
    """A back end cannot run here; the text is the reason, in a clause."""


def function(module: str, name: str) -> Callable[..., Any]:
    """A function of an installed module; UnavailableError where there is none."""
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a missing library, a build for another torch: each has its own exception
        raise UnavailableError(f"{module} does not import ({_first_line(error)})") from error
    if not callable(found):
        raise UnavailableError(f"{module} has no {name}")
    return found  # type: ignore[no-any-return]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
