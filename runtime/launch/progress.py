"""What a person sees while runs are in progress: a live table on a terminal, plain lines anywhere else.

Everything is read from the runs' own files, a few kilobytes from their ends, so that looking costs nothing.

The time that is left: a run that has a pace needs its remaining steps at that pace; one that has none yet needs its
FLOP at the rate per slot that this launch has reached so far. All slots together can't be faster than the sum over
the slots, nor than the slowest run in progress.
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

from runtime.launch.local import Active, Job, Outcome
from runtime.run_folder.tail import last_line
from specs.humanize import duration

_LOOK_S, _PLAIN_S = 0.5, 10.0
"""Seconds between two looks, each a new picture on a terminal; and between two plain lines."""


class Pace:
    """How far one run is and how fast it goes, from what its metrics say now and then."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.step = 0
        self.first_step: int | None = None
        self.loss: float | None = None
        self._since: tuple[int, float] | None = None
        self._latest_s = 0.0
        self._read_bytes = _size(job.folder / "record.jsonl")

    def look(self, now_s: float) -> None:
        """Read the newest step. A segment's pace counts from the first step that this segment made."""
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
        """Steps per second of this segment; None before its second step."""
        if self._since is None or self.step == self._since[0]:
            return None
        return (self.step - self._since[0]) / (self._latest_s - self._since[1])

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at this pace."""
        return (self.job.steps - self.step) / self.steps_per_s if self.steps_per_s else None

    @property
    def new_flop(self) -> float:
        """FLOP of the steps that were made while this launch looked."""
        return self.job.compute_flop * (self.step - (self.first_step or 0)) / self.job.steps

    def incidents(self) -> list[str]:
        """Incidents that were recorded since the last call."""
        record = self.job.folder / "record.jsonl"
        if _size(record) <= self._read_bytes:
            return []
        with record.open("rb") as file:
            file.seek(self._read_bytes)
            whole = file.read().rpartition(b"\n")[0] + b"\n"
        self._read_bytes += len(whole) if whole.strip() else 0
        lines = [json.loads(line) for line in whole.splitlines() if line.strip()]
        return [
            line["message"]
            for line in lines
            if line["event"] == "rollback" or (line["event"] == "incident" and line["what"] != "interrupted")
        ]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def time_left_s(
    paces: Sequence[Pace], waiting: Sequence[Job], flop_per_slot_s: float | None, slots: int
) -> float | None:
    """Seconds until everything is done, or None before there is a pace (see above)."""
    needs = [(pace.job, pace.left_s, pace.step) for pace in paces] + [(job, None, 0) for job in waiting]
    each: list[tuple[int, float]] = []
    for job, left_s, step in needs:
        if left_s is None:
            if not flop_per_slot_s:
                return None
            left_s = job.compute_flop * (1 - step / job.steps) / (flop_per_slot_s * job.slots)
        each.append((job.slots, left_s))
    longest_s = max((left_s for _, left_s in each), default=0.0)
    return max(longest_s, sum(held * left_s for held, left_s in each) / slots)


class Board:
    """Shows a launch while it goes on; give it to `launch` as `watch`, inside a `with` block."""

    def __init__(self, console: Console, jobs: Sequence[Job], slots: int) -> None:
        self.console = console
        self.jobs = list(jobs)
        self.slots = slots
        self.paces: dict[Path, Pace] = {}
        self.told = 0
        self.slot_s = 0.0
        self.looked_s = self.shown_s = time.monotonic()
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Board":
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, active: Sequence[Active], outcomes: Sequence[Outcome]) -> None:
        """Take note of what happened, and show it when it is time to."""
        now_s = time.monotonic()
        for run in active:
            self._pace(run.job)  # from its start on, so that no incident is missed
        for outcome in outcomes[self.told :]:
            self._look(outcome.job, now_s)
            self.console.print(_ended(outcome), highlight=False, soft_wrap=True)
        self.told = len(outcomes)
        if now_s - self.looked_s >= _LOOK_S:
            self.slot_s += (now_s - self.looked_s) * sum(run.job.slots for run in active)
            self.looked_s = now_s
            self._show([self._look(run.job, now_s) for run in active], outcomes)

    def _pace(self, job: Job) -> Pace:
        if job.folder not in self.paces:
            self.paces[job.folder] = Pace(job)
        return self.paces[job.folder]

    def _look(self, job: Job, now_s: float) -> Pace:
        pace = self._pace(job)
        pace.look(now_s)
        for incident in pace.incidents():
            line = f"[bold red]alarm[/] {escape(job.title)}: {escape(incident)}"
            self.console.print(line, highlight=False, soft_wrap=True)
        return pace

    def _show(self, paces: Sequence[Pace], outcomes: Sequence[Outcome]) -> None:
        begun = {pace.job.folder for pace in paces} | {outcome.job.folder for outcome in outcomes}
        waiting = [job for job in self.jobs if job.folder not in begun]
        flop_per_slot_s = (
            sum(pace.new_flop for pace in self.paces.values()) / self.slot_s if self.slot_s else None
        )
        left_s = time_left_s(paces, waiting, flop_per_slot_s, self.slots)
        done_flop = sum(p.job.compute_flop * p.step / p.job.steps for p in self.paces.values())
        whole_flop = sum(job.compute_flop for job in self.jobs)
        summary = (
            f"{len(outcomes)} of {len(self.jobs)} runs, {done_flop:.2e} of {whole_flop:.2e} FLOP, "
            f"{duration(left_s)} left"
        )
        if self.live:
            overall = Table.grid(padding=(0, 1))
            overall.add_row(ProgressBar(total=whole_flop, completed=done_flop, width=30), summary)
            self.live.update(Group(_table(paces), overall), refresh=True)
        elif self.looked_s - self.shown_s >= _PLAIN_S:
            self.shown_s = self.looked_s
            self.console.print(
                "; ".join([summary, *map(_brief, paces)]), highlight=False, markup=False, soft_wrap=True
            )


def _table(paces: Sequence[Pace]) -> Table:
    """The runs in progress, a row each."""
    table = Table("run", box=None, pad_edge=False)
    for heading in ("step", "loss", "tokens/s", "left"):
        table.add_column(heading, justify="right")
    for pace in paces:
        rate = pace.steps_per_s
        table.add_row(
            escape(pace.job.title),
            f"{pace.step}/{pace.job.steps}",
            "-" if pace.loss is None else f"{pace.loss:.4f}",
            "-" if rate is None else f"{rate * pace.job.step_tokens:,.0f}",
            duration(pace.left_s),
        )
    return table


def _brief(pace: Pace) -> str:
    loss = "" if pace.loss is None else f" loss {pace.loss:.4f}"
    return f"{pace.job.title}: step {pace.step}/{pace.job.steps}{loss}"


def _ended(outcome: Outcome) -> str:
    """One line for a run that ended."""
    title = escape(outcome.job.title)
    if outcome.state != "finished":
        return f"[bold red]{outcome.state}[/] {title}: {escape(outcome.message)}"
    end = last_line(outcome.job.folder / "record.jsonl")
    loss = f", held-out loss {end['loss']:.4f} nats per token" if end and end.get("event") == "end" else ""
    return f"[green]finished[/] {title} in {duration(outcome.seconds)}{loss}"
