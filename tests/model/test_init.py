import numpy as np
import pytest

from model import init
from model.init import normal_rows

SHAPE = (300, 37)


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    return normal_rows(7, "model.layers.0.mlp.up_proj.weight", range(SHAPE[0]), SHAPE[1], 0.5)


@pytest.mark.parametrize("rows", [range(1), range(10, 20), range(299, 300), range(300), range(5, 5)])
def test_rows_drawn_alone_are_those_of_the_whole(whole: np.ndarray, rows: range) -> None:
    drawn = normal_rows(7, "model.layers.0.mlp.up_proj.weight", rows, SHAPE[1], 0.5)
    assert drawn.dtype == np.float32
    assert drawn.shape == (len(rows), SHAPE[1])
    np.testing.assert_array_equal(drawn, whole[rows.start : rows.stop])


@pytest.mark.parametrize("threads", [1, 3])
def test_how_many_rows_are_drawn_at_once_does_not_show(
    threads: int, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "_NORMALS_AT_ONCE", 5 * SHAPE[1] + 1)
    drawn = normal_rows(7, "model.layers.0.mlp.up_proj.weight", range(SHAPE[0]), SHAPE[1], 0.5, threads)
    np.testing.assert_array_equal(drawn, whole)


@pytest.mark.parametrize(("seed", "name"), [(8, "model.layers.0.mlp.up_proj.weight"), (7, "lm_head.weight")])
def test_seeds_and_names_are_independent(whole: np.ndarray, seed: int, name: str) -> None:
    other = normal_rows(seed, name, range(SHAPE[0]), SHAPE[1], 0.5)
    correlation = np.corrcoef(whole.ravel(), other.ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(whole.size)  # five standard errors


def test_weights_are_normal_with_the_asked_deviation() -> None:
    from scipy import stats  # late: half a second, in each process that collects tests

    drawn = normal_rows(0, "lm_head.weight", range(1000), 200, 0.006).astype(np.float64).ravel()
    assert stats.kstest(drawn / 0.006, "norm").pvalue > 1e-3
    rows = drawn.reshape(1000, 200)
    assert abs(np.corrcoef(rows[:-1].ravel(), rows[1:].ravel())[0, 1]) < 5 / np.sqrt(drawn.size)


def test_the_stream_never_changes() -> None:
    """Runs are named by what changes their numbers, and this would: update only with a note in the log."""
    drawn = normal_rows(0, "lm_head.weight", range(2, 3), 3, 1.0)
    np.testing.assert_array_equal(drawn, np.array([PINNED], np.float32))


PINNED = [-1.1607601642608643, 1.2926150560379028, -1.1942417621612549]
