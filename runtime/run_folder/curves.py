"""The curves of a run as values by name, and up to which step they will not change any more."""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from runtime.run_folder.folder import RunFolder, list_checkpoints, step_of
from runtime.run_folder.tail import line_step
from specs.record import EvalLine, StepLine, TimingLine

Line = TypeVar("Line", StepLine, EvalLine, TimingLine)


@dataclass(frozen=True)
class Point:
    """The values of a step."""

    step: int
    """Finished steps."""
    values: dict[str, float]
    """By the names that TensorBoard shows, and `tokens`."""


def scalars(line: StepLine | EvalLine | TimingLine) -> dict[str, float]:
    """A line's values by their names in TensorBoard and in trackers."""
    match line:
        case StepLine():
            values = {"train/loss": line.loss, "train/grad_norm": line.grad_norm, "train/lr": line.lr}
            return {name: value for name, value in values.items() if value is not None}
        case EvalLine():
            of_sources = {f"held_out/source/{name}": loss for name, loss in line.sources.items()}
            return {"held_out/loss": line.loss} | of_sources
        case TimingLine():
            return {"speed/tokens_per_s": line.tokens_per_s} | ({"speed/mfu": line.mfu} if line.mfu else {})


def covered_step(folder: RunFolder) -> int:
    """The last step whose lines will not change: that of the newest checkpoint to which a rollback may go.

    One that was saved amid rejected steps is not: a rollback goes further back, to other data from there on.
    """
    end = folder.end()
    if end is not None:
        return end.step
    for path in list_checkpoints(folder.checkpoints):
        try:
            guard = json.loads((path / "manifest.json").read_bytes())["guard"]
        except (OSError, ValueError, KeyError):  # damaged, or removed just now
            continue
        if not guard["rejected_in_a_row"]:
            return step_of(path)
    return 0


def points(folder: RunFolder, after: int, through: int) -> Iterator[Point]:
    """The points of the steps after one and up to another, in their order, each step once."""
    evals = _lines(folder.evals_jsonl, EvalLine, after)
    timing = _lines(folder.timing_jsonl, TimingLine, after)
    others: dict[int, dict[str, float]] = {}
    lines: list[EvalLine | TimingLine] = [*timing, *evals]
    for line in lines:  # of a step that was timed twice, the newest line
        tokens = {} if isinstance(line, TimingLine) else {"tokens": line.tokens}
        others.setdefault(line.step, {}).update(tokens | scalars(line))
    waiting = deque(sorted(step for step in others if step <= through))
    for step_line in _lines(folder.metrics_jsonl, StepLine, after):
        if step_line.step > through:
            break
        while (
            waiting and waiting[0] < step_line.step
        ):  # a folder that was copied while it trained lacks lines
            yield Point(waiting[0], others[waiting.popleft()])
        if waiting and waiting[0] == step_line.step:
            waiting.popleft()
        more = others.get(step_line.step, {})
        yield Point(step_line.step, {"tokens": step_line.tokens} | scalars(step_line) | more)
    for step in waiting:
        yield Point(step, others[step])


def _lines(path: Path, line_type: type[Line], after: int) -> Iterator[Line]:
    """A file's complete lines of steps after this one; only those are parsed, from the end."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    first = len(lines)
    while first and ((step := line_step(lines[first - 1])) is None or step > after):
        first -= 1
    return (line_type.model_validate_json(line) for line in lines[first:] if line_step(line) is not None)
