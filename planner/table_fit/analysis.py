"""Everything that a table of runs says, from the laws that all commands forecast with."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from planner.scaling.best_split import best_split, undetermined
from planner.scaling.diverged import LeftOut, without_diverged
from planner.scaling.isoflop import Minimum, budget_groups, fit_minima
from planner.scaling.laws import Array, latex, optimum
from planner.scaling.model_averaging import (
    Mixture,
    NotEnoughRunsError,
    fit_mixture,
    forecast_loss,
    loss_bands,
)
from planner.scaling.points import Points, points
from planner.scaling.posterior import DrawInterval, interval
from planner.table_fit.backtest import backtests, to_band
from planner.table_fit.flags import evidence_flags, no_backtest_flag, open_split_flag, single_ray
from planner.table_fit.targets import ComputeTarget, RunTarget, Target, TargetError, target_text
from specs.law import Interval
from specs.run_table.table import RunTable
from specs.table_fit import (
    Backtest,
    BestSplit,
    Flag,
    LawMember,
    SizeProfile,
    SplitExponents,
    TableFit,
    TableForecast,
    TableRun,
    TableSource,
)

REACH = 100.0
"""Best splits are given up to this many times the table's largest compute."""
FURTHER = 10.0
"""Times the largest compute, where no target is given."""
_PER_DECADE = 4
_SAME = 0.05
"""Computes that differ by less are one."""
_LARGEST_FACTOR = 1e6
"""A size that is known to no better than this factor is not known."""


def analyse(table: RunTable, targets: Sequence[Target]) -> TableFit:
    """What the table says, and a forecast for each target; deterministic in its arguments.

    LossUnitError where the losses cannot be nats per token, TargetError where a target cannot be split.
    """
    runs, source = table_points(table), table_source(table)
    mixture, kept, left_out, reason = _fitted(runs)
    budgets = len(budget_groups(kept.flop))
    minima = fit_minima(kept.size, kept.tokens, kept.loss, cost_per=kept.cost_per, weights=kept.weights)
    diverged = {left.row for left in left_out}
    rows = tuple(_runs(table, runs, diverged))
    flags = list(evidence_flags(table, source, kept, left_out, minima, budgets))
    splits: tuple[BestSplit, ...] = ()
    tested: tuple[Backtest, ...] = ()
    if mixture is not None:
        splits = best_splits(mixture, _computes(kept.flop))
        flags += _open_split(mixture, source)
        named = [
            (table.name[row], int(table.line[row])) for row in range(len(table.name)) if row not in diverged
        ]
        tested, without = backtests(kept, named)
        flags += [no_backtest_flag(without)] if without else []
    return TableFit(
        table=source,
        runs=rows,
        budgets=budgets,
        profiles=tuple(_profile(minimum, rows) for minimum in minima),
        members=() if mixture is None else _members(mixture, source.symbol),
        held_out_error=None if mixture is None else mixture.held_out_error,
        exponents=None if mixture is None else _exponents(mixture),
        splits=splits,
        forecasts=() if mixture is None else tuple(_forecast(mixture, one, table) for one in targets),
        no_forecast=reason or None,
        backtests=tested,
        flags=tuple(flags),
    )


def default_target(table: RunTable) -> Target:
    """Where a forecast is wanted if nobody says: at the best split of `FURTHER` times the largest compute, or that far
    along the line where all runs lie on one."""
    runs = table_points(table)
    last = int(runs.flop.argmax())
    if single_ray(runs):
        further = math.sqrt(FURTHER)
        return RunTarget(float(runs.size[last]) * further, float(runs.tokens[last]) * further)
    return ComputeTarget(FURTHER * float(runs.flop[last]))


def best_splits(mixture: Mixture, flops: Sequence[float]) -> tuple[BestSplit, ...]:
    """The best split of each compute, without those that the runs leave infinite, and the loss of one run at it."""
    found = [(flop, best_split(mixture, flop)) for flop in flops]
    known = [(flop, split) for flop, split in found if all(_is_finite(ends) for ends in split.values())]
    if not known:
        return ()
    sizes = np.array([split["size"].median for _, split in known])
    tokens = np.array([flop for flop, _ in known]) / (mixture.runs.cost_per * sizes)
    bands = loss_bands(mixture, sizes, tokens).T.tolist()
    return tuple(
        BestSplit(compute_flop=flop, **{name: ends.to_document() for name, ends in split.items()}, run=to_band(band))
        for (flop, split), band in zip(known, bands, strict=True)
    )  # fmt: skip


def _fitted(runs: Points) -> tuple[Mixture | None, Points, tuple[LeftOut, ...], str]:
    """The mixture, the runs that it is fitted on, those left out, and why there is no mixture where there is none."""
    try:
        mixture = fit_mixture(runs)
    except NotEnoughRunsError as error:
        return None, *without_diverged(runs), str(error)
    return mixture, mixture.runs, mixture.left_out, ""


def table_points(table: RunTable) -> Points:
    """The table's runs as the laws see them."""
    unique = np.inf if table.unique_tokens is None else np.nan_to_num(table.unique_tokens, nan=np.inf)
    return points(
        table.size,
        table.tokens,
        table.loss,
        cost_per=table.cost_per,
        steps=table.steps,
        unique_tokens=unique,
    )


def table_source(table: RunTable) -> TableSource:
    """The table itself, as a document."""
    return TableSource(
        path=str(table.path),
        sha256=table.sha256,
        columns=table.columns,
        size_kind=table.size_kind,
        flop_per_size_token=table.cost_per,
        loss_unit=table.loss_unit,
        bytes_per_token=table.bytes_per_token,
        notes=table.notes,
    )


def _runs(table: RunTable, runs: Points, diverged: set[int]) -> Iterator[TableRun]:
    budget = {row: number for number, group in enumerate(budget_groups(runs.flop)) for row in group}
    for row, (size, tokens, flop, loss, short) in enumerate(
        zip(*(c.tolist() for c in (runs.size, runs.tokens, runs.flop, runs.loss, runs.short)), strict=True)
    ):
        yield TableRun(
            name=table.name[row],
            line=int(table.line[row]),
            size=size,
            tokens=tokens,
            compute_flop=flop,
            budget=budget[row],
            loss=loss,
            short=short > 0,
            diverged=row in diverged,
        )


def _profile(minimum: Minimum, rows: Sequence[TableRun]) -> SizeProfile:
    spread = 1.96 * minimum.log_size_sd
    known = minimum.bracketed and spread < math.log(_LARGEST_FACTOR)
    nearest = min(rows, key=lambda run: abs(math.log(run.compute_flop / minimum.flop)))
    return SizeProfile(
        budget=nearest.budget,
        compute_flop=minimum.flop,
        runs=minimum.runs,
        bracketed=minimum.bracketed,
        reason=minimum.reason,
        curvature=minimum.curvature,
        size=minimum.size,
        size_factor_95=math.exp(spread) if known else None,
        tokens=minimum.tokens,
        loss=minimum.loss,
    )


def _members(mixture: Mixture, symbol: str) -> tuple[LawMember, ...]:
    found = [
        LawMember(
            form=law.law.form.name,
            window_decades=window,
            latex=latex(law.law.form, symbol),
            weight=weight,
            held_out_error=error,
            constants={name: interval(law.constant(name)).to_document() for name in law.law.form.constants},
        )
        for law, window, weight, error in zip(
            mixture.laws, mixture.windows, mixture.weights.tolist(), mixture.held_out_errors, strict=True
        )
    ]
    return tuple(sorted(found, key=lambda member: -member.weight))


def _exponents(mixture: Mixture) -> SplitExponents | None:
    """Every form's best size is a power of compute, so two computes give each draw's exponent."""
    logs = [_log_best_size(mixture, flop) for flop in (1.0, 10.0)]
    ends = interval((logs[1] - logs[0]) / np.log(10.0))
    if not _is_finite(ends):
        return None
    return SplitExponents(
        size=ends.to_document(),
        tokens=Interval(value=1 - ends.median, low=1 - ends.high, high=1 - ends.low),
    )


def _log_best_size(mixture: Mixture, times_largest: float) -> Array:
    flop, cost_per = float(mixture.runs.flop.max()) * times_largest, mixture.runs.cost_per
    with np.errstate(all="ignore"):
        return mixture.mixed(
            [np.log(optimum(law.law.form, np.exp(law.log_params), flop, cost_per)[0]) for law in mixture.laws]
        )


def _open_split(mixture: Mixture, source: TableSource) -> list[Flag]:
    flop = float(mixture.runs.flop.max())
    if not undetermined(best_split(mixture, flop)):
        return []
    return [open_split_flag(split, source) for split in best_splits(mixture, [flop])]


def _computes(flop: Array) -> list[float]:
    """From the smallest to `REACH` times the largest: the ends, powers of ten, and equal parts of a decade between."""
    low, high = float(flop.min()), float(flop.max())
    first, last = (math.log10(end) * _PER_DECADE for end in (low, high * REACH))
    between = [10.0 ** (step / _PER_DECADE) for step in range(math.ceil(first), math.floor(last) + 1)]
    ends = [low, high, 10 * high, REACH * high]
    inner = [flop for flop in between if all(abs(math.log(flop / end)) > _SAME for end in ends)]
    return sorted([*ends, *inner])


def _forecast(mixture: Mixture, target: Target, table: RunTable) -> TableForecast:
    split = None
    if isinstance(target, ComputeTarget):
        split = next(iter(best_splits(mixture, [target.flop])), None)
        if split is None:
            raise TargetError(
                f"{target.flop:.3g} FLOP have no best split by these runs; give size and tokens"
            )
        size = split.size.value
        tokens = target.flop / (table.cost_per * size)
    else:
        size, tokens = target.size, target.tokens
    found = forecast_loss(mixture, size, tokens)
    return TableForecast(
        target=target_text(target, table.size_kind),
        size=size,
        tokens=tokens,
        compute_flop=table.cost_per * size * tokens,
        loss=found.band,
        extrapolation=found.extrapolation,
        noise_sd=found.noise_sd,
        extrapolation_sd=found.discrepancy_sd,
        split=split,
    )


def _is_finite(ends: DrawInterval) -> bool:
    return math.isfinite(ends.low) and math.isfinite(ends.high)
