"""Every figure can be saved from its page: buttons beside it, its data inside, numbers under the names of its axes."""

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import specs.report
from specs.report import figure_parts, render
from specs.report.figure_parts import Figure
from tests.support import examples

SCRIPT = Path(specs.report.__file__).with_name("page.js")


def test_every_figure_of_a_page_has_its_buttons() -> None:
    plan = examples.make_plan()
    page = render(plan, examples.make_audit(plan))
    figures = re.findall(r'data-figure="([^"]+)"', page)
    assert len(figures) >= 5
    for name in figures:
        for form in ("svg", "csv"):
            assert f'data-save="{form}" data-of="{name}"' in page


def saved(figure: Figure) -> list[dict[str, str]]:
    """The rows that the page's script saves for a figure, where there is a node to run it."""
    if shutil.which("node") is None:
        pytest.skip("needs node, to run the page's script without a browser")
    code = (
        "const document = { querySelectorAll: () => [] }, addEventListener = () => {};\n"
        f"{SCRIPT.read_text(encoding='utf-8')}\nprocess.stdout.write(csvOf(rowsOf({json.dumps(figure)})));"
    )
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    return list(csv.DictReader(io.StringIO(done.stdout)))


def test_points_and_bands_are_rows_under_the_titles_of_their_axes() -> None:
    drawn = [
        figure_parts.band([1.0, 10.0], [2.0, 1.0], [4.0, 3.0], "#000", "95 %"),
        figure_parts.dots([1.0], [2.5], "#000", "runs", ['a "run", <b>']),
        figure_parts.label(1.0, 2.5, "a label", "#000", "middle right"),
        {"x": [1, 1, None], "y": [5, 6, None], "mode": "lines", "name": "bars"},
        figure_parts.on(figure_parts.line([1.0], [7.0], "#000", "below"), y="y2"),
    ]
    loss = figure_parts.linear("loss")
    figure = figure_parts.figure(drawn, figure_parts.linear("C<sub>1</sub>, FLOP"), loss)
    figure["layout"]["yaxis2"] = figure_parts.linear("off", ticksuffix=" %")
    rows = saved(figure)
    found = [(row["trace"], row["C1, FLOP"], row["loss"], row["off, %"]) for row in rows]
    assert found == [
        ("95 %, low", "1", "2", ""),
        ("95 %, low", "10", "1", ""),
        ("95 %, high", "10", "3", ""),
        ("95 %, high", "1", "4", ""),
        ("runs", "1", "2.5", ""),
        ("bars", "1", "5", ""),
        ("bars", "1", "6", ""),
        ("below", "1", "", "7"),
    ]
    assert rows[4]["text"] == 'a "run", <b>'


def test_a_grid_is_a_row_for_each_of_its_cells() -> None:
    grid = {"type": "contour", "x": [1, 2], "y": [3, 4], "z": [[5, 6], [7, None]]}
    grid |= {"name": "equal loss", "colorbar": {"title": {"text": "loss"}}}
    rows = saved(figure_parts.figure([grid], figure_parts.linear("C"), figure_parts.linear("N")))
    assert [tuple(row.values()) for row in rows] == [
        ("equal loss", "1", "3", "5"),
        ("equal loss", "2", "3", "6"),
        ("equal loss", "1", "4", "7"),
        ("equal loss", "2", "4", ""),
    ]
