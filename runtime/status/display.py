"""The output of `isoplan status`: tables, refreshed on a terminal; otherwise plain lines at intervals."""

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
"""Seconds between two refreshes, at least between two queries of SLURM, and at most between two plain lines."""
_COLOURS = {
    "finished": "green",
    "running": "cyan",
    "pending": "yellow",
    "requeued": "yellow",
    "held": "bold yellow",
    "failed": "bold red",
    "cancelled": "magenta",
    "stopped": "magenta",
    "unknown": "magenta",
    "not started": "dim",
}
_SETTLED_REFRESHES = 5
"""Refreshes without progress after which SLURM accounting is up to date, and a study's next job would be queued."""
_TITLE, _WIDE_LINE = 24, 100
"""A title of at most so many characters is not wrapped on lines of at least so many characters."""
_FOLDED = ("finished", "not started", "pending", "requeued")
"""States of runs that need no one's attention."""
_LEAST_ROWS = 3
"""Rows, and reasons, that are shown however low the terminal is."""
_OTHER_LINES = 8
"""Lines of the output besides the rows of a table."""


def show(snapshot: StatusSnapshot, console: Console) -> None:
    """Print a snapshot."""
    for part in rendered(snapshot, None, console.width):
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))


def rendered(snapshot: StatusSnapshot, height: int | None, width: int) -> list[RenderableType]:
    """A snapshot's lines of markup and tables, for lines of `width` characters. If they do not fit in `height` lines,
    runs are only counted that are finished, not started or pending, and then what there is no room for, running runs
    last. Counts and advice stay."""
    parts: list[RenderableType] = []
    if snapshot.slurm_problem:
        parts.append(
            f"[magenta]{escape(snapshot.slurm_problem)}; the states below are from the files alone[/]"
        )
    if snapshot.other_workspace:
        parts.append(f"[magenta]{escape(snapshot.other_workspace)}[/]")
    parts += [f"[red]{escape(line)}[/]" for line in snapshot.unreadable]
    parts += [
        f"{number}. {name:<8}{escape(state)}" for number, (name, state) in enumerate(snapshot.chain_steps, 1)
    ]
    long = height is not None and len(snapshot.runs) + _OTHER_LINES * len(snapshot.groups) > height
    for group, runs in snapshot.groups:
        shown = list(runs)
        if height is not None and long:
            room = max(_LEAST_ROWS, height // len(snapshot.groups) - _OTHER_LINES)
            shown = [run for run in runs if run.state not in _FOLDED]
            shown = sorted(shown, key=lambda run: run.state != "running")[:room]
        counts = ", ".join(f"{number} {state}" for state, number in count_states(runs).items())
        where = escape(str(group.plan)) if group.plan else ""
        parts += [""] if parts else []
        parts.append(f"[bold]{escape(group.name or 'run')} {group.phase}[/]  {where}  {counts}")
        if shown:
            parts.append(_table(group, shown, width))
        parts += _reason_lines(runs)[: _LEAST_ROWS if long else None]
        excluded = [escape(line) for run in runs for line in run.excluded]
        parts += excluded[: _LEAST_ROWS if long else None]
        parts += [
            f"[yellow]straggler[/] {escape(one.title)}: {escape(one.straggler)}"
            for one in runs
            if one.straggler
        ]
        step = snapshot.next_of(group, runs)
        parts += [f"[dim]{escape(step)}[/]"] if step else []
    parts += [f"[bold]{escape(one.name)}[/] {escape(one.message)}" for one in snapshot.studies]
    return parts or ["there are no plans in this folder; next: plan BUDGET"]


def _table(group: Runs, runs: Sequence[RunStatus], width: int) -> Table:
    """Runs, a row each; a column that is empty for all of them is left out."""
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
    table.add_column("nodes, or\nwhy pending", overflow="fold")
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
    position = run.forecast.compare(run.loss)
    colour = "green" if position == "inside" else "bold red"
    return f"{group.losses.text(run.forecast.median)} [{colour}]{position}[/]"


def _location(run: RunStatus) -> str:
    """A run's nodes, or why it is pending and until when; and its restarts."""
    pending = run.state in ("pending", "requeued", "held")
    reason = f"{run.pending_reason or 'pending'}{_expected_start(run.expected_start)}"
    text = reason if pending else run.nodes or "-"
    return f"{text}, {several(run.restarts, 'restart')}" if run.restarts else text


def _expected_start(time: str) -> str:
    """When a job is expected to start, for people; empty where SLURM does not know."""
    if not time:
        return ""
    at, now = datetime.fromisoformat(time), datetime.now()
    form = "%H:%M" if at.date() == now.date() else "%m-%d %H:%M" if at.year == now.year else "%Y-%m-%d"
    return f", starts {at:{form}}"


def _reason_lines(runs: Sequence[RunStatus]) -> list[str]:
    """What ended runs or their last segments, each reason once."""
    titles_by_reason: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if run.end_reason:
            titles_by_reason.setdefault((run.state, run.end_reason), []).append(run.title)
    return [
        f"[{_COLOURS[state]}]{state}[/] {escape(titles[0])}"
        + (f" and {several(len(titles) - 1, 'other')}" if len(titles) > 1 else "")
        + f": {escape(end_reason)}"
        for (state, end_reason), titles in titles_by_reason.items()
    ]


def one_line(snapshot: StatusSnapshot) -> str:
    """A snapshot in one line."""
    running = [
        _run_line(group, run) for group, runs in snapshot.groups for run in runs if run.state == "running"
    ]
    return "; ".join([count_line(snapshot) or "there are no plans", *running])


def count_line(snapshot: StatusSnapshot) -> str:
    """How far the jobs are that build the corpus, or the number of runs in each state, in one line."""
    if snapshot.data is not None:
        return f"data: {dict(snapshot.chain_steps).get('data', '')}"
    return ", ".join(f"{number} {state}" for state, number in count_states(snapshot.runs).items())


def _run_line(group: Runs, run: RunStatus) -> str:
    loss = "" if run.loss is None else f", held-out {group.losses.text(run.loss)} {group.losses.unit}"
    left = "" if run.remaining_s is None else f", {duration(run.remaining_s)} left"
    return f"{run.title}: step {run.step}/{run.steps}{loss}{left}"


class SlurmPoller:
    """Queries SLURM at most every few seconds in a thread, so that a slow controller delays no refresh."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._query: Future[JobStates] | None = None
        self._last: JobStates | None = None
        self._queried_s = 0.0

    def __call__(self, workspace: Workspace, runs: Sequence[str], studies: Sequence[str]) -> JobStates:
        """The newest answer; only the first call waits for one."""
        if self._query is None and time.monotonic() - self._queried_s >= QUERY_S:
            self._queried_s = time.monotonic()
            self._query = self._pool.submit(job_states, workspace, list(runs), list(studies))
        if self._query is not None and (self._last is None or self._query.done()):
            self._last, self._query = self._query.result(), None
        assert self._last is not None  # the first call has waited for it
        return self._last


def is_settled(snapshot: StatusSnapshot, still: int) -> bool:
    """Whether nothing will happen any more, after `still` refreshes in a row with nothing in progress."""
    may_be_late = any(run.job and run.state in ("failed", "stopped") for run in snapshot.runs)
    if may_be_late or any(study.state == "lost" for study in snapshot.studies):
        return still >= _SETTLED_REFRESHES
    return still > 1 or (still == 1 and all(run.state == "finished" for run in snapshot.runs))


def follow(collector: StatusCollector, console: Console, json: bool) -> None:
    """Refresh until nothing will happen any more, or Ctrl-C."""
    poller, still = SlurmPoller(), 0
    live = (
        Live(console=console, auto_refresh=False, transient=True)
        if console.is_terminal and not json
        else None
    )
    printed, printed_s = "", 0.0
    if live:
        live.start()
    try:
        while True:
            snapshot = collector.collect(poller)
            still = 0 if snapshot.in_progress else still + 1
            if live:
                parts = rendered(snapshot, console.height, console.width)
                live.update(
                    Group(*(Text.from_markup(p) if isinstance(p, str) else p for p in parts)), refresh=True
                )
            elif count_line(snapshot) != printed or time.monotonic() - printed_s >= LINE_S:
                printed, printed_s = count_line(snapshot), time.monotonic()
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
