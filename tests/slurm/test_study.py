"""The README's page on clusters, followed to the letter: from a budget to an audited run, with no one watching."""

import os
import re
import sys
from pathlib import Path

import pytest

from runtime.run_folder.folder import RunFolder
from specs.document.files import load
from specs.plan import Plan
from specs.record import Audit, Start
from specs.slurm_submission import StudyState
from tests.support.slurm.cluster import Cluster
from tests.test_readme import blocks, typed

pytestmark = pytest.mark.slurm


def page() -> tuple[dict[str, str], list[str]]:
    """Its files by name, and its commands."""
    files = {match[1]: block for block in blocks("yaml") if (match := re.match(r"# (\S+)\n", block))}
    commands = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    return files, commands


def test_a_study_goes_from_a_budget_to_a_verdict_by_itself(cluster: Cluster, tmp_path: Path) -> None:
    files, commands = page()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    programs = f"{Path(sys.executable).parent}:{cluster.environment()['PATH']}"
    environment = os.environ | cluster.environment() | {"PATH": programs}

    assert commands, "the README has a page on clusters"
    said = {command: typed(command, tmp_path, environment, timeout_s=300) for command in commands}
    assert "#SBATCH --partition=main" in said["run study.yaml --slurm --until-done --dry-run"]

    state = tmp_path / "plans" / "study" / "study.json"
    study = cluster.until(lambda: settled(state), "the study is done", timeout_s=900)
    assert study.state == "done", study.message
    audit = load(tmp_path / "plans" / "study" / "audit.target.json", Audit)
    assert audit.verdict in ("inside", "outside"), audit.reason

    plan = load(tmp_path / "plans" / "study" / "plan.target.yaml", Plan)
    [target] = plan.runs
    starts = [
        line
        for line in RunFolder(tmp_path / "runs" / target.run.fingerprint()).records()
        if isinstance(line, Start)
    ]
    assert target.execution.layout.devices == 4
    assert [str(start.job).partition(" on ")[2] for start in starts] == ["node[1-2]"]
    assert starts[0].seal == plan.seal
    cluster.until(lambda: cluster.run("squeue", "--noheader") == "", "nothing is left in the queue")
    queued = len(list((tmp_path / "slurm").glob("study-*")))
    typed(commands[2], tmp_path, environment, timeout_s=300)
    assert len(list((tmp_path / "slurm").glob("study-*"))) == queued, "what is done is not queued again"


def settled(path: Path) -> StudyState | None:
    """How the study ended; None while it waits."""
    study = load(path, StudyState)
    return None if study.state == "waiting" else study
