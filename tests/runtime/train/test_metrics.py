import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.tail import truncate_after_step, truncate_partial_line
from runtime.train.metrics import Metrics, StepRates
from runtime.train.tensorboard_events import Events
from specs.record import EvalLine, StepLine

RATES = StepRates(step_tokens=100, mfu_flop_per_token=1000, peak_flop_per_s=1e6)


def step_line(step: int) -> StepLine:
    return StepLine(step=step, tokens=100 * step, loss=5 / step, grad_norm=1.5, lr=1e-3 * step)


def eval_line(step: int) -> EvalLine:
    return EvalLine(step=step, tokens=100 * step, loss=5.5 / step, sequences=4)


def write(folder: RunFolder, first: int, last: int) -> Metrics:
    """A segment's lines: a step each, an evaluation every fourth."""
    metrics = Metrics(folder, first, first - 1, RATES)
    for step in range(first, last + 1):
        metrics.add(step_line(step))
        if step % 4 == 0:
            metrics.add(eval_line(step))
    return metrics


def test_lines_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write(folder, 1, 8).close()
    assert folder.metrics() == [step_line(step) for step in range(1, 9)]
    assert folder.evals() == [eval_line(4), eval_line(8)]
    (timing,) = folder.timing()
    assert timing.step == 8
    assert timing.tokens_per_s == pytest.approx(800 / timing.seconds)
    assert timing.mfu == pytest.approx(timing.tokens_per_s * 1000 / 1e6)


def test_there_is_no_utilisation_without_a_peak() -> None:
    assert StepRates(100, 1000, None).line(step=9, steps=5, seconds=2.0).mfu is None


@pytest.mark.parametrize("saved", [1, 3, 4, 7])
@pytest.mark.parametrize("damage", [b"", b'{"grad_no', b"\x00\x00\x00\n", b'{"step": "x"}\n'])
def test_an_interrupted_run_ends_with_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, saved: int, damage: bytes
) -> None:
    whole, broken = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "broken")
    for folder in (whole, broken):
        folder.path.mkdir()
    write(whole, 1, 10).close()
    write(broken, 1, 8).close()  # it was killed here, and its last checkpoint is of step `saved`
    for path in (broken.metrics_jsonl, broken.evals_jsonl, broken.timing_jsonl):
        path.write_bytes(path.read_bytes() + damage)
    write(broken, saved + 1, 10).close()
    assert broken.metrics_jsonl.read_bytes() == whole.metrics_jsonl.read_bytes()
    assert broken.evals_jsonl.read_bytes() == whole.evals_jsonl.read_bytes()
    assert [line.step for line in broken.timing()] == [8, 10]


def test_nothing_in_the_deterministic_files_depends_on_time(tmp_path: Path) -> None:
    write(RunFolder(tmp_path), 1, 4).close()
    keys = {key for line in (tmp_path / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert keys == {"step", "tokens", "loss", "grad_norm", "lr", "applied"}


def test_lines_that_a_checkpoint_promised_and_that_are_gone_are_counted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write(folder, 1, 5).close()
    metrics = write(folder, 8, 9)
    metrics.close()
    assert metrics.unrecorded_steps == 2
    assert [line.step for line in folder.metrics()] == [1, 2, 3, 4, 5, 8, 9]
    again = write(folder, 10, 9)
    again.close()
    assert again.unrecorded_steps == 0


def test_lines_wait_for_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    folder = RunFolder(tmp_path)
    metrics = Metrics(folder, 1, 0, RATES)
    for step in range(1, 5):
        now_s[0] += 0.3
        metrics.add(step_line(step))
    assert len(folder.metrics()) == 4
    assert folder.timing()[0].seconds == pytest.approx(1.2)
    now_s[0] += 0.3
    metrics.add(step_line(5))
    assert len(folder.metrics()) == 4
    metrics.close()
    assert len(folder.metrics()) == 5


def test_cutting_leaves_a_whole_file_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write(folder, 1, 5).close()
    before = folder.metrics_jsonl.stat().st_mtime_ns
    truncate_after_step(folder.metrics_jsonl, 5)
    truncate_partial_line(folder.metrics_jsonl)
    assert folder.metrics_jsonl.stat().st_mtime_ns == before


def test_half_a_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    for text, whole in (("one\nhal", "one\n"), ("hal", ""), ("one\n", "one\n"), ("", "")):
        path.write_text(text)
        truncate_partial_line(path)
        assert path.read_text() == whole


def test_tensorboard_reads_the_scalars(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write(folder, 1, 8).close()
    board = EventAccumulator(str(folder.tensorboard)).Reload()
    losses = board.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 9))
    assert losses[3].value == pytest.approx(1.25)
    assert [event.step for event in board.Scalars("held_out/loss")] == [4, 8]
    assert board.Scalars("speed/mfu")[0].step == 8


def test_tensorboard_hides_steps_that_were_done_again(tmp_path: Path) -> None:
    first = Events(tmp_path, start_number=9, from_step=0)
    first.add((step, {"train/loss": 1.0}) for step in range(1, 9))
    first.close()
    second = Events(tmp_path, start_number=10, from_step=5)
    second.add((step, {"train/loss": 2.0}) for step in range(6, 8))
    second.close()
    board = EventAccumulator(str(tmp_path)).Reload()
    seen = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert seen == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 2.0), (7, 2.0)]
