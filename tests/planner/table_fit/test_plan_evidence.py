"""A plan on a table of runs: the same law as `isoplan fit` gives, kept in the plan's folder, and only then a loss."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from planner.cli import write_plan
from planner.design.allocation import cost_of_sizes
from planner.explain.answer import explain
from planner.plan import make_plan
from planner.scaling.laws import STANDARD, Array, optimum
from planner.scaling.laws import value as law_value
from planner.table_fit.analysis import analyse
from planner.table_fit.plan_evidence import joined, table_evidence
from planner.table_fit.targets import ComputeTarget, RunTarget
from runtime.audit.verdict import audit_plan
from specs.document.files import DocumentError, from_catalog
from specs.evidence import EvidencePoint
from specs.law import Family
from specs.plan import Forecast, NoForecast, Plan
from specs.plan_file import load_plan
from specs.report import render
from specs.run_table.read import read_table
from specs.run_table.table import RunTable
from tests.support.needs import shared
from tests.support.paths import SHARED
from tests.support.planning import inputs_of
from tests.support.run_tables import run_table

TRUTH = (1.7, 400.0, 410.0, 0.34, 0.30)
"""E, A, B, alpha, beta, of M in 6 FLOP per token."""
BUDGET = """\
kind: budget
name: on-a-table
compute: 1e21 FLOP
evidence: {kind: runs, table: runs.csv, prior: deepseek, same_text: true}
family: llama
cluster: h100-64
data:
  text: {source: declared, describe: our-web-mix, unique: 1T tokens}
  tokenizer: {kind: bbpe, vocab: 32000}
"""
UNTOLD = BUDGET.replace(", same_text: true", "")
FAMILY, VOCAB = from_catalog(Family, "llama", None), 32_000


def columns(noise: float = 0.001) -> tuple[Array, Array, Array]:
    """M, tokens and loss of isoFLOP profiles around the true best sizes."""
    generator = np.random.Generator(np.random.PCG64(7))
    rows = [
        (float(optimum(STANDARD, TRUTH, flop, 6.0)[0]) * factor, flop)
        for flop in (1e18, 4e18, 1.6e19, 6.4e19, 2.6e20)
        for factor in np.geomspace(0.25, 4, 7)
    ]
    size, flop = np.array(rows).T
    tokens = flop / 6 / size
    loss = law_value(STANDARD, TRUTH, size, tokens) * np.exp(noise * generator.standard_normal(len(size)))
    return 6 * size, tokens, loss


def write_table(path: Path, size: Array, tokens: Array, loss: Array, head: str = "flop_per_token") -> None:
    rows = zip(size.tolist(), tokens.tolist(), loss.tolist(), strict=True)
    lines = (f"{m!r},{d!r},{nats!r}\n" for m, d, nats in rows)
    path.write_text(f"{head},tokens,loss_nats\n{''.join(lines)}")


def folder_of(place: Path, text: str = BUDGET) -> Path:
    """A folder with the budget and its table."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "b.yaml").write_text(text)
    write_table(place / "runs.csv", *columns())
    return place


def planned(place: Path, text: str = BUDGET) -> Plan:
    folder_of(place, text)
    return make_plan(inputs_of(place / "b.yaml", place / "out", place / "data"))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(tmp_path_factory.mktemp("plan"))


def band(plan: Plan) -> Forecast:
    assert isinstance(plan.forecast, Forecast)
    return plan.forecast


# --- one law ---


@pytest.mark.slow
def test_a_plan_forecasts_what_isoplan_fit_says_of_its_run(plan: Plan, tmp_path: Path) -> None:
    """The same law to the last digit: bands, constants, weights; and the law that the table was made from."""
    table = read_table(folder_of(tmp_path) / "runs.csv")
    run = plan.runs[0].run
    fit = analyse(table, [RunTarget(float(run.model.flop_per_token), float(run.tokens)), ComputeTarget(1e21)])
    forecast, best = fit.forecasts
    assert plan.fit is not None
    assert band(plan).loss == forecast.loss
    assert [(one.form, one.weight, one.constants) for one in plan.fit.forms] == [
        (one.form, one.weight, one.constants) for one in fit.members
    ]
    assert plan.fit.held_out_error == fit.held_out_error
    assert best.split is not None
    assert plan.fit.optimum is not None
    assert plan.fit.optimum.flop_per_token == best.split.size
    assert run.model.flop_per_token == pytest.approx(best.size, rel=0.06)  # shapes come in whole layers
    assert band(plan).loss.inside_95(
        float(law_value(STANDARD, TRUTH, run.model.flop_per_token / 6, run.tokens))
    )
    true_size = 6 * float(optimum(STANDARD, TRUTH, 1e21, 6.0)[0])
    assert plan.fit.optimum.flop_per_token.low < true_size < plan.fit.optimum.flop_per_token.high


def test_the_table_is_named_with_its_digest_and_its_runs_are_kept(plan: Plan, tmp_path: Path) -> None:
    table = read_table(folder_of(tmp_path) / "runs.csv")
    assert plan.table is not None
    assert (plan.table.path, plan.table.sha256) == ("runs.csv", table.sha256)
    assert plan.fit is not None
    assert plan.fit.size_kind == "flop_per_token"
    assert [(point.run, point.line) for point in plan.fit.points] == [
        (f"line {line}", line) for line in range(2, 37)
    ]
    assert band(plan).curve is None
    assert plan.phase == "target"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["params", "block_params"])
def test_a_table_in_parameters_gives_as_good_a_shape(kind: str, plan: Plan, tmp_path: Path) -> None:
    """The same runs with their sizes counted with embeddings or without: the shape costs a thousandth of loss."""
    cost = cost_of_sizes(FAMILY, VOCAB, kind)  # type: ignore[arg-type]
    assert cost is not None
    sizes = np.geomspace(1e6, 1e12, 100_000)
    flop_per_token, tokens, loss = columns()
    counted = np.exp(np.interp(np.log(flop_per_token), np.log(cost(sizes)), np.log(sizes)))
    folder_of(tmp_path)
    head = {"params": "params", "block_params": "non_embedding_params"}[kind]
    write_table(tmp_path / "runs.csv", counted, tokens, loss, head)
    found = make_plan(inputs_of(tmp_path / "b.yaml", tmp_path / "out", tmp_path / "data"))
    assert found.fit is not None
    assert found.fit.size_kind == kind
    run, least = found.runs[0].run, optimum(STANDARD, TRUTH, 1e21, 6.0)
    reached = float(law_value(STANDARD, TRUTH, run.model.flop_per_token / 6, run.tokens))
    assert reached == pytest.approx(
        float(least[2]), rel=0.001
    )  # a power law of N is none of M: sizes differ by 10 %
    assert band(found).loss.median == pytest.approx(band(plan).loss.median, rel=0.005)


def test_a_size_costs_what_the_familys_shapes_cost() -> None:
    """With 32,000 words a model of 30M parameters has most of them in embeddings, which cost nothing per token."""
    cost = cost_of_sizes(FAMILY, VOCAB, "params")
    assert cost is not None
    small, large = cost(np.array([3e7, 6e10])) / np.array([3e7, 6e10])
    assert small < 3
    assert large == pytest.approx(6.3, abs=0.2)


# --- only what is stated ---


def test_without_the_statement_there_is_a_shape_and_no_forecast(plan: Plan, tmp_path: Path) -> None:
    found = planned(tmp_path, UNTOLD)
    assert found.runs[0].run == plan.runs[0].run
    assert isinstance(found.forecast, NoForecast)
    median = f"{band(plan).loss.median:.4f}"
    assert f"on its own text its law predicts {median} nats per token" in found.forecast.reason
    assert "write evidence.same_text: true" in found.forecast.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ("loss: 2.2 nats/token", lambda one: abs(band(one).loss.median - 2.2) < 0.01),
        ("device_hours: 500 GPU-hours", lambda one: abs(one.runs[0].cost.device_hours / 500 - 1) < 0.01),
        (
            "compute: 1e21 FLOP\nobjective: {kind: size, params: 1B params}",
            lambda one: abs(one.runs[0].run.model.params / 1e9 - 1) < 0.1,
        ),
        (
            "compute: 1e21 FLOP\nobjective: {kind: inference, served: 10T tokens}",
            lambda one: one.runs[0].run.model.params < 1e9,
        ),
    ],
    ids=["loss", "device-hours", "size", "inference"],
)
def test_currencies_and_objectives_work_on_a_table(change: str, holds: object, tmp_path: Path) -> None:
    found = planned(tmp_path, BUDGET.replace("compute: 1e21 FLOP", change))
    assert callable(holds)
    assert holds(found), found.runs[0].title


def test_what_weakens_the_table_is_a_flag_of_the_plan(tmp_path: Path) -> None:
    """A diverged run by its line, few budgets; a law that leaves the split open."""
    folder_of(tmp_path)
    size, tokens, loss = columns()
    loss[3] = 11.0
    few = slice(0, 21)
    write_table(tmp_path / "runs.csv", size[few], tokens[few], loss[few])
    found = make_plan(inputs_of(tmp_path / "b.yaml", tmp_path / "out", tmp_path / "data"))
    assert found.fit is not None
    diverged, budgets = found.fit.flags
    assert diverged.startswith("the run of line 5 is left out of all fits: its loss 11.0000 nats/token is +")
    assert budgets.startswith("only 3 budgets: ")
    assert found.fit.evidence.runs == len(found.fit.points) == 20


@pytest.mark.slow
def test_learning_rates_of_the_table_stand_beside_the_priors(tmp_path: Path) -> None:
    """Each run at five rates around a best of 0.02 (M D)^-0.1, batches of 1M tokens: the plan follows the prior."""
    folder_of(tmp_path)
    rows = []
    for size, tokens, loss in zip(*columns(), strict=True):
        for multiple in (0.5, 0.7, 1.0, 1.4, 2.0):
            lr, nats = 0.02 * (size * tokens) ** -0.1 * multiple, loss * (1 + 0.005 * math.log(multiple) ** 2)
            rows.append(f"{size},{tokens},{nats},{lr},1000000")
    head = "flop_per_token,tokens,loss_nats,lr,batch_tokens"
    (tmp_path / "runs.csv").write_text("\n".join([head, *rows]) + "\n")
    found = make_plan(inputs_of(tmp_path / "b.yaml", tmp_path / "out", tmp_path / "data"))
    own = found.hypers[-1]
    assert (own.law, own.used) == ("table", False)
    assert own.peak_lr == pytest.approx(0.02 * 1e21**-0.1, rel=0.02)
    assert any("the table's runs have their best learning rate at" in note for note in found.notes)
    assert found.hypers[0].law == "deepseek"


# --- kept beside the plan ---


@pytest.mark.slow
def test_plans_of_one_table_have_the_same_bytes_wherever_they_are_made(tmp_path: Path) -> None:
    found = []
    for place in ("here", "there"):
        write_plan(folder_of(tmp_path / place) / "b.yaml", tmp_path / place / "out")
        files = sorted((tmp_path / place / "out").iterdir())
        found.append({path.name: path.read_bytes() for path in files})
    assert found[0] == found[1]
    assert set(found[0]) == {"plan.target.yaml", "evidence.jsonl", "report.html"}


@pytest.mark.slow
def test_a_table_that_is_gone_or_edited_changes_nothing_of_its_plan(tmp_path: Path) -> None:
    folder_of(tmp_path)
    path, written = write_plan(tmp_path / "b.yaml", tmp_path / "out")
    before = (path.read_bytes(), (tmp_path / "out" / "report.html").read_text())
    verdict, page = audit_plan(written, path, tmp_path), (tmp_path / "out" / "audit.html").read_text()
    (tmp_path / "runs.csv").write_text("params,tokens,loss\n")
    read = load_plan(path)
    assert read == written
    assert render(read, None) == before[1]
    assert explain(read, "fit.points.3") == explain(written, "fit.points.3")
    (tmp_path / "runs.csv").unlink()
    assert audit_plan(load_plan(path), path, tmp_path) == verdict
    assert (tmp_path / "out" / "audit.html").read_text() == page
    assert path.read_bytes() == before[0]


def test_a_plan_explains_where_its_runs_are_from(plan: Plan) -> None:
    assert plan.table is not None
    [line] = explain(plan, "fit.points.3").evidence
    assert line == f"line 5, line 5 of runs.csv, SHA-256 {plan.table.sha256}"
    assert "evidence.table" in explain(plan, "table.sha256").decided_by
    assert "35 runs" in explain(plan, "loss").evidence[0]


# --- joined with pilots ---


def pilots(table: RunTable, every: int = 1) -> tuple[EvidencePoint, ...]:
    """Runs of a table as if they were the ledger's."""
    return tuple(point.model_copy(update={"line": None}) for point in table_evidence(table)[::every])


def in_m(size: Array, tokens: Array, loss: Array) -> RunTable:
    return run_table(size, tokens, loss, size_kind="flop_per_token", cost_per=1.0)


def rows(table: tuple[Array, Array, Array], chosen: Sequence[int] | slice) -> RunTable:
    return in_m(*(column[chosen] for column in table))


def test_the_tables_runs_join_but_those_of_the_target_and_the_pilots_themselves() -> None:
    """And of one law nothing is said."""
    all_runs = columns()
    own = pilots(rows(all_runs, slice(0, 21)))
    others, flags = joined(own, rows(all_runs, slice(14, 35)), below_flop=2e20)
    assert [point.size for point in others] == all_runs[0][21:28].tolist()
    assert flags == (
        "7 of the table's 21 runs join the 21 pilots: 7 are of the target's compute or more; 7 are a pilot of this "
        "budget",
    )


def test_a_table_that_lies_off_the_pilots_law_is_named() -> None:
    size, tokens, loss = columns()
    own = pilots(in_m(size[:21], tokens[:21], loss[:21]))
    others, flags = joined(own, in_m(size[21:28], tokens[21:28], loss[21:28] * 1.03), math.inf)
    assert len(others) == 7
    assert flags[0] == "7 of the table's 7 runs join the 21 pilots"
    assert flags[1].startswith("the table's runs lie +")
    assert "leave evidence.also out" in flags[1]


def test_sizes_in_parameters_cannot_join(tmp_path: Path) -> None:
    """Unless the table says M as well."""
    size, tokens, loss = columns()
    assert run_table(size / 6, tokens, loss).in_flop_per_token() is None
    both = run_table(size / 6, tokens, loss, other_sizes={"flop_per_token": size}).in_flop_per_token()
    assert both is not None
    assert both.largest_flop == pytest.approx(float((size * tokens).max()))
    with pytest.raises(DocumentError):
        read_table(tmp_path / "absent.csv")


# --- public data ---


@pytest.mark.slow
def test_a_public_table_goes_to_a_plan_in_one_step(tmp_path: Path) -> None:
    """Kempner's 91 runs on FineWeb: the law of `isoplan fit`, and a shape near its best."""
    file = shared(SHARED / "data" / "kempner" / "fineweb.csv")
    text = BUDGET.replace("table: runs.csv", f"table: {file}")
    found = planned(tmp_path, text)
    run, table = found.runs[0].run, read_table(file)
    fit = analyse(table, [RunTarget(float(run.model.params), float(run.tokens))])
    assert band(found).loss == fit.forecasts[0].loss
    assert found.fit is not None
    assert found.fit.optimum is not None
    best = found.fit.optimum.flop_per_token
    assert best.low < run.model.flop_per_token < best.high
    assert found.fit.evidence.runs == 91
