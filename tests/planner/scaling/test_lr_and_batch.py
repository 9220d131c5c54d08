import numpy as np
import pytest

from planner.scaling.lr_and_batch import NEAR_OPTIMAL, RateGrid, RateLaw, fit_rates

LR = (2.0, -0.6, 0.2)
"""ln lr* = 2 - .6 ln size + .2 ln tokens."""
BATCH = (-0.5, 0.0, 0.57)
CURVATURE = np.array([[0.02, -0.008], [-0.008, 0.012]])


def _bottom(size: float, tokens: float) -> np.ndarray:
    at = np.array([1.0, np.log(size), np.log(tokens)])
    return np.array([at @ LR, at @ BATCH])


def _grid(
    cells: list[tuple[float, float]],
    noise: float = 0.0,
    batches: tuple[float, ...] = (-1.4, -0.7, 0.0, 0.7, 1.4),
) -> RateGrid:
    """Runs on a grid of rates and batches around each cell's bottom, off centre."""
    generator = np.random.default_rng(0)
    rows = []
    for size, tokens in cells:
        for rate in np.linspace(-1.2, 1.6, 7):
            for batch in batches:
                z = np.array([rate, batch])
                log_loss = np.log(3.0) - 0.05 * np.log(size * tokens / 1e20) + z @ CURVATURE @ z / 2
                lr, tokens_per_step = np.exp(_bottom(size, tokens) + z)
                loss = np.exp(log_loss + noise * generator.standard_normal())
                rows.append((size, tokens, lr, tokens_per_step, loss))
    return RateGrid(*np.array(rows).T)


def _cost(law: RateLaw, size: float, tokens: float, lr: float, batch: float | None) -> float:
    """Share by which these settings raise the loss above the best ones, by the fitted bowl."""
    off = np.log(np.array([lr, batch], float)) - np.log(np.array(law.best(size, tokens), float))
    return float(np.expm1(off @ law.curvature @ off / 2))


CELLS = [(1e8, 2e9), (1e8, 1e10), (3e8, 3e9), (3e8, 2e10), (1e9, 1e10), (1e9, 5e10)]


def test_recovers_the_laws_it_was_generated_with() -> None:
    law = fit_rates(_grid(CELLS))
    np.testing.assert_allclose(law.bottom, [LR, BATCH], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(law.curvature, CURVATURE, rtol=1e-6)
    assert law.best(7e9, 1e11) == pytest.approx(np.exp(_bottom(7e9, 1e11)))


def test_noise_moves_the_answers_little() -> None:
    law = fit_rates(_grid(CELLS, noise=0.0005))
    lr, batch = law.best(3e9, 1e11)
    assert batch is not None
    assert np.abs(np.log([lr, batch]) - _bottom(3e9, 1e11)).max() < 0.3
    assert _cost(law, 3e9, 1e11, *np.exp(_bottom(3e9, 1e11))) < 0.001


def test_the_band_is_where_a_quarter_per_cent_is_lost() -> None:
    law = fit_rates(_grid(CELLS))
    lr, batch = law.best(1e9, 1e10)
    for end in law.band(1e9, 1e10):
        assert _cost(law, 1e9, 1e10, end, batch) == pytest.approx(NEAR_OPTIMAL, rel=1e-3)
    assert _cost(law, 1e9, 1e10, lr, batch) == pytest.approx(0, abs=1e-12)


def test_what_did_not_vary_is_not_fitted() -> None:
    one_batch = fit_rates(_grid(CELLS, batches=(0.0,)))
    assert not one_batch.batch_varied
    assert one_batch.best(1e9, 1e10)[1] is None
    assert one_batch.best(1e9, 1e10)[0] == pytest.approx(np.exp(_bottom(1e9, 1e10)[0]), rel=1e-4)
    assert "varied only the learning rate" in one_batch.regime
    one_cell = fit_rates(_grid(CELLS[:1]))
    assert one_cell.bottom[:, 1:].tolist() == [[0, 0], [0, 0]]
    assert one_cell.best(5e9, 5e10) == pytest.approx(np.exp(_bottom(*CELLS[0])))


def test_cells_along_compute_give_a_law_of_compute() -> None:
    law = fit_rates(_grid([(1e8, 2e9), (2e8, 4e9), (4e8, 8e9), (8e8, 1.6e10)]))
    assert law.bottom[:, 1] == pytest.approx(law.bottom[:, 2])
    assert law.best(4e8, 8e9) == pytest.approx(np.exp(_bottom(4e8, 8e9)))


def test_the_regime_and_the_document_say_what_was_fitted() -> None:
    law = fit_rates(_grid(CELLS))
    assert law.regime == "the batch grows as tokens^0.57"
    hyper = law.hyper(fixed_batch=1e5)
    at = {"flop_per_token": 7e9, "tokens": 1e11}
    assert (hyper.peak_lr.at(**at), hyper.batch_tokens.at(**at)) == pytest.approx(law.best(7e9, 1e11))
    fixed = RateLaw(np.array([LR, (12.0, 0.0, 0.0)]), CURVATURE, True, 6, 30)
    assert fixed.regime == "the batch is fixed"


def test_a_grid_without_a_lowest_point_is_refused() -> None:
    grid = _grid(CELLS)
    upside_down = RateGrid(grid.size, grid.tokens, grid.lr, grid.batch, 3.0 - (grid.loss - 3.0) / 100)
    with pytest.raises(ValueError, match="no minimum among"):
        fit_rates(upside_down)
    with pytest.raises(ValueError, match=r"run more learning rates around the best"):
        fit_rates(grid.take(np.arange(0, 35, 12)))


def test_runs_alone_in_their_cell_change_nothing() -> None:
    """Pilots that ran at the law's rate only, as most of a ladder does."""
    grid = _grid(CELLS[:1], batches=(0.0,))
    alone = RateGrid(*np.array([(s * 1e8, s * 3e9, 0.01 * s, 1e5, 3.0 / s) for s in range(2, 9)]).T)
    both = RateGrid(
        *(np.concatenate(pair) for pair in zip(vars(grid).values(), vars(alone).values(), strict=True))
    )
    assert fit_rates(both).best(1e8, 2e9) == fit_rates(grid).best(1e8, 2e9)
    for nothing in (alone, alone.take(np.array([], int))):
        with pytest.raises(ValueError, match="no size was run at several learning rates"):
            fit_rates(nothing)


def _again(grid: RateGrid, seeds: int) -> RateGrid:
    """The same settings under several seeds: the loss alone differs, and rounding."""
    generator = np.random.default_rng(1)
    rows = [
        (*(column * (1 + 1e-6 * seed) for column in (grid.size, grid.tokens, grid.lr, grid.batch)), grid.loss)
        for seed in range(seeds)
    ]
    columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
    columns[-1] = columns[-1] * np.exp(0.0005 * generator.standard_normal(len(columns[-1])))
    return RateGrid(*columns)


def test_a_second_seed_is_no_second_rate() -> None:
    """A ladder at the law's own rate, each run under several seeds: different rates are counted, not runs."""
    ladder = RateGrid(*np.array([(s * 1e8, s * 3e9, 0.01 * s, 1e5, 3.0 - 0.1 * s) for s in range(2, 9)]).T)
    for seeds in (2, 5, 40):
        with pytest.raises(ValueError, match="no size was run at several learning rates"):
            fit_rates(_again(ladder, seeds))


def test_two_rates_make_no_law_however_often_they_were_run() -> None:
    grid = _grid(CELLS, batches=(0.0,))
    two = grid.take(np.isin(np.arange(len(grid.loss)) % 7, (2, 3)))
    with pytest.raises(ValueError, match="3 different learning rates"):
        fit_rates(_again(two, 9))


def test_several_batches_at_one_rate_say_nothing_about_the_rate() -> None:
    """Nor does a rate that always moves with the batch: their effects cannot be told apart."""
    grid = _grid(CELLS)
    one_rate = grid.take(np.arange(len(grid.loss)) // 5 % 7 == 3)
    with pytest.raises(ValueError, match="3 different learning rates"):
        fit_rates(_again(one_rate, 3))
    tied = RateGrid(grid.size, grid.tokens, grid.lr, 1e5 * grid.lr, grid.loss)
    with pytest.raises(ValueError):
        fit_rates(_again(tied, 3))


def test_seeds_leave_the_laws_as_they_are() -> None:
    law = fit_rates(_again(_grid(CELLS), 3))
    assert law.cells == len(CELLS)
    np.testing.assert_allclose(law.best(1e9, 1e10), np.exp(_bottom(1e9, 1e10)), rtol=0.02)


@pytest.mark.parametrize(
    "cells",
    [
        [(1e8, 2e10), (2e8, 1.02e10), (4e8, 4.9e9)],
        [(1e8, 2e10), (1.001e8, 2.02e10), (1.002e8, 1.98e10)],
    ],
)
def test_what_hardly_varies_gets_no_power(cells: list[tuple[float, float]]) -> None:
    """Sizes of one compute, or one size whose steps were rounded: the rate is a constant, not a power of rounding."""
    law = fit_rates(_grid(cells, batches=(0.0,)))
    assert law.bottom[:, 1:].tolist() == [[0, 0]]


def test_a_best_rate_beyond_those_that_were_run_is_no_advice() -> None:
    """All rates are above the best, and the parabola's minimum is an extrapolation."""
    grid = _grid(CELLS, batches=(0.0,))
    squeezed = np.exp(np.array([_bottom(s, d)[0] for s, d in zip(grid.size, grid.tokens, strict=True)]))
    off = 0.6 + 0.15 * np.log(grid.lr / squeezed)
    loss = 3.0 * np.exp(CURVATURE[0, 0] * off**2 / 2)
    with pytest.raises(ValueError, match="the best learning rate lies beyond those that were run"):
        fit_rates(RateGrid(grid.size, grid.tokens, squeezed * np.exp(off), grid.batch, loss))
