import pytest

from planner.scaling import laws
from specs.document.files import from_catalog
from specs.formatting import loss_latex, monomial_latex, monomial_text, text_of
from specs.law import Monomial, PublishedLaw
from specs.report.tables import formula

LAW = Monomial(coefficient=3.1e-7, exponents={"compute_flop": -0.125, "tokens": 1})


def test_power_laws_are_written_with_their_constants() -> None:
    assert monomial_text(LAW) == "3.1e-07 C^-0.125 D"
    assert monomial_latex(LAW) == r"3.1 \cdot 10^{-7} \, C^{-0.125} \, D"
    assert formula(monomial_latex(LAW)).startswith("<math ")


def test_published_loss_laws_become_mathml() -> None:
    loss = from_catalog(PublishedLaw, "hoffmann", None).loss
    assert loss is not None
    assert loss_latex(loss) == r"L = 1.69 + 406.4 \, N^{-0.34} + 410.7 \, D^{-0.28}"
    assert formula(loss_latex(loss)).startswith("<math ")


@pytest.mark.parametrize("form", [form for form in vars(laws).values() if isinstance(form, laws.Form)])
def test_every_form_can_be_said_in_a_line(form: laws.Form) -> None:
    text = text_of(laws.latex(form, "M"))
    assert text.startswith("L = ")
    assert not set(text) & set("\\{}")
    assert text.count("(") == text.count(")")


def test_fractions_and_functions() -> None:
    assert text_of(r"\frac{a}{b c} e^{- \gamma}") == "a/(b c) e^(-γ)"
    assert text_of(r"\log{\left(C \right)}^{2}") == "ln(C)^2"
