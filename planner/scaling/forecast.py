"""The forecast of a target run: its final loss with bands, the whole curve, and the forms that give them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.scaling import fit, laws, loss_curve, model_averaging
from planner.scaling.data_constrained import effective_tokens
from planner.scaling.isoflop import Minimum, fit_minima
from planner.scaling.lr_annealing import Trace, smoothed
from planner.scaling.posterior import Points, Posterior
from planner.scaling.posterior import points as posterior_points
from specs.budget import Budget
from specs.data import DeclaredText
from specs.law import Band, EvidencePoint, FormScore, Interval, Optimum, PublishedLaw
from specs.plan import CurveBand, Forecast, NoForecast, PlannedRun
from specs.record import LedgerRecord

MIN_CURVE_POINTS = 5
"""Shorter curves show no shape."""
_SMOOTHED_POINTS = 10
"""Curves of at least twice as many points as the annealing law has constants are smoothed by it."""
FLOOR_UNDER_BAND = 0.8
"""The collapse's floor stays below this share of the lowest loss, since curves are divided by the loss above it."""


@dataclass(frozen=True)
class ForecastResult:
    """A forecast from the ledger with what it rests on."""

    forecast: Forecast | NoForecast
    forms: tuple[FormScore, ...]
    flags: tuple[str, ...]
    held_out_error: float | None
    """Of the mixture of forms; None where no budget could be held out."""
    optimum: Optimum | None
    """The compute-optimal allocation of the target's compute; None without a forecast."""


def from_published(
    budget: Budget, law: PublishedLaw, loss: PublishedLaw | None, target: PlannedRun, unique_tokens: int
) -> Forecast | NoForecast:
    """Why a published law gives no forecast of the loss, with the loss that it predicts if its text is the budget's.

    Repeated tokens count as the number of unique tokens that they are worth.
    """
    if loss is None or loss.loss is None:
        source = law.name if loss is None else loss.name
        return NoForecast(
            reason=f"the law {source} gives no loss coefficients; a forecast of the loss needs pilots on your own data "
            "(evidence.kind: pilots)"
        )
    text = budget.data.text
    described = text.describe if isinstance(text, DeclaredText) else "your own files"
    if described != loss.data:
        return NoForecast(
            reason=f"the loss law {loss.name} was fitted on {loss.data}, not on {described}, and losses do not carry "
            "over between texts and tokenizers; run pilots on your own data (evidence.kind: pilots)"
        )
    model = target.run.model
    size = {
        "params": model.params,
        "block_params": model.block_params,
        "flop_per_token": model.flop_per_token,
    }
    predicted = loss.loss.at(
        size[loss.loss.size], effective_tokens(float(target.run.tokens), float(unique_tokens))
    )
    return NoForecast(
        reason=f"the loss law {loss.name} predicts {predicted:.4f} nats per token, but without an interval, so a run "
        "cannot be audited against it; run pilots for a forecast with an interval"
    )


def minima(points: Sequence[EvidencePoint]) -> list[Minimum]:
    """isoFLOP minima of the pilots, by budget. Short runs have full weight here, and a ninth of it in fits of a law.

    At a small budget the short runs are the large sizes, the whole right arm of its parabola: with less weight the
    minimum would lie beyond them. A law is fitted on the runs of all budgets and needs them less.
    """
    runs = _runs(points)
    return fit_minima(runs.size, runs.tokens, runs.loss, weights=runs.weights)


def best_loss_fit(points: Sequence[EvidencePoint]) -> fit.FormFit:
    """The form that predicts held-out budgets best, fitted on all runs: for loss budgets and inference objectives."""
    return model_averaging.chosen_fit(_runs(points))


def from_ledger(
    points: Sequence[EvidencePoint], records: Sequence[LedgerRecord], target: PlannedRun, unique_tokens: int
) -> ForecastResult:
    """The target's final loss and curve from the ledger's runs, or why they are not enough.

    The final loss's band is `model_averaging.forecast_loss`'s. Repeated tokens count as the number of unique tokens
    that they are worth.
    """
    runs, run = _runs(points), target.run
    try:
        mixture = model_averaging.fit_mixture(runs)
    except ValueError as error:
        return ForecastResult(
            NoForecast(reason=f"the ledger's runs are not enough for a forecast: {error}"),
            (),
            model_averaging.flags(runs),
            None,
            None,
        )
    predicted = model_averaging.forecast_loss(
        mixture, float(run.model.flop_per_token), effective_tokens(run.tokens, unique_tokens)
    )
    band = Band(
        median=predicted.median,
        low_50=predicted.low_50,
        high_50=predicted.high_50,
        low_95=predicted.low_95,
        high_95=predicted.high_95,
    )
    forecast = Forecast(
        loss=band, curve=_curve_band(records, band, predicted.floor.floor[0], target), basis=_basis(predicted)
    )
    return ForecastResult(
        forecast,
        _forms(mixture, predicted),
        predicted.flags,
        predicted.held_out_error,
        _optimum(mixture, target),
    )


def _runs(points: Sequence[EvidencePoint]) -> Points:
    checked = posterior_points(
        [point.flop_per_token for point in points],
        [point.tokens for point in points],
        [point.loss for point in points],
    )
    return replace(checked, short=np.array([float(point.short) for point in points]))


def _basis(predicted: model_averaging.MixtureForecast) -> str:
    floors, losses = predicted.floor.floor, predicted.floor.loss
    origin = "its prior, as no budget could be held out"
    if predicted.held_out_error is not None:
        origin = "from the errors on held-out budgets"
    return (
        f"extrapolated to {predicted.extrapolation:.3g}x the compute of the largest pilot. The interval combines the "
        f"spread of the forms and their constants, run-to-run noise of {predicted.noise_sd:.2%}, and an extrapolation "
        f"error of {predicted.discrepancy_sd:.2%} ({origin}). With an irreducible loss E of {floors[0]:.3g}, "
        f"{floors[1]:.3g} or {floors[2]:.3g} the loss would be {losses[0]:.4f}, {losses[1]:.4f} or {losses[2]:.4f}"
    )


def _forms(
    mixture: model_averaging.Mixture, predicted: model_averaging.MixtureForecast
) -> tuple[FormScore, ...]:
    """Every form with its held-out error, weight, constants and forecast; largest weight first."""
    errors = {score.form.name: score.held_out_error for score in model_averaging.compare_forms(mixture.runs)}
    constants = {law.form.name: _constants(law) for law in mixture.laws}
    return tuple(
        FormScore(
            form=member.form.name,
            latex=laws.latex(member.form, "M"),
            held_out_error=errors.get(member.form.name),
            weight=member.weight,
            constants=constants[member.form.name],
            forecast=member.median,
        )
        for member in sorted(predicted.members, key=lambda member: -member.weight)
    )


def _constants(law: Posterior) -> dict[str, Interval]:
    """Intervals of the constants over the draws that the forecast uses."""
    return {name: _interval(fit.interval(law.constant(name))) for name in law.form.constants}


def _optimum(mixture: model_averaging.Mixture, target: PlannedRun) -> Optimum:
    """The compute-optimal allocation of the target's compute; N* by the ratio of N to M of the target's shape."""
    split = {
        name: _interval(ends)
        for name, ends in model_averaging.best_split(mixture, target.budget_flop).items()
    }
    params_per_flop = target.run.model.block_params / target.run.model.flop_per_token
    return Optimum(
        compute_flop=target.budget_flop,
        flop_per_token=split["size"],
        block_params=_scaled_interval(split["size"], params_per_flop),
        tokens=split["tokens"],
        tokens_per_block_param=_scaled_interval(split["tokens_per_size"], 1 / params_per_flop),
        loss=split["loss"],
    )


def _interval(ends: fit.DrawInterval) -> Interval:
    """An interval of draws as a document."""
    return Interval(value=ends.median, low=ends.low, high=ends.high)


def _scaled_interval(ends: Interval, factor: float) -> Interval:
    return Interval(value=ends.value * factor, low=ends.low * factor, high=ends.high * factor)


def _curve_band(
    records: Sequence[LedgerRecord], band: Band, floor: float, target: PlannedRun
) -> CurveBand | None:
    """The curve by collapse of the pilots' curves; None where too few pilots show a common shape."""
    run = target.run
    pilots = [_pilot(record) for record in records if len(record.curve_step) >= MIN_CURVE_POINTS]
    below = min([band.low_95, *(float(pilot.curve.loss.min()) for pilot in pilots)])
    steps = np.arange(run.evaluation.every_steps, run.optim.steps + 1, run.evaluation.every_steps)
    try:
        curve = loss_curve.forecast_curve(
            loss_curve.collapse(pilots, min(floor, FLOOR_UNDER_BAND * below)),
            band,
            steps,
            total_steps=run.optim.steps,
            warmup_steps=run.optim.warmup_steps,
            size=float(run.model.flop_per_token),
            tokens=float(run.tokens),
        )
    except ValueError:
        return None
    return CurveBand(
        step=tuple(curve.step.tolist()),
        median=tuple(curve.median.tolist()),
        low_50=tuple(curve.low_50.tolist()),
        high_50=tuple(curve.high_50.tolist()),
        low_95=tuple(curve.low_95.tolist()),
        high_95=tuple(curve.high_95.tolist()),
    )


def _pilot(record: LedgerRecord) -> loss_curve.Pilot:
    optim = record.run.optim
    return loss_curve.Pilot(
        curve=loss_curve.Curve(np.array(record.curve_step) / optim.steps, _smoothed_losses(record)),
        size=float(record.run.model.flop_per_token),
        tokens=float(record.tokens),
        warmup=optim.warmup_steps / optim.steps,
    )


def _smoothed_losses(record: LedgerRecord) -> loss_curve.Array:
    """The pilot's loss curve, smoothed by the annealing law fitted to it.

    That predicts held-out tiny runs better where the learning rate drops, with narrower bands (bench/curves.py). A
    curve that is too short, has no drop, or started under another run's schedule stays as it was measured.
    """
    run, loss = record.run, np.array(record.curve_loss)
    drops = run.optim.milestones
    if (
        len(loss) < _SMOOTHED_POINTS
        or run.parent is not None
        or not drops
        or record.curve_step[-1] <= drops[0].step
    ):
        return loss
    lr = np.array([run.optim.lr(step) for step in range(1, run.optim.steps + 1)])
    return smoothed(Trace(lr, np.array(record.curve_step), loss))
