"""One law in one plan: a token that is seen again teaches less, in every loss, optimum and target loss.

Where text is short, the best size is larger, a loss takes more compute, and a loss that no number of passes reaches is
refused with what would reach it. Each remedy is written into the budget and makes a plan.
"""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from planner.design.allocation import LossSurface, published_loss_surface
from planner.plan import make_plan
from planner.scaling.data_constrained import effective_tokens
from specs.document.files import DocumentError, from_catalog
from specs.law import PublishedLaw
from specs.plan import NoForecast, Plan
from tests.support.planning import inputs_of

BUDGET = """\
kind: budget
name: b
loss: 2.25 nats/token
evidence: {kind: published, law: deepseek, loss: epoch-chinchilla}
family: deepseek
cluster: h800-2048
epochs: 30
data:
  text: {source: declared, describe: massivetext, unique: 10T tokens}
  tokenizer: {kind: bbpe, vocab: 50257}
"""
BY_OPTIMUM = ("law: deepseek, loss: epoch-chinchilla", "law: epoch-chinchilla, hyper: deepseek")


def budget(*changes: tuple[str, str]) -> str:
    """The budget with these replacements."""
    text = BUDGET
    for find, write in changes:
        assert find in text, find
        text = text.replace(find, write)
    return text


def unique(tokens: str) -> tuple[str, str]:
    """The replacement of the unique tokens."""
    return "unique: 10T tokens", f"unique: {tokens} tokens"


def planned(folder: Path, text: str) -> Plan:
    """The plan of a budget."""
    path = folder / "b.yaml"
    path.write_text(text)
    return make_plan(inputs_of(path, folder / "out", folder / "data"))


def surface_on(unique_tokens: float) -> LossSurface:
    """Epoch's law on so much text."""
    surface = published_loss_surface(from_catalog(PublishedLaw, "epoch-chinchilla", None), unique_tokens)
    assert surface is not None
    return surface


# --- the surface ---


def test_the_loss_is_the_laws_after_the_fresh_tokens_that_repeats_are_worth() -> None:
    short, fresh = surface_on(1e10), surface_on(np.inf)
    assert short.loss(1e9, 5e9) == fresh.loss(1e9, 5e9)
    assert short.loss(1e9, 1e11) == pytest.approx(fresh.loss(1e9, effective_tokens(1e11, 1e10)), rel=1e-12)
    assert short.loss(1e9, 1e11) > fresh.loss(1e9, 1e11)


@pytest.mark.parametrize("unique_tokens", [1e9, 2e10, 1e11, np.inf])
def test_the_best_size_is_the_discounted_laws(unique_tokens: float) -> None:
    """No size of a fine grid has a lower loss at the same compute."""
    surface, compute = surface_on(unique_tokens), 1e22
    best = surface.best_size(compute)
    sizes = best * np.exp(np.linspace(-2, 2, 401))
    losses = [surface.loss(size, compute / 6 / size) for size in sizes]
    assert surface.loss(best, compute / 6 / best) <= min(losses) * (1 + 1e-12)


def test_less_text_makes_models_larger() -> None:
    """Passes over the text grow, but more slowly than they would with fresh tokens."""
    sizes = [surface_on(text).best_size(1e22) for text in (1e13, 1e11, 3e10, 1e10, 1e9)]
    assert sizes[0] == pytest.approx(surface_on(np.inf).best_size(1e22))
    assert all(smaller < larger for smaller, larger in pairwise(sizes[1:]))


def test_a_model_that_serves_is_the_cheapest_with_its_loss_under_repeats() -> None:
    """6 N D + 2 N D_served is lowest where we say, among runs of equal loss either side."""
    surface, served = surface_on(3e10), 1e12
    size = surface.best_size(1e22, served)
    tokens = 1e22 / 6 / size
    loss, cost = surface.loss(size, tokens), 6 * size * tokens + 2 * size * served
    assert tokens > 3e10
    for other in (0.9 * size, 0.97 * size, 1.03 * size, 1.1 * size):
        low, high = np.log(1e9), np.log(1e14)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if surface.loss(other, np.exp(middle)) <= loss else (middle, high)
        assert 6 * other * np.exp(high) + 2 * other * served > cost


# --- plans ---


@pytest.mark.slow
@pytest.mark.parametrize("evidence", [(), (BY_OPTIMUM,)], ids=["allocation", "optimum"])
def test_a_loss_takes_more_compute_where_text_is_repeated(
    tmp_path: Path, evidence: tuple[tuple[str, str], ...]
) -> None:
    """The run reaches the loss by the discounted law; text that is not repeated changes nothing."""
    short, enough, plenty = (
        planned(tmp_path, budget(unique(text), *evidence)).runs[0] for text in ("25B", "1T", "10T")
    )
    assert (enough.run.model, enough.run.optim) == (plenty.run.model, plenty.run.optim)
    assert short.cost.compute_flop > 1.02 * plenty.cost.compute_flop
    reached = surface_on(25e9).loss(short.run.model.params, short.run.tokens)
    assert reached == pytest.approx(2.25, abs=2e-3)
    if evidence:
        assert short.run.model.params > plenty.run.model.params


def test_the_published_laws_predicted_loss_is_discounted(tmp_path: Path) -> None:
    """The allocation keeps its split; the loss that the plan names is that of the text at hand."""
    compute = ("loss: 2.25 nats/token", "compute: 5e21 FLOP")
    short, plenty = planned(tmp_path, budget(unique("25B"), compute)), planned(tmp_path, budget(compute))
    run, other = short.runs[0].run, plenty.runs[0].run
    assert (run.model, run.optim) == (other.model, other.optim)
    assert run.tokens > 4 * 25e9
    for plan, surface in ((short, surface_on(25e9)), (plenty, surface_on(1e13))):
        assert isinstance(plan.forecast, NoForecast)
        assert f"predicts {surface.loss(run.model.params, run.tokens):.4f} nats" in plan.forecast.reason


def test_the_inference_objective_sees_repeats(tmp_path: Path) -> None:
    """A smaller model for serving would take more passes over the text: it shrinks less."""
    compute = ("loss: 2.25 nats/token", "compute: 2e21 FLOP")
    serving = "objective: {kind: inference, served: 10T tokens}\n"
    short = planned(tmp_path, budget(unique("25B"), compute) + serving).runs[0].run
    plenty = planned(tmp_path, budget(compute) + serving).runs[0].run
    assert short.model.params > 1.1 * plenty.model.params
    assert short.tokens < plenty.tokens


# --- refusals ---


def remedies_that_plan(folder: Path, text: str, why: str) -> list[str]:
    """Every remedy of a refused budget, each tried alone."""
    with pytest.raises(DocumentError, match=why) as refused:
        planned(folder, text)
    message = str(refused.value)
    found = re.split(r", or ", message.rpartition("; ")[2])
    for remedy in found:
        if written := re.fullmatch(r"provide (\S+) unique tokens", remedy):
            mended = re.sub(r"unique: \S+", f"unique: {written[1]}", text)
        elif written := re.fullmatch(r"set a loss of at least (\S+) nats/token", remedy):
            mended = re.sub(r"(?m)^loss: \S+", f"loss: {written[1]}", text)
        elif written := re.fullmatch(r"spend at most (\S+) FLOP", remedy):
            mended = re.sub(r"(?m)^compute: \S+", f"compute: {written[1]}", text)
        else:
            written = re.fullmatch(r"write epochs: (\S+)", remedy)
            assert written, remedy
            mended = re.sub(r"(?m)^epochs: \S+", f"epochs: {written[1]}", text)
        try:
            assert planned(folder, mended).runs
        except DocumentError as again:
            raise AssertionError(f"{message}\n  {remedy}\n  {again}") from None
    return [remedy.split()[0] for remedy in found]


@pytest.mark.slow
@pytest.mark.parametrize("evidence", [(), (BY_OPTIMUM,)], ids=["allocation", "optimum"])
@pytest.mark.parametrize("epochs", ["4", "30"])
def test_a_loss_that_the_text_cannot_reach_is_refused_with_what_reaches_it(
    tmp_path: Path, evidence: tuple[tuple[str, str], ...], epochs: str
) -> None:
    text = budget(unique("100M"), ("epochs: 30", f"epochs: {epochs}"), ("2.25", "2.5"), *evidence)
    why = r"even 1e\+30 FLOP on 100M unique tokens, repeated without end, reach"
    assert remedies_that_plan(tmp_path, text, why) == ["provide", "set"]


@pytest.mark.slow
@pytest.mark.parametrize("spend", ["loss: 2.4 nats/token", "compute: 1e21 FLOP"])
def test_too_many_passes_are_refused_with_remedies_of_the_same_law(tmp_path: Path, spend: str) -> None:
    """More text moves the optimum to more tokens: what is proposed is enough for those."""
    text = budget(unique("5B"), ("epochs: 30", "epochs: 3"), ("loss: 2.25 nats/token", spend), BY_OPTIMUM)
    assert remedies_that_plan(tmp_path, text, "but the budget allows only 3")[0] == "provide"


def test_another_text_leaves_the_law_itself() -> None:
    surface = surface_on(1e10)
    sizes, tokens = np.array([1e8, 1e10]), np.array([1e9, 1e12])
    fresh = replace(surface, unique_tokens=np.inf)
    assert surface.log_losses(sizes, tokens).tolist() == fresh.log_losses(sizes, tokens).tolist()
