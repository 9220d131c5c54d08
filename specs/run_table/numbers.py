"""Numbers as people write them into cells: `410M`, `1.2B`, `2.6e9`, `1,000,000`, `3,21`, `6.5 ZFLOP`."""

import re
from collections.abc import Iterable

import numpy as np

from specs.run_table.grid import Cell
from specs.run_table.table import Array

SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
"""Of counts, in either case."""
FLOP_PREFIXES = SUFFIXES | {"p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}
"""Before FLOP."""

_CELL = re.compile(
    r"([-+]?[0-9][0-9.,' \u00a0\u202f]*|[-+]?\.[0-9]+)"
    r"(?:[eE]([-+]?[0-9]+)|\s*[x×*]\s*10\s*(?:\^|\*\*)?\s*([-+]?[0-9]+))?"
    r"\s*([a-zA-Z]?)\s*(flops?|tokens?|tok|params?|parameters)?",
    re.IGNORECASE,
)
_SPACES = str.maketrans("'\u00a0\u202f", "   ")
# A comma that cannot separate thousands.
_DECIMAL_COMMA = re.compile(r"[-+]?(0,[0-9]+|[0-9]+,([0-9]{1,2}|[0-9]{4,}))([eE][-+]?[0-9]+)?\s*[a-zA-Z]*")
_ONE_COMMA = re.compile(r"[-+]?[0-9]*,[0-9]+([eE][-+]?[0-9]+)?")


def has_decimal_commas(counts: Iterable[Cell], measures: Iterable[Cell]) -> bool:
    """Whether commas are decimal in a table.

    `3,214` is 3.214 where it is a measure (loss, learning rate), and says so of the whole table; a count, it is 3214.
    """

    def texts(cells: Iterable[Cell]) -> Iterable[str]:
        return (cell.strip() for cell in cells if isinstance(cell, str) and "," in cell)

    return any(map(_DECIMAL_COMMA.fullmatch, texts(counts))) or any(map(_ONE_COMMA.match, texts(measures)))


def numbers(cells: list[Cell], decimal_comma: bool) -> Array:
    """The cells as numbers, nan where one is empty or is none."""
    try:  # the usual table, a hundred times faster
        texts = [cell or "nan" if isinstance(cell, str) else _plain(cell) for cell in cells]
        if not decimal_comma or not any("." in text for text in texts if isinstance(text, str)):
            point = [text.replace(",", ".") if isinstance(text, str) else text for text in texts]
            return np.array([float(cell) for cell in (point if decimal_comma else texts)])
    except ValueError:
        pass
    return np.array([number(cell, decimal_comma) for cell in cells])


def number(cell: Cell, decimal_comma: bool) -> float:
    """A cell as a number, nan where it is empty, is none, or could be either of two."""
    if not isinstance(cell, str):
        return _plain(cell)
    match = _CELL.fullmatch(cell.strip())
    if match is None:
        return _float(cell)
    mantissa, exponent, power, suffix, unit = match.groups()
    prefixes = FLOP_PREFIXES if unit and unit.lower().startswith("flop") else SUFFIXES
    factor = prefixes.get(suffix.lower())
    if factor is None:
        return np.nan
    exact = bool(exponent or power or suffix)
    return _float(f"{_mantissa(mantissa, decimal_comma, exact)}e{exponent or power or 0}") * factor


def is_ambiguous(cell: Cell) -> bool:
    """Whether a cell has one comma or point that separates thousands or decimals."""
    return isinstance(cell, str) and bool(re.match(r"\s*[-+]?[1-9][0-9]{0,2}[.,][0-9]{3}(?![0-9])", cell))


def _plain(cell: Cell) -> float:
    """A value that is no text."""
    if cell is None or isinstance(cell, bool):
        return np.nan
    try:
        return float(cell)
    except OverflowError:
        return np.inf
    except (TypeError, ValueError):
        return np.nan


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _mantissa(text: str, decimal_comma: bool, scaled: bool) -> str:
    """The digits with a decimal point and without separators of thousands; no number where they could mean two.

    A single separated group is 1,234 runs but may be 1.234 billion, so one before a suffix or power is refused.
    """
    text = text.translate(_SPACES).strip()
    group, point = (".", ",") if decimal_comma else (",", ".")
    grouped = re.fullmatch(
        rf"([-+]?[1-9][0-9]{{0,2}})(([ {group}])[0-9]{{3}}(?:\3[0-9]{{3}})*)(\{point}[0-9]*)?", text
    )
    if grouped is None:
        if group not in text:
            return text.replace(point, ".")
        return text if decimal_comma and "," not in text else "?"
    whole, rest, mark, fraction = grouped.groups()
    if mark == group and len(rest) == 4 and not fraction and decimal_comma:
        return text if scaled else "?"
    if mark == group and len(rest) == 4 and not fraction and scaled:
        return "?"
    return whole + rest.replace(mark, "") + (fraction or "").replace(point, ".")
