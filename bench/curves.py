"""Loss-curve forecasts beside their references: `python -m bench.curves`.

Collapse is tried on bench/tiny_ladder.json, our own tiny runs: each budget is forecast from the smaller ones. The
annealing laws are tried on the multi-power law's 27 curves (Luo et al. 2025), read from ../shared/data relative to the
repository; where these are absent, that part says so and is skipped.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from planner.scaling.loss_curve import Array, Curve, Pilot, collapse, forecast_curve
from planner.scaling.lr_annealing import LAWS, ROOT, AnnealingLaw, Trace, fit_annealing, smoothed
from specs.law import Band
from specs.optim import OptimSpec, multi_step

LADDER = Path(__file__).parent / "tiny_ladder.json"
MULTI_POWER_DATA = Path(__file__).parents[1].parent / "shared/data/multi_power_law"
SIZES = (25, 100, 400)
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")
ASKED = ("constant_72000", "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3", "wsdcon_18")
DROPPED = ("wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3", "wsdcon_9", "wsdcon_18")
GOALS = {25: 0.15, 100: 0.18, 400: 0.20}
PUBLISHED = {
    "momentum": {25: 0.13, 100: 0.16, 400: 0.27},
    "multi-power": {25: 0.11, 100: 0.14, 400: 0.17},
}
"""Mean errors in per cent that Luo et al. 2025 print for the two published laws."""
LATE = 5
"""Points from 75 % to 95 % of the steps: the milestones are at 80 % and 90 %."""
PEAK_LR, WARMUP_STEPS, END = 3e-4, 2160, 0.1
Row = tuple[str, str, str]


def main() -> None:
    """Print every part."""
    parts = (
        (
            "Collapse: our tiny runs, each budget from the smaller ones; reference: curves as measured",
            ladder_rows,
        ),
        (
            "Annealing: fit cosine_24000 + constant_24000 + wsdcon_9, mean |error| on six others, %",
            schedule_rows,
        ),
        ("Annealing: a curve before its first drop and another's drop, |error| of its end, %", drop_rows),
    )
    for title, rows in parts:
        table = Table("what", "reference", "ours", title=title, title_justify="left")
        try:
            for row in rows():
                table.add_row(*row)
        except FileNotFoundError as absent:
            table.add_row("skipped", "", f"{absent.filename} is absent")
        Console(width=150).print(table)


def tiny_runs() -> list[tuple[float, int, Pilot]]:
    """Budget in FLOP, steps and curve of every tiny run, smallest budgets first."""
    return [
        (
            run["compute_flop"],
            run["steps"],
            Pilot(
                Curve(np.arange(1, 21) / 20, np.array(run["loss"])),
                run["flop_per_token"],
                run["tokens"],
                run["warmup_steps"] / run["steps"],
            ),
        )
        for run in json.loads(LADDER.read_text())["runs"]
    ]


def by_law(pilot: Pilot, steps: int) -> Pilot:
    """A tiny run with the annealing law through its curve in place of the curve, as forecasts take it."""
    warmup, milestones = multi_step(steps, round(pilot.warmup * steps))
    optim = OptimSpec(steps=steps, batch_sequences=1, peak_lr=1.0, warmup_steps=warmup, milestones=milestones)
    lr = np.array([optim.lr(step) for step in range(1, steps + 1)])
    at = np.round(pilot.curve.fraction * steps).astype(np.int64)
    return replace(pilot, curve=Curve(pilot.curve.fraction, smoothed(Trace(lr, at, pilot.curve.loss))))


def ladder_errors(below: float, floor: float, smooth: bool) -> Iterator[tuple[str, Array, Array]]:
    """Runs above a budget forecast from those up to it and their own final loss: ln error and half-width per point."""
    runs = tiny_runs()
    pilots = [by_law(pilot, steps) if smooth else pilot for flop, steps, pilot in runs if flop <= below]
    shape = collapse(pilots, floor)
    for flop, steps, run in runs:
        if flop <= below:
            continue
        end = float(run.curve.loss[-1])
        final = Band(median=end, low_50=end, high_50=end, low_95=end, high_95=end)
        told = forecast_curve(
            shape,
            final,
            np.round(run.curve.fraction * steps),
            total_steps=steps,
            warmup_steps=round(run.warmup * steps),
            size=run.size,
            tokens=run.tokens,
        )
        truth = run.curve.loss[-len(told.step) :][:-1]
        yield f"{flop:.0e}", np.log(truth / told.median[:-1]), np.log(told.high_95 / told.median)[:-1]


def ladder_rows() -> Iterator[Row]:
    """Error, error from 75 % of the steps on, coverage and width by the largest pilot budget, without the known end.

    First of the pilots' curves as they were measured, then of the annealing law through each.
    """
    for floor in (0.0, 0.5):
        for below in (3e11, 1e12, 3e12):
            found = [list(ladder_errors(below, floor, smooth)) for smooth in (False, True)]
            errors = [np.concatenate([error for _, error, _ in told]) for told in found]
            late = [np.concatenate([error[-LATE:] for _, error, _ in told]) for told in found]
            halves = [np.concatenate([half for _, _, half in told]) for told in found]
            reach = float(found[0][-1][0]) / below
            what = f"pilots <= {below:.0e}, targets up to {reach:.0f}x, floor {floor}: "
            yield what + "rms error, %", *(f"{100 * np.sqrt(np.mean(e**2)):.2f}" for e in errors)
            yield what + "through the milestones, %", *(f"{100 * np.sqrt(np.mean(e**2)):.2f}" for e in late)
            inside = [np.mean(np.abs(e) <= half) for e, half in zip(errors, halves, strict=True)]
            yield what + "points in the 95 % band", *(f"{share:.0%}" for share in inside)
            yield what + "mean half-width, %", *(f"{100 * half.mean():.1f}" for half in halves)


def schedule(name: str) -> Array:
    """Learning rate of every update of one of Luo et al.'s runs, from its name (their section 4 and lr columns)."""
    kind, *numbers = name.split("_")
    steps = 16000 if kind == "wsdcon" else int(numbers[-1])
    t = np.arange(1, steps + 1)
    if kind == "cosine":
        turn = np.cos(np.pi * (t - WARMUP_STEPS) / (steps - WARMUP_STEPS))
        share = END + (1 - END) / 2 * (1 + turn)
    elif kind == "constant":
        share = np.ones(steps)
    elif kind == "wsdcon":
        share = np.where(t < 8000, 1.0, int(numbers[0]) / 30)
    else:
        done = np.clip((t - int(numbers[0])) / (steps - int(numbers[0])), 0, 1)
        share = END**done if kind == "wsd" else 1 - (1 - END) * done
    return np.asarray(PEAK_LR * np.where(t <= WARMUP_STEPS, t / WARMUP_STEPS, share))


def trace(size: int, name: str) -> Trace:
    """One of the 27 curves; FileNotFoundError where the data are absent."""
    columns = np.loadtxt(MULTI_POWER_DATA / f"csv_{size}" / f"{name}.csv", delimiter=",", skiprows=1)
    return Trace(schedule(name), columns[:, 0].astype(np.int64), columns[:, 2])


def mean_errors(size: int, law: AnnealingLaw) -> float:
    """Mean over the asked curves of the mean relative error, per cent."""
    fitted = fit_annealing([trace(size, name) for name in FITTED], law)
    asked = [trace(size, name) for name in ASKED]
    return float(np.mean([100 * np.mean(np.abs(fitted.predict(t.lr, t.step) / t.loss - 1)) for t in asked]))


def schedule_rows() -> Iterator[Row]:
    """Every law and size beside what the paper prints and the goal."""
    for law in LAWS:
        for size in SIZES:
            printed = PUBLISHED.get(law.name, {}).get(size)
            reference = f"goal {GOALS[size]:.2f}" + ("" if printed is None else f", printed {printed:.2f}")
            yield f"{law.name} law, {size}M", reference, f"{mean_errors(size, law):.3f}"


def before_drop(curve: Trace) -> Trace:
    """The points before the first drop of the learning rate."""
    peak = int(np.argmax(curve.lr))
    first = peak + int(np.argmax(np.diff(curve.lr[peak:]) < 0)) + 1
    kept = curve.step <= first
    return replace(curve, step=curve.step[kept], loss=curve.loss[kept])


def end_error(curve: Trace, fitted_on: Sequence[Trace], law: AnnealingLaw) -> float:
    """|error| in per cent of the last point's forecast from the curve before its drop and other curves."""
    told = fit_annealing([before_drop(curve), *fitted_on], law).predict(curve.lr, curve.step[-1:])[0]
    return float(100 * abs(told / curve.loss[-1] - 1))


def same_size_errors(size: int, law: AnnealingLaw) -> NDArray[np.float64]:
    """End errors over every ordered pair of different drops of one size."""
    curves = {name: trace(size, name) for name in DROPPED}
    return np.array([end_error(curves[n], [curves[o]], law) for n in DROPPED for o in DROPPED if o != n])


def other_size_errors(size: int, law: AnnealingLaw) -> NDArray[np.float64]:
    """End errors where the drop was seen on another size only: its worth and its speed are taken from there."""
    errors = []
    for other in SIZES:
        for name in DROPPED if other != size else ():
            drop = fit_annealing([trace(other, name)], law).constants
            held = {constant: drop[constant] for constant in ("B", *law.kernel_constants)}
            for asked in DROPPED:
                curve = trace(size, asked)
                told = fit_annealing([before_drop(curve)], law, held=held).predict(curve.lr, curve.step[-1:])
                errors.append(100 * abs(told[0] / curve.loss[-1] - 1))
    return np.array(errors)


def drop_rows() -> Iterator[Row]:
    """Mean and worst end error by law and size; then for the law in use, drops seen on other sizes."""
    for law in LAWS:
        for size in SIZES:
            errors = same_size_errors(size, law)
            found = f"{errors.mean():.3f} (worst {errors.max():.2f})"
            yield f"{law.name} law, {size}M, 20 pairs of schedules", "goal 0.3, published 0.1-0.25", found
    for size in SIZES:
        errors = other_size_errors(size, ROOT)
        yield (
            f"root law, {size}M, drop of another size",
            "",
            f"{errors.mean():.3f} (worst {errors.max():.2f})",
        )


if __name__ == "__main__":
    main()
