"""The functions of `import isoplan`: what the commands do, from Python and to Python."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from isoplan.arguments import in_arguments
from isoplan.results import Audit, Fit, Forecast, Plan
from planner.cli import write_plan
from planner.table_fit.analysis import fit_table
from planner.table_fit.curves import join_curves
from runtime.audit.other_engine import audit_curve
from runtime.audit.verdict import audit_plan
from specs.law import LossUnit
from specs.plan_file import load_plan
from specs.run_table.curves import read_curves
from specs.run_table.read import read_columns, read_table


def fit(
    table: Any,
    *,
    columns: Mapping[str, str] = {},
    bytes_per_token: float | None = None,
    loss_unit: LossUnit | None = None,
    at: str | Sequence[str] = (),
    curves: str | PathLike[str] | None = None,
) -> Fit:
    """Fit scaling laws to a table of finished runs, as `isoplan fit` does.

    `table` is the path of a CSV, JSONL or Parquet file, or gives arrays by name: a dict, a data frame of pandas or
    polars, a table of pyarrow. Columns are found by their usual names (params, tokens, loss); `columns` maps others,
    {"loss": "val/loss"}. Losses are in nats per token, or in `loss_unit`; bits per byte need `bytes_per_token`.
    `at` are targets, "1e22 FLOP" or "7B params 2T tokens"; without any, 10 times the largest compute. `curves` is a
    file of training curves of these runs, joined by the run's name.

    InputError for the first thing that is wrong; of columns it names row and column, both counted from 1.
    """
    with in_arguments():
        options: Any = {"bytes_per_token": bytes_per_token, "loss_unit": loss_unit}
        read = read_table if isinstance(table, str | PathLike) else read_columns
        runs = read(Path(table) if isinstance(table, str | PathLike) else table, columns, **options)
        targets = at if isinstance(at, Sequence) and not isinstance(at, str) else [at]
        if curves is None:
            return Fit.of(fit_table(runs, targets), runs)
        joined = join_curves(runs, read_curves(Path(curves), shared=columns, **options))
        return Fit.of(fit_table(runs, targets, joined), runs, joined.drawn)


def forecast(
    table: Any,
    at: str,
    *,
    columns: Mapping[str, str] = {},
    bytes_per_token: float | None = None,
    loss_unit: LossUnit | None = None,
) -> Forecast:
    """The final loss of a run by the law of a table, with its 50 and 95 % bands.

    `table` is a `Fit`, or what `fit` takes, with the same options; of a `Fit` all but the first forecast are quick.
    `at` is "1e22 FLOP", split in the best way, or "7B params 2T tokens".

    InputError as `fit`, and where the runs give no law.
    """
    if not isinstance(table, Fit):
        table = fit(table, columns=columns, bytes_per_token=bytes_per_token, loss_unit=loss_unit, at=at)
    with in_arguments():
        found: Forecast = table.forecast(at)
        return found


def plan(budget: str | PathLike[str], *, out: str | PathLike[str] | None = None) -> Plan:
    """Plan a budget, as `plan BUDGET` does: the sealed plan, which is also written with its report.

    `budget` is the budget's file, `out` the plan's folder, `plans/<name>` if not given. A budget with pilots gives
    their plan first, and that of the target once they are audited. A plan that is there already is not written again.

    InputError where the budget cannot be planned.
    """
    path, sealed = write_plan(Path(budget), None if out is None else Path(out))
    return Plan.of(sealed, path)


def audit(
    plan: str | PathLike[str],
    *,
    actual: str | PathLike[str] | None = None,
    columns: Mapping[str, str] = {},
    bytes_per_token: float | None = None,
    loss_unit: LossUnit | None = None,
) -> Audit:
    """Compare a plan with the records of its runs, as `audit PLAN` does; `verdict` is inside, outside or cannot tell.

    `plan` is the plan's file; runs are read from `runs/` in the current folder. Writes `audit.<phase>.json` and
    `audit.html` beside the plan, and adds accepted runs to the ledger.

    `actual` is the file of the held-out loss curve of a run that another engine trained, with the options of `fit`;
    `verified` is False then, `unverified` says what nothing vouches for, and nothing enters the ledger.

    InputError where plan, ledger, a record or the curve cannot be read.
    """
    path = Path(plan)
    document = load_plan(path)
    if actual is not None:
        per_byte = document.bytes_per_token if bytes_per_token is None else bytes_per_token
        with in_arguments():
            curves = read_curves(Path(actual), columns, bytes_per_token=per_byte, loss_unit=loss_unit)
            return Audit.of(audit_curve(document, path, curves), Plan.of(document, path))
    return Audit.of(audit_plan(document, path, Path()), Plan.of(document, path))
