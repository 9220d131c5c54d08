import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from planner.scaling import laws
from planner.scaling.model_averaging import CANDIDATES

PARAMS = {
    "standard": [1.8172, 477.8, 2143.4, 0.3473, 0.3672],
    "tied": [1.818, 561.5, 1752.1, 0.357],
    "coupled": [1.757, 2305.0, 9957.0, 0.4244, 0.4305, 0.774],
    "isoFLOP valley": [1.7, 1616.7, 0.165, 12.0, 0.52, 0.06],
}


def _points(form: laws.Form) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(0)
    size, tokens = 10 ** generator.uniform(7, 11, 12), 10 ** generator.uniform(9, 13, 12)
    return laws.columns(form, size, tokens, 6.0)


@pytest.mark.parametrize("form", CANDIDATES, ids=lambda form: form.name)
def test_gradient_in_log_constants_equals_central_differences(form: laws.Form) -> None:
    params, variables = np.array(PARAMS[form.name]), _points(form)
    log_variables = tuple(np.log(v) for v in variables)
    log_loss, jacobian = laws.log_value_and_gradient(form, np.log(params)[None], log_variables)
    np.testing.assert_allclose(log_loss[0], np.log(laws.value(form, params, *variables)), rtol=1e-13)
    for i in range(len(params)):
        step = np.zeros(len(params))
        step[i] = 1e-6
        up, down = (np.log(laws.value(form, params * np.exp(s), *variables)) for s in (step, -step))
        np.testing.assert_allclose(jacobian[0, i], (up - down) / 2e-6, rtol=1e-6, atol=1e-9)
    by_steps = laws.log_gradient(form, np.log(params), variables)
    np.testing.assert_allclose(by_steps, jacobian[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("form", CANDIDATES, ids=lambda form: form.name)
@pytest.mark.parametrize("cost_per", [1.0, 6.0])
def test_closed_form_optimum_equals_numeric_optimum(form: laws.Form, cost_per: float) -> None:
    params, flop = PARAMS[form.name], 1e23
    size, tokens, loss = laws.optimum(form, params, flop, cost_per)

    def loss_at(log_size: float) -> float:
        run = np.exp(log_size), flop / cost_per / np.exp(log_size)
        return float(laws.value(form, params, *laws.columns(form, *run, cost_per)))

    numeric = minimize_scalar(loss_at, bounds=(15, 35), method="bounded", options={"xatol": 1e-10})
    assert np.log(size) == pytest.approx(numeric.x, abs=1e-6)
    assert cost_per * size * tokens == pytest.approx(flop)
    assert loss == pytest.approx(numeric.fun, rel=1e-12)


def test_optimum_of_the_published_epoch_constants() -> None:
    # Optimum at 1e24 of the global minimum on Epoch's rows: 97.2B parameters, 1.715T tokens, loss 1.959.
    size, tokens, loss = laws.optimum(laws.STANDARD, [1.81722, 477.83, 2143.42, 0.34731, 0.36717], 1e24, 6.0)
    assert size == pytest.approx(97.2e9, rel=1e-3)
    assert tokens == pytest.approx(1.715e12, rel=1e-3)
    assert loss == pytest.approx(1.959, abs=5e-4)


def test_optimum_takes_batches_of_params_and_budgets() -> None:
    params = np.array([PARAMS["standard"], PARAMS["standard"], PARAMS["standard"]])
    size, tokens, loss = laws.optimum(laws.STANDARD, params, [1e22, 1e23], 6.0)
    assert size.shape == tokens.shape == loss.shape == (3, 2)
    one = laws.optimum(laws.STANDARD, PARAMS["standard"], 1e23, 6.0)
    np.testing.assert_allclose([size[2, 1], tokens[2, 1], loss[2, 1]], one)


def test_the_optimum_grows_with_compute_as_derived() -> None:
    """X* ~ C**a with a = beta / (alpha + beta) (Hoffmann et al. 2022, Eq. 4): half when tied; a valley names its a."""
    for form, share in (
        (laws.COUPLED, 0.4305 / (0.4244 + 0.4305)),
        (laws.TIED, 0.5),
        (laws.VALLEY, 0.52),
    ):
        low, high = (laws.optimum(form, PARAMS[form.name], flop) for flop in (1e20, 1e22))
        assert np.log(high[0] / low[0]) / np.log(100) == pytest.approx(share)
        assert np.log(high[1] / low[1]) / np.log(100) == pytest.approx(1 - share)


def test_value_broadcasts_batches_of_params_over_runs() -> None:
    params = np.array([PARAMS["standard"], [1.7, 400.0, 2000.0, 0.34, 0.36]])
    size, tokens = np.array([1e8, 1e9, 1e10]), np.array([2e9, 2e10, 2e11])
    loss = laws.value(laws.STANDARD, params, size, tokens)
    assert loss.shape == (2, 3)
    assert loss[1, 2] == pytest.approx(1.7 + 400 * 1e10**-0.34 + 2000 * 2e11**-0.36)


def test_latex_is_derived_in_the_caller_s_size() -> None:
    assert laws.latex(laws.STANDARD, "M") == r"L = A M^{- \alpha} + B D^{- \beta} + E"
    assert r"\left(A N^{- \alpha} + B D^{- \beta}\right)^{k}" in laws.latex(laws.COUPLED, "N")


def test_import_is_cheap() -> None:
    code = (
        "import sys, planner.scaling.laws; assert 'sympy' not in sys.modules and 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
