"""The gradients, best sizes and LaTeX that are checked in are those that sympy derives from the laws."""

import numpy as np
import pytest

from planner.scaling import derived_laws, laws


@pytest.mark.parametrize("form", laws.FORMS, ids=lambda form: form.name)
def test_what_is_written_is_what_sympy_derives(form: laws.Form) -> None:
    generator = np.random.Generator(np.random.PCG64(1))
    logs = generator.uniform(-1, 1, (len(form.variables) + len(form.constants), 50))
    written = derived_laws.LOG_VALUE_AND_GRADIENT[form.name](*logs)
    for mine, derived in zip(written, laws.derive_log_value_and_gradient(form)(*logs), strict=True):
        np.testing.assert_allclose(mine, derived, rtol=1e-12)
    constants = np.exp(logs[len(form.variables) :])
    at = (logs[0], logs[1], *constants)
    best = derived_laws.OPTIMAL_LOG_SIZE[form.name](*at)
    np.testing.assert_allclose(best, laws.derive_optimal_log_size(form)(*at), rtol=1e-12)
    for symbol in laws.LATEX_SYMBOLS:
        assert derived_laws.LATEX[form.name, symbol] == laws.derive_latex(form, symbol)


def test_every_form_has_a_name_of_its_own() -> None:
    assert len({form.name for form in laws.FORMS}) == len(laws.FORMS)
