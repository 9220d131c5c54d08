"""The laws' figures beside their references: `python -m bench.laws [--quick]`.

Real runs are read from ../shared/data relative to the repository; a part whose data are absent says so and is
skipped. References are published figures or our own measurements of other tools on the same rows, named in
each line. One thread: run with OMP_NUM_THREADS=1.
"""

import csv
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.bootstrap import bootstrap, constant_intervals, objective, optimum_intervals, resampled_counts
from bench.coverage import coverage_rows
from bench.law_peers import bfgs_on_same_draws, chinchilla_fit, has_chinchilla
from planner.scaling import laws
from planner.scaling.fit import FormFit, fit
from planner.scaling.isoflop import fit_minima, power_laws
from planner.scaling.laws import Array
from planner.scaling.levenberg_marquardt import HUBER_DELTA, huber
from planner.scaling.model_averaging import CANDIDATES, chosen_form, compare_forms, fit_mixture, forecast_loss
from planner.scaling.posterior import Points, points

DATA = Path(__file__).parents[1].parent / "shared/data"
BOOTSTRAP_DRAWS, QUICK_DRAWS = 4000, 200
Row = tuple[str, str, str]
Runs = tuple[Array, Array, Array]
Mask = NDArray[np.bool_]


def main() -> None:
    """Print every part."""
    quick = "--quick" in sys.argv[1:]
    parts: list[tuple[str, Callable[[bool], Iterator[Row]]]] = [
        ("Point fit and bootstrap, Epoch's 240 rows", epoch_rows),
        ("Point fit against chinchilla 0.2.0, Epoch's 240 rows, 4500 starts", chinchilla_rows),
        ("Held-out larger runs: mean |error| of the loss and share inside 95 %", held_out_rows),
        ("isoFLOP exponents, Porian's tuned RefinedWeb", porian_rows),
        ("Synthetic surfaces and ladders", coverage_rows),
    ]
    for title, rows in parts:
        table = Table("what", "reference", "ours", title=title, title_justify="left")
        try:
            for row in rows(quick):
                table.add_row(*row)
        except FileNotFoundError as absent:
            table.add_row("skipped", "", f"{absent.filename} is absent")
        Console(width=150).print(table)


def epoch() -> Runs:
    """Size, tokens and loss of Epoch's rows without the five highest losses."""
    with (DATA / "epoch_chinchilla/svg_extracted_data.csv").open() as file:
        rows = [[float(r[c]) for c in ("Model Size", "Training FLOP", "loss")] for r in csv.DictReader(file)]
    size, flop, loss = np.array(sorted(rows, key=lambda row: row[2])[:-5]).T
    return size, flop / (6 * size), loss


def epoch_rows(quick: bool) -> Iterator[Row]:
    """Objective, bootstrap and times, against the global optimum and scipy's BFGS."""
    size, tokens, loss = epoch()
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
    size, tokens, loss = epoch()
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


def split(runs: Runs, above: Mask) -> tuple[Runs, Runs]:
    """(below, above) of a mask."""
    size, tokens, loss = runs
    return (size[~above], tokens[~above], loss[~above]), (size[above], tokens[above], loss[above])


def farseer() -> tuple[Runs, Runs]:
    """404 runs, and 7 larger ones up to 25B."""
    folder = DATA / "scalebench/farseer_scaling_law"
    tables = [
        pyarrow.parquet.read_table(folder / f"{part}-00000-of-00001.parquet") for part in ("train", "test")
    ]
    below, above = (
        tuple(table[name].to_numpy().astype(float) for name in ("N", "D", "loss")) for table in tables
    )
    return below, above


def epoch_above_1e21() -> tuple[Runs, Runs]:
    """Epoch's rows, C > 1e21 held out."""
    size, tokens, loss = epoch()
    return split((size, tokens, loss), 6 * size * tokens > 1e21)


def gemstones() -> tuple[Runs, Runs]:
    """Gemstones after cool-down, N > 1B held out."""
    text = (DATA / "gemstones/wandb_df_for_fitting_cool_end.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    size, tokens, loss = np.array(
        [[row["params_active_precise"], row["tokens"], row["final_loss"]] for row in rows], float
    ).T
    return split((size, tokens, loss), size > 1e9)


def misfitting(rate: str | None = None) -> tuple[Runs, Runs, Array]:
    """Finished runs, N with embeddings, C > 2.5e19 held out; the steps of those below.

    At the best learning rate of each (N, D), which leaves four above; or all at one rate, which leaves two.
    """
    best: dict[tuple[float, float], tuple[float, float]] = {}
    with (DATA / "misfitting/scaling_results_last_ckpt_only.csv").open() as file:
        for row in csv.DictReader(file):
            if float(row["portion_steps_elapsed"]) >= 0.99 and row["peak_lr"] in (
                rate or row["peak_lr"],
                rate,
            ):
                cell = float(row["N"]), float(row["D"])
                run = float(row["loss"]), float(row["total_steps"])
                best[cell] = min(best.get(cell, run), run)
    size, tokens, loss, steps = np.array([(*cell, *run) for cell, run in sorted(best.items())]).T
    held_out = 6 * size * tokens > 2.5e19
    return *split((size, tokens, loss), held_out), steps[~held_out]


def held_out_rows(quick: bool) -> Iterator[Row]:
    """Single forms, the form chosen on the runs below, and the weighted forecast, on each set."""
    rate = "0.44 (coupled; tied 1.00, standard .98)"
    sets: list[tuple[str, str, Callable[[], tuple[Array | Runs, ...]]]] = [
        ("Farseer", "0.47 (coupled)", farseer),
        ("misfitting, best rates", "its best single form", misfitting),
        ("misfitting, rate .002", rate, lambda: misfitting("0.002")),
        ("Epoch", "0.84 (tied)", epoch_above_1e21),
        ("Gemstones", "1.52 (tied)", gemstones),
    ]
    covered = total = 0
    for name, reference, load in sets:
        below, above, *steps = load()
        runs = points(*below, cost_per=6.0, steps=steps[0] if steps else None)
        singles = {form.name: mean_error(form, runs, above) for form in CANDIDATES}
        yield f"{name}: each form alone, %", reference, "  ".join(f"{k} {v:.2f}" for k, v in singles.items())
        form = chosen_form(compare_forms(runs))
        goal, chosen = f"<= 1.1x of {reference}", f"{singles[form.name]:.2f} ({form.name})"
        yield f"{name}: form chosen on the {len(below[2])} runs below", goal, chosen
        evidence = fit_mixture(runs)
        told = [
            forecast_loss(evidence, size, tokens) for size, tokens in zip(above[0], above[1], strict=True)
        ]
        errors = [100 * abs(np.log(t.median / loss)) for t, loss in zip(told, above[2], strict=True)]
        inside = sum(t.low_95 < loss < t.high_95 for t, loss in zip(told, above[2], strict=True))
        width = np.mean([50 * np.log(t.high_95 / t.low_95) for t in told])
        covered, total = covered + inside, total + len(told)
        yield f"{name}: weighted forecast", goal, f"{np.mean(errors):.2f}"
        yield f"{name}: held-out runs inside 95 %", "", f"{inside} of {len(told)}, +-{width:.2f} %"
    yield "all held-out runs inside 95 %", "90-98 %", f"{covered} of {total}, {covered / total:.1%}"


def mean_error(form: laws.Form, runs: Points, above: Runs) -> float:
    """Mean |error| in per cent of a plain fit below on the runs above."""
    fitted = fit(form, runs.size, runs.tokens, runs.loss, cost_per=runs.cost_per)
    return float(100 * np.mean(np.abs(fitted.predict(above[0], above[1]) / above[2] - 1)))


def porian_rows(quick: bool) -> Iterator[Row]:
    """The exponent of N_opt in C by isoFLOP parabolas."""
    with (DATA / "porian/isoflop_points.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["dataset"] == "rw" and r["hparams"] == "tuned"]
    chosen = [r for r in rows if r["param_count"] == "standard" and r["loss_split"] == "val"]
    size, tokens, loss = np.array([[float(r[c]) for c in ("n", "tokens", "loss")] for r in chosen]).T
    near = near_minimum(size, tokens, loss)
    size_law, _ = power_laws(fit_minima(size[near], tokens[near], loss[near], cost_per=6.0))
    low, high = (size_law.exponent + sign * 1.96 * size_law.exponent_sd for sign in (-1, 1))
    yield "exponent of N_opt", "0.497 [0.491, 0.505]", f"{size_law.exponent:.3f} [{low:.3f}, {high:.3f}]"


def near_minimum(size: Array, tokens: Array, loss: Array) -> list[int]:
    """Runs within a factor of five of their budget's best size: where a parabola holds."""
    from planner.scaling.isoflop import budget_groups

    kept: list[int] = []
    for group in budget_groups(6 * size * tokens, 0.2):
        best = size[group[int(np.argmin(loss[group]))]]
        kept += [i for i in group if abs(np.log(size[i] / best)) < np.log(5)]
    return kept


if __name__ == "__main__":
    main()
