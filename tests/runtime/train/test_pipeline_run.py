"""Runs whose model is cut into stages: what they write, and what becomes of them when a rank is lost."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.launch.local import Job, launch
from runtime.run_folder.folder import RunFolder
from specs.exit_codes import OK
from specs.record import Order, Start
from specs.run import Evaluation, RunSpec
from tests.support import samples
from tests.support.training import Ranks, corpus, opened, order, tiny_run

pytestmark = pytest.mark.slow

STEPS = 20


@pytest.fixture(scope="module")
def run(home: Path) -> RunSpec:
    model = samples.model(layers=4, width=16, heads=2, kv_heads=2, ffn=32, context=32)
    evaluation = Evaluation(every_steps=10, sequences=6, final_sequences=9)
    return tiny_run(corpus(home), steps=STEPS, model=model, evaluation=evaluation)


@pytest.fixture(scope="module")
def whole(home: Path, run: RunSpec) -> RunFolder:
    """The run of one process that nothing happens to."""
    return train(home, home / "whole", run, order(run, micro_batch=1))


def train(home: Path, where: Path, run: RunSpec, how: Order) -> RunFolder:
    folder = opened(where, run, how)
    ranks = how.execution.layout.devices
    assert Ranks(folder, home / "data", ranks).join() == [OK] * ranks, printed(folder)
    return folder


def printed(folder: RunFolder) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.log.glob("rank-*.txt")))


def written(folder: RunFolder) -> tuple[bytes, bytes, str]:
    """All numbers of a run: its steps, its evaluations, and its weights at the end."""
    end = folder.end()
    assert end is not None
    return folder.metrics_jsonl.read_bytes(), folder.evals_jsonl.read_bytes(), end.weights_sha256


@pytest.mark.parametrize("cut", [{"pp": 2}, {"pp": 2, "interleave": 2}, {"pp": 3, "stage_layers": (1, 2, 1)}])
def test_a_run_in_stages_writes_the_same_bytes(
    home: Path, tmp_path: Path, run: RunSpec, whole: RunFolder, cut: dict[str, Any]
) -> None:
    folder = train(home, tmp_path, run, order(run, micro_batch=1, **cut))
    assert written(folder) == written(whole)


@pytest.mark.parametrize("cut", [{"pp": 2, "dp": 2}, {"pp": 2, "tp": 2}])
def test_a_run_on_three_axes_differs_by_rounding(
    home: Path, tmp_path: Path, run: RunSpec, whole: RunFolder, cut: dict[str, Any]
) -> None:
    """20 steps in fp32: as for other layouts, 1e-4 is what rounding may grow to."""
    folder = train(home, tmp_path, run, order(run, micro_batch=1, **cut))
    for ours, theirs in ((folder.metrics(), whole.metrics()), (folder.evals(), whole.evals())):
        assert [line.loss for line in ours] == pytest.approx([line.loss for line in theirs], rel=1e-4)
    assert folder.metrics()[0].grad_norm == pytest.approx(whole.metrics()[0].grad_norm, rel=1e-6)


def test_a_killed_run_goes_on_under_another_cut_and_ends_with_the_same_bytes(
    home: Path, tmp_path: Path, run: RunSpec, whole: RunFolder
) -> None:
    cuts: list[dict[str, Any]] = [{"pp": 2}, {"pp": 4}, {}, {"pp": 2, "interleave": 2}]
    for number, cut in enumerate(cuts):
        folder = opened(tmp_path, run, order(run, micro_batch=1, every_steps=1, **cut))
        seen = len(folder.records())
        ranks = Ranks(folder, home / "data", int(cut.get("pp", 1)))
        while len(folder.records()) <= seen or not list(folder.checkpoints.glob(f"step-*{number}")):
            assert ranks.processes[0].is_alive(), printed(folder)
            time.sleep(0.002)
        ranks.kill()
    train(home, tmp_path, run, order(run, micro_batch=1, pp=2))
    starts = [line.from_step for line in folder.records() if isinstance(line, Start)]
    assert len(starts) == 5
    assert all(step > 0 for step in starts[1:])
    assert written(folder) == written(whole)


FALLS = """
import os, signal, sys, time
from pathlib import Path
from model.pipeline_parallel import Pipeline
from runtime.train.loop import main

take = Pipeline.train
steps = iter(range(10**6))

def train(*args):
    if os.environ["RANK"] == "1" and next(steps) == 3:
        Path(sys.argv[1], "fell").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL) if {killed} else 1 / 0
    return take(*args)

Pipeline.train = train
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("killed", "said"), [(True, "killed"), (False, "ZeroDivisionError: division by zero")]
)
def test_a_rank_that_falls_takes_the_others_with_it_and_is_named(
    home: Path, tmp_path: Path, run: RunSpec, killed: bool, said: str
) -> None:
    folder = opened(tmp_path, run, order(run, micro_batch=1, pp=4))
    job = Job(folder.path, "in four stages", 4, 1, False, STEPS, 1, 1.0, 1.0)
    code = FALLS.format(killed=killed)
    command = [sys.executable, "-c", code, str(folder.path), "--data", str(home / "data")]
    (outcome,) = launch([job], ["0", "1", "2", "3"], lambda _: command, lambda *_: None)
    assert time.time() - float((folder.path / "fell").read_text()) < 30  # seconds where nothing else runs
    assert outcome.state == "failed"
    assert outcome.message.startswith(said)
    assert "rank 1 of 4" in outcome.message
