"""Arguments and options that several commands have, each declared once, and how an answer is printed as JSON."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A budget, a plan or a run spec.", show_default=False)
]
PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN", help="plans/<name>/plan.target.yaml", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, progress on standard error.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an internal error.")]


def print_json(plain: Any) -> None:
    """An answer for programs, on standard output."""
    sys.stdout.write(jsonlib.dumps(plain, indent=1) + "\n")
