"""What a run measures, as lines: metrics.jsonl and evals.jsonl for everybody, timing.jsonl, TensorBoard beside them.

The first two hold nothing that depends on time, so that an interrupted run ends with the same bytes as any other. Lines
are kept back for up to a second and written together. A checkpoint promises that all lines up to its step are on disk;
a resume therefore cuts both files at its step, and what a killed process wrote beyond it is gone.
"""

import os
import time
from dataclasses import dataclass
from typing import IO

from runtime.run_folder.folder import RunFolder
from runtime.run_folder.tail import cut, reached
from runtime.train.tensorboard_events import Events
from specs.document.base import Spec
from specs.record import EvalLine, StepLine, TimingLine

_FLUSH_S = 1.0
"""Longest time that a line is kept back, and the shortest over which a rate is measured: a person watches."""


class RecordError(ValueError):
    """A run's lines do not fit its checkpoint: what is wrong, and what to do."""


@dataclass(frozen=True)
class StepRates:
    """What turns steps and seconds into rates."""

    step_tokens: int
    """Tokens of a step."""
    mfu_flop_per_token: int
    """Model FLOP of a token."""
    peak_flop_per_s: float | None
    """Peak of all devices together; None where it is not known."""

    def line(self, step: int, steps: int, seconds: float) -> TimingLine:
        """The rates of `steps` steps that ended with number `step`."""
        tokens_per_s = steps * self.step_tokens / seconds
        peak = self.peak_flop_per_s
        mfu = tokens_per_s * self.mfu_flop_per_token / peak if peak else None
        return TimingLine(step=step, seconds=seconds, tokens_per_s=tokens_per_s, mfu=mfu)


class Metrics:
    """The open files of a run, on the one rank that writes them."""

    def __init__(self, folder: RunFolder, from_step: int, rates: StepRates) -> None:
        cut(folder.metrics_jsonl, from_step)
        cut(folder.evals_jsonl, from_step)
        cut(folder.timing_jsonl, None)
        found = reached(folder.metrics_jsonl)
        if found != from_step:
            raise RecordError(
                f"{folder.metrics_jsonl} has lines up to step {found}, but the checkpoint is of step {from_step}; "
                f"put the file back, or delete {folder.checkpoints} to train from the start"
            )
        self._rates = rates
        self._files: dict[type[Spec], IO[bytes]] = {
            StepLine: open(folder.metrics_jsonl, "ab"),  # noqa: SIM115
            EvalLine: open(folder.evals_jsonl, "ab"),  # noqa: SIM115
            TimingLine: open(folder.timing_jsonl, "ab"),  # noqa: SIM115
        }
        self._events = Events(folder.tensorboard, from_step)
        self._lines: list[StepLine | EvalLine | TimingLine] = []
        self._timed_step = self._step = from_step
        self._timed_s = time.monotonic()

    def add(self, line: StepLine | EvalLine) -> None:
        """Take a line; it is in its file within about a second of further calls."""
        self._lines.append(line)
        self._step = line.step
        if time.monotonic() - self._timed_s >= _FLUSH_S:
            self.flush()

    def flush(self, *, to_disk: bool = False) -> None:
        """Write all lines, and how fast the steps since the last time were; `to_disk` waits for the disk."""
        seconds = time.monotonic() - self._timed_s
        if self._step > self._timed_step:
            self._lines.append(self._rates.line(self._step, self._step - self._timed_step, seconds))
            self._timed_step, self._timed_s = self._step, self._timed_s + seconds
        for kind, file in self._files.items():
            text = "".join(line.canonical_json() + "\n" for line in self._lines if isinstance(line, kind))
            file.write(text.encode())
            file.flush()
            if to_disk:
                os.fsync(file.fileno())
        self._events.add((line.step, _scalars(line)) for line in self._lines)
        self._lines.clear()

    def close(self) -> None:
        """Write what is left and close the files."""
        self.flush(to_disk=True)
        self._events.close()
        for file in self._files.values():
            file.close()


def _scalars(line: StepLine | EvalLine | TimingLine) -> dict[str, float]:
    """What TensorBoard shows of a line."""
    match line:
        case StepLine():
            values = {"train/loss": line.loss, "train/grad_norm": line.grad_norm, "train/lr": line.lr}
            return {name: value for name, value in values.items() if value is not None}
        case EvalLine():
            return {"held_out/loss": line.loss}
        case TimingLine():
            return {"speed/tokens_per_s": line.tokens_per_s} | ({"speed/mfu": line.mfu} if line.mfu else {})
