"""Public tables, each from its file by `isoplan fit` to a forecast of its own largest runs. Skipped where absent."""

import json
import sys
from pathlib import Path

import pytest

import isoplan.cli
from tests.support.needs import shared
from tests.support.paths import SHARED

TABLES = (
    "kempner/fineweb.csv",
    "kempner/proof-pile-2.csv",
    "kempner/starcoder.csv",
    "epoch_chinchilla/svg_extracted_data.csv",
    "gemstones/wandb_df_for_fitting_cool_end.jsonl",
)


@pytest.mark.slow
@pytest.mark.parametrize("file", TABLES)
def test_a_public_table_forecasts_its_own_largest_runs(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shared(SHARED / "data" / file)
    monkeypatch.setattr(sys, "argv", ["isoplan", "fit", str(path), "--json", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        isoplan.cli.main()
    assert end.value.code in (0, None)
    fit = json.loads(capsys.readouterr().out)
    assert fit["no_forecast"] is None
    assert fit["forecasts"][0]["extrapolation"] == pytest.approx(10, rel=1e-6)
    assert len(fit["backtests"]) == 2
    assert fit["backtests"][0]["runs"][0][
        "inside_95"
    ]  # the largest run of all, from those half a decade below
    assert max(test["mean_error"] for test in fit["backtests"]) < 0.015  # .2 to 1.3 %
    for profile in fit["profiles"]:
        assert profile["bracketed"] == (profile["reason"] == "")
    page = (tmp_path / "fit.html").read_text(encoding="utf-8")
    for figure in ("frontier", "contours", "residuals"):
        assert f'id="{figure}"' in page
