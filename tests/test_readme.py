"""The README's commands are run, as a newcomer would type them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from specs.budget import Budget
from specs.document.files import load
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """Every command line of the README that is not make's."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if not line.startswith("make ")]


def typed(command: str, folder: Path, environment: Mapping[str, str], timeout_s: float) -> str:
    """What a command prints that is typed in a folder; it must succeed."""
    done = subprocess.run(
        command.split(),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_commands_work_in_order(tmp_path: Path) -> None:
    """In a workspace with the shipped budgets and nothing else."""
    shutil.copytree(ROOT / "specs", tmp_path / "specs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for command in commands():
        typed(command, tmp_path, environment, timeout_s=600)
    assert (tmp_path / "plans" / "smoke" / "audit.html").exists()
    assert (tmp_path / "plans" / "budget_1e24" / "report.html").exists()


def test_the_budget_that_is_shown_is_a_budget(tmp_path: Path) -> None:
    """And it is the demo's."""
    shown = blocks("yaml")[-1]
    (tmp_path / "demo.yaml").write_text(shown)
    assert load(tmp_path / "demo.yaml", Budget) == load(ROOT / "specs" / "demo.yaml", Budget)


def test_every_file_that_is_named_is_there() -> None:
    """Paths into the repository, and the picture."""
    named = re.findall(r"(?:docs|specs|planner|model|runtime|tests|bench)/[\w./]*", README)
    assert "docs/report.png" in named
    for name in named:
        assert (ROOT / name).exists() or "budget_1e24/" in name, name


def test_decisions_are_numbered_in_reading_order() -> None:
    """So that a number names one of them."""
    design = (ROOT / "docs" / "design.md").read_text()
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \*\*", design, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
