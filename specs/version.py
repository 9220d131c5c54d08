"""`--version`, an option of every command."""

from importlib.metadata import version
from typing import Annotated

import typer


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"isoplan {version('isoplan')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
]
