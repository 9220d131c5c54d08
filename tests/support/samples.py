"""Small valid documents that tests begin from, as types and as text."""

from collections.abc import Sequence
from typing import Any

from specs.budget import Budget
from specs.data import CorpusRef
from specs.evidence import evidence_file
from specs.law import Band, PublishedLaw
from specs.layout import Layout
from specs.model import ModelSpec
from specs.optim import Milestone, OptimSpec
from specs.plan import Code, Cost, CurveBand, Forecast, Plan, PlannedRun, seal_of
from specs.plan_file import with_points
from specs.record import RankLine
from specs.run import Evaluation, Execution, RunSpec

BUDGET = """\
kind: budget
name: small
compute: 1e13 FLOP
evidence: {kind: pilots, prior: tiny, share: 0.5}
family: tiny
cluster: laptop
data:
  text: {source: installed, packages: [numpy]}
  tokenizer: {kind: bytes}
"""


def model(**changes: Any) -> ModelSpec:
    plain = {"layers": 2, "width": 64, "heads": 2, "kv_heads": 1, "ffn": 176, "vocab": 256, "context": 128}
    return ModelSpec(**(plain | changes))


def optim(**changes: Any) -> OptimSpec:
    plain = {
        "steps": 100,
        "batch_sequences": 8,
        "peak_lr": 0.003,
        "warmup_steps": 5,
        "milestones": (Milestone(step=80, factor=0.316), Milestone(step=90, factor=0.1)),
    }
    return OptimSpec(**(plain | changes))


def layout(**changes: Any) -> Layout:
    plain = {
        "dp": 2,
        "pp": 1,
        "tp": 1,
        "sequence_parallel": False,
        "micro_batch_sequences": 4,
        "recompute": "none",
    }
    return Layout(**(plain | changes))


def run(**changes: Any) -> RunSpec:
    plain = {
        "model": model(),
        "data": CorpusRef(corpus="0123456789abcdef", digest="5" * 64),
        "optim": optim(),
        "evaluation": Evaluation(every_steps=10, sequences=16, final_sequences=64),
        "precision": "fp32",
        "seed": 0,
    }
    return RunSpec(**(plain | changes))


def execution() -> Execution:
    return Execution(device="cpu", layout=layout(), checkpoint_interval_s=10.0)


def rank_line(step: int, busy_s: Sequence[float], waiting_s: Sequence[float]) -> RankLine:
    """Ten steps of ranks that work and wait for so long; two ranks a node."""
    return RankLine(
        step=step,
        steps=10,
        hosts=tuple(f"n{rank // 2}" for rank in range(len(busy_s))),
        step_s=tuple(busy + wait for busy, wait in zip(busy_s, waiting_s, strict=True)),
        waiting_s={"world": tuple(waiting_s)},
        peak_memory_bytes=(1,) * len(busy_s),
    )


def sealed(plan: Plan, **changes: Any) -> Plan:
    """The plan with these changes, under its own seal, which covers the runs of its fit."""
    changed = plan.model_copy(update=changes)
    points = () if changed.fit is None else changed.fit.points
    if changed.fit is not None:
        fit = changed.fit.model_copy(update={"evidence": evidence_file(points)})
        changed = changed.model_copy(update={"fit": fit})
    content = changed.model_copy(update={"seal": seal_of(changed)}).canonical_json()
    return with_points(Plan.model_validate_json(content), points)


def plan() -> Plan:
    """A plan of one target run with a forecast of loss and curve."""
    cost = Cost(
        compute_flop=run().compute_flop,
        device_hours=0.1,
        hours=0.05,
        dollars=None,
        energy_j=None,
        tokens_per_s=1e4,
        memory_bytes=1e8,
        basis="a sample",
    )
    target = PlannedRun(
        role="target", title="target", budget_flop=1e13, run=run(), execution=execution(), cost=cost
    )
    band = Band(median=2.0, low_50=1.99, high_50=2.01, low_95=1.95, high_95=2.05)
    curve = CurveBand(
        step=(50, 100),
        median=(3.0, 2.0),
        low_50=(2.9, 1.99),
        high_50=(3.1, 2.01),
        low_95=(2.5, 1.95),
        high_95=(3.5, 2.05),
    )
    law = PublishedLaw(
        kind="law",
        name="a-law",
        source="a sample",
        data="a-text",
        compute_low_flop=1e10,
        compute_high_flop=1e12,
    )
    unsealed = Plan.model_construct(
        kind="plan",
        phase="target",
        budget=budget(),
        ledger="../ledger.jsonl",
        bytes_per_token=1.0,
        unique_tokens=10**8,
        vocab=256,
        law=law,
        fit=None,
        runs=(target,),
        forecast=Forecast(loss=band, curve=curve, basis="a sample"),
        notes=("a note",),
        code=Code(version="0", sha256="c" * 64),
        seal="",
    )
    return sealed(unsealed)


def budget() -> Budget:
    return Budget.model_validate(
        {
            "kind": "budget",
            "name": "small",
            "compute": "1e13 FLOP",
            "evidence": {"kind": "pilots", "prior": "tiny", "share": 0.5},
            "family": "tiny",
            "cluster": "laptop",
            "data": {
                "text": {"source": "installed", "packages": ("numpy",)},
                "tokenizer": {"kind": "bytes"},
            },
        }
    )
