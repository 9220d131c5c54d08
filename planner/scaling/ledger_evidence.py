"""The ledger's evidence for a budget: points, the learning-rate check, and the allocation that they support.

Only runs on the same text, with the same tokens, context and precision count, and only those smaller than the target.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planner.scaling.isoflop import Minimum, power_laws
from specs.document.files import read_lines
from specs.law import Allocation, EvidencePoint, IsoflopProfile, Monomial, RateCheck
from specs.record import LedgerRecord

EXPONENT_SD = 0.053
"""Spread of the allocation exponent over texts: .450, .524 and .578 in DeepSeek LLM, Table 4. As a prior it keeps the
exponent of a short ladder, with only a few noisy minima, in a plausible range."""
NEAR_OPTIMAL = 0.0025
"""Learning rates within 0.25 % of the lowest loss are as good as the best (DeepSeek LLM, section 3.1)."""


@dataclass(frozen=True)
class LedgerEvidence:
    """The ledger's usable runs, smallest compute first."""

    pilots: tuple[LedgerRecord, ...]
    """isoFLOP pilots, and targets of smaller budgets."""
    rates: tuple[LedgerRecord, ...]
    """Runs of learning-rate checks."""

    def missing(self, fingerprints: Sequence[str]) -> list[str]:
        """Those of the given runs that the ledger does not have."""
        audited = {record.run.fingerprint() for record in self.pilots + self.rates}
        return [fingerprint for fingerprint in fingerprints if fingerprint not in audited]


def read_evidence(
    ledger: Path, digest: str, context: int, precision: str, below_flop: float
) -> LedgerEvidence:
    """The ledger's runs on this text and context in this precision, below a compute; none where there is no ledger."""
    records = read_lines(ledger, LedgerRecord) if ledger.exists() else []
    usable = sorted(
        {
            record.run.fingerprint(): record
            for record in records
            if record.run.data.digest == digest
            and record.run.model.context == context
            and record.run.precision == precision
            and record.compute_flop < below_flop
        }.values(),
        key=lambda record: (record.budget_flop, record.run.model.flop_per_token, record.run.fingerprint()),
    )
    return LedgerEvidence(
        pilots=tuple(record for record in usable if record.role != "rate"),
        rates=tuple(record for record in usable if record.role == "rate"),
    )


def points(evidence: LedgerEvidence, min_steps: int, unique_tokens: int) -> tuple[EvidencePoint, ...]:
    """The pilots as points of the loss surface; runs under `min_steps` are marked short.

    All of them were trained on one corpus, which has `unique_tokens` training tokens.
    """
    return tuple(
        EvidencePoint(
            run=record.run.fingerprint(),
            budget_flop=record.budget_flop,
            flop_per_token=float(record.run.model.flop_per_token),
            tokens=record.tokens,
            unique_tokens=unique_tokens,
            loss=record.loss,
            short=record.run.optim.steps < min_steps,
        )
        for record in evidence.pilots
    )


def profile(minimum: Minimum) -> IsoflopProfile:
    """A fitted minimum as a document, with its parabola if it has an interior minimum."""
    x, half = math.log(minimum.size), minimum.curvature / 2
    parabola = (math.log(minimum.loss) + half * x * x, -2 * half * x, half)
    return IsoflopProfile(
        compute_flop=minimum.flop,
        coefficients=parabola if minimum.bracketed else None,
        flop_per_token=minimum.size,
        tokens=minimum.tokens,
        loss=minimum.loss,
        bracketed=minimum.bracketed,
    )


def allocation(minima: Sequence[Minimum], prior: Allocation) -> tuple[Allocation, str]:
    """M_opt(C) and D_opt(C) = C / M_opt, and a text on where they come from.

    The level is the ladder's, at its middle; the exponent is the ladder's slope and the prior's exponent, each weighted
    by its precision (Gaussian posterior; the prior's spread is EXPONENT_SD).
    """
    held = [minimum for minimum in minima if minimum.bracketed]
    prior_exponent = prior.flop_per_token.exponents["compute_flop"]
    if not held:
        return prior, "the prior's allocation, as no isoFLOP minimum is bracketed"
    middle = math.exp(float(np.mean([math.log(minimum.flop) for minimum in held])))
    if len(held) == 1:
        level, exponent = held[0].size, prior_exponent
        basis = "level of one bracketed isoFLOP minimum, exponent of the prior"
    else:
        line, _ = power_laws(held)
        share = _precision_share(line.exponent_sd)
        level = float(line.at(middle))
        exponent = share * line.exponent + (1 - share) * prior_exponent
        basis = (
            f"{len(held)} bracketed isoFLOP minima: exponent {line.exponent:.3f} ± {line.exponent_sd:.3f} of the runs, "
            f"{prior_exponent:.3f} ± {EXPONENT_SD} of the prior, combined {exponent:.3f}"
        )
    coefficient = level / middle**exponent
    return (
        Allocation(
            flop_per_token=Monomial(coefficient=coefficient, exponents={"compute_flop": exponent}),
            tokens=Monomial(coefficient=1 / coefficient, exponents={"compute_flop": 1 - exponent}),
        ),
        basis,
    )


def _precision_share(exponent_sd: float) -> float:
    """Weight of the ladder's slope against the prior's; 0 where the ladder cannot estimate its own error."""
    if not math.isfinite(exponent_sd):
        return 0.0
    return EXPONENT_SD**2 / (EXPONENT_SD**2 + exponent_sd**2)


def rate_check(evidence: LedgerEvidence) -> RateCheck | None:
    """The largest learning-rate check in the ledger, compared with the pilot at the law's own learning rate."""
    for record in reversed(evidence.rates):
        shape, budget = record.run.model, record.budget_flop
        own = [r for r in evidence.pilots if r.run.model == shape and r.budget_flop == budget]
        if own:
            beside = [r for r in evidence.rates if r.run.model == shape and r.budget_flop == budget]
            return _fit_rate_check(sorted([own[0], *beside], key=lambda r: r.rate_multiple), own[0])
    return None


def _fit_rate_check(tried: Sequence[LedgerRecord], own: LedgerRecord) -> RateCheck:
    multiples = [record.rate_multiple for record in tried]
    losses = [record.loss for record in tried]
    lowest = int(np.argmin(losses))
    bracketed = 0 < lowest < len(tried) - 1
    best, best_loss = multiples[lowest], losses[lowest]
    if bracketed:
        x, y = np.log(multiples[lowest - 1 : lowest + 2]), np.log(losses[lowest - 1 : lowest + 2])
        c2, c1, c0 = np.polyfit(x, y, 2)
        best = float(math.exp(-c1 / (2 * c2)))
        best_loss = float(math.exp(c0 - c1 * c1 / (4 * c2)))
    return RateCheck(
        run=own.run.fingerprint(),
        multiples=tuple(multiples),
        losses=tuple(losses),
        best_multiple=best,
        bracketed=bracketed,
        near_optimal=own.loss <= best_loss * (1 + NEAR_OPTIMAL),
    )
