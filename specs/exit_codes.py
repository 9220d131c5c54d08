"""The exit codes of every command and rank, and how a command exits with an error: one line, never a traceback."""

import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import NoReturn

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
INTERNAL_ERROR = 70
"""Of a command: a run failed, or a bug. EX_SOFTWARE of sysexits.h."""
RESUME = 75
"""Interrupted and saved; the same command resumes. EX_TEMPFAIL of sysexits.h."""


def internal_error(error: Exception) -> str:
    """The line for an unexpected error; its traceback is in the log that the line names."""
    with tempfile.NamedTemporaryFile("w", prefix="isoplan-", suffix=".log", delete=False) as log:
        traceback.print_exception(error, file=log)
    message = (str(error).splitlines() or [""])[0]
    return f"internal error: {type(error).__name__}: {message} (the traceback is in {log.name})"


def run_command_line(app: Callable[..., None], name: str, refusals: tuple[type[Exception], ...]) -> None:
    """Run a command; one of `refusals` is a line on standard error and exit code 2, any other error a line and 70."""
    try:
        app(prog_name=name)
    except refusals as error:
        _exit(str(error), BAD_INPUT)
    except Exception as error:
        _exit(internal_error(error), INTERNAL_ERROR)


def _exit(line: str, code: int) -> NoReturn:
    sys.stderr.write(f"{line}\n")
    raise SystemExit(code)
