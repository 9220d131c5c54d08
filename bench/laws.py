"""The laws' figures beside their references: `python -m bench.laws [--quick]`.

References are published figures, our own measurements of other tools on the same rows, or ours of commit 0797fa8, named
in each line. One thread: run with OMP_NUM_THREADS=1.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import scores
from bench.bootstrap import bootstrap, constant_intervals, objective, optimum_intervals, resampled_counts
from bench.coverage import coverage_table
from bench.law_peers import bfgs_on_same_draws, chinchilla_fit, has_chinchilla
from bench.log_huber import FormFit, fit
from bench.public_runs import HeldOutSet, cuts, epoch, held_out_sets, porian
from bench.scores import Scores
from planner.scaling import laws
from planner.scaling.isoflop import budget_groups, fit_minima, power_laws
from planner.scaling.laws import Array
from planner.scaling.levenberg_marquardt import HUBER_DELTA, huber
from planner.scaling.model_averaging import fit_mixture, forecast_loss
from planner.scaling.points import points

BOOTSTRAP_DRAWS, QUICK_DRAWS = 4000, 200
PEER_DRAWS = 200
Row = tuple[str, str, str]
BEFORE = {
    "Farseer, up to 25B": Scores(0.49, 0.45, 85.7, 14.3, 0.88, 1.76),
    "misfitting, best rates, C > 2.5e19": Scores(0.62, 0.62, 100.0, 75.0, 1.98, 4.02),
    "misfitting, rate .002, C > 2.5e19": Scores(0.41, 0.41, 100.0, 50.0, 1.74, 3.48),
    "Epoch, C > 1e21": Scores(0.77, 0.11, 87.0, 26.1, 1.24, 4.71),
    "Gemstones, N > 1B": Scores(0.89, -0.43, 98.3, 66.1, 3.10, 6.16),
    "Kempner fineweb, 1e21": Scores(2.86, 2.86, 0.0, 0.0, 1.65, 49.40),
    "Kempner proof-pile-2, 1e21": Scores(3.89, 3.89, 0.0, 0.0, 2.27, 71.27),
    "Kempner starcoder, 1e21": Scores(5.13, 5.13, 0.0, 0.0, 2.91, 100.11),
    "Farseer": Scores(0.53, 0.50, 77.8, 15.4, 0.64, 3.00),
    "Epoch": Scores(0.94, 0.58, 67.2, 32.3, 1.20, 10.81),
    "Gemstones": Scores(1.16, 0.29, 97.9, 51.2, 2.90, 7.28),
    "Gemstones hot": Scores(0.88, 0.13, 98.6, 58.4, 2.38, 6.39),
    "misfitting, best rates": Scores(1.53, -1.20, 100.0, 37.5, 3.24, 6.83),
    "misfitting, rate .002": Scores(5.25, -5.20, 53.1, 12.2, 4.01, 81.01),
    "datablations, one epoch": Scores(2.30, -0.47, 96.5, 82.5, 9.27, 21.96),
    "Kempner fineweb": Scores(0.66, 0.51, 80.2, 28.3, 1.45, 4.31),
    "Kempner proof-pile-2": Scores(1.23, 0.06, 81.0, 7.4, 1.99, 6.95),
    "Kempner starcoder": Scores(2.46, -0.68, 62.5, 14.1, 2.71, 13.21),
    "Porian rw base long kaplan": Scores(8.76, -8.21, 60.4, 17.4, 9.18, 93.71),
    "Porian rw base short kaplan": Scores(4.13, -3.67, 100.0, 34.3, 8.29, 16.89),
    "Porian rw base short chinchilla": Scores(1.52, 0.40, 100.0, 63.5, 5.20, 10.91),
    "Porian rw tuned short const": Scores(2.61, 1.28, 92.5, 68.8, 7.46, 18.18),
    "Porian owt2 base long kaplan": Scores(6.33, -6.18, 68.7, 17.4, 7.17, 55.10),
    "Porian owt2 base short kaplan": Scores(2.68, -1.96, 100.0, 51.5, 6.93, 14.03),
    "Porian owt2 base short chinchilla": Scores(2.07, -0.09, 100.0, 61.7, 5.29, 11.16),
    "Porian owt2 tuned short const": Scores(2.54, 0.99, 95.6, 68.7, 7.61, 16.58),
}
"""Of commit 0797fa8 on the same sets, measured 2026-11-30."""


def main() -> None:
    """Print every part."""
    quick = "--quick" in sys.argv[1:]
    parts: list[tuple[str, Callable[[bool], Iterator[Row]]]] = [
        ("Point fit and bootstrap, Epoch's 240 rows", epoch_rows),
        ("Point fit against chinchilla 0.2.0, Epoch's 240 rows, 4500 starts", chinchilla_rows),
        ("isoFLOP exponents, Porian's tuned RefinedWeb", porian_rows),
        ("Time and memory of a mixture", speed_rows),
    ]
    for title, rows in parts:
        table = Table("what", "reference", "ours", title=title, title_justify="left")
        try:
            for row in rows(quick):
                table.add_row(*row)
        except FileNotFoundError as absent:
            table.add_row("skipped", "", f"{absent.filename} is absent")
        Console(width=150).print(table)
    Console(width=190).print(held_out_table(quick))
    Console(width=150).print(coverage_table(quick))


def held_out_table(quick: bool) -> Table:
    """Every set and source: the standard law by log-Huber with bootstrap, ours before, ours now."""
    table = Table(title="Held-out larger runs, in % of loss: who, and how far off", title_justify="left")
    for head in ("held out", "runs", "by", *scores.HEADS):
        table.add_column(head, justify="left" if head in ("held out", "by") else "right")
    try:
        groups = {one.name: [one] for one in held_out_sets()} | ({} if quick else cuts())
    except FileNotFoundError as absent:
        table.add_row("skipped", "", f"{absent.filename} is absent", *[""] * len(scores.HEADS))
        return table
    sums: dict[str, list[Scores]] = {}
    for name, sets in track(groups.items(), description="held-out sets"):
        count = f"{min(len(s.below.loss) for s in sets)}+ → {sum(len(s.above.loss) for s in sets)}"
        found = {
            "standard, log-Huber, bootstrap": scores.mean([standard_law(one) for one in sets]),
            "mixture, 0797fa8": BEFORE[name],
            "mixture": scores.mean([mixture(one) for one in sets]),
        }
        for by, value in found.items():
            table.add_row(name if by.startswith("standard") else "", count, by, *value.cells())
            sums.setdefault(by, []).append(value)
    table.add_section()
    for by, values in sums.items():
        table.add_row("mean of all rows", str(len(values)), by, *scores.mean(values).cells())
    return table


def mixture(one: HeldOutSet) -> Scores:
    """The forecast's scores on a set."""
    below, above = one.below, one.above
    evidence = fit_mixture(points(below.size, below.tokens, below.loss, cost_per=6.0, steps=below.steps))
    told = [forecast_loss(evidence, n, d) for n, d in zip(above.size, above.tokens, strict=True)]
    return scores.of_forecasts(told, above.loss.tolist())


def standard_law(one: HeldOutSet) -> Scores:
    """The peer: Hoffmann et al.'s law by log-Huber, refitted on resampled runs, with a resampled residual as noise."""
    below, above = one.below, one.above
    fitted = fit(laws.STANDARD, below.size, below.tokens, below.loss, cost_per=6.0)
    draws = bootstrap(fitted, PEER_DRAWS, seed=0)
    noise = np.random.default_rng(0).choice(fitted.residuals, size=(PEER_DRAWS, len(above.loss)))
    losses = laws.value(laws.STANDARD, draws, above.size, above.tokens) * np.exp(noise)
    low_95, low_50, median, high_50, high_95 = np.percentile(losses, [2.5, 25, 50, 75, 97.5], axis=0)
    return scores.scored(median, np.stack([low_50, high_50]), np.stack([low_95, high_95]), above.loss)


def speed_rows(quick: bool) -> Iterator[Row]:
    """Synthetic runs at every compute over four decades, learned and weighed against held-out budgets."""
    for count, before, goal in ((1000, "15 + 68 s", 2), (10_000, "81 + 178 s, 713 MB", 15)):
        generator = np.random.default_rng(0)
        flop = 10 ** generator.uniform(18, 22, count)
        size = np.sqrt(flop / 120) * np.exp(generator.normal(0, 1, count))
        tokens = flop / 6 / size
        loss = laws.value(laws.COUPLED, [1.8, 2.9e4, 3e5, 0.6, 0.62, 0.55], size, tokens)
        runs = points(size, tokens, loss * np.exp(0.005 * generator.standard_normal(count)), cost_per=6.0)
        start = time.perf_counter()
        fit_mixture(runs)
        seconds = time.perf_counter() - start
        yield f"{count:,} runs, s", f"{before} (03cfca7); {goal}", f"{seconds:.1f}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    yield "most memory of this process so far, MB", "500", f"{peak:.0f}"


def epoch_rows(quick: bool) -> Iterator[Row]:
    """Objective, bootstrap and times, against the global optimum and scipy's BFGS."""
    runs = epoch()
    size, tokens, loss = runs.size, runs.tokens, runs.loss
    fit(laws.STANDARD, size, tokens, loss, cost_per=6.0)  # sympy's derivation, once
    orders = [np.random.default_rng(seed).permutation(len(loss)) for seed in range(5)]
    start = time.perf_counter()
    fits = [fit(laws.STANDARD, size[o], tokens[o], loss[o], cost_per=6.0) for o in orders]
    each_s = (time.perf_counter() - start) / len(fits)
    worst = max(fitted.objective for fitted in fits)
    yield "objective, worst of five row orders", "0.001018274 (global optimum)", f"{worst:.9f}"
    yield "point fit, s", "184.5 (chinchilla 0.2.0), 89 (4500-start L-BFGS)", f"{each_s:.3f}"
    fitted = fit(laws.STANDARD, size, tokens, loss, cost_per=6.0)
    start = time.perf_counter()
    draws = bootstrap(fitted, BOOTSTRAP_DRAWS, seed=0)
    ours_s = time.perf_counter() - start
    found = constant_intervals(fitted, draws) | optimum_intervals(fitted, draws, 1e24)
    references = {
        "E": "1.769-1.871", "A": "285-744", "B": "1042-5810", "alpha": "0.317-0.373", "beta": "0.331-0.415",
        "size": "6.7e10-1.53e11", "tokens": "1.09e12-2.47e12", "tokens_per_size": "7-37", "loss": "1.935-1.989",
    }  # fmt: skip
    for name, reference in references.items():
        where = " at 1e24" if name in ("size", "tokens", "tokens_per_size", "loss") else ""
        yield f"95 % interval of {name}{where}", reference, f"{found[name].low:.4g}-{found[name].high:.4g}"
    count = QUICK_DRAWS if quick else BOOTSTRAP_DRAWS
    theirs_s, objectives = bfgs_on_same_draws(fitted, BOOTSTRAP_DRAWS, count)
    theirs_s *= BOOTSTRAP_DRAWS / count
    yield (
        f"{BOOTSTRAP_DRAWS} draws, s",
        f"51 (BFGS, recorded), {theirs_s:.1f} (here, {count} draws)",
        f"{ours_s:.2f}",
    )
    yield "times faster than BFGS here", "20", f"{theirs_s / ours_s:.0f}"
    ours = weighted_objectives(fitted, draws, count)
    yield (
        "draws where BFGS ends lower by 1e-5",
        "0",
        f"{int((ours > objectives * (1 + 1e-5)).sum())} of {count}",
    )
    yield (
        "draws where ours ends lower by 1e-5",
        "",
        f"{int((objectives > ours * (1 + 1e-5)).sum())} of {count}",
    )


def chinchilla_rows(quick: bool) -> Iterator[Row]:
    """Point fits of the same rows in one run: PyPI's chinchilla, then ours; skipped where it is not installed."""
    if quick or not has_chinchilla():
        why = "left out of --quick" if quick else "chinchilla is not installed; see bench/law_peers.py"
        yield "skipped", "", why
        return
    runs = epoch()
    size, tokens, loss = runs.size, runs.tokens, runs.loss
    fit(laws.STANDARD, size, tokens, loss, cost_per=6.0)  # sympy's derivation, once
    theirs_s, params = chinchilla_fit(size, tokens, loss, HUBER_DELTA)
    start = time.perf_counter()
    fitted = fit(laws.STANDARD, size, tokens, loss, cost_per=6.0)
    ours_s = time.perf_counter() - start
    yield "point fit, s", f"{theirs_s:.1f} (2 processes)", f"{ours_s:.3f} (1 thread)"
    yield "times faster", ">= 100", f"{theirs_s / ours_s:.0f}"
    yield "objective, lower is better", f"{objective(fitted, params):.9f}", f"{fitted.objective:.9f}"


def weighted_objectives(fitted: FormFit, draws: Array, count: int) -> Array:
    """Each draw's objective on its own resample."""
    weights = resampled_counts(fitted.size, fitted.tokens, BOOTSTRAP_DRAWS, 0, len(fitted.params))[:count]
    predicted = laws.value(fitted.form, draws[:count], fitted.size, fitted.tokens)
    return np.asarray((weights * huber(np.log(fitted.loss / predicted))).sum(axis=1))


def porian_rows(quick: bool) -> Iterator[Row]:
    """The exponent of N_opt in C by isoFLOP parabolas."""
    runs = porian()["Porian rw tuned short const"]
    near = near_minimum(runs.size, runs.tokens, runs.loss)
    minima = fit_minima(runs.size[near], runs.tokens[near], runs.loss[near], cost_per=6.0)
    size_law, _ = power_laws(minima)
    low, high = (size_law.exponent + sign * 1.96 * size_law.exponent_sd for sign in (-1, 1))
    yield "exponent of N_opt", "0.497 [0.491, 0.505]", f"{size_law.exponent:.3f} [{low:.3f}, {high:.3f}]"


def near_minimum(size: Array, tokens: Array, loss: Array) -> list[int]:
    """Runs within a factor of five of their budget's best size: where a parabola holds."""
    kept: list[int] = []
    for group in budget_groups(6 * size * tokens, 0.2):
        best = size[group[int(np.argmin(loss[group]))]]
        kept += [i for i in group if abs(np.log(size[i] / best)) < np.log(5)]
    return kept


if __name__ == "__main__":
    main()
