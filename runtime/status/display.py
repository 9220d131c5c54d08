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
from runtime.status.collect import StatusCollector, StatusSnapshot, states_of
from runtime.status.run_status import RunStatus
from specs.humanize import count, duration, several

LOOK_S, ASK_S, PLAIN_S = 2.0, 5.0, 10.0
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
_SURE = 5
"""Looks after which SLURM's accounts have caught up, with a question in between, and a study's next job is queued."""
_TITLE, _WIDE = 24, 100
"""Characters of a title that are shown in one line, where lines have so many; nodes and reasons give way."""
_BESIDES = 8
"""Lines of a picture besides the rows of a table."""


def show(picture: StatusSnapshot, console: Console) -> None:
    """Print a picture."""
    for part in rendered(picture, None, console.width):
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))


def rendered(picture: StatusSnapshot, height: int | None, width: int) -> list[RenderableType]:
    """A picture's parts, lines of markup and tables. Where they would be higher than `height` lines, runs that are
    finished or not started are counted and not shown. The tables are for lines of `width` characters."""
    parts: list[RenderableType] = []
    if picture.silent:
        parts.append(f"[magenta]{escape(picture.silent)}; this is what the files say[/]")
    if picture.elsewhere:
        parts.append(f"[magenta]{escape(picture.elsewhere)}[/]")
    parts += [f"[red]{escape(line)}[/]" for line in picture.unread]
    parts += [f"{number}. {name:<8}{escape(state)}" for number, (name, state) in enumerate(picture.chain, 1)]
    long = height is not None and len(picture.runs) + _BESIDES * len(picture.groups) > height
    for group, runs in picture.groups:
        shown = [run for run in runs if not long or run.state not in ("finished", "not started")]
        counts = ", ".join(f"{number} {state}" for state, number in states_of(runs).items())
        where = escape(str(group.plan)) if group.plan else ""
        parts += [""] if parts else []
        parts.append(f"[bold]{escape(group.name or 'run')} {group.phase}[/]  {where}  {counts}")
        if shown:
            parts.append(_table(group, shown, width))
        parts += _reasons(shown)
        then = picture.next_of(group, runs)
        parts += [f"[dim]{escape(then)}[/]"] if then else []
    parts += [f"[bold]{escape(one.name)}[/] {escape(one.said)}" for one in picture.studies]
    return parts or ["nothing is planned in this folder; next: plan BUDGET"]


def _table(group: Runs, runs: Sequence[RunStatus], width: int) -> Table:
    """Runs, a row each; what none of them has gets no column."""
    unit = group.losses.heads[0].replace(" per ", "/")
    table = Table(box=SIMPLE_HEAD, padding=0)
    table.add_column("run", no_wrap=width >= _WIDE and max(len(run.title) for run in runs) <= _TITLE)
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
    left = any(run.left_s is not None for run in runs)
    if left:
        table.add_column("left", justify="right", no_wrap=True)
    table.add_column("nodes, or\nwhy it waits", overflow="fold")
    for run in runs:
        cells: list[RenderableType] = [
            escape(run.title),
            f"[{_COLOURS[run.state]}]{run.state}[/]",
            f"{run.step}/{run.steps}",
            "-" if run.loss is None else group.losses.say(run.loss),
            *([_forecast(group, run)] if forecast else []),
            "-" if run.tokens_per_s is None else count(run.tokens_per_s),
            *([_mfu(run)] if mfu else []),
            *([_short(run.left_s)] if left else []),
            escape(_where(run)),
        ]
        table.add_row(*cells)
    return table


def _short(seconds: float | None) -> str:
    """A duration without blanks: `3m20s`."""
    return duration(seconds).replace(" min", "m").replace(" ", "")


def _mfu(run: RunStatus) -> str:
    return "-" if run.mfu is None else f"{100 * run.mfu:.1f}"


def _forecast(group: Runs, run: RunStatus) -> str:
    if run.forecast is None or run.loss is None:
        return "-"
    judged = run.forecast.judge(run.loss)
    colour = "green" if judged == "inside" else "bold red"
    return f"{group.losses.say(run.forecast.median)} [{colour}]{judged}[/]"


def _where(run: RunStatus) -> str:
    """Where a run is, or for what it waits and until when; and how often it was taken up again."""
    waits = run.state in ("queued", "requeued")
    where = f"{run.reason or 'queued'}{_expected(run.starts)}" if waits else run.nodes or "-"
    return f"{where}, {several(run.restarts, 'restart')}" if run.restarts else where


def _expected(starts: str) -> str:
    """When a job should start, in words; nothing where nobody knows."""
    if not starts:
        return ""
    at, now = datetime.fromisoformat(starts), datetime.now()
    form = "%H:%M" if at.date() == now.date() else "%m-%d %H:%M" if at.year == now.year else "%Y-%m-%d"
    return f", starts {at:{form}}"


def _reasons(runs: Sequence[RunStatus]) -> list[str]:
    """Why runs do not go on, or were queued again, each reason once."""
    told: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if run.why:
            told.setdefault((run.state, run.why), []).append(run.title)
    return [
        f"[{_COLOURS[state]}]{state}[/] {escape(titles[0])}"
        + (f" and {several(len(titles) - 1, 'other')}" if len(titles) > 1 else "")
        + f": {escape(why)}"
        for (state, why), titles in told.items()
    ]


def brief(picture: StatusSnapshot) -> str:
    """A picture in one line."""
    busy = [_brief(group, run) for group, runs in picture.groups for run in runs if run.state == "at work"]
    return "; ".join([counted(picture) or "nothing is planned", *busy])


def counted(picture: StatusSnapshot) -> str:
    """How many runs of a picture are in each state."""
    return ", ".join(f"{number} {state}" for state, number in states_of(picture.runs).items())


def _brief(group: Runs, run: RunStatus) -> str:
    loss = "" if run.loss is None else f", held-out {group.losses.say(run.loss)} {group.losses.unit}"
    left = "" if run.left_s is None else f", {duration(run.left_s)} left"
    return f"{run.title}: step {run.step}/{run.steps}{loss}{left}"


class Asker:
    """Asks SLURM at most every few seconds, in a thread of its own: a controller that is slow delays no picture."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._under_way: Future[JobStates] | None = None
        self._last: JobStates | None = None
        self._asked_s = 0.0

    def __call__(self, workspace: Workspace, runs: Sequence[str], studies: Sequence[str]) -> JobStates:
        """The newest answer; the first one is waited for."""
        if self._under_way is None and time.monotonic() - self._asked_s >= ASK_S:
            self._asked_s = time.monotonic()
            self._under_way = self._pool.submit(job_states, workspace, list(runs), list(studies))
        if self._under_way is not None and (self._last is None or self._under_way.done()):
            self._last, self._under_way = self._under_way.result(), None
        assert self._last is not None  # the first call has asked and waited
        return self._last


def is_over(picture: StatusSnapshot, still: int) -> bool:
    """Whether nothing goes on by itself any more, after so many looks in a row at which nothing did."""
    behind = any(run.job and run.state in ("failed", "stopped") for run in picture.runs)
    if behind or any(study.state == "lost" for study in picture.studies):
        return still >= _SURE
    return still > 1 or (still == 1 and all(run.state == "finished" for run in picture.runs))


def follow(looked: StatusCollector, console: Console, json: bool) -> None:
    """Show picture after picture until nothing goes on by itself any more, or Ctrl-C."""
    ask, still = Asker(), 0
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
            picture = looked.look(ask)
            still = 0 if picture.moves else still + 1
            if live:
                parts = rendered(picture, console.height, console.width)
                live.update(
                    Group(*(Text.from_markup(p) if isinstance(p, str) else p for p in parts)), refresh=True
                )
            elif counted(picture) != said or time.monotonic() - said_s >= PLAIN_S:
                said, said_s = counted(picture), time.monotonic()
                line = jsonlib.dumps(picture.plain()) if json else brief(picture)
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            if is_over(picture, still):
                break
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        pass
    finally:
        if live:
            live.stop()
    if not json:
        show(picture, console)
