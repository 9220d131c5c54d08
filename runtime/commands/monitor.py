"""`status`, `logs` and `cancel`: arguments, help texts and output. Nothing is decided here."""

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
from specs.document.write import print_json

Target = typer.Argument(
    metavar="FILE|RUN",
    help="A budget, a plan, a run's folder, or the first characters of its fingerprint.",
    show_default=False,
)
WIDTH = 100
"""Characters of a line where the output is no terminal."""


def status_command(
    target: Annotated[Path | None, Target] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Refresh until nothing is running or pending any more.")
    ] = False,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the state of runs: running, pending in SLURM's queue, finished, or failed and why.

    Without an argument, those of all plans under plans/ in this folder. Of a budget also the steps of its study, and
    the SLURM jobs that build its corpus.

    The held-out loss is shown beside the sealed forecast for that step. tokens/s, MFU and the time left
    cover about the last half minute. Writes nothing. With --follow and --json, one line per refresh.
    """
    from runtime.status import display
    from runtime.status.collect import StatusCollector

    collector = StatusCollector(Workspace(Path()), target)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    if follow:
        display.follow(collector, console, json)
    elif json:
        print_json(collector.collect().plain())
    else:
        display.show(collector.collect(), console)


def logs_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="runs/<fingerprint>, or the first characters of it.", show_default=False
        ),
    ],
    rank: Annotated[int, typer.Option(min=0, help="The rank whose log to show.")] = 0,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Print new lines until the run ends, also across requeues."),
    ] = False,
    lines: Annotated[int, typer.Option(min=1, help="Number of lines to show, from the end of the log.")] = 40,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the log of a rank of a run.

    Before the rank has printed anything, this is the output of its SLURM job.
    """
    from runtime.status import logs
    from runtime.status.collect import StatusCollector

    if json and follow:
        raise RefusedError("--json and --follow exclude each other; drop one of them")
    folder = logs.run_to_show(run, Workspace(Path()))
    workspace = workspace_of(folder, Workspace(Path()))
    logs.check_rank(folder, rank)
    output = logs.RunOutput(folder, workspace, rank)
    if json:
        print_json(output.plain(lines))
        return
    if not output.show(lines):
        typer.echo(
            f"rank {rank} has printed nothing yet; see: isoplan status {shlex.quote(str(run))}", err=True
        )
    if follow:
        ended = logs.follow(output, StatusCollector(workspace, folder.path))
        if ended is not None:
            typer.echo(
                f"{ended.state} at step {ended.step} of {ended.steps}{ended.end_reason and ': '}{ended.end_reason}",
                err=True,
            )
    elif crash := logs.recorded_crash(folder):
        typer.echo(f"crashed: {crash}", err=True)


def cancel_command(target: Annotated[Path, Target], json: AsJson = False, debug: Debug = False) -> None:
    """Cancel the SLURM jobs of a run, of a plan's runs, or of a budget's corpus, its runs and its study.

    Running jobs save a checkpoint first, and resume from it when they are rerun.
    A run on this machine is not cancelled: press Ctrl-C where it was started; it saves and exits.
    """
    from runtime.status.cancel import cancel_and_report
    from runtime.status.collect import StatusCollector

    cancel_and_report(StatusCollector(Workspace(Path()), target), Console(stderr=json), json)


COMMANDS: dict[str, Callable[..., None]] = {
    "status": status_command,
    "logs": logs_command,
    "cancel": cancel_command,
}
"""The commands of `isoplan` that watch and stop runs."""
