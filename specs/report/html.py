"""HTML from parts. Text is escaped where it is put in unless it is HTML already: no document can add markup."""

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *inside: str, **attributes: str) -> Html:
    """An element; a trailing underscore of an attribute's name is dropped, the others become hyphens."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{said}>{join(inside)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """Parts in a row, those that are not HTML escaped."""
    return Html(between.join(part if isinstance(part, Html) else escape(part) for part in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (0,)) -> Html:
    """A table that scrolls sideways where it is too wide; the columns named by `text` are words, the others numbers."""

    def row(cell: str, cells: Sequence[str]) -> Html:
        kinds = ("text" if i in text else "number" for i in range(len(cells)))
        return tag("tr", *(tag(cell, one, class_=kind) for one, kind in zip(cells, kinds, strict=True)))

    body = tag("tbody", *(row("td", cells) for cells in rows))
    return tag("div", tag("table", tag("thead", row("th", head)), body), class_="scroll")


def pairs(rows: Iterable[tuple[str, str]]) -> Html:
    """Terms and what belongs to each."""
    return tag("dl", *(tag("div", tag("dt", term), tag("dd", said)) for term, said in rows))


def bullets(items: Iterable[tuple[str, str]]) -> Html:
    """Sentences, each behind a word that says of what kind it is."""
    rows = (tag("li", tag("b", kind, class_=kind.split()[0]), tag("span", said)) for kind, said in items)
    return tag("ul", *rows, class_="notes")
