"""What a run writes while it trains: record, metrics, log lines, and an alarm when a loss is outside the forecast band.

Rank 0 writes. The other ranks hold a logger that does nothing, so that the loop is the same on all ranks.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.provenance import environment, slurm_job
from runtime.run_folder.tail import last_step, truncate_partial_line
from runtime.train.metrics import Metrics, StepRates
from specs.document.write import append_line
from specs.humanize import several
from specs.plan import CurveBand
from specs.record import (
    End,
    EvalLine,
    Incident,
    IncidentKind,
    Order,
    RankLine,
    Rollback,
    SkippedRange,
    Start,
    StepLine,
)
from specs.run import RunSpec


class RunLogger:
    """The logger of one segment of a run; without `metrics`, as on all ranks but 0, every call does nothing."""

    def __init__(self, folder: RunFolder, run: RunSpec, order: Order, metrics: Metrics | None) -> None:
        self._folder = folder
        self._run = run
        self._order = order
        self._metrics = metrics
        evals = folder.evals() if metrics else []
        self._outside = bool(evals) and outside_band(order.curve, evals[-1]) is not None

    def step(self, step: int, loss: float, grad_norm: float, lr: float, applied: bool) -> None:
        """Log a finished step."""
        if self._metrics:
            line = StepLine(
                step=step,
                tokens=step * self._run.batch_tokens,
                loss=_finite(loss),
                grad_norm=_finite(grad_norm),
                lr=lr,
                applied=applied,
            )
            self._metrics.add(line)

    def evaluation(self, step: int, loss: float, sequences: int, sources: Mapping[str, float]) -> None:
        """Log a held-out loss, and those of a mix's sources; record an incident when it has just left the forecast's
        95 % band."""
        if not self._metrics:
            return
        line = EvalLine(
            step=step,
            tokens=step * self._run.batch_tokens,
            loss=loss,
            sequences=sequences,
            sources=dict(sources),
        )
        self._metrics.add(line)
        of_sources = ", ".join(f"{name} {value:.4f}" for name, value in sources.items())
        _print(
            f"step {step}: held-out loss {loss:.4f} nats per token" + (f" ({of_sources})" if sources else "")
        )
        outside = outside_band(self._order.curve, line)
        if outside and not self._outside and not self._already_recorded(step):
            self.incident("outside_band", step, outside)
        self._outside = outside is not None

    def ranks(self, line: RankLine | None) -> None:
        """Log what the last steps took on each rank."""
        if self._metrics and line is not None:
            append_line(self._folder.ranks_jsonl, line)

    def incident(self, what: IncidentKind, step: int, message: str) -> None:
        """Record and print an incident."""
        if self._metrics:
            self._metrics.flush()
            line = Incident(time=time.time(), step=step, what=what, message=message)
            append_line(self._folder.record_jsonl, line)
            _print(f"{what}: {message}")

    def rollback(self, skipped: SkippedRange, reason: str) -> None:
        """Record and print a rollback; from now on every resume skips its data."""
        if self._metrics:
            self._metrics.flush()
            steps = f"steps {skipped.to_step + 1} to {skipped.step}"
            message = f"rolled back to step {skipped.to_step}: {steps} are discarded and their data skipped; {reason}"
            append_line(
                self._folder.record_jsonl, Rollback(time=time.time(), skipped=skipped, message=message)
            )
            _print(f"rollback: {message}")

    def flush(self) -> None:
        """Write every line to disk (fsync), as a checkpoint promises."""
        if self._metrics:
            self._metrics.flush(to_disk=True)

    def end(self, weights_sha256: str) -> None:
        """Write the End record: the run is finished."""
        if self._metrics:
            self._metrics.flush(to_disk=True)
            final = self._folder.evals()[-1]
            line = End(time=time.time(), step=final.step, loss=final.loss, weights_sha256=weights_sha256)
            append_line(self._folder.record_jsonl, line)
            _print(f"finished: held-out loss {final.loss:.4f} nats per token")

    def _already_recorded(self, step: int) -> bool:
        """Whether an earlier segment recorded that the loss left the band at this step, before it was killed."""
        incidents = [line for line in self._folder.records() if isinstance(line, Incident)]
        return any(line.what == "outside_band" and line.step == step for line in incidents)


@dataclass(frozen=True)
class SegmentStart:
    """How a segment starts on this rank."""

    rank: int
    """Rank 0 writes."""
    from_step: int
    """Finished steps that it resumes from."""
    kernels: Mapping[str, str]
    """Kernel back end of each operation."""
    devices: Sequence[str]
    """Accelerators."""


@contextmanager
def open_run_logger(
    folder: RunFolder, run: RunSpec, order: Order, segment: SegmentStart
) -> Iterator[RunLogger]:
    """The logger of a segment; its Start record is written before anything else."""
    if segment.rank > 0:
        yield RunLogger(folder, run, order, None)
        return
    truncate_partial_line(folder.record_jsonl)
    truncate_partial_line(folder.ranks_jsonl)
    lost_steps, lost_s = lost_work(folder, segment.from_step)
    earlier = sum(isinstance(line, Start) for line in folder.records())
    metrics = Metrics(folder, earlier + 1, segment.from_step, _rates(run, order))
    try:
        start = Start(
            time=time.time(),
            run=run.fingerprint(),
            seal=order.seal,
            from_step=segment.from_step,
            lost_steps=lost_steps,
            lost_s=lost_s,
            newest_step=folder.newest_step,
            unrecorded_steps=metrics.unrecorded_steps,
            execution=order.execution,
            kernels=dict(segment.kernels),
            environment=environment(segment.devices),
            job=slurm_job(),
        )
        append_line(folder.record_jsonl, start)
        _print(f"{order.title}: from step {segment.from_step} of {run.optim.steps}")
        if metrics.unrecorded_steps:
            _print(
                f"the last {several(metrics.unrecorded_steps, 'step')} before it are in no line of {folder.path}"
            )
        _print("kernels: " + ", ".join(f"{name} by {back_end}" for name, back_end in segment.kernels.items()))
        yield RunLogger(folder, run, order, metrics)
    finally:
        metrics.close()


def outside_band(curve: CurveBand | None, line: EvalLine) -> str | None:
    """A message where a held-out loss is outside the forecast's 95 % band; None inside it, or without a band."""
    if curve is None or line.step not in curve.step:
        return None
    at = curve.step.index(line.step)
    low, high = curve.low_95[at], curve.high_95[at]
    if low <= line.loss <= high:
        return None
    side = "above" if line.loss > high else "below"
    return (
        f"held-out loss {line.loss:.4f} at step {line.step} is {side} the 95 % band {low:.4f} to {high:.4f}"
    )


def _rates(run: RunSpec, order: Order) -> StepRates:
    peak = order.peak_flop_per_s
    devices = order.execution.layout.devices
    return StepRates(run.batch_tokens, run.model.mfu_flop_per_token, peak * devices if peak else None)


def lost_work(folder: RunFolder, from_step: int) -> tuple[int, float]:
    """Steps past `from_step` that the last segment had finished, which are trained again, and the seconds they took.

    The last second of steps may have no timing line yet; what was not measured is not counted.
    """
    steps = last_step(folder.metrics_jsonl) - from_step
    seconds, next_step = 0.0, math.inf
    for line in reversed(folder.timing()):
        if not from_step < line.step < next_step:
            break
        seconds, next_step = seconds + line.seconds, line.step
    return max(0, steps), seconds


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _print(text: str) -> None:
    print(text, flush=True)
