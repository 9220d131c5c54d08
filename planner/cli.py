"""`plan BUDGET`: reads a budget, writes the sealed plan and its report, and prints the plan.

A sealed plan is never rewritten. Run again, the command prints the existing plan; a changed budget is refused, because
runs may already carry the old plan's seal.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from planner.design.inputs import load_inputs, load_sources
from planner.plan import make_plan
from planner.tables import show
from specs.budget import Budget
from specs.document.files import load, locate
from specs.document.write import print_json, write_text
from specs.plan import Plan
from specs.plan_file import load_plan, save_plan
from specs.report import render
from specs.report.context import earlier_plans
from specs.sources import last_built
from specs.version import Version

CORPORA = Path("data")
"""Folder of built corpora in the workspace, which is the current directory."""


def plan(
    budget: Annotated[Path, typer.Argument(help="The budget: a YAML file, e.g. specs/budget_1e24.yaml.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the plan; plans/<name> if not given.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON instead of tables.")] = False,
    version: Version = False,
) -> None:
    """Turn a budget into fully specified runs, and seal their forecast before any of them starts.

    A budget that uses a published scaling law (evidence.kind: published) gives plan.target.yaml at once. A budget with
    pilots (evidence.kind: pilots) gives plan.pilots.yaml first; once those runs are audited, rerun the same command to
    get plan.target.yaml.
    """
    path, sealed = write_plan(budget, out)
    if json:
        print_json(sealed.answer() | {"path": str(path), "report": str(path.parent / "report.html")})
    else:
        show(sealed, path, Console())


def write_plan(budget_path: Path, out: Path | None) -> tuple[Path, Plan]:
    """Plan a budget; returns the sealed file and its content. An existing sealed plan is read, not written again."""
    budget = load(budget_path, Budget)
    folder = Path("plans") / budget.name if out is None else out
    target = folder / "plan.target.yaml"
    if target.exists():
        return target, _load_sealed(target, budget, budget_path, folder)
    plan = make_plan(load_inputs(budget, budget_path, folder, CORPORA))
    path = folder / f"plan.{plan.phase}.yaml"
    if path.exists():
        return path, _load_sealed(path, budget, budget_path, folder)
    write_text(folder / "report.html", render(plan, None, earlier_plans(folder, plan)))
    save_plan(path, plan)  # last, as a plan that is there is never written again
    return path, plan


def _load_sealed(plan_path: Path, budget: Budget, budget_path: Path, folder: Path) -> Plan:
    """The existing plan of this budget; DocumentError if it is of another budget, or if this one has no plan at all."""
    sealed = load_plan(plan_path)
    if sealed.budget != budget:
        make_plan(load_inputs(budget, budget_path, folder, CORPORA))
        what = f"{plan_path} is sealed and was planned from a different budget of the same name"
        raise locate(budget_path, "name", what, "give this budget another name")
    if last_built(budget.data, budget_path.parent, CORPORA) is not None:
        built = load_sources(budget, budget_path, CORPORA)
        if built is not None and built.ref.digest != sealed.runs[0].run.data.digest:
            what = f"{plan_path} is sealed and was planned on other text: its files have changed since"
            raise locate(budget_path, "data", what, "restore the text, or give this budget another name")
    return sealed
