"""Runs whose matrices are cut over ranks, from the start and on the way."""

import time
from pathlib import Path
from typing import Any

import pytest

from runtime.run_folder.folder import RunFolder
from specs.exit_codes import OK
from specs.record import Start
from specs.run import RunSpec
from tests.support import samples
from tests.support.training import Ranks, corpus, opened, order, tiny_run, train_here

pytestmark = pytest.mark.slow

STEPS = 20
SPLIT = {"tp": 2, "sequence_parallel": True, "recompute": "selective"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home: Path) -> RunSpec:
    """With a vocabulary that two ranks cannot halve."""
    model = samples.model(layers=2, width=16, heads=2, kv_heads=2, ffn=32, vocab=257, context=32)
    return tiny_run(corpus(home), steps=STEPS, model=model)


@pytest.fixture(scope="module")
def whole(home: Path, run: RunSpec) -> RunFolder:
    folder = opened(home / "whole", run)
    assert train_here(folder, home / "data") == OK
    return folder


def agree(ours: RunFolder, theirs: RunFolder) -> None:
    """20 steps in fp32: 1e-4 is what rounding may grow to; another batch or learning rate differs by 1e-2 at once."""
    for one, other in ((ours.metrics(), theirs.metrics()), (ours.evals(), theirs.evals())):
        assert [line.step for line in one] == [line.step for line in other]
        assert [line.loss for line in one] == pytest.approx([line.loss for line in other], rel=1e-4)
    assert ours.metrics()[0].grad_norm == pytest.approx(theirs.metrics()[0].grad_norm, rel=1e-6)


@pytest.mark.parametrize("cut", [{"tp": 2}, SPLIT, SPLIT | {"dp": 2}])
def test_a_run_over_tensor_parallel_ranks_differs_by_rounding(
    home: Path, tmp_path: Path, run: RunSpec, whole: RunFolder, cut: dict[str, Any]
) -> None:
    folder = opened(tmp_path, run, order(run, **cut))
    ranks = folder.order().execution.layout.devices
    assert Ranks(folder, home / "data", ranks).join() == [OK] * ranks
    agree(folder, whole)


def test_a_run_goes_on_over_tensor_parallel_ranks_and_back(
    home: Path, tmp_path: Path, run: RunSpec, whole: RunFolder
) -> None:
    cuts: list[dict[str, Any]] = [{"dp": 2}, {"tp": 2}, SPLIT, {}]
    for number, cut in enumerate(cuts[:-1]):
        folder = opened(tmp_path, run, order(run, micro_batch=1, every_steps=1, **cut))
        ranks = Ranks(folder, home / "data", 2)
        deadline = time.monotonic() + 60
        while len(list(folder.checkpoints.glob("step-*"))) < 1 or len(folder.metrics()) < 4 * number + 2:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        ranks.kill()
    folder = opened(tmp_path, run, order(run))
    assert Ranks(folder, home / "data").join() == [OK]
    starts = [line for line in folder.records() if isinstance(line, Start)]
    assert [line.execution.layout.tp for line in starts] == [1, 2, 2, 1]
    assert all(line.from_step > 0 for line in starts[1:])
    agree(folder, whole)
