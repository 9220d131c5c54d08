"""Checks of one run against its plan, recomputed from its own records.

Each check has a name, an outcome and the numbers it compared. A run that fails one is rejected; one that passes all is
accepted, whatever its loss.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from runtime.data.mixture import Sampler
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.stragglers import straggler_summary
from specs.plan import PlannedRun
from specs.record import (
    Check,
    End,
    EvalLine,
    Incident,
    RecordLine,
    Rollback,
    RunAudit,
    SkippedRange,
    Start,
    StepLine,
    TimingLine,
)

_ROUNDING = 1e-9
"""A weighted mean of a few losses in fp64 is exact to a millionth of this."""


@dataclass(frozen=True)
class _RunRecords:
    """The records in a finished run's folder."""

    name: str
    """The folder's name."""
    run: str
    """Fingerprint of its run.json."""
    starts: tuple[Start, ...]
    begins_with_start: bool
    """Whether the first line of its record is a Start."""
    end: End
    metrics: Sequence[StepLine]
    evals: Sequence[EvalLine]
    skipped: Sequence[SkippedRange]

    @property
    def unrecorded(self) -> set[int]:
        """Steps that a Start record says are in no line, and that are in none."""
        return _unrecorded(self.starts) - {line.step for line in self.metrics}


def _unrecorded(starts: Sequence[Start]) -> set[int]:
    return {step for start in starts for step in start.unrecorded}


def _begins_with_start(records: Sequence[RecordLine]) -> bool:
    """Whether nothing was trained before the first Start: only jobs whose ranks did not start may stand before it."""
    before = itertools.takewhile(lambda line: not isinstance(line, Start), records)
    never_started = ("crashed", "failed_preflight")
    return all(
        isinstance(line, Incident) and line.what in never_started and line.step == 0 for line in before
    )


def audit_run(folder: RunFolder, planned: PlannedRun, seal: str) -> RunAudit:
    """Audit a run's folder against its plan; `unfinished` while the record has no End line."""
    records, evals, metrics, timing = folder.records(), folder.evals(), folder.metrics(), folder.timing()
    starts = tuple(line for line in records if isinstance(line, Start))
    end = folder.end()
    checks: tuple[Check, ...] = ()
    if end is not None:
        fingerprint, begins_with_start = folder.run().fingerprint(), _begins_with_start(records)
        found = _RunRecords(
            folder.path.name, fingerprint, starts, begins_with_start, end, metrics, evals, folder.skipped()
        )
        checks = _checks(found, planned, seal)
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
        steps=len(metrics) + len(_unrecorded(starts) - {line.step for line in metrics}),
        seconds=sum(line.seconds for line in timing),
        device_s=_device_s(starts, timing),
        tokens_per_s=median([line.tokens_per_s for line in timing]) if timing else 0.0,
        restarts=max(0, len(starts) - 1),
        curve_step=tuple(line.step for line in evals),
        curve_loss=tuple(line.loss for line in evals),
        curve_sources=_curve_sources(planned, evals),
        lost_steps=sum(start.lost_steps for start in starts),
        lost_s=sum(start.lost_s for start in starts),
        incidents=(
            *_incidents(records),
            *(f"straggler: {text}" for text in straggler_summary(folder.ranks(), starts)),
            *_learned_nothing(planned, evals if end is not None else ()),
        ),
        checks=checks,
        environments=tuple({s.environment.canonical_json(): s.environment for s in starts}.values()),
        layouts=tuple(dict.fromkeys(s.execution.layout for s in starts)),
    )


def _curve_sources(planned: PlannedRun, evals: Sequence[EvalLine]) -> dict[str, tuple[float, ...]]:
    """The held-out losses of each source of a mix, as far as every evaluation has them."""
    names = () if planned.run.mix is None else planned.run.mix.sources
    return {
        name: tuple(line.sources[name] for line in evals)
        for name in names
        if all(name in line.sources for line in evals)
    }


def _device_s(starts: Sequence[Start], timing: Sequence[TimingLine]) -> float:
    """Seconds times devices: a line belongs to the last segment that started before its step."""
    segments = [(start.from_step, start.execution.layout.devices) for start in reversed(starts)]
    return sum(
        line.seconds * next((devices for step, devices in segments if step < line.step), 0) for line in timing
    )


def _incidents(records: Sequence[RecordLine]) -> Iterator[str]:
    """Messages of the run's incidents and rollbacks."""
    for line in records:
        if isinstance(line, Incident) and line.what != "interrupted":  # shown as a restart
            yield f"{line.what} at step {line.step}: {line.message}"
        elif isinstance(line, Rollback):
            yield f"rollback at step {line.skipped.step}: {line.message}"


def _learned_nothing(planned: PlannedRun, evals: Sequence[EvalLine]) -> Iterator[str]:
    """An alarm where the final loss is no lower than that of a uniform prediction."""
    uniform = planned.run.model.uniform_loss
    if evals and evals[-1].loss >= uniform:
        yield (
            f"the final held-out loss {evals[-1].loss:.4f} is not below ln V = {uniform:.4f} nats per token, that of a "
            "uniform prediction: the run learned nothing, and no plan uses it; lower its learning rate"
        )


def _checks(records: _RunRecords, planned: PlannedRun, seal: str) -> tuple[Check, ...]:
    run = planned.run
    return (
        _spec(records, run.fingerprint()),
        _started_from_scratch(records),
        _sealed_before(records.starts, planned, seal),
        _steps(records, run.optim.steps),
        _tokens(records, planned),
        _learning_rates(records.metrics, planned),
        _evaluations(records, planned),
        _end(records.end, records.evals, run.optim.steps),
    )


def _spec(records: _RunRecords, planned: str) -> Check:
    """run.json, the folder's name and every Start record have the planned run's fingerprint."""
    named = {records.name, records.run, *(start.run for start in records.starts)}
    detail = f"run.json has fingerprint {records.run}, planned {planned}"
    if others := named - {records.run, planned}:
        detail += f"; the folder's name or a Start record has {', '.join(sorted(others))}"
    return Check(name="spec", ok=named == {planned}, detail=detail)


def _started_from_scratch(records: _RunRecords) -> Check:
    """The record begins with a Start at step 0, so nothing was trained before it."""
    detail = f"the first segment starts at step {records.starts[0].from_step if records.starts else None}"
    if not records.begins_with_start:
        detail += ", but it is not the first line of the record"
    ok = records.begins_with_start and records.starts[0].from_step == 0
    return Check(name="start", ok=ok, detail=detail)


def _sealed_before(starts: Sequence[Start], planned: PlannedRun, seal: str) -> Check:
    """The first Start record has a plan's seal; for a target it must be this plan's, whose forecast is audited."""
    first = starts[0].seal if starts else None
    detail = f"the first Start record has seal {_short(first)}, the plan {_short(seal)}"
    if first != seal:
        late = "the run started before this forecast was sealed"
        detail += f": {late if planned.role == 'target' else 'that of another plan'}"
    ok = first is not None and (planned.role != "target" or first == seal)
    return Check(name="sealed before step 1", ok=ok, detail=detail)


def _steps(records: _RunRecords, planned: int) -> Check:
    """Every step once, in order, but for those that a Start record says are in no line."""
    metrics, missing = records.metrics, records.unrecorded
    due = [step for step in range(1, planned + 1) if step not in missing]
    gap = next(
        (i for i, (line, step) in enumerate(zip(metrics, due, strict=False), 1) if line.step != step), None
    )
    detail = f"{len(metrics)} steps recorded, {planned} planned"
    if missing:
        detail += f", {len(missing)} in no line of a folder that was copied while it trained"
    if gap:
        detail += f"; line {gap} of metrics.jsonl is not step {due[gap - 1]}"
    return Check(name="steps", ok=gap is None and len(metrics) == len(due), detail=detail)


def _tokens(records: _RunRecords, planned: PlannedRun) -> Check:
    """Every step's tokens are its number times the batch; their sum is the planned one. Of a mix, how many samples of
    each source that took is recounted."""
    batch_tokens = planned.run.batch_tokens
    wrong = next((line for line in records.metrics if line.tokens != line.step * batch_tokens), None)
    counted_steps = len(records.metrics) + len(records.unrecorded)
    counted = counted_steps * batch_tokens
    compute_flop = counted * float(planned.run.model.flop_per_token)
    detail = f"{counted:,} tokens, {compute_flop:.4g} FLOP by the number of steps"
    if counted != planned.run.tokens:
        detail += f"; {planned.run.tokens:,} tokens planned"
    if wrong is not None:
        detail += f"; step {wrong.step} records {wrong.tokens:,} tokens"
    if planned.run.mix is not None:
        batch = planned.run.optim.batch_sequences
        given = Sampler.of(planned.run.mix).given(counted_steps + 1, batch, records.skipped)
        read = sum(given.values())
        detail += "; read, with what rollbacks skipped: " + ", ".join(
            f"{name} {count:,} of {read:,} samples ({count / read:.2%})" for name, count in given.items()
        )
    return Check(name="tokens", ok=wrong is None and counted == planned.run.tokens, detail=detail)


def _learning_rates(metrics: Sequence[StepLine], planned: PlannedRun) -> Check:
    """Every step's learning rate equals the schedule's, bitwise: the same arithmetic, printed exactly."""
    optim = planned.run.optim
    wrong = next((line for line in metrics if line.lr != optim.lr(line.step)), None)
    detail = "every step's learning rate is the scheduled one"
    if wrong is not None:
        detail = (
            f"step {wrong.step} ran at learning rate {wrong.lr:.6g}, scheduled {optim.lr(wrong.step):.6g}"
        )
    return Check(name="schedule", ok=wrong is None, detail=detail)


def _evaluations(records: _RunRecords, planned: PlannedRun) -> Check:
    """At every planned step, on the planned number of sequences."""
    evals, evaluation, steps = records.evals, planned.run.evaluation, planned.run.optim.steps
    every = evaluation.every_steps
    due = [(step, evaluation.sequences) for step in range(every, steps, every)]
    due.append((steps, evaluation.final_sequences))
    missing = records.unrecorded - {line.step for line in evals}
    due = [(step, sequences) for step, sequences in due if step not in missing]
    found = [(line.step, line.sequences) for line in evals]
    detail = f"{len(found)} recorded, {len(due)} planned"
    wrong = next(((f, d) for f, d in zip(found, due, strict=False) if f != d), None)
    if wrong is not None:
        (step, sequences), (due_step, due_sequences) = wrong
        planned_one = f"step {due_step} on {due_sequences}"
        detail += f"; step {step} on {sequences} sequences is recorded where {planned_one} is planned"
    tokens = next((line for line in evals if line.tokens != line.step * planned.run.batch_tokens), None)
    if tokens is not None:
        detail += f"; step {tokens.step} records {tokens.tokens:,} tokens"
    mixed = next((line for line in evals if not _is_mean_of_sources(line, planned)), None)
    if mixed is not None:
        detail += f"; the loss of step {mixed.step} is not the weighted mean of its sources' losses"
    return Check(name="evaluations", ok=found == due and tokens is None and mixed is None, detail=detail)


def _is_mean_of_sources(line: EvalLine, planned: PlannedRun) -> bool:
    """Whether a loss is that of the mix's sources by their shares; of a run without a mix, that there are none."""
    mix = planned.run.mix
    if mix is None or line.sources.keys() != set(mix.sources):
        return mix is None and not line.sources
    mean = sum(mix.evaluation_share(name) * line.sources[name] for name in mix.sources)
    return math.isclose(line.loss, mean, rel_tol=_ROUNDING)


def _end(end: End, evals: Sequence[EvalLine], steps: int) -> Check:
    """The End record has the loss of the last evaluation."""
    last = evals[-1].loss if evals else None
    detail = f"the End record has loss {end.loss!r} after {end.step} steps, the last evaluation {last!r}"
    detail += f"; weights {_short(end.weights_sha256)}"
    return Check(name="end", ok=end.loss == last and end.step == steps, detail=detail)


def _short(seal: str | None) -> str:
    return "none" if seal is None else seal[:16]


def data_check(root: Path, planned: PlannedRun) -> Check:
    """The token files have the digest that the run was planned on. Reads them in full."""
    from runtime.data.corpus import verify_sources
    from runtime.data.errors import CorpusError

    try:
        digest = verify_sources(root, planned.run.data.corpus).ref.digest
    except CorpusError as error:
        return Check(name="data", ok=False, detail=str(error))
    return Check(
        name="data",
        ok=digest == planned.run.data.digest,
        detail=f"the corpus has digest {_short(digest)}, planned {_short(planned.run.data.digest)}",
    )
