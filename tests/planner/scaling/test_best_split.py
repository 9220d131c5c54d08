"""The compute-optimal split by all members of a mixture."""

from itertools import pairwise

import numpy as np
import pytest

from planner.scaling import laws
from planner.scaling.best_split import best_split, undetermined
from planner.scaling.data_constrained import effective_tokens
from planner.scaling.model_averaging import Mixture, fit_mixture, forecast_loss
from planner.scaling.points import points
from tests.support.ladders import ladder, pilot_surface, target


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    """The laws of a short ladder."""
    return fit_mixture(ladder(noise=0.003), draws=200)


def test_the_split_holds_the_surfaces_own(mixture: Mixture) -> None:
    split, (size, tokens) = best_split(mixture, 1e13), target(1e13)
    assert split["size"].low < size < split["size"].high
    assert split["tokens"].low < tokens < split["tokens"].high
    assert split["tokens_per_size"].low < tokens / size < split["tokens_per_size"].high
    assert not undetermined(split)


@pytest.mark.parametrize("unique_tokens", [1e5, 1e6, 5e6])
def test_under_repeats_each_draw_has_its_lowest_loss_there(mixture: Mixture, unique_tokens: float) -> None:
    """One draw of each law, at sizes a per mille apart."""
    flop = 1e13
    for law in mixture.laws:
        alone = Mixture(**{**vars(mixture), "laws": (law,), "counts": np.array([1])})
        split = best_split(alone, flop, unique_tokens)
        free, _, _ = laws.optimum(law.law.form, np.exp(law.log_params[0]), flop)
        sizes = float(free) * np.exp(np.arange(0, 9, 1e-3))
        fresh = effective_tokens(flop / sizes, unique_tokens)
        variables = laws.columns(law.law.form, sizes, fresh)
        losses = laws.value(law.law.form, np.exp(law.log_params[0]), *variables)
        assert split["size"].median == pytest.approx(sizes[losses.argmin()], rel=2e-3)
        assert split["loss"].median == pytest.approx(losses.min(), rel=1e-6)
        assert split["size"].median * split["tokens"].median == pytest.approx(flop)
        assert split["size"].median > free


def test_text_that_is_not_repeated_changes_nothing(mixture: Mixture) -> None:
    assert best_split(mixture, 1e13, 1e12) == best_split(mixture, 1e13)


def test_more_budget_never_gives_a_worse_forecast(mixture: Mixture) -> None:
    splits = [best_split(mixture, flop) for flop in np.geomspace(1e12, 1e15, 7)]
    medians = [forecast_loss(mixture, one["size"].median, one["tokens"].median).median for one in splits]
    assert medians == sorted(medians, reverse=True)
    assert all(a["size"].median < b["size"].median for a, b in pairwise(splits))


@pytest.mark.slow
def test_runs_on_one_ray_do_not_say_how_to_split() -> None:
    """20 tokens per parameter at each of eight budgets: any split fits them."""
    form, params = pilot_surface()
    block_params = np.sqrt(np.geomspace(1e10, 1e13, 8) / 6 / 20)
    size, tokens = 6 * block_params, 20 * block_params
    ray = points(size, tokens, laws.value(form, params, size, tokens))
    assert undetermined(best_split(fit_mixture(ray, draws=200), 1e14))
