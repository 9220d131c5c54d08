"""The commands as a person types them: in this process, in milliseconds, or in one of their own, in seconds.

Both give the exit code and what was printed; processes that a command starts print to the same place.
"""

import contextlib
import functools
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from unittest import mock

Done = subprocess.CompletedProcess[str]


def isoplan(folder: Path, *words: object, **environment: str) -> Done:
    """`isoplan` in a folder, in this process."""
    return call("isoplan", *words, folder=folder, **environment)


def isoplan_process(folder: Path, *words: object, **environment: str) -> Done:
    """`isoplan` in a folder, in a process of its own."""
    argv = [sys.executable, "-P", "-W", "error", "-m", "isoplan", *map(str, words)]
    return subprocess.run(
        argv,
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,  # a whole study, on a machine that does other things too
    )


def script(name: str, *words: object, folder: Path) -> Done:
    """The console script of this name, in a process of its own."""
    argv = [Path(sys.executable).parent / name, *map(str, words)]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def call(name: str, *words: object, folder: Path, **environment: str) -> Done:
    """The function behind the console script of this name, in this process and that folder."""
    argv = [name, *map(str, words)]
    with _captured(1, "stdout") as out, _captured(2, "stderr") as err:
        with (
            contextlib.chdir(folder),
            mock.patch.object(sys, "argv", argv),
            mock.patch.dict(os.environ, environment),
        ):
            code = _exit_code(_entry_point(name))
        said = [_read(stream) for stream in (out, err)]
    return subprocess.CompletedProcess(argv, code, *said)


@functools.cache
def _entry_point(name: str) -> Callable[[], None]:
    [entry] = metadata.distribution("isoplan").entry_points.select(group="console_scripts", name=name)
    main: Callable[[], None] = entry.load()
    return main


def _exit_code(main: Callable[[], None]) -> int:
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@contextlib.contextmanager
def _captured(descriptor: int, name: str) -> Iterator[IO[bytes]]:
    """What is written to sys.stdout or sys.stderr, and what child processes write to its descriptor."""
    kept = os.dup(descriptor)
    with TemporaryFile() as file:
        os.dup2(file.fileno(), descriptor)
        stream = io.TextIOWrapper(os.fdopen(os.dup(file.fileno()), "wb", 0), write_through=True)
        try:
            with stream, mock.patch.object(sys, name, stream):
                yield file
        finally:
            os.dup2(kept, descriptor)
            os.close(kept)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return io.TextIOWrapper(io.BytesIO(file.read())).read()
