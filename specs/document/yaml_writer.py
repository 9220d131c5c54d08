"""Plain data to YAML text: the same data give the same bytes, and reading them back gives the same data.

Written by hand rather than by ruamel, so that no line is ever wrapped, floats are the shortest that read back equal,
and text is quoted wherever any version of YAML could take it for something else.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

# Plain in every YAML version: a word first, or a number followed by a unit; nothing that YAML gives a meaning to.
_PLAIN = re.compile(r"(?:\d[\d.]*(?:e[+-]?\d+)? )?[A-Za-z](?:[A-Za-z0-9_ ./%()+,;-]*[A-Za-z0-9_./%()+;-])?")
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def yaml_text(plain: dict[str, Any]) -> str:
    """YAML text that reads back as exactly this data: block style, lists of numbers in one line."""
    return "".join(line + "\n" for line in _block(plain, ""))


def _block(value: Any, indent: str) -> Iterator[str]:
    """Lines of a mapping or list, each behind the indent."""
    parts = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for key, item in parts:
        head = indent + ("-" if key is None else _scalar_text(key) + ":")
        if not isinstance(item, dict | list) or _is_flow(item):
            yield f"{head} {_flow(item)}"
        elif key is None:
            first, *rest = _block(item, indent + "  ")
            yield f"{head} {first.lstrip(' ')}"
            yield from rest
        else:
            yield head
            yield from _block(item, indent + "  ")


def _is_flow(value: Any) -> bool:
    if isinstance(value, list):
        return all(
            isinstance(item, int | float | None) or (isinstance(item, list) and _is_flow(item))
            for item in value
        )
    return not value


def _flow(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return "{}" if isinstance(value, dict) else _scalar_text(value)


def _scalar_text(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value, allow_nan=False)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == " " else _escape(c) for c in quoted)


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"
