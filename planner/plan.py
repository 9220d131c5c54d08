"""Budget + evidence -> Plan. The whole planner on one screen; every step's arithmetic lives in the room it names.

A published law answers at once. A budget that rests on pilots gets the pilots first; when all of them are audited in
the ledger, the same call gives the target run with its forecast. The plan is sealed: its last field hashes the rest.
"""

import hashlib
import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from planner import evidence as ledger_evidence
from planner import forecast, pilots
from planner.draft import EVALUATIONS, Setting, Wish, draft, peak_flop_per_s
from planner.layouts import NoLayoutError
from planner.shape import shape_for, sizes_of_family
from specs.base import canonical_json
from specs.budget import Budget, Pilots, Published
from specs.cluster import Cluster
from specs.data import Corpus, CorpusRef, DeclaredText
from specs.files import DocumentError, from_catalog, load, locate
from specs.law import Allocation, Family, LawFit, PublishedLaw
from specs.plan import Code, Forecast, NoForecast, Plan, PlannedRun, seal_of

MOST_FLOP = 1e30
"""Larger budgets are slips of the pen: a thousand H100s at their peak need some thirty thousand years for it."""


@dataclass(frozen=True)
class Desk:
    """What lies on the planner's desk: the budget with where it came from, and everything it names."""

    budget: Budget
    path: Path
    """The budget's file."""
    out: Path
    """Folder of the plan."""
    law: PublishedLaw
    family: Family
    cluster: Cluster
    corpus: Corpus | None
    """The built corpus; None where the text is only declared."""

    @property
    def ledger(self) -> Path:
        """The ledger beside the budget."""
        return self.path.parent / self.budget.ledger

    def refuse(self, field: str, what: str, write: str) -> DocumentError:
        """A refusal that points at a field of the budget."""
        return locate(self.path, field, what, write)


def lay_out(path: Path, out: Path, corpora: Path) -> Desk:
    """Load a budget and all that it names; DocumentError where something is missing."""
    budget = load(path, Budget)
    name = budget.evidence.law if isinstance(budget.evidence, Published) else budget.evidence.prior
    return Desk(
        budget=budget,
        path=path,
        out=out,
        law=from_catalog(PublishedLaw, name, path),
        family=from_catalog(Family, budget.family, path),
        cluster=_cluster(budget, path),
        corpus=_corpus(budget, path, corpora),
    )


def make_plan(desk: Desk) -> Plan:
    """The plan that the evidence supports now; DocumentError where there is none."""
    try:
        if isinstance(desk.budget.evidence, Published):
            return _from_published(desk, desk.budget.evidence)
        return _from_ledger(desk, desk.budget.evidence)
    except NoLayoutError as error:
        raise desk.refuse("cluster", str(error), "name a larger cluster, or give a smaller budget") from error


def _from_published(desk: Desk, evidence: Published) -> Plan:
    target = _target(desk, _allocation(desk), 1.0)
    loss = None if evidence.loss is None else from_catalog(PublishedLaw, evidence.loss, desk.path)
    return _seal(
        desk, "target", (target,), forecast.from_published(desk.budget, desk.law, loss, target), None, ()
    )


def _from_ledger(desk: Desk, evidence: Pilots) -> Plan:
    planned = _pilot_runs(desk, evidence)
    compute = target_compute(desk)
    assert desk.corpus is not None  # a budget with pilots over declared text is refused when it is read
    found = ledger_evidence.read_evidence(
        desk.ledger, desk.corpus.digest, desk.family.context, desk.budget.precision, compute
    )
    missing = found.lacks([run.run.fingerprint() for run in planned])
    if missing:
        reason = f"{len(missing)} of {len(planned)} pilots are not audited yet: run this plan, audit it, and plan again"
        return _seal(desk, "pilots", planned, NoForecast(reason=reason), None, ())
    points = ledger_evidence.points(found, desk.family.min_steps)
    minima = forecast.minima(points)
    allocation, basis = ledger_evidence.allocation(minima, _allocation(desk))
    rate = ledger_evidence.rate_check(found)
    target = _target(desk, allocation, 1.0 if rate is None or rate.near_optimal else rate.best_multiple)
    told = forecast.from_ledger(points, found.pilots, target)
    fit = LawFit(
        points=points,
        profiles=tuple(ledger_evidence.profile(minimum) for minimum in minima),
        allocation=allocation,
        allocation_basis=basis,
        forms=told.forms,
        rate_check=rate,
        flags=told.flags,
    )
    return _seal(desk, "target", (target,), told.forecast, fit, ())


def target_compute(desk: Desk) -> float:
    """C of the target run: given, or what hours or money buy. DocumentError where no run could have it."""
    budget = desk.budget
    field = next(name for name in ("compute", "device_hours", "money") if getattr(budget, name) is not None)
    bought = _bought_flop(desk)
    _check_buys_a_run(desk, field, bought)
    return bought if budget.compute is not None else _counted(desk, bought)


def _bought_flop(desk: Desk) -> float:
    """FLOP that the budget buys; for hours and money at the cluster's price and expected utilisation."""
    budget, cluster = desk.budget, desk.cluster
    if budget.compute is not None:
        return budget.compute
    hours = budget.device_hours
    if budget.money is not None:
        if cluster.price is None:
            raise desk.refuse(
                "money", f"the cluster {cluster.name} has no price", "give compute or device_hours instead"
            )
        hours = budget.money / cluster.price
    assert hours is not None  # the budget's validator lets exactly one currency through
    return hours * 3600 * peak_flop_per_s(cluster, budget.precision) * cluster.model_flop_utilisation


def _counted(desk: Desk, bought: float) -> float:
    """C of what hours and money buy.

    They buy MFU-counted FLOP (6 N + causal attention + head); the law counts M. Their ratio depends on the shape, so it
    is applied a few times until it settles.
    """
    compute = bought
    for _ in range(5):
        wanted = _allocation(desk).flop_per_token.at(compute_flop=compute)
        shape = shape_for(desk.family, desk.budget.data.vocab, wanted)
        compute = bought * shape.flop_per_token / shape.mfu_flop_per_token
    return compute


def _check_buys_a_run(desk: Desk, field: str, flop: float) -> None:
    """Refuse what no run could spend: less than the shortest run of the smallest shape, more than anybody has."""
    smallest = sizes_of_family(desk.family, desk.budget.data.vocab, 0.0)[0]
    least = float(smallest.flop_per_token) * smallest.context * EVALUATIONS
    if flop < least:
        raise desk.refuse(
            field,
            f"this buys {flop:.3g} FLOP, and the shortest run of the smallest {desk.family.name} shape "
            f"takes {least:.3g}",
            "give a larger budget, or name a family of smaller shapes",
        )
    if flop > MOST_FLOP:
        raise desk.refuse(
            field, f"this buys {flop:.3g} FLOP, and plans end at {MOST_FLOP:g}", "give a smaller budget"
        )


def _pilot_runs(desk: Desk, evidence: Pilots) -> tuple[PlannedRun, ...]:
    """The pilots: as they were sealed, whatever code or catalog say now, or drafted where there is no plan yet."""
    budget, sealed = desk.budget, desk.out / "plan.pilots.yaml"
    if sealed.exists():
        return load(sealed, Plan).runs
    wanted = pilots.wishes(
        evidence,
        desk.family,
        budget.data.vocab,
        _allocation(desk),
        target_compute(desk),
        desk.cluster.devices,
    )
    return tuple(draft(_setting(desk), wish) for wish in wanted)


def _target(desk: Desk, allocation: Allocation, rate_multiple: float) -> PlannedRun:
    compute = target_compute(desk)
    shape = shape_for(desk.family, desk.budget.data.vocab, allocation.flop_per_token.at(compute_flop=compute))
    title = f"{compute:.1e} FLOP, width {shape.width}, {shape.layers} layers"
    planned = draft(
        _setting(desk), Wish("target", title, compute, shape, desk.cluster.devices, rate_multiple)
    )
    if desk.budget.deadline is not None and planned.cost.hours * 3600 > desk.budget.deadline:
        hours = planned.cost.hours
        raise desk.refuse(
            "deadline", f"the target run takes {hours:.4g} h", "allow more time, or name a larger cluster"
        )
    return planned


def _allocation(desk: Desk) -> Allocation:
    if desk.law.allocation is None:
        named = "evidence.law" if isinstance(desk.budget.evidence, Published) else "evidence.prior"
        raise desk.refuse(
            named, f"the law {desk.law.name} has no allocation", "name one that has, like deepseek"
        )
    return desk.law.allocation


def _setting(desk: Desk) -> Setting:
    if desk.law.hyper is None:
        what = f"the law {desk.law.name} has no learning rate and batch size"
        raise desk.refuse("evidence", what, "name one that has, like deepseek")
    return Setting(
        budget=desk.budget,
        family=desk.family,
        cluster=desk.cluster,
        hyper=desk.law.hyper,
        data=CorpusRef(
            corpus=desk.budget.data.fingerprint(),
            digest=None if desk.corpus is None else desk.corpus.digest,
        ),
        vocab=desk.budget.data.vocab,
    )


def _seal(
    desk: Desk,
    phase: Literal["pilots", "target"],
    runs: tuple[PlannedRun, ...],
    told: Forecast | NoForecast,
    fit: LawFit | None,
    notes: tuple[str, ...],
) -> Plan:
    unsealed = Plan.model_construct(
        kind="plan",
        phase=phase,
        budget=desk.budget,
        ledger=os.path.relpath(desk.ledger, desk.out),
        bytes_per_token=None if desk.corpus is None else desk.corpus.bytes_per_token,
        unique_tokens=unique_tokens(desk),
        law=desk.law,
        fit=fit,
        runs=runs,
        forecast=told,
        notes=(*notes, *_notes(desk, runs)),
        code=code(),
        seal="0" * 64,
    )
    return Plan.model_validate_json(canonical_json(unsealed.plain() | {"seal": seal_of(unsealed)}))


def unique_tokens(desk: Desk) -> int:
    """Training tokens that exist: the built corpus's, or the declared ones."""
    if desk.corpus is not None:
        return desk.corpus.train.tokens
    assert isinstance(desk.budget.data.text, DeclaredText)  # only declared text has no corpus
    return desk.budget.data.text.unique


def _notes(desk: Desk, runs: tuple[PlannedRun, ...]) -> tuple[str, ...]:
    found = []
    top, low, high = runs[-1].budget_flop, desk.law.compute_low_flop, desk.law.compute_high_flop
    if not low <= top <= high and isinstance(desk.budget.evidence, Published):
        found.append(
            f"the law {desk.law.name} was fitted on {low:.1e} to {high:.1e} FLOP; {top:.1e} is an extrapolation"
        )
    for planned in runs:
        epochs = planned.run.tokens / unique_tokens(desk)
        if epochs > 1:
            found.append(
                f"{planned.title}: {epochs:.2f} epochs over the unique tokens, repeats not discounted"
            )
    short = [planned.title for planned in runs if planned.run.optim.steps < desk.family.min_steps]
    if short:
        found.append(f"under {desk.family.min_steps} steps, so that their losses scatter: {'; '.join(short)}")
    return tuple(found)


def code() -> Code:
    """The version of isoplan and the digest of the sources that made the plan (specs and planner)."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted([*here.rglob("*.py"), *here.parent.joinpath("specs").rglob("*.py")]):
        digest.update(
            source.relative_to(here.parent).as_posix().encode() + b"\0" + source.read_bytes() + b"\0"
        )
    return Code(version=importlib.metadata.version("isoplan"), sha256=digest.hexdigest())


def _cluster(budget: Budget, path: Path) -> Cluster:
    """The cluster from the catalog, or from a file beside the budget."""
    if not budget.cluster.endswith((".yaml", ".yml", ".json")):
        return from_catalog(Cluster, budget.cluster, path)
    beside = path.parent / budget.cluster
    if not beside.exists():
        write = "give its path from this budget's folder, or the name of a cluster in the catalog"
        raise locate(path, "cluster", f"there is no file {beside}", write)
    return load(beside, Cluster)


def _corpus(budget: Budget, path: Path, corpora: Path) -> Corpus | None:
    if isinstance(budget.data.text, DeclaredText):
        return None
    manifest = corpora / budget.data.fingerprint() / "manifest.json"
    if not manifest.exists():
        raise locate(
            path, "data", f"the corpus is not built ({manifest} is missing)", f"run: isoplan data {path}"
        )
    return load(manifest, Corpus)
