"""`plan BUDGET`: the command. Reads a budget, writes the sealed plan and its report, and shows it.

A sealed plan is never rewritten. Asked again, the command shows what is there; a changed budget is refused, because
runs may already carry the old plan's seal.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from planner.design.inputs import load_inputs
from planner.plan import make_plan
from planner.tables import show
from specs.budget import Budget
from specs.document.files import DocumentError, load, locate
from specs.document.write import write_text, write_yaml
from specs.exit_codes import run_command_line
from specs.plan import Plan
from specs.report import render
from specs.report.context import earlier_plans

CORPORA = Path("data")
"""Folder of built corpora in the workspace, which is the current directory."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def plan(
    budget: Annotated[Path, typer.Argument(help="The budget: a YAML file, e.g. specs/budget_1e24.yaml.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the plan; plans/<name> if not given.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON instead of tables.")] = False,
) -> None:
    """Turn a budget into runs with nothing left to derive, and seal the forecast before any of them starts.

    A budget that rests on a published law gives the target run at once. One that rests on pilots gives
    plan.pilots.yaml first; when those runs are audited, the same command gives plan.target.yaml.
    """
    path, sealed = write_plan(budget, out)
    if json:
        sys.stdout.write(sealed.canonical_json() + "\n")
    else:
        show(sealed, path, Console())


def write_plan(budget: Path, out: Path | None) -> tuple[Path, Plan]:
    """Plan a budget; returns the sealed file and its content. What is sealed already is read, not written again."""
    asked = load(budget, Budget)
    folder = Path("plans") / asked.name if out is None else out
    target = folder / "plan.target.yaml"
    if target.exists():
        return target, _load_sealed(target, asked, budget, folder)
    made = make_plan(load_inputs(budget, folder, CORPORA))
    path = folder / f"plan.{made.phase}.yaml"
    if path.exists():
        return path, _load_sealed(path, asked, budget, folder)
    write_yaml(
        path,
        made,
        comment="Sealed: any change is noticed. Change the budget and plan again under another name.",
    )
    write_text(folder / "report.html", render(made, None, earlier_plans(folder, made)))
    return path, made


def _load_sealed(path: Path, asked: Budget, budget: Path, folder: Path) -> Plan:
    """The plan that is there, refused where it answers another budget; what is wrong with this one is said before."""
    there = load(path, Plan)
    if there.budget != asked:
        make_plan(load_inputs(budget, folder, CORPORA))
        what = f"{path} is sealed and answers another budget of this name"
        raise locate(budget, "name", what, "give this budget another name")
    return there


def main() -> None:
    """Entry point of the console script `plan`."""
    run_command_line(app, "isoplan plan", (DocumentError,))


if __name__ == "__main__":
    main()
