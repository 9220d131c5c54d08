"""Arguments and options that several commands have, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A budget, a plan or a run spec.", show_default=False)
]
PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN", help="plans/<name>/plan.target.yaml", show_default=False)
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on standard output, progress on standard error."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an internal error.")]
