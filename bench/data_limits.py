"""Repeats, serving and over-training beside published figures: `python -m bench.data_limits`.

A law fitted on Muennighoff et al.'s runs of one epoch forecasts their runs of many, with and without the discount. Read
from ../shared/data relative to the repository; skipped where absent.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from planner.scaling import laws
from planner.scaling.data_constrained import Surface, effective_tokens, inference_optimum, overtrained
from planner.scaling.fit import fit

DATA = Path(__file__).parents[1].parent / "shared/data/datablations/c4_repeat_runs.csv"
EPOCHS = ((1.01, 4.1), (4.1, 16.0), (16.0, 64.0))
EPOCH = Surface(laws.STANDARD, (1.81722, 477.83, 2143.42, 0.34731, 0.36717), 6.0)
"""The global optimum on Epoch's 240 rows (bench/laws.py)."""
Row = tuple[str, str, str]


def main() -> None:
    """Print every line."""
    table = Table("what", "reference", "ours", title="Data limits and inference", title_justify="left")
    for row in arithmetic_rows():
        table.add_row(*row)
    try:
        for row in repeat_rows():
            table.add_row(*row)
    except FileNotFoundError as absent:
        table.add_row("skipped", "", f"{absent.filename} is absent")
    Console(width=150).print(table)


def arithmetic_rows() -> Iterator[Row]:
    """The published figures again."""
    yield (
        "4 and 16 epochs, in fresh ones",
        "3.73, 10.6",
        f"{effective_tokens(4, 1):.2f}, {effective_tokens(16, 1):.1f}",
    )
    size, tokens = inference_optimum(EPOCH, 1e24, 1e13)
    alone = 1e24 + 2 * EPOCH.best(1e24)[0] * 1e13
    saved = 1 - (6 * size * tokens + 2 * size * 1e13) / alone
    found = f"{size / 1e9:.1f}B, {tokens / 1e12:.2f}T, {saved:.1%} saved"
    yield "loss of the 1e24 optimum, 1e13 tokens served", "48.8B, 4.29T, 24 % saved", found
    four = overtrained(EPOCH, 1e24, 4)
    yield (
        "four times the optimum's tokens per size",
        ".0044 nats, 16 %",
        f"{four.penalty:.4f} nats, {four.wasted:.1%}",
    )


def repeat_rows() -> Iterator[Row]:
    """Mean error (and bias) of the loss by epochs, tokens counted in full and discounted."""
    names = ("params", "tokens", "unique_tokens", "val_loss")
    with DATA.open() as file:
        size, tokens, unique, loss = np.array([[float(r[n]) for n in names] for r in csv.DictReader(file)]).T
    worth = np.array([effective_tokens(d, u) for d, u in zip(tokens, unique, strict=True)])
    epochs = tokens / unique
    once = epochs < EPOCHS[0][0]
    law = fit(laws.STANDARD, size[once], tokens[once], loss[once], cost_per=6.0)
    for low, high in EPOCHS:
        there = (epochs > low) & (epochs <= high)
        plain, discounted = (
            100 * np.log(law.predict(size[there], counted[there]) / loss[there])
            for counted in (tokens, worth)
        )
        yield (
            f"{low:.0f} to {high:.0f} epochs, {there.sum()} runs: mean |error| (bias), %",
            f"{np.abs(plain).mean():.2f} ({plain.mean():+.2f}), tokens in full",
            f"{np.abs(discounted).mean():.2f} ({discounted.mean():+.2f})",
        )


if __name__ == "__main__":
    main()
