"""The page of the commands, from their own help; `python -m tests.support.commands_page` writes docs/commands.md.

It is here since it imports planner and runtime both, which only tests may.
"""

import re

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

import planner.cli
import planner.explain.cli
import planner.table_fit.cli
from runtime.cli import isoplan_app
from specs.document.write import write_text
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "commands.md"
HEAD = """# Commands

`plan`, `run` and `audit` are commands of their own, and verbs of `isoplan` like all others. Each takes `--help`.
`make generate` writes this page from the help texts.

Completion for your shell: `isoplan --install-completion`, and the same for `plan`, `run` and `audit`.
"""


def generate() -> str:
    """The page."""
    group = get_command(isoplan_app())
    assert isinstance(group, typer.core.TyperGroup)
    context = typer.Context(group, info_name="isoplan")
    explain = get_command(planner.explain.cli.app)
    assert isinstance(explain, typer.core.TyperGroup)
    commands = {"plan": get_command(planner.cli.app), **group.commands, **explain.commands}
    commands |= {"plan": get_command(planner.cli.app), "fit": get_command(planner.table_fit.cli.app)}
    sections = [
        get_docs_for_click(obj=command, ctx=context, indent=1, name=name, call_prefix="isoplan")
        for name, command in commands.items()
    ]
    return HEAD + "\n" + _without_html("\n".join(sections)).rstrip() + "\n"


def _without_html(markdown: str) -> str:
    """`plans/<name>` stays as it is written, in code and outside of it."""
    pieces = re.split("(```.*?```|`[^`\n]*`)", markdown, flags=re.DOTALL)
    return "".join(piece if piece.startswith("`") else piece.replace("<", "&lt;") for piece in pieces)


if __name__ == "__main__":
    write_text(PAGE, generate())
    print(PAGE)
