"""A sealed plan in its folder: the plan's own file, and the runs that its fit saw beside it."""

from collections.abc import Sequence
from pathlib import Path

from specs.document.base import Spec
from specs.document.files import load, load_any
from specs.document.write import write_text, write_yaml
from specs.evidence import FILE_NAME, EvidencePoint, evidence_text, read_evidence_file
from specs.plan import Plan

_COMMENT = (
    "Sealed: editing this file breaks its seal. To change the plan, plan the budget under another name."
)


def load_plan(path: Path) -> Plan:
    """The plan in a file with its runs of evidence; DocumentError where either was changed after it was sealed."""
    return with_evidence(load(path, Plan), path)


def load_document(path: Path) -> Spec:
    """The document in a file, of the type that its `kind` names; a plan as `load_plan` gives it."""
    document = load_any(path)
    return with_evidence(document, path) if isinstance(document, Plan) else document


def with_evidence(plan: Plan, path: Path) -> Plan:
    """The plan of this file with its runs of evidence; DocumentError where these are missing or changed."""
    return plan if plan.fit is None else with_points(plan, read_evidence_file(path, plan.fit.evidence))


def with_points(plan: Plan, points: Sequence[EvidencePoint]) -> Plan:
    """The plan with these runs in its fit, if it has one."""
    if plan.fit is None:
        return plan
    return plan.model_copy(update={"fit": plan.fit.model_copy(update={"points": tuple(points)})})


def save_plan(path: Path, plan: Plan) -> None:
    """The plan's files. The plan itself comes last, so a plan that is there is whole."""
    if plan.fit is not None:
        write_text(path.parent / FILE_NAME, evidence_text(plan.fit.points))
    write_yaml(path, plan, comment=_COMMENT)
