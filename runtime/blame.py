"""Why a run failed, from its exit statuses and what its ranks printed: one line for a person.

When one rank fails the others follow, and what they say is about the first ("connection closed by peer"). So the
rank to believe is the one that fell silent first; a rank that was killed says nothing at all.
"""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_ERROR_LINE = re.compile(r"(?:\[rank\d+\]: )?([A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b.*)")
"""The line of a Python traceback that says what happened, with the mark that torch.distributed puts before it."""


@dataclass(frozen=True)
class Log:
    """What a rank printed in this segment: a file, from a byte on."""

    path: Path
    start: int

    @staticmethod
    def to_append(path: Path) -> "Log":
        """What will be printed from now on."""
        return Log(path, path.stat().st_size if path.exists() else 0)

    @property
    def lines(self) -> list[str]:
        """Its lines that are not blank."""
        text = self.path.read_bytes()[self.start :].decode(errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    @property
    def last_words(self) -> str:
        """Its last line."""
        return (self.lines or ["it ended without a word"])[-1]

    @property
    def error(self) -> str | None:
        """What its last traceback ends with; None where there is none."""
        found = [match.group(1) for match in map(_ERROR_LINE.match, self.lines) if match]
        return found[-1] if found else None


def first_to_fail(failed: Mapping[int, Log]) -> int:
    """Of the failed ranks one whose log names no error (it was killed), else the one that fell silent first."""
    return min(
        failed, key=lambda rank: (failed[rank].error is not None, failed[rank].path.stat().st_mtime_ns)
    )


def why(log: Log, code: int) -> str:
    """What ended a rank with this exit status; a negative one is a signal."""
    if log.error is not None or code >= 0:
        return log.error or log.last_words
    if code == -signal.SIGKILL:
        return "killed (signal 9), perhaps for want of memory"
    return f"{signal.strsignal(-code)} (signal {-code}); before it: {log.last_words}"
