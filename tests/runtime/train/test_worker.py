"""How long a rank waits for the others."""

import pytest

from runtime.train.loop import collective_timeout_s
from tests.support import samples


@pytest.mark.parametrize(
    ("step_s", "final_sequences", "expected"), [(0.1, 8, 420), (60.0, 8, 720), (60.0, 80, 3120)]
)
def test_a_collective_may_take_longer_than_the_watchdog_waits(
    step_s: float, final_sequences: int, expected: float
) -> None:
    run = samples.run(optim=samples.optim(batch_sequences=16))
    evaluation = run.evaluation.model_copy(update={"final_sequences": final_sequences})
    changed = run.model_copy(update={"evaluation": evaluation})
    assert collective_timeout_s(changed, samples.execution(), step_s) == expected
