"""Every field of a plan can say where it comes from, and what it says agrees with the plan's numbers."""

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

import isoplan.cli
from planner.explain.answer import Explanation, explain, reason_of
from planner.explain.diff import diff
from planner.explain.fields import (
    SHORT_NAMES,
    NoFieldError,
    descendants,
    find_field,
    format_value,
    root_field,
)
from planner.plan import make_plan
from planner.tables import rows
from specs.budget import FixedRatio, FixedSize, Inference, Objective
from specs.curate import CuratedText, CurationStage
from specs.law import RateCheck
from specs.mix import Mix, MixPhase
from specs.plan import LayoutChoice, LayoutEstimate, NoForecast, Plan, SourceText
from specs.plan_file import save_plan
from tests.support import examples, samples
from tests.support.paths import SPECS
from tests.support.planning import inputs_of

FITTED = examples.make_plan("target")
PILOTS = examples.make_plan("pilots")


def estimate(step_s: float, **changes: object) -> LayoutEstimate:
    """A layout with the parts of its step and of its memory."""
    return LayoutEstimate(
        layout=samples.layout(**changes),
        step_s=step_s,
        seconds={"matrices": 0.75 * step_s, "bubble": 0.25 * step_s},
        memory_bytes=3 * 2**30,
        memory={"weights": 1.0 * 2**30, "activations": 2.0 * 2**30},
        model_flop_utilisation=0.4 / step_s,
    )


def compared() -> LayoutChoice:
    """Three layouts that were compared, and one that does not fit."""
    return LayoutChoice(
        ranked=(
            estimate(1.0, dp=2, tp=1),
            estimate(1.1, dp=1, tp=2),
            estimate(1.3, dp=1, tp=2, recompute="full"),
        ),
        considered=12,
        fitting=3,
        limit_bytes=4 * 2.0**30,
        nearest_miss_bytes=2.0**20,
        nearest_miss=estimate(0.9, dp=2, micro_batch_sequences=8),
        reason="tp 1 saves the collectives of tp 2",
    )


LAID_OUT = samples.sealed(samples.plan(), layouts=compared())
MIX = Mix(
    phases=(
        MixPhase(from_step=0, samples={"web": 7, "code": 3}),
        MixPhase(from_step=90, samples={"web": 1, "code": 4}),
    ),
    evaluation={"web": 1, "code": 1},
)


def on_a_mix(mix: Mix) -> Plan:
    """The sample plan on a mix."""
    planned = LAID_OUT.runs[-1]
    run = planned.run.model_copy(update={"mix": mix})
    texts = {name: SourceText(unique_tokens=10**4, bytes_per_token=1.0) for name in mix.sources}
    return samples.sealed(LAID_OUT, runs=(planned.model_copy(update={"run": run}),), sources=texts)


ON_A_MIX = on_a_mix(MIX)
CURATED = samples.sealed(
    samples.plan(),
    curation=(
        CuratedText(
            source="",
            steps=(
                CurationStage(
                    step="GopherQualityFilter",
                    read=48,
                    dropped=5,
                    reasons={"gopher_short_doc": 5},
                    examples=(),
                ),
                CurationStage(step="ExactDedup", read=43, dropped=3, reasons={}, examples=()),
            ),
        ),
    ),
)


@cache
def frontier() -> Plan:
    """On a published law. Made when it is first asked for, and not where tests are collected."""
    return make_plan(inputs_of(SPECS / "budget_1e24.yaml", Path("plans/budget_1e24"), Path("data")))


@cache
def on_a_table() -> Plan:
    """On a table of runs."""
    return make_plan(inputs_of(SPECS / "budget_table.yaml", Path("plans/budget_table"), Path("data")))


PLANS: dict[str, Callable[[], Plan]] = {
    "frontier": frontier,
    "fitted": lambda: FITTED,
    "pilots": lambda: PILOTS,
    "laid out": lambda: LAID_OUT,
    "on a table": on_a_table,
    "on a mix": lambda: ON_A_MIX,
    "curated": lambda: CURATED,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_every_field_has_a_meaning_and_someone_who_settled_it(name: str) -> None:
    plan = PLANS[name]()
    fields = [field for field in descendants(root_field(plan)) if ".points." not in field.name]
    assert len(fields) > 100
    for field in fields:
        why = reason_of(plan, field)
        assert field.description, field.name
        assert why.decided_by, field.name
    for field in fields[:: len(fields) // 20]:
        assert explain(plan, field.name).field == field.name
        json.dumps(explain(plan, field.name).plain(), allow_nan=False)


def test_a_plan_on_a_table_names_the_table_and_has_no_curve() -> None:
    assert on_a_table().table is not None
    told = explain(on_a_table(), "loss")
    assert told.evidence[0].startswith("25 runs of 3e+17 to 3e+19 FLOP, 0 of them short: line 2, line 3, ")
    assert "A N^(-α)" in str(told.law)
    assert "no loss curves" in explain(on_a_table(), "forecast.curve").decided_by
    assert explain(on_a_table(), "fit.profiles.0").evidence[0].startswith("line 2: N 2.75e+07, loss 3.5769")
    assert "family llama" in explain(on_a_table(), "allocation").decided_by
    [row] = [value for name, value in rows(on_a_table()) if name == "evidence"]
    assert row.startswith("25 runs of example_runs.csv, 3.0e+17 to 3.0e+19 FLOP; held-out error: ")


def test_a_curated_text_says_what_was_dropped() -> None:
    told = explain(CURATED, "curation")
    assert told.value_text == (
        "GopherQualityFilter dropped 5 of 48 documents, ExactDedup dropped 3 of 43 documents"
    )
    assert told.decided_by == "the corpus: counted when it was built"
    [found] = [one for one in diff(CURATED, samples.plan()) if one.field == "curation"]
    assert (found.group, found.text_before, found.text_after) == ("evidence", told.value_text, "none")


def test_a_mix_says_shares_and_epochs_of_its_sources() -> None:
    told = explain(ON_A_MIX, "mix")
    shares = "web 70 %, code 30 %; from step 90 code 80 %, web 20 %"
    assert told.value_text == f"{shares}; held-out loss: code 50 %, web 50 %"
    assert "whole samples of a period of at most 100,000" in str(told.equation)
    assert told.evidence[1] == "web: 0.65 of the tokens, 6.66 epochs over 10,000 unique tokens"
    shown = dict(rows(ON_A_MIX))
    assert shown["mix"] == shares == explain(ON_A_MIX, "mix.phases").value_text
    assert shown["sources"] == "web 65.0 %, 6.66 epochs; code 35.0 %, 3.58 epochs"
    assert shown["evaluation"] == "mean over code 50 %, web 50 %"
    for label in shown:
        assert find_field(ON_A_MIX, label).name, label
    other = on_a_mix(MIX.model_copy(update={"phases": MIX.phases[:1]}))
    (difference,) = diff(ON_A_MIX, other)
    assert difference.field == "run.mix"
    assert difference.text_after == "web 70 %, code 30 %; held-out loss: code 50 %, web 50 %"


def test_the_papers_learning_rate_and_batch() -> None:
    rate = explain(frontier(), "lr")
    assert rate.field == "runs.0.run.optim.peak_lr"
    assert rate.equation == "peak_lr = 0.3118 C^-0.125 at C = 1e+24: 0.0003118"
    assert rate.law is not None
    assert "arXiv 2401.02954, Eq. 1" in rate.law
    assert rate.decided_by == "the law; no learning-rate check was run on this data"
    batch = explain(frontier(), "batch")
    assert "0.292 C^0.3271" in str(batch.equation)
    assert "the law gives 5,051.5 sequences, the plan has 5,120 (+1.36 %)" in batch.decided_by


def test_shape_and_tokens_name_the_allocation_and_the_rounding() -> None:
    layers = explain(frontier(), "layers")
    assert layers.equation is not None
    assert layers.equation.startswith("M_opt = 0.1715 C^0.5243 at C = 1e+24: 6.568e+11")
    assert layers.decided_by == "rounding to a legal shape of the family deepseek (size +0.32 %)"
    assert any("104.0 layers at width 10,240; here 95" in one for one in layers.evidence)
    tokens = explain(frontier(), "tokens")
    assert tokens.value == frontier().runs[0].run.tokens
    assert tokens.value_text == "1.52T tokens (1,517,499,187,200)"
    assert "0.759 epochs over 2,000,000,000,000 unique tokens" in tokens.evidence


def test_the_schedule_is_the_papers() -> None:
    told = explain(frontier(), "milestones")
    assert told.value_text == "x 0.316 after step 57,888; x 0.1 after step 65,124"
    assert told.law == "DeepSeek LLM, arXiv 2401.02954, section 2.3"
    assert "not shortened" in explain(frontier(), "warmup").decided_by
    assert "multiple of 20" in explain(frontier(), "steps").decided_by


def test_a_forecast_names_forms_runs_and_its_interval() -> None:
    assert FITTED.forecast.kind == "forecast"
    assert FITTED.fit is not None
    told, band = explain(FITTED, "loss"), FITTED.forecast.loss
    assert told.interval == (band.low_95, band.high_95)
    assert "L = E + (A M^(-α) + B D^(-β))^k" in str(told.law)
    assert "0.53 of coupled (median 1.5145)" in str(told.equation)
    assert "0.12 of coupled, last 0.8 decades (median 1.5025)" in str(told.equation)
    assert "held-out error 1.39 % (all runs), 1.31 % (last 0.8 decades)" in str(told.law)
    assert str(told.equation).endswith("; 4 more, each under 1 %")
    assert all(point.run in told.evidence[0] for point in FITTED.fit.points)
    window = explain(FITTED, "fit.forms.2.window_decades")
    assert window.evidence[0].startswith("fitted on the last 0.8 decades of compute: 10 of 15 runs, from ")
    constant = explain(FITTED, "fit.forms.0.constants.alpha")
    interval = FITTED.fit.forms[0].constants["alpha"]
    assert constant.interval == (interval.low, interval.high)
    assert (
        "how well each predicts held-out budgets; the mean error of their mixture there is 1.47 %"
        in told.decided_by
    )
    untested = explain(
        samples.sealed(FITTED, fit=FITTED.fit.model_copy(update={"held_out_error": None})), "loss"
    )
    assert "weighted by the prior, as no budget could be held out" in untested.decided_by


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("M", "flop_per_token"),
        ("N", "block_params"),
        ("D", "tokens"),
        ("fit.allocation.flop_per_token", "flop_per_token"),
        ("fit.allocation.tokens", "tokens"),
        ("optimum.loss", "loss"),
        ("M*", "flop_per_token"),
        ("N*", "block_params"),
        ("D*", "tokens"),
        ("D*/N*", "tokens_per_block_param"),
        ("D/N", "tokens_per_block_param"),
        ("L*", "loss"),
        ("tokens_per_block_param", "tokens_per_block_param"),
    ],
)
def test_the_best_split_has_an_interval(name: str, of: str) -> None:
    """Wherever a plan on a ledger is asked for its size, its data, or what both are read from."""
    assert FITTED.fit is not None
    assert FITTED.fit.optimum is not None
    ends = getattr(FITTED.fit.optimum, of)
    assert explain(FITTED, name).interval == (ends.low, ends.high)
    assert explain(frontier(), "M").interval is None
    assert "M* " in explain(FITTED, "allocation").evidence[0]


def test_a_refused_forecast_says_why_under_the_short_name() -> None:
    assert isinstance(frontier().forecast, NoForecast)
    told = explain(frontier(), "loss")
    assert told.field == "forecast.reason"
    assert told.value == frontier().forecast.reason


@pytest.mark.parametrize(("multiple", "says"), [(1.0, "within 0.25 %"), (1.5, "more than 0.25 % above")])
def test_the_learning_rate_check_has_the_last_word_where_it_moved_the_rate(
    multiple: float, says: str
) -> None:
    planned = FITTED.runs[0]
    optim = planned.run.optim.model_copy(update={"peak_lr": 0.06788 * 64**-0.75 * multiple})
    run = planned.run.model_copy(update={"optim": optim})
    moved = planned.model_copy(update={"run": run, "rate_multiple": multiple})
    told = explain(samples.sealed(FITTED, runs=(moved,)), "lr")
    assert says in told.decided_by
    assert any("learning-rate check on the shape of run" in one for one in told.evidence)


def test_rates_that_are_as_good_as_the_best_are_given_as_an_interval() -> None:
    """A parabola in ln lr that is 0.25 % up at a factor 1.25 from the best, which is the law's own rate."""
    assert FITTED.fit is not None
    multiples = (0.5, 1.0, 2.0)
    rise = {m: (math.log(m) / math.log(1.25)) ** 2 * math.log(1.0025) for m in multiples}
    check = RateCheck(
        run="0" * 16,
        multiples=multiples,
        losses=tuple(2.0 * math.exp(rise[m]) for m in multiples),
        best_multiple=1.0,
        bracketed=True,
        reason="",
        near_optimal=True,
    )
    plan = samples.sealed(FITTED, fit=FITTED.fit.model_copy(update={"rate_check": check}))
    told = explain(plan, "lr")
    own = 0.06788 * 64**-0.75
    assert told.interval == pytest.approx((own / 1.25, own * 1.25))
    assert str(told.interval_text).startswith("loss within 0.25 % of the lowest: from")
    edge = check.model_copy(update={"bracketed": False})
    at_edge = samples.sealed(FITTED, fit=FITTED.fit.model_copy(update={"rate_check": edge}))
    assert explain(at_edge, "lr").interval is None


def test_a_value_that_no_rule_leads_to_is_not_explained_away() -> None:
    """The sample's rate and batch were written by hand, not by the law that the plan names."""
    wrong = examples.make_plan("published")
    assert (
        "differs from the law: the law gives 0.007394, the plan has 0.003005"
        in explain(wrong, "lr").decided_by
    )
    assert explain(wrong, "batch").decided_by.startswith("differs from the law")


def test_runs_of_the_ladder_explain_themselves() -> None:
    rate = next(i for i, planned in enumerate(PILOTS.runs) if planned.role == "rate")
    told = explain(PILOTS, f"runs.{rate}.run.model.width")
    assert "as pilots cover a range of sizes" in str(told.equation)
    assert "ladder" in explain(PILOTS, "runs.0.budget_flop").decided_by
    assert "compute" in explain(FITTED, "budget_flop").decided_by


def test_the_ladder_says_what_was_stated_and_what_was_chosen() -> None:
    """A stated number of budgets stands half a decade apart."""
    sizes = explain(PILOTS, "sizes")
    assert sizes.field == "ladder.sizes"
    assert (
        "narrowest expected interval of the target's loss among 3,600 affordable ladders" in sizes.decided_by
    )
    assert sizes.evidence == (
        "expected 95 % interval of the target's loss: ±3.10 % with this ladder, ±3.10 % with the best ladder, ±3.80 % "
        "with DeepSeek LLM's ladder (8 budgets x 10 sizes) at equal cost",
    )
    assert explain(PILOTS, "paper_half_width").value_text == "±3.80 %"
    evidence = PILOTS.budget.evidence.model_copy(update={"budgets": 3})
    stated = samples.sealed(PILOTS, budget=PILOTS.budget.model_copy(update={"evidence": evidence}))
    assert explain(stated, "ladder.budgets").decided_by == "the budget's field evidence: 3"
    assert explain(stated, "ladder.budget_ratio").decided_by == "the budget's field evidence: 3.162"
    assert "narrowest" in explain(stated, "ladder.spread").decided_by


def test_a_layout_names_the_best_ones_with_another_value() -> None:
    told = explain(LAID_OUT, "tp")
    assert told.decided_by == "the fastest of 3 layouts that fit, of 12 legal ones"
    assert told.evidence == (
        "tp 1 saves the collectives of tp 2",
        "tp 2: dp 1 x pp 1 x tp 2, micro-batch 4 takes 1.1 s a step (+10.0 %)",
    )
    recompute = explain(LAID_OUT, "recompute").evidence[1]
    assert recompute.startswith("recompute full: dp 1 x pp 1 x tp 2")
    assert explain(LAID_OUT, "memory").equation == "activations 2 GiB + weights 1 GiB"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("layrs", ["this plan has no field 'layrs'", "runs.0.run.model.layers"]),
        ("runs.0.run.optim.peaklr", ["runs.0.run.optim.peak_lr"]),
        ("runs.7.run.optim.peak_lr", ["write runs.0"]),
        ("fit.points", ["write fit"]),
        ("zzz", ["write lr, batch"]),
        ("", ["this plan has no field ''"]),
        ("coefficient", ["several fields are called 'coefficient'", "law.hyper.peak_lr.coefficient"]),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_near_ones(name: str, parts: Sequence[str]) -> None:
    with pytest.raises(NoFieldError) as caught:
        explain(frontier(), name)
    assert [part for part in parts if part not in str(caught.value)] == []
    assert len(str(caught.value).splitlines()) == 1


def test_the_labels_of_the_plans_own_table_lead_to_fields() -> None:
    """What `plan` prints can be asked for as it is printed there."""
    for label in [name for name, _ in rows(frontier())]:
        assert find_field(frontier(), label).name, label
    assert find_field(frontier(), "learning rate").name == "runs.0.run.optim.peak_lr"


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("guard", "the budget's field guard"),
        ("spike_deviations", "the budget's field guard"),
        ("newest", "its retention"),
        ("checkpoint_interval_steps", "its checkpoint_interval_steps"),
    ],
)
def test_what_keeps_a_run_safe_is_asked_for_like_anything_else(name: str, by: str) -> None:
    assert explain(frontier(), name).decided_by.endswith(by)


def test_a_pipeline_of_chunks_is_counted_in_stages() -> None:
    assert (
        "16 pipeline stages of 3 chunks with 1 to 2 layers each; the last stage also has the head"
        in explain(frontier(), "layers").evidence
    )


@pytest.mark.parametrize("short", [*SHORT_NAMES, "loss", "allocation"])
def test_every_short_name_leads_to_a_field_of_every_plan(short: str) -> None:
    for make in PLANS.values():
        plan = make()
        if short != "allocation" or plan is not LAID_OUT:  # that sample's law has none
            assert find_field(plan, short).name


def test_the_last_run_is_meant_where_no_other_is_named() -> None:
    last = len(PILOTS.runs) - 1
    assert find_field(PILOTS, "lr").name == f"runs.{last}.run.optim.peak_lr"
    assert find_field(PILOTS, "optim.peak_lr").name == f"runs.{last}.run.optim.peak_lr"
    assert find_field(PILOTS, "cost.hours").name == f"runs.{last}.cost.hours"


@pytest.mark.parametrize(
    ("value", "path", "said"),
    [
        (0.0003118, ("peak_lr",), "0.0003118"),
        (1.5e12, ("run", "tokens"), "1.5T tokens"),
        (1e24, ("compute_flop",), "1e+24 FLOP"),
        (2.0**34, ("memory_bytes",), "16 GiB"),
        (3600.0, ("checkpoint_interval_s",), "1 h 0 min"),
        (2.5, ("hours",), "2 h 30 min"),
        (1_360_054.0, ("dollars",), "$1,360,054"),
        (3.6e9, ("energy_j",), "1 MWh"),
        (1, ("steps",), "1 step"),
        (True, ("sequence_parallel",), "yes"),
        (None, ("stage_layers",), "none"),
        (1.25, ("loss",), "1.2500 nats/token"),
        (FixedRatio(kind="ratio", tokens_per_param=20.0), ("objective",), "ratio, tokens_per_param 20"),
    ],
)
def test_values_are_said_with_their_unit(value: object, path: tuple[str, ...], said: str) -> None:
    assert format_value(value, path) == said


def answered(
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *words: str,
) -> tuple[int, str, str]:
    """What `isoplan explain` of a written plan gives: exit code, standard output, standard error."""
    save_plan(tmp_path / "plan.yaml", plan)
    monkeypatch.setattr("sys.argv", ["isoplan", "explain", str(tmp_path / "plan.yaml"), *words])
    with pytest.raises(SystemExit) as left:
        isoplan.cli.main()
    return int(left.value.code or 0), *capsys.readouterr()


def test_the_command_prints_words_or_json_or_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = answered(FITTED, tmp_path, monkeypatch, capsys, "loss")
    assert code == 0
    assert all(word in said for word in ("forecast.loss", "decided by", "law", "interval", "evidence"))
    code, said, _ = answered(FITTED, tmp_path, monkeypatch, capsys, "loss", "--json")
    assert code == 0
    assert Explanation(**json.loads(said) | {"evidence": (), "interval": None}).field == "forecast.loss"
    code, said, error = answered(FITTED, tmp_path, monkeypatch, capsys, "losss")
    assert (code, said) == (2, "")
    assert len(error.splitlines()) == 1
    assert "losss" in error


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (
            FixedSize.model_validate({"kind": "size", "params": "140k params"}),
            "140,000 parameters; this shape has 133,",
        ),
        (
            FixedRatio(kind="ratio", tokens_per_param=20.0),
            "D = 20 N_all, so M N_all = C / 20 = 5e+11; here 1.328e+11",
        ),
        (Inference.model_validate({"kind": "inference", "served": "10T tokens"}), "D_served = 1e+13"),
    ],
)
def test_the_size_follows_from_the_objective(objective: Objective, says: str) -> None:
    budget = FITTED.budget.model_copy(update={"objective": objective})
    told = explain(samples.sealed(FITTED, budget=budget), "layers")
    assert says in str(told.equation)
    assert told.law is not None
    assert ("Sardana" in told.law) == isinstance(objective, Inference)


def test_other_laws_of_learning_rate_and_batch_are_named() -> None:
    rate, batch = explain(frontier(), "lr"), explain(frontier(), "batch")
    assert any(
        one.startswith("the law step-law gives 0.0001392 = 1.79 N^-0.713 D^0.307") for one in rate.evidence
    )
    assert any("the law step-law gives 5,23" in one for one in batch.evidence)
    assert "the batch grows with compute" in str(rate.law)


def test_a_batch_of_the_budget_overrides_the_law() -> None:
    budget = frontier().budget.model_copy(update={"batch": 5120 * 4096})
    told = explain(samples.sealed(frontier(), budget=budget), "batch")
    assert told.decided_by == "the budget's field batch, 20,971,520 tokens"
