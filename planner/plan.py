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
from planner.design.caveats import ladder_note, notes, prior_target_note
from planner.design.hyperparameters import advice
from planner.design.inputs import PlanInputs
from planner.design.pilot_design import choose_ladder, pilot_setting
from planner.design.run_draft import draft
from planner.design.target_run import Target, find_target, target_compute
from planner.design.target_search import TargetSearch, run_settings
from planner.performance.elastic_layouts import with_fallback_layouts
from planner.scaling import data_constrained, forecast
from planner.scaling import ledger_evidence as ledger_evidence
from specs.budget import Inference, Optimal, Pilots, Published
from specs.document.base import canonical_json
from specs.document.files import load
from specs.law import Allocation, EvidencePoint, LawFit
from specs.plan import Code, Forecast, LadderChoice, NoForecast, Plan, PlannedRun, seal_of
from specs.record import LedgerRecord


def make_plan(inputs: PlanInputs) -> Plan:
    """The plan that the evidence supports now; DocumentError where there is none."""
    if isinstance(inputs.budget.evidence, Published):
        return _plan_from_published_law(inputs)
    return _plan_from_ledger(inputs, inputs.budget.evidence)


def _plan_from_published_law(inputs: PlanInputs) -> Plan:
    surface = None if inputs.loss_law is None else published_surface(inputs.loss_law)
    laws = Laws(inputs.law.allocation, surface)
    target = find_target(TargetSearch(inputs, laws))
    told = forecast.from_published(inputs.budget, inputs.law, inputs.loss_law, target.planned)
    return _target_plan(inputs, laws, target, told, None, ())


def _plan_from_ledger(inputs: PlanInputs, evidence: Pilots) -> Plan:
    prior = feasibility.prior_allocation(inputs)
    bought = _pilots(inputs, evidence, prior)
    assert inputs.corpus is not None  # a budget with pilots over declared text is refused when it is read
    found = ledger_evidence.read_evidence(
        inputs.ledger, inputs.corpus.digest, inputs.family.context, inputs.budget.precision, bought.below_flop
    )
    missing = found.lacks([run.run.fingerprint() for run in bought.runs])
    if missing:
        of = f"{len(missing)} of {len(bought.runs)}"
        reason = f"{of} pilots are not audited yet: run this plan, audit it, and plan again"
        return _pilot_plan(inputs, bought, NoForecast(reason=reason))
    points = ledger_evidence.points(found, inputs.family.min_steps)
    feasibility.check_points(inputs, points)
    minima = forecast.minima(points)
    feasibility.check_minima(inputs, minima, bought.ladder)
    allocation, basis = ledger_evidence.allocation(minima, prior)
    rate = ledger_evidence.rate_check(found)
    laws = Laws(allocation, _ledger_loss_surface(inputs, points))
    multiple = 1.0 if rate is None or rate.near_optimal else rate.best_multiple
    target = find_target(TargetSearch(inputs, laws, multiple))
    told = forecast.from_ledger(points, found.pilots, target.planned, inputs.unique_tokens)
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
    return _target_plan(inputs, laws, target, told.forecast, fit, found.pilots + found.rates)


@dataclass(frozen=True)
class _Pilots:
    """The pilots of a budget."""

    below_flop: float
    """The target's compute; infinite where only the ledger's law can tell it."""
    runs: tuple[PlannedRun, ...]
    ladder: LadderChoice | None
    preview: PlannedRun | None
    """The target as the prior has it; None where the pilots are sealed already."""


def _pilots(inputs: PlanInputs, evidence: Pilots, prior: Allocation) -> _Pilots:
    """The pilots of a target that must be possible, as the prior has it, before they are bought. None for a loss, whose
    compute only the ledger's law can tell.

    The pilots are as they were sealed, whatever code or catalog say now, or drafted where there is no plan yet.
    """
    if inputs.budget.loss is not None:
        return _Pilots(math.inf, (), None, None)
    optimal = TargetSearch(inputs, Laws(prior, None)).asking(objective=Optimal(kind="optimal"))
    sealed = inputs.out / "plan.pilots.yaml"
    if sealed.exists():
        there = load(sealed, Plan)
        return _Pilots(target_compute(optimal), there.runs, there.ladder, None)
    preview = find_target(optimal).planned
    compute = preview.budget_flop
    place = pilot_setting(
        compute, prior, inputs.hyper, inputs.family, inputs.vocab, inputs.law.compute_low_flop, evidence.reach
    )
    choice = choose_ladder(evidence, place)
    feasibility.check_pilot_reach(inputs, evidence, choice.ladder)
    wanted = pilot_runs.pilot_requests(
        choice.ladder, evidence.rates, inputs.family, inputs.vocab, prior, compute, inputs.cluster.devices
    )
    runs = tuple(
        with_fallback_layouts(draft(run_settings(inputs), request), inputs.cluster) for request in wanted
    )
    return _Pilots(compute, runs, choice.document(compute), preview)


def _ledger_loss_surface(inputs: PlanInputs, points: Sequence[EvidencePoint]) -> Surface | None:
    """The loss surface that the ledger's runs choose; fitted only where the budget needs one."""
    if inputs.budget.loss is None and not isinstance(inputs.budget.objective, Inference):
        return None
    fitted = forecast.best_loss_fit(points)
    law = data_constrained.Surface(fitted.form, tuple(fitted.params.tolist()), fitted.cost_per)
    return Surface(f"{fitted.form.name} (fitted on the ledger)", law, "flop_per_token")


def _pilot_plan(inputs: PlanInputs, bought: _Pilots, told: NoForecast) -> Plan:
    preview, ladder, runs = bought.preview, bought.ladder, bought.runs
    said = [] if preview is None else [prior_target_note(preview, inputs.law)]
    said += [] if ladder is None else [ladder_note(ladder)]
    return _seal(
        inputs,
        phase="pilots",
        fit=None,
        runs=runs,
        ladder=ladder,
        forecast=told,
        notes=(*said, *notes(inputs, runs)),
    )


def _target_plan(
    inputs: PlanInputs,
    laws: Laws,
    target: Target,
    told: Forecast | NoForecast,
    fit: LawFit | None,
    records: Sequence[LedgerRecord],
) -> Plan:
    hypers = advice(inputs, target.planned, records)
    return _seal(
        inputs,
        phase="target",
        fit=fit,
        runs=(with_fallback_layouts(target.planned, inputs.cluster),),
        layouts=target.layouts,
        hypers=hypers,
        forecast=told,
        notes=notes(inputs, (target.planned,), laws, hypers),
    )


def _seal(inputs: PlanInputs, **found: Any) -> Plan:
    """The plan of what was found, with what it rests on, under its seal."""
    unsealed = Plan.model_construct(
        kind="plan",
        budget=inputs.budget,
        ledger=os.path.relpath(inputs.ledger, inputs.out),
        bytes_per_token=None if inputs.corpus is None else inputs.corpus.bytes_per_token,
        unique_tokens=inputs.unique_tokens,
        law=inputs.law,
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
