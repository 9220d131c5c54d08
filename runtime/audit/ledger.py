"""The ledger: one line for every accepted run, appended once, also when a plan is audited repeatedly or concurrently.

Two lines are the same when they are of the same run under the same seal. Reading, comparing and appending happen under
a lock beside the ledger, since several audits may run at once.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from specs.document.files import DocumentError, locate, read_lines
from specs.document.write import append_line
from specs.plan import Plan
from specs.record import LedgerRecord


def ledger_path(plan_path: Path, plan: Plan) -> Path:
    """The ledger of a plan; DocumentError where it is not the budget's, or its folder does not exist."""
    named = Path(plan.ledger)
    if named.is_absolute() or named.name != plan.budget.ledger:
        what = f"{plan.ledger!r} is not a relative path that ends in {plan.budget.ledger}"
        raise locate(plan_path, "ledger", what, "plan the budget again")
    path = plan_path.parent / named
    if not path.parent.is_dir():
        what = f"the ledger's folder {path.parent} does not exist"
        raise locate(
            plan_path, "ledger", what, "move the plan back to where it was planned, or plan the budget again"
        )
    return path


def append_new(path: Path, records: Sequence[LedgerRecord]) -> int:
    """Append the records that the ledger does not have yet, in order; their number.

    DocumentError where the ledger has an invalid or incomplete line; nothing is appended then.
    """
    if not records:
        return 0
    with _locked(path):
        known = {_key(record) for record in read_lines(path, LedgerRecord)} if path.exists() else set()
        new = [record for record in records if _key(record) not in known]
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
        what, write = (
            f"this file cannot be written ({error.strerror})",
            "choose a folder that you can write to",
        )
        raise DocumentError(path, 1, 1, what, write) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
