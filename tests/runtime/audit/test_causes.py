"""Causes of a miss: each is named from its own signs, harm explains only a higher loss, what is certain comes first."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from runtime.audit.causes import ForecastMiss, causes, clipped_share, spike_count
from specs.plan import Forecast, Plan
from specs.record import Check, RunAudit, StepLine
from specs.table_fit import TableSource
from tests.support import examples, samples

TARGET = examples.make_plan("target")


def lines(grad_norm: float = 0.5, losses: dict[int, float] | None = None) -> tuple[StepLine, ...]:
    """A training curve that scatters by a tenth, as small batches do."""
    run, dice = TARGET.runs[-1].run, Random(0)
    return tuple(
        StepLine(
            step=step,
            tokens=step * run.batch_tokens,
            loss=(losses or {}).get(step, 2.0 * (1 + dice.gauss(0, 0.1))),
            grad_norm=grad_norm,
            lr=run.optim.lr(step),
        )
        for step in range(1, run.optim.steps + 1)
    )


QUIET = lines()


def miss(plan: Plan = TARGET, off: float = 0.08, **changes: Any) -> ForecastMiss:
    """A target that is off by this much from start to end, but for the noise of its evaluations."""
    assert isinstance(plan.forecast, Forecast)
    run = examples.make_audit(plan, off=off).runs[-1]
    plain = ForecastMiss(plan=plan, forecast=plan.forecast, run=run, metrics=QUIET, clipped_pilots=(0.1, 0.3))
    return replace(plain, **changes)


def bend(run: RunAudit, factors: Any) -> RunAudit:
    """The run with every point of its curve times a function of its share of the steps."""
    last = run.curve_step[-1]
    pairs = zip(run.curve_step, run.curve_loss, strict=True)
    curve = tuple(loss * factors(step / last) for step, loss in pairs)
    return run.model_copy(update={"curve_loss": curve, "loss": curve[-1]})


def sound(plan: Plan) -> Plan:
    """The plan with nothing weak in its evidence: all minima bracketed, no form tested."""
    fit = plan.fit
    assert fit is not None
    profiles = tuple(profile.model_copy(update={"bracketed": True}) for profile in fit.profiles)
    form = fit.forms[0].model_copy(update={"held_out_error": None})
    return samples.sealed(plan, fit=fit.model_copy(update={"profiles": profiles, "forms": (form,)}))


SOUND = sound(TARGET)


def test_a_curve_of_the_right_shape_is_off_in_level() -> None:
    (cause,) = causes(miss(SOUND))
    assert cause.startswith("law: the curve has the forecast's shape but is +7.")
    assert cause.endswith("off from early on: the law's level is wrong")


def test_a_better_loss_than_forecast_is_a_level_too() -> None:
    (cause,) = causes(miss(SOUND, off=-0.08))
    assert cause.startswith("law: the curve has the forecast's shape but is -8.")


def test_a_forecast_on_a_table_rests_on_a_statement() -> None:
    table = TableSource(
        path="runs.csv",
        sha256="0" * 64,
        columns={},
        size_kind="flop_per_token",
        flop_per_size_token=1.0,
        loss_unit="nats/token",
        bytes_per_token=None,
        notes=(),
    )
    _, stated = causes(miss(samples.sealed(SOUND, table=table)))
    assert stated.startswith(
        "data: text, tokenizer and held-out set of the runs in runs.csv are this budget's by its"
    )


def test_a_curve_that_is_right_until_the_drops() -> None:
    run = bend(miss(SOUND, off=0.008).run, lambda share: 1.09 if share > 0.8 else 1.0)
    (cause,) = causes(miss(SOUND, run=run))
    assert "after it by +9." in cause
    assert cause.endswith("the gain from the drops differs from the pilots'")


def test_a_curve_that_drifts_away() -> None:
    run = bend(miss(SOUND, off=0.008).run, lambda share: 1 + 0.1 * share)
    (cause,) = causes(miss(SOUND, run=run))
    assert cause.startswith("law: the deviation grows from +")
    assert cause.endswith("before the first drop of the learning rate: the law's slope is wrong")


def test_a_short_curve_has_no_shape() -> None:
    whole = miss(SOUND)
    run = whole.run.model_copy(
        update={"curve_step": whole.run.curve_step[-6:], "curve_loss": whole.run.curve_loss[-6:]}
    )
    assert causes(replace(whole, run=run)) == ()
    assert causes(replace(whole, forecast=whole.forecast.model_copy(update={"curve": None}))) == ()


@pytest.mark.parametrize(("epochs", "place"), [(1.5, -1), (6.0, 0)])
def test_repeated_data_is_the_first_suspect_from_four_epochs(epochs: float, place: int) -> None:
    plan = samples.sealed(SOUND, unique_tokens=round(SOUND.runs[-1].run.tokens / epochs))
    assert causes(miss(plan))[place].startswith(f"data: {epochs:.2f} epochs over")
    assert not any("epochs" in cause for cause in causes(miss(plan, off=-0.08))), "repeats do not help"


def test_clipping_counts_against_the_pilots() -> None:
    """Sound runs of tiny models clip anything from 6 to 88 % of their steps, so only the pilots tell what is usual."""
    metrics = lines(grad_norm=2.0)
    found = causes(miss(SOUND, metrics=metrics))
    assert (
        "learning rate: 100% of the gradients after warmup were clipped, in the pilots at most 30%" in found
    )
    assert not any("clipped" in one for one in causes(miss(SOUND, metrics=metrics, clipped_pilots=(1.0,))))
    assert not any("clipped" in one for one in causes(miss(SOUND, metrics=metrics, clipped_pilots=())))
    assert not any("clipped" in one for one in causes(miss(SOUND, off=-0.08, metrics=metrics)))


def test_spikes() -> None:
    """Odd documents make single steps high; an unstable run stays high."""
    odd = dict.fromkeys(range(500, 6000, 500), 7.0)
    assert not any("loss spike" in one for one in causes(miss(SOUND, metrics=lines(losses=odd))))
    high = dict.fromkeys([*range(3000, 3060), *range(4000, 4060)], 4.0)
    assert "learning rate: 2 loss spikes after warmup, above 1.25 times the loss before the spike" in causes(
        miss(SOUND, metrics=lines(losses=high))
    )


@pytest.mark.parametrize(
    ("losses", "count"),
    [
        ([1.0] * 99, 0),
        ([1.0] * 300, 0),
        ([1.0] * 150 + [2.0] * 20 + [1.0] * 150, 1),
        (([1.0] * 150 + [2.0] * 20) * 3, 3),
        ([2.0 - 0.005 * i for i in range(200)], 0),
    ],
)
def test_spikes_are_counted_once_each(losses: list[float], count: int) -> None:
    assert spike_count(losses) == count


def test_the_clipped_share_leaves_the_warm_up_out() -> None:
    optim = samples.optim()
    steps = [
        StepLine(step=s, tokens=s, loss=1.0, grad_norm=2.0 if s <= 24 else 0.5, lr=0.1) for s in range(1, 101)
    ]
    assert clipped_share(steps, optim) == pytest.approx(19 / 95)
    assert clipped_share([], optim) == 0.0


def test_a_rate_check_that_failed() -> None:
    fit = SOUND.fit
    assert fit is not None
    assert fit.rate_check is not None
    check = fit.rate_check.model_copy(
        update={
            "bracketed": False,
            "near_optimal": False,
            "best_multiple": 2.0,
            "reason": "the highest rate tried",
        }
    )
    found = causes(miss(samples.sealed(SOUND, fit=fit.model_copy(update={"rate_check": check}))))
    assert any("did not bracket the best rate: x 2 is the highest rate tried" in cause for cause in found)
    assert any("not near-optimal (x 2 is best)" in cause for cause in found)


def test_weak_evidence_comes_after_the_curves_own_shape() -> None:
    found = causes(miss())
    assert "the law's level is wrong" in found[0]
    assert found[1] == "law: 1 of 3 isoFLOP minima are not bracketed"
    assert found[2].startswith(
        "law: the form with the largest weight, coupled, missed held-out budgets by 1.39% on average, and"
    )
    assert found[3].startswith("law: the form tied was closest (+")


def test_what_the_records_prove_comes_first() -> None:
    checks = (
        Check(name="steps", ok=True, detail="all"),
        Check(name="schedule", ok=False, detail="step 7 ran at 0.1"),
        Check(name="end", ok=False, detail="the end says 1"),
    )
    found = causes(miss(run=miss().run.model_copy(update={"checks": checks})))
    assert found[:2] == ("schedule: step 7 ran at 0.1", "record: end, the end says 1")


def test_throughput_and_plain_restarts_come_last_as_no_explanation() -> None:
    run = miss().run.model_copy(update={"tokens_per_s": 1e3, "restarts": 2})
    found = causes(miss(run=run))
    assert (
        found[-2]
        == "interruptions: restarted 2 times; resuming is bitwise identical, so this does not explain the loss"
    )
    assert found[-1].startswith("throughput: 1e+03 tokens/s, planned ")
    other = examples.ENVIRONMENT.model_copy(update={"host": "elsewhere"})
    run = run.model_copy(update={"environments": (examples.ENVIRONMENT, other)})
    assert any(
        "in 2 different environments, between which floating-point rounding may differ" in one
        for one in causes(miss(run=run))
    )
    two = (samples.layout(dp=2), samples.layout(dp=1))
    run = run.model_copy(update={"layouts": two})
    assert any(
        "in 2 different environments and 2 different layouts, between which" in one
        for one in causes(miss(run=run))
    )
