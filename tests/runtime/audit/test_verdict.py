"""The audit: forged records are caught and named, verdicts follow the sealed band, the ledger grows once."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from runtime.audit.verdict import audit_plan, exit_code, show
from runtime.data.build.corpus import build
from runtime.run_folder.folder import RunFolder
from specs.data import Bytes, CorpusRef, DataSpec, FileText
from specs.document.base import Spec
from specs.document.files import DocumentError, load, read_lines
from specs.document.write import write_json, write_text, write_yaml
from specs.humanize import duration
from specs.plan import Forecast, NoForecast, Plan, PlannedRun
from specs.record import (
    Audit,
    Check,
    End,
    Environment,
    EvalLine,
    Incident,
    LedgerRecord,
    Start,
    StepLine,
    TimingLine,
)
from specs.run import RunSpec
from tests.support import examples, samples

OTHER = "e" * 64
"""A seal of no plan here."""


@dataclass(frozen=True)
class Story:
    """What a run's folder will say."""

    run: RunSpec
    starts: tuple[Start, ...]
    metrics: tuple[StepLine, ...]
    evals: tuple[EvalLine, ...]
    timing: tuple[TimingLine, ...]
    end: End | None
    incidents: tuple[Incident, ...] = field(default=())


def start(run: RunSpec, seal: str | None, from_step: int = 0) -> Start:
    where = Environment(host="here", python="3.11", packages={}, commit=None, cpu="a sample", devices=())
    return Start(
        time=1.0,
        run=run.fingerprint(),
        seal=seal,
        from_step=from_step,
        execution=samples.execution(),
        kernels={},
        environment=where,
    )


def story(run: RunSpec, seal: str, loss: float = 2.0, tokens_per_s: float = 1e4) -> Story:
    """An honest run that ends at `loss`; its curve falls by 0.02 a step until then."""
    steps, batch, asked = run.optim.steps, run.batch_tokens, run.evaluation
    points = [*range(asked.every_steps, steps, asked.every_steps), steps]
    return Story(
        run=run,
        starts=(start(run, seal),),
        metrics=tuple(
            StepLine(step=s, tokens=s * batch, loss=loss + 1, grad_norm=0.5, lr=run.optim.lr(s))
            for s in range(1, steps + 1)
        ),
        evals=tuple(
            EvalLine(
                step=s,
                tokens=s * batch,
                loss=loss + 0.02 * (steps - s),
                sequences=asked.final_sequences if s == steps else asked.sequences,
            )
            for s in points
        ),
        timing=tuple(TimingLine(step=s, seconds=2.0, tokens_per_s=tokens_per_s, mfu=None) for s in points),
        end=End(time=9.0, step=steps, loss=loss, weights_sha256="a" * 64),
    )


def tell(workspace: Path, told: Story, folder: str | None = None) -> RunFolder:
    """Write a run's folder; `folder` is its name, the run's fingerprint if not given."""
    place = RunFolder(workspace / "runs" / (folder or told.run.fingerprint()))
    write_json(place.run_json, told.run)
    end = () if told.end is None else (told.end,)
    write_lines(place.record_jsonl, (*told.starts, *told.incidents, *end))
    write_lines(place.metrics_jsonl, told.metrics)
    write_lines(place.evals_jsonl, told.evals)
    write_lines(place.timing_jsonl, told.timing)
    return place


def write_lines(path: Path, lines: Sequence[Spec]) -> None:
    write_text(path, "".join(line.canonical_json() + "\n" for line in lines))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CorpusRef]:
    """A built corpus and its reference; tests only read it."""
    home = tmp_path_factory.mktemp("corpus")
    texts = [f"Document {i} says a few things about {i * 7919 % 1009}. " * 9 for i in range(20)]
    (home / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spec = DataSpec(
        text=FileText(source="files", paths=("text.jsonl",)),
        tokenizer=Bytes(kind="bytes"),
        held_out_one_in=4,
    )
    built = build(spec, home, home / "data", Console(quiet=True))
    return home / "data", CorpusRef(corpus=built.name, digest=built.digest)


@pytest.fixture
def workspace(tmp_path: Path, data: tuple[Path, CorpusRef]) -> Path:
    (tmp_path / "data").symlink_to(data[0])
    return tmp_path


@pytest.fixture
def plan(data: tuple[Path, CorpusRef]) -> Plan:
    """The sample plan of one target on the corpus."""
    return with_runs(samples.plan(), samples.run(data=data[1]))


def with_runs(plan: Plan, *runs: RunSpec, role: str = "target", **changes: Any) -> Plan:
    planned = tuple(
        plan.runs[0].model_copy(update={"run": run, "role": role, "title": f"{role} {run.seed}"})
        for run in runs
    )
    return samples.sealed(plan, runs=planned, **changes)


def planned_run(plan: Plan) -> RunSpec:
    return plan.runs[-1].run


def audited(workspace: Path, plan: Plan) -> Audit:
    """Write the plan where it would be, and audit it."""
    path = workspace / "plans" / "small" / f"plan.{plan.phase}.yaml"
    if not path.exists():
        write_yaml(path, plan)
    return audit_plan(plan, path, workspace)


def ledger(workspace: Path) -> list[LedgerRecord]:
    path = workspace / "plans" / "ledger.jsonl"
    return read_lines(path, LedgerRecord) if path.exists() else []


def failed(audit: Audit) -> list[Check]:
    return [check for check in audit.runs[-1].checks if not check.ok]


def test_who_was_slow_for_a_tenth_of_the_steps_is_named(workspace: Path, plan: Plan) -> None:
    told = story(planned_run(plan), plan.seal)
    execution = samples.execution().model_copy(update={"layout": samples.layout(dp=2)})
    folder = tell(
        workspace, replace(told, starts=(told.starts[0].model_copy(update={"execution": execution}),))
    )
    slow = [
        samples.rank_line(step, [1.0, 1.6 if step <= 30 else 1.0], [0.6, 0.0]) for step in range(10, 110, 10)
    ]
    write_lines(folder.ranks_jsonl, slow)
    (run,) = audited(workspace, plan).runs
    expected = "straggler: rank 1 on n0 computes 1.6 times as long as its peers in 30% of the timed steps"
    assert expected in run.incidents


def test_an_honest_run_is_accepted_and_enters_the_ledger(workspace: Path, plan: Plan) -> None:
    told = story(planned_run(plan), plan.seal)
    tell(workspace, told)
    audit = audited(workspace, plan)
    assert failed(audit) == []
    assert [check.name for check in audit.runs[0].checks] == [
        "spec",
        "start",
        "sealed before step 1",
        "steps",
        "tokens",
        "schedule",
        "evaluations",
        "end",
        "data",
    ]
    assert (audit.verdict, audit.runs[0].state, audit.causes) == ("inside", "accepted", ())
    assert (audit.runs[0].steps, audit.runs[0].seconds, audit.runs[0].restarts) == (100, 20.0, 0)
    (record,) = ledger(workspace)
    assert record.tokens == 100 * 8 * 128
    assert record.compute_flop == record.tokens * told.run.model.flop_per_token
    assert (record.loss, record.run, record.seal) == (2.0, told.run, plan.seal)
    assert record.curve_step == tuple(range(10, 101, 10))


def test_steps_that_a_copied_folder_lacks_are_accepted_where_a_start_says_so(
    workspace: Path, plan: Plan
) -> None:
    told = story(planned_run(plan), plan.seal)
    resumed = told.starts[0].model_copy(update={"from_step": 50, "unrecorded_steps": 12})
    gap = range(39, 51)
    copied = replace(
        told,
        starts=(*told.starts, resumed),
        metrics=tuple(line for line in told.metrics if line.step not in gap),
        evals=tuple(line for line in told.evals if line.step not in gap),
    )
    tell(workspace, copied)
    audit = audited(workspace, plan)
    assert failed(audit) == []
    assert audit.runs[0].steps == 100
    [steps] = [check for check in audit.runs[0].checks if check.name == "steps"]
    assert steps.detail == (
        "88 steps recorded, 100 planned, 12 in no line of a folder that was copied while it trained"
    )
    tell(workspace, replace(copied, metrics=copied.metrics[:-1]))
    assert [check.name for check in failed(audited(workspace, plan))] == ["steps", "tokens"]


def test_the_audit_reads_back_and_the_report_is_there(workspace: Path, plan: Plan) -> None:
    tell(workspace, story(planned_run(plan), plan.seal))
    audit = audited(workspace, plan)
    assert load(workspace / "plans" / "small" / "audit.target.json", Audit) == audit
    report = (workspace / "plans" / "small" / "audit.html").read_text()
    assert "inside" in report
    assert audit.seal in report


def edit(lines: Sequence[Any], index: int, **changes: Any) -> tuple[Any, ...]:
    """The lines with one of them changed."""
    changed = lines[index].model_copy(update=changes)
    return tuple(changed if i == index % len(lines) else line for i, line in enumerate(lines))


# name: (the forgery, the check that names it, words of its detail)
FORGERIES: dict[str, tuple[Callable[[Story], Story], str, str]] = {
    "a step is missing": (
        lambda s: replace(s, metrics=s.metrics[:41] + s.metrics[42:]),
        "steps",
        "99 steps recorded, 100 planned; line 42 of metrics.jsonl is not step 42",
    ),
    "the last steps are missing": (
        lambda s: replace(s, metrics=s.metrics[:-3]),
        "steps",
        "97 steps recorded, 100 planned",
    ),
    "a step stands twice": (
        lambda s: replace(s, metrics=(s.metrics[0], *s.metrics)),
        "steps",
        "line 2 of metrics.jsonl is not step 2",
    ),
    "tokens": (
        lambda s: replace(s, metrics=edit(s.metrics, 9, tokens=1)),
        "tokens",
        "step 10 records 1 tokens",
    ),
    "learning rate": (
        lambda s: replace(s, metrics=edit(s.metrics, 84, lr=0.003)),
        "schedule",
        "step 85 ran at learning rate 0.003, scheduled 0.000948",
    ),
    "the end flatters": (
        lambda s: replace(s, end=s.end and s.end.model_copy(update={"loss": 1.9})),
        "end",
        "the End record has loss 1.9 after 100 steps, the last evaluation 2.0",
    ),
    "the end is early": (
        lambda s: replace(s, end=s.end and s.end.model_copy(update={"step": 90})),
        "end",
        "after 90 steps",
    ),
    "an evaluation is missing": (
        lambda s: replace(s, evals=s.evals[:4] + s.evals[5:]),
        "evaluations",
        "9 recorded, 10 planned; step 60 on 16 sequences is recorded where step 50 on 16 is planned",
    ),
    "the last evaluation is a small one": (
        lambda s: replace(s, evals=edit(s.evals, -1, sequences=16)),
        "evaluations",
        "step 100 on 16 sequences is recorded where step 100 on 64 is planned",
    ),
    "tokens of an evaluation": (
        lambda s: replace(s, evals=edit(s.evals, 2, tokens=1)),
        "evaluations",
        "step 30 records 1 tokens",
    ),
    "something before the start": (
        lambda s: replace(
            s,
            incidents=(Incident(time=0.0, step=0, what="interrupted", message="a ghost"), s.starts[0]),
            starts=(),
        ),
        "start",
        "it is not the first line of the record",
    ),
    "no seal": (
        lambda s: replace(s, starts=edit(s.starts, 0, seal=None)),
        "sealed before step 1",
        "has seal none",
    ),
    "another plan's seal": (
        lambda s: replace(s, starts=edit(s.starts, 0, seal=OTHER)),
        "sealed before step 1",
        f"has seal {OTHER[:16]}",
    ),
    "sealed only when it was resumed": (
        lambda s: replace(
            s, starts=(*edit(s.starts, 0, seal=None), s.starts[0].model_copy(update={"from_step": 50}))
        ),
        "sealed before step 1",
        "has seal none",
    ),
    "not from scratch": (
        lambda s: replace(s, starts=edit(s.starts, 0, from_step=50)),
        "start",
        "starts at step 50",
    ),
    "no start": (lambda s: replace(s, starts=()), "start", "step None"),
    "a segment of another run": (
        lambda s: replace(s, starts=(*s.starts, start(samples.run(seed=9), s.starts[0].seal, 50))),
        "spec",
        f"has {samples.run(seed=9).fingerprint()}",
    ),
}


@pytest.mark.parametrize(("forge", "check", "says"), FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forged_record_is_caught_and_named(
    forge: Callable[[Story], Story], check: str, says: str, workspace: Path, plan: Plan
) -> None:
    tell(workspace, forge(story(planned_run(plan), plan.seal)))
    audit = audited(workspace, plan)
    (found,) = [one for one in failed(audit) if one.name == check]
    assert says in found.detail
    assert (audit.verdict, audit.runs[0].state) == ("cannot tell", "rejected")
    assert found.detail in audit.reason
    assert ledger(workspace) == []


def test_a_job_whose_ranks_never_started_is_no_ghost(workspace: Path, plan: Plan) -> None:
    """Its incidents stand before the first Start; only what has trained may not."""
    told = story(planned_run(plan), plan.seal)
    before = [
        Incident(time=0.0, step=0, what="failed_preflight", message="n1 is excluded from job 7: slow"),
        Incident(time=0.0, step=0, what="crashed", message="srun: no such image"),
    ]
    tell(workspace, replace(told, incidents=(*before, *told.starts), starts=()))
    audit = audited(workspace, plan)
    assert (audit.verdict, audit.runs[0].state) == ("inside", "accepted")
    assert len(ledger(workspace)) == 1
    late = before[0].model_copy(update={"step": 3})
    tell(workspace, replace(told, incidents=(late, *told.starts), starts=()))
    assert [one.name for one in failed(audited(workspace, plan))] == ["start"]


def test_run_json_of_another_run(workspace: Path, plan: Plan) -> None:
    run = planned_run(plan)
    other = samples.run(data=run.data, seed=7)
    told = story(run, plan.seal)
    tell(workspace, replace(told, run=other), folder=run.fingerprint())
    (found,) = failed(audited(workspace, plan))
    assert (found.name, other.fingerprint() in found.detail) == ("spec", True)


@pytest.mark.parametrize("name", ["train.bin", "held_out.bin"])
def test_a_flipped_byte_of_the_data(name: str, workspace: Path, plan: Plan) -> None:
    run = planned_run(plan)
    real = workspace / "data"
    corpus = real / run.data.corpus
    copies = {path.name: path.read_bytes() for path in corpus.iterdir() if path.is_file()}
    real.unlink()
    corpus.mkdir(parents=True)
    copies[name] = bytes([copies[name][0] ^ 1]) + copies[name][1:]
    for file, content in copies.items():
        (corpus / file).write_bytes(content)
    tell(workspace, story(run, plan.seal))
    audit = audited(workspace, plan)
    (found,) = failed(audit)
    assert (found.name, name in found.detail, audit.verdict) == ("data", True, "cannot tell")
    assert ledger(workspace) == []


def test_data_that_is_not_what_was_planned_on(workspace: Path, plan: Plan) -> None:
    run = samples.run(data=CorpusRef(corpus=planned_run(plan).data.corpus, digest="0" * 64))
    plan = with_runs(plan, run)
    tell(workspace, story(run, plan.seal))
    (found,) = failed(audited(workspace, plan))
    assert (found.name, "planned 0000" in found.detail) == ("data", True)


@pytest.mark.parametrize(
    ("loss", "verdict", "says"),
    [
        (1.9499, "outside", "-2.51% from the forecast 2.0000"),
        (1.95, "inside", "95 % band 1.9500 to 2.0500"),
        (2.05, "inside", "+2.50%"),
        (2.06, "outside", "+3.00%"),
    ],
)
def test_the_verdict_is_the_95_percent_band(
    loss: float, verdict: str, says: str, workspace: Path, plan: Plan
) -> None:
    tell(workspace, story(planned_run(plan), plan.seal, loss))
    audit = audited(workspace, plan)
    assert (audit.verdict, says in audit.reason) == (verdict, True)
    assert len(ledger(workspace)) == 1, "a miss is evidence too"


def test_an_unfinished_run_is_no_verdict(workspace: Path, plan: Plan) -> None:
    told = story(planned_run(plan), plan.seal)
    tell(workspace, replace(told, end=None, metrics=told.metrics[:30], evals=told.evals[:3]))
    audit = audited(workspace, plan)
    assert (audit.verdict, audit.reason) == ("cannot tell", "1 of 1 runs are not finished: target 0")
    assert (audit.runs[0].state, audit.runs[0].loss, audit.runs[0].steps) == ("unfinished", None, 30)
    assert ledger(workspace) == []


def test_a_run_that_was_never_started(workspace: Path, plan: Plan) -> None:
    audit = audited(workspace, plan)
    assert (audit.verdict, audit.runs[0].state, audit.runs[0].steps) == ("cannot tell", "unfinished", 0)


def test_without_a_forecast_there_is_no_verdict(workspace: Path, plan: Plan) -> None:
    plan = samples.sealed(plan, forecast=NoForecast(reason="nothing is known"))
    tell(workspace, story(planned_run(plan), plan.seal))
    audit = audited(workspace, plan)
    assert (audit.verdict, audit.reason) == ("cannot tell", "the plan has no forecast: nothing is known")
    assert len(ledger(workspace)) == 1


def test_the_share_of_the_curve_inside(workspace: Path, plan: Plan) -> None:
    """The sample curve has points at steps 50 (2.5 to 3.5) and 100; the run is at 3.0 and at 2.0 there."""
    told = story(planned_run(plan), plan.seal)
    tell(workspace, told)
    assert audited(workspace, plan).curve_share_inside == 1.0
    tell(workspace, replace(told, evals=edit(told.evals, 4, loss=3.6)))
    assert audited(workspace, plan).curve_share_inside == 0.5


def test_without_a_forecast_curve_there_is_no_share(workspace: Path, plan: Plan) -> None:
    assert isinstance(plan.forecast, Forecast)
    plan = samples.sealed(plan, forecast=plan.forecast.model_copy(update={"curve": None}))
    tell(workspace, story(planned_run(plan), plan.seal))
    assert audited(workspace, plan).curve_share_inside is None


def test_pilots_enter_the_ledger_in_the_plans_order(workspace: Path, plan: Plan) -> None:
    """One unfinished: the others enter at once. Then the last one, too; a third audit adds nothing."""
    runs = [samples.run(data=planned_run(plan).data, seed=seed) for seed in (3, 1, 2)]
    pilots = with_runs(plan, *runs, role="pilot", phase="pilots", forecast=NoForecast(reason="pilots first"))
    for run in runs[:2]:
        tell(workspace, story(run, OTHER))  # a pilot may have run under an earlier plan
    audit = audited(workspace, pilots)
    assert (audit.verdict, audit.reason) == ("cannot tell", "1 of 3 runs are not finished: pilot 2")
    assert [record.run.seed for record in ledger(workspace)] == [3, 1]
    tell(workspace, story(runs[2], pilots.seal))
    audit = audited(workspace, pilots)
    assert (audit.verdict, audit.reason) == (
        "inside",
        "all 3 runs are accepted; plan the budget again to get the target run",
    )
    assert [record.run.seed for record in ledger(workspace)] == [3, 1, 2]
    before = (workspace / "plans" / "ledger.jsonl").read_bytes()
    assert audited(workspace, pilots) == audit
    assert (workspace / "plans" / "ledger.jsonl").read_bytes() == before


def test_a_cut_ledger_is_refused_and_nothing_is_written(workspace: Path, plan: Plan) -> None:
    tell(workspace, story(planned_run(plan), plan.seal))
    path = workspace / "plans" / "ledger.jsonl"
    audited(workspace, plan)
    cut = path.read_bytes()[:-100]
    path.write_bytes(cut)
    (workspace / "plans" / "small" / "audit.html").unlink()
    with pytest.raises(DocumentError, match=r"ledger\.jsonl:1:1: the last line is cut off"):
        audited(workspace, plan)
    assert path.read_bytes() == cut
    assert not (workspace / "plans" / "small" / "audit.html").exists()


def test_a_loss_that_is_no_number_is_refused_at_its_line(workspace: Path, plan: Plan) -> None:
    folder = tell(workspace, story(planned_run(plan), plan.seal))
    text = folder.metrics_jsonl.read_text().replace(
        '"loss":3.0,"lr":0.003,"step":7,', '"loss":NaN,"lr":0.003,"step":7,'
    )
    assert "NaN" in text
    folder.metrics_jsonl.write_text(text)
    with pytest.raises(DocumentError, match=r"metrics\.jsonl:7:"):
        audited(workspace, plan)


def test_restarts_and_incidents_are_told(workspace: Path, plan: Plan) -> None:
    told = story(planned_run(plan), plan.seal)
    incident = Incident(time=2.0, step=40, what="crashed", message="killed")
    again = start(told.run, plan.seal, from_step=40)
    tell(workspace, replace(told, starts=(*told.starts, again), incidents=(incident,)))
    run = audited(workspace, plan).runs[0]
    assert (run.state, run.restarts) == ("accepted", 1)
    assert run.incidents == ("crashed at step 40: killed",)


def test_a_run_that_learned_nothing_raises_an_alarm(workspace: Path, plan: Plan) -> None:
    """Its records are in order, so it is accepted; its line in the ledger carries the alarm."""
    runs = [samples.run(data=planned_run(plan).data, seed=seed) for seed in (1, 2)]
    pilots = with_runs(plan, *runs, role="pilot", phase="pilots", forecast=NoForecast(reason="pilots first"))
    for run, loss in zip(runs, (5.5, 5.6), strict=True):  # ln 256 is 5.545
        tell(workspace, story(run, pilots.seal, loss))
    good, bad = audited(workspace, pilots).runs
    assert (good.state, bad.state) == ("accepted", "accepted")
    assert good.incidents == ()
    assert "5.6000 is not below ln V = 5.5452 nats per token" in bad.incidents[0]
    assert [one.flags for one in ledger(workspace)] == [(), bad.incidents]


def test_a_miss_is_explained_beside_its_pilots(workspace: Path, plan: Plan) -> None:
    """Every step of the target is clipped; of the pilot that is at hand, none."""
    pilot = samples.run(data=planned_run(plan).data, seed=5)
    fit = examples.make_plan("target").fit
    assert fit is not None
    point = fit.points[0].model_copy(update={"run": pilot.fingerprint()})
    plan = samples.sealed(plan, fit=fit.model_copy(update={"points": (point, *fit.points[1:])}))
    tell(workspace, story(pilot, OTHER))
    told = story(planned_run(plan), plan.seal, 2.2, tokens_per_s=4e3)
    metrics = tuple(line.model_copy(update={"grad_norm": 2.0}) for line in told.metrics)
    tell(workspace, replace(told, metrics=metrics))
    audit = audited(workspace, plan)
    assert audit.verdict == "outside"
    assert audit.causes[0] == (
        "learning rate: 100% of the gradients after warmup were clipped, in the pilots at most 0%"
    )
    assert audit.causes[-1].startswith("throughput: 4e+03 tokens/s, planned 1e+04")


def test_a_forged_miss_says_what_was_forged_first(workspace: Path, plan: Plan) -> None:
    told = story(planned_run(plan), plan.seal, 2.2)
    tell(workspace, replace(told, metrics=edit(told.metrics, 84, lr=0.003)))
    audit = audited(workspace, plan)
    assert audit.verdict == "cannot tell"
    assert audit.causes[0] == "schedule: step 85 ran at learning rate 0.003, scheduled 0.000948"


def test_a_run_in_progress_is_compared_as_far_as_it_is(workspace: Path, plan: Plan) -> None:
    told = story(planned_run(plan), plan.seal)
    tell(workspace, replace(told, end=None, evals=told.evals[:5]))
    audit = audited(workspace, plan)
    assert (audit.verdict, audit.curve_share_inside, audit.causes) == ("cannot tell", 1.0, ())


@pytest.mark.parametrize(("verdict", "code"), [("inside", 0), ("outside", 1), ("cannot tell", 3)])
def test_exit_codes(verdict: str, code: int) -> None:
    audit = examples.make_audit(examples.make_plan("target"), verdict=verdict)
    assert exit_code(audit) == code


def test_environments_are_told_once_each(workspace: Path, plan: Plan) -> None:
    told = story(planned_run(plan), plan.seal)
    first = told.starts[0]
    there = first.environment.model_copy(update={"host": "there"})
    segments = (
        first,
        start(told.run, plan.seal, 40),
        first.model_copy(update={"environment": there, "from_step": 60}),
    )
    tell(workspace, replace(told, starts=segments))
    assert [found.host for found in audited(workspace, plan).runs[0].environments] == ["here", "there"]


def test_device_time_is_that_of_each_segments_layout(workspace: Path, plan: Plan) -> None:
    """100 steps of .2 s: 30 on the two devices that were planned, 40 on one, and on two again from step 70."""
    told = story(planned_run(plan), plan.seal)
    planned = told.starts[0].execution
    one = planned.model_copy(update={"layout": samples.layout(dp=1)})
    again = start(told.run, plan.seal, 30).model_copy(update={"execution": one})
    tell(workspace, replace(told, starts=(*told.starts, again, start(told.run, plan.seal, 70))))
    run = audited(workspace, plan).runs[0]
    assert run.layouts == (planned.layout, one.layout)
    assert run.device_s == pytest.approx(2 * 6 + 8 + 2 * 6)


def test_the_ledger_tells_under_which_seal_a_run_ran(workspace: Path, plan: Plan) -> None:
    """Two plans that share a pilot: one line, whichever audits it; its seal is the first record's."""
    run = planned_run(plan)
    pilots = with_runs(plan, run, role="pilot", phase="pilots", forecast=NoForecast(reason="pilots first"))
    other = samples.sealed(pilots, notes=("another plan",))
    tell(workspace, story(run, pilots.seal))
    audited(workspace, pilots)
    path = workspace / "plans" / "small" / "plan.pilots.yaml"
    path.unlink()
    assert audited(workspace, other).verdict == "inside"
    assert [record.seal for record in ledger(workspace)] == [pilots.seal]


@pytest.mark.slow
def test_audits_at_the_same_time_write_every_run_once(workspace: Path, plan: Plan) -> None:
    runs = [samples.run(data=planned_run(plan).data, seed=seed) for seed in range(8)]
    pilots = with_runs(plan, *runs, role="pilot", phase="pilots", forecast=NoForecast(reason="pilots first"))
    for run in runs:
        tell(workspace, story(run, pilots.seal))
    path = workspace / "plans" / "small" / "plan.pilots.yaml"
    write_yaml(path, pilots)
    program = "import sys; from pathlib import Path; from runtime.audit.verdict import audit_plan; "
    program += (
        "from specs.document.files import load; from specs.plan import Plan; path = Path(sys.argv[1]); "
    )
    program += "audit_plan(load(path, Plan), path, Path(sys.argv[2]))"
    argv = [sys.executable, "-c", program, str(path), str(workspace)]
    together = [subprocess.Popen(argv) for _ in range(3)]
    assert [process.wait(timeout=120) for process in together] == [0, 0, 0]
    assert [record.run.seed for record in ledger(workspace)] == list(range(8))


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("/etc/ledger.jsonl", "'/etc/ledger.jsonl' is not a relative path that ends in ledger.jsonl"),
        ("../authorized_keys", "is not a relative path that ends in ledger.jsonl"),
        ("../gone/ledger.jsonl", "gone does not exist"),
    ],
)
def test_only_the_budgets_own_ledger_is_written(named: str, says: str, workspace: Path, plan: Plan) -> None:
    plan = samples.sealed(plan, ledger=named)
    tell(workspace, story(planned_run(plan), plan.seal))
    with pytest.raises(DocumentError, match=says):
        audited(workspace, plan)
    assert not list(workspace.rglob("audit*"))


def test_a_file_that_is_no_ledger_is_left_alone(workspace: Path, plan: Plan) -> None:
    tell(workspace, story(planned_run(plan), plan.seal))
    path = workspace / "plans" / "ledger.jsonl"
    path.parent.mkdir()
    path.write_text("ssh-ed25519 AAAA\n")
    with pytest.raises(DocumentError, match=r"ledger\.jsonl:1:1: this is not JSON"):
        audited(workspace, plan)
    assert path.read_text() == "ssh-ed25519 AAAA\n"


def test_the_terminal_says_what_the_page_says(workspace: Path, plan: Plan) -> None:
    told = story(planned_run(plan), plan.seal, 2.2)
    incident = Incident(time=2.0, step=40, what="outside_band", message="held-out loss [red] is above")
    tell(workspace, replace(told, incidents=(incident,), evals=edit(told.evals, 4, loss=3.6)))
    audit = audited(workspace, plan)
    console = Console(width=80, record=True, file=io.StringIO())
    path = workspace / "plans" / "small" / "plan.target.yaml"
    show(audit, plan, path, console)
    said = console.export_text()
    assert "1 of 1 runs accepted" in said
    assert "3.1739" in said, "bits per byte"
    assert "alarm  target 0: outside_band at step 40: held-out loss [red] is above" in said
    assert "curve  0% of the loss curve's points are inside the 95 % band" in said
    assert "outside  final held-out loss 2.2000 nats per token, +10.00%" in said
    assert f"report  {path.with_name('audit.html')}" in said
    assert duration(plan.runs[0].cost.hours * 3600) in said, "planned"
    forged = replace(told, metrics=told.metrics[:-3])
    tell(workspace, forged)
    show(audited(workspace, plan), plan, path, console)
    said = console.export_text()
    assert "steps  target 0: 97 steps recorded, 100 planned" in said
    assert "likely cause  record: steps, 97 steps recorded" in said


def test_the_page_of_a_target_shows_its_pilots(workspace: Path, plan: Plan) -> None:
    run = planned_run(plan)
    pilot = samples.run(data=run.data, seed=6)
    pilots = with_runs(plan, pilot, role="pilot", phase="pilots", forecast=NoForecast(reason="pilots first"))
    tell(workspace, story(pilot, pilots.seal))
    tell(workspace, story(run, plan.seal))
    audited(workspace, pilots)
    audited(workspace, plan)
    page = (workspace / "plans" / "small" / "audit.html").read_text()
    assert pilots.seal in page
    assert pilot.fingerprint()[:8] in page
    (workspace / "plans" / "small" / "audit.pilots.json").write_text("{}")
    audited(workspace, plan)
    assert pilots.seal not in (workspace / "plans" / "small" / "audit.html").read_text()


def test_a_role_other_than_target_needs_only_some_seal(workspace: Path, plan: Plan) -> None:
    run = planned_run(plan)
    pilot: PlannedRun = plan.runs[0].model_copy(update={"role": "pilot"})
    pilots = samples.sealed(plan, phase="pilots", runs=(pilot,), forecast=NoForecast(reason="pilots first"))
    tell(workspace, replace(story(run, plan.seal), starts=(start(run, None),)))
    (found,) = failed(audited(workspace, pilots))
    assert found.name == "sealed before step 1"
