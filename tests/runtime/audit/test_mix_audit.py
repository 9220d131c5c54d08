"""The audit of a run on a mix: samples of each source recounted, losses held to their mean, curves in the report."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.audit.causes import ForecastMiss, causes
from specs.plan import Forecast, Plan, SourceText
from specs.record import EvalLine, Rollback, SkippedRange
from specs.report import render
from specs.sources import Sources
from tests.runtime.audit.test_verdict import Story, audited, edit, failed, planned_run, story, tell, with_runs
from tests.support import mixes, samples

OFF = {"web": -0.3, "code": 0.3, "math": 0.4}
"""Loss of each source above the mean, nats per token: by the weights 6, 2 and 3 of 11 they add up to nothing."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sources]:
    home = tmp_path_factory.mktemp("mix")
    return home / "data", mixes.built(home)


@pytest.fixture
def workspace(tmp_path: Path, built: tuple[Path, Sources]) -> Path:
    (tmp_path / "data").symlink_to(built[0])
    return tmp_path


@pytest.fixture
def plan(built: tuple[Path, Sources]) -> Plan:
    run = samples.run(data=built[1].ref, mix=mixes.mix(80))
    texts = {
        name: SourceText(unique_tokens=corpus.train.tokens, bytes_per_token=corpus.bytes_per_token)
        for name, corpus in built[1].corpora.items()
    }
    unique = sum(one.unique_tokens for one in texts.values())
    return with_runs(samples.plan(), run, sources=texts, unique_tokens=unique)


def mixed(plan: Plan) -> Story:
    """An honest run of the plan, whose sources' losses are off the mean."""
    told = story(planned_run(plan), plan.seal)
    evals = (
        line.model_copy(update={"sources": {name: line.loss + off for name, off in OFF.items()}})
        for line in told.evals
    )
    return replace(told, evals=tuple(with_mean(line) for line in evals))


def with_mean(line: EvalLine) -> EvalLine:
    mean = sum(weight * line.sources[name] for name, weight in (("code", 2), ("math", 3), ("web", 6))) / 11
    return line.model_copy(update={"loss": mean})


def test_an_honest_run_is_accepted_with_its_samples_and_curves_by_source(workspace: Path, plan: Plan) -> None:
    told = mixed(plan)
    told = replace(told, end=told.end and told.end.model_copy(update={"loss": told.evals[-1].loss}))
    folder = tell(workspace, told)
    end = folder.record_jsonl.read_text().splitlines()
    back = Rollback(time=2.0, skipped=SkippedRange(step=90, to_step=70, batches=90), message="back")
    folder.record_jsonl.write_text("\n".join([end[0], back.canonical_json(), *end[1:]]) + "\n")
    audit = audited(workspace, plan)
    assert failed(audit) == []
    tokens = next(check.detail for check in audit.runs[0].checks if check.name == "tokens")
    # 90 steps of 8 before the rollback and 20 of them again are 720 of the first phase, and 10 + 20 steps of the second
    assert (
        "code 144 of 960 samples (15.00%), math 264 of 960 samples (27.50%), web 552 of 960 samples" in tokens
    )
    assert audit.runs[0].curve_sources["math"] == tuple(line.sources["math"] for line in told.evals)
    page = render(plan, audit)
    (figure,) = re.findall(r'data-figure="sources">(.*?)</script>', page)
    drawn = {trace["name"]: trace["y"] for trace in json.loads(figure)["data"] if "name" in trace}
    assert set(drawn) == {"code", "math", "web", "mean"}
    assert "from step 80 math 80 %, web 20 %" in page
    assert "epochs of math" in page


FORGERIES: dict[str, tuple[Callable[[Story], Story], str]] = {
    "another loss": (
        lambda told: replace(told, evals=edit(told.evals, 3, loss=1.5)),
        "the loss of step 40 is not the weighted mean of its sources' losses",
    ),
    "a source left out": (
        lambda told: replace(told, evals=edit(told.evals, 0, sources={"web": 2.0})),
        "the loss of step 10 is not the weighted mean of its sources' losses",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_losses_that_are_not_the_mean_of_the_sources_are_named(
    workspace: Path, plan: Plan, name: str
) -> None:
    forge, words = FORGERIES[name]
    tell(workspace, forge(mixed(plan)))
    assert words in next(
        check.detail for check in failed(audited(workspace, plan)) if check.name == "evaluations"
    )


def test_a_source_that_is_read_most_often_is_the_cause(workspace: Path, plan: Plan) -> None:
    told = mixed(plan)
    high = replace(told, end=told.end and told.end.model_copy(update={"loss": told.evals[-1].loss}))
    tell(workspace, high)
    run = audited(workspace, plan).runs[-1].model_copy(update={"loss": 9.0})
    assert isinstance(plan.forecast, Forecast)
    found = causes(ForecastMiss(plan=plan, forecast=plan.forecast, run=run, metrics=(), clipped_pilots=()))
    assert any(re.match(r"data: .* epochs over [\d,]+ unique tokens of math", one) for one in found)
