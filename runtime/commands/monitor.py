"""The verbs of `isoplan` that look at runs and stop them. As in cli.py, nothing is decided here."""

import json as jsonlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from runtime.commands.options import AsJson, Debug
from runtime.run_folder.lookup import workspace_of
from runtime.run_folder.workspace import RefusedError, Workspace

Asked = typer.Argument(
    metavar="FILE|RUN",
    help="A budget, a plan, a run's folder or how its fingerprint begins.",
    show_default=False,
)
WIDTH = 100
"""Characters of a line where nobody says how wide it may be."""


def status_command(
    asked: Annotated[Path | None, Asked] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on looking until nothing goes on by itself any more.")
    ] = False,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show how runs stand: on this machine, in SLURM's queue, at work, finished, or failed and why.

    Without an argument, all plans under plans/ of this folder.

    The held-out loss stands beside the sealed forecast for that step. tokens/s, MFU and the time that is
    left are of about the last half minute. Reads only. With --follow and --json, a line per look.
    """
    from runtime.status import display
    from runtime.status.collect import StatusCollector

    looked = StatusCollector(Workspace(Path()), asked)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    if follow:
        display.follow(looked, console, json)
    elif json:
        typer.echo(jsonlib.dumps(looked.look().plain(), indent=1))
    else:
        display.show(looked.look(), console)


def logs_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="runs/<fingerprint>, or how its fingerprint begins.", show_default=False
        ),
    ],
    rank: Annotated[int, typer.Option(min=0, help="Whose log.")] = 0,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends, also where its job starts anew.")
    ] = False,
    lines: Annotated[int, typer.Option(min=1, help="How many of the last lines.")] = 40,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a rank of a run printed.

    Before it has printed anything: what its SLURM job printed on the way to it.
    """
    from runtime.status import logs
    from runtime.status.collect import StatusCollector

    if json and follow:
        raise RefusedError("--json --follow: a log that is followed is text; leave one out")
    folder = logs.run_asked(run, Workspace(Path()))
    workspace = workspace_of(folder, Workspace(Path()))
    logs.check_rank(folder, rank)
    printed = logs.Printed(folder, workspace, rank)
    if json:
        typer.echo(jsonlib.dumps(printed.plain(lines), indent=1))
        return
    if not printed.show(lines):
        typer.echo(
            f"rank {rank} has printed nothing yet; see: isoplan status {shlex.quote(str(run))}", err=True
        )
    if follow:
        ended = logs.follow(printed, StatusCollector(workspace, folder.path))
        if ended is not None:
            typer.echo(
                f"{ended.state} at step {ended.step} of {ended.steps}{ended.why and ': '}{ended.why}",
                err=True,
            )
    elif crash := logs.last_crash(folder):
        typer.echo(f"crashed: {crash}", err=True)


def cancel_command(asked: Annotated[Path, Asked], json: AsJson = False, debug: Debug = False) -> None:
    """Cancel the SLURM jobs of a run, of a plan's runs, or of a budget with the job that goes on with it.

    What is at work saves first. Running again goes on from the checkpoints.
    A run of this machine is left alone: Ctrl-C where it was started saves and ends it.
    """
    from runtime.status.cancel import cancel_asked
    from runtime.status.collect import StatusCollector

    cancel_asked(StatusCollector(Workspace(Path()), asked), Console(stderr=json), json)


VERBS: dict[str, Callable[..., None]] = {
    "status": status_command,
    "logs": logs_command,
    "cancel": cancel_command,
}
"""What `isoplan` has to see and steer runs."""
