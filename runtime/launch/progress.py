"""Progress of a launch: a live table on a terminal, plain lines elsewhere.

Everything is read from the runs' own files, a few kilobytes from their ends, so that reading costs next to nothing.

Remaining time: a run with a measured speed needs its remaining steps at that speed; one without needs its FLOP at the
average rate per slot of this launch. The whole takes at least the sum over the runs divided by the slots, and at least
as long as the slowest run.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from runtime.launch.local import Job, Outcome, RunningJob
from runtime.run_folder.tail import last_line
from specs.humanize import duration

_UPDATE_S, _PLAIN_S = 0.5, 10.0
"""Seconds between updates of the live table, and between plain lines."""


class RunProgress:
    """Progress and speed of one run, from its metrics."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.step = 0
        self.first_step: int | None = None
        self.loss: float | None = None
        self._since: tuple[int, float] | None = None
        self._latest_s = 0.0
        self._read_bytes = _size(job.folder / "record.jsonl")

    def update(self, now_s: float) -> None:
        """Read the newest step. Speed counts from the first step of the current segment."""
        line = last_line(self.job.folder / "metrics.jsonl")
        if line is None:
            return
        step, self.loss = int(line["step"]), line["loss"]
        if self.first_step is None or step < self.step:
            self.first_step, self._since = step, None
        elif step > self.step:
            self._since = self._since or (step, now_s)
            self._latest_s = now_s
        self.step = step

    @property
    def steps_per_s(self) -> float | None:
        """Steps per second in this segment; None before its second step."""
        if self._since is None or self.step == self._since[0]:
            return None
        return (self.step - self._since[0]) / (self._latest_s - self._since[1])

    @property
    def remaining_s(self) -> float | None:
        """Seconds to the end at this speed; None while it is unknown."""
        return (self.job.steps - self.step) / self.steps_per_s if self.steps_per_s else None

    @property
    def new_flop(self) -> float:
        """FLOP of the steps made during this launch."""
        return self.job.compute_flop * (self.step - (self.first_step or 0)) / self.job.steps

    def incidents(self) -> list[str]:
        """Messages of the incidents recorded since the last call."""
        record = self.job.folder / "record.jsonl"
        if _size(record) <= self._read_bytes:
            return []
        with record.open("rb") as file:
            file.seek(self._read_bytes)
            complete = file.read().rpartition(b"\n")[0] + b"\n"
        self._read_bytes += len(complete) if complete.strip() else 0
        lines = [json.loads(line) for line in complete.splitlines() if line.strip()]
        return [
            line["message"]
            for line in lines
            if line["event"] == "rollback" or (line["event"] == "incident" and line["what"] != "interrupted")
        ]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def remaining_s(
    running: Sequence[RunProgress], waiting: Sequence[Job], flop_per_slot_s: float | None, slots: int
) -> float | None:
    """Seconds until all runs are finished (see above); None while that is unknown."""
    needs = [(run.job, run.remaining_s, run.step) for run in running] + [(job, None, 0) for job in waiting]
    each: list[tuple[int, float]] = []
    for job, left_s, step in needs:
        if left_s is None:
            if not flop_per_slot_s:
                return None
            left_s = job.compute_flop * (1 - step / job.steps) / (flop_per_slot_s * job.slots)
        each.append((job.slots, left_s))
    longest_s = max((left_s for _, left_s in each), default=0.0)
    return max(longest_s, sum(held * left_s for held, left_s in each) / slots)


class ProgressDisplay:
    """Shows the progress of a launch; pass it to `launch` as `watch`, inside a `with` block."""

    def __init__(self, console: Console, jobs: Sequence[Job], slots: int) -> None:
        self.console = console
        self.jobs = list(jobs)
        self.slots = slots
        self.progress: dict[Path, RunProgress] = {}
        self.shown_outcomes = 0
        self.slot_s = 0.0
        self.updated_s = self.shown_s = time.monotonic()
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "ProgressDisplay":
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, active: Sequence[RunningJob], outcomes: Sequence[Outcome]) -> None:
        """Print new outcomes, and update the display when it is due."""
        now_s = time.monotonic()
        for run in active:
            self._progress_of(run.job)  # from its start on, so that no incident is missed
        for outcome in outcomes[self.shown_outcomes :]:
            self._update(outcome.job, now_s)
            self.console.print(_outcome_line(outcome), highlight=False, soft_wrap=True)
        self.shown_outcomes = len(outcomes)
        if now_s - self.updated_s >= _UPDATE_S:
            self.slot_s += (now_s - self.updated_s) * sum(run.job.slots for run in active)
            self.updated_s = now_s
            self._show([self._update(run.job, now_s) for run in active], outcomes)

    def _progress_of(self, job: Job) -> RunProgress:
        if job.folder not in self.progress:
            self.progress[job.folder] = RunProgress(job)
        return self.progress[job.folder]

    def _update(self, job: Job, now_s: float) -> RunProgress:
        progress = self._progress_of(job)
        progress.update(now_s)
        for incident in progress.incidents():
            line = f"[bold red]alarm[/] {escape(job.title)}: {escape(incident)}"
            self.console.print(line, highlight=False, soft_wrap=True)
        return progress

    def _show(self, running: Sequence[RunProgress], outcomes: Sequence[Outcome]) -> None:
        started = {run.job.folder for run in running} | {outcome.job.folder for outcome in outcomes}
        waiting = [job for job in self.jobs if job.folder not in started]
        flop_per_slot_s = (
            sum(run.new_flop for run in self.progress.values()) / self.slot_s if self.slot_s else None
        )
        left_s = remaining_s(running, waiting, flop_per_slot_s, self.slots)
        done_flop = sum(p.job.compute_flop * p.step / p.job.steps for p in self.progress.values())
        total_flop = sum(job.compute_flop for job in self.jobs)
        summary = (
            f"{len(outcomes)} of {len(self.jobs)} runs, {done_flop:.2e} of {total_flop:.2e} FLOP, "
            f"{duration(left_s)} left"
        )
        if self.live:
            overall = Table.grid(padding=(0, 1))
            overall.add_row(ProgressBar(total=total_flop, completed=done_flop, width=30), summary)
            self.live.update(Group(_table(running), overall), refresh=True)
        elif self.updated_s - self.shown_s >= _PLAIN_S:
            self.shown_s = self.updated_s
            self.console.print(
                "; ".join([summary, *map(_progress_text, running)]),
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


def _table(running: Sequence[RunProgress]) -> Table:
    """The runs in progress, a row each."""
    table = Table("run", box=None, pad_edge=False)
    for heading in ("step", "loss", "tokens/s", "left"):
        table.add_column(heading, justify="right")
    for run in running:
        rate = run.steps_per_s
        table.add_row(
            escape(run.job.title),
            f"{run.step}/{run.job.steps}",
            "-" if run.loss is None else f"{run.loss:.4f}",
            "-" if rate is None else f"{rate * run.job.step_tokens:,.0f}",
            duration(run.remaining_s),
        )
    return table


def _progress_text(run: RunProgress) -> str:
    loss = "" if run.loss is None else f" loss {run.loss:.4f}"
    return f"{run.job.title}: step {run.step}/{run.job.steps}{loss}"


def _outcome_line(outcome: Outcome) -> str:
    """One line for a run that ended."""
    title = escape(outcome.job.title)
    if outcome.state != "finished":
        return f"[bold red]{outcome.state}[/] {title}: {escape(outcome.message)}"
    end = last_line(outcome.job.folder / "record.jsonl")
    loss = f", held-out loss {end['loss']:.4f} nats per token" if end and end.get("event") == "end" else ""
    return f"[green]finished[/] {title} in {duration(outcome.seconds)}{loss}"
