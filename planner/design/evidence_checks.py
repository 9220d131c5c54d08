"""Refusals of a budget whose pilots or ledger are no evidence for it."""

from collections.abc import Callable, Sequence

from planner.design.inputs import PlanInputs
from planner.evidence.ledger_evidence import LedgerEvidence
from planner.evidence.usable_runs import differences
from specs.plan import PlannedRun
from specs.run import RunSpec

_ANEW = "give the budget another name, then plan, run and audit its pilots"


def check_sealed_pilots(
    inputs: PlanInputs, runs: Sequence[PlannedRun], own: Callable[[RunSpec], RunSpec]
) -> None:
    """Refuse pilots that were planned for another budget than this file now holds, so that no target rests on them."""
    found = {difference: None for planned in runs for difference in differences(planned.run, own)}
    if found:
        what = f"the pilots in {inputs.out / 'plan.pilots.yaml'} differ from the runs that this budget gives now: "
        raise inputs.refuse("evidence", what + ", ".join(found), f"restore the budget, or {_ANEW}")


def check_usable(inputs: PlanInputs, evidence: LedgerEvidence) -> None:
    """Refuse a ledger with runs on this text of which none can be used."""
    if evidence.flags and not evidence.pilots:
        what = f"the ledger's {len(evidence.audited)} runs on this text carry no plan; the first of the reasons: "
        what += evidence.flags[0]
        raise inputs.refuse("evidence", what, _ANEW)
