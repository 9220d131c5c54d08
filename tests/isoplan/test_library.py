"""`import isoplan`: the commands from Python, with the same numbers and the same refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import isoplan
from planner.scaling.laws import STANDARD, value
from specs.plan_file import save_plan
from specs.run_table.read import read_columns
from tests.support import examples
from tests.support.commands import isoplan as typed
from tests.support.paths import ROOT, SPECS

AT = "1e20 FLOP"


def columns() -> dict[str, list[float]]:
    """A small ladder; its losses lie on the law."""
    size, flop = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e8, 4), [1e17, 4e17, 1.6e18]))
    tokens = flop / 6 / size
    loss = value(STANDARD, (1.7, 400.0, 410.0, 0.34, 0.30), size, tokens)
    rounded = [[float(f"{cell:.6g}") for cell in column] for column in (size, tokens, loss)]
    return dict(zip(("params", "tokens", "measured"), rounded, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the ladder as a table."""
    folder = tmp_path_factory.mktemp("library")
    rows = (",".join(map(str, row)) for row in zip(*columns().values(), strict=True))
    (folder / "runs.csv").write_text("\n".join([",".join(columns()), *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def fit() -> isoplan.Fit:
    return isoplan.fit(columns(), columns={"loss": "measured"}, at=AT)


@pytest.mark.slow
def test_a_table_in_memory_gives_what_the_command_gives_for_its_file(folder: Path, fit: isoplan.Fit) -> None:
    done = typed(folder, "fit", "runs.csv", "--column", "loss=measured", "--at", AT, "--json")
    said, mine = json.loads(done.stdout), json.loads(json.dumps(fit.answer()))
    assert said.pop("report") == "fits/runs/fit.html"
    for one in (said, mine):
        for key in ("path", "sha256"):
            del one["table"][key]
        for run in (*one["runs"], *(run for test in one["backtests"] for run in test["runs"])):
            del run["name"], run["line"]
    assert mine == said


@pytest.mark.slow
def test_a_path_is_a_table_too(folder: Path, fit: isoplan.Fit) -> None:
    of_file = isoplan.fit(folder / "runs.csv", columns={"loss": "measured"}, at=[AT])
    assert of_file.forecasts == fit.forecasts
    assert of_file.table.path == str(folder / "runs.csv")


@pytest.mark.slow
def test_a_forecast_is_the_same_from_a_fit_and_from_its_table(fit: isoplan.Fit) -> None:
    at = "100M params 40B tokens"
    later = fit.forecast(at)
    assert later == isoplan.forecast(fit, at)
    assert later == isoplan.forecast(columns(), at, columns={"loss": "measured"})
    assert later.loss.low_95 < later.loss.low_50 < later.loss.median < later.loss.high_50 < later.loss.high_95
    assert fit.forecast(AT).loss == fit.forecasts[0].loss


def test_results_show_themselves_and_are_frozen(fit: isoplan.Fit) -> None:
    forecast = fit.forecast(AT)
    for result, word in ((fit, "backtest"), (forecast, "final loss of one run")):
        assert word in repr(result)
        assert word in result._repr_html_()
        assert result._repr_html_().startswith("<pre")
        assert str(result) == repr(result)
    with pytest.raises(ValidationError):
        fit.budgets = 1  # type: ignore[misc]


def test_results_are_compared_by_their_content(fit: isoplan.Fit) -> None:
    table = read_columns(columns(), {"loss": "measured"})
    assert isoplan.Fit.of(fit, table) == fit
    assert isoplan.Fit.of(fit.model_copy(update={"forecasts": ()}), table) != fit


def test_a_report_is_written_on_request(fit: isoplan.Fit, tmp_path: Path) -> None:
    fit.write_report(tmp_path / "a" / "fit.html")
    assert (tmp_path / "a" / "fit.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_curves_are_joined_and_drawn(tmp_path: Path) -> None:
    table: dict[str, Any] = columns() | {"name": [f"run {number}" for number in range(12)]}
    tokens, loss = table["tokens"][3], table["measured"][3]
    points = [f"run 3,{tokens * share},{loss / share**0.1}\n" for share in (0.1, 0.3, 1.0)]
    (tmp_path / "curves.csv").write_text("name,tokens,val_loss\n" + "".join(points))
    fit = isoplan.fit(table, columns={"loss": "measured"}, at=AT, curves=tmp_path / "curves.csv")
    assert fit.curves is not None
    fit.write_report(tmp_path / "fit.html")
    assert 'id="curves"' in (tmp_path / "fit.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"table": columns()}, "or map it: columns={'loss': 'NAME'}"),
        ({"table": columns(), "columns": {"loss": "measurd"}}, "the table has no column 'measurd' for loss"),
        (
            {"table": columns() | {"C4 Eval Loss": [3.5] * 12, "Wiki Eval Loss": columns()["measured"]}},
            "say which: columns={'loss': 'C4 Eval Loss'} or columns={'loss': 'Wiki Eval Loss'}",
        ),
        ({"table": "absent.csv"}, "there is no such file"),
        ({"table": columns(), "columns": {"loss": "measured"}, "at": "7B"}, "at: '7B' is not a target"),
        (
            {"table": columns(), "columns": {"loss": "measured"}, "at": 1e22},
            "at: '1e+22' is not a target; write it",
        ),
        (
            {"table": columns(), "columns": {"loss": "measured"}, "loss_unit": "bits/byte"},
            "bytes_per_token=4.3",
        ),
    ],
)
def test_a_refusal_is_a_value_error_of_one_line_that_names_arguments(
    arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(isoplan.InputError) as refused:
        isoplan.fit(**arguments)
    assert isinstance(refused.value, ValueError)
    assert says in str(refused.value)
    assert "--" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_forecast_of_a_fit_names_arguments_too(fit: isoplan.Fit) -> None:
    with pytest.raises(isoplan.InputError, match=r"^at: '7B' is not a target; write it like '1e22 FLOP'"):
        fit.forecast("7B")


def test_a_table_without_a_law_gives_no_forecast() -> None:
    one = {name: cells[:4] for name, cells in columns().items()}
    fit = isoplan.fit(one, columns={"loss": "measured"})
    assert fit.no_forecast is not None
    with pytest.raises(isoplan.InputError, match="there is no law to forecast with"):
        isoplan.forecast(fit, AT)


def test_a_plan_is_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = isoplan.plan(SPECS / "budget_1e24.yaml")
    assert plan.path == Path("plans/budget_1e24/plan.target.yaml")
    assert (plan.path.parent / "report.html").exists()
    said = json.loads(typed(tmp_path, "plan", SPECS / "budget_1e24.yaml", "--json").stdout)
    assert said.items() >= json.loads(json.dumps(plan.answer())).items()
    assert "95 layers" in repr(plan)
    assert "95 layers" in plan._repr_html_()


def test_an_audit_is_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_plan(tmp_path / "plan.yaml", examples.make_plan("target"))
    audit = isoplan.audit("plan.yaml")
    assert audit.verdict == "cannot tell"
    done = typed(tmp_path, "audit", "plan.yaml", "--json")
    assert done.returncode == 3
    said = json.loads(done.stdout)
    assert {name: said[name] for name in audit.plain() if name != "runs"} == {
        name: value for name, value in audit.plain().items() if name != "runs"
    }
    assert (tmp_path / "audit.html").exists()
    assert audit.reason in repr(audit)


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """A script of a user's in that folder, which comes first on its path."""
    (folder / "script.py").write_text(code)
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_it_imports_nothing_else(tmp_path: Path) -> None:
    names = "('numpy', 'pydantic', 'rich', 'typer', 'specs', 'planner', 'runtime')"
    done = python(tmp_path, f"import sys, isoplan\nprint([name for name in {names} if name in sys.modules])")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_users_module_that_hides_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "planner.py").write_text("raise RuntimeError('imported')\n")
    code = "import isoplan\ntry:\n    isoplan.fit({})\nexcept ImportError as error:\n    print(error)\n"
    done = python(tmp_path, code)
    assert done.stderr == ""
    assert done.stdout.startswith(f"{tmp_path / 'planner.py'}: ")
    assert done.stdout.count("\n") == 1


def test_only_public_names_are_offered() -> None:
    assert set(isoplan.__all__) <= set(dir(isoplan))
    assert all(hasattr(isoplan, name) for name in isoplan.__all__)
    with pytest.raises(AttributeError, match="fits"):
        isoplan.fits  # type: ignore[attr-defined]  # noqa: B018
