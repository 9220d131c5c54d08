"""Coverage and width of forecasts over random surfaces, ladders and noise: `python -m bench.coverage [--quick]`.

Each surface is asked once, at about its compute-optimal split beyond its ladder, and the true loss carries a run's
noise. Nothing is tuned on the targets.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from planner.scaling import laws
from planner.scaling.laws import Array
from planner.scaling.model_averaging import fit_mixture, forecast_loss
from planner.scaling.posterior import points

SURFACES, QUICK_SURFACES = 200, 20
DEMO_NOISES = (0.003, 0.01, 0.018)
"""Run-to-run noise of the demo's present shapes, of earlier ones, and of the first ladder (docs/log.md)."""
Row = tuple[str, str, str]


@dataclass(frozen=True)
class Ladder:
    """The pilots of one synthetic study."""

    budgets: Array
    sizes: int
    noise: float
    beyond: float
    """The target's compute over the largest budget."""


def main() -> None:
    """Print every line."""
    table = Table("what", "reference", "ours", title="Synthetic surfaces and ladders", title_justify="left")
    for row in coverage_rows("--quick" in sys.argv[1:]):
        table.add_row(*row)
    Console(width=150).print(table)


def coverage_rows(quick: bool) -> Iterator[Row]:
    """Any ladder with its noise and its length apart, then the demo's at three noises."""
    count = QUICK_SURFACES if quick else SURFACES
    ladders = [any_ladder(np.random.default_rng([seed, 2])) for seed in range(count)]
    told = np.array([study(ladder, seed) for seed, ladder in enumerate(ladders)])
    noise = np.array([ladder.noise for ladder in ladders])
    decades = np.array([np.log10(ladder.budgets[-1] / ladder.budgets[0]) for ladder in ladders])
    yield from _lines(f"any ladder, .2 to 1.6 % noise, 3-30x beyond ({count})", told)
    yield from _lines("  of these, noise under .5 %", told[noise < 0.005])
    yield from _lines("  of these, noise of .5 % and more", told[noise >= 0.005])
    yield from _lines("  of these, ladders under two decades", told[decades < 2])
    yield from _lines("  of these, ladders of two to three decades", told[decades >= 2])
    for level in DEMO_NOISES:
        demo = Ladder(np.array([1e11, 3e11, 1e12]), 5, level, 10.0)
        few = max(count // 2, QUICK_SURFACES)
        told = np.array([study(demo, 1000 + seed) for seed in range(few)])
        yield from _lines(f"the demo's ladder, {level:.1%} noise, 10x beyond ({few})", told)


def _lines(name: str, told: Array) -> Iterator[Row]:
    inside95, inside50, half, error = told.T
    yield (
        f"{name}: inside 95 %",
        "90-98 %",
        f"{100 * inside95.mean():.1f} % (50 %: {100 * inside50.mean():.0f} %)",
    )
    low, high = np.percentile(half, [10, 90])
    seen = f"+-{np.median(half):.2f} % [{low:.1f}, {high:.1f}]; {np.abs(error).mean():.2f} ({error.mean():+.2f}) %"
    yield f"{name}: half-width; mean |error| (bias)", "", seen


def any_ladder(generator: np.random.Generator) -> Ladder:
    """Three to six budgets over one to three decades, five to seven sizes each."""
    return Ladder(
        budgets=1e12 * np.geomspace(10 ** -generator.uniform(1, 3), 1, generator.integers(3, 7)),
        sizes=int(generator.integers(5, 8)),
        noise=float(10 ** generator.uniform(-2.7, -1.8)),
        beyond=float(10 ** generator.uniform(0.5, 1.5)),
    )


def study(ladder: Ladder, seed: int) -> tuple[float, float, float, float]:
    """(inside 95 %, inside 50 %, half-width in %, error in %) of one forecast on one random surface."""
    generator = np.random.default_rng([seed, 3])
    form, params = random_surface(generator)
    flop = np.repeat(ladder.budgets, ladder.sizes)
    spread = np.tile(np.geomspace(1 / 3, 3, ladder.sizes), len(ladder.budgets))
    off = np.repeat(generator.uniform(-0.4, 0.4, len(ladder.budgets)), ladder.sizes)
    size = laws.optimum(form, params, flop)[0] * spread * np.exp(off)
    seen = np.exp(ladder.noise * generator.standard_normal(len(size)))
    evidence = fit_mixture(
        points(size, flop / size, laws.value(form, params, size, flop / size) * seen), draws=1000
    )
    target_flop = ladder.budgets[-1] * ladder.beyond
    target_size = float(laws.optimum(form, params, target_flop)[0]) * np.exp(generator.uniform(-0.3, 0.3))
    told = forecast_loss(evidence, target_size, target_flop / target_size)
    true = float(laws.value(form, params, target_size, target_flop / target_size))
    true *= np.exp(ladder.noise * generator.standard_normal())
    inside95, inside50 = told.low_95 < true < told.high_95, told.low_50 < true < told.high_50
    return inside95, inside50, 50 * np.log(told.high_95 / told.low_95), 100 * np.log(told.median / true)


def random_surface(generator: np.random.Generator) -> tuple[laws.Form, list[float]]:
    """A standard or coupled surface with loss 2.7 at 1e12, a tenth to six tenths of it floor, and
    published-like exponents."""
    coupled = generator.random() < 0.5
    low, high = (0.35, 0.8) if coupled else (0.25, 0.5)
    while True:
        alpha, beta = generator.uniform(low, high, 2)
        k = generator.uniform(0.3, 0.9) if coupled else 1.0
        floor = 2.7 * generator.uniform(0.1, 0.6)
        slope = k * alpha * beta / (alpha + beta) * (1 - floor / 2.7)
        if 0.04 < slope < 0.14:  # d ln L / d ln C of sweeps at any scale lies between
            break
    inner, size = (2.7 - floor) ** (1 / k), 1e6 * np.exp(generator.uniform(-0.5, 0.5))
    a = inner * beta / (alpha + beta) * size**alpha
    b = inner * alpha / (alpha + beta) * (1e12 / size) ** beta
    return (
        (laws.COUPLED, [floor, a, b, alpha, beta, k])
        if coupled
        else (laws.STANDARD, [floor, a, b, alpha, beta])
    )


if __name__ == "__main__":
    main()
