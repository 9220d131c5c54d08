"""Everything that a table of runs says, from the laws that all commands forecast with."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from planner.scaling.best_split import UNDETERMINED
from planner.scaling.diverged import LeftOut, UnusableLossesError, without_diverged
from planner.scaling.isoflop import Minimum, budget_groups, fit_minima
from planner.scaling.laws import Array, latex
from planner.scaling.model_averaging import (
    Mixture,
    NotEnoughRunsError,
    fit_mixture,
    forecast_loss,
)
from planner.scaling.points import Points, points
from planner.scaling.posterior import interval
from planner.table_fit.backtest import backtests
from planner.table_fit.conventions import conventions
from planner.table_fit.curves import JoinedCurves
from planner.table_fit.flags import evidence_flags, no_backtest_flag, open_split_flag, single_ray
from planner.table_fit.splits import best_splits, computes, law_losses, split_exponents, surface
from planner.table_fit.targets import ComputeTarget, RunTarget, Target, TargetError, parse_target, target_text
from specs.exit_codes import InputError
from specs.run_table.table import RunTable
from specs.table_fit import (
    Backtest,
    BestSplit,
    Convention,
    Flag,
    LawMember,
    LossSurface,
    SizeProfile,
    TableFit,
    TableForecast,
    TableRun,
    TableSource,
    is_open_split,
)

FURTHER = 10.0
"""Times the largest compute, where no target is given."""
_LARGEST_FACTOR = 1e6
"""A size that is known to no better than this factor is not known."""


def analyse(table: RunTable, targets: Sequence[Target], curves: JoinedCurves | None = None) -> TableFit:
    """What the table says, and a forecast for each target; deterministic in its arguments. `curves` are of its runs.

    UnusableLossesError where the losses cannot be nats per token, TargetError where a target cannot be split.
    """
    runs, source = table_points(table), table_source(table)
    mixture, kept, left_out, reason = _fitted(runs)
    budgets = len(budget_groups(kept.flop))
    minima = fit_minima(kept.size, kept.tokens, kept.loss, cost_per=kept.cost_per, weights=kept.weights)
    diverged = {left.row for left in left_out}
    laws = None if mixture is None else law_losses(mixture, runs.size, runs.fresh_tokens)
    rows = tuple(_runs(table, runs, diverged, laws))
    flags = list(evidence_flags(table, source, kept, left_out, minima, budgets))
    flags += () if curves is None else curves.flags
    splits: tuple[BestSplit, ...] = ()
    tested: tuple[Backtest, ...] = ()
    forecasts: tuple[TableForecast, ...] = ()
    others: tuple[Convention, ...] = ()
    around: LossSurface | None = None
    if mixture is not None:
        largest = float(kept.flop.max())
        splits = best_splits(mixture, computes(kept.flop))
        flags += _open_split(splits, source, largest)
        sound = [row for row in range(len(table.name)) if row not in diverged]
        tested, without = backtests(kept, [(table.name[row], int(table.line[row])) for row in sound])
        flags += [no_backtest_flag(without)] if without else []
        forecasts = tuple(forecast_at(mixture, one, table) for one in targets)
        around = surface(mixture, splits)
        if not is_open_split(flags):
            at = [("the largest run", largest), *((one.target, one.compute_flop) for one in forecasts)]
            others = conventions(table, mixture, sound, at)
    return TableFit(
        table=source,
        runs=rows,
        budgets=budgets,
        profiles=tuple(_profile(minimum, rows) for minimum in minima),
        members=() if mixture is None else _members(mixture, source.symbol),
        held_out_error=None if mixture is None else mixture.held_out_error,
        exponents=None if mixture is None else split_exponents(mixture),
        splits=splits,
        surface=around,
        conventions=others,
        forecasts=forecasts,
        no_forecast=reason or None,
        backtests=tested,
        curves=None if curves is None else curves.source,
        flags=tuple(flags),
    )


def fit_table(table: RunTable, texts: Sequence[str], curves: JoinedCurves | None = None) -> TableFit:
    """What the table says, and a forecast for each target that a user wrote, or for `default_target` without any.

    InputError where a target or the losses are refused.
    """
    targets: list[Target] = [parse_target(text, table.size_kind) for text in texts]
    try:
        return analyse(table, targets or [default_target(table)], curves)
    except UnusableLossesError as error:
        raise InputError(f"{table.path}: {error}") from None


def default_target(table: RunTable) -> Target:
    """Where a forecast is wanted if nobody says: at the best split of `FURTHER` times the largest compute, or that far
    along the line where all runs lie on one."""
    runs = table_points(table)
    last = int(runs.flop.argmax())
    if single_ray(runs):
        further = math.sqrt(FURTHER)
        return RunTarget(float(runs.size[last]) * further, float(runs.tokens[last]) * further)
    return ComputeTarget(FURTHER * float(runs.flop[last]))


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


def _runs(table: RunTable, runs: Points, diverged: set[int], laws: Array | None) -> Iterator[TableRun]:
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
            lr=_cell(table.lr, row),
            batch_tokens=_cell(table.batch_tokens, row),
            residual=None if laws is None else loss / float(laws[row]) - 1,
        )


def _cell(column: Array | None, row: int) -> float | None:
    return None if column is None or math.isnan(column[row]) else float(column[row])


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


def _open_split(splits: Sequence[BestSplit], source: TableSource, flop: float) -> list[Flag]:
    at_largest = [split for split in splits if split.compute_flop == flop]
    ratios = [(split, split.tokens_per_size) for split in at_largest]
    return [
        open_split_flag(split, source) for split, ratio in ratios if not ratio.high < UNDETERMINED * ratio.low
    ]


def forecast_at(mixture: Mixture, target: Target, table: RunTable) -> TableForecast:
    """The forecast of a run, or of the best one of a compute; TargetError where the table's runs leave that open."""
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
