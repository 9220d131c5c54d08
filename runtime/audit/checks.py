"""One run, recounted from its own records: nothing it says of itself in summary is believed.

Each check has a name, an outcome and the numbers it compared. A run that fails one is rejected; one that passes all is
accepted, whatever its loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from runtime.run_folder.folder import RunFolder
from specs.plan import PlannedRun
from specs.record import (
    Check,
    End,
    EvalLine,
    Incident,
    RecordLine,
    Rollback,
    RunAudit,
    Start,
    StepLine,
    TimingLine,
)


@dataclass(frozen=True)
class _RunRecords:
    """What a finished run's folder tells of it."""

    name: str
    """The folder's name."""
    written: str
    """Fingerprint of its run.json."""
    starts: tuple[Start, ...]
    first: bool
    """Its record begins with a start."""
    end: End
    metrics: Sequence[StepLine]
    evals: Sequence[EvalLine]


def audit_run(folder: RunFolder, planned: PlannedRun, seal: str) -> RunAudit:
    """What a run's folder holds against what was planned for it; `unfinished` while it has no end."""
    records, evals, metrics, timing = folder.records(), folder.evals(), folder.metrics(), folder.timing()
    starts = tuple(line for line in records if isinstance(line, Start))
    end = folder.end()
    checks: tuple[Check, ...] = ()
    if end is not None:
        written, first = folder.run().fingerprint(), isinstance(records[0], Start)
        told = _RunRecords(folder.path.name, written, starts, first, end, metrics, evals)
        checks = _checks(told, planned, seal)
    return RunAudit(
        run=planned.run.fingerprint(),
        title=planned.title,
        role=planned.role,
        state="unfinished"
        if end is None
        else "accepted"
        if all(check.ok for check in checks)
        else "rejected",
        loss=evals[-1].loss if end is not None and evals else None,
        steps=len(metrics),
        seconds=sum(line.seconds for line in timing),
        device_s=_device_s(starts, timing),
        tokens_per_s=median([line.tokens_per_s for line in timing]) if timing else 0.0,
        restarts=max(0, len(starts) - 1),
        curve_step=tuple(line.step for line in evals),
        curve_loss=tuple(line.loss for line in evals),
        lost_steps=sum(start.lost_steps for start in starts),
        lost_s=sum(start.lost_s for start in starts),
        incidents=tuple(_incidents(records)),
        checks=checks,
        environments=tuple({s.environment.canonical_json(): s.environment for s in starts}.values()),
        layouts=tuple(dict.fromkeys(s.execution.layout for s in starts)),
    )


def _device_s(starts: Sequence[Start], timing: Sequence[TimingLine]) -> float:
    """Seconds times devices: a line is of the last segment that began before its step."""
    begun = [(start.from_step, start.execution.layout.devices) for start in reversed(starts)]
    return sum(
        line.seconds * next((devices for step, devices in begun if step < line.step), 0) for line in timing
    )


def _incidents(records: Sequence[RecordLine]) -> Iterator[str]:
    """What a reader of the run must know, in words."""
    for line in records:
        if isinstance(line, Incident) and line.what != "interrupted":  # that is told by its restart
            yield f"{line.what} at step {line.step}: {line.message}"
        elif isinstance(line, Rollback):
            yield f"rollback at step {line.skipped.step}: {line.message}"


def _checks(told: _RunRecords, planned: PlannedRun, seal: str) -> tuple[Check, ...]:
    run = planned.run
    return (
        _spec(told, run.fingerprint()),
        _started_from_scratch(told),
        _sealed_before(told.starts, planned, seal),
        _steps(told.metrics, run.optim.steps),
        _tokens(told.metrics, planned),
        _learning_rates(told.metrics, planned),
        _evaluations(told.evals, planned),
        _end(told.end, told.evals, run.optim.steps),
    )


def _spec(told: _RunRecords, planned: str) -> Check:
    """run.json, the folder's name and every segment name the planned run."""
    named = {told.name, told.written, *(start.run for start in told.starts)}
    said = f"run.json hashes to {told.written}, planned {planned}"
    if named - {told.written, planned}:
        said += f"; the folder or its segments name {', '.join(sorted(named - {told.written, planned}))}"
    return Check(name="spec", ok=named == {planned}, detail=said)


def _started_from_scratch(told: _RunRecords) -> Check:
    """The record begins with a start from step 0, so nothing was trained before it."""
    said = f"first segment starts from step {told.starts[0].from_step if told.starts else None}"
    if not told.first:
        said += ", and something stands before it in the record"
    return Check(name="start", ok=told.first and told.starts[0].from_step == 0, detail=said)


def _sealed_before(starts: Sequence[Start], planned: PlannedRun, seal: str) -> Check:
    """The first record names a plan's seal: a target's that of this plan, since its forecast is what is judged."""
    first = starts[0].seal if starts else None
    said = f"the first record carries seal {_short(first)}, the plan's is {_short(seal)}"
    if first != seal:
        alone = "the forecast came after the run began" if planned.role == "target" else "another plan's"
        said += f": {alone}"
    ok = first is not None and (planned.role != "target" or first == seal)
    return Check(name="sealed before step 1", ok=ok, detail=said)


def _steps(metrics: Sequence[StepLine], planned: int) -> Check:
    """Every step once, in order."""
    gap = next((i for i, line in enumerate(metrics, start=1) if line.step != i), None)
    said = f"{len(metrics)} steps recorded, {planned} planned" + (
        f"; line {gap} is not step {gap}" if gap else ""
    )
    return Check(name="steps", ok=gap is None and len(metrics) == planned, detail=said)


def _tokens(metrics: Sequence[StepLine], planned: PlannedRun) -> Check:
    """Every step's tokens follow from the batch; their sum and its FLOP are the plan's."""
    batch_tokens = planned.run.batch_tokens
    wrong = next((line for line in metrics if line.tokens != line.step * batch_tokens), None)
    counted = len(metrics) * batch_tokens
    compute_flop = counted * float(planned.run.model.flop_per_token)
    said = f"{counted:,} tokens, {compute_flop:.4g} FLOP recounted"
    if counted != planned.run.tokens:
        said += f"; {planned.run.tokens:,} tokens planned"
    if wrong is not None:
        said += f"; step {wrong.step} claims {wrong.tokens:,} tokens"
    return Check(name="tokens", ok=wrong is None and counted == planned.run.tokens, detail=said)


def _learning_rates(metrics: Sequence[StepLine], planned: PlannedRun) -> Check:
    """Every step's learning rate is the schedule's, to the last bit: both are the same arithmetic, printed exactly."""
    optim = planned.run.optim
    wrong = next((line for line in metrics if line.lr != optim.lr(line.step)), None)
    said = "every step's learning rate is the schedule's"
    if wrong is not None:
        said = f"step {wrong.step} ran at {wrong.lr:.6g}, the schedule says {optim.lr(wrong.step):.6g}"
    return Check(name="schedule", ok=wrong is None, detail=said)


def _evaluations(evals: Sequence[EvalLine], planned: PlannedRun) -> Check:
    """At every planned step, on the planned number of sequences."""
    asked, steps = planned.run.evaluation, planned.run.optim.steps
    wanted = [(step, asked.sequences) for step in range(asked.every_steps, steps, asked.every_steps)]
    wanted.append((steps, asked.final_sequences))
    found = [(line.step, line.sequences) for line in evals]
    said = f"{len(found)} recorded, {len(wanted)} planned"
    wrong = next(((f, w) for f, w in zip(found, wanted, strict=False) if f != w), None)
    if wrong is not None:
        (step, sequences), (due, due_sequences) = wrong
        said += f"; step {step} on {sequences} sequences stands where step {due} on {due_sequences} is due"
    tokens = next((line for line in evals if line.tokens != line.step * planned.run.batch_tokens), None)
    if tokens is not None:
        said += f"; that of step {tokens.step} claims {tokens.tokens:,} tokens"
    return Check(name="evaluations", ok=found == wanted and tokens is None, detail=said)


def _end(end: End, evals: Sequence[EvalLine], steps: int) -> Check:
    """The closing line repeats the last evaluation."""
    last = evals[-1].loss if evals else None
    said = f"the end says loss {end.loss!r} after {end.step} steps; the last evaluation says {last!r}"
    said += f"; weights {_short(end.weights_sha256)}"
    return Check(name="end", ok=end.loss == last and end.step == steps, detail=said)


def _short(seal: str | None) -> str:
    return "none" if seal is None else seal[:16]


def data_check(root: Path, planned: PlannedRun) -> Check:
    """The token files hash to what the run was planned on. Reads them whole."""
    from runtime.data.corpus import verify

    try:
        digest = verify(root, planned.run.data.corpus).digest
    except ValueError as error:
        return Check(name="data", ok=False, detail=str(error))
    return Check(
        name="data",
        ok=digest == planned.run.data.digest,
        detail=f"tokens hash to {digest[:16]}, planned {_short(planned.run.data.digest)}",
    )
