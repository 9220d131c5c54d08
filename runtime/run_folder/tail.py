"""The ends of a run's files: reading the last lines, and truncating to complete lines after a crash."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specs.document.write import write_text


def truncate_after_step(path: Path, last: int | None) -> None:
    """Drop the lines after step `last`, if it is given, and an incomplete line at the end; create an absent file."""
    text = path.read_bytes() if path.exists() else None
    kept = []
    for line in (text or b"").split(b"\n")[:-1]:
        step = line_step(line)
        if step is None or (last is not None and step > last):
            break
        kept.append(line + b"\n")
    if b"".join(kept) != text:
        write_text(path, b"".join(kept).decode())


def truncate_partial_line(path: Path) -> None:
    """Drop an incomplete line at the end of a file."""
    text = path.read_bytes() if path.exists() else b""
    if not text.endswith(b"\n") and text:
        write_text(path, text[: text.rfind(b"\n") + 1].decode())


def line_step(line: bytes) -> int | None:
    """The step of a line; None where it is not a JSON object with a step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def last_step(path: Path) -> int:
    """Step of the file's last complete line; 0 where there is none."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return next((step for line in reversed(lines) if (step := line_step(line)) is not None), 0)


_TAIL_BYTES = 4096
"""More than the longest line of metrics.jsonl."""


def last_line(path: Path, tail_bytes: int = _TAIL_BYTES) -> dict[str, Any] | None:
    """The last complete JSON line of a file; None where there is none yet."""
    return next(last_lines(path, tail_bytes), None)


def last_lines(path: Path, tail_bytes: int = _TAIL_BYTES) -> Iterator[dict[str, Any]]:
    """The complete JSON lines among a file's last few kilobytes, the last one first."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - tail_bytes))
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
