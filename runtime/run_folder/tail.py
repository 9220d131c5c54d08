"""The ends of a run's files: read cheaply, and cut to whole lines after a crash."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specs.document.write import write_text


def cut(path: Path, last: int | None) -> None:
    """Drop the lines past step `last` (None: no step) and what a crash left at the end; an absent file is made."""
    text = path.read_bytes() if path.exists() else None
    kept = []
    for line in (text or b"").split(b"\n")[:-1]:
        step = _step(line)
        if step is None or (last is not None and step > last):
            break
        kept.append(line + b"\n")
    if b"".join(kept) != text:
        write_text(path, b"".join(kept).decode())


def cut_line(path: Path) -> None:
    """Drop half a line at the end of a file, where there is one."""
    text = path.read_bytes() if path.exists() else b""
    if not text.endswith(b"\n") and text:
        write_text(path, text[: text.rfind(b"\n") + 1].decode())


def _step(line: bytes) -> int | None:
    """The step of a line; None for what is not a line of ours."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def reached(path: Path) -> int:
    """The last step that a file has a line of, whatever a crash has left behind it; 0 where there is none."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return next((step for line in reversed(lines) if (step := _step(line)) is not None), 0)


_TAIL_BYTES = 4096
"""More than the longest line of metrics.jsonl."""


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole JSON line of a file, or None where there is none yet."""
    return next(iter(last_lines(path)), None)


def last_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The last whole JSON lines of a file, the last one first, as far as a few kilobytes from its end reach."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            whole = file.read().rpartition(b"\n")[0]
    except (FileNotFoundError, NotADirectoryError):
        return
    for text in reversed(whole.split(b"\n")):
        try:
            line = json.loads(text)
        except ValueError:
            return
        if not isinstance(line, dict):
            return
        yield line
