"""The ledger: one line for every accepted run, appended once, however often and by however many a plan is audited.

A line is the same as another when it tells of the same run under the same seal. Reading, comparing and appending happen
under a lock beside the ledger, since two audits may end at the same time.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from specs.document.files import DocumentError, locate, read_lines
from specs.document.write import append_line
from specs.plan import Plan
from specs.record import LedgerRecord


def ledger_of(plan_path: Path, plan: Plan) -> Path:
    """The ledger of a plan; DocumentError where the plan names another than its budget's, or the folder is gone."""
    named = Path(plan.ledger)
    if named.is_absolute() or named.name != plan.budget.ledger:
        what = f"{plan.ledger!r} is not a relative path that ends in {plan.budget.ledger}"
        raise locate(plan_path, "ledger", what, "plan the budget again")
    path = plan_path.parent / named
    if not path.parent.is_dir():
        what = f"the ledger's folder {path.parent} is not there, seen from {plan_path.parent}"
        raise locate(plan_path, "ledger", what, "put the plan back to where it was made, or plan again")
    return path


def extend(path: Path, records: Sequence[LedgerRecord]) -> int:
    """Append those records that the ledger does not hold yet, in their order; how many these were.

    DocumentError where the ledger has a line that is no record, or is cut: nothing is appended then.
    """
    if not records:
        return 0
    with _locked(path):
        held = {_key(record) for record in read_lines(path, LedgerRecord)} if path.exists() else set()
        new = [record for record in records if _key(record) not in held]
        for record in new:
            append_line(path, record)
    return len(new)


def _key(record: LedgerRecord) -> tuple[str, str]:
    return record.fingerprint_of_run, record.seal


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        lock = open(path.with_name(f".{path.name}.lock"), "w")  # noqa: SIM115, closed below
    except OSError as error:
        what, write = f"this cannot be written ({error.strerror})", "choose a folder that can be written"
        raise DocumentError(path, 1, 1, what, write) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
