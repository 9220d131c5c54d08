"""A table's runs as the evidence of a plan: alone, or joined with the pilots of a ledger."""

from collections.abc import Iterator, Sequence

import numpy as np

from planner.evidence.forecast import FittedLaws, to_points
from planner.scaling.best_split import Cost
from planner.scaling.isoflop import budget_groups
from planner.scaling.laws import COUPLED, Array
from planner.scaling.lr_and_batch import RateGrid
from planner.scaling.posterior import fit_law
from planner.table_fit.analysis import table_points, table_source
from planner.table_fit.flags import evidence_flags
from specs.evidence import EvidencePoint
from specs.humanize import several
from specs.run_table.table import RunTable
from specs.table_fit import FlagKind

_OF_THE_TABLE: tuple[FlagKind, ...] = ("compute", "repeated text")
"""Flags on what `isoplan fit` means by C and by text: a plan counts C = M D of its own shapes and its own text."""
_NAMED = 10
"""Diverged runs that flags name one by one; of more they give the number."""
_SAME_RUN = 1e-4
"""A table's run whose size, tokens and loss are a pilot's within this share is that pilot, exported."""
_OFFSET_SDS, _LEAST_OFFSET = 2.0, 0.005
"""Table and pilots disagree where they are so many standard deviations apart, and half a per cent of loss: about what
seeds of tiny runs differ by (docs/design.md, decision 52)."""


def table_evidence(table: RunTable) -> tuple[EvidencePoint, ...]:
    """The table's runs as points of the loss surface, in the table's own size."""
    runs = table_points(table)
    unique = np.full(len(runs.loss), np.nan) if table.unique_tokens is None else table.unique_tokens
    return tuple(
        EvidencePoint(
            run=name,
            line=line,
            budget_flop=flop,
            size=size,
            tokens=tokens,
            unique_tokens=text if np.isfinite(text) else None,
            loss=loss,
            short=short > 0,
        )
        for name, line, flop, size, tokens, text, loss, short in zip(
            table.name,
            *(column.tolist() for column in (table.line, runs.flop, runs.size, runs.tokens)),
            *(column.tolist() for column in (unique, runs.loss, runs.short)),
            strict=True,
        )
    )


def table_flags(table: RunTable, fitted: FittedLaws) -> tuple[str, ...]:
    """What weakens the evidence of a plan on this table."""
    kept = to_points(fitted.points, fitted.size_kind)
    left_out = [left for _, left in fitted.left_out]
    budgets = len(budget_groups(kept.flop))
    found = evidence_flags(table, table_source(table), kept, left_out[:_NAMED], fitted.minima, budgets)
    messages = [flag.message for flag in found if flag.kind not in _OF_THE_TABLE]
    if (more := len(left_out) - _NAMED) > 0:
        messages.append(f"{several(more, 'further run')} left out of all fits for such losses")
    return tuple(messages)


def table_rates(table: RunTable, cost: Cost | None) -> RateGrid | None:
    """The table's runs over learning rates and batches, sizes in M; None where it has not both columns."""
    if table.lr is None or table.batch_tokens is None:
        return None
    size = table.size if cost is None else cost(table.size)
    columns = np.stack([size, table.tokens, table.lr, table.batch_tokens, table.loss])
    return RateGrid(*columns[:, np.isfinite(columns).all(axis=0)])


def joined(
    pilots: Sequence[EvidencePoint], table: RunTable, below_flop: float
) -> tuple[tuple[EvidencePoint, ...], tuple[str, ...]]:
    """The table's runs that join the pilots, sizes of both in M, and flags: how many do and why others do not, and
    whether both follow one law."""
    runs = table_evidence(table)
    smaller = [point for point in runs if point.budget_flop < below_flop]
    new = tuple(point for point in smaller if not any(_is_same(point, pilot) for pilot in pilots))
    reasons = [
        text
        for number, text in (
            (len(runs) - len(smaller), "of the target's compute or more"),
            (len(smaller) - len(new), "a pilot of this budget"),
        )
        for text in ([f"{number} {'is' if number == 1 else 'are'} {text}"] if number else [])
    ]
    why = f": {'; '.join(reasons)}" if reasons else ""
    text = (
        f"{len(new)} of the table's {several(len(runs), 'run')} join the {several(len(pilots), 'pilot')}{why}"
    )
    return new, (text, *_disagreement(pilots, new))


def _is_same(one: EvidencePoint, other: EvidencePoint) -> bool:
    return all(
        abs(getattr(one, name) / getattr(other, name) - 1) < _SAME_RUN for name in ("size", "tokens", "loss")
    )


def _disagreement(pilots: Sequence[EvidencePoint], others: Sequence[EvidencePoint]) -> Iterator[str]:
    """A flag if the table's runs lie off the law of the pilots by more than that law is unsure of."""
    own, runs = (to_points(points, "flop_per_token") for points in (pilots, others))
    if len(np.unique(own.cell)) <= len(COUPLED.constants) or not others:
        return
    predicted = fit_law(COUPLED, own).predict(runs.size, runs.fresh_tokens)
    off = np.log(runs.loss) - predicted.log_loss
    offset = float(np.median(off))
    spread = float(np.sqrt(np.median(predicted.law_variance) + _variance_of_median(off)))
    if abs(offset) > max(_OFFSET_SDS * spread, _LEAST_OFFSET):
        yield (
            f"the table's runs lie {np.expm1(offset):+.1%} (± {_OFFSET_SDS * spread:.1%}) off the pilots' law at the "
            "same size and tokens: they may be of another text, tokenizer, held-out set or recipe; if so, leave "
            "evidence.also out"
        )


def _variance_of_median(values: Array) -> float:
    """Of independent values: that of their mean, by pi / 2."""
    return float(np.pi / 2 * np.var(values) / len(values))
