"""Size, tokens and compute of each run: from their columns, from each other, or from the shape of the model."""

from dataclasses import dataclass

import numpy as np

from specs import model
from specs.document.parse import DocumentError, show
from specs.law import FLOP_PER_SIZE_TOKEN, SizeKind
from specs.run_table.checks import LEAST, needed, optional, refuse_column
from specs.run_table.find_columns import Found, missing
from specs.run_table.quantities import SHAPES, SIZES
from specs.run_table.table import Array

KINDS: tuple[SizeKind, ...] = ("params", "block_params", "flop_per_token")
IN_WORDS = {
    "params": "6 * params * tokens",
    "block_params": "6 * block_params * tokens",
    "flop_per_token": "flop_per_token * tokens",
}
WRONG_UNIT = 100.0
"""Compute that differs from size and tokens by more than this factor is in another unit.

Small models whose embedding is left out of N differ by up to ten.
"""
NOTED = 2.0
"""One that differs by more is noted."""

_FLOP_UNIT = "write it in FLOP, or name its unit in the column, as in 'total EFLOP' or 'PF-days'"


@dataclass(frozen=True)
class Sizes:
    """What a law is fitted in."""

    size: Array
    kind: SizeKind
    others: dict[SizeKind, Array]
    tokens: Array
    flop: Array
    used: tuple[str, ...]
    """Quantities whose columns were read."""
    notes: tuple[str, ...]


def read_sizes(found: Found) -> Sizes:
    """Size, tokens and compute; DocumentError for what can neither be read nor derived."""
    has_size = any(kind in found.column for kind in SIZES)
    has_shape = any(shape in found.column for shape in ("layers", "width", "ffn"))
    if not has_size and not has_shape and {"tokens", "flop"} <= found.column.keys():
        return _size_of_compute(found)
    sizes, used, notes = _sizes_by_kind(found) if has_size else _sizes_of_shapes(found)
    kind = next(iter(sizes))
    size = sizes.pop(kind)
    if sizes:
        others = ", ".join(f"{one} ({found.column[one]!r})" if one in found.column else one for one in sizes)
        notes.append(f"size is {kind}, by which the law is fitted; the table has {others} too")
    tokens, read, how = _tokens(found, FLOP_PER_SIZE_TOKEN[kind] * size, kind)
    flop, flop_read, flop_notes = _flop(found, FLOP_PER_SIZE_TOKEN[kind] * size * tokens, kind)
    return Sizes(size, kind, sizes, tokens, flop, (*used, *read, *flop_read), (*notes, *how, *flop_notes))


def _size_of_compute(found: Found) -> Sizes:
    flop, tokens = needed(found, "flop"), needed(found, "tokens")
    note = "params are derived from C = 6 * params * tokens"
    return Sizes(flop / (6 * tokens), "params", {}, tokens, flop, ("flop", "tokens"), (note,))


def _sizes_by_kind(found: Found) -> tuple[dict[SizeKind, Array], list[str], list[str]]:
    """Size in each convention that has a column; first the one to fit in, which every run must have."""
    kinds = sorted(
        (kind for kind in KINDS if kind in found.column), key=lambda kind: kind not in found.mapped
    )
    sizes = {kinds[0]: needed(found, kinds[0])}
    for kind in kinds[1:]:
        values, _ = optional(found, kind)
        if values is not None and np.isfinite(values).all():
            sizes[kind] = values
    return sizes, list(sizes), []


def _sizes_of_shapes(found: Found) -> tuple[dict[SizeKind, Array], list[str], list[str]]:
    """Size in each convention that the shape's columns suffice for."""
    lacking = [shape for shape in ("layers", "width", "ffn") if shape not in found.column]
    if "kv_heads" in found.column and "heads" not in found.column:
        lacking.append("heads")
    if lacking:
        raise _lacking(found, lacking)
    shape = {one: needed(found, one) for one in SHAPES if one in found.column}
    L, d = shape["layers"], shape["width"]
    kv_width = shape["kv_heads"] * d / shape["heads"] if "kv_heads" in shape else d
    blocks = model.block_params(L, d, kv_width, shape["ffn"])
    sizes: dict[SizeKind, Array] = {}
    if "vocab" in shape:
        sizes["params"] = model.params(blocks, L, d, shape["vocab"])
    sizes["block_params"] = blocks
    if "context" in shape:
        sizes["flop_per_token"] = model.flop_per_token(blocks, L, d, shape["context"])
    note = "size is counted from the shape, as of a Llama: gated feed-forward, separate embedding and head"
    return sizes, list(shape), [note]


def _lacking(found: Found, lacking: list[str]) -> DocumentError:
    """The refusal of a table that has no size, or too few columns of the shape."""
    given = [shape for shape in SHAPES if shape in found.column]
    if not given:
        return missing(found, "params", "params, non_embedding_params or flop_per_token")
    what = f"there is no size, and of the shape ({', '.join(given)}) {' and '.join(lacking)} is missing"
    return found.grid.refuse_table(what, f"add {' and '.join(lacking)}, or params: --column params=NAME")


def _tokens(found: Found, flop_per_token: Array, kind: SizeKind) -> tuple[Array, list[str], list[str]]:
    """(tokens, the quantities they were read from, notes)."""
    if "tokens" in found.column:
        return needed(found, "tokens"), ["tokens"], []
    if "flop" in found.column:
        tokens = needed(found, "flop") / flop_per_token
        if tokens.min() < LEAST["tokens"]:
            what = f"compute / ({IN_WORDS[kind].replace(' * tokens', '')}) would be {tokens.min():.2g} tokens"
            raise refuse_column(found, "flop", what, f"{_FLOP_UNIT}, or add a column tokens")
        return tokens, [], [f"tokens are derived from C = {IN_WORDS[kind]}"]
    if {"steps", "batch_tokens"} <= found.column.keys():
        tokens = needed(found, "steps") * needed(found, "batch_tokens")
        return tokens, [], ["tokens are derived as steps * batch_tokens"]
    raise missing(found, "tokens", "tokens, or compute in a column flop")


def _flop(found: Found, product: Array, kind: SizeKind) -> tuple[Array, list[str], list[str]]:
    """(compute, the quantities it was read from, notes); `product` is cost_per * size * tokens."""
    if "flop" not in found.column:
        return product, [], [f"compute is taken as {IN_WORDS[kind]}"]
    given, notes = optional(found, "flop")
    if given is None:
        return product, [], [*notes, f"compute is taken as {IN_WORDS[kind]}"]
    ratio = float(np.nanmedian(given / product))
    if not 1 / WRONG_UNIT < ratio < WRONG_UNIT:
        what = f"compute ({show(found.column['flop'])}) is {ratio:.2g} times {IN_WORDS[kind]}"
        raise refuse_column(found, "flop", what, _FLOP_UNIT)
    if not 1 / NOTED < ratio < NOTED:
        notes.append(
            f"compute ({found.column['flop']!r}) is {ratio:.2g} times {IN_WORDS[kind]} in the median run"
        )
    empty = np.isnan(given)
    if empty.any():
        notes.append(f"compute of {empty.sum()} runs is not given, and taken as {IN_WORDS[kind]}")
    return np.where(empty, product, given), ["flop"], notes
