"""Atomic writing of documents: whole or not at all, and on disk on return. Files are written aside and renamed."""

import errno
import fcntl
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from specs.document.base import Spec
from specs.document.parse import DocumentError
from specs.document.yaml_writer import yaml_text


def write_text(path: Path, text: str) -> None:
    """The file with this text, whole or not at all; its folder is made where it is missing."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        fsync_path(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        with suppress(OSError):
            aside.unlink()


def write_yaml(path: Path, spec: Spec, comment: str = "") -> None:
    """The spec as YAML that `load` reads back equal, behind the comment's lines."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    write_text(path, head + yaml_text(spec.plain()))


def write_json(path: Path, spec: Spec) -> None:
    """The spec as JSON that `load` reads back equal."""
    write_text(path, json.dumps(spec.plain(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: Path, spec: Spec) -> None:
    """One more line of JSON at the end of the file: see `append_lines`."""
    append_lines(path, [spec])


def append_lines(path: Path, specs: Sequence[Spec]) -> None:
    """More lines of JSON at the end of the file, under a lock, in one write that is on disk on return.

    A file whose last line has no end was cut while it was written; it is refused until a person has repaired it.
    """
    if not specs:
        return
    lines = [json.dumps(spec.plain(), ensure_ascii=False, allow_nan=False) + "\n" for spec in specs]
    data = "".join(lines).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                raise cut_off(path, path.read_bytes().count(b"\n") + 1)
            if file.write(data) != len(data):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from None


def cut_off(path: Path, line: int) -> DocumentError:
    """The refusal of a file whose last line was cut off while it was written."""
    return DocumentError(
        path, line, 1, "the last line is cut off", "complete it from a copy, or delete the line"
    )


def _unwritable(path: Path, error: OSError) -> DocumentError:
    return DocumentError(
        path, 1, 1, f"the file cannot be written ({error.strerror})", "choose a writable folder"
    )


def fsync_path(path: Path) -> None:
    """A file's bytes on disk, or a folder's entries, so that a rename in it outlives a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def print_json(plain: Any) -> None:
    """Print a plain value as JSON on standard output: the answer of a command with --json.

    SystemExit, as by the signal, where its reader has closed the pipe, as `head` does.
    """
    try:
        sys.stdout.write(json.dumps(plain, indent=1) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python flushes once more at its end
        raise SystemExit(128 + signal.SIGPIPE) from None
