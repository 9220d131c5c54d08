from itertools import pairwise

import numpy as np
import pytest

from planner.scaling import laws
from planner.scaling.data_constrained import (
    Surface,
    effective_tokens,
    flop_for_loss,
    inference_optimum,
    overtrained,
    surface,
)
from specs.law import LossLaw

# The global optimum on Epoch's 240 rows (Besiroglu et al. 2024 refitted).
EPOCH = Surface(laws.STANDARD, (1.81722, 477.83, 2143.42, 0.34731, 0.36717), 6.0)
COUPLED = Surface(laws.COUPLED, (1.5, 4e3, 9e3, 0.5, 0.55, 0.6), 1.0)


def test_repeats_are_discounted_as_published() -> None:
    assert effective_tokens(4e9, 1e9) == pytest.approx(3.73e9, rel=2e-3)
    assert effective_tokens(16e9, 1e9) == pytest.approx(10.6e9, rel=2e-3)
    assert effective_tokens(1e30, 1e9) == pytest.approx(16.39e9)
    assert effective_tokens(5e8, 1e9) == 5e8
    assert effective_tokens(1e9, 1e9) == 1e9


def test_a_repeat_is_worth_less_than_a_fresh_token_and_more_than_nothing() -> None:
    worth = [effective_tokens(epochs * 1e6, 1e6) / 1e6 for epochs in np.linspace(1, 60, 100)]
    gains = [b - a for a, b in pairwise(worth)]
    assert all(gain > 0 for gain in gains)
    assert all(later < earlier < 59 / 99 for earlier, later in pairwise(gains))


def test_serving_moves_the_optimum_as_sardana_s_does() -> None:
    size, tokens = inference_optimum(EPOCH, 1e24, 1e13)
    assert size == pytest.approx(48.8e9, rel=2e-3)
    assert tokens == pytest.approx(4.29e12, rel=2e-3)
    plain, _, loss = EPOCH.best(1e24)
    total, without = 6 * size * tokens + 2 * size * 1e13, 1e24 + 2 * plain * 1e13
    assert total / without == pytest.approx(0.76, abs=0.005)
    assert float(EPOCH.loss(size, tokens)) == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("law", [EPOCH, COUPLED], ids=["standard", "coupled"])
def test_no_other_run_of_that_loss_is_cheaper_to_train_and_serve(law: Surface) -> None:
    served = 3e12
    size, tokens = inference_optimum(law, 1e23, served)
    cost, loss = size * (tokens + served / 3), float(law.loss(size, tokens))
    for factor in (0.9, 0.99, 1.01, 1.1):
        longer = tokens * np.exp(np.linspace(-1, 1, 200_001))
        reached = longer[np.argmin(np.abs(law.loss(size * factor, longer) - loss))]
        assert size * factor * (reached + served / 3) > cost * (1 - 1e-5)


def test_nothing_served_is_the_compute_optimum() -> None:
    assert inference_optimum(EPOCH, 1e24, 0) == EPOCH.best(1e24)[:2]
    assert inference_optimum(EPOCH, 1e24, 1) == pytest.approx(EPOCH.best(1e24)[:2])


def test_overtraining_four_times_costs_a_sixth_of_the_compute() -> None:
    run = overtrained(EPOCH, 1e24, 4)
    assert run.penalty == pytest.approx(0.0044, abs=5e-5)
    assert run.wasted == pytest.approx(0.16, abs=0.005)
    assert run.tokens / run.size == pytest.approx(4 * EPOCH.best(1e24)[1] / EPOCH.best(1e24)[0])
    assert 6 * run.size * run.tokens == pytest.approx(1e24)
    assert overtrained(EPOCH, 1e24, 1).penalty == 0


def test_compute_of_a_loss_is_the_inverse_of_the_frontier() -> None:
    assert flop_for_loss(EPOCH, EPOCH.best(3e22)[2]) == pytest.approx(3e22, rel=1e-9)
    with pytest.raises(ValueError, match=r"no compute reaches 1\.8 nats/token: this law ends at 1\.817"):
        flop_for_loss(EPOCH, 1.8)


def test_a_printed_law_becomes_a_surface() -> None:
    law = LossLaw(size="params", E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    assert float(surface(law).loss(7e10, 1.4e12)) == pytest.approx(law.at(7e10, 1.4e12))
    assert surface(law).cost_per == 6
    assert surface(law.model_copy(update={"size": "flop_per_token"})).cost_per == 1


def test_questions_without_an_answer_are_refused() -> None:
    with pytest.raises(ValueError, match="unique tokens 0 must be positive"):
        effective_tokens(1e9, 0)
    with pytest.raises(ValueError, match="must not be negative"):
        inference_optimum(EPOCH, 1e24, -1)
    with pytest.raises(ValueError, match="isoFLOP valley law has no terms"):
        inference_optimum(Surface(laws.VALLEY, (1.6, 900.0, 0.16, 12.0, 0.52, 0.06), 1.0), 1e20, 1e9)
    with pytest.raises(ValueError, match="it must be positive"):
        overtrained(EPOCH, 1e24, 0)
