"""What a page is about: a plan, perhaps its audit, perhaps earlier plans; and how its losses are said."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from specs.law import EvidencePoint
from specs.plan import Forecast, Plan, PlannedRun
from specs.record import Audit, RunAudit


@dataclass(frozen=True)
class Losses:
    """Losses as the page shows them: bits per byte where the text is at hand, else nats per token."""

    bytes_per_token: float | None

    @property
    def unit(self) -> str:
        """What `of` gives."""
        return "nats per token" if self.bytes_per_token is None else "bits per byte"

    def of(self, nats: float) -> float:
        """A loss in the page's unit."""
        return nats if self.bytes_per_token is None else nats / (self.bytes_per_token * math.log(2))

    @property
    def heads(self) -> tuple[str, ...]:
        """Heads of the columns of a table that `cells` fills."""
        return ("nats/token",) if self.bytes_per_token is None else (self.unit, "nats/token")

    def cells(self, nats: float | None) -> tuple[str, ...]:
        """A loss in the page's unit and in nats per token; dashes where there is none."""
        if nats is None:
            return ("–",) * len(self.heads)
        return (f"{nats:.4f}",) if self.bytes_per_token is None else (self.say(nats), f"{nats:.4f}")

    def say(self, nats: float) -> str:
        """A loss in the page's unit, as text without it."""
        return f"{self.of(nats):.3f}"


@dataclass(frozen=True)
class Case:
    """The documents of one page."""

    plan: Plan
    audit: Audit | None
    earlier: tuple[tuple[Plan, Audit], ...] = ()

    @property
    def losses(self) -> Losses:
        """How losses are shown."""
        return Losses(self.plan.bytes_per_token)

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
        """What became of the target so far."""
        return self.audit.runs[-1] if self.audit is not None and self.target is not None else None

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

    def points(self) -> tuple[EvidencePoint, ...]:
        """The pilots: those that the fit saw, else those that the audit found."""
        return tuple(self._audited()) if self.plan.fit is None else self.plan.fit.points

    def _audited(self) -> Iterator[EvidencePoint]:
        for planned, run in self.runs:
            if planned.role == "pilot" and run is not None and run.loss is not None:
                yield EvidencePoint(
                    run=run.run,
                    budget_flop=planned.budget_flop,
                    flop_per_token=float(planned.run.model.flop_per_token),
                    tokens=planned.run.tokens,
                    loss=run.loss,
                    short=False,
                )
