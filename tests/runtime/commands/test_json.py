"""Every verb answers programs as well as people: `--json` puts one JSON document on standard output."""

import json
import re
from pathlib import Path

import pytest

from specs.document.write import write_yaml
from tests.support import examples
from tests.support.commands import isoplan


def answered(folder: Path, *words: object) -> object:
    done = isoplan(folder, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_verb_offers_json(tmp_path: Path) -> None:
    verbs = re.findall(r"^│ ([a-z]+) ", isoplan(tmp_path, "--help").stdout, re.MULTILINE)
    assert set(verbs) >= {
        "plan",
        "run",
        "audit",
        "fit",
        "explain",
        "diff",
        "data",
        "init",
        "export",
        "import",
    }
    assert [verb for verb in verbs if "--json" not in isoplan(tmp_path, verb, "--help").stdout] == []


def test_starter_budgets_are_listed_with_what_became_of_them(tmp_path: Path) -> None:
    first, again = (answered(tmp_path, "init", "here") for _ in range(2))
    assert isinstance(first, dict)
    assert isinstance(again, dict)
    assert {Path(one["path"]).name for one in first["budgets"]} >= {"demo.yaml", "budget_1e24.yaml"}
    assert all(one["written"] for one in first["budgets"])
    assert not any(one["written"] for one in again["budgets"])


@pytest.mark.slow
def test_isoplan_hands_questions_to_the_planner(tmp_path: Path) -> None:
    write_yaml(tmp_path / "plan.yaml", examples.make_plan("target"))
    told = answered(tmp_path, "explain", "plan.yaml", "layers")
    assert isinstance(told, dict)
    assert told["value"] == 2
    same = answered(tmp_path, "diff", "plan.yaml", "plan.yaml")
    assert isinstance(same, dict)
    assert same["differences"] == []
    refused = isoplan(tmp_path, "explain", "plan.yaml", "layrs", "--json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(refused.stderr.splitlines()) == 1
    assert isoplan(tmp_path, "explain", "absent.yaml", "lr").returncode == 2
