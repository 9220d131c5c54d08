"""The pilots' plan and audit that lie beside a target's plan, for the tables of its page."""

from pathlib import Path

from specs.files import DocumentError, load
from specs.plan import Plan
from specs.record import Audit


def earlier_plans(folder: Path, plan: Plan) -> tuple[tuple[Plan, Audit], ...]:
    """The pilots of the same budget with their audit; nothing for a plan of pilots, or where they are not there.

    They are only shown beside the plan, which has its own evidence inside; so what cannot be read is left out.
    """
    pilots, audit = folder / "plan.pilots.yaml", folder / "audit.pilots.json"
    if plan.phase == "pilots" or not pilots.exists() or not audit.exists():
        return ()
    try:
        found = load(pilots, Plan), load(audit, Audit)
    except DocumentError:
        return ()
    belong = found[0].budget == plan.budget and found[0].seal == found[1].seal
    return (found,) if belong else ()
