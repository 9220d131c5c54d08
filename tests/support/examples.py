"""Whole, realistic documents for tests and pictures: a plan of each phase and its audit, generated from one law.

The law is L = E + A M^-alpha + B D^-beta in nats per byte, near what tiny models reach on Python text, so that losses,
parabolas and curves have the shape and the noise of real ones. Nothing is trained and nothing is fitted: forms and
bands are written down from the law. The same arguments give the same documents.
"""

import functools
import math
from collections.abc import Sequence
from random import Random
from typing import Any, Literal

import numpy as np

from specs.budget import Budget
from specs.cluster import Cluster
from specs.data import CorpusRef
from specs.document.files import from_catalog
from specs.evidence import EvidencePoint, evidence_file
from specs.law import (
    Allocation,
    Band,
    FormScore,
    Interval,
    IsoflopProfile,
    LawFit,
    Monomial,
    Optimum,
    PublishedLaw,
    RateCheck,
)
from specs.layout import Layout
from specs.model import ModelSpec
from specs.optim import OptimSpec, multi_step
from specs.plan import (
    Code,
    Cost,
    CurveBand,
    Forecast,
    LadderChoice,
    LayoutChoice,
    LayoutEstimate,
    NoForecast,
    Plan,
    PlannedRun,
)
from specs.record import Audit, Check, Environment, RunAudit
from specs.run import Evaluation, Execution, RunSpec
from tests.support import samples

Phase = Literal["pilots", "target", "published"]

E, A, ALPHA, B, BETA = 0.48, 16.1, 0.247, 43.6, 0.279
"""The law, near a measured sweep of such runs; the best width of 1e13 FLOP is 64."""
WIDTHS = {1e11: (8, 12, 16, 24, 36), 3.16e11: (12, 16, 24, 32, 48), 1e12: (16, 24, 32, 48, 72)}
"""The ladder."""
TARGET_FLOP, TARGET_WIDTH = 1e13, 64
RATES = (0.5, 2.0)
UNIQUE_TOKENS = 122_000_000
CONTEXT, MIN_STEPS, POINTS = 256, 1000, 20
ENVIRONMENT = Environment(
    host="two-cores",
    python="3.11.7",
    packages={"numpy": "2.4.6", "safetensors": "0.8.0", "tokenizers": "0.23.3", "torch": "2.13.0+cpu"},
    commit="1f0c9e2d4b7a6853",
    cpu="Intel(R) Xeon(R) Processor",
    devices=(),
)


def law_loss(flop_per_token: float, tokens: float) -> float:
    """The law's loss, nats per token."""
    return float(E + A * flop_per_token**-ALPHA + B * tokens**-BETA)


def make_plan(phase: Phase = "target", **changes: Any) -> Plan:
    """A sealed plan: the ladder, the target with its fit and forecast, or a target from a published law."""
    runs = pilots() if phase == "pilots" else (target(),)
    no_pilots = NoForecast(
        reason="17 of 17 pilots are not audited yet; run and audit this plan, then plan the budget again"
    )
    no_loss = NoForecast(
        reason="the law deepseek gives no loss coefficients; a forecast of the loss needs pilots on your own data "
        "(evidence.kind: pilots)"
    )
    evidence: dict[str, Any] = {"kind": "pilots", "prior": "tiny", "share": 0.8}
    if phase == "published":
        evidence = {"kind": "published", "law": "deepseek"}
    unsealed = Plan.model_construct(
        kind="plan",
        phase="pilots" if phase == "pilots" else "target",
        budget=_budget(evidence),
        ledger="../../ledger.jsonl",
        bytes_per_token=1.0,
        unique_tokens=UNIQUE_TOKENS,
        vocab=256,
        law=from_catalog(PublishedLaw, "deepseek" if phase == "published" else "tiny", None),
        fit=_fit() if phase == "target" else None,
        runs=runs,
        ladder=_ladder() if phase == "pilots" else None,
        forecast={"pilots": no_pilots, "published": no_loss}.get(phase) or _forecast(),
        notes=_notes(runs),
        code=Code(version="0.1.0", sha256="c0de" * 16),
        seal="0" * 64,
    )
    return samples.sealed(unsealed, **changes)


def _ladder() -> LadderChoice:
    """Widths and budgets as above; its interval is made up."""
    return LadderChoice(
        budgets=3,
        budget_ratio=3.16,
        top_flop=1e12,
        sizes=5,
        spread=2.0,
        half_width=0.031,
        best_half_width=0.031,
        paper_half_width=0.038,
        considered=3600,
    )


def make_audit(plan: Plan, off: float = -0.012, finished: float = 1.0, **changes: Any) -> Audit:
    """The audit of a plan whose last run ends `off` (relative) from the law after this share of its steps."""
    runs = tuple(
        _run_audit(planned, plan.seal, off if planned.role == "target" else 0.0, finished)
        for planned in plan.runs
    )
    verdict, reason = _verdict(plan, runs[-1], finished)
    share = None
    if isinstance(plan.forecast, Forecast) and plan.forecast.curve is not None:
        share = _share_inside(plan.forecast.curve, runs[-1])
    audit = Audit(
        seal=plan.seal, verdict=verdict, reason=reason, curve_share_inside=share, causes=(), runs=runs
    )
    return audit.model_copy(update=changes)


def make_layouts(step_s: float = 12.4, limit_bytes: float = 72.0 * 2**30) -> LayoutChoice:
    """Six layouts of 2048 devices that fit, the first with this step, and one that misses by a twentieth."""
    rows: tuple[tuple[dict[str, Any], float, float, float], ...] = (
        ({"pp": 8, "tp": 8, "interleave": 2}, 1.0, 0.06, 0.71),
        ({"pp": 16, "tp": 4, "interleave": 2}, 1.03, 0.1, 0.66),
        ({"pp": 8, "tp": 8}, 1.05, 0.11, 0.64),
        ({"pp": 4, "tp": 8, "recompute": "selective"}, 1.09, 0.03, 0.93),
        ({"pp": 16, "tp": 8, "micro_batch_sequences": 2}, 1.14, 0.15, 0.58),
        ({"pp": 4, "tp": 4, "recompute": "full"}, 1.31, 0.03, 0.97),
        ({"pp": 4, "tp": 8}, 0.97, 0.03, 1.05),
    )
    *ranked, missed = (
        _estimate(changes, step_s * longer, bubble, limit_bytes * full)
        for changes, longer, bubble, full in rows
    )
    return LayoutChoice(
        ranked=tuple(ranked),
        considered=1432,
        fitting=211,
        limit_bytes=limit_bytes,
        nearest_miss_bytes=missed.memory_bytes - limit_bytes,
        nearest_miss=missed,
        reason="the second has 4 % less communication between its tensor-parallel ranks but twice the stages to fill: "
        "its bubble takes 1.3 s of a step where this one's takes 0.74 s",
    )


def _estimate(changes: dict[str, Any], step_s: float, bubble: float, memory_bytes: float) -> LayoutEstimate:
    plain: dict[str, Any] = {"pp": 1, "tp": 1, "micro_batch_sequences": 1, "recompute": "none"} | changes
    layout = Layout(dp=2048 // plain["pp"] // plain["tp"], sequence_parallel=plain["tp"] > 1, **plain)
    redone = {"none": 0.0, "selective": 0.05, "full": 0.24}[layout.recompute]
    talk = 0.01 * layout.tp
    rest = 1 - bubble - redone - talk - 0.04
    shares = {"matmuls": 0.72, "attention": 0.13, "elementwise": 0.11, "head and loss": 0.04}
    seconds = {part: share * rest * step_s for part, share in shares.items()}
    once = {
        "tensor parallel": talk,
        "bubble": bubble,
        "recompute": redone,
        "data parallel": 0.02,
        "optimizer": 0.01,
    }
    seconds |= {part: share * step_s for part, share in (once | {"pipeline transfers": 0.01}).items()}
    kept = {"parameters": 0.13, "gradients": 0.26, "optimizer": 0.04, "activations": 0.49, "logits": 0.03}
    kept["workspace"] = 0.05
    return LayoutEstimate(
        layout=layout,
        step_s=step_s,
        seconds=seconds,
        memory_bytes=memory_bytes,
        memory={part: share * memory_bytes for part, share in kept.items()},
        model_flop_utilisation=0.46 * 12.4 / step_s,
    )


@functools.cache
def pilots() -> tuple[PlannedRun, ...]:
    """The isoFLOP ladder, smallest first, and the learning-rate check at its second rung."""
    ladder = [_planned("pilot", flop, width) for flop, widths in WIDTHS.items() for width in widths]
    budget = sorted(WIDTHS)[-2]
    middle = WIDTHS[budget][2]
    return (*ladder, *(_planned("rate", budget, middle, multiple) for multiple in RATES))


@functools.cache
def target() -> PlannedRun:
    """The target run."""
    return _planned("target", TARGET_FLOP, TARGET_WIDTH)


def curve_of(planned: PlannedRun, off: float = 0.0, noise: float = 0.006) -> dict[int, float]:
    """Held-out loss at every evaluation: the law for the tokens so far, and what the learning rate holds back."""
    run, dice = planned.run, Random(planned.title)
    steps, every = run.optim.steps, run.evaluation.every_steps
    found = {}
    for step in [*range(every, steps, every), steps]:
        held_back = 0.055 * run.optim.lr(step) / (run.optim.peak_lr / planned.rate_multiple)
        settled = law_loss(run.model.flop_per_token, step * run.batch_tokens) * (1 + held_back)
        rate = 1 + 0.02 * math.log(planned.rate_multiple) ** 2
        found[step] = settled * rate * (1 + off) * math.exp(dice.gauss(0, noise))
    return found


def _budget(evidence: dict[str, Any]) -> Budget:
    return Budget.model_validate(
        {
            "kind": "budget",
            "name": "demo",
            "compute": f"{TARGET_FLOP:.0e} FLOP",
            "evidence": evidence,
            "family": "tiny",
            "cluster": "laptop",
            "data": {
                "text": {"source": "installed", "packages": ("torch", "scipy", "sympy", "numpy")},
                "tokenizer": {"kind": "bytes"},
            },
            "precision": "fp32",
        }
    )


def _shape(width: int) -> ModelSpec:
    heads = max(1, width // 32)
    heads -= width % (2 * heads) != 0
    ffn = math.ceil(width * 8 / 3 / 16) * 16
    return ModelSpec(
        layers=2, width=width, heads=heads, kv_heads=heads, ffn=ffn, vocab=256, context=CONTEXT, init_std=0.02
    )


def _planned(
    role: Literal["pilot", "rate", "target"], flop: float, width: int, rate_multiple: float = 1.0
) -> PlannedRun:
    shape = _shape(width)
    batch = {1e11: 2, 3.16e11: 3, 1e12: 4}.get(flop, 6)
    every = max(1, round(flop / shape.flop_per_token / batch / CONTEXT / POINTS))
    steps = every * POINTS
    warmup, milestones = multi_step(steps, 100)
    devices = 2 if role == "target" else 1
    run = RunSpec(
        model=shape,
        data=CorpusRef(corpus="e4ad96fb48548f50", digest="b3e4" * 16),
        optim=OptimSpec(
            steps=steps,
            batch_sequences=batch,
            peak_lr=0.068 * width**-0.75 * rate_multiple,
            warmup_steps=warmup,
            milestones=milestones,
        ),
        evaluation=Evaluation(every_steps=every, sequences=32, final_sequences=512),
        precision="fp32",
        seed=0,
    )
    extra = f", learning rate x {rate_multiple:g}" if role == "rate" else ""
    return PlannedRun(
        role=role,
        title=f"{flop:.1e} FLOP, width {width}{extra}",
        budget_flop=flop,
        rate_multiple=rate_multiple,
        run=run,
        execution=Execution(device="cpu", layout=_layout(devices), checkpoint_interval_s=10.0),
        cost=_cost(run, devices),
    )


def _layout(devices: int) -> Layout:
    return Layout(dp=devices, pp=1, tp=1, sequence_parallel=False, micro_batch_sequences=1, recompute="none")


def _cost(run: RunSpec, devices: int) -> Cost:
    laptop = from_catalog(Cluster, "laptop", None)
    speed = devices * 2.6e10  # FLOP/s of these widths on one core
    seconds = run.model.mfu_flop_per_token * run.tokens / speed
    return Cost(
        compute_flop=run.compute_flop,
        device_hours=devices * seconds / 3600,
        hours=seconds / 3600,
        dollars=None,
        energy_j=None,
        tokens_per_s=run.tokens / seconds,
        memory_bytes=16.0 * run.model.params,
        basis=f"40% of the peak 6.6e+10 FLOP/s per device ({laptop.source}); no step time was simulated",
    )


def _notes(runs: Sequence[PlannedRun]) -> tuple[str, ...]:
    short = [planned.title for planned in runs if planned.run.optim.steps < MIN_STEPS]
    return (f"short runs with noisier losses (under {MIN_STEPS} steps): {'; '.join(short)}",) if short else ()


def _final(planned: PlannedRun) -> float:
    return list(curve_of(planned).values())[-1]


def _fit() -> LawFit:
    ladder = [planned for planned in pilots() if planned.role == "pilot"]
    points = tuple(
        EvidencePoint(
            run=planned.run.fingerprint(),
            budget_flop=planned.budget_flop,
            size=float(planned.run.model.flop_per_token),
            tokens=planned.run.tokens,
            unique_tokens=UNIQUE_TOKENS,
            loss=_final(planned),
            short=planned.run.optim.steps < MIN_STEPS,
        )
        for planned in ladder
    )
    profiles = tuple(_profile([point for point in points if point.budget_flop == flop]) for flop in WIDTHS)
    exponent = 0.47
    coefficient = target().run.model.flop_per_token / TARGET_FLOP**exponent
    return LawFit(
        size_kind="flop_per_token",
        evidence=evidence_file(points),
        points=points,
        profiles=profiles,
        allocation=Allocation(
            flop_per_token=Monomial(coefficient=coefficient, exponents={"compute_flop": exponent}),
            tokens=Monomial(coefficient=1 / coefficient, exponents={"compute_flop": 1 - exponent}),
        ),
        allocation_basis="3 bracketed isoFLOP minima: exponent 0.432 ± 0.040 of the runs, 0.524 ± 0.053 of the prior, "
        "combined 0.470",
        forms=_forms(),
        held_out_error=0.0147,
        optimum=_optimum(),
        rate_check=_rate_check(),
        flags=(
            f"{sum(point.short for point in points)} of {len(points)} runs have under 1000 steps and get a ninth of "
            "the weight",
            *(
                f"at {profile.compute_flop:.3g} FLOP the minimum lies beyond the smallest size that was run"
                for profile in profiles
                if not profile.bracketed
            ),
            "only 3 budgets: the loss floor is mostly that of the prior, from published laws",
        ),
    )


def _profile(points: Sequence[EvidencePoint]) -> IsoflopProfile:
    x = np.log([point.size for point in points])
    c2, c1, c0 = (float(c) for c in np.polyfit(x, np.log([point.loss for point in points]), 2))
    lowest, flop = -c1 / (2 * c2), points[0].budget_flop
    bracketed = bool(x.min() < lowest < x.max())
    best = min(points, key=lambda point: point.loss)
    size = math.exp(lowest) if bracketed else best.size
    return IsoflopProfile(
        compute_flop=flop,
        coefficients=(c0, c1, c2) if bracketed else None,
        size=size,
        tokens=flop / size,
        loss=math.exp(c0 + c1 * lowest + c2 * lowest**2) if bracketed else best.loss,
        bracketed=bracketed,
    )


def _forms() -> tuple[FormScore, ...]:
    told = law_loss(target().run.model.flop_per_token, target().run.tokens)
    constants = {"A": A, "B": B, "E": E, "alpha": ALPHA, "beta": BETA}
    intervals = {
        name: Interval(value=value, low=value * 0.8, high=value * 1.3) for name, value in constants.items()
    }
    floorless = {
        "K": Interval(value=32.4, low=21.2, high=42.8),
        "gamma": Interval(value=0.102, low=0.087, high=0.114),
    }
    coupled = r"L = E + \left(A M^{- \alpha} + B D^{- \beta}\right)^{k}"
    valley = r"L = \left(E + C^{- \gamma} K\right) e^{\frac{\kappa \log{\left(C^{- a} M Q \right)}^{2}}{2}}"
    standard, tied = r"L = A M^{- \alpha} + B D^{- \beta} + E", r"L = A M^{- \alpha} + B D^{- \alpha} + E"
    rows: tuple[tuple[str, float | None, str, float | None, float, float], ...] = (
        ("coupled", None, coupled, 0.0139, 0.53, 1.012),
        ("isoFLOP valley", None, valley, 0.0178, 0.29, 0.994),
        ("coupled", 0.8, coupled, 0.0131, 0.12, 1.004),
        ("standard", None, standard, 0.0478, 0.04, 1.046),
        ("isoFLOP valley", 0.8, valley, 0.0192, 0.008, 0.991),
        ("tied", None, tied, None, 0.006, 1.051),
        ("standard", 0.8, standard, 0.0316, 0.004, 1.031),
        ("tied", 0.8, tied, 0.0335, 0.002, 1.037),
    )
    return tuple(
        FormScore(
            form=form,
            window_decades=window,
            latex=latex,
            held_out_error=error,
            weight=weight,
            constants=floorless if form == "isoFLOP valley" else intervals,
            forecast=told * ratio,
        )
        for form, window, latex, error, weight, ratio in rows
    )


def _optimum() -> Optimum:
    """The best split by the law, a quarter to either side of it."""
    m, d = target().run.model.flop_per_token, target().run.tokens
    share = target().run.model.block_params / m

    def about(value: float) -> Interval:
        return Interval(value=value, low=value / 1.25, high=value * 1.25)

    return Optimum(
        compute_flop=TARGET_FLOP,
        flop_per_token=about(m),
        block_params=about(m * share),
        tokens=about(d),
        tokens_per_block_param=about(d / m / share),
        loss=Interval(value=law_loss(m, d), low=0.99 * law_loss(m, d), high=1.01 * law_loss(m, d)),
    )


def _rate_check() -> RateCheck:
    check = [planned for planned in pilots() if planned.role == "rate"]
    same = (check[0].run.model, check[0].budget_flop)
    own = next(p for p in pilots() if p.role == "pilot" and (p.run.model, p.budget_flop) == same)
    tried = sorted([own, *check], key=lambda planned: planned.rate_multiple)
    return RateCheck(
        run=own.run.fingerprint(),
        multiples=tuple(planned.rate_multiple for planned in tried),
        losses=tuple(_final(planned) for planned in tried),
        best_multiple=0.98,
        bracketed=True,
        reason="",
        near_optimal=True,
    )


def _forecast() -> Forecast:
    planned = target()
    last = planned.run.optim.steps
    middle = {step: loss * 1.008 for step, loss in curve_of(planned, noise=0.0).items() if step > last // 12}

    def ends(loss: float, step: int) -> tuple[float, float, float, float]:
        wide = 0.028 + 0.035 * (1 - step / last)
        return tuple(loss * math.exp(z * wide) for z in (-0.4, 0.4, -1.0, 1.15))  # type: ignore[return-value]

    columns = [ends(loss, step) for step, loss in middle.items()]
    low_50, high_50, low_95, high_95 = zip(*columns, strict=True)
    return Forecast(
        loss=Band(
            median=middle[last],
            low_50=low_50[-1],
            high_50=high_50[-1],
            low_95=low_95[-1],
            high_95=high_95[-1],
        ),
        curve=CurveBand(
            step=tuple(middle),
            median=tuple(middle.values()),
            low_50=low_50,
            high_50=high_50,
            low_95=low_95,
            high_95=high_95,
        ),
        basis="9.95x beyond the largest pilot; the interval joins the spread of the forms and their constants, "
        "run-to-run noise 1.15%, and 0.96% for the distance, as held-out budgets showed",
    )


def _run_audit(planned: PlannedRun, seal: str, off: float, finished: float) -> RunAudit:
    curve = {s: loss for s, loss in curve_of(planned, off).items() if s <= finished * planned.run.optim.steps}
    steps = round(finished * planned.run.optim.steps)
    done = finished >= 1
    pace = Random(planned.title).uniform(0.85, 1.1)
    fingerprint = planned.run.fingerprint()
    names = ("spec", "start", "sealed before step 1", "steps", "tokens", "schedule", "evaluations", "data")
    details = {
        "spec": f"run.json has fingerprint {fingerprint}, planned {fingerprint}",
        "sealed before step 1": f"the first Start record has seal {seal[:16]}, the plan {seal[:16]}",
        "steps": f"{steps} steps recorded, {planned.run.optim.steps} planned",
    }
    return RunAudit(
        run=fingerprint,
        title=planned.title,
        role=planned.role,
        state="accepted" if done else "unfinished",
        loss=list(curve.values())[-1] if done else None,
        steps=steps,
        seconds=finished * planned.cost.hours * 3600 / pace,
        device_s=finished * planned.cost.device_hours * 3600 / pace,
        tokens_per_s=planned.cost.tokens_per_s * pace,
        restarts=0,
        curve_step=tuple(curve),
        curve_loss=tuple(curve.values()),
        incidents=(),
        checks=tuple(Check(name=name, ok=True, detail=details.get(name, "as planned")) for name in names)
        if done
        else (),
        environments=(ENVIRONMENT,),
        layouts=(planned.execution.layout,),
    )


def _verdict(
    plan: Plan, last: RunAudit, finished: float
) -> tuple[Literal["inside", "outside", "cannot tell"], str]:
    if finished < 1:
        return "cannot tell", f"{len(plan.runs)} of {len(plan.runs)} runs are not finished"
    if plan.phase == "pilots":
        return (
            "inside",
            f"all {len(plan.runs)} runs are accepted; plan the budget again to get the target run",
        )
    if not isinstance(plan.forecast, Forecast) or last.loss is None:
        return "cannot tell", "there is no forecast"
    band = plan.forecast.loss
    inside = band.inside_95(last.loss)
    said = f"final held-out loss {last.loss:.4f} nats per token, {last.loss / band.median - 1:+.2%} from the forecast"
    return "inside" if inside else "outside", f"{said} {band.median:.4f}"


def _share_inside(curve: CurveBand, run: RunAudit) -> float:
    actual = dict(zip(run.curve_step, run.curve_loss, strict=True))
    rows = [
        (low, actual[step], high)
        for step, low, high in zip(curve.step, curve.low_95, curve.high_95, strict=True)
        if step in actual
    ]
    return sum(low <= loss <= high for low, loss, high in rows) / len(rows)
