import pytest

from planner.scaling import laws
from specs.document.files import from_catalog
from specs.formatting import (
    listed_members,
    loss_latex,
    member_name,
    monomial_latex,
    monomial_text,
    small_members_name,
    text_of,
    windows_text,
)
from specs.law import FormScore, Monomial, PublishedLaw
from specs.report.law_parts import formula

LAW = Monomial(coefficient=3.1e-7, exponents={"compute_flop": -0.125, "tokens": 1})


def member(weight: float, window: float | None = None) -> FormScore:
    return FormScore(
        form="coupled",
        window_decades=window,
        latex="L = E",
        held_out_error=None,
        weight=weight,
        constants={},
        forecast=2.0,
    )


def test_a_member_of_the_forecast_is_named_by_its_form_and_its_runs() -> None:
    assert member_name(member(1)) == "coupled"
    assert member_name(member(1, 1.3)) == "coupled, last 1.3 decades"
    assert windows_text([member(1), member(1)]) == ""
    assert windows_text([member(1), member(1, 0.8), member(1, 1.3), member(1, 0.8)]) == (
        "last 1.3 decades: fitted on the runs down to 1/20 of the third largest compute; "
        "last 0.8 decades: fitted on the runs down to 1/6.3 of the third largest compute"
    )


def test_members_of_small_weight_are_summed_up_where_that_saves_a_line() -> None:
    large, small, smaller = member(0.99, 1.3), member(0.009), member(0.001)
    assert listed_members([small, large]) == ((large, small), ())
    assert listed_members([smaller, small, large]) == ((large,), (small, smaller))
    assert small_members_name((small, smaller)) == "2 more, each under 1 %"
    assert listed_members([]) == ((), ())


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
