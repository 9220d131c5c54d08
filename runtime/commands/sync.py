"""`sync`: which runs are sent where, what is printed, and exit codes. Nothing is decided here."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from runtime.commands.monitor import Target
from runtime.commands.options import AsJson, Debug
from runtime.launch.jobs import RunRequest
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.status.collect import StatusCollector
from runtime.tracking.delivery import TrackerError, check_installed
from runtime.tracking.sync import Synced, offline_hint, sync
from specs.document.write import print_json
from specs.exit_codes import OK, RESUME
from specs.tracker import Tracker

Runs = list[tuple[RunRequest, RunFolder, Tracker]]
"""Runs, their folders, and where they are sent."""
_WRITE = {
    "project": "letters, digits, spaces, _ . and -, with wandb also team/project",
    "server": "its address, https://HOST, without spaces",
}
"""What to write instead of an option's value."""
_AFTER_FAILURE_S = 30.0
"""Time after which --follow tries again what a tracker did not accept."""


def sync_command(
    target: Annotated[Path, Target],
    to: Annotated[
        Literal["wandb", "mlflow", "trackio"] | None,
        typer.Option(help="The tracker.", show_default="tracker of the cluster file"),
    ] = None,
    project: Annotated[
        str | None, typer.Option(help="Its project, or MLflow's experiment.", show_default="isoplan")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Its server; of Trackio also user/space.", show_default="files in trackers/"
        ),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on until no run is running or pending any more."),
    ] = False,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Send the curves of a run, or of all runs of a plan or budget, to an experiment tracker.

    Training and held-out losses, learning rate, gradient norm, speed, the losses of a mix's sources, what happened
    to the run, and its configuration. Reads the run folders only, and may be repeated: what a tracker has is not
    sent again. Steps are sent once a checkpoint covers them. Without a server, files are written under trackers/,
    and nothing is sent over the network.

    Exit codes: 0 the tracker has everything, 2 bad input, 75 the tracker did not accept it (rerun the same command).
    """
    collector, console = StatusCollector(Workspace(Path()), target), Console(stderr=json)
    runs = _runs(collector, target, to, project, server)
    if not runs and not follow:
        raise RefusedError(f"{target}: none of its runs has a folder yet; add --follow to wait for them")
    if follow:
        found, code = _follow(collector, console, lambda: _runs(collector, target, to, project, server))
    else:
        found, code = _pass(collector, runs, console, quiet=False)
    if json:
        print_json({"runs": [one.__dict__ for one in found], "exit_code": code})
    files = collector.workspace.path / "trackers"
    hints = {hint for _, _, tracker in runs if (hint := offline_hint(tracker, files))}
    for hint in sorted(hints) if code == OK else ():
        console.print(f"next: {escape(hint)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _runs(
    collector: StatusCollector, target: Path, to: str | None, project: str | None, server: str | None
) -> Runs:
    """The target's runs that have a folder, each with where it is sent; InputError where that is not said."""
    found: dict[str, tuple[RunRequest, RunFolder, Tracker]] = {}
    for group in collector.groups():
        for request, folder in group.requests:
            tracker = _tracker(request, target, to, project, server)
            if folder.run_json.exists():
                found[folder.path.name] = request, folder, tracker
    for tracker in {one for _, _, one in found.values()}:
        check_installed(tracker)
    return list(found.values())


def _tracker(
    request: RunRequest, target: Path, to: str | None, project: str | None, server: str | None
) -> Tracker:
    """The cluster file's tracker with what the options change, or that of the options."""
    base = request.tracker if request.tracker is not None and to in (None, request.tracker.to) else None
    if base is None and to is None:
        write = "add --to wandb, mlflow or trackio, or write tracker: in the cluster file"
        raise RefusedError(f"{target}: no tracker is named; {write}")
    plain: dict[str, Any] = {"to": to} if base is None else base.plain()
    given = {"project": project, "server": server}
    try:
        return Tracker.model_validate(
            plain | {name: text for name, text in given.items() if text is not None}
        )
    except ValidationError as error:
        [problem, *_] = error.errors()
        field = ".".join(map(str, problem["loc"]))
        if field in given:
            write = _WRITE[field]
            raise RefusedError(f"--{field} {given[field]!r} cannot be used; write {write}") from None
        raise RefusedError(str(problem["msg"]).removeprefix("Value error, ")) from None


def _pass(
    collector: StatusCollector, runs: Runs, console: Console, *, quiet: bool
) -> tuple[list[Synced], int]:
    """Send what is new of every run; what was sent, and the exit code."""
    found: list[Synced] = []
    for request, folder, tracker in runs:
        try:
            synced = sync(folder, tracker, request.study, collector.workspace.path)
        except TrackerError as error:
            console.print(escape(str(error)), style="red", highlight=False, soft_wrap=True)
            return found, RESUME
        found.append(synced)
        if synced.new or not quiet:
            line = f"[bold]{escape(synced.title)}[/] {escape(synced.text)}"
            console.print(line, highlight=False, soft_wrap=True)
    return found, OK


def _follow(
    collector: StatusCollector, console: Console, runs: Callable[[], Runs]
) -> tuple[list[Synced], int]:
    """Send what is new until nothing will happen any more; the state of every run, and the last pass's exit code."""
    from runtime.status.display import REFRESH_S, SlurmPoller, is_settled

    poller, still = SlurmPoller(), 0
    while True:
        snapshot = collector.collect(poller)  # before the pass: of a run that has ended, that is the last one
        found, code = _pass(collector, runs(), console, quiet=True)
        still = 0 if snapshot.in_progress else still + 1
        if is_settled(snapshot, still):
            return found, code
        time.sleep(REFRESH_S if code == OK else _AFTER_FAILURE_S)
