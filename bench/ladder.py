"""The chosen ladder beside the paper's 8 x 10 at equal cost: `python -m bench.ladder [--quick]`.

First what is predicted before any run: half of the target's 95 % interval, and the compute at which the paper's ladder
should leave the same. Then what forecasts give: random surfaces (bench/coverage.py), pilots of legal shapes, made with
noise, forecast as `plan` does it. Every second surface walks off its law. Each is asked once, every ladder on the same.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.coverage import random_surface
from planner.design.inputs import declared_vocab
from planner.design.pilot_design import (
    HALF_DECADE,
    PAPER_BUDGETS,
    PAPER_SIZES,
    UNKNOWN_SD,
    Ladder,
    PilotSetting,
    affordable_ladder,
    best_ladder,
    candidate_ladders,
    half_widths,
    paper_ladders,
    pilot_setting,
)
from planner.design.pilot_runs import pilot_shapes
from planner.scaling import laws
from planner.scaling.laws import Array
from planner.scaling.model_averaging import DISCREPANCY_PER_DECADE, fit_mixture, forecast_loss
from planner.scaling.points import Points, points
from planner.scaling.posterior import NOISE_SD
from specs.budget import Budget, Pilots
from specs.document.files import from_catalog, load
from specs.law import Family, PublishedLaw

SPECS = Path(__file__).parents[1] / "specs"
SHIPPED = ("afternoon", "budget_1e21", "demo")
PAPER_TARGET_FLOP, PAPER_LOW_FLOP, PAPER_VOCAB = 1e24, 1e17, 100015
"""The 67B's compute, the smallest budget of its pilots, its tokenizer (DeepSeek LLM, sections 2 and 3)."""
SURFACES, QUICK_SURFACES = 60, 10
FIXED = (3, 5, 2.0, HALF_DECADE)
"""Budgets, sizes, spread and step of every ladder before they were chosen."""
SCALE_FLOP = 1e13
"""The target's compute on the random surfaces, whose loss is 2.7 at a tenth of it."""
PAPER = "8 x 10"
Row = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A share of a target's compute, and the ladders that it affords."""

    name: str
    pilots: Pilots
    setting: PilotSetting

    @property
    def ladders(self) -> dict[str, Ladder]:
        """The chosen one, the paper's as suits it best, and the one that was fixed."""
        paper = paper_ladders(self.pilots)
        return {
            "chosen": best_ladder(candidate_ladders(self.pilots), self.setting)[0],
            PAPER: paper[int(np.argmin(half_widths(paper, self.setting)))],
            "fixed": affordable_ladder(self.pilots, *FIXED),
        }


def cases() -> list[Case]:
    """The paper's own ladder below its 67B, and the shipped budgets that rest on pilots, their ladders left open."""
    budgets_flop = [PAPER_LOW_FLOP * HALF_DECADE**i for i in range(PAPER_BUDGETS)]
    share = PAPER_SIZES * sum(budgets_flop) / PAPER_TARGET_FLOP
    own = Pilots(kind="pilots", prior="deepseek", share=share, rates=(), reach=1e4)
    found = [case("the paper's", own, PAPER_TARGET_FLOP, "deepseek", PAPER_VOCAB)]
    for name in SHIPPED:
        path = SPECS / f"{name}.yaml"
        asked = load(path, Budget)
        assert isinstance(asked.evidence, Pilots)
        assert asked.compute is not None
        free = asked.evidence.model_copy(update={"budgets": None, "sizes": None, "spread": None})
        found.append(case(name, free, asked.compute, asked.family, declared_vocab(asked.data, path)))
    return found


def case(name: str, pilots: Pilots, target_flop: float, family: str, vocab: int) -> Case:
    """A case from the catalog; `target_flop` stands for the target's compute."""
    law = from_catalog(PublishedLaw, pilots.prior, None)
    assert law.allocation is not None
    assert law.hyper is not None
    shapes = from_catalog(Family, family, None)
    setting = pilot_setting(
        target_flop, law.allocation, law.hyper, shapes, vocab, law.compute_low_flop, pilots.reach
    )
    return Case(name, pilots, setting)


def main() -> None:
    """Print both tables."""
    surfaces = QUICK_SURFACES if "--quick" in sys.argv[1:] else SURFACES
    told = Table("budget, share", "ladder", "pilots", "FLOP", "predicted, 95 %", f"same by {PAPER}")
    seen = Table(
        "budget", "ladder", "half-width, median", "mean |error|", "inside 95 %", f"narrower than {PAPER}"
    )
    for one in cases():
        for row in predicted_rows(one):
            told.add_row(*row)
        for row in simulated_rows(one, surfaces):
            seen.add_row(*row)
    for title, table in (("Predicted", told), (f"Forecasts on {surfaces} random surfaces", seen)):
        table.title, table.title_justify = title, "left"
        Console(width=150).print(table)


def predicted_rows(one: Case) -> Iterator[Row]:
    """Every ladder as it is judged beforehand."""
    for name, ladder in one.ladders.items():
        width = float(half_widths([ladder], one.setting)[0])
        budgets_flop = ladder.budgets_flop(one.setting.target_flop)
        yield (
            f"{one.name}, {one.pilots.share:.2g}",
            f"{name}: {ladder.budgets} x {ladder.sizes}, step {ladder.budget_ratio:.3g}, spread {ladder.spread:.3g}",
            str(ladder.budgets * ladder.sizes),
            f"{budgets_flop[0]:.1e} to {budgets_flop[-1]:.1e}",
            f"+-{100 * width:.2f} %",
            "" if name == PAPER else f"{dearer(one, width):.3g} x its compute",
        )


def dearer(one: Case, width: float) -> float:
    """Times the compute at which the paper's ladder should leave this half-width, its top then anywhere up to the
    target; infinite where not even that does."""
    paper = one.ladders[PAPER]
    times = np.geomspace(0.1, 1 / paper.top_share, 400)
    enough = (
        half_widths([replace(paper, top_share=paper.top_share * more) for more in times], one.setting)
        <= width
    )
    return float(times[np.argmax(enough)]) if enough.any() else np.inf


def simulated_rows(one: Case, surfaces: int) -> Iterator[Row]:
    """Every ladder's forecasts on the same surfaces, and the paper's once more with all of its runs.

    Budgets below the prior's range are left out of the others: nobody knows sizes and rates there, but a surface does.
    """
    below = replace(one.setting, low_flop=sys.float_info.min)
    tried = [(name, ladder, one.setting) for name, ladder in one.ladders.items()]
    tried.append((f"{PAPER}, below the prior's range too", one.ladders[PAPER], below))
    told = {
        name: np.array([study(ladder, setting, i) for i in range(surfaces)])
        for name, ladder, setting in tried
    }
    for name, found in told.items():
        half, error, inside = found.T
        yield (
            one.name,
            name,
            f"+-{100 * np.median(half):.2f} %",
            f"{100 * np.abs(error).mean():.2f} %",
            f"{inside.mean():.0%}",
            "" if name == PAPER else f"in {np.mean(half < told[PAPER][:, 0]):.0%}",
        )


def study(ladder: Ladder, setting: PilotSetting, seed: int) -> tuple[float, float, bool]:
    """(half-width, error of the median, inside 95 %) of one forecast in ln L on one random surface."""
    generator = np.random.default_rng([seed, 4])
    form, params = random_surface(generator)
    size = float(laws.optimum(form, params, SCALE_FLOP)[0])
    true = float(np.log(laws.value(form, params, size, SCALE_FLOP / size)))
    true += NOISE_SD * generator.standard_normal()
    decades = np.log10(setting.target_flop / np.array(ladder.budgets_flop(setting.target_flop)))
    miss = seed % 2 * walk(decades, np.random.default_rng([seed, 5]))
    runs = pilots_of(ladder, setting, miss, form, params, generator)
    told = forecast_loss(fit_mixture(runs, draws=1000), size, SCALE_FLOP / size)
    half = float(np.log(told.high_95 / told.low_95)) / 2
    return half, float(np.log(told.median)) - true, bool(told.low_95 < np.exp(true) < told.high_95)


def walk(decades: Array, generator: np.random.Generator) -> Array:
    """What a surface is off its law in ln L at budgets this far below the target, smallest first: a random walk."""
    steps = generator.standard_normal(len(decades)) * np.sqrt(-np.diff(decades, append=0.0))
    return np.asarray(DISCREPANCY_PER_DECADE * np.cumsum(steps[::-1])[::-1])


def pilots_of(
    ladder: Ladder,
    setting: PilotSetting,
    miss: Array,
    form: laws.Form,
    params: list[float],
    generator: np.random.Generator,
) -> Points:
    """The ladder's runs on a surface: legal shapes, as far from the surface's optimum as from the prior's, and each
    budget's together off by up to .4, since no prior is right. Runs that tell nothing are left out."""
    log_flop = np.log(ladder.budgets_flop(setting.target_flop))[:, None] * np.ones(ladder.sizes)
    centre = np.log(setting.prior.flop_per_token.coefficient) + setting.exponent * log_flop
    shapes = [pilot_shapes(setting.family, setting.vocab, float(np.exp(one)), ladder) for one in centre[:, 0]]
    log_size = np.log([[shape.flop_per_token for shape in row] for row in shapes])
    noise = setting.noise(log_flop, log_size)
    flop = np.exp(log_flop) / setting.target_flop * SCALE_FLOP
    off = log_size - centre + generator.uniform(-0.4, 0.4, (ladder.budgets, 1))
    size: Array = laws.optimum(form, params, flop)[0] * np.exp(off)
    seen = np.exp(np.where(noise < UNKNOWN_SD, noise, 0.0) * generator.standard_normal(noise.shape))
    loss = laws.value(form, params, size, flop / size) * np.exp(miss)[:, None] * seen
    run = noise < UNKNOWN_SD
    runs = points(size[run], (flop / size)[run], loss[run])
    return replace(runs, short=(noise[run] > NOISE_SD).astype(float))


if __name__ == "__main__":
    main()
