"""A run is its folder: the file names, and reading the files back as types.

    runs/<fingerprint>/run.json          RunSpec: what is trained; the folder's name is its fingerprint
                       order.json        Order: how to train it, rewritten by every launch
                       queued.json       Queued: its SLURM submission, if any
                       record.jsonl      starts, incidents and the end, with times
                       metrics.jsonl     a StepLine per step     \\ the same bytes whether or not
                       evals.jsonl       an EvalLine per point   / the run was ever interrupted
                       timing.jsonl      seconds and rates
                       ranks.jsonl       seconds, waits and memory of each rank
                       profile/          traces of profiled steps
                       checkpoints/      step-00001000/ ...
                       tensorboard/      the same values for TensorBoard
                       trackers/         what experiment trackers have of it
                       log/              rank-0.txt ...: what the ranks printed

The trainer writes these files; the launcher and the audit read them through this type, also while a run is in progress.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from runtime.run_folder.tail import last_line
from specs.document.files import DocumentError, load, read_lines
from specs.document.write import write_json
from specs.record import (
    End,
    EvalLine,
    Order,
    RankLine,
    RecordLine,
    Rollback,
    SkippedRange,
    StepLine,
    TimingLine,
)
from specs.run import RunSpec

_RANKS_TAIL_BYTES = 2**20
"""More than a line of ranks.jsonl: about 60 bytes a rank."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path
    """The folder: runs/<fingerprint>."""

    @property
    def run_json(self) -> Path:
        """The RunSpec."""
        return self.path / "run.json"

    @property
    def order_json(self) -> Path:
        """The Order."""
        return self.path / "order.json"

    @property
    def queued_json(self) -> Path:
        """Its latest SLURM submission."""
        return self.path / "queued.json"

    @property
    def record_jsonl(self) -> Path:
        """Starts, incidents and the end."""
        return self.path / "record.jsonl"

    @property
    def metrics_jsonl(self) -> Path:
        """A StepLine per step."""
        return self.path / "metrics.jsonl"

    @property
    def evals_jsonl(self) -> Path:
        """An EvalLine per point of the held-out curve."""
        return self.path / "evals.jsonl"

    @property
    def timing_jsonl(self) -> Path:
        """Seconds and rates."""
        return self.path / "timing.jsonl"

    @property
    def ranks_jsonl(self) -> Path:
        """Seconds, waits and memory of each rank."""
        return self.path / "ranks.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def newest_step(self) -> int:
        """Finished steps of the latest checkpoint, intact or damaged; 0 where there is none."""
        return max(map(step_of, list_checkpoints(self.checkpoints)), default=0)

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def log(self) -> Path:
        """Folder of what the ranks print."""
        return self.path / "log"

    def run(self) -> RunSpec:
        """What is trained."""
        return load(self.run_json, RunSpec)

    def order(self) -> Order:
        """How it is trained, as of the last launch."""
        return load(self.order_json, Order)

    def records(self) -> list[RecordLine]:
        """Starts, incidents and the end; empty before the first start."""
        return _whole_lines(self.record_jsonl, RecordLine)

    def metrics(self) -> list[StepLine]:
        """The training curve so far."""
        return _whole_lines(self.metrics_jsonl, StepLine)

    def evals(self) -> list[EvalLine]:
        """The held-out curve so far."""
        return _whole_lines(self.evals_jsonl, EvalLine)

    def timing(self) -> list[TimingLine]:
        """Seconds and rates so far."""
        return _whole_lines(self.timing_jsonl, TimingLine)

    def ranks(self) -> list[RankLine]:
        """What each rank's steps took so far."""
        return _whole_lines(self.ranks_jsonl, RankLine)

    def newest_ranks(self) -> RankLine | None:
        """The last of them; None where there is none."""
        newest = last_line(self.ranks_jsonl, _RANKS_TAIL_BYTES)
        return None if newest is None else RankLine.model_validate_json(json.dumps(newest))

    def skipped(self) -> tuple[SkippedRange, ...]:
        """The data ranges that rollbacks skipped, in order."""
        return tuple(line.skipped for line in self.records() if isinstance(line, Rollback))

    def end(self) -> End | None:
        """The last line of a finished run; None while it is unfinished."""
        records = self.records()
        return records[-1] if records and isinstance(records[-1], End) else None


def open_folder(runs: Path, run: RunSpec, order: Order) -> RunFolder:
    """The run's folder under `runs`, created where it is absent, with this order.

    DocumentError where the folder holds another run: its run.json was edited or copied.
    """
    folder = RunFolder(runs / run.fingerprint())
    folder.log.mkdir(parents=True, exist_ok=True)
    if folder.run_json.exists():
        _refuse_another_run(folder, run)
    else:
        write_json(folder.run_json, run)
    write_json(folder.order_json, order)
    return folder


def _whole_lines(path: Path, line_type: Any) -> list[Any]:
    """The complete lines of a file; the last one may be incomplete while a run writes it or after it was killed."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    adapter: TypeAdapter[Any] = TypeAdapter(line_type)
    try:
        return [adapter.validate_json(line) for line in lines]
    except ValidationError:
        return read_lines(path, line_type)  # says at which line


def _refuse_another_run(folder: RunFolder, run: RunSpec) -> None:
    existing = folder.run()
    fields = differing_fields(existing.plain(), run.plain())
    if fields:
        raise DocumentError(
            folder.run_json,
            1,
            1,
            f"this folder holds another run, which differs in {', '.join(fields)}",
            f"move {folder.path} away and rerun",
        )


def differing_fields(one: object, other: object, prefix: str = "") -> list[str]:
    """Dotted paths where two plain documents differ."""
    if one == other:
        return []
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [prefix or "everything"]
    found = []
    for key in [*one, *(key for key in other if key not in one)]:
        name = f"{prefix}.{key}" if prefix else str(key)
        if key not in one or key not in other:
            found.append(name)
        else:
            found += differing_fields(one[key], other[key], name)
    return found


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders with a checkpoint's name, latest first."""
    named = [path for path in folder.glob("step-*") if re.fullmatch("step-[0-9]{8,}", path.name)]
    return sorted(named, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Finished steps of a checkpoint, from its name."""
    return int(path.name.removeprefix("step-"))


def checkpoint_name(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{step:08d}"
