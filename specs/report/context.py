"""What a page is about: a plan, perhaps its audit, perhaps earlier plans; and the unit of its losses."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from specs.document.files import DocumentError, load
from specs.evidence import EvidencePoint
from specs.humanize import Losses
from specs.law import SizeKind
from specs.plan import Forecast, Plan, PlannedRun
from specs.plan_file import load_plan
from specs.record import Audit, RunAudit


@dataclass(frozen=True)
class Case:
    """The documents of one page."""

    plan: Plan
    audit: Audit | None
    earlier: tuple[tuple[Plan, Audit], ...] = ()

    @property
    def losses(self) -> Losses:
        """How losses are shown."""
        return self.plan.losses

    @property
    def forecast(self) -> Forecast | None:
        """The sealed forecast; None where the plan refused one."""
        return self.plan.forecast if isinstance(self.plan.forecast, Forecast) else None

    @property
    def target(self) -> PlannedRun | None:
        """The target run; None in a plan of pilots."""
        return self.plan.runs[-1] if self.plan.phase == "target" else None

    @property
    def target_audit(self) -> RunAudit | None:
        """The audit of the target run."""
        return self.audit.runs[-1] if self.audit is not None and self.target is not None else None

    @property
    def verified(self) -> bool:
        """Whether the numbers of the runs are from records of our engine."""
        return self.audit is None or self.audit.verified

    @property
    def actual(self) -> float | None:
        """The target's final held-out loss, nats per token; None while it is unfinished."""
        return None if self.target_audit is None else self.target_audit.loss

    @cached_property
    def runs(self) -> tuple[tuple[PlannedRun, RunAudit | None], ...]:
        """Every run of this plan and of earlier ones, each once, earlier ones first."""
        found: dict[str, tuple[PlannedRun, RunAudit | None]] = {}
        for plan, audit in (*self.earlier, (self.plan, self.audit)):
            audits = [None] * len(plan.runs) if audit is None else audit.runs
            for planned, run in zip(plan.runs, audits, strict=True):
                found.setdefault(planned.run.fingerprint(), (planned, run))
        return tuple(found.values())

    @property
    def size_kind(self) -> SizeKind:
        """What the sizes of the points count."""
        return "flop_per_token" if self.plan.fit is None else self.plan.fit.size_kind

    @property
    def symbol(self) -> str:
        """The letter of these sizes."""
        return "M" if self.plan.fit is None else self.plan.fit.symbol

    def points(self) -> tuple[EvidencePoint, ...]:
        """The pilots: those that the fit saw, else those that the audit found."""
        return tuple(self._audited()) if self.plan.fit is None else self.plan.fit.points

    def _audited(self) -> Iterator[EvidencePoint]:
        for planned, run in self.runs:
            if planned.role == "pilot" and run is not None and run.loss is not None:
                yield EvidencePoint(
                    run=run.run,
                    budget_flop=planned.budget_flop,
                    size=float(planned.run.model.flop_per_token),
                    tokens=planned.run.tokens,
                    unique_tokens=None if self.plan.sources else self.plan.unique_tokens,
                    loss=run.loss,
                    short=False,
                )


def earlier_plans(folder: Path, plan: Plan) -> tuple[tuple[Plan, Audit], ...]:
    """The pilots of the same budget with their audit; nothing for a plan of pilots, or where they are not there.

    They are only shown beside the plan, which has its own evidence inside; so what cannot be read is left out.
    """
    pilots, audit = folder / "plan.pilots.yaml", folder / "audit.pilots.json"
    if plan.phase == "pilots" or not pilots.exists() or not audit.exists():
        return ()
    try:
        found = load_plan(pilots), load(audit, Audit)
    except DocumentError:
        return ()
    belong = found[0].budget == plan.budget and found[0].seal == found[1].seal
    return (found,) if belong else ()
