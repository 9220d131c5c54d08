"""`isoplan ledger` in this process: what is listed, added, excluded and taken back in, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import isoplan.cli
from planner.ledger.edit import add_table
from planner.scaling.laws import STANDARD, value
from planner.table_fit.analysis import analyse
from specs.document.files import read_lines
from specs.document.parse import DocumentError
from specs.document.write import append_line
from specs.ledger import LedgerLine, TableRunRecord, read_ledger, run_id
from specs.record import LedgerRecord
from specs.run_table.read import read_table
from tests.support import samples

SIZES, COMPUTES = np.geomspace(1e7, 1e8, 4), (1e17, 4e17, 1.6e18)


@dataclass(frozen=True)
class Said:
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Commands":
    """A folder with a small table of runs."""
    monkeypatch.chdir(tmp_path)
    Path("runs.csv").write_text(table())
    return Commands(monkeypatch, capsys)


@dataclass(frozen=True)
class Commands:
    """Calls the command in the current folder."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> Said:
        self.monkeypatch.setattr(sys, "argv", ["isoplan", "ledger", *words])
        with pytest.raises(SystemExit) as end:
            isoplan.cli.main()
        printed = self.capsys.readouterr()
        return Said(int(end.value.code or 0), printed.out, printed.err)


def table(rows: int = 12, names: bool = True, off: float = 1.0) -> str:
    """A ladder on one law; `off` times the loss of its last run."""
    size, flop = (axis.ravel() for axis in np.meshgrid(SIZES, COMPUTES))
    loss = value(STANDARD, (1.7, 400.0, 410.0, 0.34, 0.30), size, flop / 6 / size)
    loss[-1] *= off
    lines = [
        f"{'run-' + str(row) if names else ''},{n:.6g},{c / 6 / n:.6g},{one:.6f}"
        for row, (n, c, one) in enumerate(zip(size, flop, loss, strict=True))
    ]
    return "\n".join(["name,params,tokens,val_loss", *lines[:rows]]) + "\n"


def audited(path: Path, seed: int = 0, role: str = "pilot") -> LedgerRecord:
    """A line of an audit, appended."""
    run = samples.run(seed=seed)
    tokens = run.tokens
    line = LedgerRecord.model_validate(
        {
            "run": run,
            "role": role,
            "budget_flop": 1e9,
            "rate_multiple": 1.0,
            "seal": "a" * 64,
            "tokens": tokens,
            "compute_flop": float(run.model.flop_per_token) * tokens,
            "loss": 3.0 - 0.01 * seed,
            "bytes_per_token": 1.0,
            "curve_step": (),
            "curve_loss": (),
            "tokens_per_s": 1e4,
            "weights_sha256": "b" * 64,
            "flags": (),
        }
    )
    append_line(path, line)
    return line


def test_a_table_is_added_once_and_keeps_where_it_came_from(ledger: Commands) -> None:
    assert ledger("add", "l.jsonl", "runs.csv").out.startswith("12 of 12 runs of runs.csv added to l.jsonl\n")
    before = Path("l.jsonl").read_bytes()
    said = ledger("add", "l.jsonl", "runs.csv")
    assert said.out.startswith("0 of 12 runs of runs.csv added to l.jsonl; 12 are there already\n")
    assert Path("l.jsonl").read_bytes() == before
    lines = read_lines(Path("l.jsonl"), LedgerLine)
    assert {type(line) for line in lines} == {TableRunRecord}
    runs = read_table(Path("runs.csv"))
    first = lines[0]
    assert (first.table, first.table_sha256, first.line, first.name) == ("runs.csv", runs.sha256, 2, "run-0")
    assert (first.sizes, first.tokens, first.loss) == ({"params": 1e7}, runs.tokens[0], runs.loss[0])
    assert (first.text, first.steps, first.peak_lr) == (None, None, None)


def test_a_ledger_is_made_with_its_folder(ledger: Commands) -> None:
    assert ledger("add", "years of runs/é.jsonl", "runs.csv").code == 0
    assert len(read_ledger(Path("years of runs/é.jsonl")).from_tables) == 12


def test_a_longer_export_of_the_same_table_adds_what_is_new(ledger: Commands) -> None:
    Path("early.csv").write_text(table(rows=7, names=False))
    Path("late.csv").write_text(table(names=False))
    ledger("add", "l.jsonl", "early.csv")
    said = ledger("add", "l.jsonl", "late.csv", "--json")
    assert json.loads(said.out)["added"] == 5
    assert len(read_ledger(Path("l.jsonl")).from_tables) == 12


def test_commands_at_the_same_time_add_each_run_once(ledger: Commands) -> None:
    runs = read_table(Path("runs.csv"))
    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(lambda _: add_table(Path("l.jsonl"), runs, None), range(8)))
    assert sorted(one.added for one in done) == [0] * 7 + [12]
    assert len(read_ledger(Path("l.jsonl")).lines) == 12


def test_two_runs_of_one_table_that_read_the_same_are_two_runs(ledger: Commands) -> None:
    text = "note,params,tokens,val_loss\na,1e7,1e9,3.1\nb,1e7,1e9,3.1\nc,2e7,1e9,3.0\n"
    Path("twins.csv").write_text(text)
    for _ in range(2):
        ledger("add", "l.jsonl", "twins.csv")
    assert len({run_id(line) for line in read_ledger(Path("l.jsonl")).from_tables}) == 3


def test_losses_are_stored_in_nats_per_token(ledger: Commands) -> None:
    Path("bits.csv").write_text(table().replace("val_loss", "val_bpb"))
    said = ledger("add", "l.jsonl", "bits.csv", "--bytes-per-token", "4", "--column", "loss=val_bpb")
    assert said.code == 0, said.err
    stored = read_ledger(Path("l.jsonl")).from_tables[0]
    own = read_table(Path("runs.csv")).loss[0]
    assert (stored.loss, stored.bytes_per_token) == (pytest.approx(4 * np.log(2) * own), 4.0)


def test_a_list_has_runs_of_audits_and_of_tables(ledger: Commands) -> None:
    own = audited(Path("l.jsonl"))
    ledger("add", "l.jsonl", "runs.csv", "--text", "C4, GPT-2's tokens")
    plain = json.loads(ledger("list", "l.jsonl", "--json").out)
    assert [len(plain["runs"]), plain["exclusions"]] == [13, []]
    first, second = plain["runs"][:2]
    assert (first["run"], first["text"]) == (own.fingerprint_of_run, "5" * 16)
    assert first["source"] == "audit, pilot, seal aaaaaaaa"
    assert first["sizes"]["flop_per_token"] == own.run.model.flop_per_token
    assert (second["name"], second["source"], second["text"]) == (
        "run-0",
        "runs.csv, line 2",
        "C4, GPT-2's tokens",
    )
    shown = ledger("list", "l.jsonl").out
    assert "1 audited run, 12 from tables, 0 excluded" in shown
    assert own.fingerprint_of_run in shown


def test_a_reader_may_close_the_pipe(ledger: Commands) -> None:
    ledger("add", "l.jsonl", "runs.csv")
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-P", "-m", "isoplan", "ledger", "list", "l.jsonl", "--json"]
    with os.fdopen(writer) as out:
        done = subprocess.run(words, stdout=out, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.slow
def test_an_excluded_run_changes_the_fit_is_flagged_and_comes_back(ledger: Commands) -> None:
    Path("runs.csv").write_text(table(off=1.05))
    ledger("add", "l.jsonl", "runs.csv")
    whole = analyse(read_table(Path("l.jsonl")), [])
    bad = run_id(read_ledger(Path("l.jsonl")).from_tables[-1])
    assert ledger("exclude", "l.jsonl", bad[:6], "--reason", "a bad node").out == f"run {bad} is excluded\n"
    fit = analyse(read_table(Path("l.jsonl")), [])
    assert (len(whole.runs), len(fit.runs)) == (12, 11)
    assert fit.members[0].constants != whole.members[0].constants
    assert [flag.message for flag in fit.flags if flag.kind == "excluded run"] == [
        f"left out, as the ledger says: run {bad}: a bad node"
    ]
    row = json.loads(ledger("list", "l.jsonl", "--json").out)["runs"][-1]
    assert (row["run"], row["excluded"]) == (bad, "a bad node")
    said = ledger("exclude", "l.jsonl", bad[:6], "--reason", "a bad node")
    assert said.out == f"run {bad} is excluded already; nothing was written\n"
    assert len(read_ledger(Path("l.jsonl")).lines) == 13
    ledger("include", "l.jsonl", bad[:6], "--reason", "the node was fine")
    assert analyse(read_table(Path("l.jsonl")), []) == whole.model_copy(
        update={"table": whole.table.model_copy(update={"sha256": read_table(Path("l.jsonl")).sha256})}
    )
    history = json.loads(ledger("list", "l.jsonl", "--json").out)["exclusions"]
    assert [(one["excluded"], one["reason"]) for one in history] == [
        (True, "a bad node"),
        (False, "the node was fine"),
    ]


@pytest.mark.slow
def test_a_ledger_is_fitted_as_the_table_that_was_added(ledger: Commands) -> None:
    ledger("add", "l.jsonl", "runs.csv")
    own, added = (analyse(read_table(Path(name)), []) for name in ("runs.csv", "l.jsonl"))
    assert own.members == added.members
    assert [run.name for run in own.runs] == [run.name for run in added.runs]


def test_audited_runs_are_read_in_the_plans_size_and_rate_checks_are_left_out(ledger: Commands) -> None:
    path = Path("l.jsonl")
    for seed in range(3):
        audited(path, seed)
    audited(path, 3, role="rate")
    audited(path, 2)  # audited again, under another plan
    runs = read_table(path)
    assert (runs.size_kind, len(runs.size), set(runs.other_sizes)) == (
        "flop_per_token",
        3,
        {"params", "block_params"},
    )
    assert runs.cost_per * runs.size[0] * runs.tokens[0] == runs.flop[0]
    assert runs.notes == ("1 run of learning-rate checks left out: they ran beside the best rate",)


def test_runs_of_two_texts_have_no_common_law_unless_both_are_said_to_be_one(ledger: Commands) -> None:
    path = Path("l.jsonl")
    audited(path)
    ledger("add", "l.jsonl", "runs.csv")
    with pytest.raises(DocumentError) as refused:
        read_table(path)
    assert str(refused.value).startswith(
        "l.jsonl:2:1: this run's loss is of 'runs.csv', that of line 1 of '5555555555555555', and losses of two texts"
    )
    path.unlink()
    audited(path)
    ledger("add", "l.jsonl", "runs.csv", "--text", "5" * 16)
    assert len(read_table(path).size) == 13
    assert read_table(path).size_kind == "params"


def test_sizes_without_a_common_convention_are_refused(ledger: Commands) -> None:
    Path("other.csv").write_text(table().replace("params", "non_embedding_params").replace("run-", "r"))
    for name in ("runs.csv", "other.csv"):
        ledger("add", "l.jsonl", name, "--text", "one text")
    with pytest.raises(
        DocumentError, match=r"l.jsonl:13:1: this run's size is in block_params, those above are in"
    ):
        read_table(Path("l.jsonl"))


@pytest.mark.parametrize("cut", [1, 300, 1000, 2500])
def test_a_ledger_that_was_cut_by_a_kill_is_refused_until_it_is_repaired_and_then_completed(
    ledger: Commands, cut: int
) -> None:
    """Whatever part of the lines a kill leaves, the same command adds the rest, and no run twice."""
    path = Path("l.jsonl")
    ledger("add", "l.jsonl", "runs.csv")
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    for words in (["list"], ["add"], ["exclude"]):
        more = {"add": ["runs.csv"], "exclude": ["aa", "--reason", "x"]}.get(words[0], [])
        said = ledger(*words, "l.jsonl", *more)
        assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
        assert "the last line is cut off; complete it from a copy, or delete the line" in said.err
    assert path.read_bytes() == whole[:cut]
    path.write_bytes(whole[: whole.rfind(b"\n", 0, cut) + 1])
    ledger("add", "l.jsonl", "runs.csv")
    assert path.read_bytes() == whole


REFUSALS: dict[str, tuple[list[str], str]] = {
    "a table as the ledger": (["list", "runs.csv"], "runs.csv:1:1: a ledger's name ends in .jsonl; name the"),
    "the arguments swapped": (["add", "runs.csv", "l.jsonl"], "runs.csv:1:1: a ledger's name ends in .jsonl"),
    "no ledger": (["list"], "ledger.jsonl:1:1: there is no such file"),
    "other JSON lines": (
        ["list", "other.jsonl"],
        "other.jsonl:1:1: the key 'kind' is missing; write 'kind:'",
    ),
    "JSON lines of a table": (["add", "other.jsonl", "runs.csv"], "the key 'kind' is missing"),
    "no such run": (["exclude", "l.jsonl", "zz", "--reason", "x"], "no run of this ledger begins with 'zz'"),
    "an empty run": (["exclude", "l.jsonl", "", "--reason", "x"], "no run of this ledger begins with ''"),
    "no reason": (["exclude", "l.jsonl", "a"], "a reason is missing; say why in a few words: --reason '...'"),
    "a blank reason": (["include", "l.jsonl", "a", "--reason", " "], "a reason is missing"),
    "another text": (
        ["add", "l.jsonl", "runs.csv", "--text", "C4"],
        "l.jsonl:1:1: this run of runs.csv is here already, with no text; leave --text out, or add the table",
    ),
    "perplexities": (["add", "l.jsonl", "ppl.csv"], "ppl.csv:1:20: the only loss is a perplexity, 'val_ppl'"),
    "a ledger as the table": (
        ["add", "m.jsonl", "l.jsonl"],
        "l.jsonl:1:1: this is a ledger, and no table of runs; add the tables that its runs came from",
    ),
    "no ledger in that folder": (
        ["exclude", "nowhere/l.jsonl", "a", "--reason", "x"],
        "nowhere/l.jsonl:1:1: there is no such file; give the path of a file that exists",
    ),
    "no unit": (["add", "l.jsonl", "runs.csv", "--loss-unit", "nat"], "--loss-unit nat: write nats/token"),
    "no column": (["add", "l.jsonl", "runs.csv", "--column", "loss"], "--column loss: write quantity=column"),
}


@pytest.mark.parametrize(("words", "says"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_is_one_line_and_writes_nothing(words: list[str], says: str, ledger: Commands) -> None:
    ledger("add", "l.jsonl", "runs.csv")
    Path("other.jsonl").write_text('{"params": 1e7, "tokens": 1e9, "loss": 3.0}\n' * 3)
    Path("ppl.csv").write_text(table().replace("val_loss", "val_ppl"))
    before = {path: path.read_bytes() for path in Path().iterdir() if path.suffix != ".lock"}
    said = ledger(*words)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert says in said.err
    assert {path: path.read_bytes() for path in Path().iterdir() if path.suffix != ".lock"} == before


def test_a_prefix_of_several_runs_is_refused_with_what_it_may_mean(ledger: Commands) -> None:
    Path("many.csv").write_text(
        "params,tokens,val_loss\n" + "".join(f"{n}e6,1e9,3.{n}\n" for n in range(10, 40))
    )
    ledger("add", "l.jsonl", "many.csv")
    ids = [run_id(line) for line in read_ledger(Path("l.jsonl")).from_tables]
    first = next(one[0] for one in ids if sum(other[0] == one[0] for other in ids) > 1)
    meant = [one for one in ids if one[0] == first]
    said = ledger("exclude", "l.jsonl", first, "--reason", "x")
    assert said.err.startswith(f"l.jsonl:1:1: {len(meant)} runs begin with '{first}': {meant[0]}, {meant[1]}")
    assert said.err.endswith("; write more characters\n")


def test_a_ledger_takes_no_columns_of_a_table(ledger: Commands) -> None:
    ledger("add", "l.jsonl", "runs.csv")
    with pytest.raises(
        DocumentError, match="a ledger's lines say what they hold; give no columns, unit or bytes"
    ):
        read_table(Path("l.jsonl"), {"loss": "loss"})
