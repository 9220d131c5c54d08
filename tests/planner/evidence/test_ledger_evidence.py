"""From a ledger to a target: the law that made the ledger is found again, and what the plan says of it is true."""

import html
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from planner.design.run_draft import same_size_run
from planner.design.target_search import run_settings
from planner.evidence.ledger_evidence import allocation, read_evidence
from planner.evidence.ledger_evidence import points as evidence_points
from planner.explain.answer import explain
from planner.plan import make_plan
from planner.scaling.isoflop import Minimum
from planner.scaling.model_averaging import fit_mixture
from planner.scaling.points import points
from specs.budget import Budget
from specs.document.files import DocumentError, from_catalog, load, read_lines
from specs.document.write import append_line, write_yaml
from specs.law import Interval, PublishedLaw
from specs.ledger import Exclusion, TableRunRecord
from specs.plan import Forecast, NoForecast, Plan, PlannedRun
from specs.record import LedgerRecord
from specs.report import render
from specs.run import RunSpec
from tests.support.corpora import write_corpus
from tests.support.paths import SPECS
from tests.support.planning import inputs_of

PRIOR = from_catalog(PublishedLaw, "tiny", None).allocation
assert PRIOR is not None
NOISE = 0.005
"""Spread of ln loss between seeds; measured on tiny runs .003 to .01 (docs/log.md)."""


def true_loss(flop_per_token: float, tokens: float) -> float:
    """A surface like the tiny runs', with its valley where the prior expects it.

    Their best losses are 2.10, 1.91, 1.75 and 1.52 nats from 1e11 to 1e13 FLOP (docs/log.md).
    """
    compute = flop_per_token * tokens
    off_valley = math.log(flop_per_token / PRIOR.flop_per_token.at(compute_flop=compute))
    return (0.9 + 0.85 * (compute / 1e12) ** -0.15) * math.exp(0.06 * off_valley**2)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """The demo's budget beside a built corpus, as `plan` finds them; of one file, which `plan` looks at each time."""
    demo = (SPECS / "demo.yaml").read_text()
    installed = "{source: installed, packages: [torch, scipy, sympy, numpy]}"
    assert installed in demo
    (tmp_path / "demo.yaml").write_text(demo.replace(installed, "{source: files, paths: [x.txt]}"))
    spec = load(tmp_path / "demo.yaml", Budget).data
    write_corpus(spec, tmp_path)
    return tmp_path


def with_text(workspace: Path, unique_tokens: int) -> None:
    """Another amount of text behind the same corpus."""
    spec = load(workspace / "demo.yaml", Budget).data
    write_corpus(spec, workspace, unique_tokens)


def planned(workspace: Path) -> Plan:
    """What `plan demo.yaml` gives now."""
    return make_plan(inputs_of(workspace / "demo.yaml", workspace / "plans" / "demo", workspace / "data"))


def own_runs(workspace: Path) -> Callable[[RunSpec], RunSpec]:
    """The budget's run of another run's size, length, batch and rate."""
    inputs = inputs_of(workspace / "demo.yaml", workspace / "plans" / "demo", workspace / "data")
    return partial(same_size_run, run_settings(inputs))


def train(workspace: Path, plan: Plan, seed: int) -> None:
    """Append what the runs of a plan would have left in the ledger, on the true surface with noise."""
    noise = np.random.default_rng(seed)
    for one in plan.runs:
        off_rate = 0.05 * math.log2(one.rate_multiple) ** 2
        loss = true_loss(one.run.model.flop_per_token, one.run.tokens) * math.exp(
            off_rate + NOISE * noise.standard_normal()
        )
        append_line(workspace / "ledger.jsonl", record(one, loss, plan.seal))


def record(one: PlannedRun, loss: float, seal: str) -> LedgerRecord:
    """A ledger line of a planned run that ended at this loss, with a curve that steps down at the milestones."""
    steps = np.arange(1, 21) * one.run.evaluation.every_steps
    x = steps / one.run.optim.steps
    shape = 1 + 0.25 * (x**-0.3 - 1) + np.where(x < 0.81, 0.06, np.where(x < 0.91, 0.02, 0.0))
    return LedgerRecord(
        run=one.run,
        role=one.role,
        budget_flop=one.budget_flop,
        rate_multiple=one.rate_multiple,
        seal=seal,
        tokens=one.run.tokens,
        compute_flop=one.run.compute_flop,
        loss=loss,
        bytes_per_token=1.0,
        curve_step=tuple(steps.tolist()),
        curve_loss=tuple((loss * shape / shape[-1]).tolist()),
        tokens_per_s=1e5,
        weights_sha256="3" * 64,
        flags=(),
    )


@pytest.mark.slow
def test_pilots_come_first_and_the_target_when_all_are_audited(workspace: Path) -> None:
    """With one pilot missing the plan still asks for pilots."""
    first = planned(workspace)
    assert first.phase == "pilots"
    assert isinstance(first.forecast, NoForecast)
    train(workspace, first, seed=0)
    lines = (workspace / "ledger.jsonl").read_text().splitlines(keepends=True)
    (workspace / "ledger.jsonl").write_text("".join(lines[:-1]))
    assert planned(workspace).phase == "pilots"
    (workspace / "ledger.jsonl").write_text("".join(lines))
    assert planned(workspace).phase == "target"


def test_a_plan_of_pilots_says_how_sure_its_ladder_should_make(workspace: Path) -> None:
    """The demo states its ladder; left open, another is chosen for the same share, and the plan holds what it is."""
    plan = planned(workspace)
    assert plan.ladder is not None
    assert (plan.ladder.budgets, plan.ladder.sizes, plan.ladder.considered) == (3, 4, 1)
    (note,) = [one for one in plan.notes if one.startswith("expected 95 % interval of the target's loss: ±")]
    assert f"±{100 * plan.ladder.paper_half_width:.1f} % with DeepSeek LLM's ladder" in note
    budget = workspace / "demo.yaml"
    budget.write_text(budget.read_text().replace("budgets: 3, sizes: 4, spread: 1.3", "rates: []"))
    chosen = planned(workspace)
    assert chosen == planned(workspace)
    assert chosen.ladder is not None
    assert chosen.ladder.half_width == chosen.ladder.best_half_width < chosen.ladder.paper_half_width
    assert len(chosen.runs) == chosen.ladder.budgets * chosen.ladder.sizes
    assert chosen.runs[-1].budget_flop == chosen.ladder.top_flop
    assert sum(one.budget_flop for one in chosen.runs) <= 0.65e13 * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_forecast_finds_the_law_again(workspace: Path, seed: int) -> None:
    """Ten times beyond the pilots: the truth lies in the band, the shape near the valley, the same bytes twice."""
    train(workspace, planned(workspace), seed)
    plan = planned(workspace)
    assert plan == planned(workspace)
    run, told = plan.runs[0].run, plan.forecast
    assert isinstance(told, Forecast)
    assert told.loss.inside_95(true_loss(run.model.flop_per_token, run.tokens))
    assert PRIOR is not None
    best = PRIOR.flop_per_token.at(compute_flop=1e13)
    assert abs(math.log(run.model.flop_per_token / best)) < 0.4
    assert run.compute_flop == pytest.approx(1e13, rel=0.01)
    assert plan.fit is not None
    assert sum(form.weight for form in plan.fit.forms) == pytest.approx(1)
    assert plan.fit.rate_check is not None
    assert plan.fit.rate_check.best_multiple == pytest.approx(1, abs=0.15)
    split = plan.fit.optimum
    assert split is not None
    assert split.flop_per_token.low < best < split.flop_per_token.high
    assert split.tokens.low < 1e13 / best < split.tokens.high
    assert split.loss.low < true_loss(best, 1e13 / best) < split.loss.high
    share = run.model.block_params / run.model.flop_per_token
    assert split.block_params.value == pytest.approx(split.flop_per_token.value * share)
    assert split.tokens_per_block_param.value == pytest.approx(split.tokens.value / split.block_params.value)


@pytest.mark.slow
def test_constants_are_those_of_the_forecasts_own_draws(workspace: Path) -> None:
    """Medians inside of intervals that no run-away law widens, also where a plain fit has no lowest point."""
    train(workspace, planned(workspace), seed=0)
    fit = planned(workspace).fit
    assert fit is not None
    known = fit_mixture(
        points(
            [p.size for p in fit.points],
            [p.tokens for p in fit.points],
            [p.loss for p in fit.points],
        )
    )
    for law in known.laws:
        (form,) = (one for one in fit.forms if one.form == law.law.form.name)
        for name, ends in form.constants.items():
            low, middle, high = np.percentile(law.constant(name), [2.5, 50, 97.5])
            assert (ends.low, ends.value, ends.high) == pytest.approx((low, middle, high))
    assert fit.held_out_error == pytest.approx(known.held_out_error)


@pytest.mark.slow
def test_a_ladder_of_two_budgets_says_that_nothing_was_held_out(workspace: Path) -> None:
    """Weights and the distance's part of the band are then the prior's."""
    budget = workspace / "demo.yaml"
    budget.write_text(budget.read_text().replace("budgets: 3,", "budgets: 2,"))
    train(workspace, planned(workspace), seed=0)
    plan = planned(workspace)
    assert isinstance(plan.forecast, Forecast)
    assert plan.fit is not None
    assert plan.fit.held_out_error is None
    assert "% (its prior, as no budget could be held out)" in plan.forecast.basis
    assert "held-out budgets showed" not in plan.forecast.basis


@pytest.mark.slow
def test_the_curve_steps_down_at_the_milestones(workspace: Path) -> None:
    """It ends at the forecast of the final loss, and its largest falls late in the run are at 80 and 90 %."""
    train(workspace, planned(workspace), seed=0)
    plan = planned(workspace)
    assert isinstance(plan.forecast, Forecast)
    curve = plan.forecast.curve
    assert curve is not None
    assert curve.median[-1] == pytest.approx(plan.forecast.loss.median)
    assert (curve.low_95[-1], curve.high_95[-1]) == pytest.approx(
        (plan.forecast.loss.low_95, plan.forecast.loss.high_95)
    )
    falls = {
        round(b / curve.step[-1], 2): x - y
        for b, x, y in zip(curve.step[1:], curve.median, curve.median[1:], strict=False)
    }
    late = sorted((at for at in falls if at > 0.5), key=lambda at: -falls[at])[:2]
    assert late == [0.85, 0.95]


def test_other_text_and_larger_runs_do_not_count(workspace: Path) -> None:
    """Only the same digest below the target's compute; they are not even counted."""
    train(workspace, planned(workspace), seed=0)
    path = workspace / "ledger.jsonl"
    assert len(read_evidence(path, "2" * 64, own_runs(workspace), 1e13).pilots) == 12
    assert len(read_evidence(path, "2" * 64, own_runs(workspace), 2e11).pilots) == 4
    other = read_evidence(path, "4" * 64, own_runs(workspace), 1e13)
    assert not other.pilots
    assert not other.flags


def test_runs_of_one_text_in_two_folders_count_once(workspace: Path) -> None:
    """The same losses again would pass for seeds without noise."""
    train(workspace, planned(workspace), seed=0)
    path = workspace / "ledger.jsonl"
    before = read_evidence(path, "2" * 64, own_runs(workspace), 1e13)
    for one in read_lines(path, LedgerRecord):
        folder = one.run.data.model_copy(update={"corpus": "fedcba9876543210"})
        append_line(path, one.model_copy(update={"run": one.run.model_copy(update={"data": folder})}))
    found = read_evidence(path, "2" * 64, own_runs(workspace), 1e13)
    assert sorted(one.loss for one in found.pilots) == sorted(one.loss for one in before.pilots)
    assert len(found.rates) == len(before.rates)
    assert found.audited > before.audited
    assert found.flags[0].startswith(
        "12 of the ledger's runs on this text are trained twice under other names"
    )


@pytest.mark.slow
def test_a_point_knows_how_many_different_tokens_its_run_could_read(workspace: Path) -> None:
    """The corpus's training tokens, so that a fit can tell repeated data from new."""
    train(workspace, planned(workspace), seed=0)
    ledger = read_evidence(workspace / "ledger.jsonl", "2" * 64, own_runs(workspace), 1e13)
    assert {point.unique_tokens for point in evidence_points(ledger, 1000, 7 * 10**7)} == {7 * 10**7}
    plan = planned(workspace)
    assert plan.fit is not None
    assert {point.unique_tokens for point in plan.fit.points} == {10**8} == {plan.unique_tokens}


def rewrite(workspace: Path, change: Callable[[LedgerRecord], LedgerRecord]) -> None:
    """Replace every line of the ledger."""
    path = workspace / "ledger.jsonl"
    records = read_lines(path, LedgerRecord)
    path.unlink()
    for one in records:
        append_line(path, change(one))


def of_vocabulary(one: LedgerRecord, vocab: int) -> LedgerRecord:
    model = one.run.model.model_copy(update={"vocab": vocab})
    return one.model_copy(update={"run": one.run.model_copy(update={"model": model})})


@pytest.mark.slow
def test_runs_of_another_vocabulary_are_counted_and_not_used(workspace: Path) -> None:
    """The text's digest is the same, as where a tokenizer asks for more tokens than the text gives it."""
    budget = workspace / "demo.yaml"
    budget.write_text(budget.read_text().replace("budgets: 3,", "budgets: 2,"))
    first = planned(workspace)
    train(workspace, first, seed=0)
    rewrite(workspace, lambda one: of_vocabulary(one, 1400))
    train(workspace, first, seed=1)
    plan = planned(workspace)
    assert plan.fit is not None
    assert {point.run for point in plan.fit.points} == {
        one.run.fingerprint() for one in first.runs if one.role == "pilot"
    }
    half, everything = len(first.runs), 2 * len(first.runs)
    flag = f"{half} of the ledger's {everything} runs on this text are not used: vocabulary 1400, not 256"
    assert flag in plan.fit.flags
    assert flag in explain(plan, "loss").evidence
    assert html.escape(flag) in render(plan, None)


@pytest.mark.slow
def test_an_excluded_run_is_left_out_of_the_plan_which_says_why(workspace: Path) -> None:
    """Pilots that are excluded count as audited, so the target can be planned; lines of tables change nothing."""
    first = planned(workspace)
    train(workspace, first, seed=0)
    path, pilots = workspace / "ledger.jsonl", [one for one in first.runs if one.role == "pilot"]
    out = pilots[0]
    append_line(path, Exclusion(run=out.run.fingerprint(), excluded=True, reason="a bad node"))
    append_line(path, of_a_table())
    plan = planned(workspace)
    assert plan.fit is not None
    assert {point.run for point in plan.fit.points} == {one.run.fingerprint() for one in pilots[1:]}
    flag = f"run {out.run.fingerprint()} ({out.title}) is left out, as the ledger says: a bad node"
    assert plan.fit.flags[0] == flag
    assert html.escape(flag) in render(plan, None)
    append_line(path, Exclusion(run=out.run.fingerprint(), excluded=False, reason="the node was fine"))
    found = read_evidence(path, "2" * 64, own_runs(workspace), 1e13)
    assert (len(found.pilots), found.flags) == (len(pilots), ())


def of_a_table() -> TableRunRecord:
    """A run that was added from a table."""
    return TableRunRecord(
        table="runs.csv",
        table_sha256="0" * 64,
        line=2,
        name=None,
        text=None,
        sizes={"params": 1e5},
        tokens=1e7,
        loss=2.0,
        bytes_per_token=None,
        compute_flop=6e12,
        steps=None,
        peak_lr=None,
        batch_tokens=None,
        seed=None,
        unique_tokens=None,
    )


def test_perplexities_are_refused_in_one_line(workspace: Path) -> None:
    """Above ln V, each of them: the ledger holds nothing to plan on."""
    train(workspace, planned(workspace), seed=0)
    rewrite(workspace, lambda one: one.model_copy(update={"loss": 10 * math.exp(one.loss)}))
    with pytest.raises(
        DocumentError, match=r"runs on this text carry no plan; .* its loss .* is not below ln V = 5\.5452"
    ):
        planned(workspace)


def test_pilots_of_other_settings_are_no_pilots_of_this_budget(workspace: Path) -> None:
    """The budget was edited after its pilots were sealed: a target in bf16 does not rest on pilots in fp32."""
    write_yaml(workspace / "plans" / "demo" / "plan.pilots.yaml", planned(workspace))
    budget = workspace / "demo.yaml"
    budget.write_text(budget.read_text().replace("precision: fp32", "precision: bf16"))
    with pytest.raises(
        DocumentError, match="differ from the runs that this budget gives now: precision fp32, not bf16"
    ):
        planned(workspace)


def minimum(flop: float, size: float, log_sd: float = 0.05, bracketed: bool = True) -> Minimum:
    """An isoFLOP minimum."""
    reason = "" if bracketed else "no valley"
    return Minimum(flop, size, flop / size, 2.0, 0.1, log_sd, 0.01, 5, bracketed, reason)


def test_the_allocation_leans_on_the_prior_as_far_as_the_ladder_is_unsure() -> None:
    """Sharp minima give their own exponent, vague ones the prior's; the level is always the ladder's."""
    assert PRIOR is not None
    for log_sd, low, high in ((1e-4, 0.299, 0.302), (10.0, 0.52, 0.525)):
        minima = [minimum(10.0**k, 10.0 ** (0.3 * k), log_sd) for k in (11, 12, 13)]
        found, said = allocation(minima, PRIOR, 1e15, lambda flop: None)
        assert low < found.flop_per_token.exponents["compute_flop"] < high
        assert found.flop_per_token.at(compute_flop=1e12) == pytest.approx(10**3.6)
        product = found.flop_per_token.at(compute_flop=1e15) * found.tokens.at(compute_flop=1e15)
        assert product == pytest.approx(1e15)
        assert "3 bracketed" in said


def test_without_bracketed_minima_the_prior_stands() -> None:
    """None leaves the prior as it is, one moves its level."""
    assert PRIOR is not None
    unbracketed = [minimum(1e12, 1e5, bracketed=False)]
    same, said = allocation(unbracketed, PRIOR, 1e13, lambda flop: None)
    assert same == PRIOR
    assert said == "the prior's allocation, as no isoFLOP minimum is bracketed"
    moved, _ = allocation([minimum(1e12, 1e5)], PRIOR, 1e13, lambda flop: None)
    assert moved.flop_per_token.at(compute_flop=1e12) == pytest.approx(1e5)
    assert moved.flop_per_token.exponents == PRIOR.flop_per_token.exponents


def split_of(level: float, exponent: float, width: float) -> Callable[[float], Interval]:
    """A best split of the laws: level at 1e13 FLOP, and a 95 % interval this factor either side."""

    def at(flop: float) -> Interval:
        value = level * (flop / 1e13) ** exponent
        return Interval(value=value, low=value / width, high=value * width)

    return at


def test_without_bracketed_minima_the_forecasts_laws_allocate_as_far_as_they_are_sure() -> None:
    assert PRIOR is not None
    unbracketed = [minimum(1e12, 1e5, bracketed=False)]
    level = PRIOR.flop_per_token.at(compute_flop=1e13)
    sharp, said = allocation(unbracketed, PRIOR, 1e13, split_of(5 * level, 0.6, 1.01))
    assert sharp.flop_per_token.at(compute_flop=1e13) == pytest.approx(5 * level, rel=0.01)
    assert sharp.flop_per_token.exponents["compute_flop"] == pytest.approx(0.6, abs=1e-3)
    assert "no isoFLOP minimum is bracketed: the best split of the forecast's laws at 1e+13 FLOP" in said
    vague, said = allocation(unbracketed, PRIOR, 1e13, split_of(5 * level, 0.6, 50.0))
    assert "with a weight of 11%" in said
    assert vague.flop_per_token.at(compute_flop=1e13) == pytest.approx(level * 5**0.108, rel=0.01)


def test_minima_outside_of_the_laws_interval_are_moved_into_it() -> None:
    """At the target's compute; the text says by how much. Inside it they stay."""
    assert PRIOR is not None
    minima = [minimum(10.0**k, 10.0 ** (0.5 * k)) for k in (10, 11, 12)]
    own, text = allocation(minima, PRIOR, 1e13, lambda flop: None)
    level = own.flop_per_token.at(compute_flop=1e13)
    same, same_text = allocation(minima, PRIOR, 1e13, split_of(1.1 * level, 0.5, 1.2))
    assert (same, same_text) == (own, text)
    for off, said in (
        (2.0, "; moved by +67% into the 95 % interval"),
        (0.5, "; moved by -40% into the 95 %"),
    ):
        moved, text = allocation(minima, PRIOR, 1e13, split_of(off * level, 0.5, 1.2))
        assert said in text
        ratio = moved.flop_per_token.at(compute_flop=1e13) / (off * level)
        assert ratio == pytest.approx(1 / 1.2 if off > 1 else 1.2)
        assert moved.flop_per_token.exponents == own.flop_per_token.exponents
        assert moved.tokens.at(compute_flop=1e13) * ratio * off * level == pytest.approx(1e13)


def one_budget_learned(workspace: Path) -> None:
    """Pilots at two budgets, of which all at the smaller learned nothing."""
    budget = workspace / "demo.yaml"
    budget.write_text(budget.read_text().replace("budgets: 3,", "rates: [], budgets: 2,"))
    first = planned(workspace)
    train(workspace, first, seed=0)
    least = min(one.budget_flop for one in first.runs)
    rewrite(
        workspace,
        lambda one: one.model_copy(update={"loss": 11.0}) if one.budget_flop == least else one,
    )


@pytest.mark.parametrize(
    ("find", "write", "line", "what"),
    [
        (
            "compute: 1e13 FLOP",
            "loss: 1.5 nats/token",
            "loss",
            "a target loss needs a loss law of the ledger's runs",
        ),
        (
            "family: tiny",
            "objective: {kind: inference, served: 1B tokens}\nfamily: tiny",
            "objective",
            "the inference objective needs a loss law of the ledger's runs",
        ),
    ],
)
def test_what_needs_a_law_is_refused_where_one_budget_alone_learned(
    workspace: Path, find: str, write: str, line: str, what: str
) -> None:
    one_budget_learned(workspace)
    budget = workspace / "demo.yaml"
    budget.write_text(budget.read_text().replace(find, write))
    why = "4 different runs at 1 budget, but a forecast needs at least 7 runs at two or more budgets"
    with pytest.raises(DocumentError, match=f"{what}: {why}") as refused:
        planned(workspace)
    assert refused.value.line is not None
    assert budget.read_text().splitlines()[refused.value.line - 1].startswith(f"{line}:")


def test_a_plan_on_one_budget_has_no_forecast_and_says_why(workspace: Path) -> None:
    one_budget_learned(workspace)
    plan = planned(workspace)
    assert isinstance(plan.forecast, NoForecast)
    assert "runs are not enough for a forecast: 4 different runs at 1 budget, but" in plan.forecast.reason


@pytest.mark.slow
@pytest.mark.parametrize("unique_tokens", [10**8, 10**6], ids=["once", "repeated"])
def test_a_target_loss_and_the_forecast_are_of_one_law(workspace: Path, unique_tokens: int) -> None:
    """Within a per cent: the target loss is the mean over the draws, the forecast their median with the run's noise and
    the distance's error, and shapes come in whole layers."""
    with_text(workspace, unique_tokens)
    budget = workspace / "demo.yaml"
    budget.write_text(budget.read_text() + "epochs: 60\n")
    train(workspace, planned(workspace), seed=0)
    budget.write_text(budget.read_text().replace("compute: 1e13 FLOP", "loss: 1.55 nats/token"))
    plan = planned(workspace)
    assert (plan.runs[0].run.tokens > 2 * unique_tokens) == (unique_tokens == 10**6)
    assert isinstance(plan.forecast, Forecast)
    assert plan.forecast.loss.median == pytest.approx(1.55, rel=0.01)


@pytest.mark.slow
def test_the_page_and_the_run_say_the_same_of_the_best_split(workspace: Path) -> None:
    """The allocation at the target's compute lies inside the plan's own interval."""
    train(workspace, planned(workspace), seed=0)
    plan = planned(workspace)
    assert plan.fit is not None
    assert plan.fit.optimum is not None
    best = plan.fit.allocation.flop_per_token.at(compute_flop=1e13)
    split = plan.fit.optimum.flop_per_token
    assert split.low * (1 - 1e-9) <= best <= split.high * (1 + 1e-9)


@pytest.mark.slow
def test_a_better_learning_rate_is_found_and_used(workspace: Path) -> None:
    """Where twice the rate is clearly better, the target runs at more than the law's, and the check says so."""
    first = planned(workspace)
    for one in first.runs:
        loss = true_loss(one.run.model.flop_per_token, one.run.tokens) * 2 ** (
            -0.1 * math.log2(one.rate_multiple)
        )
        append_line(workspace / "ledger.jsonl", record(one, loss, first.seal))
    fit = planned(workspace).fit
    assert fit is not None
    found = fit.rate_check
    assert found is not None
    assert (found.best_multiple, found.bracketed, found.near_optimal) == (2.0, False, False)
    assert found.reason == "the highest rate tried"
    target = planned(workspace).runs[0].run
    assert target.optim.peak_lr == pytest.approx(2 * 0.06788 * target.model.width**-0.75)


@pytest.mark.slow
def test_a_grid_of_rates_has_a_law_of_its_own_beside_the_published(workspace: Path) -> None:
    """Where the runs at several rates are best at 1.1 times the law's, the plan shows that the ledger says so."""
    budget = workspace / "demo.yaml"
    asked = "evidence: {kind: pilots, rates: [0.8, 0.9, 1.2, 1.35],"
    budget.write_text(budget.read_text().replace("evidence: {kind: pilots,", asked))
    first = planned(workspace)
    for one in first.runs:
        off_rate = 0.05 * math.log2(one.rate_multiple / 1.1) ** 2
        loss = true_loss(one.run.model.flop_per_token, one.run.tokens) * math.exp(off_rate)
        append_line(workspace / "ledger.jsonl", record(one, loss, first.seal))
    plan = planned(workspace)
    grid = max((one for one in first.runs if one.role == "rate"), key=lambda one: one.budget_flop)
    own = plan.hypers[-1]
    assert (own.law, own.used) == ("ledger", False)
    assert own.peak_lr == pytest.approx(1.1 * grid.run.optim.peak_lr / grid.rate_multiple, rel=1e-3)
    assert "varied only the learning rate; the learning rate is the same for all sizes" in own.hyper.regime
    half = math.sqrt(math.log(1.0025) / 0.05) * math.log(2)  # where .05 log2(lr / best)^2 is 0.25 %
    assert own.near_optimal_lr == pytest.approx(
        (own.peak_lr * math.exp(-half), own.peak_lr * math.exp(half)), rel=1e-3
    )
    said = f"({own.near_optimal_lr[0]:.3g} to {own.near_optimal_lr[1]:.3g} within 0.25 % of its loss)"
    assert any(note.startswith("the ledger's runs have their best") and said in note for note in plan.notes)
    assert any(
        "published laws disagree on learning rate and batch" in note and "; ledger " in note
        for note in plan.notes
    )
    assert any(
        one.startswith("the ledger's fit gives") and said in one for one in explain(plan, "lr").evidence
    )
    assert said in render(plan, None)
    assert plan.hypers[0].law == "tiny"
    assert plan.hypers[0].used


@pytest.mark.slow
def test_a_few_rates_do_not_make_a_law(workspace: Path) -> None:
    """The demo's own check says which of three rates is best, and no more."""
    train(workspace, planned(workspace), seed=0)
    assert "ledger" not in [one.law for one in planned(workspace).hypers]


# --- a table that joins the pilots ---


def join_table(workspace: Path, head: str = "flop_per_token") -> None:
    """Runs of the same surface, larger than the pilots, in a table that the budget names."""
    noise = np.random.default_rng(5)
    rows = []
    for compute in (2e12, 4e12, 2e13):
        for spread in (0.5, 0.7, 1.0, 1.4, 2.0):
            size = PRIOR.flop_per_token.at(compute_flop=compute) * spread
            loss = true_loss(size, compute / size) * math.exp(NOISE * noise.standard_normal())
            rows.append(f"{size!r},{compute / size!r},{loss!r}\n")
    (workspace / "runs.csv").write_text(f"{head},tokens,loss_nats\n{''.join(rows)}")
    budget = workspace / "demo.yaml"
    joins = "evidence: {also: {table: runs.csv, same_text: true}, kind: pilots"
    budget.write_text(budget.read_text().replace("evidence: {kind: pilots", joins))


@pytest.mark.slow
def test_a_table_joins_the_pilots_and_narrows_the_forecast(workspace: Path) -> None:
    """The pilots are as before; ten of the table's runs, up to 4e12 FLOP, shorten the way to 1e13 FLOP."""
    pilots = planned(workspace)
    train(workspace, pilots, seed=0)
    alone = planned(workspace)
    join_table(workspace)
    both = planned(workspace)
    assert alone.table is None
    assert both.table is not None
    assert both.table.path == "runs.csv"
    assert alone.fit is not None
    assert both.fit is not None
    assert [point.line for point in both.fit.points[-10:]] == list(range(2, 12))
    assert both.fit.evidence.runs == alone.fit.evidence.runs + 10
    told = "10 of the table's 15 runs join the 12 pilots: 5 are of the target's compute or more"
    assert told in both.fit.flags
    assert not [flag for flag in both.fit.flags if "off the pilots' law" in flag]
    widths = [
        one.forecast.loss.high_95 - one.forecast.loss.low_95
        for one in (alone, both)
        if isinstance(one.forecast, Forecast)
    ]
    assert widths[1] < 0.8 * widths[0]
    assert isinstance(both.forecast, Forecast)
    assert both.forecast.curve is not None
    run = both.runs[0].run
    assert both.forecast.loss.inside_95(true_loss(run.model.flop_per_token, run.tokens))


def test_a_table_in_parameters_is_refused_before_any_pilot_runs(workspace: Path) -> None:
    join_table(workspace, head="params")
    with pytest.raises(DocumentError) as caught:
        planned(workspace)
    assert "the table counts parameters, but the pilots' law is in FLOP per token M" in str(caught.value)
    assert "add a column flop_per_token to the table" in str(caught.value)
