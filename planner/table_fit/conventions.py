"""How the best split moves under the other conventions of N and C that a table allows.

N is counted with embeddings or without, C as 6 N D or exactly; exponents differ by as much as .1 for it (Porian et al.
2024, arXiv 2406.19146; Pearce & Song 2024, arXiv 2406.12907). The law is fitted again in each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.scaling.best_split import best_split
from planner.scaling.diverged import UnusableLossesError
from planner.scaling.laws import Array
from planner.scaling.model_averaging import Mixture, NotEnoughRunsError, fit_mixture
from planner.scaling.points import Points
from planner.table_fit.flags import other_compute
from planner.table_fit.splits import is_finite, split_exponents
from specs.law import FLOP_PER_SIZE_TOKEN, SizeKind
from specs.run_table.table import RunTable
from specs.table_fit import Convention, ConventionSplit

_NAMES: dict[SizeKind, str] = {
    "params": "N: parameters, C = 6 N D",
    "block_params": "N: non-embedding parameters, C = 6 N D",
    "flop_per_token": "M: FLOP per token, C = M D",
}

_DRAWS = 500
"""Ends of an interval from so many are good to a tenth of its width."""
_SAME = 0.01
"""Sizes within this of the table's own are the same convention."""


@dataclass(frozen=True)
class _Counted:
    """The runs in one convention."""

    name: str
    size_kind: SizeKind
    size: Array
    cost_per: float


def conventions(
    table: RunTable, mixture: Mixture, rows: Sequence[int], at: Sequence[tuple[str, float]]
) -> tuple[Convention, ...]:
    """The split in each convention, the table's own first; empty where the table allows no other.

    `rows` are those of the mixture's runs, `at` are computes in the table's own convention, each after what it is.
    """
    own = _Counted(_NAMES[table.size_kind], table.size_kind, table.size, table.cost_per)
    found = [_convention(own, mixture, at)]
    for other in _others(table):
        runs = replace(mixture.runs, size=other.size[rows], cost_per=other.cost_per)
        try:
            fitted = fit_mixture(runs, draws=_DRAWS, members_alone=False)
        except (
            NotEnoughRunsError,
            UnusableLossesError,
        ):  # two computes of one convention may be one in another
            continue
        found.append(
            _convention(other, fitted, [(what, _recounted(mixture, runs, flop)) for what, flop in at])
        )
    known = tuple(convention for convention in found if convention is not None)
    return known if len(known) > 1 else ()


def _others(table: RunTable) -> Iterator[_Counted]:
    """What the table allows besides its own."""
    for kind, size in table.other_sizes.items():
        if np.abs(np.log(size * FLOP_PER_SIZE_TOKEN[kind] / (table.size * table.cost_per))).max() > _SAME:
            yield _Counted(_NAMES[kind], kind, size, FLOP_PER_SIZE_TOKEN[kind])
    if other_compute(table) is not None and np.isfinite(table.flop).all():
        name = f"M = C / D, C: the table's {table.columns['flop']}"
        yield _Counted(name, "flop_per_token", table.flop / table.tokens, 1.0)


def _recounted(mixture: Mixture, others: Points, flop: float) -> float:
    """The compute of the best split of a compute, counted in another convention of the same runs."""
    runs = mixture.runs
    size = best_split(mixture, flop)["size"].median
    logs, rows = np.unique(np.log(runs.size), return_inverse=True)
    ratios = np.bincount(rows, np.log(others.size / runs.size)) / np.bincount(rows)
    upper = slice(len(logs) // 2, None)
    slope = np.polyfit(logs[upper], ratios[upper], 1)[0] if len(logs) > 3 else 0.0
    ratio = np.interp(np.log(size), logs, ratios) + slope * max(np.log(size) - logs[-1], 0.0)
    return flop * others.cost_per / runs.cost_per * float(np.exp(ratio))


def _convention(counted: _Counted, mixture: Mixture, at: Sequence[tuple[str, float]]) -> Convention | None:
    """The split as the runs have it in a convention; None where they leave it infinite."""
    exponents = split_exponents(mixture)
    if exponents is None:
        return None
    splits = []
    for what, flop in at:
        found = {name: ends for name, ends in best_split(mixture, flop).items() if name != "loss"}
        if not all(map(is_finite, found.values())):
            return None
        documents = {name: ends.to_document() for name, ends in found.items()}
        splits.append(ConventionSplit(at=what, compute_flop=flop, **documents))
    return Convention(
        name=counted.name, size_kind=counted.size_kind, exponents=exponents, splits=tuple(splits)
    )
