"""What the ledger's laws say: of the runs that they leave out, of how to split compute, and of what weakens them."""

import re

import numpy as np
import pytest

from planner.evidence.forecast import FittedLaws, fit_laws, from_laws, ledger_flags
from planner.evidence.ledger_evidence import allocation
from planner.plan import make_plan
from planner.scaling import laws
from planner.scaling.best_split import UNDETERMINED
from planner.scaling.points import Points, points
from specs.document.files import from_catalog
from specs.evidence import EvidencePoint
from specs.law import Interval, PublishedLaw
from specs.plan import Forecast, NoForecast, PlannedRun
from tests.support.ladders import ladder, pilot_surface, with_losses
from tests.support.paths import SPECS
from tests.support.planning import inputs_of

PRIOR = from_catalog(PublishedLaw, "tiny", None).allocation
TEXT = 10**10


def evidence(runs: Points, unique_tokens: int = TEXT) -> tuple[EvidencePoint, ...]:
    """The runs as a ledger holds them; run i has the fingerprint of i."""
    return tuple(
        EvidencePoint(
            run=f"{i:016x}",
            budget_flop=float(runs.flop[i]),
            size=float(runs.size[i]),
            tokens=round(runs.tokens[i]),
            unique_tokens=unique_tokens,
            loss=float(runs.loss[i]),
            short=bool(runs.short[i]),
        )
        for i in range(len(runs.loss))
    )


def ray() -> Points:
    """20 tokens per parameter at each of eight budgets."""
    form, params = pilot_surface()
    block_params = np.sqrt(np.geomspace(1e10, 1e13, 8) / 6 / 20)
    size, tokens = 6 * block_params, 20 * block_params
    return points(size, tokens, laws.value(form, params, size, tokens))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> PlannedRun:
    """A run of 1e22 FLOP."""
    folder = tmp_path_factory.mktemp("target")
    text = (SPECS / "budget_1e24.yaml").read_text().replace("1e24 FLOP", "1e22 FLOP")
    (folder / "b.yaml").write_text(text)
    return make_plan(inputs_of(folder / "b.yaml", folder / "out", folder / "data")).runs[0]


# --- runs that are left out ---


def test_a_diverged_run_is_named_and_in_no_fit() -> None:
    runs = ladder()
    fitted = fit_laws(evidence(with_losses(runs, {12: 11.0})))
    [named, *others] = ledger_flags(fitted)
    told = re.match(
        rf"run {12:016x} \(1e\+12 FLOP\) is left out of the fits: its loss 11.0000 is \+(\d+)% off", named
    )
    assert told
    assert int(told[1]) == pytest.approx(100 * (11 / runs.loss[12] - 1), rel=0.05)
    assert "look for a loss spike or a bad node in its report, and run it again under another seed" in named
    without = fit_laws(evidence(runs.take(np.arange(15) != 12)))
    assert others == list(ledger_flags(without))
    assert {point.run for point in fitted.points} == {f"{i:016x}" for i in range(15) if i != 12}
    assert [one.loss for one in fitted.minima] == [one.loss for one in without.minima]
    there = np.array([1e6]), np.array([1e7])
    assert fitted.log_losses(*there) == pytest.approx(without.log_losses(*there), abs=1e-12)


def test_a_clean_ladder_has_no_such_flag() -> None:
    only = "only 3 budgets: the loss floor is mostly that of the prior, from published laws"
    assert ledger_flags(fit_laws(evidence(ladder(noise=0.01)))) == (only,)


@pytest.mark.parametrize("change", ["perplexities", "accuracies"])
def test_what_is_no_loss_gives_no_law_and_the_reason_is_one_line(change: str) -> None:
    runs = ladder((1e9, 3e9, 1e10))
    loss = np.exp(runs.loss) if change == "perplexities" else 0.9 - 0.1 * runs.loss
    fitted = fit_laws(evidence(points(runs.size, runs.tokens, loss)))
    assert fitted.mixture is None
    assert f"are these {change}?" in fitted.reason
    assert "\n" not in fitted.reason


# --- how to split ---


def size_at(fitted: FittedLaws, flop: float) -> Interval | None:
    """The interval of the best size that the laws give."""
    split = fitted.best_split(flop, TEXT)
    return None if split is None else split["size"]


@pytest.mark.slow
def test_runs_on_one_ray_are_flagged_and_the_prior_allocates(target: PlannedRun) -> None:
    """The forecast stands; the interval of tokens per parameter is in the flag."""
    assert PRIOR is not None
    fitted = fit_laws(evidence(ray()))
    flop = target.budget_flop
    assert fitted.best_split(flop, TEXT) is None
    found, basis = allocation(fitted.minima, PRIOR, flop, lambda compute: size_at(fitted, compute))
    assert found == PRIOR
    assert basis == "the prior's allocation, as no isoFLOP minimum is bracketed"
    told = from_laws(fitted, target, TEXT)
    assert isinstance(told.forecast, Forecast)
    assert told.optimum is not None
    ratio = told.optimum.tokens_per_block_param
    [flag] = [one for one in told.flags if one.startswith("the runs do not say how to split the compute: ")]
    assert f"95 % of the best tokens per parameter lie in [{ratio.low:.2g}, {ratio.high:.2g}]" in flag
    assert ratio.high > UNDETERMINED * ratio.low


def test_a_ladder_that_says_how_to_split_is_not_flagged(target: PlannedRun) -> None:
    told = from_laws(fit_laws(evidence(ladder(noise=0.003))), target, TEXT)
    assert not [one for one in told.flags if "do not say how to split" in one]


def one_sided() -> Points:
    """Four budgets, at which only sizes above, or only sizes below the best one were run."""
    form, params = pilot_surface()
    flop = np.repeat([1e10, 1e11, 1e12, 1e13], 3)
    above, below = [3, 6, 12], [1 / 12, 1 / 6, 1 / 3]
    size = laws.optimum(form, params, flop)[0] * np.array([*above, *below, *above, *below])
    noise = 0.003 * np.random.default_rng(0).standard_normal(12)
    return points(size, flop / size, laws.value(form, params, size, flop / size) * np.exp(noise))


@pytest.mark.parametrize("off", [0.1, 1.0, 10.0])
def test_without_a_bracketed_minimum_the_allocation_is_that_of_the_forecasts_laws(off: float) -> None:
    """Inside of the interval that the page shows, wherever the prior is."""
    assert PRIOR is not None
    size_law = PRIOR.flop_per_token
    prior = PRIOR.model_copy(
        update={"flop_per_token": size_law.model_copy(update={"coefficient": off * size_law.coefficient})}
    )
    fitted = fit_laws(evidence(one_sided()))
    assert not any(one.bracketed for one in fitted.minima)
    found, basis = allocation(fitted.minima, prior, 1e14, lambda compute: size_at(fitted, compute))
    shown = size_at(fitted, 1e14)
    assert shown is not None
    slack = 1e-9
    assert shown.low * (1 - slack) <= found.flop_per_token.at(compute_flop=1e14) <= shown.high * (1 + slack)
    assert basis.startswith(
        "no isoFLOP minimum is bracketed: the best split of the forecast's laws at 1e+14 FLOP"
    )


# --- text ---


def test_pilots_that_repeated_their_text_are_worth_fewer_fresh_tokens() -> None:
    """The same losses on less text: fresh tokens then do more, and so would as many of the pilots' own text."""
    runs = ladder(noise=0.003)
    plain, repeated = (fit_laws(evidence(runs, unique)) for unique in (TEXT, 10**5))
    there = np.array([1e6]), np.array([1e7])
    assert repeated.log_losses(*there) < plain.log_losses(*there) - 0.02
    assert repeated.mixture is not None
    assert (repeated.mixture.runs.fresh_tokens < repeated.mixture.runs.tokens).all()


# --- what weakens the evidence ---


def flags(runs: Points) -> tuple[str, ...]:
    """Of a ledger of these runs."""
    return ledger_flags(fit_laws(evidence(runs)))


@pytest.mark.slow
def test_weak_evidence_is_flagged() -> None:
    runs = ladder(noise=0.0)
    assert flags(runs) == ("only 3 budgets: the loss floor is mostly that of the prior, from published laws",)
    one_side = runs.take((runs.flop > 2e11) | (runs.size > np.median(runs.size[runs.flop < 2e11])))
    assert not any("1e+11" in flag for flag in flags(one_side))  # two sizes make no profile
    short = points(runs.size, runs.tokens, runs.loss, steps=np.where(runs.flop < 2e11, 500, 2000))
    assert "5 of 15 runs have under 1000 steps and get a ninth of the weight" in flags(short)
    assert any(
        flag.startswith("at 1e+13 FLOP the minimum lies beyond the largest") for flag in flags(one_sided())
    )


def test_too_few_runs_give_no_forecast(target: PlannedRun) -> None:
    fitted = fit_laws(evidence(ladder((1e11,))))
    assert isinstance(fitted, FittedLaws)
    told = from_laws(fitted, target, TEXT)
    assert isinstance(told.forecast, NoForecast)
    assert told.forecast.reason == f"the ledger's runs are not enough for a forecast: {fitted.reason}"
    assert fitted.reason.startswith("5 different runs at 1 budget, but a forecast needs at least 7 runs")
