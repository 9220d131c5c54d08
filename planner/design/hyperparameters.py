"""Learning rate and batch size by every published law near the target's compute, side by side.

Published laws disagree by factors, and each holds only for the kind of batch that it was fitted with: one that grows
with compute (DeepSeek LLM, Eq. 1) or with data (Step Law, Eq. 1). At a fixed batch the learning rate falls with the
tokens (Bjorck et al., arXiv 2409.19913), the opposite of Step Law. So a plan names its law and the law's regime.
"""

from collections.abc import Iterator, Sequence

from planner.design.inputs import PlanInputs
from planner.design.run_draft import law_variables
from planner.scaling.lr_and_batch import RateGrid, fit_rates
from specs.budget import Runs
from specs.document.files import catalog_names, from_catalog
from specs.formatting import near_optimal
from specs.humanize import count
from specs.law import Hyper, PublishedLaw
from specs.plan import HyperAdvice, PlannedRun

MAX_EXTRAPOLATION = 1e4
"""A law is shown up to this many times outside the compute that it was fitted on."""
DISAGREEMENT_RATIO = 1.25
"""Ratio of two laws' answers from which a note reports the disagreement."""
OWN_LAWS = ("ledger", "table")
"""Names, among the laws, of the fit of the ledger's own runs and of the table's."""


def advice(inputs: PlanInputs, planned: PlannedRun, own: RateGrid | None = None) -> tuple[HyperAdvice, ...]:
    """Each law's learning rate and batch for a run: the law that the plan follows first, the fit of `own` runs last.

    The ledger or the table has a fit where its runs span learning rates around the best
    (`planner.scaling.lr_and_batch`).
    """
    others = (name for name in catalog_names(PublishedLaw) if name != inputs.hyper_law.name)
    laws = [inputs.hyper_law, *(from_catalog(PublishedLaw, name, inputs.path) for name in others)]
    compute = planned.run.compute_flop
    published = tuple(
        _advice(law.name, law.hyper, planned, law is inputs.hyper_law)
        for law in laws
        if law.hyper is not None
        and (
            law is inputs.hyper_law
            or law.compute_low_flop / MAX_EXTRAPOLATION
            <= compute
            <= law.compute_high_flop * MAX_EXTRAPOLATION
        )
    )
    name = OWN_LAWS[isinstance(inputs.budget.evidence, Runs)]
    return published if own is None else (*published, *_own_advice(name, own, planned))


def _own_advice(name: str, grid: RateGrid, planned: PlannedRun) -> Iterator[HyperAdvice]:
    """The own runs' fit, where they allow one."""
    try:
        law = fit_rates(grid)
    except ValueError:
        return
    at = law_variables(planned.run.model, planned.budget_flop)
    band = law.band(at["flop_per_token"], at["tokens"])
    own = _advice(name, law.hyper(planned.run.batch_tokens), planned, False)
    yield own.model_copy(update={"near_optimal_lr": band})


def _advice(law: str, hyper: Hyper, planned: PlannedRun, used: bool) -> HyperAdvice:
    at = law_variables(planned.run.model, planned.budget_flop)
    return HyperAdvice(
        law=law,
        hyper=hyper,
        peak_lr=hyper.peak_lr.at(**at),
        batch_tokens=hyper.batch_tokens.at(**at),
        used=used,
    )


def own_rate_note(hypers: Sequence[HyperAdvice], planned: PlannedRun) -> str:
    """Whether the run's learning rate is near-optimal by the ledger's or table's own runs; empty where they have no
    fit."""
    for own in hypers:
        if own.near_optimal_lr is not None:
            low, high = own.near_optimal_lr
            best, rate = f"{own.peak_lr:.3g}{near_optimal(own)}", planned.run.optim.peak_lr
            where = "inside" if low <= rate <= high else "outside"
            return (
                f"the {own.law}'s runs have their best learning rate at {best}; the plan's learning rate {rate:.3g} is "
                f"{where} that range"
            )
    return ""


def disagreement_note(hypers: tuple[HyperAdvice, ...]) -> str:
    """A sentence on how the laws disagree; empty where they agree."""
    rates, batches = [one.peak_lr for one in hypers], [one.batch_tokens for one in hypers]
    if max(rates) / min(rates) < DISAGREEMENT_RATIO and max(batches) / min(batches) < DISAGREEMENT_RATIO:
        return ""
    laws = "; ".join(
        f"{one.law} {one.peak_lr:.3g}{near_optimal(one)} with {count(one.batch_tokens)} tokens a batch "
        f"({one.hyper.regime})"
        for one in hypers
    )
    return f"published laws disagree on learning rate and batch: {laws}; the plan follows {hypers[0].law}"
