"""The metrics of a run: metrics.jsonl, evals.jsonl and timing.jsonl, and the same values for TensorBoard.

The first two hold nothing that depends on time, so that an interrupted run ends with the same bytes as any other. Lines
are buffered for up to a second and written together. A checkpoint promises that all lines up to its step are on disk; a
resume therefore truncates both files at its step, which removes what a killed process wrote after it.
"""

import os
import time
from dataclasses import dataclass
from typing import IO

from runtime.run_folder.curves import scalars
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.tail import last_step, truncate_after_step
from runtime.train.tensorboard_events import Events
from specs.document.base import Spec
from specs.record import EvalLine, StepLine, TimingLine

_FLUSH_S = 1.0
"""Longest time that a line is buffered, and shortest over which a rate is measured: a user watches the files."""


@dataclass(frozen=True)
class StepRates:
    """Turns steps and seconds into rates."""

    step_tokens: int
    """Tokens of a step."""
    mfu_flop_per_token: int
    """Model FLOP per token."""
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

    def __init__(self, folder: RunFolder, start_number: int, from_step: int, rates: StepRates) -> None:
        truncate_after_step(folder.metrics_jsonl, from_step)
        truncate_after_step(folder.evals_jsonl, from_step)
        truncate_after_step(folder.timing_jsonl, None)
        self.unrecorded_steps = from_step - last_step(folder.metrics_jsonl)
        """Steps before the checkpoint that have no lines: the folder was copied while it trained."""
        self._rates = rates
        self._files: dict[type[Spec], IO[bytes]] = {
            StepLine: open(folder.metrics_jsonl, "ab"),  # noqa: SIM115
            EvalLine: open(folder.evals_jsonl, "ab"),  # noqa: SIM115
            TimingLine: open(folder.timing_jsonl, "ab"),  # noqa: SIM115
        }
        self._events = Events(folder.tensorboard, start_number, from_step)
        self._lines: list[StepLine | EvalLine | TimingLine] = []
        self._timed_step = self._step = from_step
        self._timed_s = time.monotonic()

    def add(self, line: StepLine | EvalLine) -> None:
        """Buffer a line; further calls write it within about a second."""
        self._lines.append(line)
        self._step = line.step
        if time.monotonic() - self._timed_s >= _FLUSH_S:
            self.flush()

    def flush(self, *, to_disk: bool = False) -> None:
        """Write all lines and the rates since the last flush; with `to_disk`, return when they are on disk (fsync)."""
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
        self._events.add((line.step, scalars(line)) for line in self._lines)
        self._lines.clear()

    def close(self) -> None:
        """Write the buffered lines and close the files."""
        self.flush(to_disk=True)
        self._events.close()
        for file in self._files.values():
            file.close()
