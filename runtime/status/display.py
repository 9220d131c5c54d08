"""`isoplan status` as a person meets it: tables, live on a terminal; plain lines at intervals elsewhere."""

import json as jsonlib
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from runtime.run_folder.workspace import Workspace
from runtime.slurm.job_states import JobStates, job_states
from runtime.status.collect import RunGroup as Runs
from runtime.status.collect import StatusCollector, StatusSnapshot, count_states
from runtime.status.run_status import RunStatus
from specs.humanize import count, duration, several

REFRESH_S, QUERY_S, LINE_S = 2.0, 5.0, 10.0
"""Least seconds between two pictures, between two questions to SLURM, and between two plain lines."""
_COLOURS = {
    "finished": "green",
    "at work": "cyan",
    "queued": "yellow",
    "requeued": "yellow",
    "failed": "bold red",
    "cancelled": "magenta",
    "stopped": "magenta",
    "unknown": "magenta",
    "not started": "dim",
}
_SETTLED_REFRESHES = 5
"""Looks after which SLURM's accounts have caught up, with a question in between, and a study's next job is queued."""
_TITLE, _WIDE_LINE = 24, 100
"""Characters of a title that are shown in one line, where lines have so many; nodes and reasons give way."""
_OTHER_LINES = 8
"""Lines of a picture besides the rows of a table."""


def show(snapshot: StatusSnapshot, console: Console) -> None:
    """Print a picture."""
    for part in rendered(snapshot, None, console.width):
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))


def rendered(snapshot: StatusSnapshot, height: int | None, width: int) -> list[RenderableType]:
    """A picture's parts, lines of markup and tables. Where they would be higher than `height` lines, runs that are
    finished or not started are counted and not shown. The tables are for lines of `width` characters."""
    parts: list[RenderableType] = []
    if snapshot.silent:
        parts.append(f"[magenta]{escape(snapshot.silent)}; this is what the files say[/]")
    if snapshot.elsewhere:
        parts.append(f"[magenta]{escape(snapshot.elsewhere)}[/]")
    parts += [f"[red]{escape(line)}[/]" for line in snapshot.unread]
    parts += [f"{number}. {name:<8}{escape(state)}" for number, (name, state) in enumerate(snapshot.chain_steps, 1)]
    long = height is not None and len(snapshot.runs) + _OTHER_LINES * len(snapshot.groups) > height
    for group, runs in snapshot.groups:
        shown = [run for run in runs if not long or run.state not in ("finished", "not started")]
        counts = ", ".join(f"{number} {state}" for state, number in count_states(runs).items())
        where = escape(str(group.plan)) if group.plan else ""
        parts += [""] if parts else []
        parts.append(f"[bold]{escape(group.name or 'run')} {group.phase}[/]  {where}  {counts}")
        if shown:
            parts.append(_table(group, shown, width))
        parts += _reason_lines(shown)
        then = snapshot.next_of(group, runs)
        parts += [f"[dim]{escape(then)}[/]"] if then else []
    parts += [f"[bold]{escape(one.name)}[/] {escape(one.said)}" for one in snapshot.studies]
    return parts or ["nothing is planned in this folder; next: plan BUDGET"]


def _table(group: Runs, runs: Sequence[RunStatus], width: int) -> Table:
    """Runs, a row each; what none of them has gets no column."""
    unit = group.losses.heads[0].replace(" per ", "/")
    table = Table(box=SIMPLE_HEAD, padding=0)
    table.add_column("run", no_wrap=width >= _WIDE_LINE and max(len(run.title) for run in runs) <= _TITLE)
    table.add_column("state", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column(f"held-out\n{unit}", justify="right", no_wrap=True)
    forecast = any(run.forecast for run in runs)
    if forecast:
        table.add_column("forecast,\n95 % band", justify="right", no_wrap=True)
    mfu = any(run.mfu is not None for run in runs)
    table.add_column("tokens\nper s", justify="right", no_wrap=True)
    if mfu:
        table.add_column("MFU\n%", justify="right", no_wrap=True)
    left = any(run.remaining_s is not None for run in runs)
    if left:
        table.add_column("left", justify="right", no_wrap=True)
    table.add_column("nodes, or\nwhy it waits", overflow="fold")
    for run in runs:
        cells: list[RenderableType] = [
            escape(run.title),
            f"[{_COLOURS[run.state]}]{run.state}[/]",
            f"{run.step}/{run.steps}",
            "-" if run.loss is None else group.losses.text(run.loss),
            *([_forecast(group, run)] if forecast else []),
            "-" if run.tokens_per_s is None else count(run.tokens_per_s),
            *([_mfu(run)] if mfu else []),
            *([_compact_duration(run.remaining_s)] if left else []),
            escape(_location(run)),
        ]
        table.add_row(*cells)
    return table


def _compact_duration(seconds: float | None) -> str:
    """A duration without blanks: `3m20s`."""
    return duration(seconds).replace(" min", "m").replace(" ", "")


def _mfu(run: RunStatus) -> str:
    return "-" if run.mfu is None else f"{100 * run.mfu:.1f}"


def _forecast(group: Runs, run: RunStatus) -> str:
    if run.forecast is None or run.loss is None:
        return "-"
    judged = run.forecast.judge(run.loss)
    colour = "green" if judged == "inside" else "bold red"
    return f"{group.losses.text(run.forecast.median)} [{colour}]{judged}[/]"


def _location(run: RunStatus) -> str:
    """Where a run is, or for what it waits and until when; and how often it was taken up again."""
    pending = run.state in ("queued", "requeued")
    where = f"{run.reason or 'queued'}{_expected_start(run.starts)}" if pending else run.nodes or "-"
    return f"{where}, {several(run.restarts, 'restart')}" if run.restarts else where


def _expected_start(starts: str) -> str:
    """When a job should start, in words; nothing where nobody knows."""
    if not starts:
        return ""
    at, now = datetime.fromisoformat(starts), datetime.now()
    form = "%H:%M" if at.date() == now.date() else "%m-%d %H:%M" if at.year == now.year else "%Y-%m-%d"
    return f", starts {at:{form}}"


def _reason_lines(runs: Sequence[RunStatus]) -> list[str]:
    """Why runs do not go on, or were queued again, each reason once."""
    told: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if run.end_reason:
            told.setdefault((run.state, run.end_reason), []).append(run.title)
    return [
        f"[{_COLOURS[state]}]{state}[/] {escape(titles[0])}"
        + (f" and {several(len(titles) - 1, 'other')}" if len(titles) > 1 else "")
        + f": {escape(end_reason)}"
        for (state, end_reason), titles in told.items()
    ]


def one_line(snapshot: StatusSnapshot) -> str:
    """A picture in one line."""
    busy = [
        _run_line(group, run) for group, runs in snapshot.groups for run in runs if run.state == "at work"
    ]
    return "; ".join([count_line(snapshot) or "nothing is planned", *busy])


def count_line(snapshot: StatusSnapshot) -> str:
    """How many runs of a picture are in each state."""
    return ", ".join(f"{number} {state}" for state, number in count_states(snapshot.runs).items())


def _run_line(group: Runs, run: RunStatus) -> str:
    loss = "" if run.loss is None else f", held-out {group.losses.text(run.loss)} {group.losses.unit}"
    left = "" if run.remaining_s is None else f", {duration(run.remaining_s)} left"
    return f"{run.title}: step {run.step}/{run.steps}{loss}{left}"


class SlurmPoller:
    """Asks SLURM at most every few seconds, in a thread of its own: a controller that is slow delays no picture."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._under_way: Future[JobStates] | None = None
        self._last: JobStates | None = None
        self._asked_s = 0.0

    def __call__(self, workspace: Workspace, runs: Sequence[str], studies: Sequence[str]) -> JobStates:
        """The newest answer; the first one is waited for."""
        if self._under_way is None and time.monotonic() - self._asked_s >= QUERY_S:
            self._asked_s = time.monotonic()
            self._under_way = self._pool.submit(job_states, workspace, list(runs), list(studies))
        if self._under_way is not None and (self._last is None or self._under_way.done()):
            self._last, self._under_way = self._under_way.result(), None
        assert self._last is not None  # the first call has asked and waited
        return self._last


def is_settled(snapshot: StatusSnapshot, still: int) -> bool:
    """Whether nothing goes on by itself any more, after so many looks in a row at which nothing did."""
    behind = any(run.job and run.state in ("failed", "stopped") for run in snapshot.runs)
    if behind or any(study.state == "lost" for study in snapshot.studies):
        return still >= _SETTLED_REFRESHES
    return still > 1 or (still == 1 and all(run.state == "finished" for run in snapshot.runs))


def follow(looked: StatusCollector, console: Console, json: bool) -> None:
    """Show picture after picture until nothing goes on by itself any more, or Ctrl-C."""
    ask, still = SlurmPoller(), 0
    live = (
        Live(console=console, auto_refresh=False, transient=True)
        if console.is_terminal and not json
        else None
    )
    said, said_s = "", 0.0
    if live:
        live.start()
    try:
        while True:
            snapshot = looked.collect(ask)
            still = 0 if snapshot.in_progress else still + 1
            if live:
                parts = rendered(snapshot, console.height, console.width)
                live.update(
                    Group(*(Text.from_markup(p) if isinstance(p, str) else p for p in parts)), refresh=True
                )
            elif count_line(snapshot) != said or time.monotonic() - said_s >= LINE_S:
                said, said_s = count_line(snapshot), time.monotonic()
                line = jsonlib.dumps(snapshot.plain()) if json else one_line(snapshot)
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            if is_settled(snapshot, still):
                break
            time.sleep(REFRESH_S)
    except KeyboardInterrupt:
        pass
    finally:
        if live:
            live.stop()
    if not json:
        show(snapshot, console)
