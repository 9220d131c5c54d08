"""Training curves joined to the runs of a table by name: which run has one, and whether it ends where the run did."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from specs.humanize import count, several
from specs.report.run_figures import TrainingCurve
from specs.run_table.curves import Curve, CurveTable
from specs.run_table.table import Array, RunTable
from specs.table_fit import CurvesSource, Flag

_OTHER_LOSS = 0.02
"""A curve that ends this far from its run's final loss is of another text or unit: the last evaluation of a curve is on
fewer tokens than the final one, and small runs spread by .7 % (docs/log.md)."""
_OTHER_TOKENS = 0.05
"""One that ends this far from its run's tokens is not whole, and not compared."""
_DRAWN, _DRAWN_POINTS = 300, 80
"""Curves that are drawn, spread evenly over compute, and points of each, spread evenly over its logarithm: a figure of
more is no clearer."""
_LISTED = 3


@dataclass(frozen=True)
class JoinedCurves:
    """Curves of a table's runs."""

    source: CurvesSource
    flags: tuple[Flag, ...]
    drawn: tuple[TrainingCurve, ...]
    """Thinned, smallest run first."""


@dataclass(frozen=True)
class _Pair:
    """A run's row in the table and its curve."""

    row: int
    name: str
    tokens: Array
    loss: Array


def join_curves(table: RunTable, curves: CurveTable) -> JoinedCurves:
    """The curve of each run of the table that has one."""
    found = [(row, curves.curves.get(table.name[row])) for row in _last_rows(table)]
    pairs = [
        pair for row, curve in found if curve is not None and (pair := _pair(table, row, curve)) is not None
    ]
    pairs.sort(key=lambda pair: (table.size[pair.row] * table.tokens[pair.row], pair.row))
    every = -(-len(pairs) // _DRAWN)
    source = CurvesSource(
        path=str(curves.path),
        sha256=curves.sha256,
        columns=curves.columns,
        held_out=curves.held_out,
        runs=len(pairs),
        points=sum(len(pair.loss) for pair in pairs),
        notes=(*curves.notes, *_unmatched(table, curves, [row for row, _ in found], pairs)),
    )
    drawn = tuple(_thinned(table, pair) for pair in pairs[:: every or 1])
    return JoinedCurves(source, tuple(_flags(table, curves, pairs)), drawn)


def _last_rows(table: RunTable) -> list[int]:
    """The longest run of each name: a table may have the points of a run too."""
    longest: dict[str, int] = {}
    for row, name in enumerate(table.name):
        if name not in longest or table.tokens[row] > table.tokens[longest[name]]:
            longest[name] = row
    return list(longest.values())


def _pair(table: RunTable, row: int, curve: Curve) -> _Pair | None:
    """A run with its curve; None where nothing says how many tokens its steps have."""
    tokens = curve.tokens
    if tokens is None:
        batch = np.nan if table.batch_tokens is None else table.batch_tokens[row]
        if curve.steps is None or not np.isfinite(batch):
            return None
        tokens = curve.steps * batch
    return _Pair(row, table.name[row], tokens, curve.loss)


def _unmatched(
    table: RunTable, curves: CurveTable, rows: Sequence[int], pairs: Sequence[_Pair]
) -> Iterator[str]:
    """Notes on runs and curves that have no counterpart."""
    names, joined = {table.name[row] for row in rows}, {pair.name for pair in pairs}
    no_curve = [table.name[row] for row in rows if table.name[row] not in curves.curves]
    no_run = [name for name in curves.curves if name not in names]
    no_tokens = [name for name in curves.curves if name in names and name not in joined]
    if no_curve:
        yield f"{several(len(no_curve), 'run')} without a curve: {_list(no_curve)}"
    if no_run:
        yield f"{several(len(no_run), 'curve')} without a run in the table: {_list(no_run)}"
    if no_tokens:
        yield (
            f"{several(len(no_tokens), 'curve')} of steps whose tokens are not known: {_list(no_tokens)}; add tokens "
            "to the curves, or steps to the table"
        )


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(name or "one without a name" for name in names[:_LISTED]) + more


def _flags(table: RunTable, curves: CurveTable, pairs: Sequence[_Pair]) -> Iterator[Flag]:
    if not pairs:
        yield _flag(
            "no curve belongs to a run of the table: both are joined by the run's name; map the column that both have, "
            "as in --column name=run_id"
        )
    elif curves.held_out is False:
        yield _flag(
            f"the curves are of the training loss ({curves.columns['loss']}): they are drawn, and not compared with "
            "the table's losses; --curves-column loss=NAME reads another column"
        )
    else:
        yield from _ends(table, pairs)


def _ends(table: RunTable, pairs: Sequence[_Pair]) -> Iterator[Flag]:
    """Curves that stop early, and those that end at another loss."""
    short, other = [], []
    for pair in pairs:
        share = float(pair.tokens[-1] / table.tokens[pair.row])
        off = float(pair.loss[-1] / table.loss[pair.row] - 1)
        if abs(np.log(share)) > _OTHER_TOKENS:
            ends = f"{count(float(pair.tokens[-1]))} of {count(float(table.tokens[pair.row]))} tokens"
            short.append(f"{pair.name} at {ends}")
        elif abs(off) > _OTHER_LOSS:
            other.append(f"{pair.name} by {off:+.1%}")
    if short:
        yield _flag(f"{several(len(short), 'curve')} not of the whole run: {_list(short)}")
    if other:
        yield _flag(
            f"{several(len(other), 'curve')} with a last loss that is not the table's final one: {_list(other)}; look "
            "for another text, another unit, or a loss of training"
        )


def _flag(message: str) -> Flag:
    return Flag(kind="curves", message=message)


def _thinned(table: RunTable, pair: _Pair) -> TrainingCurve:
    """A curve against compute with few points, its first and last among them."""
    places = np.geomspace(pair.tokens[0], pair.tokens[-1], _DRAWN_POINTS)
    rows = np.unique(np.searchsorted(pair.tokens, places * (1 - 1e-9)).clip(0, len(pair.tokens) - 1))
    flop = table.cost_per * table.size[pair.row] * pair.tokens[rows]
    return TrainingCurve(pair.name, tuple(flop.tolist()), tuple(pair.loss[rows].tolist()))
