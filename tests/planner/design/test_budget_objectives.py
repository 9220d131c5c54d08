"""Budgets people write: every currency converts, every objective is met, every shipped budget plans, refusals help.

A refusal is one line on standard error and exit code 2: the budget's own line, what is wrong, and the nearest thing
that would work. What is proposed is tried: written into the budget it makes a plan.
"""

import math
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import isoplan.cli
from bench.data_limits import EPOCH, inference_optimum
from planner.cli import write_plan
from planner.design.allocation import LossSurface, published_loss_surface
from planner.plan import make_plan
from specs.budget import Budget, Pilots, Runs
from specs.data import DeclaredText
from specs.document.files import DocumentError, from_catalog, load
from specs.document.write import append_line
from specs.law import PublishedLaw
from specs.plan import Plan, PlannedRun
from specs.record import LedgerRecord
from tests.support.corpora import write_corpus
from tests.support.paths import SPECS
from tests.support.planning import inputs_of

FRONTIER = (SPECS / "budget_1e24.yaml").read_text()
SHIPPED = sorted(SPECS.glob("*.yaml"))
LOSS = "{kind: published, law: deepseek, loss: epoch-chinchilla}"
PARAMETRIC = "{kind: published, law: epoch-chinchilla, hyper: deepseek}"


def budget(*changes: tuple[str, str]) -> str:
    """The frontier budget with these replacements."""
    text = FRONTIER
    for find, write in changes:
        assert find in text, find
        text = text.replace(find, write)
    return text


def spend(currency: str) -> tuple[str, str]:
    """The replacement of the budget's compute."""
    return "compute: 1e24 FLOP", currency


def rest_on(evidence: str) -> tuple[str, str]:
    """The replacement of the budget's evidence."""
    return "{kind: published, law: deepseek}", evidence


def planned(folder: Path, text: str) -> Plan:
    """The plan of a budget."""
    path = folder / "b.yaml"
    path.write_text(text)
    return make_plan(inputs_of(path, folder / "out", folder / "data"))


def target(folder: Path, text: str) -> PlannedRun:
    """The target run of a budget."""
    return planned(folder, text).runs[-1]


# --- currencies ---


@pytest.mark.parametrize(
    ("currency", "amount", "of"),
    [
        ("device_hours: 680000 GPU-hours", 680_000, lambda cost: cost.device_hours),
        ("money: $1.36M", 1.36e6, lambda cost: cost.dollars),
        ("energy: 476 MWh", 476e6 * 3600, lambda cost: cost.energy_j),
        ("deadline: 332 h", 332, lambda cost: cost.hours),
        ("compute: 1e24 FLOP", 1e24, lambda cost: cost.compute_flop),
    ],
)
def test_a_budget_buys_what_the_plan_says_it_costs(
    tmp_path: Path, currency: str, amount: float, of: Callable[..., float]
) -> None:
    """In each currency, to the rounding of shape and steps."""
    assert of(target(tmp_path, budget(spend(currency))).cost) == pytest.approx(amount, rel=0.01)


def test_every_currency_is_told_of_one_run(tmp_path: Path) -> None:
    """Hours are devices times time; price and energy are those of the hours."""
    cost = target(tmp_path, FRONTIER).cost
    assert cost.device_hours == pytest.approx(2048 * cost.hours)
    assert cost.dollars == pytest.approx(2.0 * cost.device_hours)
    assert cost.energy_j == pytest.approx(700.0 * 3600 * cost.device_hours)


@pytest.mark.slow
def test_a_target_loss_takes_the_least_compute_that_reaches_it(tmp_path: Path) -> None:
    """On the law's own data; a hundredth less compute does not reach it."""
    text = budget(spend("loss: 2.0 nats/token"), rest_on(LOSS), ("our-web-mix", "massivetext"))
    run, surface = target(tmp_path, text).run, surface_of("epoch-chinchilla")
    assert surface.loss(run.model.params, run.tokens) == pytest.approx(2.0, rel=5e-4)
    less = target(tmp_path, budget(spend(f"compute: {0.99 * run.compute_flop:.6e} FLOP"), rest_on(LOSS))).run
    assert surface.loss(less.model.params, less.tokens) > 2.0


# --- objectives ---


def surface_of(name: str) -> LossSurface:
    """A published loss surface."""
    surface = published_loss_surface(from_catalog(PublishedLaw, name, None))
    assert surface is not None
    return surface


def test_a_printed_law_becomes_a_surface() -> None:
    surface, law = surface_of("hoffmann"), from_catalog(PublishedLaw, "hoffmann", None)
    assert law.loss is not None
    assert surface.loss(7e10, 1.4e12) == pytest.approx(law.loss.at(7e10, 1.4e12))
    assert surface.log_cost(math.log(7e10)) == pytest.approx(math.log(6 * 7e10))
    assert replace(surface, size="flop_per_token").log_cost(3.0) == 3.0
    dearer = replace(surface, cost=lambda size: 7 * size)
    assert dearer.log_cost(math.log(7e10)) == pytest.approx(math.log(7 * 7e10))
    assert dearer.best_size(7e22) == pytest.approx(surface.best_size(6e22), rel=1e-6)


def test_a_law_without_an_allocation_allocates_by_its_optimum(tmp_path: Path) -> None:
    """Epoch's constants at 1e24 FLOP: 95 to 97 B parameters, 1.72 to 1.74 T tokens (facts of the law, computed)."""
    size = surface_of("epoch-chinchilla").best_size(1e24)
    assert size == pytest.approx(96e9, rel=0.02)
    run = target(tmp_path, budget(rest_on(PARAMETRIC))).run
    assert run.model.params == pytest.approx(size, rel=0.05)
    assert run.compute_flop == pytest.approx(1e24, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("law", ["epoch-chinchilla", "hoffmann"])
@given(log_flop=st.floats(19, 26), log_served=st.floats(9, 14))
def test_a_model_that_serves_is_the_cheapest_with_its_loss(
    law: str, log_flop: float, log_served: float
) -> None:
    """6 N D + 2 N D_served is lowest where we say, among runs of equal loss either side; and as data_limits finds."""
    surface, served = surface_of(law), 10**log_served
    size = surface.best_size(10**log_flop, served)
    tokens = 10**log_flop / 6 / size
    loss, cost = surface.loss(size, tokens), 6 * size * tokens + 2 * size * served
    printed = from_catalog(PublishedLaw, law, None).loss
    assert printed is not None
    for other in (0.8 * size, 0.95 * size, 1.05 * size, 1.25 * size):
        rest = loss - printed.E - printed.A * other**-printed.alpha
        if rest > 0:
            same = (rest / printed.B) ** (-1 / printed.beta)
            assert 6 * other * same + 2 * other * served > cost * (1 - 1e-9)
    assert size <= surface.best_size(10**log_flop) * (1 + 1e-9)


def test_both_ways_of_saying_the_inference_optimum_agree() -> None:
    """Sardana et al. start from the loss of a compute-optimal run, a budget from what training takes."""
    printed = from_catalog(PublishedLaw, "epoch-chinchilla", None).loss
    assert printed is not None
    constants = (printed.E, printed.A, printed.B, printed.alpha, printed.beta)
    size, tokens = inference_optimum(replace(EPOCH, params=constants), 1e24, 1e13)
    surface = surface_of("epoch-chinchilla")
    assert surface.best_size(6 * size * tokens, 1e13) == pytest.approx(size, rel=1e-4)


def test_serving_makes_the_model_smaller_and_training_takes_the_budget(tmp_path: Path) -> None:
    """10T inference tokens at 1e24 FLOP: less than half the size of the optimum, and a note with what it saves."""
    text = budget(rest_on(LOSS), ("unique: 2T", "unique: 20T"))
    plain = target(tmp_path, text.replace("law: deepseek, loss", "law: deepseek, hyper: deepseek, loss"))
    plan = planned(tmp_path, text + "objective: {kind: inference, served: 10T tokens}\n")
    run = plan.runs[0].run
    assert run.compute_flop == pytest.approx(1e24, rel=0.01)
    assert run.model.params < 0.5 * plain.run.model.params
    assert any(note.startswith("training and inference on 10T tokens take") for note in plan.notes)


@pytest.mark.parametrize(
    ("objective", "of", "wanted"),
    [
        ("{kind: size, params: 70B params}", lambda run: run.model.params, 70e9),
        ("{kind: ratio, tokens_per_param: 20}", lambda run: run.tokens / run.model.params, 20),
    ],
    ids=["size", "ratio"],
)
def test_a_fixed_size_or_ratio_is_kept(
    tmp_path: Path, objective: str, of: Callable[..., float], wanted: float
) -> None:
    """Within a few per cent, at the budget's compute, with a note of how far it is from the best split."""
    plan = planned(tmp_path, budget(("unique: 2T", "unique: 9T")) + f"objective: {objective}\n")
    run = plan.runs[0].run
    assert of(run) == pytest.approx(wanted, rel=0.05)
    assert run.compute_flop == pytest.approx(1e24, rel=0.01)
    assert any("of the compute-optimal run" in note for note in plan.notes)


@pytest.mark.parametrize("aspect", [40, 64, 128])
def test_the_aspect_ratio_is_the_budgets(tmp_path: Path, aspect: int) -> None:
    """Width over layers, within the freedom that the depth has."""
    model = target(tmp_path, budget(spend("compute: 1e21 FLOP")) + f"aspect: {aspect}\n").run.model
    assert model.width / model.layers == pytest.approx(aspect, rel=0.2)


# --- learning rate and batch ---


def test_laws_that_disagree_are_shown_side_by_side(tmp_path: Path) -> None:
    """DeepSeek's and Step Law's at 1e24 FLOP, each by its formula, with the regime that it holds in."""
    plan = planned(tmp_path, FRONTIER)
    used, other = plan.hypers[0], next(one for one in plan.hypers if one.law == "step-law")
    assert (used.law, used.used, other.used) == ("deepseek", True, False)
    run = plan.runs[0].run
    tokens = 1e24 / run.model.flop_per_token
    assert other.peak_lr == pytest.approx(1.79 * run.model.block_params**-0.713 * tokens**0.307)
    assert other.batch_tokens == pytest.approx(0.58 * tokens**0.571)
    (note,) = (note for note in plan.notes if "disagree" in note)
    assert "the batch grows with compute" in note
    assert "the batch grows with data" in note
    assert note.endswith("the plan follows deepseek")


def test_another_law_of_learning_rate_and_batch_can_be_followed(tmp_path: Path) -> None:
    """hyper: step-law overrides the law's own."""
    plan = planned(tmp_path, budget(rest_on("{kind: published, law: deepseek, hyper: step-law}")))
    assert plan.hypers[0].law == "step-law"
    assert plan.runs[0].run.optim.peak_lr == pytest.approx(plan.hypers[0].peak_lr)
    assert plan.runs[0].run.batch_tokens == pytest.approx(plan.hypers[0].batch_tokens, rel=0.04)


@pytest.mark.slow
def test_a_batch_of_the_budgets_own_is_kept(tmp_path: Path) -> None:
    """The 67B's 4608 sequences, to the token."""
    plan = planned(tmp_path, FRONTIER + f"batch: {4608 * 4096} tokens\n")
    assert plan.runs[0].run.optim.batch_sequences == 4608
    assert plan.runs[0].execution.layout.problems(plan.runs[0].run.model, plan.runs[0].run.optim) == []
    assert any(note.startswith("the budget sets batch,") for note in plan.notes)


def test_a_batch_that_all_devices_cannot_share_runs_on_fewer(tmp_path: Path) -> None:
    """101 sequences on 64 devices: a note says how many of them can share the batch."""
    frontier = budget(spend("compute: 1e20 FLOP"), ("cluster: h800-2048", "cluster: h100-64"))
    plan = planned(tmp_path, frontier + f"batch: {101 * 4096} tokens\n")
    run, layout = plan.runs[0].run, plan.runs[0].execution.layout
    assert run.optim.batch_sequences == 101
    assert layout.problems(run.model, run.optim) == []
    assert layout.devices < 64
    (note,) = (note for note in plan.notes if note.startswith("the run uses"))
    assert f"{layout.devices} of the cluster's 64 devices: more of them cannot share" in note


@pytest.mark.slow
def test_a_pilot_that_fits_no_share_of_the_devices_takes_more(tmp_path: Path) -> None:
    """Large pilots of a large target; the small ones keep theirs."""
    text = LEDGERLESS.replace("1e21 FLOP", "2e24 FLOP").replace("share: 0.1", "share: 0.1, reach: 1e6")
    (tmp_path / "b.yaml").write_text(text)
    write_corpus(load(tmp_path / "b.yaml", Budget).data, tmp_path, 10**13)
    devices = [one.execution.layout.devices for one in planned(tmp_path, text).runs]
    assert min(devices) < max(devices) <= 64


# --- what is shipped ---


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_budget_plans(path: Path, tmp_path: Path) -> None:
    """At most fifteen lines; those on pilots to these, the others to the target, every run legal."""
    text = path.read_text()
    assert len(text.splitlines()) <= 15
    (tmp_path / path.name).write_text(text)
    asked = load(path, Budget)
    if isinstance(asked.evidence, Runs):
        shutil.copy(SPECS / asked.evidence.table, tmp_path)
    if not isinstance(asked.data.text, DeclaredText):
        write_corpus(asked.data, tmp_path, 10**12)
    inputs = inputs_of(tmp_path / path.name, tmp_path / "out", tmp_path / "data")
    plan = make_plan(inputs)
    assert plan.phase == ("pilots" if isinstance(asked.evidence, Pilots) else "target")
    for one in plan.runs:
        assert one.execution.layout.problems(one.run.model, one.run.optim) == []
        assert one.cost.memory_bytes <= inputs.cluster.device.memory


# --- refusals, through the command ---

LEDGERLESS = """\
kind: budget
name: b
compute: 1e21 FLOP
evidence: {kind: pilots, prior: deepseek, share: 0.1}
family: deepseek
cluster: h100-64
data:
  text: {source: files, paths: [x.txt]}
  tokenizer: {kind: bytes}
"""

# name: (budget, line, what it says, (what to write, where) that then makes a plan)
REFUSALS: dict[str, tuple[str, int, str, tuple[str, str] | None]] = {
    "too far above the law": (
        budget(spend("compute: 1e28 FLOP")),
        5,
        "3.333e+07 times outside the range that the law deepseek was fitted on, 1e+17 to 3e+20 FLOP",
        None,
    ),
    "too far below the law": (
        budget(spend("compute: 1e15 FLOP"), rest_on("{kind: published, law: deepseek, reach: 10}")),
        5,
        "1e+15 FLOP is 100 times outside",
        None,
    ),
    "pilots too far below the target": (
        LEDGERLESS.replace("share: 0.1", "share: 0.01, reach: 100"),
        4,
        "times the compute of the largest pilot, but evidence.reach allows only 100 times",
        (r"write evidence\.(share: [\d.]+)", "share: 0.01"),
    ),
    "too few tokens": (
        budget(("unique: 2T", "unique: 100B")),
        10,
        "the run needs 1.52T tokens, 15.2 epochs over the 100B unique tokens, but the budget allows only 4",
        (r"write (epochs: [\d.]+)", ""),
    ),
    "too few tokens, less compute": (
        budget(("unique: 2T", "unique: 100B")),
        10,
        "provide 380B unique tokens, or spend at most",
        (r"at most (\S+ FLOP)", "1e24 FLOP"),
    ),
    "no layout": (
        budget(("cluster: h800-2048", "cluster: h100-64"), spend("compute: 3e25 FLOP"))
        .replace("unique: 2T", "unique: 20T")
        .replace("law: deepseek", "law: deepseek, reach: 2e5"),
        8,
        "needs 107 GiB more than the 67.1 GiB that a plan may use",
        (r"at most (\S+ FLOP)", "3e25 FLOP"),
    ),
    "a batch of no sequences": (
        FRONTIER + "batch: 20971000 tokens\n",
        12,
        "20,971,000 tokens are not a whole number of sequences of 4,096",
        (r"write (batch: \d+ tokens)", "batch: 20971000 tokens"),
    ),
    "two currencies": (
        FRONTIER + "energy: 5 MWh\n",
        12,
        "compute and energy both set how much may be spent",
        None,
    ),
    "money on a cluster without a price": (
        budget(spend("money: $1M"), ("cluster: h800-2048", "cluster: laptop")),
        5,
        "the cluster laptop has no price",
        None,
    ),
    "energy of devices without power": (
        budget(spend("energy: 1 MWh"), ("cluster: h800-2048", "cluster: laptop")),
        5,
        "the power of CPU core is not known",
        None,
    ),
    "a deadline beside a currency": (
        FRONTIER + "deadline: 7 d\n",
        12,
        "and the deadline is 7 d 0 h",
        (r"at most (\S+ FLOP)", "1e24 FLOP"),
    ),
    "a loss without a loss law": (
        budget(spend("loss: 2 nats/token")),
        5,
        "a target loss needs a loss law; give the budget in compute, or fit a law on your own data",
        None,
    ),
    "a loss without a loss law where one holds for the text": (
        budget(spend("loss: 2 nats/token"), ("our-web-mix", "massivetext")),
        5,
        "a target loss needs a loss law",
        (r"write evidence\.(law: \S+) and evidence\.(loss: \S+)", "law: deepseek"),
    ),
    "a loss of another text": (
        budget(spend("loss: 2 nats/token"), rest_on(LOSS)),
        5,
        "was fitted on massivetext, and losses do not carry over to our-web-mix",
        None,
    ),
    "a loss below the floor": (
        budget(spend("loss: 1.8 nats/token"), rest_on(LOSS), ("our-web-mix", "massivetext")),
        5,
        "even 1e+30 FLOP reach 1.837 nats per token, not 1.8",
        (r"a loss of at least (\S+ nats/token)", "1.8 nats/token"),
    ),
    "a loss beyond the law's reach": (
        budget(spend("loss: 1.86 nats/token"), rest_on(LOSS), ("our-web-mix", "massivetext")),
        5,
        "times outside the range that the law deepseek was fitted on, 1e+17 to 3e+20 FLOP",
        (r"a loss of at least (\S+ nats/token)", "1.86 nats/token"),
    ),
    "too much energy for the law": (
        budget(spend("energy: 5 GWh")),
        5,
        "times outside the range that the law deepseek was fitted on, 1e+17 to 3e+20 FLOP",
        (r"at most (\S+ GWh)", "5 GWh"),
    ),
    "too much money for the law": (
        budget(spend("money: $30M")),
        5,
        "times outside",
        (r"at most (\$\S+),", "$30M"),
    ),
    "too many hours for the law": (
        budget(spend("device_hours: 10M GPU-hours")),
        5,
        "times outside",
        (r"at most (\S+ device-hours)", "10M GPU-hours"),
    ),
    "too late a deadline for the law": (
        budget(spend("deadline: 200 d")),
        5,
        "times outside",
        (r"at most (\S+ h),", "200 d"),
    ),
    "too little money for the law": (
        budget(spend("money: $0.05"), rest_on("{kind: published, law: deepseek, reach: 1}")),
        5,
        "times outside",
        (r"at least (\$\S+),", "$0.05"),
    ),
    "too much money for law and cluster": (
        budget(
            spend("money: $1B"), ("cluster: h800-2048", "cluster: h100-64"), ("unique: 2T", "unique: 20T")
        ),
        5,
        "spend at most",
        None,
    ),
    "too few tokens, less energy": (
        budget(("unique: 2T", "unique: 100B"), spend("energy: 500 MWh")),
        10,
        "epochs over the 100B unique tokens",
        (r"at most (\S+ MWh)", "500 MWh"),
    ),
    "a deadline beside money": (
        budget(spend("money: $1.4M")) + "deadline: 7 d\n",
        12,
        "and the deadline is 7 d 0 h",
        (r"at most (\$\S+),", "$1.4M"),
    ),
    "serving without a loss law": (
        FRONTIER + "objective: {kind: inference, served: 1T tokens}\n",
        6,
        "the objective needs a loss law",
        (r"write evidence\.(law: \S+) and evidence\.(loss: \S+)", "law: deepseek"),
    ),
    "a law without an allocation": (
        budget(rest_on("{kind: published, law: step-law}")),
        6,
        "the law step-law gives no compute-optimal allocation",
        (r"write evidence\.(law: \S+) and evidence\.(hyper: \S+)", "law: step-law"),
    ),
    "pilots on declared text": (
        budget(rest_on("{kind: pilots, prior: deepseek, share: 0.1}")),
        10,
        "pilots train on real text",
        None,
    ),
}


def refusal(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The one line that the command prints; it exits with 2 and writes nothing."""
    (folder / "b.yaml").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["plan", "b.yaml"])
    with pytest.raises(SystemExit) as ended:
        isoplan.cli.plan_main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, ""), said
    assert said.err.count("\n") == 1
    assert not (folder / "plans").exists()
    return said.err


@pytest.mark.slow
@pytest.mark.parametrize(("text", "line", "says", "remedy"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_names_the_line_and_what_would_work(
    text: str,
    line: int,
    says: str,
    remedy: tuple[str, str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "b.yaml").write_text(LEDGERLESS)
    write_corpus(load(tmp_path / "b.yaml", Budget).data, tmp_path, 10**12)
    said = refusal(tmp_path, text, monkeypatch, capsys)
    assert said.startswith(f"b.yaml:{line}:")
    assert says in said
    assert "; " in said
    if remedy is None:
        return
    pattern, replaces = remedy
    found = re.search(pattern, said.partition("; ")[2])
    assert found, said
    mended = text.replace(replaces, ", ".join(found.groups())) if replaces else text + found[1] + "\n"
    assert planned(tmp_path, mended).runs


@pytest.mark.slow
def test_epochs_are_proposed_only_as_far_as_the_discount_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixteen passes are (Muennighoff et al.'s own runs), a hundred are not."""
    few, fewer = (budget(("unique: 2T", f"unique: {unique}")) for unique in ("100B", "15B"))
    assert "write epochs: 15.2" in refusal(tmp_path, few, monkeypatch, capsys)
    said = refusal(tmp_path, fewer, monkeypatch, capsys)
    assert "101 epochs" in said
    assert "write epochs" not in said


@pytest.mark.slow
def test_another_budget_of_a_sealed_plans_name_is_told_to_change_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.yaml").write_text(FRONTIER)
    monkeypatch.chdir(tmp_path)
    write_plan(Path("b.yaml"), None)
    Path("b.yaml").write_text(budget(spend("compute: 2e24 FLOP")))
    with pytest.raises(
        DocumentError, match="sealed and was planned from a different budget of the same name"
    ) as refused:
        write_plan(Path("b.yaml"), None)
    assert FRONTIER.splitlines()[refused.value.line - 1].startswith("name:")


# --- a ledger ---


def ledger(folder: Path, loss: Callable[[float, float], float]) -> None:
    """What audits of a budget's pilots would leave, on a surface of M and D; too few points of a curve to smooth it."""
    plan = make_plan(inputs_of(folder / "b.yaml", folder / "out", folder / "data"))
    for one in plan.runs:
        steps = np.arange(4, 21, 2) * one.run.evaluation.every_steps
        final = loss(float(one.run.model.flop_per_token), float(one.run.tokens))
        append_line(
            folder / "ledger.jsonl",
            LedgerRecord(
                run=one.run,
                role=one.role,
                budget_flop=one.budget_flop,
                rate_multiple=one.rate_multiple,
                seal=plan.seal,
                tokens=one.run.tokens,
                compute_flop=one.run.compute_flop,
                loss=final,
                bytes_per_token=1.0,
                curve_step=tuple(steps.tolist()),
                curve_loss=tuple((final * (steps / steps[-1]) ** -0.05).tolist()),
                tokens_per_s=1e5,
                weights_sha256="3" * 64,
                flags=(),
            ),
        )


def chinchilla(flop_per_token: float, tokens: float) -> float:
    """Epoch's constants with N = M / 6."""
    return 1.8172 + 482.01 * (flop_per_token / 6) ** -0.3478 + 2085.43 * tokens**-0.3658


@pytest.mark.slow
def test_a_ledger_without_an_interior_optimum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where every profile falls towards larger models, the pilots say nothing of the best size."""
    (tmp_path / "b.yaml").write_text(LEDGERLESS)
    write_corpus(load(tmp_path / "b.yaml", Budget).data, tmp_path, 10**12)
    ledger(tmp_path, lambda size, tokens: 2 + 1e3 * size**-0.4)
    said = refusal(tmp_path, LEDGERLESS, monkeypatch, capsys)
    assert said.startswith("b.yaml:4:")
    assert "no isoFLOP profile of the ledger has an interior minimum: at " in said
    assert "write evidence.spread: 2.4" in said


@pytest.mark.slow
def test_a_ledger_answers_a_target_loss_and_an_inference_objective(tmp_path: Path) -> None:
    """Both need a loss law, and the mixture of the runs is one: the loss that was asked for, a smaller model."""
    (tmp_path / "b.yaml").write_text(LEDGERLESS)
    write_corpus(load(tmp_path / "b.yaml", Budget).data, tmp_path, 10**12)
    ledger(tmp_path, chinchilla)
    run = target(tmp_path, LEDGERLESS.replace("compute: 1e21 FLOP", "loss: 2.3 nats/token")).run
    assert chinchilla(run.model.flop_per_token, run.tokens) == pytest.approx(2.3, rel=0.01)
    serving = target(tmp_path, LEDGERLESS + "objective: {kind: inference, served: 1T tokens}\n").run
    best = surface_of("epoch-chinchilla").best_size(1e21)
    assert serving.model.params < 0.8 * best
    assert serving.compute_flop == pytest.approx(1e21, rel=0.01)
