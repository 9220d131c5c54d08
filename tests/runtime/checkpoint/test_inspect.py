"""`isoplan checkpoints`, on a run that was killed, went on, and has a damaged checkpoint."""

import json
import os
import shutil
from pathlib import Path

import pytest

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lock import LockAttempt
from specs.checkpoint_retention import Retention
from specs.exit_codes import OK
from tests.support.commands import isoplan
from tests.support.training import Ranks, corpus, opened, order, tiny_run

pytestmark = pytest.mark.slow

FILE = "rank-00000.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run that was killed once at step 16 or later."""
    home = tmp_path_factory.mktemp("home")
    run = tiny_run(corpus(home), steps=80)
    kept = order(run, every_steps=8)
    kept = kept.model_copy(
        update={"execution": kept.execution.model_copy(update={"retention": Retention(newest=3)})}
    )
    folder = opened(home, run, kept)
    ranks = Ranks(folder, home / "data")
    while not (folder.checkpoints / "step-00000016").exists():
        assert ranks.processes[0].is_alive()
    ranks.kill()
    assert Ranks(folder, home / "data").join() == [OK]
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "home"))


def folder_in(home: Path) -> RunFolder:
    return RunFolder(next((home / "runs").iterdir()))


def test_they_are_listed_with_the_seams(home: Path) -> None:
    done = isoplan(home, "checkpoints", folder_in(home).path.name)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "not verified" in line]
    assert [row[0] for row in rows] == ["80", "72", "64"]
    assert "one process" in done.stdout
    assert "resumed at step " in done.stdout
    assert "of 80 with layout one process" in done.stdout
    verified = isoplan(home, "checkpoints", folder_in(home).path, "--verify")
    assert verified.returncode == 0
    assert verified.stdout.count(" intact") == 3


def test_what_is_damaged_is_found_and_pruned(home: Path) -> None:
    folder = folder_in(home)
    content = bytearray((folder.checkpoints / "step-00000080" / FILE).read_bytes())
    content[-1] ^= 1
    (folder.checkpoints / "step-00000080" / FILE).write_bytes(content)
    (folder.checkpoints / "step-00000072" / FILE).unlink()
    looked = isoplan(home, "checkpoints", folder.path, "--json")
    assert looked.returncode == 1
    assert [one["state"] for one in json.loads(looked.stdout)["checkpoints"]] == [
        "not verified",
        "damaged",
        "not verified",
    ]
    read = isoplan(home, "checkpoints", folder.path, "--verify", "--json")
    assert read.returncode == 1
    told = json.loads(read.stdout)["checkpoints"]
    assert [one["state"] for one in told] == ["damaged", "damaged", "intact"]
    assert told[0]["problem"].endswith(f"{FILE} is damaged: its digest differs from the manifest's")
    assert (told[2]["step"], told[2]["tokens"]) == (64, 64 * folder.run().batch_tokens)
    said = isoplan(home, "checkpoints", folder.path, "--verify").stdout
    assert "these are the final weights" in said
    assert "the loss of step 80 is over 9 sequences, earlier ones over 6" in said
    refused = isoplan(home, "export", folder.path)
    assert refused.returncode == 2
    assert "the checkpoint of the final weights is damaged" in refused.stderr
    before = folder.end()
    assert before is not None
    pruned = isoplan(home, "checkpoints", folder.path, "--prune")
    assert pruned.returncode == 0, pruned.stderr
    assert pruned.stdout.count("removed ") == 2
    assert "rerun to repeat the last steps" in pruned.stdout
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000064"]
    assert folder.end() is None
    metrics = folder.metrics_jsonl.read_bytes()
    assert Ranks(folder, home / "data").join() == [OK]
    after = folder.end()
    assert after is not None
    assert (after.weights_sha256, after.loss) == (before.weights_sha256, before.loss)
    assert folder.metrics_jsonl.read_bytes() == metrics


def test_the_last_whole_one_is_never_removed(home: Path) -> None:
    folder = folder_in(home)
    for path in folder.checkpoints.iterdir():
        os.truncate(path / FILE, 10)
    done = isoplan(home, "checkpoints", folder.path, "--prune")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("has no intact checkpoint; nothing was removed")
    assert len(list(folder.checkpoints.iterdir())) == 3


def test_a_run_in_progress_is_not_pruned(home: Path) -> None:
    lock = LockAttempt(folder_in(home).path).acquire()
    assert lock is not None
    done = isoplan(home, "checkpoints", folder_in(home).path, "--prune")
    lock.release()
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"process {os.getpid()} on " in line
    assert "is using" in line


def test_a_run_without_any_says_so(home: Path) -> None:
    shutil.rmtree(folder_in(home).checkpoints)
    done = isoplan(home, "checkpoints", folder_in(home).path)
    assert done.returncode == 0
    assert "has no checkpoints" in done.stdout
