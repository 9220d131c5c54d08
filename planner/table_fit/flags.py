"""What weakens a table's evidence, each with what follows from it and what would help."""

from collections.abc import Iterator, Sequence

import numpy as np

from planner.scaling.diverged import LeftOut
from planner.scaling.isoflop import Minimum
from planner.scaling.points import SHORT_RUN_STEPS, Points
from specs.humanize import count, flop_text, several
from specs.run_table.table import Array, RunTable
from specs.table_fit import BestSplit, Flag, TableSource

_FEW_BUDGETS = 4
"""With fewer, the floor is mostly the prior's (planner/scaling/posterior.py)."""
_RAY_WIDTH = np.log(1.5)
"""Runs within this of a straight line in ln(size) and ln(tokens) do not trade one against the other."""
_OTHER_COMPUTE = 0.03
"""The table's own compute is another if half of the runs differ from c x size x tokens by more than this."""
_SWEPT = 3
"""Runs of one size and tokens with so many learning rates and batches are a sweep."""
_LISTED = 3


def evidence_flags(
    table: RunTable,
    source: TableSource,
    kept: Points,
    left_out: Sequence[LeftOut],
    minima: Sequence[Minimum],
    budgets: int,
) -> Iterator[Flag]:
    """Flags of the runs themselves, before any law."""
    yield from _compute(table, source)
    for excluded in table.excluded:
        yield Flag(kind="excluded run", message=f"left out, as the ledger says: {excluded}")
    for left in left_out:
        yield Flag(
            kind="diverged run",
            message=f"{_name(table, left.row)} is left out of all fits: its loss {table.loss[left.row]:.4f} "
            f"nats/token is {np.expm1(left.off):+.0%} off what all other runs say; look for a loss spike, another text "
            "or a wrong cell",
        )
    yield from _budgets(kept, budgets)
    if budgets > 1:
        yield from _ray(kept, source)
    yield from _unbracketed(minima)
    yield from _short(kept)
    yield from _sweep(table)
    if table.unique_tokens is not None and bool(np.isfinite(table.unique_tokens).any()):
        yield Flag(
            kind="repeated text",
            message="repeated tokens of the table's runs count as the fresh ones that they are worth; best splits and "
            "forecasts are for text that is not repeated",
        )


def open_split_flag(split: BestSplit, source: TableSource) -> Flag:
    """The best split at the largest compute is anything."""
    low, high = split.tokens_per_size.low, split.tokens_per_size.high
    return Flag(
        kind="open split",
        message=f"the runs do not say how to split compute: at {flop_text(split.compute_flop)} the best "
        f"D/{source.symbol} lies between {low:.2g} and {high:.2g}; read no optimum from this table, and give targets "
        "as size and tokens, not as compute. Runs that trade size against tokens at one compute would settle it",
    )


def no_backtest_flag(reason: str) -> Flag:
    """No part of the table can forecast another."""
    return Flag(
        kind="no backtest",
        message=f"no backtest: {reason}; how far the forecasts are off is known from published laws alone",
    )


def other_compute(table: RunTable) -> Array | None:
    """ln of the table's own compute over c x size x tokens, by run that has one; None where they are the same."""
    if "flop" not in table.columns:
        return None
    log_ratio = np.log(table.flop / (table.cost_per * table.size * table.tokens))
    log_ratio = log_ratio[np.isfinite(log_ratio)]
    return log_ratio if len(log_ratio) and np.median(np.abs(log_ratio)) > _OTHER_COMPUTE else None


def _compute(table: RunTable, source: TableSource) -> Iterator[Flag]:
    log_ratio = other_compute(table)
    if log_ratio is not None:
        own, formula = f"column {table.columns['flop']}", source.compute_formula
        middle, low, high = np.exp([np.median(log_ratio), log_ratio.min(), log_ratio.max()]).tolist()
        yield Flag(
            kind="compute",
            message=f"the table's own compute ({own}) is {middle:.3g} times {formula} ({low:.3g} to {high:.3g}): C "
            f"means {formula} here, in every result and in --at; divide a compute that is counted like the table's "
            f"by {middle:.3g}",
        )


def _budgets(kept: Points, budgets: int) -> Iterator[Flag]:
    if budgets == 1:
        only = flop_text(float(np.exp(np.log(kept.flop).mean())))
        yield Flag(
            kind="one budget",
            message=f"all runs have one compute, {only}: the profile shows the best size there, but nothing shows how "
            "the loss falls with compute; add runs at a second compute, a factor 3 or more away",
        )
    elif budgets < _FEW_BUDGETS:
        yield Flag(
            kind="few budgets",
            message=f"only {several(budgets, 'budget')}: the loss floor is mostly that of the prior, from published "
            "laws, and the bands are as wide as that leaves them; a further budget narrows them",
        )


def single_ray(runs: Points) -> bool:
    """Whether all runs lie on one line of ln(size) and ln(tokens)."""
    along, across, _ = _line(runs)
    return across <= _RAY_WIDTH and along > across


def _line(runs: Points) -> tuple[float, float, float]:
    """Extent of the runs along and across the line through them, and its slope: 0 where size varies, 1 where tokens
    vary."""
    logs = np.stack([np.log(runs.size), np.log(runs.tokens)], axis=1)
    _, _, axes = np.linalg.svd(logs - logs.mean(axis=0), full_matrices=False)
    if len(axes) < 2:
        return 0.0, 0.0, 0.0
    slope = np.arctan2(abs(axes[0][1]), abs(axes[0][0])) / (np.pi / 2)
    return float(np.ptp(logs @ axes[0])), float(np.ptp(logs @ axes[1])), float(slope)


def _ray(kept: Points, source: TableSource) -> Iterator[Flag]:
    if not single_ray(kept):
        return
    slope, log_ratio = _line(kept)[2], np.log(kept.tokens / kept.size)
    ratio = float(np.exp(np.median(log_ratio)))
    if np.ptp(log_ratio) <= 2 * _RAY_WIDTH:
        what = f"all runs have about {ratio:.3g} tokens per unit of {source.symbol}"
    elif slope > 0.95:
        what = f"all runs have one size, {source.symbol} = {count(float(np.median(kept.size)))}"
    elif slope < 0.05:
        what = f"all runs have {count(float(np.median(kept.tokens)))} tokens"
    else:
        what = "the tokens of all runs follow their size"
    yield Flag(
        kind="single ray",
        message=f"{what}: no run trades size against tokens, so the best split is the prior's, from published laws, "
        "and forecasts are safe only along this line; add runs of other sizes at a compute that was run",
    )


def _unbracketed(minima: Sequence[Minimum]) -> Iterator[Flag]:
    loose = [minimum for minimum in minima if not minimum.bracketed]
    if loose:
        listed = "; ".join(f"{flop_text(one.flop)}: {one.reason}" for one in loose[:_LISTED])
        more = f"; and {len(loose) - _LISTED} more" if len(loose) > _LISTED else ""
        yield Flag(
            kind="unbracketed minimum",
            message=f"{len(loose)} of {several(len(minima), 'isoFLOP profile')} show no minimum ({listed}{more}): "
            "these say nothing of the best size by themselves, the law still uses their runs",
        )


def _short(kept: Points) -> Iterator[Flag]:
    short = int(kept.short.sum())
    if short:
        yield Flag(
            kind="short runs",
            message=f"{short} of {several(len(kept.loss), 'run')} have under {SHORT_RUN_STEPS} steps and get a ninth "
            "of the weight: warmup and noise show in their loss",
        )


def _sweep(table: RunTable) -> Iterator[Flag]:
    """Tables that are mostly of one size tried at many settings: a law of all runs is above what the best reach."""
    settings = [column for column in (table.lr, table.batch_tokens) if column is not None]
    if not settings:
        return
    places = np.round(np.log([table.size, table.tokens]).T, 2)
    tried = np.round(np.nan_to_num(np.log(settings).T), 1)
    runs: dict[tuple[float, ...], list[tuple[float, ...]]] = {}
    for place, own in zip(places.tolist(), tried.tolist(), strict=True):
        runs.setdefault(tuple(place), []).append(tuple(own))
    swept = [own for own in runs.values() if len(set(own)) >= _SWEPT]
    if 2 * sum(map(len, swept)) > len(table.loss):
        yield Flag(
            kind="sweep",
            message="most runs are sweeps of learning rate or batch "
            f"({len(swept)} pairs of size and tokens with {_SWEPT} settings or more): the law is of all of them, poor "
            "settings included, and so above what the best reach; fit a table of the best run of each size and tokens "
            "to forecast a tuned run",
        )


def _name(table: RunTable, row: int) -> str:
    name, line = table.name[row], int(table.line[row])
    return f"run {name} (line {line})" if name != f"line {line}" else f"the run of line {line}"
