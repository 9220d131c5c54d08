"""Refusals of a budget whose pilots, ledger or table are no evidence for it."""

from collections.abc import Callable, Sequence

from planner.design.inputs import PlanInputs
from planner.evidence.forecast import FittedLaws
from planner.evidence.ledger_evidence import LedgerEvidence
from planner.evidence.usable_runs import differences
from specs.budget import JoinedTable, Pilots, Runs
from specs.law import SizeKind
from specs.plan import PlannedRun
from specs.run import RunSpec
from specs.run_table.table import RunTable

_SIZES: dict[SizeKind, str] = {
    "params": "parameters",
    "block_params": "non-embedding parameters",
    "flop_per_token": "FLOP per token",
}
_SAME_BYTES = 0.02
"""Bytes per token of one text and tokenizer differ by less between its training text and its held-out text."""
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


def check_table(inputs: PlanInputs, evidence: Runs) -> None:
    """Refuse a target loss on a table of another text, and a table that is said to be of this text but is not."""
    if inputs.budget.loss is not None and not evidence.same_text:
        what = (
            "a target loss needs a law of this text, and the budget does not say that the table's text, tokenizer and "
            "held-out set are its own"
        )
        raise inputs.refuse(
            "loss", what, "give the budget in compute, or write evidence.same_text: true if they are"
        )
    _check_same_text(inputs, "evidence", evidence, "write evidence.same_text: false")


def check_joined(inputs: PlanInputs, evidence: Pilots) -> RunTable | None:
    """The table that joins the pilots, in M; None where there is none. Refused where its sizes cannot be M."""
    if inputs.table is None or evidence.also is None:
        return None
    _check_same_text(inputs, "evidence.also", evidence.also, "leave evidence.also out")
    table = inputs.table.in_flop_per_token()
    if table is None:
        what = (
            f"the table counts {_SIZES[inputs.table.size_kind]}, but the pilots' law is in FLOP per token M, which "
            "only the shape of a model tells"
        )
        write = (
            "add a column flop_per_token to the table, M = 6 N + 12 layers x width x context of N in blocks"
        )
        raise inputs.refuse("evidence.also.table", what, write)
    return table


def check_table_law(inputs: PlanInputs, fitted: FittedLaws) -> None:
    """Refuse a table whose runs give no law."""
    if fitted.reason:
        write = "add finished runs to the table, or name a law, evidence: {kind: published, law: deepseek}"
        raise inputs.refuse("evidence.table", f"the table's runs give no law: {fitted.reason}", write)


def _check_same_text(inputs: PlanInputs, field: str, named: Runs | JoinedTable, remedy: str) -> None:
    """Refuse a table of the same text whose tokens have other lengths than the corpus's."""
    ours = None if inputs.sources is None else inputs.bytes_per_token
    theirs = named.bytes_per_token
    if ours is None or theirs is None or not named.same_text:
        return
    if abs(theirs / ours - 1) > _SAME_BYTES:
        what = (
            f"the table's tokens have {theirs:.4g} bytes, and those of this budget's held-out text {ours:.4g}: text or "
            "tokenizer are not the same"
        )
        raise inputs.refuse(f"{field}.bytes_per_token", what, f"{remedy}, or correct bytes_per_token")
