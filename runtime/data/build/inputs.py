"""The inputs of a corpus, hashed: a file whose size and times are as before is not read again."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from runtime.data.build.workers import Report, Workers
from runtime.data.errors import CorpusError
from specs.data import DataSpec
from specs.data_inputs import Input, InputFile, absolute, input_files, is_unchanged, read_index

_HASHED_AT_ONCE = 256 * 2**20
"""Bytes of the files that one task hashes, half a second of work."""


def hash_inputs(spec: DataSpec, base: Path, data: Path, workers: Workers) -> list[InputFile]:
    """Every input of a DataSpec with its size, times and digest.

    InputFileError where one is missing, CorpusError where one changes meanwhile.
    """
    found, known = input_files(spec, base, data), read_index(spec, base, data)
    before = {} if known is None else known.files
    todo = [one for one in found if not is_unchanged(one, before.get(absolute(one.path)))]
    sizes = [one.path.stat().st_size for one in todo]
    tasks: list[list[Input]] = [[]]
    task_bytes = 0
    for one, size in zip(todo, sizes, strict=True):
        if tasks[-1] and task_bytes + size > _HASHED_AT_ONCE:
            tasks.append([])
            task_bytes = 0
        tasks[-1].append(one)
        task_bytes += size
    hashed = [file for part in workers.map("hashing the files", sum(sizes), _hash, tasks) for file in part]
    now = {one.path: one for one in hashed}
    return [now.get(absolute(one.path)) or before[absolute(one.path)] for one in found]


def check_unchanged(files: Sequence[InputFile]) -> None:
    """CorpusError where an input is no longer what was hashed."""
    for file in files:
        if not is_unchanged(Input(file.role, Path(file.path)), file):
            raise CorpusError(f"{file.path} changed while it was read; rerun once nothing writes to it")


def _hash(inputs: list[Input], report: Report) -> list[InputFile]:
    return [hash_one(one, report) for one in inputs]


def hash_one(one: Input, report: Report) -> InputFile:
    """An input with its size, times and digest; CorpusError where it changes meanwhile."""
    digest = hashlib.sha256()
    with open(one.path, "rb") as file:
        stat = os.fstat(file.fileno())
        while block := file.read(2**22):
            digest.update(block)
            report(len(block))
    hashed = InputFile(
        one.role, absolute(one.path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, digest.hexdigest()
    )
    check_unchanged([hashed])
    return hashed
