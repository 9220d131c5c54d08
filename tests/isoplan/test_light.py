"""What `pip install isoplan` gives, without the extras: every verb that trains nothing works, and the others say in
one line what to install."""

import json
import os
import subprocess
import sys
import tomllib
from typing import NamedTuple

import pytest

from isoplan.verbs import VERBS
from specs.extras import SUBMIT, TRAIN
from tests.support.paths import ROOT

PILOTS = """\
kind: budget
name: mini
compute: 1e12 FLOP
evidence: {kind: pilots, prior: tiny, share: 0.8, budgets: 2, sizes: 4, spread: 2, rates: []}
family: tiny
cluster: laptop
data:
  text: {source: files, paths: [text.jsonl]}
  tokenizer: {kind: bytes}
  held_out_one_in: 4
precision: fp32
"""
WORKS = (
    "--version",
    "--help",
    "init",
    "plan budgets/budget_1e24.yaml",
    "data mini.yaml",
    "plan mini.yaml",
    "plan mini.yaml --json",
    "run mini.yaml --dry-run",
    "run plans/mini/plan.pilots.yaml --dry-run",
    "explain plans/budget_1e24/plan.target.yaml lr",
    "diff plans/budget_1e24/plan.target.yaml plans/mini/plan.pilots.yaml",
    "status",
    "status plans/mini/plan.pilots.yaml",
    "fit runs.csv --at '1e20 FLOP'",
    *(f"{verb} --help" for verb in VERBS),
)
NO_VERDICT = "audit plans/mini/plan.pilots.yaml"
NEED_TRAINING = (
    "run mini.yaml",
    "run plans/mini/plan.pilots.yaml",
    "run plans/mini/plan.pilots.yaml --slurm",
    "rehearse plans/mini/plan.pilots.yaml",
    "doctor",
    "import weights",
    "data bbpe.yaml",
)

SCRIPT = """
import contextlib, io, json, shlex, sys
BLOCKED = json.loads(sys.argv[1])

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from isoplan.cli import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["isoplan", *shlex.split(line)]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([line, code, out.getvalue(), err.getvalue()]))
print(json.dumps(sorted(name for name in BLOCKED if name in sys.modules)))
"""
"""Carries out each line of standard input as if none of the packages were installed."""


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """How every command ended, in one process and one workspace."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "mini.yaml").write_text(PILOTS)
    (folder / "bbpe.yaml").write_text(PILOTS.replace("{kind: bytes}", "{kind: bbpe, vocab: 512}"))
    documents = (f"document {i}: " + f"{i * 7919 % 1000} and so on. " * 800 for i in range(256))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    guide = (ROOT / "docs" / "guides" / "table.md").read_text()
    (folder / "runs.csv").write_text(guide.partition('```csv title="runs.csv"\n')[2].partition("```")[0])
    (folder / "runs.parquet").write_bytes(b"PAR1")
    blocked = [*TRAIN, *SUBMIT, "pyarrow", "sympy"]
    commands = [*WORKS, NO_VERDICT, *NEED_TRAINING, "fit runs.parquet"]
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", SCRIPT, json.dumps(blocked)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    *ended, loaded = map(json.loads, done.stdout.splitlines())
    assert loaded == []
    return {line: Done(*rest) for line, *rest in ended}


def test_the_extra_is_what_is_said_to_be_missing() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(one.partition(">=")[0] for one in extras["train"]) == sorted((*TRAIN, *SUBMIT))
    assert "isoplan[train]" in extras["gpu"]


@pytest.mark.slow
def test_what_trains_nothing_needs_no_extra(typed: dict[str, Done]) -> None:
    assert {line: done for line, done in typed.items() if line in WORKS and done.code != 0} == {}
    assert typed[NO_VERDICT].code == 3


@pytest.mark.slow
@pytest.mark.parametrize("line", NEED_TRAINING)
def test_what_trains_says_what_to_install(line: str, typed: dict[str, Done]) -> None:
    code, _, err = typed[line]
    assert (code, err.count("\n")) == (2, 1), err
    assert "pip install 'isoplan[train]'" in err


@pytest.mark.slow
def test_parquet_says_what_to_install(typed: dict[str, Done]) -> None:
    code, out, err = typed["fit runs.parquet"]
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pip install 'isoplan[parquet]'" in err
