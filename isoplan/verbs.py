"""Every verb of `isoplan`, and how a verb ends in an error. The module of a verb is imported when it is typed."""

import functools
import importlib
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from runtime.launch.stop import INTERRUPTED, STOP
from specs.exit_codes import BAD_INPUT, INTERNAL_ERROR, RESUME, InputError, internal_error
from specs.extras import as_input_error
from specs.version import Version


@dataclass(frozen=True)
class Verb:
    """A verb: where its function is, and what the list of all verbs says of it."""

    module: str
    function: str
    summary: str
    """The first paragraph of the function's docstring."""
    commands: str = ""
    """Its module's table of commands that follow it, for a verb that has them."""


VERBS = {
    "plan": Verb(
        "planner.cli",
        "plan",
        "Turn a budget into fully specified runs, and seal their forecast before any of them starts.",
    ),
    "run": Verb(
        "runtime.commands.run",
        "run_command",
        "Run a plan, a run spec, or the whole study of a budget.",
    ),
    "audit": Verb(
        "runtime.commands.run",
        "audit_command",
        "Compare what was planned with what happened, recounted from the records.",
    ),
    "fit": Verb(
        "planner.table_fit.cli",
        "fit",
        "Fit scaling laws to a table of runs that you already have, and forecast larger ones.",
    ),
    "ledger": Verb(
        "planner.ledger.cli",
        "ledger_command",
        "List a ledger, add runs of other engines to it, and exclude runs from plans and fits.",
        "COMMANDS",
    ),
    "explain": Verb(
        "planner.explain.cli",
        "explain",
        "Explain where a number of a plan comes from: law, equation, evidence, interval, and what decided it.",
    ),
    "diff": Verb(
        "planner.explain.cli",
        "diff",
        "Compare two plans field by field. The exit code is 0 whether they differ or not.",
    ),
    "init": Verb(
        "runtime.commands.tools",
        "init_command",
        "Write starter budgets to edit: a demo of minutes, an afternoon's study, plans in FLOP, GPU-hours and money, "
        "and one on a table of runs.",
    ),
    "data": Verb(
        "runtime.commands.data",
        "data_command",
        "Build the corpus of a budget, or those of its mix: text as tokens under data/, with digests.",
    ),
    "status": Verb(
        "runtime.commands.monitor",
        "status_command",
        "Show the state of runs: running, pending in SLURM's queue, finished, or failed and why.",
    ),
    "logs": Verb("runtime.commands.monitor", "logs_command", "Show the log of a rank of a run."),
    "sync": Verb(
        "runtime.commands.sync",
        "sync_command",
        "Send the curves of a run, or of all runs of a plan or budget, to an experiment tracker.",
    ),
    "cancel": Verb(
        "runtime.commands.monitor",
        "cancel_command",
        "Cancel the SLURM jobs of a run, of a plan's runs, or of a budget's corpus, its runs and its study.",
    ),
    "checkpoints": Verb(
        "runtime.commands.tools",
        "checkpoints_command",
        "List a run's checkpoints, and what its restarts have cost.",
    ),
    "doctor": Verb(
        "runtime.commands.tools",
        "doctor_command",
        "Check this machine for problems that would prevent a run, and write its measured speed to a cluster file.",
    ),
    "rehearse": Verb(
        "runtime.commands.tools",
        "rehearse_command",
        "Rehearse a training step of a plan at its full size, without its cluster.",
    ),
    "export": Verb(
        "runtime.commands.tools",
        "export_command",
        "Write a run's weights and tokenizer as a folder that Hugging Face's transformers loads.",
    ),
    "import": Verb(
        "runtime.commands.tools",
        "import_command",
        "Copy a Llama's weights into the workspace, so that runs can start from them.",
    ),
}
"""In the order of `isoplan --help`."""


class Group(TyperGroup):
    """`isoplan`: it lists all verbs by their summaries, and imports the one that was typed."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that was typed, as name, command and arguments."""
        name, listed, rest = super().resolve_command(ctx, args)
        try:
            return name, None if listed is None else verb_command(str(name)), rest
        except KeyboardInterrupt:  # of which click would say "Aborted!"
            _die(INTERRUPTED, RESUME)


def app_of(script: str) -> typer.Typer:
    """The app of a console script: that of a verb, or `isoplan` with all of them."""
    if script in VERBS:
        return _verb_app(script, add_completion=True)
    app = typer.Typer(cls=Group, pretty_exceptions_enable=False, no_args_is_help=True)
    app.callback()(_isoplan)
    for name, verb in VERBS.items():
        app.command(name, help=verb.summary)(_listed)
    return app


def verb_command(name: str) -> Any:
    """A verb as click has it."""
    return typer.main.get_command(_verb_app(name, add_completion=False))


def _isoplan(version: Version = False) -> None:
    """Turn a training budget into an audited training run: plan, run, audit."""


def _listed() -> None:
    """Stands for a verb in the list of all."""


def _verb_app(name: str, *, add_completion: bool) -> typer.Typer:
    verb = VERBS[name]
    module = importlib.import_module(verb.module)
    app = typer.Typer(
        name=name,
        add_completion=add_completion,
        pretty_exceptions_enable=False,
        no_args_is_help=bool(verb.commands),
    )
    if not verb.commands:
        app.command(name)(_guarded(getattr(module, verb.function), name))
        return app
    app.callback()(getattr(module, verb.function))
    for own, command in getattr(module, verb.commands).items():
        app.command(own)(_guarded(command, name))
    return app


def _guarded(command: Callable[..., None], name: str) -> Callable[..., None]:
    """The command, with every failure reported as one line on standard error and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except InputError as error:
            _die(str(error), BAD_INPUT)
        except KeyboardInterrupt:
            _die(INTERRUPTED, RESUME)
        except typer.Exit:
            raise
        except Exception as error:
            if STOP.received:  # the interrupt came out of foreign code as another error
                _die(INTERRUPTED, RESUME)
            if (refusal := as_input_error(error, name)) is not None:
                _die(str(refusal), BAD_INPUT)
            if options.get("debug"):
                traceback.print_exc()
            _die(internal_error(error), INTERNAL_ERROR)

    return run


def _die(line: str, code: int) -> NoReturn:
    sys.stderr.write(line + "\n")
    raise typer.Exit(code)
