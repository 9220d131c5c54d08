"""A budget's mix: shares of whole samples, phases at the same shares of every run, epochs of each source."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.design.mix import PlannedMix, planned_mix
from planner.plan import make_plan
from specs.budget import Budget
from specs.data import DataSpec, DeclaredText, MixPart, MixText
from specs.document.files import DocumentError, load
from specs.mix import MOST_PHASES, PERIOD, WeightsFrom
from specs.optim import Cosine, MultiStep, OptimSpec, Wsd, in_steps, multi_step
from specs.plan import Plan
from tests.support.corpora import write_mix
from tests.support.planning import inputs_of

UNIQUE = {"web": 1_000_000, "code": 300_000, "math": 50_000}


def refuse(field: str, what: str, write: str) -> DocumentError:
    return DocumentError(Path(field), 1, 1, what, write)


def mix_of(weights: dict[str, dict[str, float]], *phases: WeightsFrom, **changes: Any) -> PlannedMix:
    """The planned mix of these weights of each source."""
    text = DeclaredText(source="declared", describe="some", unique="1M tokens")  # type: ignore[arg-type]
    parts = {name: MixPart(text=text, **weight) for name, weight in weights.items()}
    unique = {name: UNIQUE.get(name, 10**6) for name in weights}
    schedule = changes.pop("schedule", MultiStep(kind="multi-step"))
    return planned_mix(MixText(source="mix", parts=parts, phases=phases, **changes), unique, schedule, refuse)


def shares(**of: float) -> dict[str, dict[str, float]]:
    return {name: {"share": share} for name, share in of.items()}


def optim(steps: int) -> OptimSpec:
    warmup, milestones = multi_step(steps, 100)
    return OptimSpec(steps=steps, batch_sequences=1, peak_lr=0.1, warmup_steps=warmup, milestones=milestones)


def samples(planned: PlannedMix) -> list[dict[str, int]]:
    return [phase for _, phase in planned.phases]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (shares(web=0.7, code=0.2, math=0.1), {"web": 7, "code": 2, "math": 1}),
        (shares(web=0.29, code=0.71), {"web": 29, "code": 71}),
        (shares(web=0.333, code=0.333, math=0.333), {"code": 33334, "math": 33333, "web": 33333}),
        (shares(web=1.0, code=0.0), {"web": 1}),
        (
            {"web": {"epochs": 1.0}, "code": {"epochs": 2.0}, "math": {"epochs": 8.0}},
            {"web": 5, "code": 3, "math": 2},
        ),
    ],
)
def test_weights_are_whole_samples_of_the_shortest_period(
    weights: dict[str, dict[str, float]], expected: dict[str, int]
) -> None:
    later = WeightsFrom(start=0.5, share={name: 1 / len(weights) for name in weights})
    assert samples(mix_of(weights, later))[0] == expected


@given(st.lists(st.floats(1e-4, 1), min_size=2, max_size=9))
def test_a_share_is_kept_to_a_hundred_thousandth(weights: list[float]) -> None:
    named = {f"s{number}": weight / sum(weights) for number, weight in enumerate(weights)}
    (phase,) = samples(mix_of(shares(**named)))
    period = sum(phase.values())
    assert period <= PERIOD
    assert math.gcd(*phase.values()) == 1
    assert all(abs(phase[name] / period - share) <= 1 / PERIOD for name, share in named.items())


def test_phases_begin_at_the_same_share_of_every_run() -> None:
    planned = mix_of(
        shares(web=0.9, code=0.1, math=0.0),
        WeightsFrom(start=0.5, share={"web": 0.5, "code": 0.5}),
        WeightsFrom(start="milestone 2", epochs={"math": 1.0}),
        WeightsFrom(start=0.99, epochs={"math": 1.0, "web": 1.0}),
    )
    assert [phase.from_step for phase in planned.of_run(optim(2000)).phases] == [0, 1000, 1800, 1980]
    shortest = planned.of_run(optim(20))
    assert [phase.from_step for phase in shortest.phases] == [0, 10, 18, 19]  # each has a step
    assert shortest.evaluation == planned.of_run(optim(2000)).evaluation
    for name, share in planned.shares.items():
        assert planned.of_run(optim(2000)).shares(2000)[name] == pytest.approx(share, abs=1e-3)
        assert planned.evaluation_share(name) == pytest.approx(share, abs=1 / PERIOD)


def test_a_phase_may_begin_with_a_decay_and_a_schedule_without_drops_has_no_milestones() -> None:
    phase = WeightsFrom(start="milestone 1", share={"web": 0.2, "math": 0.8})
    wsd = Wsd(kind="wsd", decay=0.25)
    planned = mix_of(shares(web=0.9, math=0.1), phase, schedule=wsd)
    assert planned.shares == pytest.approx({"web": 0.9 * 0.75 + 0.2 * 0.25, "math": 0.1 * 0.75 + 0.8 * 0.25})
    stepped = in_steps(wsd, 400, 10)
    spec = OptimSpec(steps=400, batch_sequences=1, peak_lr=0.1, **stepped._asdict())
    assert [one.from_step for one in planned.of_run(spec).phases] == [0, 300]
    with pytest.raises(
        DocumentError, match="has 0 drops of the learning rate, and no milestone 1; write a share"
    ):
        mix_of(shares(web=0.9, math=0.1), phase, schedule=Cosine(kind="cosine"))


def test_every_phase_has_a_step_however_early_and_close_they_begin() -> None:
    half = {"web": 0.5, "code": 0.5}
    early = mix_of(shares(web=0.5, code=0.5), *(WeightsFrom(start=s, share=half) for s in (1e-5, 2e-5)))
    assert [phase.from_step for phase in early.of_run(optim(20)).phases] == [0, 1, 2]
    most = (WeightsFrom(start=0.9 + n / 1000, share=half) for n in range(MOST_PHASES))
    full = mix_of(shares(web=0.5, code=0.5), *most)
    assert [phase.from_step for phase in full.of_run(optim(20)).phases] == list(range(20))


def test_the_evaluation_may_have_a_mix_of_its_own() -> None:
    planned = mix_of(shares(web=0.9, code=0.1), evaluation={"code": 1.0})
    assert planned.evaluation == {"web": 0, "code": 1}
    rare = mix_of(shares(web=1.0, code=0.0), WeightsFrom(start=0.99, share={"web": 0.99999, "code": 1e-5}))
    assert rare.evaluation == {"web": 49_999, "code": 1}


def test_a_phase_out_of_order_or_a_share_of_no_sample_is_refused() -> None:
    half = {"web": 0.5, "code": 0.5}
    phases = WeightsFrom(start="milestone 1", share=half), WeightsFrom(start=0.8, share=half)
    with pytest.raises(
        DocumentError, match=r"phases.1.start:1:1: the phase begins at 0.8 of the steps, and the one"
    ):
        mix_of(shares(web=0.5, code=0.5), *phases)
    with pytest.raises(DocumentError, match="no milestone 3; write milestone 2, or a share of the steps"):
        mix_of(shares(web=0.5, code=0.5), WeightsFrom(start="milestone 3", share=half))
    with pytest.raises(
        DocumentError, match="less than one sample in 100,000; write share 1e-05 or more for web"
    ):
        mix_of(shares(web=1e-6, code=0.999999))
    mix_of(shares(web=1e-5, code=0.99999))
    tiny = {"web": {"epochs": 1.0}, "math": {"epochs": 1e-5}}
    with pytest.raises(DocumentError, match=r"write epochs (\S+) or more for math") as refused:
        mix_of(tiny)
    least = re.search(r"write epochs (\S+)", str(refused.value))
    assert least
    mix_of({"web": {"epochs": 1.0}, "math": {"epochs": float(least[1])}})


# --- plans ---

BUDGET = """\
kind: budget
name: b
compute: 1e22 FLOP
evidence: {kind: published, law: deepseek, loss: epoch-chinchilla}
family: deepseek
cluster: h800-2048
epochs: 4
data:
  text:
    source: mix
    parts:
      web: {text: {source: declared, describe: web, unique: 200B tokens}, share: 0.9}
      math: {text: {source: declared, describe: math, unique: 20B tokens}, share: 0.1}
  tokenizer: {kind: bbpe, vocab: 50257}
"""


def planned(folder: Path, text: str) -> Plan:
    (folder / "b.yaml").write_text(text)
    return make_plan(inputs_of(folder / "b.yaml", folder / "out", folder / "data"))


def test_a_declared_mix_is_planned_with_the_epochs_of_each_source(tmp_path: Path) -> None:
    plan = planned(tmp_path, BUDGET)
    run = plan.runs[-1].run
    assert run.mix is not None
    assert run.data.digest is None
    assert plan.unique_tokens == 220 * 10**9
    assert {name: one.unique_tokens for name, one in plan.sources.items()} == {
        "web": 200 * 10**9,
        "math": 20 * 10**9,
    }
    assert plan.epochs(run)["math"] == pytest.approx(0.1 * run.tokens / 2e10)
    other = BUDGET.replace("share: 0.9", "share: 0.8").replace("share: 0.1", "share: 0.2")
    assert planned(tmp_path, other).runs[-1].run.data == run.data  # weights are no identity


def test_each_source_must_last_for_the_epochs_and_every_remedy_plans(tmp_path: Path) -> None:
    text = BUDGET.replace("unique: 20B", "unique: 2B")
    with pytest.raises(
        DocumentError, match=r"tokens of math, .* epochs over its 2B unique tokens, but"
    ) as refused:
        planned(tmp_path, text)
    more, less = str(refused.value).rpartition("; ")[2].split(", or ")[:2]
    factor = re.fullmatch(r"provide (\S+) times as many unique tokens of every source", more)
    flop = re.fullmatch(r"spend at most (\S+) FLOP", less)
    assert factor
    assert flop
    assert planned(tmp_path, text.replace("1e22", flop[1])).runs
    for billions in (200, 2):
        text = text.replace(
            f"unique: {billions}B", f"unique: {math.ceil(1e3 * billions * float(factor[1]))}M"
        )
    assert planned(tmp_path, text).runs


def test_a_source_of_which_too_little_is_held_out_is_named(tmp_path: Path) -> None:
    """Each takes its share of the sequences, and the demo's family takes 512 of 256 tokens."""
    text = """\
kind: budget
name: b
compute: 2e10 FLOP
evidence: {kind: published, law: tiny}
family: tiny
cluster: laptop
epochs: 20
data:
  text:
    source: mix
    parts:
      web: {text: {source: files, paths: [web/*.txt]}, share: 0.5}
      math: {text: {source: files, paths: [math/*.txt]}, share: 0.5}
    evaluation: {web: 0.9, math: 0.1}
  tokenizer: {kind: bytes}
precision: fp32
"""
    (tmp_path / "b.yaml").write_text(text)
    spec = load(tmp_path / "b.yaml", Budget).data
    write_mix(spec, tmp_path, {"web": 10**6, "math": 51 * 256 + 1})
    run = planned(tmp_path, text).runs[-1].run
    assert run.mix is not None
    assert (run.mix.evaluation, run.evaluation.final_sequences) == ({"web": 9, "math": 1}, 512)
    write_mix(spec, tmp_path, {"web": 10**6, "math": 50 * 256})
    why = "of math has 49 sequences of 256 tokens, but the evaluations of the family tiny take 51 of it"
    with pytest.raises(DocumentError, match=why):
        planned(tmp_path, text)


def test_bytes_per_token_are_those_of_the_evaluation_mix(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(BUDGET)
    inputs = inputs_of(tmp_path / "b.yaml", tmp_path / "out", tmp_path / "data")
    parts = {
        name: {"text": {"source": "files", "paths": [f"{name}.txt"]}, "share": 0.5}
        for name in ("web", "math")
    }
    spec = DataSpec.model_validate(
        {"text": {"source": "mix", "parts": parts}, "tokenizer": {"kind": "bytes"}}, strict=False
    )
    sources = write_mix(spec, tmp_path, {"web": 100, "math": 100})
    corpora = {
        name: one.model_copy(update={"bytes_per_token": length})
        for (name, one), length in zip(sources.corpora.items(), (4.0, 3.0), strict=True)
    }
    assert replace(inputs, sources=replace(sources, corpora=corpora)).bytes_per_token == pytest.approx(3.9)
