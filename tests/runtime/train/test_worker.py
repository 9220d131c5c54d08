"""How long a rank waits for the others."""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.train import async_checkpoint
from runtime.train.async_checkpoint import AsyncCheckpointer, BackgroundWrite
from runtime.train.loop import step_timeout_s
from specs.checkpoint_retention import Retention
from tests.support import samples


@pytest.mark.parametrize(
    ("step_s", "final_sequences", "expected"), [(0.1, 8, 300), (60.0, 8, 600), (60.0, 80, 3000)]
)
def test_waits_last_as_long_as_steps_and_evaluations_may(
    step_s: float, final_sequences: int, expected: float
) -> None:
    run = samples.run(optim=samples.optim(batch_sequences=16))
    evaluation = run.evaluation.model_copy(update={"final_sequences": final_sequences})
    assert step_timeout_s(run.model_copy(update={"evaluation": evaluation}), step_s) == expected


def test_no_rank_waits_in_a_collective_while_another_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that writes asks the others now and then, and asks until those have written too."""
    monkeypatch.setattr(async_checkpoint, "_POLL_S", 0.01)
    others, asked = itertools.chain([1.0] * 3, itertools.repeat(0.0)), []
    write = BackgroundWrite(lambda: time.sleep(0.1))

    def all_reduce_sum(values: Sequence[float]) -> list[float]:
        asked.append(write.running)
        return [values[0] + (0.0 if write.running else next(others)), *values[1:]]

    worker = SimpleNamespace(all_reduce_sum=all_reduce_sum, is_rank_zero=False)
    checkpointer = AsyncCheckpointer(tmp_path, worker, Retention())  # type: ignore[arg-type]
    checkpointer._staging = SimpleNamespace(step=1), write  # type: ignore[assignment]
    assert checkpointer.finish() == ""
    assert checkpointer.idle
    assert sum(asked) > 3
    assert next(others) == 0.0
