"""`isoplan explain` and `isoplan diff`: they read sealed plans and print; nothing is decided or written here."""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from planner.explain.answer import Explanation
from planner.explain.answer import explain as explained
from planner.explain.diff import Difference, without_small_members
from planner.explain.diff import diff as differences
from planner.explain.fields import SHORT_NAMES
from specs.document.write import print_json
from specs.humanize import several
from specs.plan_file import load_plan

PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN", help="plans/<name>/plan.target.yaml", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
_SHORT = ", ".join([*SHORT_NAMES, "loss", "allocation"])
_FIELD = f"A path in the plan (runs.0.run.optim.peak_lr), its last part (peak_lr), or one of: {_SHORT}."


def explain(
    plan: PlanFile,
    field: Annotated[str, typer.Argument(metavar="FIELD", help=_FIELD, show_default=False)],
    json: AsJson = False,
) -> None:
    """Explain where a number of a plan comes from: law, equation, evidence, interval, and what decided it."""
    explanation = explained(load_plan(plan), field)
    if json:
        print_json(explanation.plain())
    else:
        _show_explanation(explanation, Console())


def diff(before: PlanFile, after: PlanFile, json: AsJson = False) -> None:
    """Compare two plans field by field. The exit code is 0 whether they differ or not."""
    one, other = load_plan(before), load_plan(after)
    found = differences(one, other)
    if json:
        print_json(
            {"before": str(before), "after": str(after), "differences": [each.plain() for each in found]}
        )
    else:
        shown, small = without_small_members(found, one, other)
        _show_differences(shown, small, (before, after), Console())


def _show_explanation(explanation: Explanation, console: Console) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(explanation):
        table.add_row(name, escape(text))
    heading = f"[bold]{escape(explanation.field)}[/]  {escape(explanation.value_text)}"
    console.print(heading, highlight=False, soft_wrap=True)
    console.print(table, highlight=False)


def _rows(explanation: Explanation) -> Iterator[tuple[str, str]]:
    yield "meaning", explanation.meaning
    yield "decided by", explanation.decided_by
    if explanation.law is not None:
        yield "law", explanation.law
    if explanation.equation is not None:
        yield "equation", explanation.equation
    if explanation.interval_text is not None:
        yield "interval", explanation.interval_text
    for number, text in enumerate(explanation.evidence):
        yield "" if number else "evidence", text


def _show_differences(
    found: tuple[Difference, ...], small: int, plans: tuple[Path, Path], console: Console
) -> None:
    """The differences as a table; those of `small` members of the forecast are only counted."""
    if not found and not small:
        console.print("the plans have the same content", highlight=False)
        return
    for name, path in zip(("before", "after"), plans, strict=True):
        console.print(f"{name:<8}{escape(str(path))}", highlight=False, soft_wrap=True)
    table = Table("", "", "before", "after", "", box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.columns[4].justify = "right"
    for number, column in enumerate(table.columns):
        column.no_wrap, column.overflow = number in (0, 1, 4), "fold"
    for group, some in groupby(found, key=lambda one: one.group):
        table.add_section()
        for number, one in enumerate(some):
            name = _short_path(one.field) if one.run is None else f"{one.run}: {_short_path(one.field)}"
            cells = (escape(part) for part in (name, one.text_before, one.text_after))
            table.add_row(f"[bold]{group}[/]" if number == 0 else "", *cells, ratio_text(one.ratio))
    console.print(table, highlight=False)
    if small:
        whose = several(small, "form")
        console.print(
            f"{whose} of the loss law with under 1 % of the weight in both plans: see --json", highlight=False
        )


def _short_path(path: str) -> str:
    """A path without the parts that its group's heading implies."""
    return re.sub(r"^(run\.(model|optim)|run|execution(\.layout)?|cost|budget|forecast)\.", "", path)


def ratio_text(ratio: float | None) -> str:
    """A ratio as text: a percentage between a half and a double, else a factor."""
    if ratio is None:
        return ""
    if 0.5 < ratio < 2:
        return f"{ratio - 1:+.2%}".replace("%", " %")
    return f"x {ratio:.3g}"
