import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from specs.budget import Budget
from specs.cluster import Cluster
from specs.document.base import Spec
from specs.document.files import DocumentError, from_catalog, load, load_any, read_lines
from specs.document.write import append_line, write_text, write_yaml
from specs.law import Family, PublishedLaw
from specs.plan import Plan
from specs.record import LedgerRecord, RecordLine
from specs.run import RunSpec
from tests.support import samples
from tests.support.commands import Done, call, script
from tests.support.corpora import write_corpus
from tests.support.paths import ROOT


def budget(old: str = "", new: str = "") -> str:
    """The sample budget with one stretch of it replaced."""
    assert old in samples.BUDGET
    return samples.BUDGET.replace(old, new, 1)


def run_json(old: str = "", new: str = "") -> str:
    """The sample run as JSON in one column per level, with one stretch replaced."""
    text = json.dumps(samples.run().plain(), indent=1)
    assert old in text
    return text.replace(old, new, 1)


def refusal(read: Callable[[], object]) -> str:
    """The one line of the DocumentError that reading gives; anything else fails."""
    with pytest.raises(DocumentError) as caught:
        read()
    message = str(caught.value)
    assert message.isprintable(), "a message is one line without control characters"
    return message


# name: (text of a budget, line:column, what is wrong, what to write)
BUDGETS: dict[str, tuple[str | bytes, str, str, str]] = {
    # keys
    "unknown key": (
        budget("family:", "famly:"),
        "5:1",
        "unknown key 'famly'",
        "write 'family'",
    ),
    "unknown key, nothing like it": (
        budget() + "colour: red\n",
        "10:1",
        "unknown key 'colour'",
        "remove it, or write",
    ),
    "unknown key inside": (
        budget("share:", "shaer:"),
        "4:39",
        "unknown key 'shaer'",
        "write 'share'",
    ),
    "key of another branch": (
        budget("prior: tiny", "law: tiny"),
        "4:26",
        "unknown key 'law'",
        "write ",
    ),
    "missing key": (
        budget("family: tiny\n"),
        "1:1",
        "the key 'family' is missing",
        "'family: demo-1' (Family of",
    ),
    "missing key inside": (budget(", share: 0.5"), "4:11", "the key 'share' is missing", "'share: 0.5'"),
    "missing kind": (
        budget("kind: budget\n"),
        "1:1",
        "the key 'kind' is missing",
        "begin with 'kind: budget'",
    ),
    "missing tag": (
        budget("source: installed, "),
        "8:9",
        "the key 'source' is missing",
        "one of installed, files, tokens, declared",
    ),
    "duplicate key": (budget() + "name: other\n", "10:1", "the key 'name' appears twice", "keep one"),
    "duplicate key inside": (
        budget("prior", "share: 1, prior"),
        "4:49",
        "the key 'share' appears twice",
        "keep one",
    ),
    "a key that is a list": (
        "kind: budget\n? [a]\n: b\n",
        "2:3",
        "a key must be a word",
        "write 'key: value'",
    ),
    "merge key": (budget() + "<<: {seed: 1}\n", "10:1", "unknown key '<<'", "remove it"),
    # quantities
    "a number as text": (
        budget("1e13 FLOP", "'1e24'"),
        "3:10",
        "'1e24' has no unit",
        "write it like '1e24 FLOP'",
    ),
    "bare number": (budget("1e13 FLOP", "1e24"), "3:10", "1e+24 has no unit", "write it like '1e24 FLOP'"),
    "bare whole number": (budget() + "deadline: 30\n", "10:11", "30 has no unit", "write it like '30 d'"),
    "wrong unit": (
        budget("FLOP", "GiB"),
        "3:10",
        "'GiB' in '1e13 GiB' is not a unit",
        "write it like '1e24 FLOP'",
    ),
    "a rate for an amount": (
        budget("FLOP", "FLOP/s"),
        "3:10",
        "is not a unit of this",
        "write it like '1e24 FLOP'",
    ),
    "wrong case": (budget("FLOP", "flop"), "3:10", "'flop' in '1e13 flop' is not a unit", "'1e24 FLOP'"),
    "negative": (budget("1e13 FLOP", "-1e13 FLOP"), "3:10", "is not a quantity", "write it like '1e24 FLOP'"),
    "zero": (budget("1e13", "0"), "3:10", "is not a positive, finite quantity", "write it like '1e24 FLOP'"),
    "too much to count": (budget("1e13", "1e400"), "3:10", "is not a positive, finite", "'1e24 FLOP'"),
    "nan with a unit": (budget("1e13", "nan"), "3:10", "'nan FLOP' is not a quantity", "'1e24 FLOP'"),
    "negative tokens": (
        budget("installed, packages: [numpy]", "declared, describe: x, unique: -2T tokens"),
        "8:49",
        "'-2T tokens' is not a quantity",
        "write it like '2T tokens'",
    ),
    "half a token": (
        budget("installed, packages: [numpy]", "declared, describe: x, unique: 0.5 tokens"),
        "8:49",
        "is not a whole number of tokens",
        "write it like '2T tokens'",
    ),
    "true for a quantity": (
        budget("1e13 FLOP", "true"),
        "3:10",
        "expected text, found true",
        "'1e24 FLOP'",
    ),
    "a list for a quantity": (
        budget("1e13 FLOP", "[1, 2]"),
        "3:10",
        "expected text, found a list",
        "'1e24 FLOP'",
    ),
    # numbers
    "true for a number": (
        budget("0.5", "true"),
        "4:46",
        "expected a number, found true",
        "write it like '0.5'",
    ),
    "true for a whole number": (
        budget() + "seed: true\n",
        "10:7",
        "expected a whole number, found true",
        "like '1'",
    ),
    "text for a number": (
        budget("0.5", "'0.5'"),
        "4:46",
        "expected a number, found '0.5'",
        "like '0.5'",
    ),
    "1.0 for a whole number": (
        budget() + "seed: 1.0\n",
        "10:7",
        "expected a whole number, found 1.0",
        "like '1'",
    ),
    "nan": (budget("0.5", ".nan"), "4:46", "'.nan' is not a finite number", "write a number such as 0.5"),
    "infinity": (
        budget("0.5", "-.inf"),
        "4:46",
        "'-.inf' is not a finite number",
        "write a number such as 0.5",
    ),
    "overflow": (
        budget("0.5", "1e999"),
        "4:46",
        "'1e999' is not a finite number",
        "write a number such as 0.5",
    ),
    "5000 digits": (
        budget("0.5", "9" * 5000),
        "4:46",
        "is not a finite number",
        "write a number such as 0.5",
    ),
    "zero share": (budget("0.5", "0"), "4:46", "0 is too small", "write a number above 0"),
    "rate of zero": (budget("0.5", "0.5, rates: [2, 0]"), "4:62", "0 is too small", "write a number above 0"),
    "share above one": (budget("0.5", "1.5"), "4:46", "1.5 is too large", "write 1 or less"),
    "vocabulary out of range": (
        budget("{kind: bytes}", "{kind: bbpe, vocab: 256}"),
        "9:34",
        "256 is too",
        "write 257 or more",
    ),
    "negative seed": (budget() + "seed: -1\n", "10:7", "-1 is too small", "write 0 or more"),
    "seed too large": (
        budget() + "seed: 4294967296\n",
        "10:7",
        "is too large",
        "write a number below 4294967296",
    ),
    # text and choices
    "a number for text": (
        budget("family: tiny", "family: 7"),
        "5:9",
        "expected text, found 7",
        "like 'demo-1'",
    ),
    "null for text": (
        budget("family: tiny", "family:"),
        "5:1",
        "expected text, found null",
        "like 'demo-1'",
    ),
    "unknown precision": (
        budget() + "precision: fp16\n",
        "10:12",
        "'fp16' is not allowed here",
        "write one of fp32, bf16",
    ),
    "unknown tag": (budget("pilots", "pilot"), "4:18", "'pilot' is not allowed here", "write 'pilots'"),
    "a tag that is a list": (budget("pilots", "[pilots]"), "4:18", "a list is not allowed here", "write"),
    "text for keys": (
        budget("{kind: bytes}", "bytes"),
        "9:14",
        "expected keys and values, found 'bytes'",
        "'kind: bytes'",
    ),
    "name with a slash": (budget("small", "a/b"), "2:7", "'a/b' does not match", "write it like 'demo-1'"),
    "name that climbs": (budget("small", "../../etc"), "2:7", "'../../etc' does not match", "like 'demo-1'"),
    "name that is ..": (budget("small", ".."), "2:7", "'..' does not match", "like 'demo-1'"),
    "name with a line end": (budget("small", '"a\\n"'), "2:7", "does not match", "remove the line end"),
    "name too long": (budget("small", "a" * 300), "2:7", "does not match", "like 'demo-1'"),
    "ledger elsewhere": (
        budget() + "ledger: /tmp/l.jsonl\n",
        "10:9",
        "does not match",
        "like 'ledger.jsonl'",
    ),
    "ledger that climbs": (
        budget() + "ledger: ../l.jsonl\n",
        "10:9",
        "does not match",
        "like 'ledger.jsonl'",
    ),
    "package that is code": (budget("[numpy]", "['os; x']"), "8:40", "'os; x' does not match", "write"),
    "control characters": (
        budget("small", r'"\e[31m\0"'),
        "2:7",
        r"'\x1b[31m\x00' does not match",
        "like 'demo-1'",
    ),
    # what contradicts itself
    "two currencies": (
        budget() + "money: $2M\n",
        "10:8",
        "compute and money both set how much may be spent",
        "keep one",
    ),
    "no currency": (
        budget("compute: 1e13 FLOP\n"),
        "1:1",
        "no key sets how much may be spent",
        "write one of compute, device_hours, money, energy, loss and deadline",
    ),
    "pilots without text": (
        budget("installed, packages: [numpy]", "declared, describe: x, unique: 2T tokens"),
        "8:3",
        "pilots train on real text, but data.text names no files (source: declared)",
        "write source: files",
    ),
    # not the document that is wanted
    "empty": ("", "1:1", "the document is empty", "write at least its kind"),
    "only a comment": ("# nothing\n", "1:1", "the document is empty", "write at least its kind"),
    "null": ("---\n", "2:1", "expected keys and values, found null", "begin with 'kind: budget'"),
    "a list at the top": (
        "- kind: budget\n",
        "1:1",
        "expected keys and values, found a list",
        "begin with 'kind: budget'",
    ),
    "a word at the top": (
        "budget\n",
        "1:1",
        "expected keys and values, found 'budget'",
        "begin with 'kind: budget'",
    ),
    "another kind": ("kind: cluster\n", "1:7", "'cluster' is the wrong kind", "give the path of a budget"),
    "no kind at all": ("kind: bugdet\n", "1:7", "'bugdet' is the wrong kind", "write 'budget'"),
    "two documents": (
        budget() + "---\nkind: budget\n",
        "10:1",
        "a second document begins here",
        "one document in a file",
    ),
    # not YAML, or not what we read of it
    "tab": (budget("  text", "\ttext"), "8:1", "tabs are not allowed", "write spaces"),
    "tab behind a value": (
        budget("tiny\n", "tiny\t# mine\n"),
        "5:13",
        "tabs are not allowed",
        "write spaces",
    ),
    "colon in a value": (
        budget("tiny\n", "tiny: x\n"),
        "5:13",
        "mapping values are not allowed",
        "quote text",
    ),
    "unclosed": (budget("[numpy]}", "[numpy}"), "8:45", "this is not YAML", "quote text"),
    "unclosed quote": (budget("small", "'small"), "10:1", "this is not YAML", "quote text"),
    "wrong indent": (
        budget("family", " family"),
        "5:2",
        "the indentation does not match",
        "indent with spaces",
    ),
    "not UTF-8": (
        budget("small", "sm\0ll").encode().replace(b"\0", b"\xe4"),
        "2:9",
        "(0xe4) is not UTF-8",
        "as UTF-8",
    ),
    "UTF-16": (budget().encode("utf-16"), "1:1", "byte 0 (0xff) is not UTF-8", "as UTF-8"),
    "NUL": (budget("small", "sm\0ll"), "2:9", "the character U+0000 is not allowed", "remove it"),
    "a separator that few see": (budget("small", "sm\u2028ll"), "2:9", "U+2028 is not allowed", "remove it"),
    "half a character": (
        budget("small", r'"\ud83d"'),
        "2:7",
        "half a character",
        "write the character itself",
    ),
    "no such character": (
        budget("small", r'"\Uffffffff"'),
        "1:7",
        "this is not YAML, here or below",
        "write the char",
    ),
    "alias": (budget("tiny\n", "*tiny\n"), "5:9", "an alias (*tiny) is not allowed", "write the value"),
    "billion laughs": (
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nkind: budget\n",
        "1:4",
        "an anchor (&a) is not allowed",
        "remove it",
    ),
    "python tag": (
        budget("small", "!!python/object/apply:os.system ['touch /tmp/x']"),
        "2:7",
        "a tag (!) is not allowed",
        "write the plain value",
    ),
    "own tag": (
        budget("small", "!include /etc/passwd"),
        "2:7",
        "a tag (!) is not allowed",
        "write the plain value",
    ),
    "YAML 1.1": ("%YAML 1.1\n---\n" + budget(), "2:1", "directives (%) are not allowed", "remove the line"),
    "nesting": ("kind: " + "[" * 200_000, "1:39", "nested deeper than 32 levels", "write fewer levels"),
    "nesting by indent": (
        "".join(" " * i + "a:\n" for i in range(99)),
        "34:34",
        "nested deeper than 32",
        "fewer levels",
    ),
    "nesting of 10 MB": (
        "[" * 10_000_000,
        "1:1",
        "the file is larger than 4 MiB",
        "give an isoplan document",
    ),
    "2 MB of anything": (
        budget() + "#" * 2_000_000,
        "1:1",
        "the file is larger than 1 MiB",
        "give an isoplan document",
    ),
}


@pytest.mark.parametrize(("text", "place", "what", "write"), BUDGETS.values(), ids=BUDGETS.keys())
def test_a_malformed_budget(text: str | bytes, place: str, what: str, write: str, tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(lambda: load(path, Budget))
    assert message.startswith(f"{path}:{place}: ")
    assert what in message
    assert write in message.partition("; ")[2]
    assert len(message) < len(str(path)) + 500
    assert list(tmp_path.iterdir()) == [path]


def test_the_sample_is_not_malformed(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(samples.BUDGET)
    assert load(tmp_path / "b.yaml", Budget) == samples.budget()


# name: (text of a run as JSON, line:column, what is wrong, what to write)
RUNS: dict[str, tuple[str, str, str, str]] = {
    "heads that do not divide": (
        run_json('"heads": 2', '"heads": 5'),
        "3:11",
        "is not an even multiple of heads 5",
        "a multiple of 10",
    ),
    "kv heads that do not divide": (
        run_json('"kv_heads": 1', '"kv_heads": 3'),
        "3:11",
        "kv_heads 3",
        "a divisor of 2",
    ),
    "milestones out of order": (
        run_json('"step": 80', '"step": 95'),
        "20:11",
        "[5, 95, 90, 100]",
        "strictly increasing",
    ),
    "warmup without end": (
        run_json('"warmup_steps": 5', '"warmup_steps": 80'),
        "20:11",
        "must increase",
        "increasing",
    ),
    "evaluation too late": (
        run_json('"every_steps": 10', '"every_steps": 101'),
        "1:1",
        "past the last step",
        "at most 100",
    ),
    "learning rate of zero": (
        run_json('"peak_lr": 0.003', '"peak_lr": 0'),
        "23:14",
        "0 is too small",
        "above 0",
    ),
    "nan": (
        run_json('"peak_lr": 0.003', '"peak_lr": NaN'),
        "23:14",
        "nan is not a finite number",
        "such as 0.5",
    ),
    "three betas": (run_json("0.95\n", "0.95, 1\n"), "35:12", "the list has 3 items", "write exactly 2"),
    "true for steps": (
        run_json('"steps": 100', '"steps": true'),
        "21:12",
        "expected a whole number, found true",
        "like '1'",
    ),
    "unknown key": (
        run_json('"steps": 100', '"stesp": 100'),
        "21:3",
        "unknown key 'stesp'",
        "write 'steps'",
    ),
    "duplicate key": (
        run_json('"seed": 0', '"seed": 0, "seed": 1'),
        "49:13",
        "'seed' appears twice",
        "keep one",
    ),
    "digest cut": (run_json("5" * 64, "5" * 63), "17:13", "does not match ^[0-9a-f]{64}$", "write"),
    "comma missing": (run_json('"fp32",', '"fp32"'), "49:2", "this is not JSON", "correct"),
    "cut in half": (run_json()[:300], "17:13", "this is not JSON", "correct"),
    "nesting": ('{"model": ' + "[" * 100_000, "1:43: ", "nested deeper than 32", "fewer levels"),
    "shallow enough for JSON": (
        '{"kind": "run", "model": ' + "[" * 500 + "]" * 500 + "}",
        "1:58",
        "nested deeper than 32 levels",
        "fewer levels",
    ),
}


@pytest.mark.parametrize(("text", "place", "what", "write"), RUNS.values(), ids=RUNS.keys())
def test_a_malformed_run(text: str, place: str, what: str, write: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    message = refusal(lambda: load(path, RunSpec))
    assert message.startswith(f"{path}:{place}")
    assert what in message
    assert write in message.partition("; ")[2]


def test_a_law_with_an_unknown_variable(tmp_path: Path) -> None:
    path = tmp_path / "law.yaml"
    text = (ROOT / "specs" / "catalog" / "laws" / "deepseek.yaml").read_text()
    path.write_text(text.replace("{compute_flop: 0.5243}", "{compute: 0.5243}"))
    line = 1 + text[: text.index("0.5243")].count("\n")
    assert f":{line}:" in refusal(lambda: load(path, PublishedLaw))
    assert "unknown key 'compute'; write 'compute_flop'" in refusal(lambda: load(path, PublishedLaw))


def test_a_plan_edited_after_sealing(tmp_path: Path) -> None:
    path = tmp_path / "plan.target.yaml"
    write_yaml(path, samples.plan(), comment="sealed")
    text = path.read_text()
    path.write_text(text.replace("high_95: 2.05", "high_95: 2.5", 1))
    assert path.read_text() != text
    message = refusal(lambda: load(path, Plan))
    assert message.startswith(f"{path}:2:1: the plan was changed after it was sealed")
    assert message.endswith("; restore the file, or plan the budget again under another name")
    path.write_text(text + "# a comment changes nothing\n")
    assert load(path, Plan) == samples.plan()


LAPTOP = (ROOT / "specs" / "catalog" / "clusters" / "laptop.yaml").read_text() + "slurm:\n"

# name: (a line under `slurm:`, its column, what is wrong, what to write)
SLURMS: dict[str, tuple[str, int, str, str]] = {
    "unknown key": ("partiton: gpu", 3, "unknown key 'partiton'", "write 'partition'"),
    "two lines": (r'partition: "a\nb"', 14, r"'a\nb' does not match", "write it like 'gpu'"),
    "a line end": (r'account: "a\n"', 12, r"'a\n' does not match", "remove the line end"),
    "control characters": (r'qos: "\e[31m"', 8, r"'\x1b[31m' does not match", "like 'gpu'"),
    "nothing": ("constraint: ''", 15, "'' does not match", "like 'gpu'"),
    "a number for a name": ("reservation: 7", 16, "expected text, found 7", "like 'gpu'"),
    "gres with a count": ("gres: gpu:h100:8", 9, "'gpu:h100:8' does not match", "like 'gpu:h100'"),
    "gres that is a count": ("gres: gpu:8", 9, "'gpu:8' does not match", "like 'gpu:h100'"),
    "two gres": ("gres: gpu,nic", 9, "'gpu,nic' does not match", "like 'gpu:h100'"),
    "bare time": ("time_limit: 24", 15, "24 has no unit", "write it like '30 d'"),
    "a clock's time": ("time_limit: '24:00:00'", 15, "is not a unit of this quantity", "like '30 d'"),
    "warning longer than the limit": (
        "{time_limit: 10 min, warning: 20 min}",
        3,
        "slurm.time_limit 600 s leaves no time to train: the warning comes 1200 s before it",
        "write a longer time limit",
    ),
    "warning as long as the limit but for SLURM's tick": (
        "{time_limit: 2 min, warning: 90 s}",
        3,
        "slurm.time_limit 120 s leaves no time to train: the warning comes 90 s before it, and up to 30 s early",
        "write a longer time limit",
    ),
    "bare memory": ("memory: 64", 11, "64 has no unit", "write it like '80 GiB'"),
    "no CPUs": ("cpus_per_device: 0", 20, "0 is too small", "write 1 or more"),
    "no nodes": ("min_nodes: 0", 14, "0 is too small", "write 1 or more"),
    "no pilots": ("pilots_at_once: 0", 19, "0 is too small", "write 1 or more"),
    "retries below none": ("retries: -1", 12, "-1 is too small", "write 0 or more"),
    "yes": ("exclusive: yes", 14, "expected true or false, found 'yes'", "like 'true'"),
    "shell in one text": ("prologue: module load cuda", 13, "expected a list, found", "write it like"),
    "a prologue of two lines": (r'prologue: ["a\nb"]', 14, r"'a\nb' does not match", "like 'gpu'"),
    "a container in one text": ("container: apptainer exec x", 14, "expected a list, found", "write"),
    "an option with dashes": (
        "extra: {--nodelist: n1}",
        10,
        "'--nodelist' is not a long name of an sbatch option",
        "write it without dashes, like 'nodelist'",
    ),
    "an option with underscores": (
        "extra: {mail_type: END}",
        10,
        "'mail_type' is not a long name of an sbatch option",
        "like 'nodelist'",
    ),
    "an option that is ours": (
        "extra: {time: 60}",
        10,
        "--time is not allowed in extra, since slurm.time_limit sets it",
        "remove it",
    ),
    "an option that the layout decides": (
        "extra: {ntasks: 4}",
        10,
        "--ntasks is not allowed in extra, since isoplan sets it",
        "remove it",
    ),
    "an option that hides the number": (
        "extra: {parsable: true}",
        10,
        "--parsable is not allowed in extra",
        "remove",
    ),
    "an option that waits": ("extra: {wait: true}", 10, "--wait is not allowed in extra", "remove it"),
    "another cluster's queue": (
        "extra: {clusters: other}",
        10,
        "--clusters is not allowed in extra",
        "remove it",
    ),
    "an option that is false": ("extra: {hold: false}", 10, "--hold has no value", "write true, or remove"),
    "an option of many values": ("extra: {nodelist: [a, b]}", 21, "expected text, found a list", "'gpu'"),
    "an option of two lines": (r'extra: {comment: "a\nb"}', 20, r"'a\nb' does not match", "like 'gpu'"),
}


@pytest.mark.parametrize(("line", "column", "what", "write"), SLURMS.values(), ids=SLURMS.keys())
def test_a_malformed_word_to_slurm(line: str, column: int, what: str, write: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(f"{LAPTOP}  {line}\n")
    message = refusal(lambda: load(path, Cluster))
    assert message.startswith(f"{path}:{1 + LAPTOP.count(chr(10))}:{column}: ")
    assert what in message
    assert write in message.partition("; ")[2]


def test_a_word_to_slurm_that_is_not_malformed(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        LAPTOP
        + "  {partition: a b, gres: 'gpu:h100', time_limit: 151 s, extra: {nice: 5, hold: true, x: 'a\\b'}}\n"
    )
    slurm = load(path, Cluster).slurm
    assert (slurm.partition, slurm.gres, slurm.time_limit, slurm.memory) == ("a b", "gpu:h100", 151.0, None)
    assert slurm.extra == {"nice": 5, "hold": True, "x": r"a\b"}


# --- names that lead nowhere ---


@pytest.mark.parametrize(
    ("kind", "key", "name", "meant"),
    [
        (PublishedLaw, "prior", "tinny", "tiny"),
        (Cluster, "cluster", "lapdog", "laptop"),
        (Family, "family", "deepsea", "deepseek"),
    ],
)
def test_a_name_that_is_not_in_the_catalog(
    kind: type[Spec], key: str, name: str, meant: str, tmp_path: Path
) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(re.sub(rf"{key}: \w+", f"{key}: {name}", samples.BUDGET))
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if name in text)
    message = refusal(lambda: from_catalog(kind, name, path))
    assert message.startswith(f"{path}:{line}:")
    assert message.endswith(f"; write '{meant}'")


# --- files that are no documents ---


def test_a_file_that_is_not_there_and_one_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "budget.yaml").write_text(samples.BUDGET)
    message = refusal(lambda: load_any(tmp_path / "bugdet.yaml"))
    assert message == f"{tmp_path}/bugdet.yaml:1:1: there is no such file; give {tmp_path}/budget.yaml"
    assert refusal(lambda: load_any(tmp_path / "no" / "b.yaml")).endswith(
        "; give the path of a file that exists"
    )


def test_a_folder_a_pipe_and_a_device_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "this is a folder; give the path of a file in it" in refusal(lambda: load_any(tmp_path))
    assert "this is not a regular file" in refusal(lambda: load_any(tmp_path / "pipe.yaml"))
    assert "this is not a regular file" in refusal(lambda: load_any(Path("/dev/zero")))


@pytest.mark.parametrize("name", ["a\0b.yaml", "a" * 300 + ".yaml", "a\nb.yaml", "\udcff.yaml"])
def test_a_path_that_cannot_be(name: str, tmp_path: Path) -> None:
    assert "; give the path of a file that" in refusal(lambda: load_any(tmp_path / name))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    for path in (tmp_path / "file" / "plan.yaml", Path("/proc/nothing/plan.yaml"), Path("/proc/plan.yaml")):
        for write in (
            lambda path=path: write_text(path, "text"),
            lambda path=path: write_yaml(path, samples.budget()),
            lambda path=path: append_line(path, samples.run()),
        ):
            message = refusal(write)
            assert message.startswith(f"{path}:1:1: the file cannot be written (")
            assert message.endswith("; choose a writable folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "here"


@pytest.fixture
def no_root() -> Iterator[None]:
    """Nothing is closed to root, so a test run by root goes on as nobody."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    yield
    os.seteuid(mine)


def test_a_file_that_is_closed_is_not_read(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(samples.BUDGET)
    path.chmod(0)
    request.getfixturevalue("no_root")
    assert refusal(lambda: load_any(path)).startswith(
        f"{path}:1:1: the file cannot be read (Permission denied); "
    )


def test_a_folder_that_is_closed_is_not_written(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    path = tmp_path / "closed" / "plan.yaml"
    request.getfixturevalue("no_root")
    for write in (lambda: write_text(path, "text"), lambda: append_line(path, samples.run())):
        message = refusal(write)
        assert message.startswith(f"{path}:1:1: the file cannot be written (Permission denied); ")


# --- lines ---

LINES: dict[str, tuple[str, str, str, str]] = {
    "cut, at the end": ('{"event": "end", "ti', "2:1", "the last line is cut off", "delete the line"),
    "cut, in the middle": (
        '{"event": "end", "ti\n{"event"',
        "3:1",
        "the last line is cut off",
        "delete the line",
    ),
    "cut, then gone on": ('{"event": "end", "ti\n', "2:18", "this is not JSON", "correct"),
    "empty": ("\n", "2:1", "this is not JSON", "correct"),
    "no object": ("[1]\n", "2:1", "expected keys and values, found a list", "event: "),
    "unknown event": ('{"event": "stop"}\n', "2:11", "'stop' is not allowed here", "write one of"),
    "duplicate key": ('{"event": "end", "event": "start"}\n', "2:18", "'event' appears twice", "keep one"),
    "nan": (
        '{"event": "end", "time": NaN, "step": 1, "loss": 2.5, "weights_sha256": "' + "0" * 64 + '"}\n',
        "2:26",
        "nan is not a finite number",
        "such as 0.5",
    ),
    "not UTF-8": ("\udcff\n", "2:1", "(0xff) is not UTF-8", "as UTF-8"),
    "nesting": ("[" * 50_000 + "\n", "2:34", "nested deeper than 32 levels", "fewer levels"),
}


@pytest.mark.parametrize(("text", "place", "what", "write"), LINES.values(), ids=LINES.keys())
def test_a_malformed_line(text: str, place: str, what: str, write: str, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    good = '{"event": "incident", "time": 1.0, "step": 1, "what": "interrupted", "message": "m"}\n'
    path.write_text(good + text, errors="surrogateescape")
    before = path.read_bytes()
    message = refusal(lambda: read_lines(path, RecordLine))
    assert message.startswith(f"{path}:{place}: ")
    assert what in message
    assert write in message.partition("; ")[2]
    assert path.read_bytes() == before


def test_a_ledger_line_cut_in_half(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    whole = (json.dumps({"kind": "ledger", "run": samples.run().plain()}) + "\n").encode()
    path.write_bytes(whole[: len(whole) // 2])
    for touch in (lambda: read_lines(path, LedgerRecord), lambda: append_line(path, samples.run())):
        assert refusal(touch).startswith(f"{path}:1:1: the last line is cut off; ")
    assert path.read_bytes() == whole[: len(whole) // 2]


# --- through the commands ---

PUBLISHED = budget("kind: pilots, prior: tiny, share: 0.5", "kind: published, law: tiny").replace(
    "source: installed, packages: [numpy]", "source: declared, describe: x, unique: 1B tokens"
)

# name: (commands, name of the document, its bytes or None for no file, what the line begins with, what it says)
COMMANDS: dict[str, tuple[str, str, bytes | None, str, str]] = {
    "missing file": (
        "plan run audit",
        "absent.yaml",
        None,
        "absent.yaml:1:1: ",
        "there is no such file; give ",
    ),
    "folder": ("plan run audit", ".", None, ".:1:1: ", "this is a folder; give "),
    "empty": ("plan run audit", "b.yaml", b"", "b.yaml:1:1: ", "the document is empty; write "),
    "not UTF-8": ("plan run audit", "b.yaml", b"kind: \xff", "b.yaml:1:7: ", "is not UTF-8; save "),
    "python tag": (
        "plan run audit",
        "b.yaml",
        b"!!python/object:os.system x",
        "b.yaml:1:1: ",
        "a tag (!) is not allowed; ",
    ),
    "another kind": ("plan audit", "b.yaml", b"kind: order\n", "b.yaml:1:7: ", "'order' is the wrong kind"),
    "unknown key": (
        "plan run",
        "b.yaml",
        budget("family", "famly").encode(),
        "b.yaml:5:1: ",
        "write 'family'",
    ),
    "wrong unit": (
        "plan run",
        "b.yaml",
        budget("FLOP", "GiB").encode(),
        "b.yaml:3:10: ",
        "write it like '1e24 FLOP'",
    ),
    "no such law": (
        "plan",
        "b.yaml",
        PUBLISHED.replace("law: tiny", "law: tinny").encode(),
        "b.yaml:4:34: ",
        "write 'tiny'",
    ),
    "no such family": (
        "plan",
        "b.yaml",
        PUBLISHED.replace("family: tiny", "family: t").encode(),
        "b.yaml:5:9: ",
        "write ",
    ),
    "no such cluster": (
        "plan",
        "b.yaml",
        PUBLISHED.replace("laptop", "lapdog").encode(),
        "b.yaml:6:10: ",
        "write 'laptop'",
    ),
    "brackets in red": (
        "plan run audit",
        "[red]b.yaml",
        b"- [x]",
        "[red]b.yaml:1:1: ",
        "expected keys and values, found a list",
    ),
}


def refused(done: Done, begins: str, says: str) -> None:
    """Exit code 2, and one line on standard error only."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(begins)
    assert says in done.stderr


@pytest.mark.parametrize(
    ("name", "document", "content", "begins", "says"),
    [(name, *rest) for names, *rest in COMMANDS.values() for name in names.split()],
    ids=[f"{name}-{case}" for case, (names, *_) in COMMANDS.items() for name in names.split()],
)
def test_a_command_refuses_in_one_line_and_writes_nothing(
    name: str, document: str, content: bytes | None, begins: str, says: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / document).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    refused(call(name, document, folder=tmp_path), begins, says)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plan", "run", "audit"])
@pytest.mark.parametrize("case", ["missing file", "not UTF-8", "brackets in red"])
def test_so_does_its_console_script(name: str, case: str, tmp_path: Path) -> None:
    _, document, content, begins, says = COMMANDS[case]
    if content is not None:
        (tmp_path / document).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    refused(script(name, document, folder=tmp_path), begins, says)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_edited_after_sealing_is_neither_run_nor_audited(tmp_path: Path) -> None:
    write_yaml(tmp_path / "plan.yaml", samples.plan())
    text = (tmp_path / "plan.yaml").read_text()
    (tmp_path / "plan.yaml").write_text(text.replace("unique_tokens: 100000000", "unique_tokens: 100000001"))
    for name in ("run", "audit"):
        refused(
            call(name, "plan.yaml", folder=tmp_path),
            "plan.yaml:1:1: ",
            "the plan was changed after it was sealed",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_a_plan_is_not_written_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(PUBLISHED)
    (tmp_path / "plans").write_text("a file")
    refused(
        call("plan", "b.yaml", folder=tmp_path),
        "plans/small/report.html:1:1: ",
        "the file cannot be written (",
    )
    refused(
        call("plan", "b.yaml", "--out", "/proc/x", folder=tmp_path),
        "/proc/x/report.html:1:1: ",
        "written (",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.yaml", "plans"]


def test_a_plan_does_not_rest_on_a_ledger_that_was_cut(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(samples.BUDGET)
    write_corpus(samples.budget().data, tmp_path)
    (tmp_path / "ledger.jsonl").write_text('{"kind": "ledger", "ru')
    refused(call("plan", "b.yaml", folder=tmp_path), "ledger.jsonl:1:1: ", "the last line is cut off; ")
    assert (tmp_path / "ledger.jsonl").read_text() == '{"kind": "ledger", "ru'
    assert not (tmp_path / "plans").exists()


def test_a_sealed_plan_of_another_budget_is_not_taken_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(PUBLISHED)
    assert call("plan", "b.yaml", folder=tmp_path).returncode == 0
    sealed = (tmp_path / "plans" / "small" / "plan.target.yaml").read_bytes()
    (tmp_path / "b.yaml").write_text(PUBLISHED.replace("1e13", "2e13"))
    refused(
        call("plan", "b.yaml", folder=tmp_path),
        "b.yaml:2:7: ",
        "was planned from a different budget of the same name; ",
    )
    assert (tmp_path / "plans" / "small" / "plan.target.yaml").read_bytes() == sealed
