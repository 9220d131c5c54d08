"""Budget + evidence -> Plan. The whole planner on one screen; every step's arithmetic lives in the room it names.

A published law answers at once. A budget that rests on pilots gets the pilots first; when all of them are audited in
the ledger, the same call gives the target run with its forecast. The plan is sealed: its last field hashes the rest.
"""

import hashlib
import importlib.metadata
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.design import feasibility, pilot_runs
from planner.design.allocation import Laws, Surface, published_surface
from planner.design.caveats import ladder_note, notes, target_by_the_prior
from planner.design.hyperparameters import advice
from planner.design.inputs import PlanInputs
from planner.design.pilot_design import choose, site
from planner.design.run_draft import draft
from planner.design.target_run import Target, find_target, target_compute
from planner.design.target_search import Search, setting_of
from planner.performance.elastic_layouts import with_fewer
from planner.scaling import data_constrained, forecast
from planner.scaling import ledger_evidence as ledger_evidence
from specs.budget import Inference, Optimal, Pilots, Published
from specs.document.base import canonical_json
from specs.document.files import load
from specs.law import Allocation, EvidencePoint, LawFit
from specs.plan import Code, Forecast, LadderChoice, NoForecast, Plan, PlannedRun, seal_of
from specs.record import LedgerRecord


def make_plan(desk: PlanInputs) -> Plan:
    """The plan that the evidence supports now; DocumentError where there is none."""
    if isinstance(desk.budget.evidence, Published):
        return _from_published(desk)
    return _from_ledger(desk, desk.budget.evidence)


def _from_published(desk: PlanInputs) -> Plan:
    surface = None if desk.loss_law is None else published_surface(desk.loss_law)
    laws = Laws(desk.law.allocation, surface)
    target = find_target(Search(desk, laws))
    told = forecast.from_published(desk.budget, desk.law, desk.loss_law, target.planned)
    return _seal_target(desk, laws, target, told, None, ())


def _from_ledger(desk: PlanInputs, evidence: Pilots) -> Plan:
    prior = feasibility.prior_allocation(desk)
    bought = _pilots(desk, evidence, prior)
    assert desk.corpus is not None  # a budget with pilots over declared text is refused when it is read
    found = ledger_evidence.read_evidence(
        desk.ledger, desk.corpus.digest, desk.family.context, desk.budget.precision, bought.below_flop
    )
    missing = found.lacks([run.run.fingerprint() for run in bought.runs])
    if missing:
        of = f"{len(missing)} of {len(bought.runs)}"
        reason = f"{of} pilots are not audited yet: run this plan, audit it, and plan again"
        return _seal_pilots(desk, bought, NoForecast(reason=reason))
    points = ledger_evidence.points(found, desk.family.min_steps)
    feasibility.check_points(desk, points)
    minima = forecast.minima(points)
    feasibility.check_minima(desk, minima, bought.ladder)
    allocation, basis = ledger_evidence.allocation(minima, prior)
    rate = ledger_evidence.rate_check(found)
    laws = Laws(allocation, _ledger_surface(desk, points))
    multiple = 1.0 if rate is None or rate.near_optimal else rate.best_multiple
    target = find_target(Search(desk, laws, multiple))
    told = forecast.from_ledger(points, found.pilots, target.planned, desk.unique_tokens)
    fit = LawFit(
        points=points,
        profiles=tuple(ledger_evidence.profile(minimum) for minimum in minima),
        allocation=allocation,
        allocation_basis=basis,
        forms=told.forms,
        held_out_error=told.held_out_error,
        optimum=told.optimum,
        rate_check=rate,
        flags=told.flags,
    )
    return _seal_target(desk, laws, target, told.forecast, fit, found.pilots + found.rates)


@dataclass(frozen=True)
class _Pilots:
    """The pilots of a budget."""

    below_flop: float
    """The target's compute; infinite where only the ledger's law can tell it."""
    runs: tuple[PlannedRun, ...]
    ladder: LadderChoice | None
    preview: PlannedRun | None
    """The target as the prior has it; None where the pilots are sealed already."""


def _pilots(desk: PlanInputs, evidence: Pilots, prior: Allocation) -> _Pilots:
    """The pilots of a target that must be possible, as the prior has it, before they are bought. None for a loss, whose
    compute only the ledger's law can tell.

    The pilots are as they were sealed, whatever code or catalog say now, or drafted where there is no plan yet.
    """
    if desk.budget.loss is not None:
        return _Pilots(math.inf, (), None, None)
    optimal = Search(desk, Laws(prior, None)).asking(objective=Optimal(kind="optimal"))
    sealed = desk.out / "plan.pilots.yaml"
    if sealed.exists():
        there = load(sealed, Plan)
        return _Pilots(target_compute(optimal), there.runs, there.ladder, None)
    preview = find_target(optimal).planned
    compute = preview.budget_flop
    place = site(
        compute, prior, desk.hyper, desk.family, desk.vocab, desk.law.compute_low_flop, evidence.reach
    )
    choice = choose(evidence, place)
    feasibility.check_reach_of_pilots(desk, evidence, choice.ladder)
    wanted = pilot_runs.pilot_requests(
        choice.ladder, evidence.rates, desk.family, desk.vocab, prior, compute, desk.cluster.devices
    )
    runs = tuple(with_fewer(draft(setting_of(desk), wish), desk.cluster) for wish in wanted)
    return _Pilots(compute, runs, choice.document(compute), preview)


def _ledger_surface(desk: PlanInputs, points: Sequence[EvidencePoint]) -> Surface | None:
    """The loss surface that the ledger's runs choose; fitted only where the budget needs one."""
    if desk.budget.loss is None and not isinstance(desk.budget.objective, Inference):
        return None
    fitted = forecast.surface(points)
    law = data_constrained.Surface(fitted.form, tuple(fitted.params.tolist()), fitted.cost_per)
    return Surface(f"{fitted.form.name} (fitted on the ledger)", law, "flop_per_token")


def _seal_pilots(desk: PlanInputs, bought: _Pilots, told: NoForecast) -> Plan:
    preview, ladder, runs = bought.preview, bought.ladder, bought.runs
    said = [] if preview is None else [target_by_the_prior(preview, desk.law)]
    said += [] if ladder is None else [ladder_note(ladder)]
    return _seal(
        desk,
        phase="pilots",
        fit=None,
        runs=runs,
        ladder=ladder,
        forecast=told,
        notes=(*said, *notes(desk, runs)),
    )


def _seal_target(
    desk: PlanInputs,
    laws: Laws,
    target: Target,
    told: Forecast | NoForecast,
    fit: LawFit | None,
    records: Sequence[LedgerRecord],
) -> Plan:
    hypers = advice(desk, target.planned, records)
    return _seal(
        desk,
        phase="target",
        fit=fit,
        runs=(with_fewer(target.planned, desk.cluster),),
        layouts=target.layouts,
        hypers=hypers,
        forecast=told,
        notes=notes(desk, (target.planned,), laws, hypers),
    )


def _seal(desk: PlanInputs, **found: Any) -> Plan:
    """The plan of what was found, with what it rests on, under its seal."""
    unsealed = Plan.model_construct(
        kind="plan",
        budget=desk.budget,
        ledger=os.path.relpath(desk.ledger, desk.out),
        bytes_per_token=None if desk.corpus is None else desk.corpus.bytes_per_token,
        unique_tokens=desk.unique_tokens,
        law=desk.law,
        code=code(),
        seal="0" * 64,
        **found,
    )
    return Plan.model_validate_json(canonical_json(unsealed.plain() | {"seal": seal_of(unsealed)}))


def code() -> Code:
    """The version of isoplan and the digest of the sources that made the plan (specs and planner)."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted([*here.rglob("*.py"), *here.parent.joinpath("specs").rglob("*.py")]):
        digest.update(
            source.relative_to(here.parent).as_posix().encode() + b"\0" + source.read_bytes() + b"\0"
        )
    return Code(version=importlib.metadata.version("isoplan"), sha256=digest.hexdigest())
