"""The tutorial's blocks run in order, in a folder with the guide's table, and print what the page says."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.test_readme import tables

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()


@pytest.mark.slow
def test_the_tutorial_runs_in_order_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, block in tables():
        Path(name).write_text(block)
    variables: dict[str, Any] = {}
    found = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", TUTORIAL, flags=re.DOTALL)
    assert len(found) == TUTORIAL.count("```python")
    for code, shown in found:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/tutorial.md", "exec"), variables)
        assert printed.getvalue() == shown
