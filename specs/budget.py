"""The budget: what may be spent, on which data and cluster, and which evidence the plan is based on."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from specs.data import DataSpec, DeclaredText
from specs.document.base import Slug, Spec
from specs.document.quantity import DeviceHours, Dollars, Flop, Joules, Loss, Params, Seconds, Tokens
from specs.humanize import duration, energy
from specs.law import LossUnit
from specs.optim import Schedule
from specs.run import Documents
from specs.spike_guard import SpikeGuardSpec


class Published(Spec):
    """Use published laws from the catalog."""

    kind: Literal["published"]
    """Selects this evidence."""
    law: Slug
    """Law for allocation, learning rate and batch size."""
    loss: Slug | None = None
    """Law for the loss: what a target loss and an inference-aware objective are computed with. It gives a loss only
    for the data that it was fitted on."""
    hyper: Slug | None = None
    """Law for learning rate and batch size instead of `law`'s."""
    reach: float = Field(default=1e4, ge=1)
    """Largest ratio of the target's compute to the compute that `law` was fitted on, beyond which there is no plan.
    DeepSeek LLM went 3,300 times beyond its 3e20 FLOP (section 3.3 and the 67B)."""


TablePath = Annotated[str, Field(min_length=1, examples=["runs.csv"])]
"""Path of a table of runs, from the budget's folder."""
TableColumns = Annotated[dict[str, str], Field(examples=[{"loss": "val/loss"}])]
"""The table's column for each quantity that its own name does not tell."""


class JoinedTable(Spec):
    """A table of runs that join the pilots: of the same text and the same recipe."""

    table: TablePath
    """CSV, JSONL or Parquet file, a row for each finished run, beside this budget. It must say the FLOP per token M of
    its runs, or their shapes, as the pilots are fitted in M."""
    columns: TableColumns = Field(default_factory=dict)
    """The table's column for each quantity where its name does not say so: {loss: val/loss}."""
    bytes_per_token: float | None = Field(default=None, gt=0)
    """UTF-8 bytes of a token of the table's text, for losses per byte."""
    loss_unit: LossUnit | None = None
    """Unit of its losses where the table does not say."""
    same_text: bool
    """True states that text, tokenizer and held-out set of its runs are this budget's, which nothing can check. Runs of
    others do not join."""

    @field_validator("same_text")
    @classmethod
    def _is_comparable(cls, same_text: bool) -> bool:
        if not same_text:
            raise ValueError(
                "losses of another text, tokenizer or held-out set cannot join the pilots; leave evidence.also out, or "
                "write same_text: true if the table's are this budget's"
            )
        return same_text


class Runs(Spec):
    """Use a table of finished runs from any engine. The law is fitted in the table's own size and tokens, and the
    target's shape is counted as the table counts."""

    kind: Literal["runs"]
    """Selects this evidence."""
    table: TablePath
    """CSV, JSONL or Parquet file, a row for each finished run, beside this budget."""
    columns: TableColumns = Field(default_factory=dict)
    """The table's column for each quantity where its name does not say so: {loss: val/loss}."""
    bytes_per_token: float | None = Field(default=None, gt=0)
    """UTF-8 bytes of a token of the table's text, for losses per byte."""
    loss_unit: LossUnit | None = None
    """Unit of its losses where the table does not say."""
    same_text: bool = False
    """True states that text, tokenizer and held-out set of its runs are this budget's, which nothing can check. Only
    then is a loss forecast, and may the budget ask for one; otherwise the table's law gives shape and tokens alone."""
    prior: Slug
    """Law from the catalog for learning rate and batch size, which the table's law does not give."""
    reach: float = Field(default=1e3, ge=1)
    """Largest ratio of the target's compute to that of the table's largest run, beyond which there is no plan; as
    `reach` of pilots."""


class Pilots(Spec):
    """Use the user's own runs: a ladder of isoFLOP budgets below the target, bought with a share of its compute."""

    kind: Literal["pilots"]
    """Selects this evidence."""
    prior: Slug
    """Law from the catalog that centres the ladder and gives the pilots' learning rate and batch."""
    share: float = Field(gt=0, le=1)
    """Compute of all pilots as a share of the target's."""
    budgets: int | None = Field(default=None, ge=2, le=12)
    """isoFLOP budgets, half a decade apart as in DeepSeek LLM; null leaves number and distance to the planner, which
    takes what should leave the target's loss least unsure (planner/design/pilot_design.py)."""
    sizes: int | None = Field(default=None, ge=4, le=15)
    """Model sizes of each budget; null is chosen as above."""
    spread: float | None = Field(default=None, gt=1, le=4)
    """Ratio of neighbouring sizes; null is chosen as above. Five sizes 2 apart span a factor 4 either side of the
    prior's optimum, where a parabola's bias is 1.4 % in size (docs/log.md); closer ones scatter less, but need a prior
    that is right."""
    reach: float = Field(default=1e3, ge=1)
    """Largest ratio of the target's compute to the largest pilot's, beyond which there is no plan; DeepSeek LLM
    predicted its loss 1000 times beyond its pilots (Fig. 5)."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 2.0)
    """Multiples of the learning rate that are tried besides 1, at the middle size of the second largest budget."""
    also: JoinedTable | None = None
    """Runs of another engine that join the pilots in the fit of the target's law; null for none."""


Evidence = Annotated[Published | Pilots | Runs, Field(discriminator="kind")]


class Optimal(Spec):
    """The lowest loss that the training compute can buy."""

    kind: Literal["optimal"]
    """Selects this objective."""


class Inference(Spec):
    """The cheapest model to train and to serve, 6 N D + 2 N D_served, of all that reach its loss (Sardana et al.,
    arXiv 2401.00448); training it takes the whole budget. Needs a loss law."""

    kind: Literal["inference"]
    """Selects this objective."""
    served: Tokens
    """Inference tokens: all that the model is expected to read and write after training."""


class FixedSize(Spec):
    """A model of a given size, trained for as long as the budget lasts."""

    kind: Literal["size"]
    """Selects this objective."""
    params: Params
    """All parameters, embedding and head included."""


class FixedRatio(Spec):
    """As many tokens for each parameter as given, whatever the budget."""

    kind: Literal["ratio"]
    """Selects this objective."""
    tokens_per_param: float = Field(gt=0)
    """Training tokens over all parameters."""


Objective = Annotated[Optimal | Inference | FixedSize | FixedRatio, Field(discriminator="kind")]

Currency = Literal["compute", "device_hours", "money", "energy", "loss", "deadline"]
_EXCLUSIVE: tuple[Currency, ...] = ("compute", "device_hours", "money", "energy", "loss")


class Budget(Spec):
    """What a user writes. One of `compute`, `device_hours`, `money`, `energy` and `loss` says how much may be spent,
    or `deadline` alone: the whole cluster for that long."""

    kind: Literal["budget"]
    """Selects this document."""
    name: Slug
    """Names the folder under `plans/`."""
    compute: Flop | None = None
    """Training compute of the target run, C = M D."""
    device_hours: DeviceHours | None = None
    """Device-hours of the target run at its expected speed."""
    money: Dollars | None = None
    """Price of the target run at the cluster's price and its expected speed."""
    energy: Joules | None = None
    """Energy of the target run at the cluster's power and its expected speed."""
    loss: Loss | None = None
    """Loss to reach with the least compute; needs a loss law that holds for the data."""
    deadline: Seconds | None = None
    """The target run must be done within this time; alone it is the budget itself."""
    objective: Objective = Optimal(kind="optimal")
    """What the budget is spent on."""
    evidence: Evidence
    """What the plan is based on."""
    family: Slug
    """Family of shapes from the catalog."""
    aspect: int | None = Field(default=None, ge=1)
    """Width over layers of the shapes; null is the family's practice, and no deeper than models are built."""
    batch: Tokens | None = None
    """Tokens per step of the target run; null is what the law says."""
    schedule: Schedule | None = None
    """How the learning rate falls after the warmup; null is the family's way."""
    cluster: str = Field(min_length=1)
    """Cluster from the catalog, or the path of a cluster file beside this one."""
    data: DataSpec
    """The text to train on."""
    documents: Documents = "joined"
    """`masked`: attention stays within documents, positions count from a document's beginning, and the prediction of a
    document's first token from another does not count. Needs a text whose documents end with a token."""
    epochs: float = Field(default=4.0, ge=1)
    """Most passes over the unique tokens, of a mix over those of any source. Four are worth 3.73 fresh ones
    (Muennighoff et al., arXiv 2305.16264)."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of parameters and activations."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of weights and data order."""
    guard: SpikeGuardSpec | None = SpikeGuardSpec()
    """Loss-spike guard against diverging runs; null applies every step."""
    ledger: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.jsonl$"),
        Field(examples=["ledger.jsonl"]),
    ] = "ledger.jsonl"
    """File beside this budget that audits append to and plans are fitted on."""

    @field_validator(*_EXCLUSIVE[1:])
    @classmethod
    def _only_one_currency(cls, value: Any, info: ValidationInfo) -> Any:
        before = next((name for name in _EXCLUSIVE if info.data.get(name) is not None), None)
        if value is not None and before is not None:
            raise ValueError(
                f"{before} and {info.field_name} both set how much may be spent; keep one of them"
            )
        return value

    @model_validator(mode="after")
    def _some_currency(self) -> Self:
        if all(getattr(self, name) is None for name in (*_EXCLUSIVE, "deadline")):
            raise ValueError(
                "no key sets how much may be spent; "
                "write one of compute, device_hours, money, energy, loss and deadline"
            )
        return self

    @field_validator("data")
    @classmethod
    def _pilots_need_text(cls, data: DataSpec, info: ValidationInfo) -> DataSpec:
        declared = any(isinstance(part.text, DeclaredText) for part in data.parts().values())
        if isinstance(info.data.get("evidence"), Pilots) and declared:
            raise ValueError(
                "pilots train on real text, but data.text names no files (source: declared); "
                "write source: files or source: installed, or evidence.kind: published or runs"
            )
        return data

    @property
    def currency(self) -> Currency:
        """The field that says how much may be spent."""
        return next((name for name in _EXCLUSIVE if getattr(self, name) is not None), "deadline")

    @property
    def amount_text(self) -> str:
        """How much may be spent, as text."""
        text = {
            "compute": lambda value: f"{value:.4g} FLOP",
            "device_hours": lambda value: f"{value:,.6g} device-hours",
            "money": lambda value: f"${value:,.0f}",
            "energy": energy,
            "loss": lambda value: f"a loss of {value:g} nats per token",
            "deadline": duration,
        }
        return text[self.currency](getattr(self, self.currency))
