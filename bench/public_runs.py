"""Public scaling-law runs, read from ../shared/data relative to the repository, and what is held out of them.

FileNotFoundError where they are absent. They are no part of the project.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from planner.scaling.laws import Array

DATA = Path(__file__).parents[1].parent / "shared/data"
Mask = NDArray[np.bool_]
CORPORA = ("fineweb", "proof-pile-2", "starcoder")
CUTS = (0.5, 1.0, 1.5)
"""Decades below the largest run from which on all runs are held out."""
_FEWEST_RUNS, _FEWEST_DECADES = 12, 0.6


@dataclass(frozen=True)
class Runs:
    """Runs of one recipe; arrays of one length. Size is in parameters, as each source counts them."""

    size: Array
    tokens: Array
    loss: Array
    steps: Array | None = None

    @property
    def flop(self) -> Array:
        """C = 6 N D."""
        return 6 * self.size * self.tokens

    def take(self, rows: Mask) -> "Runs":
        """Those under a mask."""
        steps = None if self.steps is None else self.steps[rows]
        return Runs(self.size[rows], self.tokens[rows], self.loss[rows], steps)


@dataclass(frozen=True)
class HeldOutSet:
    """Runs to fit, and runs to predict."""

    name: str
    below: Runs
    above: Runs


def epoch() -> Runs:
    """Epoch's rows without the five highest losses."""
    with (DATA / "epoch_chinchilla/svg_extracted_data.csv").open() as file:
        rows = [[float(r[c]) for c in ("Model Size", "Training FLOP", "loss")] for r in csv.DictReader(file)]
    size, flop, loss = np.array(sorted(rows, key=lambda row: row[2])[:-5]).T
    return Runs(size, flop / (6 * size), loss)


def farseer() -> tuple[Runs, Runs]:
    """404 runs, and 7 larger ones up to 25B."""
    folder = DATA / "scalebench/farseer_scaling_law"
    tables = [
        pyarrow.parquet.read_table(folder / f"{part}-00000-of-00001.parquet") for part in ("train", "test")
    ]
    below, above = (Runs(*(t[name].to_numpy().astype(float) for name in ("N", "D", "loss"))) for t in tables)
    return below, above


def gemstones(stage: str = "cool_end") -> Runs:
    """Gemstones after cool-down, or hot: at a constant learning rate."""
    text = (DATA / f"gemstones/wandb_df_for_fitting_{stage}.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    columns = [[row["params_active_precise"], row["tokens"], row["final_loss"]] for row in rows]
    return Runs(*np.array(columns, float).T)


def misfitting(rate: str | None = None) -> Runs:
    """Finished runs, N with embeddings: at the best learning rate of each (N, D), or all at one rate."""
    best: dict[tuple[float, float], tuple[float, float]] = {}
    with (DATA / "misfitting/scaling_results_last_ckpt_only.csv").open() as file:
        for row in csv.DictReader(file):
            if float(row["portion_steps_elapsed"]) >= 0.99 and rate in (None, row["peak_lr"]):
                cell = float(row["N"]), float(row["D"])
                run = float(row["loss"]), float(row["total_steps"])
                best[cell] = min(best.get(cell, run), run)
    return Runs(*np.array([(*cell, *run) for cell, run in sorted(best.items())]).T)


def kempner(corpus: str) -> tuple[Runs, Runs]:
    """Runs of one corpus up to 1e20 FLOP, and the one at 1e21."""
    with (DATA / f"kempner/{corpus}.csv").open() as file:
        rows = [[float(row[c]) for c in ("n", "d", "loss", "steps", "above")] for row in csv.DictReader(file)]
    *columns, above = np.array(rows).T
    runs = Runs(*columns)
    return runs.take(above == 0), runs.take(above == 1)


def datablations() -> Runs:
    """Runs on C4 of at most one epoch."""
    with (DATA / "datablations/c4_repeat_runs.csv").open() as file:
        rows = [
            [float(row[c]) for c in ("params", "tokens", "val_loss", "unique_tokens")]
            for row in csv.DictReader(file)
        ]
    size, tokens, loss, unique = np.array(rows).T
    return Runs(size, tokens, loss).take(tokens <= 1.001 * unique)


def porian() -> dict[str, Runs]:
    """isoFLOP points of each recipe and text, N with the last layer, validation loss."""
    found: dict[str, list[list[float]]] = {}
    with (DATA / "porian/isoflop_points.csv").open() as file:
        for row in csv.DictReader(file):
            if row["param_count"] == "standard" and row["loss_split"] == "val":
                name = " ".join(["Porian", *(row[c] for c in ("dataset", "hparams", "warmup", "decay"))])
                found.setdefault(name, []).append([float(row[c]) for c in ("n", "tokens", "loss")])
    return {name: Runs(*np.array(rows).T) for name, rows in found.items()}


def held_out_sets() -> Iterator[HeldOutSet]:
    """Each source's own largest runs."""
    yield HeldOutSet("Farseer, up to 25B", *farseer())
    for name, runs in (("best rates", misfitting()), ("rate .002", misfitting("0.002"))):
        yield _split(f"misfitting, {name}, C > 2.5e19", runs, runs.flop > 2.5e19)
    yield _split("Epoch, C > 1e21", epoch(), epoch().flop > 1e21)
    yield _split("Gemstones, N > 1B", gemstones(), gemstones().size > 1e9)
    for corpus in CORPORA:
        yield HeldOutSet(f"Kempner {corpus}, 1e21", *kempner(corpus))


def cuts() -> dict[str, list[HeldOutSet]]:
    """By source: all runs within half a decade, one decade, and one and a half of the largest held out."""
    below, above = farseer()
    whole = {
        "Farseer": Runs(*(np.concatenate([getattr(r, c) for r in (below, above)]) for c in ("size", "tokens", "loss"))),
        "Epoch": epoch(),
        "Gemstones": gemstones(),
        "Gemstones hot": gemstones("hot"),
        "misfitting, best rates": misfitting(),
        "misfitting, rate .002": misfitting("0.002"),
        "datablations, one epoch": datablations(),
    }  # fmt: skip
    whole |= {f"Kempner {corpus}": kempner(corpus)[0] for corpus in CORPORA} | porian()
    return {name: list(_cuts(name, runs)) for name, runs in whole.items()}


def _cuts(name: str, runs: Runs) -> Iterator[HeldOutSet]:
    runs = Runs(runs.size, runs.tokens, runs.loss)  # all runs with the same weight, however short
    for cut in CUTS:
        held_out = runs.flop > 1.03 * runs.flop.max() / 10**cut
        below = runs.flop[~held_out]
        if len(below) >= _FEWEST_RUNS and np.log10(below.max() / below.min()) > _FEWEST_DECADES:
            yield _split(f"{name}, last {cut} decades", runs, held_out)


def _split(name: str, runs: Runs, held_out: Mask) -> HeldOutSet:
    return HeldOutSet(name, runs.take(~held_out), runs.take(held_out))
