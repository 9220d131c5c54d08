"""What a run says about itself while it goes on: its record, its lines, and the alarm when it leaves its forecast.

Rank 0 keeps the journal; on the other ranks every call does nothing, so that the loop reads the same everywhere.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Literal

from runtime.folder import RunFolder
from runtime.metrics import Metrics, Rates, cut_line
from runtime.provenance import environment
from specs.files import append_line
from specs.plan import CurveBand
from specs.record import End, EvalLine, Incident, Order, Start, StepLine
from specs.run import RunSpec

What = Literal["outside_band", "damaged_checkpoint", "non_finite", "interrupted"]


class Journal:
    """One segment of a run, from its start at `from_step` finished steps."""

    def __init__(
        self, folder: RunFolder, run: RunSpec, order: Order, from_step: int, *, writes: bool
    ) -> None:
        self._folder = folder
        self._run = run
        self._order = order
        self._from_step = from_step
        self._writes = writes
        self._metrics: Metrics | None = None
        self._outside = False

    def start(self, kernels: Mapping[str, str], devices: Sequence[str]) -> None:
        """Write the Start record, before any step, and bring the files to the state of the checkpoint."""
        if not self._writes:
            return
        cut_line(self._folder.record_jsonl)
        self._metrics = Metrics(self._folder, self._from_step, _rates(self._run, self._order))
        evals = self._folder.evals()
        self._outside = bool(evals) and band_left(self._order.curve, evals[-1]) is not None
        start = Start(
            time=time.time(),
            run=self._run.fingerprint(),
            seal=self._order.seal,
            from_step=self._from_step,
            execution=self._order.execution,
            kernels=dict(kernels),
            environment=environment(devices),
        )
        append_line(self._folder.record_jsonl, start)
        self._say(f"{self._order.title}: from step {self._from_step} of {self._run.optim.steps}")

    def step(self, step: int, loss: float, grad_norm: float, lr: float) -> None:
        """Note a finished step."""
        if self._metrics:
            tokens = step * self._run.batch_tokens
            self._metrics.add(StepLine(step=step, tokens=tokens, loss=loss, grad_norm=grad_norm, lr=lr))

    def evaluation(self, step: int, loss: float, sequences: int) -> None:
        """Note a held-out loss; raise the alarm when it has just left the forecast's 95 % band."""
        if not self._metrics:
            return
        line = EvalLine(step=step, tokens=step * self._run.batch_tokens, loss=loss, sequences=sequences)
        self._metrics.add(line)
        self._say(f"step {step}: held-out loss {loss:.4f} nats per token")
        left = band_left(self._order.curve, line)
        if left and not self._outside and not self._already_known(step):
            self.incident("outside_band", step, left)
        self._outside = left is not None

    def incident(self, what: What, step: int, message: str) -> None:
        """Record and print something that a reader of the run must know."""
        if self._writes:
            if self._metrics:
                self._metrics.flush()
            append_line(
                self._folder.record_jsonl, Incident(time=time.time(), step=step, what=what, message=message)
            )
            self._say(f"{what}: {message}")

    def flush(self) -> None:
        """Bring every line to the disk, as a checkpoint promises."""
        if self._metrics:
            self._metrics.flush(to_disk=True)

    def end(self, weights_sha256: str) -> None:
        """Close the lines; write the End record."""
        if self._metrics:
            self._metrics.close()
            final = self._folder.evals()[-1]
            append_line(
                self._folder.record_jsonl,
                End(time=time.time(), step=final.step, loss=final.loss, weights_sha256=weights_sha256),
            )

    def _already_known(self, step: int) -> bool:
        """Whether an earlier segment recorded this excursion before it was cut off."""
        known = [line for line in self._folder.records() if isinstance(line, Incident)]
        return any(line.what == "outside_band" and line.step == step for line in known)

    def _say(self, text: str) -> None:
        print(text, flush=True)


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


def _rates(run: RunSpec, order: Order) -> Rates:
    peak = order.peak_flop_per_s
    devices = order.execution.layout.devices
    return Rates(run.batch_tokens, run.model.mfu_flop_per_token, peak * devices if peak else None)
