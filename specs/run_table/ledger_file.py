"""A ledger as a table of runs: what reads a table reads a ledger too, with its audited runs and those of tables."""

import hashlib
from pathlib import Path

import numpy as np

from specs.document.files import read_bytes
from specs.document.parse import DocumentError, show
from specs.humanize import several
from specs.law import FLOP_PER_SIZE_TOKEN, SizeKind
from specs.ledger import Exclusion, Ledger, TableRunRecord, read_ledger, run_id, text_of
from specs.record import LedgerRecord
from specs.run_table.table import Array, RunTable

_PREFERRED: tuple[SizeKind, ...] = ("flop_per_token", "params", "block_params")
"""Plans are fitted in FLOP per token, so a ledger of audited runs alone gives the plan's law."""

Run = LedgerRecord | TableRunRecord


def read_ledger_table(path: Path) -> RunTable:
    """The ledger's runs but for excluded ones and learning-rate checks; DocumentError where they have no one law."""
    ledger = read_ledger(path)
    lines, notes = _fitted_runs(ledger)
    runs = [line for _, line in lines]
    if len(runs) < 2:
        what = f"the ledger has {several(len(runs), 'run')} to fit"
        raise DocumentError(path, 1, 1, what, "audit more runs, or add a table: isoplan ledger add")
    _check_one_text(path, lines)
    kind = _common_size(path, lines)
    sizes = {one: [_sizes(run).get(one) for run in runs] for one in _PREFERRED}
    per_byte = {run.bytes_per_token for run in runs}
    settings = [_settings(run) for run in runs]
    columns = {name: _column([each[name] for each in settings]) for name in settings[0]}
    return RunTable(
        path=path,
        sha256=hashlib.sha256(read_bytes(path, None)).hexdigest(),
        line=np.array([number for number, _ in lines]),
        name=tuple(run.name if isinstance(run, TableRunRecord) and run.name else run_id(run) for run in runs),
        size=np.array(sizes[kind], float),
        size_kind=kind,
        tokens=np.array([float(run.tokens) for run in runs]),
        loss=np.array([run.loss for run in runs]),
        flop=np.array([run.compute_flop for run in runs]),
        cost_per=FLOP_PER_SIZE_TOKEN[kind],
        **columns,
        loss_unit="nats/token",
        bytes_per_token=per_byte.pop() if len(per_byte) == 1 else None,
        columns={kind: kind, "tokens": "tokens", "flop": "compute_flop", "loss": "loss", "name": "run"},
        notes=notes,
        other_sizes={
            one: np.array(column, float)
            for one, column in sizes.items()
            if one != kind and all(size is not None for size in column)
        },
        excluded=tuple(_excluded(ledger)),
    )


def _fitted_runs(ledger: Ledger) -> tuple[list[tuple[int, Run]], tuple[str, ...]]:
    """(line, run) of each run that is to be fitted, each once, and notes on those that are not."""
    excluded = ledger.excluded
    found: dict[str, tuple[int, Run]] = {}
    checks = 0
    for number, line in enumerate(ledger.lines, start=1):
        if isinstance(line, Exclusion) or run_id(line) in excluded:
            continue
        if isinstance(line, LedgerRecord) and line.role == "rate":
            checks += 1
            continue
        found[run_id(line)] = (number, line)
    note = f"{several(checks, 'run')} of learning-rate checks left out: they ran beside the best rate"
    return list(found.values()), (note,) if checks else ()


def _excluded(ledger: Ledger) -> list[str]:
    """What the fit leaves out since a person excluded it, each with its reason."""
    return [f"run {run}: {reason}" for run, reason in ledger.excluded.items()]


def _check_one_text(path: Path, lines: list[tuple[int, Run]]) -> None:
    first = text_of(lines[0][1])
    for number, run in lines:
        if text_of(run) != first:
            what = (
                f"this run's loss is of {show(text_of(run))}, that of line {lines[0][0]} of {show(first)}, and losses "
                "of two texts have no common law"
            )
            write = "exclude the runs of one, or, where both are one text, add the table with --text "
            raise DocumentError(path, number, 1, what, write + show(first))


def _common_size(path: Path, lines: list[tuple[int, Run]]) -> SizeKind:
    """The first convention of size that all runs have."""
    common = set(_PREFERRED)
    for number, run in lines:
        if not common & _sizes(run).keys():
            own, above = " and ".join(_sizes(run)), " and ".join(sorted(common))
            what = f"this run's size is in {own}, those above are in {above}"
            write = "exclude it, or add its table to a ledger of its own, with a column for the same size"
            raise DocumentError(path, number, 1, what, write)
        common &= _sizes(run).keys()
    return next(kind for kind in _PREFERRED if kind in common)


def _sizes(run: Run) -> dict[SizeKind, float]:
    if isinstance(run, TableRunRecord):
        return dict(run.sizes)
    model = run.run.model
    return {
        "params": float(model.params),
        "block_params": float(model.block_params),
        "flop_per_token": float(model.flop_per_token),
    }


def _settings(run: Run) -> dict[str, float | None]:
    """What else a table may have of a run."""
    if isinstance(run, TableRunRecord):
        return {
            "steps": run.steps,
            "lr": run.peak_lr,
            "batch_tokens": run.batch_tokens,
            "seed": run.seed,
            "unique_tokens": run.unique_tokens,
        }
    return {
        "steps": float(run.run.optim.steps),
        "lr": run.run.optim.peak_lr,
        "batch_tokens": float(run.run.batch_tokens),
        "seed": float(run.run.seed),
        "unique_tokens": None,
    }


def _column(values: list[float | None]) -> Array | None:
    if all(value is None for value in values):
        return None
    return np.array([np.nan if value is None else value for value in values])
