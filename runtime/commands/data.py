"""`data`: what it accepts, what it prints, and its exit codes. Nothing is decided here."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from runtime.commands.corpus_text import describe
from runtime.commands.options import AsJson, Debug
from runtime.launch.machine import this_machine
from runtime.run_folder.workspace import RefusedError, Workspace
from runtime.study import Driver, build_data
from specs.budget import Budget
from specs.document.files import DocumentError
from specs.document.write import print_json
from specs.exit_codes import OK
from specs.extras import SUBMIT, require
from specs.plan import Plan
from specs.plan_file import load_document
from specs.sources import Sources


def data_command(
    spec: Annotated[
        Path,
        typer.Argument(
            metavar="BUDGET|PLAN", help="The budget or plan whose corpus to build.", show_default=False
        ),
    ],
    slurm: Annotated[
        bool,
        typer.Option("--slurm", help="Curate and build as SLURM jobs; the cluster file says how."),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="With --slurm: the cluster to queue it on; no devices of it are used.",
            show_default="the budget's",
        ),
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Build the corpus of a budget, or those of its mix: text as tokens under data/, with digests.

    A corpus is its contents: files that have changed are another corpus, and the same files are not read again.
    A build that was killed goes on where it was when the same command is run again.

    With --slurm, each pass of data.text.curate is queued as an array, and the build behind them, and the command exits.
    Rerunning is safe: what is done or in the queue is not queued again, what failed is. `isoplan status BUDGET -f`
    shows how far it is, `isoplan cancel BUDGET` cancels it.

    Exit codes: 0 built, or queued; 2 bad input.
    """
    if cluster is not None and not slurm:
        raise RefusedError("--cluster names where to queue it; add --slurm, or drop it")
    driver = Driver(Workspace(Path()), this_machine(), None, Console(stderr=json))
    document = load_document(spec)
    if not isinstance(document, Budget | Plan):
        raise DocumentError(
            spec, 1, 1, "this is not a budget or a plan", "name the budget whose corpus to build"
        )
    if slurm:
        _queue(driver, document, spec, cluster, json)
    else:
        _show(driver, build_data(driver, spec, document), json)


def _queue(driver: Driver, document: Budget | Plan, path: Path, cluster: str | None, json: bool) -> None:
    require("data", SUBMIT)
    from runtime.slurm.commands import queue_corpus

    found = queue_corpus(driver, document, path, cluster)
    if isinstance(found, Sources):
        _show(driver, found, json)
        return
    if json:
        print_json(found.plain() | {"exit_code": OK})
    command = f"isoplan data {shlex.quote(str(path))} --slurm"
    driver.say(escape(found.message(command)))
    driver.say(f"see: isoplan status {escape(shlex.quote(str(path)))} -f")


def _show(driver: Driver, built: Sources, json: bool) -> None:
    if json:
        folder = {"folder": str(driver.workspace.data / built.ref.corpus)}
        sources = {} if "" in built.corpora else {name: one.answer() for name, one in built.corpora.items()}
        print_json(built.manifest.answer() | ({"corpora": sources} if sources else {}) | folder)
        return
    for line in describe(built, driver.workspace.data):
        driver.say(escape(line))
