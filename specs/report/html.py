"""HTML from parts. Text is escaped where it is put in unless it is HTML already: no document can add markup."""

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *inside: str, **attributes: str) -> Html:
    """An element; a trailing underscore of an attribute's name is dropped, the others become hyphens."""
    rendered = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{rendered}>{join(inside)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """Parts in a row, those that are not HTML escaped."""
    return Html(between.join(part if isinstance(part, Html) else escape(part) for part in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (0,)) -> Html:
    """A table that scrolls sideways where it is too wide; the columns in `text` are text, the others numbers."""

    def row(cell: str, cells: Sequence[str]) -> Html:
        kinds = ("text" if i in text else "number" for i in range(len(cells)))
        return tag("tr", *(tag(cell, one, class_=kind) for one, kind in zip(cells, kinds, strict=True)))

    body = tag("tbody", *(row("td", cells) for cells in rows))
    return tag("div", tag("table", tag("thead", row("th", head)), body), class_="scroll")


def dense(head: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[str]) -> Html:
    """A table without the columns that are empty in every row; the columns in `text` are left-aligned text."""
    kept = [i for i in range(len(head)) if any(row[i] not in ("", "–") for row in rows)]
    return table(
        [head[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        text=[at for at, i in enumerate(kept) if head[i] in text],
    )


def large_numbers(numbers: Iterable[tuple[str, str]]) -> Html:
    """Numbers in large type, each with its label."""
    rows = (tag("div", tag("dd", value), tag("dt", label)) for value, label in numbers)
    return tag("dl", join(rows), class_="numbers")


def pairs(rows: Iterable[tuple[str, str]]) -> Html:
    """Terms and their descriptions."""
    return tag("dl", *(tag("div", tag("dt", term), tag("dd", text)) for term, text in rows))


def bullets(items: Iterable[tuple[str, str]]) -> Html:
    """Sentences, each after a word for its kind."""
    rows = (tag("li", tag("b", kind, class_=kind.split()[0]), tag("span", text)) for kind, text in items)
    return tag("ul", *rows, class_="notes")
