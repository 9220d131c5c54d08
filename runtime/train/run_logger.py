"""What a run says about itself while it goes on: its record, its lines, and the alarm when it leaves its forecast.

Rank 0 keeps the journal. The other ranks hold one that says nothing, so that the loop reads the same everywhere.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.provenance import environment, slurm_job
from runtime.run_folder.tail import cut_line, reached
from runtime.train.metrics import Metrics, StepRates
from specs.document.write import append_line
from specs.plan import CurveBand
from specs.record import End, EvalLine, Incident, Order, Rollback, SkippedRange, Start, StepLine, What
from specs.run import RunSpec


class RunLogger:
    """One segment of a run; on all ranks but the first every call does nothing."""

    def __init__(self, folder: RunFolder, run: RunSpec, order: Order, metrics: Metrics | None) -> None:
        self._folder = folder
        self._run = run
        self._order = order
        self._metrics = metrics
        evals = folder.evals() if metrics else []
        self._outside = bool(evals) and band_left(order.curve, evals[-1]) is not None

    def step(self, step: int, loss: float, grad_norm: float, lr: float, applied: bool) -> None:
        """Note a finished step."""
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

    def evaluation(self, step: int, loss: float, sequences: int) -> None:
        """Note a held-out loss; raise the alarm when it has just left the forecast's 95 % band."""
        if not self._metrics:
            return
        line = EvalLine(step=step, tokens=step * self._run.batch_tokens, loss=loss, sequences=sequences)
        self._metrics.add(line)
        _say(f"step {step}: held-out loss {loss:.4f} nats per token")
        left = band_left(self._order.curve, line)
        if left and not self._outside and not self._already_known(step):
            self.incident("outside_band", step, left)
        self._outside = left is not None

    def incident(self, what: What, step: int, message: str) -> None:
        """Record and print something that a reader of the run must know."""
        if self._metrics:
            self._metrics.flush()
            line = Incident(time=time.time(), step=step, what=what, message=message)
            append_line(self._folder.record_jsonl, line)
            _say(f"{what}: {message}")

    def rollback(self, skipped: SkippedRange, why: str) -> None:
        """Record and print that the run goes back; from now on every start keeps to it."""
        if self._metrics:
            self._metrics.flush()
            gone = (
                f"steps {skipped.to_step + 1} to {skipped.step} are given up and their data left out: {why}"
            )
            append_line(self._folder.record_jsonl, Rollback(time=time.time(), skipped=skipped, message=gone))
            _say(f"rollback: {gone}")

    def flush(self) -> None:
        """Bring every line to the disk, as a checkpoint promises."""
        if self._metrics:
            self._metrics.flush(to_disk=True)

    def end(self, weights_sha256: str) -> None:
        """Write the End record: the run is finished."""
        if self._metrics:
            self._metrics.flush(to_disk=True)
            final = self._folder.evals()[-1]
            line = End(time=time.time(), step=final.step, loss=final.loss, weights_sha256=weights_sha256)
            append_line(self._folder.record_jsonl, line)
            _say(f"finished: held-out loss {final.loss:.4f} nats per token")

    def _already_known(self, step: int) -> bool:
        """Whether an earlier segment recorded this excursion before it was cut off."""
        known = [line for line in self._folder.records() if isinstance(line, Incident)]
        return any(line.what == "outside_band" and line.step == step for line in known)


@dataclass(frozen=True)
class SegmentStart:
    """How a segment begins on this rank."""

    rank: int
    """Rank 0 keeps the journal."""
    from_step: int
    """Finished steps that it goes on from."""
    kernels: Mapping[str, str]
    """Back end of each operation."""
    devices: Sequence[str]
    """Accelerators."""


@contextmanager
def open_run_logger(
    folder: RunFolder, run: RunSpec, order: Order, begun: SegmentStart
) -> Iterator[RunLogger]:
    """The journal of a segment; its Start record is written before anything else."""
    if begun.rank > 0:
        yield RunLogger(folder, run, order, None)
        return
    cut_line(folder.record_jsonl)
    lost_steps, lost_s = lost_since(folder, begun.from_step)
    metrics = Metrics(folder, begun.from_step, _rates(run, order))
    try:
        start = Start(
            time=time.time(),
            run=run.fingerprint(),
            seal=order.seal,
            from_step=begun.from_step,
            lost_steps=lost_steps,
            lost_s=lost_s,
            newest_step=folder.newest_step,
            execution=order.execution,
            kernels=dict(begun.kernels),
            environment=environment(begun.devices),
            job=slurm_job(),
        )
        append_line(folder.record_jsonl, start)
        _say(f"{order.title}: from step {begun.from_step} of {run.optim.steps}")
        _say("kernels: " + ", ".join(f"{name} by {words}" for name, words in begun.kernels.items()))
        yield RunLogger(folder, run, order, metrics)
    finally:
        metrics.close()


def band_left(curve: CurveBand | None, line: EvalLine) -> str | None:
    """Where a held-out loss lies outside the forecast's 95 % band, in words; None inside it or where there is none."""
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


def lost_since(folder: RunFolder, from_step: int) -> tuple[int, float]:
    """Steps past `from_step` that the last segment had finished, and the seconds that they had taken.

    Steps of less than a second at its end may have no time yet; what is not measured is not counted.
    """
    steps = reached(folder.metrics_jsonl) - from_step
    seconds, next_step = 0.0, math.inf
    for line in reversed(folder.timing()):
        if not from_step < line.step < next_step:
            break
        seconds, next_step = seconds + line.seconds, line.step
    return max(0, steps), seconds


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _say(text: str) -> None:
    print(text, flush=True)
