"""`isoplan checkpoints`: what a run's folder holds, whether it is whole, what need not stay, and what restarts cost."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runtime.checkpoint.format import (
    CheckpointError,
    CheckpointManifest,
    first_damage,
    read_manifest,
    remove,
    prunable,
    usable_manifest,
)
from runtime.run_folder.folder import RunFolder, list_checkpoints, step_of
from runtime.run_folder.lock import LockAttempt, busy_message
from runtime.run_folder.workspace import RefusedError
from specs.document.files import DocumentError
from specs.document.write import append_line
from specs.humanize import count, duration, several
from specs.layout import Layout
from specs.record import Incident, Start
from specs.run import RunSpec


@dataclass(frozen=True)
class CheckpointStatus:
    """One checkpoint."""

    path: Path
    """Its folder."""
    manifest: CheckpointManifest | None
    """What it says of itself; None where that cannot be read."""
    size_bytes: int
    """Of its files."""
    state: Literal["whole", "there", "given up", "damaged"]
    """`whole` where every file has its digest, `there` where they were not read."""
    problem: str
    """What is wrong with a damaged one."""

    @property
    def damaged(self) -> bool:
        """Whether it cannot be used, whatever the run has given up."""
        return self.state == "damaged"

    def plain(self) -> dict[str, Any]:
        """For programs."""
        said = {"folder": str(self.path), "state": self.state, "size_bytes": self.size_bytes}
        if self.problem:
            said["problem"] = self.problem
        told = self.manifest
        if told is None:
            return said
        return said | {
            "step": told.step,
            "tokens": told.tokens,
            "loss": told.loss,
            "layout": told.layout.plain(),
        }


def checkpoint_statuses(folder: RunFolder, read: Callable[[str, int], None] | None) -> list[CheckpointStatus]:
    """Every checkpoint, newest first. With `read`, files are read whole; it is told each checkpoint and its bytes."""
    return [_checkpoint_status(path, folder, read) for path in list_checkpoints(folder.checkpoints)]


def _checkpoint_status(path: Path, folder: RunFolder, read: Callable[[str, int], None] | None) -> CheckpointStatus:
    run, skipped = folder.run(), folder.skipped()
    size_bytes = sum(file.stat().st_size for file in path.glob("*") if file.is_file())
    manifest, good, problem = None, False, ""
    try:
        manifest = read_manifest(path)
        good = usable_manifest(path, run, skipped) is not None
        problem = _problem(path, manifest, read is not None)
    except (CheckpointError, DocumentError) as error:
        problem = str(error)
    if read is not None:
        read(path.name, size_bytes)
    sound: Literal["whole", "there"] = "there" if read is None else "whole"
    return CheckpointStatus(
        path, manifest, size_bytes, "damaged" if problem else sound if good else "given up", problem
    )


def _problem(path: Path, manifest: CheckpointManifest, read: bool) -> str:
    """What is wrong with a checkpoint's files, as far as they are read."""
    if read:
        return first_damage(path, manifest)
    lost = next((name for name in manifest.files if not (path / name).is_file()), None)
    return "" if lost is None else f"{path / lost} is not there"


def prune(folder: RunFolder, lines: list[CheckpointStatus]) -> list[Path]:
    """Remove what is damaged or need not stay, of lines that were read whole; what was removed.

    RefusedError where somebody is at work in the folder, or where nothing whole would be left.
    """
    claim = LockAttempt(folder.path)
    lock = claim.take()
    if lock is None:
        raise RefusedError(f"{busy_message(folder.path)}; wait for it or stop it, then prune")
    try:
        whole = [line for line in lines if line.state == "whole"]
        if not whole or whole[0].manifest is None:
            raise RefusedError(f"{folder.checkpoints} holds no whole checkpoint, so nothing is removed")
        useless = {step_of(line.path) for line in lines if line.state != "whole"}
        gone = prunable(
            folder.checkpoints, whole[0].manifest.step, folder.order().execution.retention, useless
        )
        _reopen(folder, whole[0].manifest.step, gone)
        for path in gone:
            remove(path)
        return gone
    finally:
        lock.close()


def _reopen(folder: RunFolder, step: int, gone: list[Path]) -> None:
    """Where the final weights of a finished run go, its record says so: it is not finished any more."""
    end = folder.end()
    if end is not None and end.step in map(step_of, gone):
        said = f"the final weights were damaged; trained again from step {step} on, they are the same"
        append_line(
            folder.record_jsonl,
            Incident(time=time.time(), step=end.step, what="damaged_checkpoint", message=said),
        )


def show(folder: RunFolder, lines: list[CheckpointStatus], console: Console) -> None:
    """Print the checkpoints and the run's restarts."""
    run = folder.run()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("step", "tokens", "newest held-out loss", "size", "written under", "state"):
        table.add_column(name, justify="left" if name in ("written under", "state") else "right")
    for line in lines:
        table.add_row(*_cells(line))
    if lines:
        console.print(table)
    else:
        console.print(f"{escape(str(folder.checkpoints))} holds no checkpoint", soft_wrap=True)
    for line in lines:
        if line.damaged:
            console.print(f"[red]damaged[/]  {escape(line.problem)}", highlight=False, soft_wrap=True)
    end, damaged = folder.end(), [step_of(line.path) for line in lines if line.damaged]
    if end is not None and end.step in damaged:
        said = "these are the run's final weights: with --prune they are removed, and run trains the last steps again"
        console.print(f"[red]damaged[/]  {said}", highlight=False, soft_wrap=True)
    if end is not None and lines:
        evaluation = run.evaluation
        console.print(
            f"the loss of step {end.step:,} is on {several(evaluation.final_sequences, 'sequence')}, earlier ones on "
            f"{evaluation.sequences:,}",
            highlight=False,
            soft_wrap=True,
        )
    for said in restart_lines(folder, run):
        console.print(escape(said), highlight=False, soft_wrap=True)


def restart_lines(folder: RunFolder, run: RunSpec) -> list[str]:
    """The seams of a run, one line each, and what they cost together."""
    starts = [line for line in folder.records() if isinstance(line, Start)]
    lines = [
        f"taken up at step {start.from_step:,} of {run.optim.steps:,} under {_layout(start.execution.layout)}"
        + (
            f": {several(start.lost_steps, 'step')} trained again, {duration(start.lost_s)}"
            if start.lost_steps
            else ""
        )
        for start in starts[1:]
    ]
    spent_s, lost_s = sum(line.seconds for line in folder.timing()), sum(start.lost_s for start in starts)
    if lines and spent_s > 0:
        lines.append(f"goodput: {1 - lost_s / spent_s:.1%} of {duration(spent_s)} of training count")
    return lines


def _cells(line: CheckpointStatus) -> tuple[str, ...]:
    state = f"[{_COLOURS[line.state]}]{line.state}[/]"
    size = f"{line.size_bytes / 2**20:,.1f} MiB"
    told = line.manifest
    if told is None:
        return f"{step_of(line.path):,}", "-", "-", size, "-", state
    loss = "-" if told.loss is None else f"{told.loss:.4f}"
    return f"{told.step:,}", count(told.tokens), loss, size, _layout(told.layout), state


_COLOURS = {"whole": "green", "there": "green", "given up": "yellow", "damaged": "red"}


def _layout(layout: Layout) -> str:
    """As `dp 2 x pp 4`: the axes with more than one rank."""
    axes = [(name, getattr(layout, name)) for name in ("dp", "pp", "tp")]
    return " x ".join(f"{name} {size}" for name, size in axes if size > 1) or "one process"
