"""A table that cannot carry a plan is refused in one line, in the budget's own words, and nothing is written."""

from pathlib import Path

import pytest

from planner.design.budget_table import load_table
from specs.budget import Budget
from specs.document.files import load
from tests.support.commands import call
from tests.support.paths import SPECS

RUNS = (SPECS / "example_runs.csv").read_text()
BUDGET = """\
kind: budget
name: small
compute: 1e21 FLOP
evidence: {kind: runs, table: runs.csv, prior: deepseek}
family: llama
cluster: h100-64
data:
  text: {source: declared, describe: our-web-mix, unique: 100B tokens}
  tokenizer: {kind: bbpe, vocab: 32000}
"""
EVIDENCE = "table: runs.csv, prior: deepseek"
ONE_BUDGET = "".join(RUNS.splitlines(keepends=True)[:6])
PILOTS = "kind: pilots, prior: deepseek, share: 0.1, also: {table: runs.csv, same_text: %s}"

# name: (evidence, table, other changes of the budget, where, what, what to write)
REFUSED: dict[str, tuple[str, str, tuple[str, str], str, str, str]] = {
    "no table": (
        "table: absent.csv, prior: deepseek",
        RUNS,
        ("", ""),
        "b.yaml:4:31",
        "there is no table absent.csv",
        "give the table's path from this budget's folder",
    ),
    "a folder": ("table: ., prior: deepseek", RUNS, ("", ""), ".:1:1", "this is a folder", "give the path"),
    "a column that is not there": (
        f"{EVIDENCE}, columns: {{loss: val/loss}}",
        RUNS,
        ("", ""),
        "runs.csv:1:1",
        "the table has no column 'val/loss' for loss",
        "write 'val_loss'",
    ),
    "a quantity that is none": (
        f"{EVIDENCE}, columns: {{los: val_loss}}",
        RUNS,
        ("", ""),
        "runs.csv:1:1",
        "'los', which is no quantity",
        "write 'loss'",
    ),
    "a column by number": (
        f"{EVIDENCE}, columns: {{loss: 3}}",
        RUNS,
        ("", ""),
        "b.yaml:4:74",
        "expected text, found 3",
        "write it like",
    ),
    "no loss": (
        EVIDENCE,
        RUNS.replace("val_loss", "val"),
        ("", ""),
        "runs.csv:1:1",
        "no column is the loss",
        "map it: evidence.columns: {loss: NAME}",
    ),
    "two losses": (
        EVIDENCE,
        "params,tokens,C4 Eval Loss,Wiki Eval Loss\n1e8,2e9,3.5,3.6\n2e8,4e9,3.2,3.4\n",
        ("", ""),
        "runs.csv:1:28",
        "'C4 Eval Loss' and 'Wiki Eval Loss' may both be the loss",
        "evidence.columns: {loss: 'C4 Eval Loss'} or evidence.columns: {loss: 'Wiki Eval Loss'}",
    ),
    "bits per byte of unknown tokens": (
        f"{EVIDENCE}, loss_unit: bits/byte",
        RUNS,
        ("", ""),
        "runs.csv:1:15",
        "the bytes of a token are not known",
        "as in evidence.bytes_per_token: 4.3",
    ),
    "a unit that is none": (
        f"{EVIDENCE}, loss_unit: bits",
        RUNS,
        ("", ""),
        "b.yaml:4:69",
        "'bits' is not allowed here",
        "write one of nats/token, bits/token, bits/byte",
    ),
    "perplexities": (
        EVIDENCE,
        RUNS.replace("val_loss", "ppl"),
        ("", ""),
        "runs.csv:1:15",
        "the only loss is a perplexity",
        "write its natural logarithm",
    ),
    "one budget": (
        EVIDENCE,
        ONE_BUDGET,
        ("", ""),
        "b.yaml:4:31",
        "the table's runs give no law: 5 different runs at 1 budget",
        "add finished runs to the table, or name a law",
    ),
    "no prior": (
        "table: runs.csv",
        RUNS,
        ("", ""),
        "b.yaml:4:11",
        "the key 'prior' is missing",
        "write for example 'prior: ",
    ),
    "a prior without learning rates": (
        "table: runs.csv, prior: hoffmann",
        RUNS,
        ("", ""),
        "b.yaml:4:11",
        "the law hoffmann gives no learning rate and batch size",
        "set evidence.prior to a law that does",
    ),
    "a target loss on another text": (
        EVIDENCE,
        RUNS,
        ("compute: 1e21 FLOP", "loss: 2.3 nats/token"),
        "b.yaml:3:7",
        "a target loss needs a law of this text",
        "or write evidence.same_text: true if they are",
    ),
    "a loss that no compute reaches": (
        f"{EVIDENCE}, same_text: true",
        RUNS,
        ("compute: 1e21 FLOP", "loss: 1.2 nats/token"),
        "b.yaml:3:7",
        "by the loss law of the table's runs even 1e+30 FLOP reach",
        "set a loss of at least ",
    ),
    "too far": (
        EVIDENCE,
        RUNS,
        ("1e21 FLOP", "1e24 FLOP"),
        "b.yaml:3:10",
        "1e+24 FLOP is 3.333e+04 times the compute of the table's largest run, 3e+19 FLOP",
        "spend at most 3e+22 FLOP, or write evidence.reach: 34000",
    ),
    "a text that is too short": (
        EVIDENCE,
        RUNS,
        ("100B tokens", "1B tokens"),
        "b.yaml:8:59",
        "epochs over the 1B unique tokens",
        "provide ",
    ),
    "a table of another text that joins pilots": (
        PILOTS % "false",
        RUNS,
        ("", ""),
        "b.yaml:4:90",
        "losses of another text, tokenizer or held-out set cannot join the pilots",
        "leave evidence.also out",
    ),
    "pilots on a text that is declared": (
        PILOTS % "true",
        RUNS,
        ("", ""),
        "b.yaml:8:3",
        "pilots train on real text",
        "or evidence.kind: published or runs",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_carries_no_plan_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    evidence, table, (old, new), place, what, write = REFUSED[name]
    kind = "" if "kind:" in evidence else "kind: runs, "
    text = BUDGET.replace(f"kind: runs, {EVIDENCE}", kind + evidence).replace(old, new)
    (tmp_path / "b.yaml").write_text(text)
    (tmp_path / "runs.csv").write_text(table)
    done = call("plan", "b.yaml", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"{place}: "), line
    problem, _, remedy = line.rpartition("; ")
    assert what in problem, line
    assert write in remedy, line
    assert "--" not in line
    assert not (tmp_path / "plans").exists()


def test_notes_on_the_table_are_in_the_budgets_words(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(BUDGET)
    (tmp_path / "runs.csv").write_text("params,tokens,loss\n1e8,2e9,0.9\n2e8,4e9,0.8\n")
    table = load_table(load(tmp_path / "b.yaml", Budget), tmp_path / "b.yaml")
    assert table is not None
    assert table.notes[-1].endswith("if they are, say so with evidence.loss_unit: bits/byte")
