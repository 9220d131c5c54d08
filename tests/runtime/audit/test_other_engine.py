"""A run that another engine trained is judged by its curve, and what nothing vouches for is said first."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from specs.document.files import load
from specs.plan import Forecast, NoForecast
from specs.plan_file import save_plan
from specs.record import Audit
from tests.support import examples, samples
from tests.support.commands import Done, call

PLAN = examples.make_plan("target")
RUN = PLAN.runs[0].run
BATCH = 17 * RUN.batch_tokens
"""Tokens of a step of the other engine."""
Row = dict[str, Any]


def log(off: float = 0.0, until: float = 1.0, every: int = 5, noise: float = 0.002) -> list[Row]:
    """An exported history: a training loss in each row, a held-out loss in few, along the plan's sealed curve."""
    assert isinstance(PLAN.forecast, Forecast)
    assert PLAN.forecast.curve is not None
    dice, steps = Random(0), math.floor(RUN.tokens / BATCH)
    rows: list[Row] = []
    for step in range(1, math.floor(until * steps) + 1):
        ours = max(1, min(RUN.optim.steps, round(step * BATCH / RUN.batch_tokens)))
        band = PLAN.forecast.curve.at(max(ours, PLAN.forecast.curve.step[0]))
        assert band is not None
        held_out = band.median * (1 + off) * math.exp(dice.gauss(0, noise))
        evaluated = step % every == 0 or step == steps
        rows.append(
            {
                "_step": step,
                "train/loss": 1.01 * held_out * math.exp(dice.gauss(0, 0.03)),
                "eval/loss": held_out if evaluated else "",
                "tokens": round(step * BATCH),
            }
        )
    return rows


def write_csv(path: Path, rows: Sequence[Row], *without: str) -> Path:
    names = [name for name in rows[0] if name not in without]
    lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the sealed plan."""
    save_plan(tmp_path / "plan.target.yaml", PLAN)
    return tmp_path


def audit(place: Path, rows: Sequence[Row], *words: str, without: Sequence[str] = ()) -> Done:
    write_csv(place / "history.csv", rows, *without)
    return call("audit", "plan.target.yaml", "--actual", "history.csv", *words, folder=place)


def written(place: Path) -> Audit:
    return load(place / "audit.actual.json", Audit)


@pytest.mark.parametrize(
    ("off", "code", "verdict"), [(0.0, 0, "inside"), (0.06, 1, "outside"), (-0.06, 1, "outside")]
)
def test_the_verdict_is_by_the_numbers(off: float, code: int, verdict: str, place: Path) -> None:
    done = audit(place, log(off))
    assert done.returncode == code, done.stderr
    found = written(place)
    assert (found.verdict, found.verified, found.runs[0].state) == (verdict, False, "unverified")
    assert found.curve_share_inside is not None
    assert found.curve_share_inside == 1.0 if off == 0 else found.curve_share_inside < 0.5
    assert "not verified" in done.stdout.splitlines()[0]
    assert found.unverified[0] in done.stdout
    assert done.stdout.index("not verified") < done.stdout.index(verdict)
    assert list(place.glob("**/ledger*")) == []


def test_the_document_and_the_page_say_first_what_is_not_verified(place: Path) -> None:
    done = audit(place, log(0.06), "--json")
    plain = json.loads(done.stdout)
    assert list(plain)[:3] == ["kind", "verified", "unverified"]
    stored = written(place).plain()
    assert {name: plain[name] for name in stored if name != "runs"} == {
        name: value for name, value in stored.items() if name != "runs"
    }
    assert (plain["path"], plain["report"]) == ("audit.actual.json", "audit.actual.html")
    topics = [one.partition(":")[0] for one in plain["unverified"]]
    assert topics == ["the forecast came first", "weights", "data", "schedule", "batch", "evaluation"]
    assert (plain["runs"][0]["seconds"], plain["runs"][0]["tokens_per_s"]) == (None, None)
    assert plain["actual"]["columns"]["loss"] == "eval/loss"
    page = (place / "audit.actual.html").read_text()
    assert "The forecast missed, unverified" in page
    assert page.index("Not verified: another engine trained this run.") < page.index("Sealed forecast: ")
    assert "ealed before" not in page
    assert page.index("the forecast came first: no record") < page.index("outside: final held-out loss")
    assert plain["actual"]["sha256"] in page


def test_causes_that_need_records_of_our_engine_are_left_out(place: Path) -> None:
    audit(place, log(0.06))
    found = written(place).causes
    assert found[0].endswith(
        "the law's level is wrong, or the run's data, batch or schedule were not the plan's"
    )
    assert {one.partition(":")[0] for one in found} == {"law"}
    repeated = samples.sealed(PLAN, unique_tokens=RUN.tokens // 6)
    save_plan(place / "plan.target.yaml", repeated)
    audit(place, log(0.06))
    assert not any("epochs" in one for one in written(place).causes)


def test_neither_audit_takes_the_place_of_the_other(place: Path) -> None:
    (place / "audit.target.json").write_text("our own\n")
    (place / "audit.html").write_text("our own\n")
    audit(place, log())
    assert {path.read_text() for path in (place / "audit.target.json", place / "audit.html")} == {"our own\n"}


def test_a_run_that_is_not_finished_has_no_verdict_and_says_how_far_it_is(place: Path) -> None:
    done = audit(place, log(until=0.62))
    found = written(place)
    assert (done.returncode, found.verdict, found.runs[0].state) == (3, "cannot tell", "unfinished")
    assert found.runs[0].loss is None
    assert "the run is not finished, 61% of its tokens are done: the curve ends at " in found.reason
    assert f"planned ({RUN.tokens:,})" in found.reason
    assert found.curve_share_inside == 1.0, "its curve so far is compared"


def test_an_end_within_a_hundredth_is_the_end_and_is_said(place: Path) -> None:
    done = audit(place, log(until=0.9945, every=1))
    assert done.returncode == 0
    assert ", -0.96%" in written(place).reason
    assert "; up to 1% is taken for the end" in written(place).reason


def test_a_longer_run_is_another_run(place: Path) -> None:
    rows = log()
    rows[-1]["tokens"] = round(1.2 * RUN.tokens)
    done = audit(place, rows)
    assert (done.returncode, written(place).runs[0].loss) == (3, None)
    assert "+20.00%: it is of a longer run" in written(place).reason
    rows[-1]["tokens"] = 30 * RUN.tokens
    audit(place, rows)
    assert ", 30 times as many: it is of a longer run" in written(place).reason


def test_a_final_loss_alone_is_no_curve(place: Path) -> None:
    done = audit(place, [row | {"eval/loss": ""} for row in log()[:-1]] + log()[-1:])
    assert done.returncode == 3
    assert "the table has one point, and no curve" in written(place).reason


def test_steps_alone_are_taken_for_the_plans_batch_and_that_is_said(place: Path) -> None:
    rows = [row | {"_step": round(row["tokens"] / RUN.batch_tokens)} for row in log()]
    done = audit(place, rows, without=["tokens"])
    assert done.returncode == 0, done.stderr
    assert f"batch of {RUN.batch_tokens:,} tokens" in done.stdout
    done = audit(place, log(), without=["tokens"])
    assert done.returncode == 3, "of a larger batch, whose steps are fewer"


def test_losses_per_byte_are_converted_by_the_plans_tokens(place: Path) -> None:
    save_plan(place / "plan.target.yaml", samples.sealed(PLAN, bytes_per_token=4.0))
    rows = [row | {"eval/loss": row["eval/loss"] and row["eval/loss"] / math.log(2) / 4} for row in log()]
    assert audit(place, rows, "--loss-unit", "bits/byte").returncode == 0
    assert written(place).actual is not None
    assert audit(place, rows, "--loss-unit", "bits/byte", "--bytes-per-token", "3.6").returncode == 1


def test_a_loss_that_does_not_say_what_it_is_of_is_taken_and_said(place: Path) -> None:
    rows = [{"tokens": row["tokens"], "loss": row["eval/loss"]} for row in log()]
    assert audit(place, rows).returncode == 0
    assert written(place).unverified[-1] == "loss: the column 'loss' does not say that it is of held-out text"


def test_without_a_forecast_there_is_no_verdict(place: Path) -> None:
    plan = samples.sealed(PLAN, forecast=NoForecast(reason="nothing is known"))
    save_plan(place / "plan.target.yaml", plan)
    assert audit(place, log()).returncode == 3
    assert written(place).reason.startswith("the plan has no forecast: nothing is known")


def test_of_a_curve_of_many_points_as_many_are_kept_as_a_figure_shows(place: Path) -> None:
    tokens = [step * RUN.batch_tokens for step in range(RUN.optim.steps % 4 or 4, RUN.optim.steps + 1, 4)]
    rows = [{"tokens": at, "eval_loss": 1.5 + 1e3 / at} for at in tokens]
    assert audit(place, rows).returncode == 0
    found = written(place)
    [run], actual = found.runs, found.actual
    assert actual is not None
    assert (len(run.curve_step), run.curve_step[-1]) == (1000, RUN.optim.steps)
    assert actual.notes[-1] == f"1,000 of {len(rows):,} points are kept, the last among them"
    assert {b - a for a, b in zip(run.curve_step, run.curve_step[1:], strict=False)} == {4, 8}


def test_without_a_sealed_curve_the_band_of_the_final_loss_decides(place: Path) -> None:
    assert isinstance(PLAN.forecast, Forecast)
    plan = samples.sealed(PLAN, forecast=PLAN.forecast.model_copy(update={"curve": None}))
    save_plan(place / "plan.target.yaml", plan)
    assert audit(place, log()).returncode == 0
    assert written(place).curve_share_inside is None
    assert audit(place, log(0.06)).returncode == 1


def two_runs() -> list[Row]:
    return [{"run": name, **row} for name in ("a", "b") for row in log()]


REFUSALS: dict[str, tuple[Callable[[], list[Row]], list[str], list[str], str]] = {
    "training loss": (
        log,
        [],
        ["eval/loss"],
        "history.csv:1:1: 'train/loss' is a training loss, and the forecast is of the loss on held-out text; give the",
    ),
    "training loss, named": (log, ["--column", "loss=train/loss"], [], "'train/loss' is a training loss"),
    "two runs": (
        two_runs,
        [],
        [],
        "the table has curves of 2 runs (a, b), and the plan is of one; keep the rows",
    ),
    "no such column": (log, ["--column", "loss=val"], [], "the table has no column 'val' for loss; write"),
    "no equals sign": (log, ["--column", "loss"], [], "--column loss: write quantity=column, for example"),
    "no unit": (
        log,
        ["--loss-unit", "nat"],
        [],
        "--loss-unit nat: write nats/token, bits/token or bits/byte",
    ),
}


@pytest.mark.parametrize(("rows", "words", "without", "says"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_cannot_be_judged_is_refused_in_one_line(
    rows: Callable[[], list[Row]], words: list[str], without: list[str], says: str, place: Path
) -> None:
    done = audit(place, rows(), *words, without=without)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert says in done.stderr
    assert sorted(path.name for path in place.iterdir()) == [
        "evidence.jsonl",
        "history.csv",
        "plan.target.yaml",
    ]


def test_a_plan_of_pilots_and_a_broken_seal_are_refused(place: Path) -> None:
    save_plan(place / "plan.pilots.yaml", examples.make_plan("pilots"))
    write_csv(place / "history.csv", log())
    done = call("audit", "plan.pilots.yaml", "--actual", "history.csv", folder=place)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert (
        "plan.pilots.yaml:3:8: this plan has 17 pilot runs, and a curve is of one run; give the"
        in done.stderr
    )
    sealed = (place / "plan.target.yaml").read_text()
    (place / "plan.target.yaml").write_text(
        sealed.replace("unique_tokens: 122000000", "unique_tokens: 122000001")
    )
    done = audit(place, log())
    assert (done.returncode, "the plan was changed after it was sealed" in done.stderr) == (2, True)


def test_options_of_a_curve_need_a_curve(place: Path) -> None:
    done = call("audit", "plan.target.yaml", "--loss-unit", "nats/token", folder=place)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "are about a curve; add --actual CURVE" in done.stderr


def test_between_two_steps_of_the_forecast_the_band_is_a_straight_line_of_logarithms() -> None:
    assert isinstance(PLAN.forecast, Forecast)
    curve = PLAN.forecast.curve
    assert curve is not None
    left, right = curve.step[3], curve.step[4]
    middle = round(math.sqrt(left * right))
    found = curve.at(middle)
    assert found is not None
    assert found.median == pytest.approx(math.sqrt(curve.median[3] * curve.median[4]), rel=1e-4)
    assert curve.low_95[4] < found.low_95 < curve.low_95[3]
    own = curve.at(left)
    assert own is not None
    assert (own.median, own.high_95) == (curve.median[3], curve.high_95[3])
    assert curve.at(curve.step[0] - 1) is None
    assert curve.at(curve.step[-1] + 1) is None
