"""Two plans compared: what differs, in which group, in which words, by which ratio."""

import json
from pathlib import Path

import pytest

import isoplan.cli
from planner.explain import cli
from planner.explain.diff import Difference, diff, without_small_members
from specs.plan import HyperAdvice, NoForecast, Plan
from specs.plan_file import save_plan
from tests.support import examples, samples

PLAN = examples.make_plan("target")
PILOTS = examples.make_plan("pilots")


def changed(plan: Plan, lr: float = 1.0, **model: int) -> Plan:
    """The plan with another learning rate and shape of its last run."""
    planned = plan.runs[-1]
    run = planned.run
    optim = run.optim.model_copy(update={"peak_lr": run.optim.peak_lr * lr})
    run = run.model_copy(update={"optim": optim, "model": run.model.model_copy(update=model)})
    return samples.sealed(plan, runs=(*plan.runs[:-1], planned.model_copy(update={"run": run})))


def by_field(before: Plan, after: Plan) -> dict[str, Difference]:
    return {one.field: one for one in diff(before, after)}


def test_a_plan_does_not_differ_from_itself() -> None:
    assert diff(PLAN, PLAN) == ()
    assert diff(PLAN, samples.sealed(PLAN, code=PLAN.code.model_copy(update={"sha256": "0" * 64}))) == ()


def test_fields_that_differ_are_in_their_groups_with_ratios() -> None:
    found = by_field(PLAN, changed(PLAN, lr=1.5, layers=4))
    assert found["run.optim.peak_lr"].group == "schedule"
    assert found["run.optim.peak_lr"].ratio == pytest.approx(1.5)
    layers = found["run.model.layers"]
    assert (layers.group, layers.text_before, layers.text_after, layers.ratio) == (
        "shape",
        "2 layers",
        "4 layers",
        2.0,
    )
    assert found["run.model.block_params"].ratio == pytest.approx(2.0), "what follows from it is shown too"
    assert set(found) >= {"run.model.flop_per_token", "run.model.params", "run.compute_flop"}
    assert "run.tokens" not in found


def test_groups_come_in_their_order() -> None:
    other = samples.sealed(
        changed(PLAN, layers=4),
        budget=PLAN.budget.model_copy(update={"seed": 7}),
        unique_tokens=5,
        forecast=NoForecast(reason="nothing is known"),
        notes=("another note",),
    )
    found = diff(PLAN, other)
    groups = list(dict.fromkeys(one.group for one in found))
    assert groups == ["budget", "evidence", "shape", "schedule", "forecast", "document"]
    assert by_field(PLAN, other)["forecast"].text_after == "none: nothing is known"


def test_there_and_back_is_the_same_with_ratios_turned_over() -> None:
    other = changed(PLAN, lr=0.5, layers=3)
    there, back = diff(PLAN, other), diff(other, PLAN)
    assert [one.field for one in there] == [one.field for one in back]
    for one, two in zip(there, back, strict=True):
        assert (one.before, one.after) == (two.after, two.before)
        assert one.ratio is None or two.ratio == pytest.approx(1 / one.ratio)


def test_pilots_are_compared_by_title() -> None:
    fewer = samples.sealed(PILOTS, runs=PILOTS.runs[1:])
    (only,) = diff(PILOTS, fewer)
    assert (only.group, only.text_before) == ("runs", f"17 runs, only in this plan: {PILOTS.runs[0].title}")
    assert only.text_after == "16 runs"
    found = diff(PILOTS, changed(PILOTS, lr=2.0))
    assert [(one.field, one.run) for one in found] == [("run.optim.peak_lr", PILOTS.runs[-1].title)]


def test_the_unit_of_losses_is_said_where_it_differs() -> None:
    found = by_field(PLAN, samples.sealed(PLAN, bytes_per_token=None))["losses"]
    assert (found.text_before, found.text_after) == ("bits per byte", "nats per token")
    assert (found.before, found.after) == ("bits per byte", "nats per token")


def test_a_plan_of_pilots_against_a_target() -> None:
    found = by_field(PILOTS, PLAN)
    assert found["phase"].text_after == "target"
    assert found["fit"].text_before == "none"
    assert found["fit"].text_after == "15 runs, 8 fitted laws"
    assert found["forecast"].text_before.startswith("none: 17 of 17 pilots")


def test_members_of_the_forecast_are_compared_by_form_and_runs() -> None:
    """Those of small weight in both plans are left out of the table, and stay in the differences."""
    assert PLAN.fit is not None
    moved = tuple(
        one.model_copy(update={"forecast": 1.01 * one.forecast})
        for one in PLAN.fit.forms
        if one.form != "standard"
    )
    other = samples.sealed(PLAN, fit=PLAN.fit.model_copy(update={"forms": moved}))
    found = diff(PLAN, other)
    by_name = {one.field: one for one in found}
    assert len(by_name) == len(found) == len(PLAN.fit.forms)
    assert by_name["fit.forms.coupled.forecast"].ratio == pytest.approx(1.01)
    assert by_name["fit.forms.coupled, last 0.8 decades.forecast"].ratio == pytest.approx(1.01)
    gone = by_name["fit.forms.standard"]
    assert (gone.text_before, gone.text_after) == ("weight 0.04, forecast 1.5653 nats/token", "none")
    shown, small = without_small_members(found, PLAN, other)
    assert small == 4
    assert len(shown) == len(found) - 4
    assert not any("tied" in one.field for one in shown)


def test_laws_of_learning_rate_are_compared_by_name() -> None:
    hyper = PLAN.law.hyper
    assert hyper is not None

    def told(rate: float) -> Plan:
        advice = HyperAdvice(law="step-law", hyper=hyper, peak_lr=rate, batch_tokens=1e6, used=False)
        return samples.sealed(PLAN, hypers=(advice,))

    (only,) = diff(told(0.1), told(0.3))
    assert (only.group, only.field, only.ratio) == ("schedule", "hypers.step-law.peak_lr", pytest.approx(3.0))
    (new,) = diff(PLAN, told(0.1))
    assert (new.text_before, new.text_after) == ("none", "step-law")


def test_layouts_are_compared_by_the_best_of_them() -> None:
    slow, quick = (
        samples.sealed(PLAN, layouts=examples.make_layouts(step_s=seconds)) for seconds in (12.0, 6.0)
    )
    found = by_field(slow, quick)
    assert found["layouts.ranked"].group == "layout"
    assert found["layouts.ranked"].ratio is None, "a layout is no number"
    assert found["layouts.nearest_miss"].ratio is None
    assert found["layouts.ranked"].text_before.startswith(
        "6 ranked, first dp 32 x pp 8 x tp 8 + sp, interleaved 2"
    )
    assert "12 s a step" in found["layouts.ranked"].text_before
    assert by_field(PLAN, slow)["layouts"].text_after == "211 of 1,432 layouts fit"


@pytest.mark.parametrize(
    ("ratio", "said"), [(None, ""), (1.5, "+50.00 %"), (0.3, "x 0.3"), (16.0, "x 16"), (0.9, "-10.00 %")]
)
def test_ratios_near_one_are_percentages(ratio: float | None, said: str) -> None:
    assert cli.ratio_text(ratio) == said


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for path, plan in zip(files, (PLAN, changed(PLAN, lr=3.0)), strict=True):
        save_plan(path, plan)

    def run(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["isoplan", "diff", *words])
        with pytest.raises(SystemExit) as left:
            isoplan.cli.main()
        assert not left.value.code
        return capsys.readouterr().out

    assert "peak_lr" in run(*map(str, files))
    (only,) = json.loads(run(*map(str, files), "--json"))["differences"]
    assert only["ratio"] == pytest.approx(3.0)
    assert "the same content" in run(str(files[0]), str(files[0]))
    assert json.loads(run(str(files[0]), str(files[0]), "--json"))["differences"] == []
