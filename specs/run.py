"""A run: exactly what changes the numbers; and, apart from that, how it is executed."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from specs.checkpoint_retention import Retention
from specs.data import CorpusRef
from specs.document.base import Fingerprint, Sha256, Spec
from specs.layout import Layout
from specs.mix import Mix
from specs.model import ModelSpec
from specs.optim import OptimSpec
from specs.profile_window import ProfileWindow
from specs.spike_guard import SpikeGuardSpec

Documents = Literal["joined", "masked"]
"""Whether attention goes across the documents of a sequence."""


class Evaluation(Spec):
    """When the held-out loss is measured, and on how much: always the same first sequences of the held-out split."""

    every_steps: int = Field(ge=1)
    """Steps between points of the held-out curve."""
    sequences: int = Field(ge=1)
    """Held-out sequences of one point of the curve."""
    final_sequences: int = Field(ge=1)
    """Held-out sequences of the last evaluation, the one that is audited."""


class Parent(Spec):
    """Another run whose constant phase this run continues (the multi-step schedule shares it between lengths)."""

    kind: Literal["run"] = "run"
    """Selects this origin."""
    run: Fingerprint
    """The parent's fingerprint."""
    step: int = Field(ge=1)
    """The parent's step that this run starts from."""


class Imported(Spec):
    """Weights from outside, brought in by `isoplan import`. AdamW starts with zero moments, at step 0."""

    kind: Literal["weights"] = "weights"
    """Selects this origin."""
    sha256: Sha256
    """Digest of their values in fp32, by name; they are in `data/weights/` under its first 16 digits."""


class RunSpec(Spec):
    """What changes the numbers of a training run. Its fingerprint names the run and its folder."""

    kind: Literal["run"] = "run"
    """Selects this document."""
    model: ModelSpec
    """The shape."""
    data: CorpusRef
    """The corpus, or the mix, by content."""
    mix: Mix | None = Field(default=None, exclude_if=lambda mix: mix is None)
    """Shares of the sources of a mix; absent where the data are one corpus."""
    documents: Documents = "joined"
    """Sequences are cut across document boundaries. `joined`: attention goes across them. `masked`: it stays within
    documents, and the prediction of a document's first token from another does not count."""
    optim: OptimSpec
    """Optimizer, batch and schedule."""
    evaluation: Evaluation
    """The held-out measurements."""
    precision: Literal["fp32", "bf16"]
    """Parameters and activations; gradients, masters and moments are always fp32."""
    seed: int = Field(ge=0, lt=2**32)
    """Seed of the weights and of the order of the data."""
    guard: SpikeGuardSpec | None = SpikeGuardSpec()
    """Loss-spike guard; null applies every step, and stops where a loss is not finite."""
    parent: Annotated[Parent | Imported, Field(discriminator="kind")] | None = None
    """Where the first weights come from, another run or an import; null draws them from the seed."""

    @model_validator(mode="after")
    def _curve_inside(self) -> Self:
        if self.evaluation.every_steps > self.optim.steps:
            raise ValueError(
                f"evaluation.every_steps {self.evaluation.every_steps} is past the last step {self.optim.steps}; "
                f"write at most {self.optim.steps}"
            )
        return self

    @model_validator(mode="after")
    def _attended(self) -> Self:
        if (self.documents == "masked") != (self.model.mean_attended_tokens is not None):
            raise ValueError(
                "documents: masked and model.mean_attended_tokens belong together; "
                "plan the budget with documents: masked, or leave both out"
            )
        return self

    @model_validator(mode="after")
    def _mix_inside(self) -> Self:
        if self.mix is None:
            return self
        last, sources = self.mix.phases[-1].from_step, len(self.mix.sources)
        if last >= self.optim.steps:
            raise ValueError(
                f"a phase of the mix begins at step {last}, but the run has {self.optim.steps}; "
                f"write at most {self.optim.steps - 1}"
            )
        if min(self.evaluation.sequences, self.evaluation.final_sequences) < sources:
            raise ValueError(
                f"evaluations on fewer sequences than the mix has sources; write {sources} sequences or more"
            )
        return self

    @property
    def batch_tokens(self) -> int:
        """Tokens of one step."""
        return self.optim.batch_sequences * self.model.context

    @property
    def tokens(self) -> int:
        """D: tokens trained on."""
        return self.optim.steps * self.batch_tokens

    @property
    def compute_flop(self) -> float:
        """C = M D with this shape's exact M."""
        return float(self.model.flop_per_token) * self.tokens

    def counts(self) -> dict[str, int | float]:
        """Its size and length, as answers to programs have them: N with and without embeddings, exact M, D, C."""
        return {
            "params": self.model.params,
            "block_params": self.model.block_params,
            "flop_per_token": self.model.flop_per_token,
            "tokens": self.tokens,
            "compute_flop": self.compute_flop,
        }


class Execution(Spec):
    """How a run is executed: what changes its speed and safety, never its numbers beyond rounding."""

    device: Literal["cpu", "cuda"]
    """Which torch device."""
    layout: Layout
    """Ranks and their axes."""
    kernels: Literal["auto", "torch", "apex", "triton", "flash-attn"] = "auto"
    """Back end of the fused operations. A name takes what that back end has, and the rest from torch; `auto` takes each
    operation from the fastest that works here. The choice is recorded."""
    threads_per_rank: int = Field(default=1, ge=1)
    """CPU threads of one rank."""
    checkpoint_interval_s: float = Field(gt=0)
    """Seconds between checkpoints."""
    checkpoint_interval_steps: int | None = Field(default=None, ge=1)
    """Steps between further checkpoints; null writes none."""
    retention: Retention = Retention()
    """Which checkpoints stay."""
    hang_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds without progress after which a run is ended as hung and started again; ten median steps, if that is
    longer."""
    profile: ProfileWindow | None = None
    """Steps that are profiled; null for none."""
