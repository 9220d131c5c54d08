"""The ledger's evidence for a budget: points, the learning-rate check, and the allocation that they support.

Only runs smaller than the target count that differ from the budget's own in nothing but size and rate, and that learned
something (planner/evidence/usable_runs.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planner.evidence import usable_runs
from planner.scaling.data_constrained import MixedText, UniqueTokens
from planner.scaling.isoflop import Minimum, power_laws
from specs.evidence import EvidencePoint
from specs.law import Allocation, Interval, IsoflopProfile, Monomial, RateCheck
from specs.ledger import Ledger, read_ledger
from specs.model import ModelSpec
from specs.record import LedgerRecord
from specs.run import RunSpec

EXPONENT_SD = 0.053
"""Spread of the allocation exponent over texts: .450, .524 and .578 in DeepSeek LLM, Table 4. As a prior it keeps the
exponent of a short ladder, with only a few noisy minima, in a plausible range."""
LEVEL_SD = math.log(2)
"""Spread of ln M_opt over texts and recipes: at 1e24 FLOP published laws differ by a factor of two (58B parameters by
Llama 3's, 97B by Epoch's fit of Chinchilla's runs)."""
_SLOPE_DECADE = 10.0
"""The exponent of the forecast's laws is their slope over the last decade below the target."""
_INTERVAL_SDS = 3.92
"""Standard deviations between the ends of a 95 % interval."""
NEAR_OPTIMAL = 0.0025
"""Learning rates within 0.25 % of the lowest loss are as good as the best (DeepSeek LLM, section 3.1)."""
MAX_RATE_RATIO = 4.0
"""Parabolas lead only through rates within this factor of the best one tried. On Step Law's runs their minimum costs
.125 % of loss at a factor 4 and the best rate tried .165 %; at a factor 5.7 it is .35 % and .19 % (docs/log.md)."""
RATE_TOLERANCE = 0.01
"""Learning rates this close, in logarithms, are one rate."""


@dataclass(frozen=True)
class LedgerEvidence:
    """The ledger's usable runs, smallest compute first."""

    pilots: tuple[LedgerRecord, ...]
    """isoFLOP pilots, and targets of smaller budgets."""
    rates: tuple[LedgerRecord, ...]
    """Runs of learning-rate checks."""
    failed: tuple[LedgerRecord, ...] = ()
    """Runs that learned nothing: in no fit."""
    audited: frozenset[str] = frozenset()
    """Fingerprints of all runs on this text, also of those that cannot be used."""
    flags: tuple[str, ...] = ()
    """Which runs are not used, and why."""

    def missing(self, fingerprints: Sequence[str]) -> list[str]:
        """Those of the given runs that the ledger does not have."""
        return [fingerprint for fingerprint in fingerprints if fingerprint not in self.audited]


def read_evidence(
    ledger: Path, digest: str, own: Callable[[RunSpec], RunSpec], below_flop: float
) -> LedgerEvidence:
    """The ledger's runs on this text below a compute that nobody excluded, that match the budget's own
    (`usable_runs.matching`) and learned something (`usable_runs.sound`), each training once (`usable_runs.distinct`);
    none where there is no ledger."""
    found = read_ledger(ledger) if ledger.exists() else Ledger(())
    on_text = sorted(
        {
            record.run.fingerprint(): record
            for record in found.audited
            if record.run.data.digest == digest and record.compute_flop < below_flop
        }.values(),
        key=lambda record: (record.budget_flop, record.run.model.flop_per_token, record.run.fingerprint()),
    )
    included, excluded = usable_runs.not_excluded(on_text, found.excluded)
    alike, differing = usable_runs.matching(included, own)
    usable, failed, learned_nothing = usable_runs.sound(alike)
    pilots, same_pilots = usable_runs.distinct([record for record in usable if record.role != "rate"])
    rates, same_rates = usable_runs.distinct([record for record in usable if record.role == "rate"])
    return LedgerEvidence(
        pilots=tuple(pilots),
        rates=tuple(rates),
        failed=tuple(failed),
        audited=frozenset(record.run.fingerprint() for record in on_text),
        flags=(*excluded, *differing, *learned_nothing, *same_pilots, *same_rates),
    )


def points(
    evidence: LedgerEvidence, min_steps: int, unique_tokens: UniqueTokens
) -> tuple[EvidencePoint, ...]:
    """The pilots as points of the loss surface; runs under `min_steps` are marked short.

    All of them were trained on one text, which has `unique_tokens` training tokens.
    """
    mixed = unique_tokens if isinstance(unique_tokens, MixedText) else None
    return tuple(
        EvidencePoint(
            run=record.run.fingerprint(),
            budget_flop=record.budget_flop,
            size=float(record.run.model.flop_per_token),
            tokens=record.tokens,
            unique_tokens=None if isinstance(unique_tokens, MixedText) else unique_tokens,
            fresh_tokens=None if mixed is None else float(mixed.effective(record.tokens)),
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
        size=minimum.size,
        tokens=minimum.tokens,
        loss=minimum.loss,
        bracketed=minimum.bracketed,
    )


def allocation(
    minima: Sequence[Minimum], prior: Allocation, flop: float, split_at: Callable[[float], Interval | None]
) -> tuple[Allocation, str]:
    """M_opt(C) and D_opt(C) = C / M_opt, and a text on where they come from.

    The level is the ladder's, at its middle; the exponent is the ladder's slope and the prior's exponent, each weighted
    by its precision (Gaussian posterior; the prior's spread is EXPONENT_SD). Without a bracketed minimum, it is the
    allocation of the prior and of the forecast's laws, again by precision. `split_at` gives the laws' 95 %
    interval of M at a compute, None where it is open; at the target's compute `flop` the allocation lies inside it.
    """
    held = [minimum for minimum in minima if minimum.bracketed]
    prior_exponent = prior.flop_per_token.exponents["compute_flop"]
    split, below = split_at(flop), split_at(flop / _SLOPE_DECADE)
    if not held:
        level = prior.flop_per_token.at(compute_flop=flop)
        if split is None or below is None:
            return prior, "the prior's allocation, as no isoFLOP minimum is bracketed"
        slope = math.log(split.value / below.value) / math.log(_SLOPE_DECADE)
        share = _precision_share(math.log(split.high / split.low) / _INTERVAL_SDS, LEVEL_SD)
        level = math.exp(share * math.log(split.value) + (1 - share) * math.log(level))
        exponent, middle = share * slope + (1 - share) * prior_exponent, flop
        basis = (
            f"no isoFLOP minimum is bracketed: the best split of the forecast's laws at {flop:.3g} FLOP, with a "
            f"weight of {share:.0%}, and the prior's"
        )
    else:
        middle = math.exp(float(np.mean([math.log(minimum.flop) for minimum in held])))
        if len(held) == 1:
            level, exponent = held[0].size, prior_exponent
            basis = "level of one bracketed isoFLOP minimum, exponent of the prior"
        else:
            line, _ = power_laws(held)
            share = _precision_share(line.exponent_sd, EXPONENT_SD)
            level = float(line.at(middle))
            exponent = share * line.exponent + (1 - share) * prior_exponent
            basis = (
                f"{len(held)} bracketed isoFLOP minima: exponent {line.exponent:.3f} ± {line.exponent_sd:.3f} of the "
                f"runs, {prior_exponent:.3f} ± {EXPONENT_SD} of the prior, combined {exponent:.3f}"
            )
    coefficient = level / middle**exponent
    if split is not None and not split.low <= (found := coefficient * flop**exponent) <= split.high:
        moved = min(max(found, split.low), split.high) / found
        coefficient *= moved
        basis += (
            f"; moved by {moved - 1:+.0%} into the 95 % interval of the best split by the forecast's laws"
        )
    return (
        Allocation(
            flop_per_token=Monomial(coefficient=coefficient, exponents={"compute_flop": exponent}),
            tokens=Monomial(coefficient=1 / coefficient, exponents={"compute_flop": 1 - exponent}),
        ),
        basis,
    )


def _precision_share(own_sd: float, prior_sd: float) -> float:
    """Weight of the runs' value against the prior's; 0 where the runs cannot estimate their own error."""
    if not math.isfinite(own_sd):
        return 0.0
    return prior_sd**2 / (prior_sd**2 + own_sd**2)


def rate_check(evidence: LedgerEvidence, law_lr: Callable[[ModelSpec, float], float]) -> RateCheck | None:
    """The largest learning-rate check in the ledger that includes the law's own rate; None where there is none.

    `law_lr` is the rate of the plan's law for a shape and a compute. Runs of one check have the same shape, compute,
    batch and length.
    """
    runs = (*evidence.pilots, *evidence.rates, *evidence.failed)
    for record in sorted(runs, key=lambda one: -one.budget_flop):
        own_lr = law_lr(record.run.model, record.budget_flop)
        beside = [one for one in runs if _setting(one) == _setting(record)]
        tried = {one.run.fingerprint(): one.run.optim.peak_lr / own_lr for one in beside}
        own = [one for one in beside if _same_rate(tried[one.run.fingerprint()], 1)]
        if own and record.role == "rate" and len(own) < len(beside):
            failed = {one.run.fingerprint() for one in evidence.failed}
            learned = [one for one in beside if one.run.fingerprint() not in failed]
            levels = _levels([(tried[one.run.fingerprint()], one.loss) for one in learned])
            if levels:
                return _fit_rate_check(levels, own[0].run.fingerprint(), len(learned) < len(beside))
    return None


def rate_flags(check: RateCheck | None) -> tuple[str, ...]:
    """A warning where the check gives only the best of the rates that were tried."""
    if check is None or check.bracketed:
        return ()
    return (
        f"learning-rate check: x {check.best_multiple:.3g} is {check.reason}; the best rate may lie beside it",
    )


def _setting(record: LedgerRecord) -> tuple[ModelSpec, float, int, int]:
    """What the runs of one learning-rate check have in common."""
    optim = record.run.optim
    return record.run.model, record.budget_flop, optim.batch_sequences, optim.steps


def _same_rate(one: float, other: float) -> bool:
    return abs(math.log(one / other)) < RATE_TOLERANCE


def _levels(tried: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Different multiples, in order, each with the geometric mean loss of its runs."""
    levels: list[tuple[float, list[float]]] = []
    for multiple, loss in sorted(tried):
        if not levels or not _same_rate(levels[-1][0], multiple):
            levels.append((1.0 if _same_rate(multiple, 1) else float(f"{multiple:.6g}"), []))
        levels[-1][1].append(math.log(loss))
    return [(multiple, math.exp(float(np.mean(logs)))) for multiple, logs in levels]


def _fit_rate_check(levels: Sequence[tuple[float, float]], own: str, some_failed: bool) -> RateCheck:
    multiples, losses = [multiple for multiple, _ in levels], [loss for _, loss in levels]
    lowest = int(np.argmin(losses))
    best, best_loss = levels[lowest]
    reason = _no_parabola(multiples, lowest, some_failed)
    if not reason:
        x, y = np.log(multiples[lowest - 1 : lowest + 2]), np.log(losses[lowest - 1 : lowest + 2])
        c2, c1, c0 = np.polyfit(x, y, 2)
        best = float(math.exp(-c1 / (2 * c2)))
        best_loss = float(math.exp(c0 - c1 * c1 / (4 * c2)))
    own_loss = dict(levels).get(1.0, math.inf)
    return RateCheck(
        run=own,
        multiples=tuple(multiples),
        losses=tuple(losses),
        best_multiple=best,
        bracketed=not reason,
        reason=reason,
        near_optimal=own_loss <= best_loss * (1 + NEAR_OPTIMAL),
    )


def _no_parabola(multiples: Sequence[float], lowest: int, some_failed: bool) -> str:
    """Why no parabola leads through the best rate and its neighbours; empty where one does."""
    learned = " that learned" if some_failed else ""
    if len(multiples) == 1:
        return f"the only rate tried{learned}"
    if lowest in (0, len(multiples) - 1):
        return f"the {'highest' if lowest else 'lowest'} rate tried{learned}"
    beside = (multiples[lowest - 1], multiples[lowest + 1])
    far = [
        one
        for one in beside
        if abs(math.log(one / multiples[lowest])) > math.log(MAX_RATE_RATIO) + RATE_TOLERANCE
    ]
    if not far:
        return ""
    names = " and ".join(f"x {one:.3g}" for one in far)
    return f"the best rate tried, as {names} {'is' if len(far) == 1 else 'are'} too far away for a parabola"
