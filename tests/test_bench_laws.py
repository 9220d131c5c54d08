"""Benchmarks of laws: refits on resampled runs, and what serving and over-training cost."""

import numpy as np
import pytest

from bench.bootstrap import bootstrap, constant_intervals, objective, optimum_intervals
from bench.data_limits import EPOCH, LawConstants, flop_for_loss, inference_optimum, overtrained
from bench.log_huber import fit
from bench.public_runs import DATA, epoch
from bench.rates import best_lr_at
from planner.scaling import laws
from planner.scaling.lr_and_batch import RateLaw

COUPLED = LawConstants(laws.COUPLED, (1.5, 4e3, 9e3, 0.5, 0.55, 0.6), 1.0)
TRUTH = [1.7, 400.0, 1200.0, 0.33, 0.36]


def _grid(cells: int) -> tuple[np.ndarray, np.ndarray]:
    size, tokens = np.meshgrid(np.geomspace(1e7, 1e10, cells), np.geomspace(1e9, 1e12, cells))
    return size.ravel(), tokens.ravel()


def test_bootstrap_interval_holds_the_truth_and_replicates_add_little() -> None:
    size, tokens = _grid(6)
    generator = np.random.default_rng(1)
    loss = laws.value(laws.STANDARD, TRUTH, size, tokens)
    # Misfit of each cell, shared by its replicates: three replicates of it are one piece of evidence.
    loss = loss * np.exp(0.01 * generator.standard_normal(len(size)))
    once = fit(laws.STANDARD, size, tokens, loss)
    thrice = fit(laws.STANDARD, np.tile(size, 3), np.tile(tokens, 3), np.tile(loss, 3))
    widths = []
    for fitted in (once, thrice):
        intervals = constant_intervals(fitted, bootstrap(fitted, 400, seed=0))
        assert all(
            intervals[name].low < truth < intervals[name].high
            for name, truth in zip(laws.STANDARD.constants, TRUTH, strict=True)
        )
        widths.append(intervals["alpha"].high - intervals["alpha"].low)
    assert widths[1] == pytest.approx(widths[0], rel=0.15)


def test_bootstrap_redraws_resamples_that_cannot_fix_the_constants() -> None:
    size, tokens = _grid(3)
    fitted = fit(laws.TIED, size, tokens, laws.value(laws.TIED, [1.7, 500.0, 900.0, 0.34], size, tokens))
    assert np.isfinite(bootstrap(fitted, 300, seed=3)).all()
    twins = fit(laws.TIED, [1e8, 1e8, 1e9, 1e9], [1e9, 1e9, 1e10, 1e10], [3.0, 3.01, 2.5, 2.51])
    with pytest.raises(ValueError, match="2 different"):
        bootstrap(twins, 10, seed=0)


@pytest.mark.skipif(
    not (DATA / "epoch_chinchilla").exists(), reason="Epoch's rows are not beside the repository"
)
def test_epoch_s_intervals_are_the_published_ones() -> None:
    runs = epoch()
    fitted = fit(laws.STANDARD, runs.size, runs.tokens, runs.loss, cost_per=6.0)
    assert fitted.objective < objective(
        fitted, [1.8172, 482.01, 2085.43, 0.3478, 0.3658]
    )  # Besiroglu et al. 2024
    draws = bootstrap(fitted, 2000, seed=0)
    assert draws.shape == (2000, 5)
    found = constant_intervals(fitted, draws)
    for name, low, high in [("E", 1.769, 1.871), ("alpha", 0.317, 0.373), ("beta", 0.331, 0.415)]:
        assert (found[name].low, found[name].high) == pytest.approx((low, high), rel=0.03)
    best = optimum_intervals(fitted, draws, 1e24)
    assert best["size"].low < 97.2e9 < best["size"].high
    assert (best["loss"].low, best["loss"].high) == pytest.approx((1.935, 1.989), abs=0.003)


def test_serving_moves_the_optimum_as_sardana_s_does() -> None:
    size, tokens = inference_optimum(EPOCH, 1e24, 1e13)
    assert size == pytest.approx(48.8e9, rel=2e-3)
    assert tokens == pytest.approx(4.29e12, rel=2e-3)
    plain, _, loss = EPOCH.best(1e24)
    total, without = 6 * size * tokens + 2 * size * 1e13, 1e24 + 2 * plain * 1e13
    assert total / without == pytest.approx(0.76, abs=0.005)
    assert float(EPOCH.loss(size, tokens)) == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("law", [EPOCH, COUPLED], ids=["standard", "coupled"])
def test_no_other_run_of_that_loss_is_cheaper_to_train_and_serve(law: LawConstants) -> None:
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


def test_questions_without_an_answer_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        inference_optimum(EPOCH, 1e24, -1)
    with pytest.raises(ValueError, match="it must be positive"):
        overtrained(EPOCH, 1e24, 0)


def test_at_a_fixed_batch_the_best_rate_is_another() -> None:
    bottom = np.array([(2.0, -0.6, 0.2), (-0.5, 0.0, 0.57)])
    bowl = np.array([[0.02, -0.008], [-0.008, 0.012]])
    law = RateLaw(bottom, bowl, batch_varied=True, cells=6, runs=30)
    lr, batch = law.best(1e9, 1e10)
    assert batch is not None
    assert best_lr_at(law, 1e9, 1e10, batch) == pytest.approx(lr)
    smaller = best_lr_at(law, 1e9, 1e10, batch / 2)
    assert smaller < lr

    def cost(rate: float) -> float:
        off = np.log([rate / lr, 0.5])
        return float(off @ bowl @ off)

    assert cost(smaller) < min(cost(0.9 * smaller), cost(1.1 * smaller))
