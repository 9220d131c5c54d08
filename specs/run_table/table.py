"""A table of finished runs, checked and in one unit."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specs.law import LossUnit, SizeKind

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RunTable:
    """Finished runs in the table's own convention of size and compute. Arrays by run, nan where a cell is empty."""

    path: Path
    sha256: str
    """Of the file's bytes, or of the columns as JSON where a program gave them."""
    line: NDArray[np.int64]
    """(runs,) line of the file that each run stands in (row number, from 1, in a Parquet file)."""
    name: tuple[str, ...]
    """Each run's own name, or "line 7" where it has none ("row 7" where a line holds several)."""
    size: Array
    size_kind: SizeKind
    tokens: Array
    loss: Array
    """Nats per token, whatever the table's unit was."""
    flop: Array
    """Compute as the table gives it; cost_per * size * tokens where it gives none."""
    cost_per: float
    """FLOP that one unit of size costs per token: 6 for parameters, 1 for FLOP per token."""
    steps: Array | None
    lr: Array | None
    batch_tokens: Array | None
    seed: Array | None
    unique_tokens: Array | None
    loss_unit: LossUnit
    """Unit that the table gives, in which results are shown as well."""
    bytes_per_token: float | None
    columns: dict[str, str]
    """The table's column for each quantity that was found: this class's names, a size by its kind, shape columns by
    theirs in `specs.model.ModelSpec`."""
    notes: tuple[str, ...]
    """What was assumed or skipped, a line each."""
    other_sizes: dict[SizeKind, Array] = field(default_factory=dict)
    """Size in the other conventions that the table gives."""
    excluded: tuple[str, ...] = ()
    """Runs of a ledger that a person excluded, each with the reason; they are in no array."""

    @property
    def largest_flop(self) -> float:
        """Compute of the largest run, cost_per * size * tokens."""
        return float((self.cost_per * self.size * self.tokens).max())

    def in_flop_per_token(self) -> "RunTable | None":
        """The table with its sizes in FLOP per token; None where it does not give these."""
        if self.size_kind == "flop_per_token":
            return self
        size = self.other_sizes.get("flop_per_token")
        return None if size is None else replace(self, size=size, size_kind="flop_per_token", cost_per=1.0)
