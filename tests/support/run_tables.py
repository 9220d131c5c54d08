"""Tables of runs from arrays, as a reader would give them."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from specs.run_table.table import RunTable


def run_table(
    size: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    steps: ArrayLike | None = None,
    name: str = "runs.csv",
    **changes: object,
) -> RunTable:
    """A table of these runs, in parameters and nats per token; `changes` are fields of RunTable."""
    sizes, counts, losses = (np.asarray(column, float) for column in (size, tokens, loss))
    lines = np.arange(2, len(sizes) + 2)
    fields: dict[str, object] = {
        "path": Path(name),
        "sha256": "0" * 64,
        "line": lines,
        "name": tuple(f"line {line}" for line in lines),
        "size": sizes,
        "size_kind": "params",
        "tokens": counts,
        "loss": losses,
        "flop": 6 * sizes * counts,
        "cost_per": 6.0,
        "steps": None if steps is None else np.asarray(steps, float),
        "lr": None,
        "batch_tokens": None,
        "seed": None,
        "unique_tokens": None,
        "loss_unit": "nats/token",
        "bytes_per_token": None,
        "columns": {"size": "n", "tokens": "d", "loss": "loss"},
        "notes": (),
    }
    return RunTable(**(fields | changes))  # type: ignore[arg-type]
