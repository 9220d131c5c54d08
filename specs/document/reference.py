"""Reference pages: every key of every kind of document, with its values, unit, default and what it does.

`python -m specs.document.reference` writes `docs/reference/` from the types, as `schemas` writes the JSON Schemas.
"""

import inspect
import re
import types
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from specs.document import quantity
from specs.document.base import Fingerprint, Sha256, Slug, Spec
from specs.document.quantity import Quantity
from specs.document.schemas import kinds, type_of
from specs.document.write import write_text

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
Titles = dict[type[Spec], str]
"""The parts of a document and the heading under which each one stands."""

_SIMPLE: dict[Any, str] = {
    Slug: "name in lower case",
    Sha256: "SHA-256 in hexadecimal",
    Fingerprint: "fingerprint, 16 hexadecimal digits",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    str: "text",
    Any: "any value",
    type(None): "`null`",
}
_UNITS = {
    "_flop_per_s": "FLOP/s",
    "_tokens_per_s": "tokens/s",
    "_flop_per_token": "FLOP per token",
    "_bytes_per_token": "bytes per token",
    "_flop": "FLOP",
    "_bytes": "bytes",
    "_tokens": "tokens",
    "_steps": "steps",
    "_sequences": "sequences",
    "_device_hours": "device-hours",
    "_hours": "hours",
    "_dollars": "dollars",
    "_s": "seconds",
    "_j": "joules",
}
"""Units by how a key ends, in documents that programs write."""
_BOUNDS = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))


def pages() -> dict[str, str]:
    """Every page by its file's name: an index, and a page for each kind of document."""
    return {"index.md": _index()} | {f"{kind}.md": _page(kind) for kind in kinds()}


def _index() -> str:
    documents = [(f"[{kind}]({kind}.md)", _first_line(type_of(kind))) for kind in kinds()]
    every = [one for one in vars(quantity).values() if isinstance(one, Quantity)]
    units = [
        (f"`{one.example}`", ", ".join(f"`{_spelled(one, 1, unit)}`" for unit, _ in one.units))
        for one in every
    ]
    parts = (
        "# Documents",
        "Every kind of document that isoplan reads or writes, with a page of its keys. `make generate` writes these "
        "pages from the types in `specs/`. Editors complete and check documents with the schemas in `specs/schema/`.",
        _table(("kind", "what it is"), documents),
        "## Quantities",
        "In documents that people write, a number carries its unit, and a bare number is refused. In documents that "
        "programs write, the key names the unit (`compute_flop`).",
        _table(("example", "units"), units),
    )
    return "\n\n".join(parts) + "\n"


def _page(kind: str) -> str:
    top = type_of(kind)
    titles: Titles = {}
    for spec, title in _titles(top, ""):
        titles.setdefault(spec, title)  # of a part that several keys hold, the first is its place
    source = f"{top.__module__.replace('.', '/')}.py"
    parts = [f"# Document: {kind}", _markdown(inspect.getdoc(top) or "")]
    parts += [f"Declared in `{source}`; JSON Schema: `specs/schema/{kind}.json`.", _keys(top, titles)]
    for spec, title in titles.items():
        if spec is not top:
            parts += [f"## {title}", _markdown(inspect.getdoc(spec) or ""), _keys(spec, titles)]
    return "\n\n".join(parts) + "\n"


def _titles(
    spec: type[Spec], path: str, seen: frozenset[type[Spec]] = frozenset()
) -> Iterator[tuple[type[Spec], str]]:
    """A part and those below it, each with the path of the key that holds it. Other kinds have a page of their own."""
    if spec in seen or (path and spec in _kind_of()):
        return
    yield spec, _title(spec, path)
    for name, hint in _hints(spec).items():
        for part in _specs(hint):
            yield from _titles(part, f"{path}.{name}" if path else name, seen | {spec})


def _title(spec: type[Spec], path: str) -> str:
    """A part's path, and what selects the part where the key may hold one of several."""
    for name in ("kind", "source", "step"):
        field = spec.model_fields.get(name)
        if field is not None and get_origin(field.annotation) is Literal:
            return f"{path} ({name}: {get_args(field.annotation)[0]})"
    return path


def _kind_of() -> dict[type[Spec], str]:
    return {type_of(kind): kind for kind in kinds()}


def _hints(spec: type[Spec]) -> dict[str, Any]:
    hints = get_type_hints(spec, include_extras=True)
    return {name: hints[name] for name in spec.model_fields}


def _specs(hint: Any) -> list[type[Spec]]:
    """The parts of a document that a type mentions, in order."""
    if inspect.isclass(hint) and issubclass(hint, Spec):
        return [hint]
    return [spec for inner in get_args(hint) for spec in _specs(inner)]


def _keys(spec: type[Spec], titles: Titles) -> str:
    rows = []
    for name, hint in _hints(spec).items():
        field = spec.model_fields[name]
        what = " ".join(_markdown(field.description or "").split())
        rows.append(
            (f"`{name}`", _values(hint, field, titles), _unit(hint, name), _default(hint, name, field), what)
        )
    return _table(("key", "values", "unit", "default", "what it does"), rows)


def _values(hint: Any, field: FieldInfo, titles: Titles) -> str:
    """What may be written: the type and its bounds; null comes last."""
    alternatives = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    words = [_words(one, titles) for one in alternatives if one is not type(None)]
    null = ["`null`"] if type(None) in alternatives else []
    return " or ".join([" or ".join(words) + _bounds(field.metadata), *null])


def _words(hint: Any, titles: Titles) -> str:
    """A type in words."""
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if inspect.isclass(hint) and issubclass(hint, Spec):
        return _link(hint, titles)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotated(inner[0], inner[1:], titles)
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(one, titles) for one in inner)
    if origin is tuple and inner[-1] is ...:
        return f"list of: {_words(inner[0], titles)}"
    if origin is tuple:
        return f"list of {len(inner)}: {', '.join(_words(one, titles) for one in inner)}"
    if origin is dict:
        return f"map to: {_words(inner[1], titles)}"
    raise TypeError(f"{hint!r}: no words for this type; add them here")


def _annotated(hint: Any, metadata: tuple[Any, ...], titles: Titles) -> str:
    for one in metadata:
        if isinstance(one, Quantity):
            return f"quantity, such as `{one.example}`"
    fields = [one for one in metadata if isinstance(one, FieldInfo)]
    return _words(hint, titles) + "".join(_bounds(field.metadata) for field in fields)


def _link(spec: type[Spec], titles: Titles) -> str:
    if spec not in titles:
        return f"a [{_kind_of()[spec]}]({_kind_of()[spec]}.md)"
    title = titles[spec]
    return f"[{title}](#{re.sub('[^a-z0-9_ -]', '', title.lower()).replace(' ', '-')})"


def _bounds(metadata: list[Any]) -> str:
    found = [
        (words, getattr(one, at)) for kind, at, words in _BOUNDS for one in metadata if type(one) is kind
    ]
    return "".join(f", {words} {bound:,}" for words, bound in found)


def _unit(hint: Any, name: str) -> str:
    """The unit of a number: the quantity's base unit, or what the key's end says."""
    if (of := _quantity(hint)) is not None:
        return of.prefix + of.base
    if not any(number in _leaves(hint) for number in (int, float)):
        return ""
    return next((unit for end, unit in _UNITS.items() if f"_{name}".endswith(end)), "")


def _leaves(hint: Any) -> list[Any]:
    return [leaf for inner in get_args(hint) for leaf in _leaves(inner)] or [hint]


def _quantity(hint: Any) -> Quantity | None:
    return next((one for one in _leaves(hint) if isinstance(one, Quantity)), None)


def _default(hint: Any, name: str, field: FieldInfo) -> str:
    if field.is_required() or name == "kind":
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Spec):
        stated = [f"{key}: {one}" for key, one in value.plain().items() if key in value.model_fields_set]
        return f"`{{{', '.join(stated)}}}`"
    of = _quantity(hint)
    return f"`{_in_yaml(value) if of is None or value is None else _written(of, value)}`"


def _in_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(_in_yaml(one) for one in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _written(of: Quantity, value: float) -> str:
    """A default in the largest unit of which it is a whole number."""
    exact = Fraction(value)
    factor, unit = max((factor, unit) for unit, factor in of.units if (exact / factor).denominator == 1)
    return _spelled(of, exact / factor, unit)


def _spelled(of: Quantity, number: object, unit: str) -> str:
    """A number and its unit: `1 s`, but `$1M`."""
    return f"{of.prefix}{number}{unit}" if of.prefix else f"{number} {unit}"


def _first_line(spec: type[Spec]) -> str:
    paragraph = (inspect.getdoc(spec) or "").split("\n\n")[0]
    return _markdown(" ".join(paragraph.split()))


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _markdown(text: str) -> str:
    """A docstring as Markdown: outside of `code`, nothing is taken for HTML, emphasis or a table's border."""
    code = re.compile("(`[^`]*`)")
    escaped = (re.sub(r"([*|\[\]])", r"\\\1", piece).replace("<", "&lt;") for piece in code.split(text)[::2])
    quoted = [*code.findall(text), ""]
    return "".join(piece for pair in zip(escaped, quoted, strict=True) for piece in pair)


def main() -> None:
    """Write every page, and remove those of kinds that are no more."""
    for old in FOLDER.glob("*.md"):
        if old.name not in pages():
            old.unlink()
    for name, text in pages().items():
        write_text(FOLDER / name, text)
        print(FOLDER / name)


if __name__ == "__main__":
    main()
