"""At size: any number of processes, any number of kills, the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from runtime.data import tokenizer
from runtime.data.build import shards, sorted_runs, text_sources
from runtime.data.build import text as build_text
from runtime.data.build.corpus import build
from runtime.data.build.sorted_runs import RunWriter, documents_in
from runtime.data.build.workers import Report, open_workers
from runtime.data.corpus import verify
from runtime.data.errors import KilledWorkerError
from specs.data import Bbpe, Corpus, DataSpec, FileText
from tests.support.paths import ROOT

QUIET = Console(quiet=True)
TEXTS = [f"Document {i} says: " + f"{i * 7919 % 1009} things about {i}. " * 20 for i in range(400)]
SPEC = DataSpec(
    text=FileText(source="files", paths=("*.jsonl",)),
    tokenizer=Bbpe(kind="bbpe", vocab=300),
    held_out_one_in=4,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        lines = (
            json.dumps({"text": text}) + "\n" for text in TEXTS[number::3]
        )  # the last is the first again
        (tmp_path / f"{number}.jsonl").write_text("".join(lines))
    return tmp_path


def content(folder: Path, data: str, corpus: Corpus) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / data / corpus.name).iterdir()}


SMALL = {"PART_BYTES": 30_000, "RUN_BYTES": 20_000, "SHARD_BYTES": 20_000}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tasks of a small text."""
    monkeypatch.setattr(text_sources, "PART_BYTES", SMALL["PART_BYTES"])
    monkeypatch.setattr(sorted_runs, "RUN_BYTES", SMALL["RUN_BYTES"])
    monkeypatch.setattr(shards, "SHARD_BYTES", SMALL["SHARD_BYTES"])


@pytest.mark.slow
def test_the_number_of_processes_and_of_tasks_changes_no_byte(
    folder: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = build(SPEC, folder, folder / "three", QUIET, processes=3)
    one = build(SPEC, folder, folder / "one", QUIET, processes=1)
    monkeypatch.undo()
    whole = build(SPEC, folder, folder / "whole", QUIET)
    assert one == three == whole
    assert content(folder, "one", one) == content(folder, "three", three) == content(folder, "whole", whole)
    assert one.reading is not None
    assert (one.reading.records, one.reading.duplicates) == (533, 133)


@pytest.mark.parametrize("killed_in", ["_join", "_choices"])
def test_a_build_that_is_killed_while_it_joins_reads_and_tokenizes_nothing_again(
    folder: Path, small: None, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    expected = content(folder, "once", build(SPEC, folder, folder / "once", QUIET, processes=1))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_text, killed_in, killed)
        with pytest.raises(KeyboardInterrupt):
            build(SPEC, folder, folder / "twice", QUIET, processes=1)
    for work in ("_read", "_tokenize"):
        monkeypatch.setattr(shards, work, killed)
    monkeypatch.setattr(tokenizer, "_train", killed)
    found = build(SPEC, folder, folder / "twice", QUIET, processes=1)
    assert content(folder, "twice", found) == expected


KILLED_BUILD = f"""
import sys, time
from pathlib import Path
from rich.console import Console
from runtime.data.build import shards, sorted_runs, text_sources
from runtime.data.build.corpus import build
from specs.data import DataSpec
text_sources.PART_BYTES, sorted_runs.RUN_BYTES, shards.SHARD_BYTES = {tuple(SMALL.values())}
build(DataSpec.model_validate_json(sys.argv[1]), Path(), Path("data"), Console(quiet=True), 2)
"""


def summaries(folder: Path) -> dict[Path, int]:
    """When each task that is finished wrote its summary."""
    found = {}
    for work in ("runs", "tokens"):
        with suppress(FileNotFoundError):  # it goes when the build is done
            for path in (folder / "data").glob(f".*.part/{work}/*.json"):
                found[path] = path.stat().st_mtime_ns
    return found


@pytest.mark.slow
def test_a_killed_build_goes_on_and_does_nothing_twice(folder: Path) -> None:
    expected = content(folder, "once", build(SPEC, folder, folder / "once", QUIET))
    argv = [sys.executable, "-P", "-c", KILLED_BUILD, SPEC.canonical_json()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    finished: dict[Path, int] = {}
    for _ in range(30):
        with subprocess.Popen(argv, cwd=folder, env=environment) as process:
            until = time.monotonic() + 30
            while process.poll() is None and time.monotonic() < until:
                if len(summaries(folder)) >= len(finished) + 4:
                    process.send_signal(signal.SIGKILL)
            assert time.monotonic() < until
        now = summaries(folder)
        assert {path: now.get(path, when) for path, when in finished.items()} == finished, "done again"
        finished = summaries(folder)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    (name,) = (path.name for path in (folder / "data").iterdir() if path.name[0] != ".")
    corpus = verify(folder / "data", name)
    assert content(folder, "data", corpus) == expected
    assert not list((folder / "data").glob(".*.part"))


def kill_itself(task: int, report: Report) -> int:
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def fail_at_one(task: int, report: Report) -> int:
    report(1)
    if task == 1:
        raise ValueError("no more ones")
    return task


@pytest.mark.slow
def test_a_process_that_is_killed_and_one_that_fails_end_all(tmp_path: Path) -> None:
    with open_workers(QUIET, 2) as workers:
        with pytest.raises(KilledWorkerError, match="free memory and rerun: finished parts are kept"):
            workers.map("killed", 4, kill_itself, range(4))
        with pytest.raises(ValueError, match="no more ones"):
            workers.map("failed", 4, fail_at_one, range(4))


def test_every_copy_of_a_document_is_found_in_its_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorted_runs, "RUN_BYTES", 5000)
    texts = [f"text {i % 37}".encode() * (i % 37 + 1) for i in range(300)]
    writer = RunWriter(tmp_path / "run")
    for text in texts:
        writer.add(text)
    writer.flush()
    assert len(writer.runs) > 5
    whole = documents_in(writer.runs, 0, 4096)
    assert sorted(whole.texts) == sorted(set(texts))
    assert [bytes(one) for one in whole.digests] == sorted(bytes(one) for one in whole.digests)
    parts = [documents_in(writer.runs, first, first + 512) for first in range(0, 4096, 512)]
    assert [text for part in parts for text in part.texts] == whole.texts
    np.testing.assert_array_equal(np.concatenate([part.digests for part in parts]), whole.digests)


@pytest.mark.parametrize(
    ("text_bytes", "tasks"), [(1, 1), (20_000_000, 1), (64 * 2**20, 4), (20 * 10**9, 1024), (10**13, 4096)]
)
def test_a_task_is_as_much_text_as_a_process_can_hold(text_bytes: int, tasks: int) -> None:
    groups = shards.slot_groups(text_bytes)
    assert len(groups) == tasks
    assert [first for first, _ in groups[1:]] == [last for _, last in groups[:-1]]
    assert (groups[0][0], groups[-1][1]) == (0, 4096)
