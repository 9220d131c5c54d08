"""Budget + evidence -> Plan. The whole planner on one screen; each step's arithmetic is in the module that it calls.

A budget on a published law gets the target run at once, and so does one on a table of runs, with its forecast. A budget
on pilots gets the pilots first; once all of them are audited in the ledger, the same call gives the target run with its
forecast. A plan is sealed: its last field hashes the rest.
"""

import hashlib
import importlib.metadata
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from planner.design import evidence_checks, feasibility, pilot_runs
from planner.design.allocation import (
    Laws,
    LossSurface,
    NoOptimumError,
    cost_of_sizes,
    published_loss_surface,
    split_near,
)
from planner.design.caveats import ladder_note, notes, prior_target_note
from planner.design.hyperparameters import advice
from planner.design.inputs import PlanInputs
from planner.design.pilot_design import choose_ladder, pilot_setting
from planner.design.run_draft import law_lr, same_size_run
from planner.design.target_run import Target, find_target, target_compute
from planner.design.target_search import TargetSearch, run_settings
from planner.evidence import forecast, ledger_evidence
from planner.performance.elastic_layouts import with_fallback_layouts
from planner.scaling.isoflop import Minimum
from planner.scaling.lr_and_batch import RateGrid, grid_of
from planner.table_fit.analysis import table_source
from planner.table_fit.plan_evidence import joined, table_evidence, table_flags, table_rates
from specs.budget import Optimal, Pilots, Published, Runs
from specs.document.base import canonical_json
from specs.evidence import evidence_file
from specs.law import Allocation, Interval, LawFit
from specs.plan import Code, Forecast, LadderChoice, NoForecast, Plan, PlannedRun, seal_of
from specs.plan_file import load_plan, with_points


def make_plan(inputs: PlanInputs) -> Plan:
    """The plan that the evidence supports now; DocumentError where it supports none."""
    match inputs.budget.evidence:
        case Published():
            return _plan_from_published_law(inputs)
        case Runs() as runs:
            return _plan_from_table(inputs, runs)
        case Pilots() as pilots:
            return _plan_from_ledger(inputs, pilots)


def _plan_from_published_law(inputs: PlanInputs) -> Plan:
    surface = None if inputs.loss_law is None else published_loss_surface(inputs.loss_law, inputs.unique_text)
    laws = Laws(inputs.law.allocation, surface)
    target = find_target(TargetSearch(inputs, laws))
    no_forecast = forecast.from_published(
        inputs.budget, inputs.law, inputs.loss_law, target.planned, inputs.unique_text
    )
    return _target_plan(inputs, laws, target, no_forecast, None, None)


def _plan_from_table(inputs: PlanInputs, evidence: Runs) -> Plan:
    table = inputs.table
    assert table is not None  # loading reads it
    evidence_checks.check_table(inputs, evidence)
    cost = cost_of_sizes(inputs.family, inputs.vocab, table.size_kind)
    fitted = forecast.fit_laws(table_evidence(table), table.size_kind, cost)
    evidence_checks.check_table_law(inputs, fitted)
    surface = LossSurface("of the table's runs", table.size_kind, fitted.log_losses, inputs.unique_text, cost)
    laws = Laws(None, surface)
    target = find_target(TargetSearch(inputs, laws))
    result = forecast.from_laws(fitted, target.planned, inputs.unique_text)
    fit = LawFit(
        size_kind=table.size_kind,
        evidence=evidence_file(fitted.points),
        points=fitted.points,
        profiles=tuple(ledger_evidence.profile(minimum) for minimum in fitted.minima),
        allocation=_split(inputs, surface, target.planned.budget_flop),
        allocation_basis=f"the best split by the forecast's laws, among shapes of the family {inputs.family.name}, at "
        "the target's compute and a decade below",
        forms=result.forms,
        held_out_error=result.held_out_error,
        optimum=result.optimum,
        rate_check=None,
        flags=(*table_flags(table, fitted), *result.flags),
    )
    told = result.forecast if evidence.same_text else forecast.of_another_text(result.forecast)
    return _target_plan(inputs, laws, target, told, fit, table_rates(table, cost))


def _split(inputs: PlanInputs, surface: LossSurface, compute_flop: float) -> Allocation:
    try:
        return split_near(surface, compute_flop)
    except NoOptimumError as error:
        raise feasibility.no_optimum_error(inputs, str(error)) from None


def _plan_from_ledger(inputs: PlanInputs, evidence: Pilots) -> Plan:
    table = evidence_checks.check_joined(inputs, evidence)
    prior = feasibility.prior_allocation(inputs)
    pilots = _pilots(inputs, evidence, prior)
    digest = inputs.data.digest
    assert digest is not None  # loading refuses a budget with pilots on declared text
    own = partial(same_size_run, run_settings(inputs))
    evidence_checks.check_sealed_pilots(inputs, pilots.runs, own)
    audited = ledger_evidence.read_evidence(inputs.ledger, digest, own, pilots.below_flop)
    missing = audited.missing([run.run.fingerprint() for run in pilots.runs])
    if missing:
        of = f"{len(missing)} of {len(pilots.runs)}"
        reason = f"{of} pilots are not audited yet; run and audit this plan, then plan the budget again"
        return _pilot_plan(inputs, pilots, NoForecast(reason=reason))
    evidence_checks.check_usable(inputs, audited)
    points = ledger_evidence.points(audited, inputs.family.min_steps, inputs.unique_text)
    others, join_flags = ((), ()) if table is None else joined(points, table, pilots.below_flop)
    fitted = forecast.fit_laws((*points, *others))
    feasibility.check_evidence(inputs, fitted.reason)
    minima = fitted.minima
    feasibility.check_minima(inputs, minima, pilots.ladder)
    rate = ledger_evidence.rate_check(audited, partial(law_lr, inputs.hyper))
    allocation, basis, surface = _ledger_laws(inputs, fitted, minima, pilots.below_flop, prior)
    laws = Laws(allocation, surface)
    multiple = 1.0 if rate is None or rate.near_optimal else rate.best_multiple
    target = find_target(TargetSearch(inputs, laws, multiple))
    result = forecast.from_laws(fitted, target.planned, inputs.unique_text, audited.pilots)
    fit = LawFit(
        size_kind=fitted.size_kind,
        evidence=evidence_file(fitted.points),
        points=fitted.points,
        profiles=tuple(ledger_evidence.profile(minimum) for minimum in minima),
        allocation=allocation,
        allocation_basis=basis,
        forms=result.forms,
        held_out_error=result.held_out_error,
        optimum=result.optimum,
        rate_check=rate,
        flags=(
            *audited.flags,
            *join_flags,
            *ledger_evidence.rate_flags(rate),
            *forecast.ledger_flags(fitted),
            *result.flags,
        ),
    )
    return _target_plan(inputs, laws, target, result.forecast, fit, grid_of(audited.pilots + audited.rates))


@dataclass(frozen=True)
class _Pilots:
    """The pilots of a budget."""

    below_flop: float
    """Compute of the target; infinite for a target loss, whose compute only the ledger's law gives."""
    runs: tuple[PlannedRun, ...]
    ladder: LadderChoice | None
    preview: PlannedRun | None
    """The target run by the prior law; None where the pilots are sealed already."""


def _pilots(inputs: PlanInputs, evidence: Pilots, prior: Allocation) -> _Pilots:
    """The pilots of a budget: as sealed in plan.pilots.yaml, whatever code or catalog are now, or newly drafted.

    New pilots are drafted only if the prior law gives a feasible target. A budget in loss has no pilots of its own.
    """
    if inputs.budget.loss is not None:
        return _Pilots(math.inf, (), None, None)
    optimal = TargetSearch(inputs, Laws(prior, None)).with_budget(objective=Optimal(kind="optimal"))
    sealed = inputs.out / "plan.pilots.yaml"
    if sealed.exists():
        plan = load_plan(sealed)
        return _Pilots(target_compute(optimal), plan.runs, plan.ladder, None)
    preview = find_target(optimal).planned
    compute = preview.budget_flop
    setting = pilot_setting(
        compute, prior, inputs.hyper, inputs.family, inputs.rows, inputs.law.compute_low_flop, evidence.reach
    )
    design = choose_ladder(evidence, setting)
    feasibility.check_pilot_reach(inputs, evidence, design.ladder)
    requests = pilot_runs.pilot_requests(
        design.ladder, evidence.rates, inputs.family, inputs.rows, prior, compute, inputs.cluster.devices
    )
    runs = tuple(
        with_fallback_layouts(feasibility.draft_pilot(inputs, request), inputs.cluster)
        for request in requests
    )
    return _Pilots(compute, runs, design.to_document(compute), preview)


def _ledger_laws(
    inputs: PlanInputs,
    fitted: forecast.FittedLaws,
    minima: Sequence[Minimum],
    target_flop: float,
    prior: Allocation,
) -> tuple[Allocation, str, LossSurface | None]:
    """Allocation and loss surface by the laws that the forecast uses too, and where the allocation comes from."""
    unique = inputs.unique_text
    # A target loss has no compute yet: a decade beyond the runs stands for it.
    flop = (
        target_flop if math.isfinite(target_flop) else 10 * max(point.budget_flop for point in fitted.points)
    )

    def size_at(compute: float) -> Interval | None:
        split = fitted.best_split(compute, unique)
        return None if split is None else split["size"]

    allocation, basis = ledger_evidence.allocation(minima, prior, flop, size_at)
    surface = None
    if fitted.mixture is not None:
        surface = LossSurface("of the ledger's runs", "flop_per_token", fitted.log_losses, unique)
    return allocation, basis, surface


def _pilot_plan(inputs: PlanInputs, pilots: _Pilots, no_forecast: NoForecast) -> Plan:
    preview, ladder, runs = pilots.preview, pilots.ladder, pilots.runs
    design_notes = [] if preview is None else [prior_target_note(preview, inputs.law)]
    design_notes += [] if ladder is None else [ladder_note(ladder)]
    return _seal(
        inputs,
        phase="pilots",
        fit=None,
        runs=runs,
        ladder=ladder,
        forecast=no_forecast,
        notes=(*design_notes, *notes(inputs, runs)),
    )


def _target_plan(
    inputs: PlanInputs,
    laws: Laws,
    target: Target,
    loss_forecast: Forecast | NoForecast,
    fit: LawFit | None,
    own_rates: RateGrid | None,
) -> Plan:
    hypers = advice(inputs, target.planned, own_rates)
    return _seal(
        inputs,
        phase="target",
        fit=fit,
        runs=(with_fallback_layouts(target.planned, inputs.cluster),),
        layouts=target.layouts,
        hypers=hypers,
        table=None if inputs.table is None else table_source(inputs.table),
        forecast=loss_forecast,
        notes=notes(inputs, (target.planned,), laws, hypers),
    )


def _seal(inputs: PlanInputs, **fields: Any) -> Plan:
    """The sealed plan: these fields, and what every plan of these inputs has in common."""
    feasibility.check_host_memory(inputs, fields["runs"])
    unsealed = Plan.model_construct(
        kind="plan",
        budget=inputs.budget,
        ledger=os.path.relpath(inputs.ledger, inputs.out),
        bytes_per_token=inputs.bytes_per_token,
        unique_tokens=inputs.unique_tokens,
        sources=inputs.source_texts,
        curation=inputs.curation,
        vocab=inputs.vocab,
        law=inputs.law,
        code=code(),
        seal="0" * 64,
        **fields,
    )
    sealed = Plan.model_validate_json(canonical_json(unsealed.plain() | {"seal": seal_of(unsealed)}))
    return sealed if unsealed.fit is None else with_points(sealed, unsealed.fit.points)


def code() -> Code:
    """The version of isoplan and the digest of the sources that made the plan (specs and planner)."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted([*here.rglob("*.py"), *here.parent.joinpath("specs").rglob("*.py")]):
        digest.update(
            source.relative_to(here.parent).as_posix().encode() + b"\0" + source.read_bytes() + b"\0"
        )
    return Code(version=importlib.metadata.version("isoplan"), sha256=digest.hexdigest())
