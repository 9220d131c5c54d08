"""Repeats, serving and over-training beside published figures: `python -m bench.data_limits`.

A law fitted on Muennighoff et al.'s runs of one epoch forecasts their runs of many, with and without the discount. Read
from ../shared/data relative to the repository; skipped where absent.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from rich.table import Table

from bench.log_huber import fit
from planner.design.allocation import SERVING_SHARE
from planner.scaling import laws
from planner.scaling.data_constrained import effective_tokens
from planner.scaling.laws import Array, Form, optimum, value

DATA = Path(__file__).parents[1].parent / "shared/data/datablations/c4_repeat_runs.csv"
EPOCHS = ((1.01, 4.1), (4.1, 16.0), (16.0, 64.0))
Row = tuple[str, str, str]
_MOST_FLOP = 1e60
"""Far beyond any budget: where a law's loss has come down to its floor."""
_HALVINGS = 200
"""A bisection in logarithms is at the last digit of a float long before."""


@dataclass(frozen=True)
class LawConstants:
    """A law of size and tokens with its constants."""

    form: Form
    params: tuple[float, ...]
    """In the order of form.constants."""
    cost_per: float
    """FLOP that a unit of size costs per trained token: 6 for parameters, 1 for FLOP per token."""

    def loss(self, size: ArrayLike, tokens: ArrayLike) -> Array:
        """Nats per token."""
        return value(self.form, self.params, size, tokens)

    def best(self, flop: float) -> tuple[float, float, float]:
        """The compute-optimal size, tokens and loss."""
        size, tokens, loss = optimum(self.form, self.params, flop, self.cost_per)
        return float(size), float(tokens), float(loss)


EPOCH = LawConstants(laws.STANDARD, (1.81722, 477.83, 2143.42, 0.34731, 0.36717), 6.0)
"""The global optimum on Epoch's 240 rows (bench/laws.py)."""


@dataclass(frozen=True)
class Overtrained:
    """A run with more tokens per size than its compute would choose."""

    size: float
    tokens: float
    loss: float
    """Nats per token."""
    penalty: float
    """Nats per token above the compute-optimal run of the same compute."""
    wasted: float
    """Share of the compute that a compute-optimal run of the same loss would save."""


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


def flop_for_loss(law: LawConstants, loss: float) -> float:
    """The least compute that reaches a loss; ValueError where none does."""
    lowest = law.best(_MOST_FLOP)[2]
    if loss <= lowest:
        raise ValueError(f"no compute reaches {loss:.4g} nats/token: this law ends at {lowest:.4g}")
    low, high = 0.0, float(np.log(_MOST_FLOP))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if law.best(float(np.exp(middle)))[2] > loss else (low, middle)
    return float(np.exp(high))


def inference_optimum(law: LawConstants, compute_flop: float, served_tokens: float) -> tuple[float, float]:
    """Size and tokens that reach the compute-optimal loss of `compute_flop` at the lowest cost of training and serving.

    Minimises cost_per X (D + S/3) at that loss. The training alone then costs more than `compute_flop`, and serving
    less than it would have. For laws of two power terms.
    """
    if served_tokens < 0:
        raise ValueError(f"served tokens {served_tokens} must not be negative")
    _, fewest, loss = law.best(compute_flop)
    if served_tokens == 0:
        return law.best(compute_flop)[:2]
    low, high = np.log(fewest), np.log(fewest) + 60.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tokens = float(np.exp(middle))
        above = float(law.loss(_served_size(law, tokens, served_tokens), tokens)) > loss
        low, high = (middle, high) if above else (low, middle)
    tokens = float(np.exp((low + high) / 2))
    return _served_size(law, tokens, served_tokens), tokens


def _served_size(law: LawConstants, tokens: float, served: float) -> float:
    """The size at which a per cent of cost gains the same spent on size as on tokens.

    alpha A X**-alpha = beta B D**-beta (1 + S / 3D), whatever function of the two terms' sum the loss is.
    """
    known = dict(zip(law.form.constants, law.params, strict=True))
    alpha, beta = known["alpha"], known.get("beta", known["alpha"])
    slope = beta * known["B"] * tokens**-beta * (1 + SERVING_SHARE * served / tokens)
    return float((alpha * known["A"] / slope) ** (1 / alpha))


def overtrained(law: LawConstants, compute_flop: float, factor: float) -> Overtrained:
    """The run of the same compute with `factor` times the optimum's tokens per size (below 1: with fewer).

    Four times costs .0044 nats at 1e24 FLOP on Epoch's constants, worth 16 % of the compute.
    """
    if factor <= 0:
        raise ValueError(f"the factor on tokens per size is {factor}; it must be positive")
    size, tokens, best = law.best(compute_flop)
    size, tokens = size / factor**0.5, tokens * factor**0.5
    loss = float(law.loss(size, tokens))
    wasted = 1 - flop_for_loss(law, loss) / compute_flop
    return Overtrained(size=size, tokens=tokens, loss=loss, penalty=loss - best, wasted=max(wasted, 0.0))


def repeat_rows() -> Iterator[Row]:
    """Mean error (and bias) of the loss by epochs, tokens counted in full and discounted."""
    names = ("params", "tokens", "unique_tokens", "val_loss")
    with DATA.open() as file:
        size, tokens, unique, loss = np.array([[float(r[n]) for n in names] for r in csv.DictReader(file)]).T
    worth = effective_tokens(tokens, unique)
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
