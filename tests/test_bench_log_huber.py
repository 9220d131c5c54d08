import csv
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from bench.log_huber import fit
from planner.scaling import laws
from planner.scaling.model_averaging import CANDIDATES
from tests.support.needs import shared
from tests.support.paths import SHARED

EPOCH = SHARED / "data/epoch_chinchilla/svg_extracted_data.csv"
TRUTH = {
    "standard": [1.7, 400.0, 1200.0, 0.33, 0.36],
    "tied": [1.7, 500.0, 900.0, 0.34],
    "coupled": [1.6, 900.0, 4000.0, 0.40, 0.44, 0.8],
    "isoFLOP valley": [1.6, 900.0, 0.16, 12.0, 0.52, 0.06],
}


def _grid(cells: int = 8) -> tuple[np.ndarray, np.ndarray]:
    size, tokens = np.meshgrid(np.geomspace(1e7, 1e10, cells), np.geomspace(1e9, 1e12, cells))
    return size.ravel(), tokens.ravel()


def _epoch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with shared(EPOCH).open() as file:
        rows = [[float(r[c]) for c in ("Model Size", "Training FLOP", "loss")] for r in csv.DictReader(file)]
    size, flop, loss = np.array(sorted(rows, key=lambda row: row[2])[:-5]).T
    return size, flop / (6 * size), loss


@pytest.mark.parametrize("form", CANDIDATES, ids=lambda form: form.name)
def test_recovers_the_constants_it_was_generated_with(form: laws.Form) -> None:
    size, tokens = _grid()
    loss = laws.value(form, TRUTH[form.name], *laws.columns(form, size, tokens))
    fitted = fit(form, size, tokens, loss)
    np.testing.assert_allclose(fitted.params, TRUTH[form.name], rtol=1e-4)
    assert fitted.objective < 1e-12


def test_an_outlier_hardly_moves_the_fit() -> None:
    size, tokens = _grid()
    loss = laws.value(laws.STANDARD, TRUTH["standard"], size, tokens)
    doubled = loss.copy()
    doubled[5] *= 2
    predicted = fit(laws.STANDARD, size, tokens, doubled).predict(size, tokens)
    # Its pull is capped at delta = 1e-3 of log loss; least squares would follow it by several per cent.
    np.testing.assert_allclose(predicted, loss, rtol=1e-3)


def test_zero_weight_removes_a_run() -> None:
    size, tokens = _grid(5)
    loss = laws.value(laws.STANDARD, TRUTH["standard"], size, tokens) * np.exp(0.01 * np.sin(np.arange(25)))
    weights = np.ones(25)
    weights[::6] = 0
    with_weights = fit(laws.STANDARD, size, tokens, loss, weights=weights)
    keep = weights > 0
    without = fit(laws.STANDARD, size[keep], tokens[keep], loss[keep])
    assert with_weights.objective == pytest.approx(without.objective, rel=1e-9)


def test_a_form_the_data_cannot_fix_still_fits() -> None:
    # Pure power law in size: B, beta and E have nothing to hold on to; the system is singular without the
    # ridge.
    size, tokens = _grid(4)
    fitted = fit(laws.COUPLED, size, tokens, 50 * size**-0.1)
    np.testing.assert_allclose(fitted.predict(size, tokens), 50 * size**-0.1, rtol=1e-3)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [("loss", -1.0, "loss of run 3"), ("size", 0.0, "size of run 3"), ("tokens", np.nan, "tokens of run 3")],
)
def test_bad_runs_are_named(column: str, value: float, message: str) -> None:
    size, tokens = _grid(3)
    runs = {"size": size, "tokens": tokens, "loss": np.full(9, 3.0)}
    runs[column][3] = value
    with pytest.raises(ValueError, match=message):
        fit(laws.STANDARD, **runs)


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="3 runs are too few to fit the 5 constants"):
        fit(laws.STANDARD, [1e8, 1e9, 1e10], [1e9, 1e10, 1e11], [3.0, 2.8, 2.6])


def test_epoch_s_rows_are_fitted_to_the_global_optimum() -> None:
    size, tokens, loss = _epoch()
    assert fit(laws.STANDARD, size, tokens, loss, cost_per=6.0).objective <= 0.0010183


@pytest.mark.slow
def test_same_runs_give_the_same_bytes_whatever_the_threads_and_hash_seed() -> None:
    code = (
        "import numpy as np, hashlib\n"
        "from planner.scaling import laws; from bench.log_huber import fit\n"
        "g = np.random.default_rng(0); s = 10**g.uniform(7, 10, 300); t = 10**g.uniform(9, 12, 300)\n"
        "l = laws.value(laws.COUPLED, [1.6, 900, 4000, .4, .44, .8], s, t)\n"
        "l *= np.exp(.01 * g.standard_normal(300))\n"
        "print(hashlib.sha256(fit(laws.COUPLED, s, t, l).params.tobytes()).hexdigest())"
    )
    digests = set()
    for threads, hash_seed in (("1", "1"), ("2", "2")):
        env = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONHASHSEED": hash_seed,
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
        )
        digests.add(done.stdout)
    assert len(digests) == 1
    assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2
