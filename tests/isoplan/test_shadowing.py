"""A user's own module of one of our names is named, in one line, before anything of it is executed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isoplan.shadowing import OURS
from isoplan.verbs import VERBS, verb_command
from tests.support.paths import ROOT
from tests.test_imports import MAY_IMPORT

DECOY = "raise RuntimeError('a module of the current folder was imported')\n"
CONSOLE_SCRIPT = "import sys; from isoplan.cli import main; sys.argv = ['isoplan', '--help']; main()"
"""What pip writes, as far as it matters here."""


def python(folder: Path, *words: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_package_of_ours_is_watched() -> None:
    assert {*OURS, "isoplan"} == set(MAY_IMPORT)


@pytest.mark.parametrize("decoy", ["planner.py", "runtime.py", "model/__init__.py", "specs.py"])
def test_a_file_that_hides_ours_is_one_line_and_is_not_executed(decoy: str, tmp_path: Path) -> None:
    (tmp_path / decoy).parent.mkdir(exist_ok=True)
    (tmp_path / decoy).write_text(DECOY)
    done = python(tmp_path, "-m", "isoplan", "--help", path=str(ROOT))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{tmp_path / decoy}: ")
    assert "rename it" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_console_script_meets_it_on_the_path_only(tmp_path: Path) -> None:
    """Its own folder comes first on Python's path, and not the current one."""
    (tmp_path / "planner.py").write_text(DECOY)
    beside = python(tmp_path, "-P", "-c", CONSOLE_SCRIPT, path=str(ROOT))
    assert (beside.returncode, beside.stderr) == (0, "")
    before = python(tmp_path, "-P", "-c", CONSOLE_SCRIPT, path=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (before.returncode, before.stderr.count("\n")) == (2, 1)
    assert "planner.py" in before.stderr


def test_a_folder_of_documents_hides_nothing(tmp_path: Path) -> None:
    """As a workspace's `specs/` is: a package has an `__init__.py`."""
    (tmp_path / "specs").mkdir()
    assert python(tmp_path, "-m", "isoplan", "--version", path=str(ROOT)).returncode == 0


def test_the_list_of_verbs_says_what_their_own_help_says() -> None:
    first = {name: verb_command(name).help.partition("\n\n")[0].replace("\n", " ") for name in VERBS}
    assert first == {name: verb.summary for name, verb in VERBS.items()}
