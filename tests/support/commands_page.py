"""The page of the commands, from their own help; `python -m tests.support.commands_page` writes docs/commands.md."""

import re

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from isoplan.verbs import VERBS, app_of, verb_command
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
    context = typer.Context(get_command(app_of("isoplan")), info_name="isoplan")
    sections = [
        get_docs_for_click(obj=verb_command(name), ctx=context, indent=1, name=name, call_prefix="isoplan")
        for name in VERBS
    ]
    return HEAD + "\n" + _without_html("\n".join(sections)).rstrip() + "\n"


def _without_html(markdown: str) -> str:
    """`plans/<name>` stays as it is written, in code and outside of it."""
    pieces = re.split("(```.*?```|`[^`\n]*`)", markdown, flags=re.DOTALL)
    return "".join(piece if piece.startswith("`") else piece.replace("<", "&lt;") for piece in pieces)


if __name__ == "__main__":
    write_text(PAGE, generate())
    print(PAGE)
