"""`isoplan checkpoints`: a run's checkpoints, whether they are intact, pruning, and the cost of restarts."""

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
    prunable,
    read_manifest,
    remove,
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
    """None where it cannot be read."""
    size_bytes: int
    """Sum of its files."""
    state: Literal["intact", "not verified", "rolled back", "damaged"]
    """`intact` where every file has its digest, `not verified` where the files were not read."""
    problem: str
    """What is wrong with a damaged one."""

    @property
    def damaged(self) -> bool:
        """Whether it is damaged."""
        return self.state == "damaged"

    def plain(self) -> dict[str, Any]:
        """As JSON types."""
        document = {"folder": str(self.path), "state": self.state, "size_bytes": self.size_bytes}
        if self.problem:
            document["problem"] = self.problem
        manifest = self.manifest
        if manifest is None:
            return document
        return document | {
            "step": manifest.step,
            "tokens": manifest.tokens,
            "loss": manifest.loss,
            "layout": manifest.layout.plain(),
        }


def checkpoint_statuses(
    folder: RunFolder, on_verified: Callable[[str, int], None] | None
) -> list[CheckpointStatus]:
    """Every checkpoint, latest first. With `on_verified`, files are verified in full, and it is called with each
    checkpoint's name and bytes."""
    return [_checkpoint_status(path, folder, on_verified) for path in list_checkpoints(folder.checkpoints)]


def _checkpoint_status(
    path: Path, folder: RunFolder, on_verified: Callable[[str, int], None] | None
) -> CheckpointStatus:
    run, skipped = folder.run(), folder.skipped()
    size_bytes = sum(file.stat().st_size for file in path.glob("*") if file.is_file())
    manifest, usable, problem = None, False, ""
    try:
        manifest = read_manifest(path)
        usable = usable_manifest(path, run, skipped) is not None
        problem = _problem(path, manifest, verify=on_verified is not None)
    except (CheckpointError, DocumentError) as error:
        problem = str(error)
    if on_verified is not None:
        on_verified(path.name, size_bytes)
    sound: Literal["intact", "not verified"] = "not verified" if on_verified is None else "intact"
    return CheckpointStatus(
        path, manifest, size_bytes, "damaged" if problem else sound if usable else "rolled back", problem
    )


def _problem(path: Path, manifest: CheckpointManifest, *, verify: bool) -> str:
    """What is wrong with a checkpoint's files; without `verify`, only whether one is missing."""
    if verify:
        return first_damage(path, manifest)
    missing = next((name for name in manifest.files if not (path / name).is_file()), None)
    return "" if missing is None else f"{path / missing} is missing"


def prune(folder: RunFolder, checkpoints: list[CheckpointStatus]) -> list[Path]:
    """Remove checkpoints that are damaged or that the retention does not keep, given all, verified; what was removed.

    RefusedError where another process uses the folder, or where no intact checkpoint would be left.
    """
    lock = LockAttempt(folder.path).acquire()
    if lock is None:
        raise RefusedError(f"{busy_message(folder.path)}; wait for it or stop it, then rerun")
    try:
        intact = [one for one in checkpoints if one.state == "intact"]
        if not intact or intact[0].manifest is None:
            raise RefusedError(f"{folder.checkpoints} has no intact checkpoint; nothing was removed")
        unusable = {step_of(one.path) for one in checkpoints if one.state != "intact"}
        latest = intact[0].manifest.step
        removed = prunable(folder.checkpoints, latest, folder.order().execution.retention, unusable)
        _reopen(folder, latest, removed)
        for path in removed:
            remove(path)
        return removed
    finally:
        lock.release()


def _reopen(folder: RunFolder, step: int, removed: list[Path]) -> None:
    """Record that a run is no longer finished, where its final weights are removed."""
    end = folder.end()
    if end is not None and end.step in map(step_of, removed):
        message = (
            f"the final weights were damaged and removed; rerun to repeat the steps after {step} bitwise"
        )
        append_line(
            folder.record_jsonl,
            Incident(time=time.time(), step=end.step, what="damaged_checkpoint", message=message),
        )


def show(folder: RunFolder, checkpoints: list[CheckpointStatus], console: Console) -> None:
    """Print the checkpoints and the run's restarts."""
    run = folder.run()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("step", "tokens", "latest held-out loss", "size", "layout", "state"):
        table.add_column(name, justify="left" if name in ("layout", "state") else "right")
    for one in checkpoints:
        table.add_row(*_cells(one))
    if checkpoints:
        console.print(table)
    else:
        console.print(f"{escape(str(folder.checkpoints))} has no checkpoints", soft_wrap=True)
    for one in checkpoints:
        if one.damaged:
            console.print(f"[red]damaged[/]  {escape(one.problem)}", highlight=False, soft_wrap=True)
    end, damaged = folder.end(), [step_of(one.path) for one in checkpoints if one.damaged]
    if end is not None and end.step in damaged:
        message = "these are the final weights; remove them with --prune and rerun, which trains the last steps again"
        console.print(f"[red]damaged[/]  {message}", highlight=False, soft_wrap=True)
    if end is not None and checkpoints:
        evaluation = run.evaluation
        console.print(
            f"the loss of step {end.step:,} is over {several(evaluation.final_sequences, 'sequence')}, earlier ones "
            f"over {evaluation.sequences:,}",
            highlight=False,
            soft_wrap=True,
        )
    for line in restart_lines(folder, run):
        console.print(escape(line), highlight=False, soft_wrap=True)


def restart_lines(folder: RunFolder, run: RunSpec) -> list[str]:
    """The restarts of a run, one line each, and what they cost together."""
    starts = [line for line in folder.records() if isinstance(line, Start)]
    lines = [
        f"resumed at step {start.from_step:,} of {run.optim.steps:,} with layout {_layout(start.execution.layout)}"
        + (
            f": {several(start.lost_steps, 'step')} trained again, {duration(start.lost_s)}"
            if start.lost_steps
            else ""
        )
        for start in starts[1:]
    ]
    spent_s, lost_s = sum(line.seconds for line in folder.timing()), sum(start.lost_s for start in starts)
    if lines and spent_s > 0:
        lines.append(f"goodput: {1 - lost_s / spent_s:.1%} of {duration(spent_s)} of training")
    return lines


def _cells(checkpoint: CheckpointStatus) -> tuple[str, ...]:
    state = f"[{_COLOURS[checkpoint.state]}]{checkpoint.state}[/]"
    size = f"{checkpoint.size_bytes / 2**20:,.1f} MiB"
    manifest = checkpoint.manifest
    if manifest is None:
        return f"{step_of(checkpoint.path):,}", "-", "-", size, "-", state
    loss = "-" if manifest.loss is None else f"{manifest.loss:.4f}"
    return f"{manifest.step:,}", count(manifest.tokens), loss, size, _layout(manifest.layout), state


_COLOURS = {"intact": "green", "not verified": "green", "rolled back": "yellow", "damaged": "red"}


def _layout(layout: Layout) -> str:
    """For example `dp 2 x pp 4`: the axes with more than one rank."""
    axes = [(name, getattr(layout, name)) for name in ("dp", "pp", "tp")]
    return " x ".join(f"{name} {size}" for name, size in axes if size > 1) or "one process"
