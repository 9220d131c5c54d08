"""The commands `run`, `audit` and `isoplan`: what a person types, what they read, and the exit code.

Nothing is decided here. Expected errors are one line on standard error and exit code 2; anything unexpected is one
line with the path of a log that holds the traceback, and exit code 70. torch is imported by the ranks, never by
these commands.
"""

import functools
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from runtime.commands import monitor, tools
from runtime.commands.run import audit_command, data_command, run_command
from runtime.commands.tools import init_command
from runtime.data.text_sources import CorpusError
from runtime.run_folder.workspace import RefusedError
from specs.document.files import DocumentError
from specs.exit_codes import BAD_INPUT, INTERNAL_ERROR, RESUME, internal_error


def plan_command(context: typer.Context) -> None:
    """Turn a budget into runs with nothing left to derive; see `isoplan plan --help`."""
    _ask_planner("planner.cli", context)


def explain_command(context: typer.Context) -> None:
    """Say where a number of a plan comes from; see `isoplan explain --help`."""
    _ask_planner("planner.explain.cli", context, "explain")


def diff_command(context: typer.Context) -> None:
    """Compare two plans field by field; see `isoplan diff --help`."""
    _ask_planner("planner.explain.cli", context, "diff")


def _ask_planner(module: str, context: typer.Context, *words: str) -> None:
    """The planner's own command, in a process of its own: nothing of it is imported here."""
    argv = [sys.executable, "-P", "-m", module, *words, *context.args]
    raise typer.Exit(subprocess.run(argv, check=False).returncode)


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, every way that it can fail being one line on standard error and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (DocumentError, RefusedError, CorpusError) as error:
            _die(str(error), BAD_INPUT)
        except KeyboardInterrupt:
            _die("interrupted; run the same command again to go on", RESUME)
        except typer.Exit:
            raise
        except Exception as error:
            if options.get("debug"):
                traceback.print_exc()
            _die(internal_error(error), INTERNAL_ERROR)

    return run


def _die(line: str, code: int) -> None:
    sys.stderr.write(line + "\n")
    raise typer.Exit(code)


def _app(**commands: Callable[..., None]) -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
    for name, command in commands.items():
        app.command(name)(_guarded(command))
    return app


def run_main() -> None:
    """Console script `run`."""
    _app(run=run_command)()


def audit_main() -> None:
    """Console script `audit`."""
    _app(audit=audit_command)()


def main() -> None:
    """Console script `isoplan`: every verb."""
    other = monitor.VERBS | tools.VERBS
    app = _app(run=run_command, audit=audit_command, data=data_command, init=init_command, **other)
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    for name, command in (("plan", plan_command), ("explain", explain_command), ("diff", diff_command)):
        app.command(name, context_settings=passed_on, add_help_option=False)(command)
    app()


if __name__ == "__main__":
    main()
