"""Every verb answers programs as well as people: `--json` puts one JSON document on standard output."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specs.document.base import Spec
from specs.plan_file import load_plan, save_plan
from tests.support import examples, samples
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
        "ledger",
        "export",
        "import",
    }
    verbs.remove("ledger")
    verbs += [f"ledger {verb}" for verb in ("list", "add", "exclude", "include")]
    assert [verb for verb in verbs if "--json" not in isoplan(tmp_path, *verb.split(), "--help").stdout] == []


def test_starter_budgets_are_listed_with_what_became_of_them(tmp_path: Path) -> None:
    first, again = (answered(tmp_path, "init", "here") for _ in range(2))
    assert isinstance(first, dict)
    assert isinstance(again, dict)
    assert {Path(one["path"]).name for one in first["budgets"]} >= {"demo.yaml", "budget_1e24.yaml"}
    assert all(one["written"] for one in first["budgets"])
    assert not any(one["written"] for one in again["budgets"])


@pytest.mark.slow
def test_isoplan_hands_questions_to_the_planner(tmp_path: Path) -> None:
    save_plan(tmp_path / "plan.yaml", examples.make_plan("target"))
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


def test_an_answer_has_what_is_derived_beside_what_is_stored() -> None:
    run = samples.run()
    answer = run.answer()
    richer = {"model", "optim"}
    assert {name: answer[name] for name in run.plain().keys() - richer} == {
        name: value for name, value in run.plain().items() if name not in richer
    }
    assert answer["tokens"] == run.tokens
    assert answer["optim"] == run.optim.plain() | {"schedule_text": run.optim.schedule_text}
    assert answer["model"] == run.model.plain() | {
        name: getattr(run.model, name)
        for name in (
            "attended_tokens",
            "block_params",
            "flop_per_token",
            "head_dim",
            "mfu_flop_per_token",
            "paper_flop_per_token",
            "params",
            "uniform_loss",
        )
    }


def test_no_field_of_an_answer_is_one_of_the_document_with_another_value() -> None:
    """A plan's answer, without what was added to it, is the plan."""

    def stored(value: object, answer: object) -> object:
        if isinstance(value, Spec):
            assert isinstance(answer, dict)
            return {name: stored(getattr(value, name), answer[name]) for name in value.plain()}
        if isinstance(value, tuple):
            assert isinstance(answer, list)
            return [stored(*pair) for pair in zip(value, answer, strict=True)]
        return answer

    plan = examples.make_plan("target")
    assert stored(plan, plan.answer()) == plan.plain()


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (("audit", "plan.yaml"), lambda said: said["runs"]),
        (("run", "plan.yaml", "--dry-run"), lambda said: said["runs"]),
        (("status", "plan.yaml"), lambda said: said["plans"][0]["runs"]),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_every_run_of_an_answer_comes_with_its_size_and_length(
    words: tuple[str, ...], runs: Callable[[dict[str, Any]], list[dict[str, Any]]], tmp_path: Path
) -> None:
    save_plan(tmp_path / "plan.yaml", examples.make_plan("target"))
    said = json.loads(isoplan(tmp_path, *words, "--json").stdout)
    planned = load_plan(tmp_path / "plan.yaml").runs
    for run, one in zip(runs(said), planned, strict=True):
        model = one.run.model
        assert run["run"] == one.run.fingerprint()
        assert (run["params"], run["flop_per_token"]) == (model.params, model.flop_per_token)
        assert (run["tokens"], run["compute_flop"]) == (one.run.tokens, one.run.compute_flop)


def test_an_audit_says_what_it_compares_with(tmp_path: Path) -> None:
    save_plan(tmp_path / "plan.yaml", examples.make_plan("target"))
    done = isoplan(tmp_path, "audit", "plan.yaml", "--json")
    said, plan = json.loads(done.stdout), load_plan(tmp_path / "plan.yaml")
    assert said["exit_code"] == done.returncode
    assert said["forecast"] == plan.forecast.plain()
    assert Path(tmp_path / said["path"]).exists()
    assert Path(tmp_path / said["report"]).exists()
