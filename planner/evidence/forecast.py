"""The forecast of a target run: its final loss with bands, the whole curve, and the forms that give them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.scaling import laws, loss_curve, model_averaging
from planner.scaling.best_split import Cost, best_split, undetermined
from planner.scaling.data_constrained import UniqueTokens, effective_tokens
from planner.scaling.diverged import LeftOut
from planner.scaling.isoflop import Minimum, budget_groups, fit_minima
from planner.scaling.lr_annealing import Trace, smoothed
from planner.scaling.points import Points
from planner.scaling.points import points as posterior_points
from planner.scaling.posterior import DrawInterval, Posterior, interval
from specs.budget import Budget
from specs.data import DeclaredText
from specs.evidence import EvidencePoint
from specs.humanize import several
from specs.law import FLOP_PER_SIZE_TOKEN, Band, FormScore, Interval, Optimum, PublishedLaw, SizeKind
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
    """A forecast from runs with what it rests on."""

    forecast: Forecast | NoForecast
    forms: tuple[FormScore, ...]
    flags: tuple[str, ...]
    held_out_error: float | None
    """Of the mixture of forms; None where no budget could be held out."""
    optimum: Optimum | None
    """The compute-optimal allocation of the target's compute; None without a forecast."""


def from_published(
    budget: Budget,
    law: PublishedLaw,
    loss: PublishedLaw | None,
    target: PlannedRun,
    unique_tokens: UniqueTokens,
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
    predicted = loss.loss.at(size[loss.loss.size], effective_tokens(float(target.run.tokens), unique_tokens))
    return NoForecast(
        reason=f"the loss law {loss.name} predicts {predicted:.4f} nats per token, but without an interval, so a run "
        "cannot be audited against it; run pilots for a forecast with an interval"
    )


def of_another_text(forecast: Forecast | NoForecast) -> NoForecast:
    """Why a table's law gives no forecast of the loss on this budget's text, with the loss that it gives on its own."""
    told = ""
    if isinstance(forecast, Forecast):
        told = f"; on its own text its law predicts {forecast.loss.median:.4f} nats per token"
    return NoForecast(
        reason="shape and tokens follow the table's law, but the budget does not say that the table's text, tokenizer "
        f"and held-out set are its own, and losses do not carry over to others{told}; if they are, write "
        "evidence.same_text: true under another name"
    )


@dataclass(frozen=True)
class FittedLaws:
    """The laws of a ledger's or a table's runs: fitted once, for allocation, target loss and forecast alike."""

    points: tuple[EvidencePoint, ...]
    """The runs that the laws are fitted on."""
    mixture: model_averaging.Mixture | None
    """None where the runs are not enough."""
    reason: str
    """Why they are not enough; empty where they are."""
    left_out: tuple[tuple[EvidencePoint, LeftOut], ...]
    """Runs that are far off all others."""
    size_kind: SizeKind = "flop_per_token"
    """What sizes count."""
    cost: Cost | None = None
    """FLOP per token M of models of these sizes; None where sizes are M."""

    @property
    def minima(self) -> list[Minimum]:
        """isoFLOP minima of the runs, by budget. Short runs have full weight here, a ninth of it in fits of a law.

        At a small budget the short runs are the large sizes, the whole right arm of its parabola: with less weight the
        minimum would lie beyond them. A law is fitted on the runs of all budgets and needs them less.
        """
        runs = to_points(self.points, self.size_kind)
        return fit_minima(runs.size, runs.tokens, runs.loss, cost_per=runs.cost_per, weights=runs.weights)

    def log_losses(self, size: laws.Array, fresh_tokens: laws.Array) -> laws.Array:
        """ln L of models of these M after these fresh tokens: the mean over the mixture's draws."""
        assert self.mixture is not None  # the caller refuses a budget that needs it
        return np.asarray(self.mixture.log_loss(size, fresh_tokens).mean(axis=0))

    def best_split(self, flop: float, unique_tokens: UniqueTokens) -> dict[str, Interval] | None:
        """Intervals of the compute-optimal size and tokens; None where the runs leave them open."""
        if self.mixture is None:
            return None
        split = best_split(self.mixture, flop, unique_tokens, self.cost)
        return None if undetermined(split) else {name: ends.to_document() for name, ends in split.items()}


def fit_laws(
    points: Sequence[EvidencePoint], size_kind: SizeKind = "flop_per_token", cost: Cost | None = None
) -> FittedLaws:
    """The laws of runs, without those far off all others. Sizes are as `size_kind` says; `cost` as in `FittedLaws`."""
    try:
        mixture = model_averaging.fit_mixture(to_points(points, size_kind))
    except ValueError as error:
        return FittedLaws(tuple(points), None, str(error), (), size_kind, cost)
    gone = {left.row: left for left in mixture.left_out}
    kept = tuple(point for row, point in enumerate(points) if row not in gone)
    left_out = tuple((points[row], left) for row, left in gone.items())
    return FittedLaws(kept, mixture, "", left_out, size_kind, cost)


def ledger_flags(fitted: FittedLaws) -> tuple[str, ...]:
    """What weakens a ledger's evidence: diverged and short runs, minima that are not bracketed, few budgets."""
    named = (_left_out_flag(point, left) for point, left in fitted.left_out)
    return (*named, *_flags(to_points(fitted.points, fitted.size_kind)))


def from_laws(
    fitted: FittedLaws,
    target: PlannedRun,
    unique_tokens: UniqueTokens,
    records: Sequence[LedgerRecord] = (),
) -> ForecastResult:
    """The target's final loss and, from the curves of the ledger's runs, its whole curve; or why the runs are not
    enough.

    The final loss's band is `model_averaging.forecast_loss`'s. Repeated tokens count as the number of unique tokens
    that they are worth.
    """
    run, mixture = target.run, fitted.mixture
    if mixture is None:
        reason = f"the ledger's runs are not enough for a forecast: {fitted.reason}"
        return ForecastResult(NoForecast(reason=reason), (), (), None, None)
    size = float(getattr(run.model, fitted.size_kind))
    predicted = model_averaging.forecast_loss(mixture, size, float(run.tokens), unique_tokens)
    band = predicted.band
    used = {point.run for point in fitted.points}
    pilots = [record for record in records if record.run.fingerprint() in used]
    forecast = Forecast(
        loss=band, curve=_curve_band(pilots, band, predicted.floor.floor[0], target), basis=_basis(predicted)
    )
    split = best_split(mixture, target.budget_flop, unique_tokens, fitted.cost)
    optimum = _optimum(split, target, fitted)
    return ForecastResult(
        forecast,
        _forms(mixture, predicted, "M" if fitted.size_kind == "flop_per_token" else "N"),
        (_undetermined_flag(optimum.tokens_per_block_param),) if undetermined(split) else (),
        predicted.held_out_error,
        optimum,
    )


def to_points(points: Sequence[EvidencePoint], size_kind: SizeKind) -> Points:
    """Runs of evidence as the fits take them."""
    unique = [math.inf if point.unique_tokens is None else point.unique_tokens for point in points]
    checked = posterior_points(
        [point.size for point in points],
        [point.tokens for point in points],
        [point.loss for point in points],
        cost_per=FLOP_PER_SIZE_TOKEN[size_kind],
        unique_tokens=unique,
    )
    fresh = [
        worth if point.fresh_tokens is None else point.fresh_tokens
        for point, worth in zip(points, checked.fresh_tokens.tolist(), strict=True)
    ]
    short = np.array([float(point.short) for point in points])
    return replace(checked, short=short, fresh_tokens=np.array(fresh))


def _flags(runs: Points) -> tuple[str, ...]:
    """Texts on what weakens the evidence: short runs, minima that are not bracketed, few budgets."""
    found = []
    if short := int(runs.short.sum()):
        found.append(f"{short} of {len(runs.loss)} runs have under 1000 steps and get a ninth of the weight")
    minima = fit_minima(runs.size, runs.tokens, runs.loss, cost_per=runs.cost_per, weights=runs.weights)
    found += [f"at {m.flop:.3g} FLOP {m.reason}" for m in minima if not m.bracketed]
    if (budgets := len(budget_groups(runs.flop))) < 4:
        found.append(
            f"only {several(budgets, 'budget')}: the loss floor is mostly that of the prior, from published laws"
        )
    return tuple(found)


def _left_out_flag(point: EvidencePoint, left: LeftOut) -> str:
    return (
        f"run {point.run} ({point.budget_flop:.2g} FLOP) is left out of the fits: its loss {point.loss:.4f} is "
        f"{np.expm1(left.off):+.0%} off what all other runs say; look for a loss spike or a bad node in its "
        "report, and run it again under another seed"
    )


def _undetermined_flag(ratio: Interval) -> str:
    return (
        f"the runs do not say how to split the compute: 95 % of the best tokens per parameter lie in [{ratio.low:.2g}, "
        f"{ratio.high:.2g}]; add runs that trade size against tokens at one budget"
    )


def _basis(predicted: model_averaging.MixtureForecast) -> str:
    floors, losses = predicted.floor.floor, predicted.floor.loss
    origin = "its prior, as no budget could be held out"
    if predicted.held_out_error is not None:
        origin = "from the errors on held-out budgets"
    return (
        f"extrapolated to {predicted.extrapolation:.3g}x the compute of the largest run. The interval combines the "
        f"spread of the forms and their constants, run-to-run noise of {predicted.noise_sd:.2%}, and an extrapolation "
        f"error of {predicted.discrepancy_sd:.2%} ({origin}). With an irreducible loss E of {floors[0]:.3g}, "
        f"{floors[1]:.3g} or {floors[2]:.3g} the loss would be {losses[0]:.4f}, {losses[1]:.4f} or {losses[2]:.4f}"
    )


def _forms(
    mixture: model_averaging.Mixture, predicted: model_averaging.MixtureForecast, symbol: str
) -> tuple[FormScore, ...]:
    """Every member with its held-out error, weight, constants and forecast; largest weight first."""
    found = [
        FormScore(
            form=member.form.name,
            window_decades=member.window,
            latex=laws.latex(member.form, symbol),
            held_out_error=member.held_out_error,
            weight=member.weight,
            constants=_constants(law),
            forecast=member.median,
        )
        for member, law in zip(predicted.members, mixture.laws, strict=True)
    ]
    return tuple(sorted(found, key=lambda score: -score.weight))


def _constants(law: Posterior) -> dict[str, Interval]:
    """Intervals of the constants over the draws that the forecast uses."""
    return {name: interval(law.constant(name)).to_document() for name in law.law.form.constants}


def _optimum(split: dict[str, DrawInterval], target: PlannedRun, fitted: FittedLaws) -> Optimum:
    """The compute-optimal split of the target's compute; N* by the ratio of N to M of the target's shape."""
    found = {name: ends.to_document() for name, ends in split.items()}
    if fitted.cost is not None:
        sizes = np.array([found["size"].value, found["size"].low, found["size"].high])
        value, low, high = fitted.cost(sizes).tolist()
        found["size"] = Interval(value=value, low=low, high=high)
        found["tokens_per_size"] = _ratio(found["tokens"], found["size"])
    params_per_flop = target.run.model.block_params / target.run.model.flop_per_token
    return Optimum(
        compute_flop=target.budget_flop,
        flop_per_token=found["size"],
        block_params=_scaled_interval(found["size"], params_per_flop),
        tokens=found["tokens"],
        tokens_per_block_param=_scaled_interval(found["tokens_per_size"], 1 / params_per_flop),
        loss=found["loss"],
    )


def _ratio(tokens: Interval, size: Interval) -> Interval:
    """Tokens over size of one compute: the more tokens, the smaller the size."""
    return Interval(value=tokens.value / size.value, low=tokens.low / size.high, high=tokens.high / size.low)


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
    drops = run.optim.drop_steps
    if (
        len(loss) < _SMOOTHED_POINTS
        or run.parent is not None
        or not drops
        or record.curve_step[-1] <= drops[0]
    ):
        return loss
    lr = np.array([run.optim.lr(step) for step in range(1, run.optim.steps + 1)])
    return smoothed(Trace(lr, np.array(record.curve_step), loss))
