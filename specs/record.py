"""Records: a run's own, the ledger's lines, and the audit's verdict."""

from typing import Annotated, Literal

from pydantic import Field

from specs.document.base import Fingerprint, Sha256, Spec
from specs.humanize import several
from specs.law import LossUnit
from specs.layout import Layout
from specs.plan import CurveBand
from specs.run import Execution, RunSpec


class Order(Spec):
    """`order.json`: what the launcher gives the ranks of a run, besides its RunSpec."""

    kind: Literal["order"] = "order"
    """Selects this document."""
    run: Fingerprint
    """The run."""
    title: str
    """One line for tables and logs."""
    seal: Sha256 | None
    """Seal of the plan; null for a bare run spec."""
    execution: Execution
    """How to execute it."""
    fallback_layouts: tuple[Layout, ...] = ()
    """Layouts for fewer ranks than planned, most devices first."""
    peak_flop_per_s: float | None
    """Peak rate of one device in the run's precision, for MFU; null where no cluster is known."""
    curve: CurveBand | None
    """Forecast of the held-out curve; leaving its 95 % band raises an alarm."""

    def layout_for(self, ranks: int) -> Layout | None:
        """The planned layout, or the first of `fallback_layouts` that so many ranks suffice for; None if there is
        none."""
        layouts = (self.execution.layout, *self.fallback_layouts)
        return next((layout for layout in layouts if layout.devices <= ranks), None)


class Environment(Spec):
    """Where a segment of a run was executed."""

    host: str
    """Host name."""
    python: str
    """Version of Python."""
    packages: dict[str, str]
    """Versions of the packages that change numbers."""
    commit: str | None
    """Commit of the source tree, `+dirty` when it was changed; null outside a checkout."""
    cpu: str
    """Processor."""
    devices: tuple[str, ...]
    """Accelerators."""
    variables: dict[str, str] = Field(default_factory=dict, exclude_if=lambda variables: not variables)
    """Environment variables that change a GPU's numbers or speed, as the ranks had them; empty on CPUs."""


class Start(Spec):
    """First line of every segment, written before any step of it."""

    event: Literal["start"] = "start"
    """Selects this line."""
    time: float
    """Seconds since 1970."""
    run: Fingerprint
    """The run."""
    seal: Sha256 | None
    """Seal of the plan that started it; null for a bare run spec."""
    from_step: int = Field(ge=0)
    """Finished steps that it resumes from; 0 is from scratch."""
    lost_steps: int = Field(default=0, ge=0)
    """Steps after these that an earlier segment had finished and that are trained again."""
    lost_s: float = Field(default=0.0, ge=0)
    """Seconds that they took the first time."""
    newest_step: int = Field(default=0, ge=0)
    """Step of the newest checkpoint at the start, complete or not; a newer one later was saved by this segment."""
    unrecorded_steps: int = Field(default=0, ge=0)
    """Steps just before it that are in no line of metrics.jsonl: the folder was copied while it trained."""

    @property
    def unrecorded(self) -> range:
        """These steps."""
        return range(self.from_step - self.unrecorded_steps + 1, self.from_step + 1)

    execution: Execution
    """Layout, kernels, checkpoint interval."""
    kernels: dict[str, str]
    """Back end that was chosen for each operation."""
    environment: Environment
    """Where."""
    job: str | None = None
    """SLURM job, its earlier starts, and its nodes; null outside of SLURM."""


IncidentKind = Literal[
    "outside_band",
    "damaged_checkpoint",
    "unsaved_checkpoint",
    "non_finite",
    "rejected_step",
    "interrupted",
    "crashed",
    "failed_preflight",
    "hung",
]
"""Kinds of incidents."""


class Incident(Spec):
    """Something a reader of the run must know."""

    event: Literal["incident"] = "incident"
    """Selects this line."""
    time: float
    """Seconds since 1970."""
    step: int = Field(ge=0)
    """Finished steps when it happened."""
    what: IncidentKind
    """Kind of incident."""
    message: str
    """What happened, as text."""


class SkippedRange(Spec):
    """Steps that were skipped by a rollback; their data are not trained on."""

    step: int = Field(ge=1)
    """The step at which the run rolled back."""
    to_step: int = Field(ge=0)
    """Finished steps of the checkpoint that the run rolled back to."""
    batches: int = Field(ge=1)
    """Batches read until then, earlier skipped ones included: the step after `to_step` reads the next one."""


class Rollback(Spec):
    """The run rolled back to a checkpoint. The data of the steps after it are skipped."""

    event: Literal["rollback"] = "rollback"
    """Selects this line."""
    time: float
    """Seconds since 1970."""
    skipped: SkippedRange
    """The steps that were skipped."""
    message: str
    """Why, as text."""


class End(Spec):
    """Last line of a finished run."""

    event: Literal["end"] = "end"
    """Selects this line."""
    time: float
    """Seconds since 1970."""
    step: int = Field(ge=1)
    """Finished steps: all of them."""
    loss: float
    """Final held-out loss, nats per token."""
    weights_sha256: Sha256
    """Digest of the final weights."""


RecordLine = Annotated[Start | Incident | Rollback | End, Field(discriminator="event")]
"""A line of `record.jsonl`."""


class StepLine(Spec):
    """A line of `metrics.jsonl`. Nothing here depends on time, so an uninterrupted run gives the same bytes."""

    step: int = Field(ge=1)
    """Finished steps."""
    tokens: int = Field(ge=1)
    """Tokens trained on so far."""
    loss: float | None
    """Training loss of the step, nats per token; null where it is not finite."""
    grad_norm: float | None
    """Global norm of the gradient before clipping; null where it is not finite."""
    lr: float = Field(ge=0)
    """Learning rate of the step."""
    applied: bool = True
    """False for a step that the spike guard rejected."""


class EvalLine(Spec):
    """A line of `evals.jsonl`."""

    step: int = Field(ge=1)
    """Finished steps."""
    tokens: int = Field(ge=1)
    """Tokens trained on so far."""
    loss: float
    """Held-out loss, nats per token."""
    sequences: int = Field(ge=1)
    """Held-out sequences it was measured on."""
    sources: dict[str, float] = Field(default_factory=dict, exclude_if=lambda losses: not losses)
    """Held-out loss of each source of a mix, nats per token; absent without a mix."""


class TimingLine(Spec):
    """A line of `timing.jsonl`."""

    step: int = Field(ge=1)
    """Finished steps."""
    seconds: float = Field(ge=0)
    """Seconds since the previous line or the segment's start."""
    tokens_per_s: float = Field(ge=0)
    """Tokens per second over all ranks."""
    mfu: float | None
    """Model FLOP per second over the devices' peak; null where no peak is known."""


class RankLine(Spec):
    """A line of `ranks.jsonl`: what the steps since the previous line took on each rank, in rank order."""

    step: int = Field(ge=1)
    """Finished steps."""
    steps: int = Field(ge=1)
    """Steps that these are means of."""
    hosts: tuple[str, ...]
    """Each rank's host."""
    step_s: tuple[float, ...]
    """Seconds of a step."""
    waiting_s: dict[str, tuple[float, ...]]
    """Seconds of a step in which the rank waited for others, by the axis of those: dp, pp, tp, or world for all."""
    peak_memory_bytes: tuple[int, ...]
    """Most memory so far: the device's, or on CPUs the process's."""

    @property
    def busy_s(self) -> tuple[float, ...]:
        """Seconds of a step in which each rank worked, and waited for no other."""
        waited = [sum(values) for values in zip(*self.waiting_s.values(), strict=True)] or [0.0] * len(
            self.step_s
        )
        return tuple(max(0.0, step - wait) for step, wait in zip(self.step_s, waited, strict=True))


class LedgerRecord(Spec):
    """One audited run: a line of the ledger, all that a later plan needs of it."""

    kind: Literal["ledger"] = "ledger"
    """Selects this document."""
    run: RunSpec
    """What was run."""
    role: Literal["pilot", "rate", "target"]
    """What it was for."""
    budget_flop: float
    """The compute that was requested."""
    rate_multiple: float
    """Multiple of the law's learning rate."""
    seal: Sha256
    """Seal of the plan it ran under."""
    tokens: int
    """Tokens recounted from the run's own records."""
    compute_flop: float
    """M times those tokens."""
    loss: float
    """Final held-out loss, nats per token."""
    bytes_per_token: float | None
    """Held-out UTF-8 bytes per token; null where the text is not known."""
    curve_step: tuple[int, ...]
    """Steps of the held-out curve."""
    curve_loss: tuple[float, ...]
    """Its losses, nats per token."""
    tokens_per_s: float
    """Median throughput."""
    weights_sha256: Sha256
    """Digest of the final weights."""
    flags: tuple[str, ...]
    """Warnings about this run."""

    @property
    def fingerprint_of_run(self) -> str:
        """The run's fingerprint."""
        return self.run.fingerprint()


class Check(Spec):
    """One thing that the audit verified."""

    name: str
    """What was checked."""
    ok: bool
    """Whether it passed."""
    detail: str
    """The numbers."""


class RunAudit(Spec):
    """Planned against actual for one run."""

    run: Fingerprint
    """The run."""
    title: str
    """One line for tables."""
    role: Literal["pilot", "rate", "target"]
    """What it was for."""
    state: Literal["accepted", "rejected", "unfinished", "unverified"]
    """Accepted runs go into the ledger. A finished run of another engine is unverified."""
    loss: float | None
    """Final held-out loss, nats per token; null while unfinished."""
    steps: int
    """Finished steps."""
    seconds: float | None
    """Seconds of training, over all segments; null where another engine trained it."""
    device_s: float | None
    """The same times the devices of each segment's layout; null where another engine trained it."""
    tokens_per_s: float | None
    """Median throughput; null where another engine trained it."""
    restarts: int
    """Segments after the first."""
    lost_steps: int = 0
    """Steps that were trained again after a restart."""
    lost_s: float = 0.0
    """Seconds that they had taken the first time; goodput is the other seconds' share."""
    curve_step: tuple[int, ...]
    """Steps of the held-out curve."""
    curve_loss: tuple[float, ...]
    """Its losses."""
    curve_sources: dict[str, tuple[float, ...]] = Field(
        default_factory=dict, exclude_if=lambda losses: not losses
    )
    """The losses of each source of a mix; absent without one."""
    incidents: tuple[str, ...]
    """Incidents, as text."""
    checks: tuple[Check, ...]
    """What was verified."""
    environments: tuple[Environment, ...] = ()
    """Environments of its segments, each once."""
    layouts: tuple[Layout, ...] = ()
    """Layouts of its segments, each once."""

    @property
    def restarts_text(self) -> str:
        """How often it was restarted and what that cost, as text; empty where it never was."""
        if not self.restarts:
            return ""
        text = several(self.restarts, "restart")
        if not self.lost_steps:
            return text
        goodput = f", goodput {1 - self.lost_s / self.seconds:.1%}" if self.seconds else ""
        return f"{text}: {several(self.lost_steps, 'step')} trained again{goodput}"


class ActualCurve(Spec):
    """The table of a run that another engine trained: its held-out loss along its training."""

    path: str
    """The file, as it was named."""
    sha256: Sha256
    """Of the file's bytes."""
    columns: dict[str, str]
    """The file's column for each quantity that was read."""
    loss_unit: LossUnit
    """Unit of its losses. All losses of this document are in nats per token."""
    bytes_per_token: float | None
    """UTF-8 bytes of a token, by which losses per byte were converted; null where none were."""
    notes: tuple[str, ...]
    """What was assumed or skipped when it was read."""


class Audit(Spec):
    """`audit.<phase>.json`: the verdict on a plan; `audit.actual.json`: that on the run of another engine."""

    kind: Literal["audit"] = "audit"
    """Selects this document."""
    verified: bool = True
    """Whether the numbers were recomputed from records of our engine; false where another engine trained the run."""
    unverified: tuple[str, ...] = ()
    """What nothing vouches for; empty where `verified` is true."""
    actual: ActualCurve | None = None
    """The table that the run of another engine was judged by; null where our engine trained it."""
    seal: Sha256
    """The plan's seal."""
    verdict: Literal["inside", "outside", "cannot tell"]
    """Against the 95 % band; `cannot tell` while runs are missing or there is no forecast."""
    reason: str
    """Why, with the numbers."""
    curve_share_inside: float | None
    """Share of the held-out curve inside its 95 % band; null where there is none."""
    causes: tuple[str, ...]
    """Likely causes of a miss, most likely first."""
    runs: tuple[RunAudit, ...]
    """Every run of the plan."""
