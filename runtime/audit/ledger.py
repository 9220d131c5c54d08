"""The ledger: one line for every accepted run, appended once, also when a plan is audited repeatedly or concurrently.

Two lines are the same when they are of the same run under the same seal.
"""

from collections.abc import Sequence
from pathlib import Path

from specs.document.files import locate
from specs.document.write import append_lines
from specs.ledger import locked, read_ledger
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
    with locked(path):
        known = {_key(record) for record in read_ledger(path).audited} if path.exists() else set()
        new = [record for record in records if _key(record) not in known]
        append_lines(path, new)
    return len(new)


def _key(record: LedgerRecord) -> tuple[str, str]:
    return record.fingerprint_of_run, record.seal
