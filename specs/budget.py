"""The question: what may be spent, on which data and cluster, and on which evidence the answer shall rest."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from specs.base import Slug, Spec
from specs.data import DataSpec, DeclaredText
from specs.quantity import DeviceHours, Dollars, Flop, Seconds


class Published(Spec):
    """Rest on published laws from the catalog."""

    kind: Literal["published"]
    """Selects this evidence."""
    law: Slug
    """Law for allocation, learning rate and batch size."""
    loss: Slug | None = None
    """Law for the loss; used only where it was fitted on the budget's own data."""


class Pilots(Spec):
    """Rest on one's own runs: a ladder of isoFLOP budgets below the target, bought with a share of its compute."""

    kind: Literal["pilots"]
    """Selects this evidence."""
    prior: Slug
    """Law from the catalog that centres the ladder and gives the pilots' learning rate and batch."""
    share: float = Field(gt=0, le=1)
    """Compute of all pilots as a share of the target's."""
    budgets: int = Field(default=3, ge=2, le=12)
    """isoFLOP budgets, half a decade apart."""
    sizes: int = Field(default=5, ge=4, le=15)
    """Model sizes of each budget."""
    spread: float = Field(default=2.0, gt=1, le=4)
    """Ratio of neighbouring sizes. Five sizes 2 apart span a factor 4 either side of the prior's optimum, where a
    parabola's bias is 1.4 % in size (docs/log.md); closer ones scatter less, but need a prior that is right."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 2.0)
    """Multiples of the learning rate that are tried besides 1, at the middle size of the second largest budget."""


Evidence = Annotated[Published | Pilots, Field(discriminator="kind")]


class Budget(Spec):
    """What a person writes. Exactly one of `compute`, `device_hours` and `money` says how much may be spent."""

    kind: Literal["budget"]
    """Selects this document."""
    name: Slug
    """Names the folder under `plans/`."""
    compute: Flop | None = None
    """Training compute of the target run, C = M D."""
    device_hours: DeviceHours | None = None
    """Device-hours of the target run, at the cluster's expected utilisation."""
    money: Dollars | None = None
    """Price of the target run, at the cluster's price and expected utilisation."""
    deadline: Seconds | None = None
    """The target run must be done within this time; refused where it cannot."""
    evidence: Evidence
    """What the plan rests on."""
    family: Slug
    """Family of shapes from the catalog."""
    cluster: str = Field(min_length=1)
    """Cluster from the catalog, or the path of a cluster file beside this one."""
    data: DataSpec
    """The text to train on."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of parameters and activations."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of weights and data order."""
    ledger: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.jsonl$"),
        Field(examples=["ledger.jsonl"]),
    ] = "ledger.jsonl"
    """File beside this budget that audits append to and plans are fitted on."""

    @model_validator(mode="after")
    def _one_currency(self) -> Self:
        given = [name for name in ("compute", "device_hours", "money") if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(given) if given else "none of them"
            raise ValueError(
                f"exactly one of compute, device_hours and money is needed, but {said} is given; keep one"
            )
        return self

    @model_validator(mode="after")
    def _pilots_need_text(self) -> Self:
        if isinstance(self.evidence, Pilots) and isinstance(self.data.text, DeclaredText):
            raise ValueError(
                "pilots train on real text, but data.text is only declared; "
                "write source: files or source: installed, or evidence.kind: published"
            )
        return self
