"""The answer: runs with nothing left to derive, the law they rest on, and a forecast sealed before any of them."""

import hashlib
import math
from bisect import bisect_left
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from specs.budget import Budget
from specs.curate import CuratedText
from specs.document.base import Sha256, Slug, Spec, canonical_json
from specs.humanize import Losses
from specs.law import Band, Hyper, LawFit, PublishedLaw
from specs.layout import Layout
from specs.run import Execution, RunSpec
from specs.table_fit import TableSource


class CurveBand(Spec):
    """The forecast curve of the held-out loss, nats per token, at the steps where the run will be evaluated."""

    step: tuple[int, ...]
    """Finished steps."""
    median: tuple[float, ...]
    """Median."""
    low_50: tuple[float, ...]
    """Lower quartile."""
    high_50: tuple[float, ...]
    """Upper quartile."""
    low_95: tuple[float, ...]
    """2.5 % end."""
    high_95: tuple[float, ...]
    """97.5 % end."""

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if any(len(column) != len(self.step) for column in self._columns):
            raise ValueError("the columns of a curve must have one value per step; plan the budget again")
        return self

    @property
    def _columns(self) -> tuple[tuple[float, ...], ...]:
        return self.median, self.low_50, self.high_50, self.low_95, self.high_95

    def at(self, step: int) -> Band | None:
        """The band at a step; between two of the curve's along straight lines of ln loss over ln step; None outside."""
        right = bisect_left(self.step, step)
        if right == len(self.step) or (right == 0 and self.step[0] != step):
            return None
        if self.step[right] == step:
            values = [column[right] for column in self._columns]
        else:
            left, end = self.step[right - 1], self.step[right]
            share = math.log(step / left) / math.log(end / left)
            values = [column[right - 1] ** (1 - share) * column[right] ** share for column in self._columns]
        return Band(**dict(zip(("median", "low_50", "high_50", "low_95", "high_95"), values, strict=True)))


class Forecast(Spec):
    """What the target run's held-out loss will be."""

    kind: Literal["forecast"] = "forecast"
    """Selects this answer."""
    loss: Band
    """Final held-out loss, nats per token."""
    curve: CurveBand | None
    """The whole curve; null where the runs have no curves of a common shape: a table has none."""
    basis: str
    """What the forecast and its width are based on."""


class NoForecast(Spec):
    """Why there is no forecast."""

    kind: Literal["refused"] = "refused"
    """Selects this answer."""
    reason: str
    """What is missing, and what would help."""


class Cost(Spec):
    """What a run will cost on the cluster."""

    compute_flop: float
    """C = M D, exact M."""
    device_hours: float
    """Devices times hours."""
    hours: float
    """Wall-clock hours."""
    dollars: float | None
    """Price; null where the cluster has none."""
    energy_j: float | None
    """Energy of the devices in joules; null where the cluster's power is not known."""
    tokens_per_s: float
    """Tokens per second over all devices."""
    memory_bytes: float
    """Largest memory of one device."""
    basis: str
    """Where the speed comes from."""


class LayoutEstimate(Spec):
    """What one layout of a run costs: seconds of a step and bytes of the fullest device, by part."""

    layout: Layout
    """The layout."""
    step_s: float
    """Seconds of one optimizer step."""
    seconds: dict[str, float]
    """The parts of that step, for the slowest stage; they add up to `step_s`."""
    memory_bytes: float
    """Memory of the fullest device."""
    memory: dict[str, float]
    """The parts of that memory; they add up to `memory_bytes`."""
    model_flop_utilisation: float
    """Model FLOP per second over the devices' peak."""


class LayoutChoice(Spec):
    """The layouts of the target run that were compared."""

    ranked: Annotated[tuple[LayoutEstimate, ...], Field(min_length=1)]
    """The best, fastest first; the first is the one of the plan."""
    considered: int
    """Legal layouts in all."""
    fitting: int
    """Those that fit the memory."""
    limit_bytes: float
    """Usable memory of one device."""
    nearest_miss_bytes: float | None
    """Bytes over that limit of the nearest layout that does not fit; null where all fit."""
    nearest_miss: LayoutEstimate | None
    """That layout: of those that would be faster than the plan's, if there are any, the one that is least over the
    limit."""
    reason: str
    """Why the first is faster than the second, with numbers."""
    traffic: tuple[dict[str, float], ...] = ()
    """Bytes that a rank of each pipeline stage of the first sends in a step, by '<collective> <axis>'; of 'receive pp',
    those that it receives. Empty where they are not known."""


class HyperAdvice(Spec):
    """What one law, a published one or the ledger's own, gives for the target's learning rate and batch."""

    law: Slug
    """The law."""
    hyper: Hyper
    """Its formulas and its regime."""
    peak_lr: float
    """Its maximum learning rate for this run."""
    batch_tokens: float
    """Its tokens per step, before rounding."""
    near_optimal_lr: tuple[float, float] | None = None
    """Lowest and highest rate whose loss is within 0.25 % of the lowest; null where the law's source prints no band."""
    used: bool
    """The plan follows it."""


class LadderChoice(Spec):
    """The ladder of pilots, and the width of the interval that it should leave on the target's loss, before any pilot
    has run."""

    budgets: int
    """isoFLOP budgets."""
    budget_ratio: float
    """Ratio of neighbouring budgets."""
    top_flop: float
    """The largest budget."""
    sizes: int
    """Model sizes of each budget."""
    spread: float
    """Ratio of neighbouring sizes, before rounding to legal shapes."""
    half_width: float
    """Half of the 95 % interval that it should leave on the target's loss, relative."""
    best_half_width: float
    """The same for the ladder that would be chosen for this share if the budget set none of its fields."""
    paper_half_width: float
    """The same for DeepSeek LLM's 8 budgets x 10 allocations at equal cost (section 3.2)."""
    considered: int
    """Ladders of equal cost that were compared."""


class PlannedRun(Spec):
    """One run of the plan."""

    role: Literal["pilot", "rate", "target"]
    """An isoFLOP pilot, a point of the learning-rate check, or the target."""
    title: str
    """One line for tables."""
    budget_flop: float
    """The compute that was requested; the run's own differs by rounding."""
    rate_multiple: float = Field(default=1.0, gt=0)
    """Multiple of the law's learning rate, for the learning-rate check."""
    run: RunSpec
    """What changes the numbers."""
    execution: Execution
    """How it is executed."""
    fallback_layouts: tuple[Layout, ...] = ()
    """The best layouts on half of its nodes, a quarter and so on, for fewer free nodes; empty for a run of one."""
    cost: Cost
    """What it will cost."""


class SourceText(Spec):
    """The text of a source of a mix."""

    unique_tokens: int
    """Unique training tokens."""
    bytes_per_token: float | None
    """Held-out UTF-8 bytes per token; null where the text is not known."""


class Code(Spec):
    """The program that made the plan."""

    version: str
    """Version of isoplan."""
    sha256: Sha256
    """Digest of the sources of specs and planner."""


class Plan(Spec):
    """`plan.pilots.yaml` or `plan.target.yaml`. Sealed: any change after it was written is noticed."""

    kind: Literal["plan"] = "plan"
    """Selects this document."""
    phase: Literal["pilots", "target"]
    """What the runs are for."""
    budget: Budget
    """The budget that it answers."""
    ledger: str
    """The ledger's path from this file's folder."""
    bytes_per_token: float | None
    """Held-out UTF-8 bytes per token, for bits per byte; null where the text is not known and no table of the same text
    says them."""
    unique_tokens: int
    """Unique training tokens, of all sources of a mix."""
    sources: dict[Slug, SourceText] = Field(default_factory=dict, exclude_if=lambda sources: not sources)
    """The sources of a mix; absent without one."""
    curation: tuple[CuratedText, ...] = Field(default=(), exclude_if=lambda texts: not texts)
    """What the steps of `curate` left of each text that has any; absent where none has."""
    vocab: int
    """Token ids of the corpus. A model has as many rows, or those that the budget reserves, rounded up as its family
    does."""
    law: PublishedLaw
    """The published law that was used, or the prior of the pilots or of the table."""
    fit: LawFit | None
    """What was fitted on the runs of the ledger or of a table; null on a published law, and in a plan of pilots."""
    table: TableSource | None = None
    """The table of runs that the fit rests on, alone or joined with pilots; null where there is none."""
    runs: Annotated[tuple[PlannedRun, ...], Field(min_length=1)]
    """The runs."""
    ladder: LadderChoice | None = None
    """How the pilots' ladder was chosen; null in a plan of a target."""
    layouts: LayoutChoice | None = None
    """How the target's layout was chosen; null in a plan of pilots."""
    hypers: tuple[HyperAdvice, ...] = ()
    """The laws of learning rate and batch size side by side for the target; empty in a plan of pilots."""
    forecast: Annotated[Forecast | NoForecast, Field(discriminator="kind")]
    """Forecast of the target's loss."""
    notes: tuple[str, ...]
    """Notes for the reader."""
    code: Code
    """What made the plan."""
    seal: Sha256
    """SHA-256 of the canonical JSON of everything above."""

    @property
    def losses(self) -> Losses:
        """The unit in which losses of this plan are shown."""
        return Losses(self.bytes_per_token)

    def epochs(self, run: RunSpec) -> dict[str, float]:
        """Passes of a run over the unique tokens of each source; of a text that is no mix under no name."""
        if run.mix is None:
            return {"": run.tokens / self.unique_tokens}
        shares = run.mix.shares(run.optim.steps)
        return {name: share * run.tokens / self.sources[name].unique_tokens for name, share in shares.items()}

    @model_validator(mode="after")
    def _sealed(self) -> Self:
        expected = seal_of(self)
        if self.seal != expected:
            raise ValueError(
                f"the plan was changed after it was sealed, or sealed by another version of isoplan (its content "
                f"hashes to {expected[:16]}, the seal says {self.seal[:16]}); restore the file, or plan the budget "
                "again under another name"
            )
        return self


def seal_of(plan: Plan) -> str:
    """SHA-256 over everything in the plan but the seal."""
    plain = plan.plain()
    del plain["seal"]
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def evidence_source(plan: Plan) -> str:
    """Where the runs of a plan's fit are from."""
    if plan.table is None:
        return "the ledger"
    return plan.table.path if plan.budget.evidence.kind == "runs" else f"the ledger and {plan.table.path}"
