"""The command `isoplan fit`, in this process, with a table that is given to it in place of a file."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import isoplan.cli
from planner.scaling.laws import STANDARD, value
from planner.table_fit import cli
from specs.document.files import DocumentError
from specs.run_table.table import RunTable
from tests.support.paths import ROOT
from tests.support.run_tables import run_table


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, object]]:
    """What the reader is asked for; it gives one small ladder."""
    size, flop = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e8, 4), [1e17, 4e17, 1.6e18]))
    loss = value(STANDARD, (1.7, 400.0, 410.0, 0.34, 0.30), size, flop / 6 / size)
    questions: list[dict[str, object]] = []

    def read_table(path: Path, mapping: Mapping[str, str], **options: object) -> RunTable:
        if not path.exists():
            raise DocumentError(path, 1, 1, "there is no such file", "give the path of a file")
        questions.append({"mapping": dict(mapping), **options})
        return run_table(size, flop / 6 / size, loss, name=str(path))

    reader = ModuleType("specs.run_table.read")
    reader.read_table = read_table  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "specs.run_table.read", reader)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my runs.csv").write_text("")
    return questions


def fit(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["isoplan", "fit", *words])
    with pytest.raises(SystemExit) as end:
        isoplan.cli.main()
    return int(end.value.code or 0)


@pytest.mark.slow
def test_a_table_gives_tables_and_a_report(
    asked: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(monkeypatch, "my runs.csv", "--column", "loss=val/loss", "--loss-unit", "nats/token") == 0
    printed = capsys.readouterr().out
    assert asked == [{"mapping": {"loss": "val/loss"}, "bytes_per_token": None, "loss_unit": "nats/token"}]
    assert "1.6e19 FLOP" in printed  # 10 times the largest compute, since nothing was asked for
    assert "fits/my-runs/fit.html" in printed
    assert Path("fits/my-runs/fit.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_json_is_one_document(
    asked: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--json", "--out", "here", "--at", "1e20 FLOP", "--at", "1B params 20B tokens"]
    assert fit(monkeypatch, "my runs.csv", *words) == 0
    plain = json.loads(capsys.readouterr().out)
    assert [one["target"] for one in plain["forecasts"]] == ["1e20 FLOP", "1B params, 20B tokens"]
    assert Path("here/fit.html").exists()


def test_a_refusal_of_curves_names_the_option_that_is_theirs(
    asked: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--column would be refused for a table of runs that lacks the curves' columns."""
    Path("curves.csv").write_text("id,tokens,C4 Eval Loss,Wiki Eval Loss\na,1e9,4,5\n")
    assert fit(monkeypatch, "my runs.csv", "--curves", "curves.csv") == 2
    write = "say which: --curves-column 'loss=C4 Eval Loss' or --curves-column 'loss=Wiki Eval Loss'"
    assert capsys.readouterr().err.rstrip().endswith(write)


@pytest.mark.slow
def test_curves_join_the_runs_and_are_drawn(
    asked: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{name},{tokens},{loss}"
        for name in ("line 2", "line 3", "x")
        for tokens, loss in ((1e8, 5), (2e8, 4))
    ]
    Path("curves.csv").write_text("\n".join(["id,tokens,val/ce", *rows]))
    words = ["--curves", "curves.csv", "--curves-column", "loss=val/ce", "--column", "loss=val/loss"]
    assert fit(monkeypatch, "my runs.csv", "--json", *words) == 0
    curves = json.loads(capsys.readouterr().out)["curves"]
    assert (curves["runs"], curves["points"], curves["held_out"]) == (2, 4, True)
    assert "1 curve without a run in the table: x" in curves["notes"]
    page = Path("fits/my-runs/fit.html").read_text()
    assert 'data-figure="curves"' in page
    assert "curves: 1 curve without a run in the table: x" in page


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["absent.csv"], "give the path of a file"),
        (["my runs.csv", "--column", "loss"], "write quantity=column"),
        (["my runs.csv", "--column", "loss=a", "--column", "loss=b"], "keep one of them"),
        (["my runs.csv", "--loss-unit", "perplexity"], "write nats/token"),
        (["my runs.csv", "--at", "1e22"], "write it like '1e22 FLOP'"),
        (["my runs.csv", "--curves", "absent.csv"], "give the path of a file"),
        (["my runs.csv", "--curves-column", "loss=a"], "--curves FILE"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    asked: list[dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    remedy: str,
) -> None:
    assert fit(monkeypatch, *words) == 2
    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert remedy in printed.err
    assert not Path("fits").exists()


def test_no_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tests.support.run_tables import run_table\n"
        "from planner.table_fit import cli, analysis\n"
        "analysis.analyse(run_table([1e7, 2e7, 4e7], [4e9, 2e9, 1e9], [3.1, 3.0, 3.1]), [])\n"
        "print([name for name in ('torch', 'model', 'runtime') if sys.modules.get(name)])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("path", "name"), [("a/b.csv", "b"), ("../x y.jsonl", "x-y"), ("....csv", "table"), ("-rf.csv", "rf")]
)
def test_a_report_lies_in_a_folder_that_is_named_after_the_table(path: str, name: str) -> None:
    assert cli.folder_name(Path(path)) == name
