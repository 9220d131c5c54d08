"""What a back end offers, and why one cannot be used here.

What counts is whether functions work, not which packages are installed: the import is tried, the function looked up,
and what it gives compared with torch's on a small example of the run (trial.py).
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


class KernelShape(NamedTuple):
    """What one rank's kernels work on: a share of heads, inner width and vocabulary under tensor parallelism."""

    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads."""
    head_size: int
    context: int
    width: int
    """Of the model: what a norm goes over."""
    inner: int
    """Of the feed-forward."""
    vocab: int
    masked: bool = False
    """Whether attention stays within documents."""


class Offer(NamedTuple):
    """One operation of a back end."""

    function: Any
    description: str
    """For the run's record."""


class Candidate(NamedTuple):
    """An implementation of an operation that may work here."""

    name: str
    """For messages."""
    find: Callable[[str, bool], Offer]
    """(precision, deterministic) -> the offer; UnavailableError where there is none."""


Candidates = dict[str, tuple[Candidate, ...]]
"""By operation, best first. Operations are the fields of `Kernels`, but `rotary` and `core_attention` for the two parts
of attention."""


class UnavailableError(ValueError):
    """An implementation cannot be used here; the text is the reason, in a clause."""


class AbsentError(UnavailableError):
    """It is not installed, or not made for such a run: no fault that anybody must hear of."""


def function(module: str, name: str) -> Callable[..., Any]:
    """A function of an installed module; UnavailableError where there is none."""
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        absent = error.name is not None and f"{module}.".startswith(f"{error.name}.")
        kind = AbsentError if absent else UnavailableError
        raise kind(f"{module} does not import ({_first_line(error)})") from error
    except Exception as error:  # a missing library, a build for another torch: each has its own exception
        raise UnavailableError(f"{module} does not import ({_first_line(error)})") from error
    if not callable(wanted := getattr(found, name, None)):
        # flash-attn 4 alone leaves a folder flash_attn without a file of its own, which is no flash-attn 2
        kind = UnavailableError if getattr(found, "__file__", None) else AbsentError
        raise kind(f"{module} has no {name}")
    return wanted  # type: ignore[no-any-return]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
