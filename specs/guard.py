"""What a command says when it fails unexpectedly: one line for the person, the traceback in a file for us."""

import tempfile
import traceback

INTERNAL = 70
"""Exit code of an internal error: EX_SOFTWARE of sysexits.h."""


def internal_error(error: Exception) -> str:
    """The line for an error that nobody expected; its traceback is in the log that the line names."""
    with tempfile.NamedTemporaryFile("w", prefix="isoplan-", suffix=".log", delete=False) as log:
        traceback.print_exception(error, file=log)
    said = (str(error).splitlines() or [""])[0]
    return f"internal error: {type(error).__name__}: {said} (the traceback is in {log.name})"
