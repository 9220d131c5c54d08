"""What pages are made of: the shell of one HTML file that needs no network, sections, places for figures."""

import json
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from specs.report.figure_parts import Figure
from specs.report.html import Html, join, tag

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""What a browser may load for this page: nothing from anywhere (Content Security Policy Level 3)."""

_NO_SCRIPT = Html("<noscript>The figures need JavaScript; the tables hold the same numbers.</noscript>")


def document(title: str, headline: Html, sections: Iterable[Html]) -> str:
    """The whole page; sections without content are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{tag('title', title)}\n<style>\n{_file('page.css')}</style>\n<script>{_plotly()}</script>\n</head>\n"
        f"<body>\n{headline}\n{tag('main', *(section for section in sections if section))}\n{_NO_SCRIPT}\n"
        f"<script>\n{_file('page.js')}</script>\n</body>\n</html>\n"
    )


def two_columns(*sections: Html) -> Html:
    """Sections beside each other where the screen is wide; nothing where all are empty."""
    return tag("div", *sections, class_="two") if any(sections) else Html()


def section(title: str, content: Html | None, note: str = "") -> Html:
    """A section; nothing where it has no content."""
    if not content:
        return Html()
    return tag("section", tag("h2", title), tag("p", note, class_="note") if note else "", content)


def place_of_figure(name: str, drawn: Figure | None, tall: bool = False) -> Html | None:
    """A place for a figure with its data beside it, and buttons that save both; `<` is escaped so that no text can end
    the script."""
    if drawn is None:
        return None
    data = Html(json.dumps(drawn, sort_keys=True, ensure_ascii=False).replace("<", "\\u003c"))
    return join(
        (
            tag("div", id=name, class_="figure tall" if tall else "figure", role="img", aria_label=name),
            tag("script", data, type="application/json", data_figure=name),
            tag("p", _button(name, "svg"), _button(name, "csv"), class_="save"),
        )
    )


def _button(figure: str, form: str) -> Html:
    what = {"svg": "as an image", "csv": "as numbers"}[form]
    return tag(
        "button",
        form.upper(),
        type="button",
        title=f"save this figure {what}",
        data_save=form,
        data_of=figure,
    )


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """plotly.js as the installed package ships it, found without importing plotly's Python classes, which is slow."""
    found = find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("plotly is not installed; install isoplan with its dependencies")
    return (Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_text(
        encoding="utf-8"
    )
