"""The forecast of a target run: its final loss with bands, the whole curve, and the forms side by side that give them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner import curve, laws, select
from planner.isoflop import Minimum, profiles
from specs.budget import Budget
from specs.data import DeclaredText
from specs.law import Band, EvidencePoint, FormScore, PublishedLaw
from specs.plan import CurveBand, Forecast, NoForecast, PlannedRun
from specs.record import LedgerRecord


@dataclass(frozen=True)
class Told:
    """A forecast from the ledger with what it rests on."""

    forecast: Forecast | NoForecast
    forms: tuple[FormScore, ...]
    flags: tuple[str, ...]


def from_published(
    budget: Budget, law: PublishedLaw, loss: PublishedLaw | None, target: PlannedRun
) -> Forecast | NoForecast:
    """No loss from a published law, unless it prints one and was fitted on the budget's own kind of data."""
    if loss is None or loss.loss is None:
        source = law.name if loss is None else loss.name
        return NoForecast(
            reason=f"the law {source} prints no loss coefficients; a forecast of the loss needs pilots on your own data "
            "(evidence.kind: pilots)"
        )
    text = budget.data.text
    on = text.describe if isinstance(text, DeclaredText) else "your own files"
    if on != loss.data:
        return NoForecast(
            reason=f"the loss law {loss.name} holds for {loss.data}, not for {on}: losses do not carry over between "
            "texts and tokenizers; run pilots on your own data (evidence.kind: pilots)"
        )
    model = target.run.model
    size = {"params": model.params, "block_params": model.block_params, "flop_per_token": model.flop_per_token}
    predicted = loss.loss.at(size[loss.loss.size], target.run.tokens)
    return NoForecast(
        reason=f"the loss law {loss.name} gives {predicted:.4f} nats/token, without an interval: its source prints no draws, "
        "so it cannot be audited; run pilots for a forecast with bands"
    )
