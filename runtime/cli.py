"""The commands `run`, `audit` and `isoplan`, with their exit codes.

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
from specs.version import Version


def plan_command(context: typer.Context) -> None:
    """Turn a budget into a sealed plan of runs; see `isoplan plan --help`."""
    _call_planner("planner.cli", context)


def fit_command(context: typer.Context) -> None:
    """Fit scaling laws to a table of runs; see `isoplan fit --help`."""
    _call_planner("planner.table_fit.cli", context)


def explain_command(context: typer.Context) -> None:
    """Explain where a value of a plan comes from; see `isoplan explain --help`."""
    _call_planner("planner.explain.cli", context, "explain")


def diff_command(context: typer.Context) -> None:
    """Compare two plans field by field; see `isoplan diff --help`."""
    _call_planner("planner.explain.cli", context, "diff")


def _call_planner(module: str, context: typer.Context, *arguments: str) -> None:
    """Run one of the planner's commands in a new process: the planner is never imported here."""
    argv = [sys.executable, "-P", "-m", module, *arguments, *context.args]
    raise typer.Exit(subprocess.run(argv, check=False).returncode)


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with every failure reported as one line on standard error and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (DocumentError, RefusedError, CorpusError) as error:
            _die(str(error), BAD_INPUT)
        except KeyboardInterrupt:
            _die("interrupted; rerun the same command to resume", RESUME)
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
    app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True)
    for name, command in commands.items():
        app.command(name)(_guarded(command))
    return app


def run_main() -> None:
    """Console script `run`."""
    _app(run=run_command)()


def audit_main() -> None:
    """Console script `audit`."""
    _app(audit=audit_command)()


def isoplan_options(version: Version = False) -> None:
    """Turn a training budget into an audited training run: plan, run, audit."""


def isoplan_app() -> typer.Typer:
    """The app of `isoplan`: all commands."""
    other = monitor.COMMANDS | tools.COMMANDS
    app = _app(run=run_command, audit=audit_command, data=data_command, init=init_command, **other)
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    of_planner = {
        "plan": plan_command,
        "fit": fit_command,
        "explain": explain_command,
        "diff": diff_command,
    }
    for name, command in of_planner.items():
        app.command(name, context_settings=passed_on, add_help_option=False)(command)
    app.callback()(isoplan_options)
    return app


def main() -> None:
    """Console script `isoplan`."""
    isoplan_app()()


if __name__ == "__main__":
    main()
