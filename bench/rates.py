"""Learning rate and batch size on Step Law's runs: `python -m bench.rates`.

A law's cost in a cell is what the grid's run nearest to its answer (in logarithms) loses against the cell's best. Own
fits never see the cell that they answer for. Read from ../shared/data relative to the repository; skipped where absent.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from planner.scaling import lr_and_batch
from planner.scaling.lr_and_batch import RateGrid, RateLaw, fit_rates

DATA = Path(__file__).parents[1].parent / "shared/data/step_law/dense_lr_bs_loss.csv"
SEQUENCE = 2048
Row = tuple[str, str, str]
Answer = Callable[[float, float], tuple[float, float]]


def main() -> None:
    """Print every line."""
    table = Table(
        "what", "reference", "ours", title="Step Law's 17 cells: cost in loss, %", title_justify="left"
    )
    try:
        for row in step_law_rows():
            table.add_row(*row)
    except FileNotFoundError as absent:
        table.add_row("skipped", "", f"{absent.filename} is absent")
    Console(width=150).print(table)


def step_law() -> RateGrid:
    """The runs: N without embeddings, smoothed final loss."""
    names = ("N", "D", "lr", "bs", "smooth loss")
    with DATA.open() as file:
        rows = [[float(row[name]) for name in names] for row in csv.DictReader(file) if row["smooth loss"]]
    size, tokens, lr, batch, loss = np.array(rows).T
    return RateGrid(size, tokens, lr, batch * SEQUENCE, loss)


def cost(grid: RateGrid, cell: int, answer: tuple[float, float]) -> float:
    """Per cent above the cell's best at the run nearest to an answer."""
    there = grid.take(grid.cell == cell)
    near = np.hypot(np.log(there.lr / answer[0]), np.log(there.batch / answer[1]))
    return float(100 * there.above_best()[np.argmin(near)])


def costs(grid: RateGrid, answer_of: Callable[[int], Answer], cells: list[int]) -> str:
    """Mean and worst cost over cells."""
    found = []
    for cell in cells:
        here = grid.take(grid.cell == cell)
        found.append(cost(grid, cell, answer_of(cell)(float(here.size[0]), float(here.tokens[0]))))
    return f"{np.mean(found):.2f} (worst {max(found):.2f})"


def deepseek(size: float, tokens: float) -> tuple[float, float]:
    """DeepSeek LLM, Eq. 1, with C = 6 N D."""
    flop = 6 * size * tokens
    return 0.3118 * flop**-0.125, 0.2920 * flop**0.3271


def steplaw(size: float, tokens: float) -> tuple[float, float]:
    """Step Law, Eq. 1."""
    return 1.79 * size**-0.713 * tokens**0.307, 0.58 * tokens**0.571


def own(law: RateLaw) -> Answer:
    """A fitted law's answers."""

    def answer(size: float, tokens: float) -> tuple[float, float]:
        lr, batch = law.best(size, tokens)
        assert batch is not None  # this grid varies it
        return lr, batch

    return answer


def best_lr_at(law: RateLaw, size: float, tokens: float, batch: float) -> float:
    """The best learning rate where the batch is fixed at `batch` tokens, on a grid that varied it."""
    lr, best_batch = own(law)(size, tokens)
    lean = law.curvature[0, 1] / law.curvature[0, 0]
    return float(lr * (batch / best_batch) ** -lean)


def step_law_rows() -> Iterator[Row]:
    """Published laws, own fits without the cell, and own fits on the smaller half."""
    grid = step_law()
    everywhere = list(range(int(grid.cell.max()) + 1))
    yield "DeepSeek's law", "0.88 (worst 1.16)", costs(grid, lambda _: deepseek, everywhere)
    yield "Step Law (fitted on these runs)", "0.13", costs(grid, lambda _: steplaw, everywhere)
    without = {cell: own(fit_rates(grid.take(grid.cell != cell))) for cell in everywhere}
    yield "own fit without the cell", "", costs(grid, without.__getitem__, everywhere)
    flop = np.array([(grid.size * grid.tokens)[grid.cell == cell][0] for cell in everywhere])
    above = [cell for cell in everywhere if flop[cell] > np.median(flop)]
    below = own(fit_rates(grid.take(~np.isin(grid.cell, above))))
    yield (
        "own fit on the nine smaller budgets, cost on the eight larger",
        "",
        costs(grid, lambda _: below, above),
    )
    yield "Step Law on those eight", "", costs(grid, lambda _: steplaw, above)
    law = fit_rates(grid)
    for name, row in zip(("ln lr", "ln batch"), law.bottom, strict=True):
        reference = "0.58 -0.71 0.31" if name == "ln lr" else "-0.54 0 0.57"
        yield f"{name}: constant, power of N, power of D", reference, " ".join(f"{x:.2f}" for x in row)
    fixed = np.log(best_lr_at(law, 5e8, 4e10, 5e5) / best_lr_at(law, 5e8, 2e10, 5e5)) / np.log(2)
    yield "power of D in the rate at a fixed batch", "-0.3 (Bjorck, Delphi)", f"{fixed:.2f}"
    low, high = law.band(5e8, 2e10)
    yield (
        f"near-optimal band ({lr_and_batch.NEAR_OPTIMAL:.2%}) of the rate",
        "",
        f"x {high / low:.1f} from end to end",
    )
    yield "regime", "the batch grows with data", law.regime


if __name__ == "__main__":
    main()
