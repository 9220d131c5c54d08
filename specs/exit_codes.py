"""The exit codes of every command and rank, and the errors that a command ends with: one line, never a traceback."""

import tempfile
import traceback

OK = 0
"""Done. Of an audit: the loss is inside the 95 % band."""
OUTSIDE_BAND = 1
"""Of an audit: the loss is outside the 95 % band."""
FAILED = 1
"""Of a rank: it failed, and another start may succeed."""
BAD_INPUT = 2
"""A document, a field or an option is refused, with a one-line message that says what to write instead."""
CANNOT_TELL = 3
"""Of an audit: there is no verdict yet."""
NO_RETRY = 65
"""Of a rank: another start would fail in the same way. EX_DATAERR of sysexits.h."""
HUNG = 69
"""Of a rank: its run made no step for too long, and starts again. EX_UNAVAILABLE of sysexits.h."""
INTERNAL_ERROR = 70
"""Of a command: a run failed, or a bug. EX_SOFTWARE of sysexits.h."""
RESUME = 75
"""Interrupted and saved; the same command resumes. EX_TEMPFAIL of sysexits.h."""


class InputError(ValueError):
    """What is wrong with an input, and what to write or do instead, in one line.

    A command prints it and exits with BAD_INPUT; a program that calls the library catches it.
    """


def internal_error(error: Exception) -> str:
    """The line for an unexpected error; its traceback is in the log that the line names."""
    with tempfile.NamedTemporaryFile("w", prefix="isoplan-", suffix=".log", delete=False) as log:
        traceback.print_exception(error, file=log)
    message = (str(error).splitlines() or [""])[0]
    return f"internal error: {type(error).__name__}: {message} (the traceback is in {log.name})"
