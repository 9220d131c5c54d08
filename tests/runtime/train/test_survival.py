"""Whatever happens to processes and disks, a run ends as if nothing had happened, or says in one line why it cannot."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime.run_folder.folder import RunFolder
from specs.exit_codes import BAD_INPUT, FAILED, OK
from specs.record import Incident, Start
from specs.run import Evaluation, RunSpec
from tests.support import samples
from tests.support.needs import absent
from tests.support.training import Outcome, Ranks, corpus, opened, order, outcome, tiny_run

pytestmark = pytest.mark.slow

STEPS = 120


@pytest.fixture(scope="module")
def run(home: Path) -> RunSpec:
    evaluation = Evaluation(every_steps=10, sequences=6, final_sequences=9)
    return tiny_run(corpus(home), steps=STEPS, evaluation=evaluation)


def trained(home: Path, folder: RunFolder, ranks: int = 1, **prepare: Callable[[], None]) -> list[int | None]:
    return Ranks(folder, home / "data", ranks, **prepare).join()


@pytest.fixture(scope="module")
def undisturbed(home: Path, run: RunSpec) -> Outcome:
    folder = opened(home / "whole", run)
    assert trained(home, folder) == [OK]
    return outcome(folder)


MOMENTS: dict[str, Callable[[RunFolder], object]] = {
    "at the start": lambda folder: folder.record_jsonl.exists(),
    "in the warmup": lambda folder: folder.metrics_jsonl.exists(),
    "while a checkpoint is written": lambda folder: list(folder.checkpoints.glob(".step-*.part")),
    "when one has been written": lambda folder: list(folder.checkpoints.glob("step-*")),
    "while one is removed": lambda folder: list(folder.checkpoints.glob(".step-*.old")),
    "when one has been removed": lambda folder: len(list(folder.checkpoints.glob("step-*"))) > 2,
    "at an evaluation": lambda folder: folder.evals_jsonl.exists() and folder.evals_jsonl.stat().st_size,
    "at the last checkpoint": lambda folder: list(folder.checkpoints.glob(f"*step-{STEPS:08d}*")),
}


def killed_at(folder: RunFolder, data: Path, moment: Callable[[RunFolder], object]) -> bool:
    """Whether the moment came and every process was killed at it; the run may be over before."""
    ranks = Ranks(folder, data)
    while ranks.processes[0].is_alive():
        if moment(folder):
            ranks.kill()
            return True
    return False


@pytest.mark.soak
def test_twenty_runs_killed_at_all_moments_end_to_the_bit_as_one_that_was_not(
    home: Path, tmp_path: Path, run: RunSpec, undisturbed: Outcome
) -> None:
    """Each is killed at a moment of its own and then twice at random; the figure is printed."""
    same, kills = 0, 0
    for number in range(20):
        chance = random.Random(number)
        folder = opened(tmp_path / str(number), run, order(run, every_s=chance.choice([1e-9, 0.02, 0.1])))
        kills += killed_at(folder, home / "data", list(MOMENTS.values())[number % len(MOMENTS)])
        for _ in range(2):
            due_s = time.monotonic() + chance.uniform(0.05, 0.6)
            kills += killed_at(folder, home / "data", lambda _: time.monotonic() > due_s)  # noqa: B023
        if folder.end() is None:
            assert trained(home, folder) == [OK]
        same += outcome(folder) == undisturbed
    print(f"{same} of 20 runs, killed {kills} times, ended bit-identical")
    assert same == 20
    assert kills > 40


def test_a_chain_of_five_layouts_trains_as_one_process_does(home: Path, tmp_path: Path) -> None:
    """Twenty steps, four under each layout: every loss in fp32 within 1e-6 of the undisturbed one's, and so the batches
    the same: another batch's loss differs in the second digit."""
    run = tiny_run(
        corpus(home),
        model=samples.model(width=16, heads=2, kv_heads=2, ffn=32, context=32),
        optim=samples.optim(steps=20, batch_sequences=4, peak_lr=0.001, warmup_steps=2, milestones=()),
    )
    whole = opened(tmp_path / "whole", run, order(run, micro_batch=1))
    assert trained(home, whole) == [OK]
    layouts = [{"dp": 2}, {"tp": 2}, {"pp": 2}, {"dp": 2, "tp": 2}, {}]
    for number, layout in enumerate(layouts):
        folder = opened(tmp_path / "chain", run, order(run, micro_batch=1, every_steps=4, **layout))
        ranks = Ranks(folder, home / "data", layout.get("dp", 1) * layout.get("tp", 1) * layout.get("pp", 1))
        if number == len(layouts) - 1:
            assert set(ranks.join()) == {OK}
            break
        while not (folder.checkpoints / f"step-{4 * number + 4:08d}").exists():
            assert ranks.processes[0].is_alive(), (folder.log / "rank-0.txt").read_text()
            time.sleep(0.001)
        ranks.kill()
        for path in folder.checkpoints.glob("step-*"):  # it may have come further before it was killed
            if int(path.name[5:]) > 4 * number + 4:
                shutil.rmtree(path)
    starts = [line for line in folder.records() if isinstance(line, Start)]
    assert [line.from_step for line in starts] == [0, 4, 8, 12, 16]
    assert len({line.execution.layout.canonical_json() for line in starts}) == 5
    ours, theirs = ([line.loss for line in one.metrics()] for one in (folder, whole))
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert folder.evals()[-1].loss == pytest.approx(whole.evals()[-1].loss, rel=1e-6)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of this size, mounted on the folder while the block is open."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        absent("mount", mounted.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def last_line(folder: RunFolder) -> str:
    return (folder.log / "rank-0.txt").read_text().splitlines()[-1]


def test_a_full_disk_costs_checkpoints_and_not_the_run(
    home: Path, tmp_path: Path, run: RunSpec, undisturbed: Outcome
) -> None:
    folder = opened(tmp_path, run, order(run, every_steps=10))
    with small_disk(folder.checkpoints, "2m") as disk:
        (disk / "ballast").write_bytes(bytes(2 * 2**20 - 2**16))
        ranks = Ranks(folder, home / "data")
        while not any(isinstance(line, Incident) for line in folder.records()):
            assert ranks.processes[0].is_alive(), last_line(folder)
        (disk / "ballast").unlink()
        assert ranks.join() == [OK], last_line(folder)
        assert [path.name for path in sorted(disk.iterdir())][-1] == f"step-{STEPS:08d}"
        assert not list(disk.glob(".*"))
    incidents = [line for line in folder.records() if isinstance(line, Incident)]
    assert {line.what for line in incidents} == {"unsaved_checkpoint"}
    assert "was not saved: [Errno 28] No space left on device" in incidents[0].message
    assert outcome(folder) == undisturbed


def test_a_run_that_cannot_save_its_end_says_so_and_goes_on_when_it_can(
    home: Path, tmp_path: Path, run: RunSpec, undisturbed: Outcome
) -> None:
    with small_disk(tmp_path / "runs", "1m"):
        folder = opened(tmp_path, run, order(run, every_s=0.05))
        (folder.path / "ballast").write_bytes(bytes(2**20 - 2**16))
        assert trained(home, folder) == [FAILED]
        assert "No space left on device" in last_line(folder)
        assert "Traceback" not in (folder.log / "rank-0.txt").read_text()
        (folder.path / "ballast").unlink()
        assert trained(home, folder) == [OK], last_line(folder)
        assert outcome(folder) == undisturbed


def test_a_read_only_folder_is_refused_in_one_line(home: Path, tmp_path: Path, run: RunSpec) -> None:
    with small_disk(tmp_path / "runs", "4m") as disk:
        folder = opened(tmp_path, run, order(run, every_s=0.02))
        assert killed_at(folder, home / "data", MOMENTS["when one has been written"])
        before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
        logs = tmp_path / "logs"
        shutil.copytree(folder.log, logs)
        subprocess.run(["mount", "--bind", logs, folder.log], check=True)  # so that what it says can be read
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        try:
            [status] = trained(home, folder)
        finally:
            subprocess.run(["umount", folder.log], check=True)
        said = (logs / "rank-0.txt").read_text().splitlines()[-1]
        # Its record cannot be written, or half a checkpoint not be removed, where the kill came while one was written.
        # Either way it is the disk's fault, which may be mended: a failure to retry, not bad input.
        assert status == FAILED
        assert said.partition(":")[0] in ("DocumentError", "OSError")
        assert "Read-only file system" in said
        assert {path: path.read_bytes() for path in before} == before


def a_day_earlier() -> None:
    now_s = time.time
    time.time = lambda: now_s() - 86400.0


def test_a_clock_that_was_set_back_and_a_folder_that_was_moved_change_nothing(
    home: Path, tmp_path: Path, run: RunSpec, undisturbed: Outcome
) -> None:
    folder = opened(tmp_path / "here", run, order(run, every_s=0.02))
    assert killed_at(folder, home / "data", MOMENTS["when one has been written"])
    (tmp_path / "here").rename(tmp_path / "there")
    folder = RunFolder(tmp_path / "there" / "runs" / folder.path.name)
    assert trained(home, folder, prepare=a_day_earlier) == [OK]
    starts = [line for line in folder.records() if isinstance(line, Start)]
    assert starts[1].time < starts[0].time
    assert starts[1].from_step > 0
    assert starts[1].lost_s >= 0
    assert outcome(folder) == undisturbed


def test_a_disk_that_does_not_answer_ends_the_run_and_costs_no_checkpoint(
    home: Path, tmp_path: Path, run: RunSpec, undisturbed: Outcome
) -> None:
    """Unreadable is not damaged: beginning anew would remove what can be read again tomorrow."""
    folder = opened(tmp_path, run, order(run, every_s=0.02))
    assert killed_at(folder, home / "data", lambda one: len(list(one.checkpoints.glob("step-*"))) > 1)
    before = {path.name for path in folder.checkpoints.glob("step-*")}
    assert trained(home, folder, prepare=unreadable) == [FAILED]
    assert last_line(folder).startswith("OSError: [Errno 5] Input/output error")
    assert {path.name for path in folder.checkpoints.glob("step-*")} == before
    assert trained(home, folder) == [OK]
    assert outcome(folder) == undisturbed


def unreadable() -> None:
    from runtime.checkpoint import shards

    def fail(path: Path) -> str:
        raise OSError(5, os.strerror(5), str(path))

    shards.digest_of = fail


def test_a_checkpoint_of_another_run_is_refused_and_left_alone(
    home: Path, tmp_path: Path, run: RunSpec
) -> None:
    folder = opened(tmp_path, run, order(run, every_s=0.02))
    assert killed_at(folder, home / "data", MOMENTS["when one has been written"])
    other = opened(tmp_path, run.model_copy(update={"seed": 1}), order(run.model_copy(update={"seed": 1})))
    shutil.copytree(folder.checkpoints, other.checkpoints)
    assert trained(home, other) == [BAD_INPUT]
    assert "this checkpoint belongs to another run" in last_line(other)
    assert "which differs in seed; move the checkpoint away" in last_line(other)
    assert not other.metrics_jsonl.exists()
    assert len(list(other.checkpoints.glob("step-*"))) > 0


def failing(times: int) -> None:
    """The second rank cannot write its part of a checkpoint so many times."""
    if os.environ["RANK"] != "1":
        return
    from runtime.checkpoint import shards

    write, left = shards.write_shards, iter(range(times))

    def fail(path: Path, boxes: Mapping[str, Any]) -> str:
        if next(left, None) is not None:
            raise OSError(28, os.strerror(28), str(path))
        return write(path, boxes)

    shards.write_shards = fail


def test_a_rank_that_cannot_write_spoils_the_checkpoint_for_all_and_not_the_run(
    home: Path, tmp_path: Path, run: RunSpec
) -> None:
    whole = opened(tmp_path / "whole", run, order(run, dp=2))
    assert trained(home, whole, 2) == [OK] * 2
    folder = opened(tmp_path / "poor", run, order(run, dp=2, every_steps=40))
    assert trained(home, folder, 2, prepare=partial(failing, 2)) == [OK] * 2
    incidents = [line for line in folder.records() if isinstance(line, Incident)]
    assert [line.what for line in incidents] == ["unsaved_checkpoint"] * 2
    assert "step 40 was not saved: another rank could not write its part" in incidents[0].message
    assert "step 40 was not saved: [Errno 28] No space left" in (folder.log / "rank-1.txt").read_text()
    assert [path.name for path in folder.checkpoints.iterdir()] == [f"step-{STEPS:08d}"]
    assert outcome(folder) == outcome(whole)


def test_a_rank_that_can_never_write_fails_the_run_at_its_end(
    home: Path, tmp_path: Path, run: RunSpec
) -> None:
    folder = opened(tmp_path, run, order(run, dp=2))
    assert set(trained(home, folder, 2, prepare=partial(failing, 99))) == {FAILED}
    assert last_line(folder) == (
        f"OSError: the checkpoint of step {STEPS} was not saved: another rank could not write its part; "
        "correct that and rerun; the run resumes from the latest checkpoint"
    )
    assert folder.end() is None
